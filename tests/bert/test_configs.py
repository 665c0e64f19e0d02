"""Configs: what would end in a traceback is refused at once."""

import hashlib
import json
import shutil

import pytest

from tfmt.bert.base_weights import BaseWeights, is_model, model_digest
from tfmt.bert.configs import (
    DEMO_NAME,
    DEMO_WEIGHTS_SHA256,
    PAPER_SHAPES,
    BertSettings,
    demo_folder,
    public_name,
    read_config,
    shape_of,
)
from tfmt.errors import RequestError, RequestWarning
from tfmt.runs.runner import prepare
from tfmt.spec import RunSpec


def change_config(source, target, **settings):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | settings))
    return target


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layer_norm_eps", "1e-12"), ("layer_norm_eps", 0), ("layer_norm_eps", None), ("hidden_dropout_prob", 1),
        ("hidden_dropout_prob", -0.1), ("attention_probs_dropout_prob", "no"), ("classifier_dropout", 1.5),
        ("initializer_range", True), ("add_cross_attention", True), ("is_decoder", True), ("num_attention_heads", 3),
        ("position_embedding_type", "relative_key"), ("num_hidden_layers", 0), ("hidden_size", 16.0),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_computed_are_refused(toy_bert, tmp_path, name, value):
    folder = change_config(toy_bert, tmp_path / "model", **{name: value})
    with pytest.raises(RequestError, match=r"config\.json") as error:
        read_config(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("layer_norm_eps", "NaN"), ("layer_norm_eps", "-1e-12"), ("hidden_dropout_prob", "1.0"),
        ("attention_probs_dropout_prob", "Infinity"), ("initializer_range", '"0.02"'), ("initializer_range", "-0.02"),
        ("hidden_act", "5"), ("hidden_act", '"GELU"'), ("num_hidden_layers", "100000000"), ("hidden_size", "9" * 9999),
        ("num_hidden_layers", "9" * 4000), ("layer_norm_eps", "[" + "9" * 9999 + "]"), ("vocab_size", "1e400"),
        ("max_position_embeddings", "null"), ("type_vocab_size", "true"),
    ],
    ids=lambda value: value[:24],
)  # fmt: skip
def test_a_refusal_names_file_and_key_in_one_short_line(toy_bert, tmp_path, key, text):
    folder = change_config(toy_bert, tmp_path / "model", **{key: "?"})
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"?"', text))
    with pytest.raises(RequestError) as error:
        read_config(folder)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert key in said
    assert "\n" not in said
    assert len(said) < len(str(path)) + 250


