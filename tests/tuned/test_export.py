"""tfmt-export: what other libraries read, what is refused, and that a folder appears whole or not at all."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tfmt import export
from tfmt.bert.base_weights import model_digest
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.runs.sealed import seal_json, unseal
from tfmt.spec import RunSpec
from tfmt.tuned import export as writers
from tfmt.tuned.load import load_tuned


@pytest.fixture(scope="module")
def runs(toy_bert, toy_glue, tmp_path_factory):
    """{name: run folder} of three runs that share a bench."""
    folder = tmp_path_factory.mktemp("runs")
    modes = {
        "layernorm": {"mode": "layernorm_feedforward", "layers": "1"},
        "outliers": {"mode": "outliers", "mask_size": 3},
        "scores": {"mode": "frozen", "keep": "scores"},
    }
    made, bench = {}, None
    for name, settings in modes.items():
        spec = RunSpec.make(model=str(toy_bert), data_dir=str(toy_glue), task="mrpc", max_length=32, epochs=1,
                            learning_rate=2e-2, **settings)  # fmt: skip
        request = prepare(spec, folder)
        bench = bench or make_bench(request)
        execute(request, bench, started=0.0, quiet=True)
        made[name] = request.folder
    return made


def call(capsys, **settings):
    status = export.main([f"--{name}={value}" for name, value in settings.items()])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def tensors(path):
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("name", ["layernorm", "outliers"])
def test_transformers_folder_holds_the_tuned_model_under_pytorch_names(runs, toy_bert, tmp_path, capsys, name):
    status, out, err = call(capsys, run=runs[name], output=tmp_path / "out")
    assert (status, err) == (0, ""), err
    assert "model.safetensors" in out
    found, about = tensors(tmp_path / "out" / "model.safetensors")
    assert about["format"] == "pt"
    model = load_tuned(runs[name])
    for path, variable in model.all_weights.items():
        torch_name = next(w.torch_name for w in writers.read_tuned(runs[name]).weights if w.path == path)
        value = found.pop(torch_name)
        np.testing.assert_array_equal(value.T if path.endswith("kernel") else value, variable.numpy())
    assert not found
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "not_equivalent", "1": "equivalent"}
    assert config["label2id"] == {"not_equivalent": 0, "equivalent": 1}
    assert config["problem_type"] == "single_label_classification"
    assert (tmp_path / "out" / "vocab.txt").read_text() == (toy_bert / "vocab.txt").read_text()
    assert "AutoModelForSequenceClassification" in (tmp_path / "out" / "README.md").read_text()


def test_adapter_holds_the_tuned_layernorms_and_the_head(runs, tmp_path, capsys):
    status, _, err = call(capsys, run=runs["layernorm"], output=tmp_path / "out", format="peft")
    assert status == 0, err
    found, _ = tensors(tmp_path / "out" / "adapter_model.safetensors")
    prefix = "base_model.model."
    layernorm = "bert.encoder.layer.1.output.LayerNorm"
    assert set(found) == {
        f"{prefix}{layernorm}.ln_tuning_layers.weight", f"{prefix}{layernorm}.ln_tuning_layers.bias",
        f"{prefix}classifier.weight", f"{prefix}classifier.bias",
    }  # fmt: skip
    model = load_tuned(runs["layernorm"])
    weights = model.all_weights
    np.testing.assert_array_equal(found[f"{prefix}classifier.weight"], weights["classifier/kernel"].numpy().T)
    gamma = weights["bert/encoder/layer_._1/output/LayerNorm/gamma"].numpy()
    np.testing.assert_array_equal(found[f"{prefix}{layernorm}.ln_tuning_layers.weight"], gamma)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LN_TUNING"
    assert config["task_type"] == "SEQ_CLS"
    assert config["target_modules"] == [layernorm]
    assert config["modules_to_save"] == ["classifier"]


def test_adapter_brings_the_tokenizer_that_autopeftmodel_asks_for(runs, toy_bert, tmp_path, capsys):
    """The base model's folder holds vocab.txt alone, and PEFT calls AutoTokenizer on the adapter's folder."""
    from transformers import AutoTokenizer

    assert not {"tokenizer.json", "tokenizer_config.json"}.intersection(os.listdir(toy_bert))
    status, _, err = call(capsys, run=runs["layernorm"], output=tmp_path / "out", format="peft")
    assert status == 0, err
    assert (tmp_path / "out" / "tokenizer.json").exists()
    found, base = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", toy_bert))
    assert len(found) == 19  # no more than the base model's embeddings: PEFT would resize them
    text = "the good film ends, well"
    assert found(text, "bad").data == base(text, "bad").data


def test_keras_folder_loads_in_plain_transformers(runs, tmp_path, capsys):
    import transformers

    status, _, err = call(capsys, run=runs["outliers"], output=tmp_path / "out", format="keras")
    assert status == 0, err
    plain, info = transformers.TFBertForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    ids = np.array([[2, 5, 7, 9, 3], [2, 6, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(int)}
    tuned = load_tuned(runs["outliers"])
    np.testing.assert_allclose(plain(inputs).logits, tuned(inputs).logits, atol=1e-5)
    tuned.all_weights["classifier/bias"].assign([7.0, 7.0])
    tuned.load_weights(tmp_path / "out" / "tf_model.h5")
    np.testing.assert_allclose(plain(inputs).logits, tuned(inputs).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("outliers", {"format": "peft"}, ["peft", "mode=outliers", "--format=transformers"]),
        ("scores", {}, ["tuned.safetensors", "--keep=tuned"]), ("layernorm", {"format": "onnx"}, ["onnx", "peft"]),
        ("layernorm", {"run": "/nowhere"}, ["/nowhere", "record.json"]), ("layernorm", {"output": ""}, ["--output"]),
        ("layernorm", {"model": "/nowhere"}, ["/nowhere"]), ("layernorm", {"run": ""}, ["--run"]),
    ],
)  # fmt: skip
def test_refuses(runs, tmp_path, capsys, name, changes, words):
    status, out, err = call(capsys, **({"run": runs[name], "output": tmp_path / "out"} | changes))
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_leaves_a_folder_with_files_alone_and_fills_an_empty_one(runs, tmp_path, capsys):
    place = tmp_path / "out"
    place.mkdir()
    assert call(capsys, run=runs["layernorm"], output=place)[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    status, _, err = call(capsys, run=runs["layernorm"], output=place, format="peft")
    assert status == 2
    assert "not empty" in err
    assert before == {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    (tmp_path / "file").write_text("mine")
    assert call(capsys, run=runs["layernorm"], output=tmp_path / "file")[0] == 2


def test_full_disk_leaves_nothing_behind(runs, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers, "_write_tokenizer", full)
    status, _, err = call(capsys, run=runs["layernorm"], output=tmp_path / "out")
    assert status == 1
    assert "disk is full" in err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def half(make_toy_bert, toy_glue, tmp_path_factory):
    """A run on a bfloat16 base with a cased tokenizer and added tokens: (run folder, base folder)."""
    import ml_dtypes
    from transformers import BertTokenizerFast

    place = tmp_path_factory.mktemp("half")
    base = make_toy_bert(place / "base", vocab_size=24)
    stored = load_file(base / "model.safetensors")
    save_file({name: value.astype(ml_dtypes.bfloat16) for name, value in stored.items()}, base / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    tokenizer = BertTokenizerFast(str(base / "vocab.txt"), do_lower_case=False)
    tokenizer.add_tokens(["Good film", "plots"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e1>"]})
    tokenizer.save_pretrained(base)
    spec = RunSpec.make(model=str(base), data_dir=str(toy_glue), task="mrpc", max_length=32, epochs=1,
                        learning_rate=2e-2, mode="layernorm")  # fmt: skip
    request = prepare(spec, place / "runs")
    execute(request, make_bench(request), started=0.0, quiet=True)
    return request.folder, base


def run_command(module, hash_seed="0", **settings):
    """A command in a process of its own, in which nothing else has imported TensorFlow."""
    flags = [f"--{name}={value}" for name, value in settings.items()]
    environment = os.environ | {"PYTHONPATH": str(Path(export.__file__).parents[1]), "PYTHONHASHSEED": hash_seed}
    return subprocess.run([sys.executable, "-m", module, *flags], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("format", ["transformers", "peft", "keras"])
def test_command_exports_a_bfloat16_base_and_its_tokens(half, tmp_path, format):
    from transformers import AutoTokenizer

    run, base = half
    done = run_command("tfmt.export", run=run, output=tmp_path / "out", format=format)
    assert done.returncode == 0, done.stderr
    assert done.stderr in ("", f"exports {run} -> {tmp_path / 'out'} ({format})\n")
    texts = ["Good film plots", "good Film PLOTS <e1> a story", "the plot", "The <e1>"]
    expected = AutoTokenizer.from_pretrained(base)(texts, texts[::-1], truncation="longest_first", max_length=9)
    found = AutoTokenizer.from_pretrained(tmp_path / "out")(
        texts, texts[::-1], truncation="longest_first", max_length=9
    )
    assert dict(found) == dict(expected)
    tuned, _ = tensors(run / "tuned.safetensors")
    if format == "transformers":
        written, _ = tensors(tmp_path / "out" / "model.safetensors")
        layernorms = [name for name in tuned if "LayerNorm" in name]
        assert len(layernorms) == 8
        for name in (*layernorms, "classifier.weight"):
            np.testing.assert_array_equal(written[name], tuned[name])
        bits = written["bert.embeddings.word_embeddings.weight"].view(np.uint32)
        assert not (bits & 0xFFFF).any()  # what was a bfloat16 is the same number as a float32
    elif format == "peft":
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "base"
        readme = (tmp_path / "out" / "README.md").read_text()
        assert 'from_pretrained("path/to/base"' in readme
        assert "base.float()" in readme


def test_command_draws_the_weights_of_a_bfloat16_model(half, tmp_path):
    done = run_command("tfmt.analyze", figure="weights", model=half[1], output=tmp_path / "w.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr in ("", f"tfmt-analyze: draws weights from {half[1]}\n")
    assert (tmp_path / "w.png").stat().st_size > 1000


def test_adapter_for_tensorflows_weights_is_refused(toy_bert, toy_glue, tmp_path, capsys):
    import tfmt

    base = tmp_path / "base"
    tfmt.load_bert(str(toy_bert), seed=0).save_pretrained(base, safe_serialization=True)
    (base / "vocab.txt").write_text((toy_bert / "vocab.txt").read_text())
    spec = RunSpec.make(model=str(base), data_dir=str(toy_glue), task="mrpc", max_length=32, epochs=1,
                        learning_rate=2e-2, mode="layernorm")  # fmt: skip
    request = prepare(spec, tmp_path)
    execute(request, make_bench(request), started=0.0, quiet=True)
    status, _, err = call(capsys, run=request.folder, output=tmp_path / "out", format="peft")
    assert (status, err.count("\n")) == (2, 1), err
    assert "TensorFlow's weights" in err
    assert not (tmp_path / "out").exists()
    assert call(capsys, run=request.folder, output=tmp_path / "out")[0] == 0
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert names == {*load_file(toy_bert / "model.safetensors"), "classifier.weight", "classifier.bias"}


def execute_run(place, **settings):
    """The folder of a run on toy data."""
    spec = RunSpec.make(max_length=32, epochs=1, learning_rate=2e-2, **settings)
    request = prepare(spec, place)
    execute(request, make_bench(request), started=0.0, quiet=True)
    return request.folder


@pytest.fixture(scope="module")
def telling(toy_bert, toy_glue, tmp_path_factory):
    """A run on a model whose path, and paths in its files, must not be told: (run folder, base folder)."""
    place = tmp_path_factory.mktemp("place")
    base = shutil.copytree(toy_bert, place / "tell-tale" / "my-bert")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": "/tell-tale/config"}))
    kept = {name: f"/tell-tale/{name}" for name in ("name_or_path", "tokenizer_file", "special_tokens_map_file")}
    (base / "tokenizer_config.json").write_text(json.dumps(kept))
    data = shutil.copytree(toy_glue, place / "tell-tale" / "glue")
    return execute_run(place / "runs", model=str(base), data_dir=str(data), task="mrpc", mode="layernorm"), base


@pytest.mark.parametrize("format", ["transformers", "peft", "keras"])
def test_exports_name_the_base_model_and_not_where_it_lies(telling, tmp_path, capsys, format):
    run, base = telling
    assert call(capsys, run=run, output=tmp_path / "out", format=format)[0] == 0
    for path in (tmp_path / "out").rglob("*"):
        assert b"tell-tale" not in path.read_bytes(), path
        assert os.fsencode(base.parents[1]) not in path.read_bytes(), path
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "# mrpc, my-bert, tuned: layernorm" in readme
    assert f"digest by tfmt is {model_digest(base)}" in readme


def test_a_name_is_found_where_the_path_ends_in_none(telling, tmp_path, capsys, monkeypatch):
    run, base = telling
    monkeypatch.chdir(base)
    assert call(capsys, run=run, output=tmp_path / "out", format="peft", model=".")[0] == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "my-bert"


@pytest.mark.parametrize("format", ["transformers", "peft", "keras"])
def test_two_exports_are_equal_byte_for_byte(telling, tmp_path, capsys, format):
    run, _ = telling
    for seed in ("1", "2"):
        done = run_command("tfmt.export", hash_seed=seed, run=run, output=tmp_path / seed, format=format)
        assert done.returncode == 0, done.stderr
    assert call(capsys, run=run, output=tmp_path / "3", format=format)[0] == 0  # where other models were made before
    first, *others = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "123")
    for other in others:
        assert [name for name in first if first[name] != other.get(name)] == []
        assert first.keys() == other.keys()
    for path in (tmp_path / "1").glob("*.safetensors"):
        assert len(tensors(path)[1]) == 1  # of two keys either may come first, which two exports may not show


def change_record(run, place, **changes):
    """A copy of a run that says other things of itself: {part of the record: {field: value}}."""
    copy = Path(shutil.copytree(run, place / run.name))
    record = unseal(json.loads((copy / "record.json").read_text()))
    for part, fields in changes.items():
        record[part] |= fields
    (copy / "record.json").write_text(seal_json(record))
    return copy, record


@pytest.mark.parametrize(("format", "library"), [("transformers", "transformers"), ("peft", "peft"),
                                                 ("keras", "transformers")])  # fmt: skip
def test_card_of_a_local_model_has_front_matter_and_says_no_more_than_is_known(
    telling, tmp_path, capsys, format, library
):
    run, _ = telling
    assert call(capsys, run=run, output=tmp_path / "out", format=format)[0] == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "datasets": ["nyu-mll/glue"], "library_name": library, "metrics": ["f1", "accuracy"],
        "pipeline_tag": "text-classification", "tags": ["bert", "tfmt", *(["tf"] if format == "keras" else [])],
    }  # fmt: skip
    scores = json.loads((run / "record.json").read_text())["result"]["epochs"][0]["metrics"]["validation"]
    told = f"On 20 examples of the validation split it has f1 {scores['f1']:.4f}, accuracy {scores['accuracy']:.4f}."
    assert told in card.text


@pytest.mark.parametrize(("format", "relation"), [("transformers", "finetune"), ("peft", "adapter")])
def test_card_of_a_hub_model_has_its_name_and_the_scores_on_a_whole_split(telling, tmp_path, capsys, format, relation):
    """The files may lie elsewhere by now: the digest says that they are the hub's."""
    run, base = telling
    facts = {"name": "some/bert", "revision": "v1", "commit": "c" * 40, "sha256": model_digest(base)}
    examples = {"train": 3668, "validation": 408}  # as many as MRPC has
    run, record = change_record(run, tmp_path, model=facts, spec={"model": "some/bert", "revision": "v1"},
                                result={"examples": examples})  # fmt: skip
    assert call(capsys, run=run, output=tmp_path / "out", format=format, model=base)[0] == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("some/bert", relation)
    assert card.data.license is None
    assert card.data.model_name == record["run_id"]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == record["result"]["epochs"][0]["metrics"]["validation"]
    about = {(each.dataset_type, each.dataset_config, each.dataset_split) for each in card.data.eval_results}
    assert about == {("nyu-mll/glue", "mrpc", "validation")}
    assert f"Its base model is some/bert at commit {'c' * 40} (v1), whose digest" in card.text
    if format == "peft":
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("some/bert", "c" * 40)
        assert 'from_pretrained("some/bert", num_labels=2, id2label=names, revision="' in card.text


def test_card_has_the_scores_of_the_epoch_whose_weights_these_are(telling, tmp_path, capsys):
    run, _ = telling
    first = json.loads((run / "record.json").read_text())["result"]["epochs"][0]
    last = first | {"epoch": 2, "metrics": {"validation": {"f1": 0.125, "accuracy": None}}, "collapsed": True}
    for keep, kept in (("best", 1), ("last", 2)):
        changed, _ = change_record(run, tmp_path / keep, spec={"epochs": 2, "keep_epoch": keep},
                                   result={"epochs": [first, last], "best_epoch": 1})  # fmt: skip
        assert call(capsys, run=changed, output=tmp_path / f"{keep}-out")[0] == 0
        text = ModelCard.load(tmp_path / f"{keep}-out" / "README.md").text
        assert f"the weights are those of epoch {kept} of 2." in text
        assert ("it has f1 0.1250.\n" in text) == (keep == "last")
        assert ("It collapsed" in text) == (keep == "last" or first["collapsed"])
    changed, _ = change_record(run, tmp_path / "early", spec={"epochs": 9, "early_stopping": 1, "optimizer": "lion"},
                               result={"epochs": [first, last], "best_epoch": 1, "stopped_early": 2})  # fmt: skip
    assert call(capsys, run=changed, output=tmp_path / "early-out")[0] == 0
    text = ModelCard.load(tmp_path / "early-out" / "README.md").text
    assert " by lion, seed 0; the weights are those of epoch 1 of 9, the run stopped early after epoch 2." in text