@pytest.mark.parametrize("nested", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_a_config_that_is_nested_too_deeply_is_refused(toy_bert, tmp_path, nested):
    folder = change_config(toy_bert, tmp_path / "model", more="?")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"?"', nested))
    with pytest.raises(RequestError, match=r"config\.json: .*nested"):
        read_config(folder)


def test_other_keys_and_whole_numbers_for_rates_are_taken(toy_bert, tmp_path):
    more = {"hidden_dropout_prob": 0, "pooler_fc_size": 768, "directionality": "bidi", "gradient_checkpointing": False,
            "": 1, "a b": None, "deep": [[[[{}]]]]}  # fmt: skip
    folder = change_config(toy_bert, tmp_path / "model", **more)
    assert read_config(folder)["pooler_fc_size"] == 768


def test_defaults_of_the_checked_settings_are_those_of_transformers():
    from transformers import BertConfig

    theirs = BertConfig().to_dict()
    assert {name: theirs[name] for name in BertSettings.model_fields} == BertSettings().model_dump()
    assert shape_of({}) == PAPER_SHAPES["bert-base-uncased"]


@pytest.mark.parametrize(
    ("key", "size", "received"),
    [("vocab_size", 20, r"\[19, 16\]"), ("max_position_embeddings", 128, r"\[64, 16\]"),
     ("type_vocab_size", 3, r"\[2, 16\]"), ("intermediate_size", 64, r"\[32, 16\]"), ("hidden_size", 18, r"\[19, 16\]"),
     ("num_hidden_layers", 3, "holds 2 blocks"), ("num_hidden_layers", 999, "holds 2 blocks")],
)  # fmt: skip
def test_sizes_that_the_weights_have_not_are_named(toy_bert, tmp_path, key, size, received):
    folder = change_config(toy_bert, tmp_path / "model", **{key: size})
    with pytest.raises(RequestError, match=rf"model\.safetensors: .*{received}.*\({key}\)"):
        BaseWeights(folder, "sentence")


def test_a_dropout_that_drops_all_is_refused_from_python_too(toy_bert):
    from tfmt.bert.models import load_bert

    with pytest.raises(RequestError, match=r"dropout=1\.0"):
        load_bert(str(toy_bert), dropout=1.0)


def test_missing_settings_have_the_defaults_of_transformers(toy_bert, tmp_path):
    from transformers import BertConfig

    from tfmt.bert.base_weights import _DECIDING, model_digest

    theirs = BertConfig().to_dict()
    assert all(theirs[name] == BertSettings.model_fields[name].default for name in _DECIDING)
    config = json.loads((toy_bert / "config.json").read_text())
    shutil.copytree(toy_bert, tmp_path / "silent")
    for name in ("layer_norm_eps", "hidden_dropout_prob", "hidden_act"):
        del config[name]
    (tmp_path / "silent" / "config.json").write_text(json.dumps(config))
    assert model_digest(tmp_path / "silent") == model_digest(toy_bert)
    read_config(change_config(toy_bert, tmp_path / "null", classifier_dropout=None))


def make_request(model, data, output):
    return prepare(RunSpec.make(model=str(model), data_dir=str(data), task="mrpc", max_length=32, epochs=1,
                                mode="layernorm", learning_rate=1e-3), output)  # fmt: skip


def test_pairs_are_refused_by_a_model_with_one_token_type(make_toy_bert, toy_glue, tmp_path):
    model = make_toy_bert(tmp_path / "model", type_vocab_size=1)
    with pytest.raises(RequestError, match=r"type_vocab_size is 1.*mrpc.*\(sentence1, sentence2\)"):
        make_request(model, toy_glue, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    (tmp_path / "own").mkdir()
    lines = ["text\tlabel", *(f"good film {i}\tup\nbad film {i}\tdown" for i in range(20))]
    for name in ("train", "validation"):
        (tmp_path / "own" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    alone = RunSpec.make(model=str(model), data_dir=str(tmp_path / "own"), task="custom", task_type="classification",
                         text_columns=("text",),
                         label_column="label", mode="layernorm", max_length=32, learning_rate=1e-3,
                         epochs=1)  # fmt: skip
    prepare(alone, tmp_path / "runs")


def test_rows_without_a_word_are_noted_and_words_without_a_row_refused(make_toy_bert, toy_bert, toy_glue, tmp_path):
    assert make_request(toy_bert, toy_glue, tmp_path / "runs").model_notes == {}
    padded = make_toy_bert(tmp_path / "padded", vocab_size=24)
    request = make_request(padded, toy_glue, tmp_path / "runs")
    assert request.model_notes == {"embedding_rows": 24, "vocabulary": 19}
    (padded / "vocab.txt").write_text((padded / "vocab.txt").read_text() + "\n".join("uvwxyz") + "\n")
    with pytest.raises(RequestError, match=r"25 entries.*24 rows"):
        make_request(padded, toy_glue, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_blocks_that_the_config_leaves_out_are_told(toy_bert, toy_glue, tmp_path):
    folder = change_config(toy_bert, tmp_path / "model", num_hidden_layers=1)
    with pytest.warns(RequestWarning, match="holds 2 blocks.*lowest 1"):
        request = make_request(folder, toy_glue, tmp_path / "runs")
    assert request.model_notes == {"stored_blocks": 2}
    whole = make_request(toy_bert, toy_glue, tmp_path / "runs")
    assert request.run_id != whole.run_id  # the file is the same, and of all sizes this one does not follow from it
    assert is_model(folder, request.digests["model"])
    assert not is_model(folder, whole.digests["model"])


def test_two_names_of_one_activation_are_one_model(toy_bert, tmp_path):
    names = ("gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh")
    digests = [model_digest(change_config(toy_bert, tmp_path / name, hidden_act=name)) for name in names]
    assert digests[0] == digests[1] == model_digest(toy_bert)
    assert digests[2] == digests[3] != digests[0]


@pytest.mark.parametrize(
    ("model", "local", "name"),
    [
        ("demo", False, "sentence-transformers/all-MiniLM-L6-v2"), ("bert-base-uncased", False, "bert-base-uncased"),
        ("google/bert_uncased_L-2_H-128_A-2", False, "google/bert_uncased_L-2_H-128_A-2"),
        ("/home/me/bert", False, "bert"), ("~/models/bert/", False, "bert"), ("../bert", False, "bert"),
        ("my/models/bert", False, "bert"), ("models/bert", True, "bert"), (".", True, "a local folder"),
        ("models/..", True, "a local folder"),
    ],
)  # fmt: skip
def test_a_name_says_nothing_of_where_a_model_lies(model, local, name):
    assert public_name(model, local=local) == name


def test_the_packaged_model_is_the_file_that_the_hub_has_under_its_name():
    weights = (demo_folder() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == DEMO_WEIGHTS_SHA256
    assert DEMO_NAME.rpartition("/")[2] in (demo_folder() / "README.md").read_text()
