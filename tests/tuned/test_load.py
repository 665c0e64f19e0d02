"""load_tuned gives the model of the kept epoch back."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import tfmt
from tfmt import figures
from tfmt.errors import RequestError
from tfmt.metrics import score
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.tensors import read_tensors, write_tensors
from tfmt.tuned.load import load_tuned, read_tuned


@pytest.mark.parametrize(
    ("mode", "options"), [("layernorm", {}), ("full", {}), ("random", {}), ("outliers", {"mask_size": 3})]
)
def test_predictions_are_those_of_the_kept_epoch(toy_bert, toy_glue, tmp_path, mode, options):
    spec = RunSpec.make(model=str(toy_bert), data_dir=str(toy_glue), task="mrpc", mode=mode, max_length=32, epochs=4,
                        learning_rate=2e-2, **options)  # fmt: skip
    request = prepare(spec, tmp_path)
    bench = make_bench(request)
    record = execute(request, bench, started=0.0, quiet=True)
    model = load_tuned(request.folder)
    for path, variable in model.all_weights.items():
        bench.model.all_weights[path].assign(variable)
    found = score(request.task, bench.truths["validation"].labels, bench.predict("validation")).values
    assert found == record.result.epochs[record.result.best_epoch - 1].metrics["validation"]
    base = tfmt.load_bert(str(toy_bert), seed=0)
    moved = sum(
        int((variable.numpy() != base.all_weights[path].numpy()).sum()) for path, variable in model.all_weights.items()
    )
    assert 0 < moved <= record.parameters.trainable
    drawn = figures.plot_weights(model=str(request.folder))[1].set_index(["sublayer", "part", "state"])["mean"]
    for state, weights in (("pre-trained", base.all_weights), ("fine-tuned", model.all_weights)):
        gammas = [value.numpy() for path, value in weights.items() if path.endswith("attention/output/LayerNorm/gamma")]
        assert drawn["attention_layernorm", "gamma", state] == pytest.approx(np.mean(gammas))


def test_refuses_another_base_model_and_runs_without_weights(toy_bert, toy_glue, tmp_path):
    spec = RunSpec.make(
        model=str(toy_bert), data_dir=str(toy_glue), task="mrpc", mode="frozen", max_length=32, epochs=1
    )
    request = prepare(spec, tmp_path)
    execute(request, make_bench(request), started=0.0, quiet=True)
    other = tmp_path / "other"
    shutil.copytree(toy_bert, other)
    blob = bytearray((other / "model.safetensors").read_bytes())
    blob[-1] ^= 1
    (other / "model.safetensors").write_bytes(blob)
    with pytest.raises(RequestError, match="digest differs"):
        load_tuned(request.folder, model=str(other))
    path = request.folder / "tuned.safetensors"
    tensors, about = read_tensors(path)
    name = next(iter(tensors))
    write_tensors(path, tensors | {name: tensors[name] + 1}, about)  # whole in itself, and not what the run wrote
    with pytest.raises(RequestError, match=r"tuned\.safetensors: .*it is not the file that the run's record tells of"):
        load_tuned(request.folder)
    spec_file = request.folder / "spec.json"
    for content in ("[]", spec_file.read_text().replace('"seed": 0', '"seed": 1')):
        spec_file.write_text(content)
        with pytest.raises(RequestError, match=r"spec\.json: broken"):
            load_tuned(request.folder)
    spec_file.unlink()
    path.unlink()
    with pytest.raises(RequestError, match=r"tuned\.safetensors: missing"):
        load_tuned(request.folder)
    with pytest.raises(RequestError, match=r"record\.json: missing"):
        load_tuned(tmp_path)


def test_base_model_with_other_added_tokens_is_another_run_and_another_base(make_toy_bert, toy_glue, tmp_path):
    """Their weights, vocab.txt and tokenizer_config.json are equal byte for byte."""
    models = []
    for name in ("one", "two"):
        folder = make_toy_bert(tmp_path / name, vocab_size=24)
        (folder / "added_tokens.json").write_text(json.dumps({f"good {word}": 19 + i for i, word in enumerate([name])}))
        models.append(folder)
    requests = [
        prepare(RunSpec.make(model=str(folder), data_dir=str(toy_glue), task="mrpc", mode="frozen", max_length=32,
                             epochs=1), tmp_path / "runs")
        for folder in models
    ]  # fmt: skip
    assert requests[0].run_id != requests[1].run_id
    execute(requests[0], make_bench(requests[0]), started=0.0, quiet=True)
    assert read_tuned(requests[0].folder).base == models[0]
    with pytest.raises(RequestError, match="digest differs"):
        read_tuned(requests[0].folder, model=str(models[1]))


def test_base_model_of_a_record_that_digests_whole_files_is_known_where_the_tokenizer_was_berts(
    toy_bert, toy_glue, tmp_path
):
    spec = RunSpec.make(
        model=str(toy_bert), data_dir=str(toy_glue), task="mrpc", mode="frozen", max_length=32, epochs=1
    )
    request = prepare(spec, tmp_path)
    execute(request, make_bench(request), started=0.0, quiet=True)
    config = json.loads((toy_bert / "config.json").read_text())
    keys = ("attention_probs_dropout_prob", "classifier_dropout", "hidden_act", "hidden_dropout_prob",
            "initializer_range", "layer_norm_eps", "num_attention_heads")  # fmt: skip
    parts = {
        "weights": hashlib.sha256((toy_bert / "model.safetensors").read_bytes()).hexdigest(),
        "config": {key: config.get(key) for key in keys},
        "vocabulary": {"vocab.txt": hashlib.sha256((toy_bert / "vocab.txt").read_bytes()).hexdigest()},
    }
    path = request.folder / "record.json"
    record = json.loads(path.read_text())
    record["origin"]["model_sha256"] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    del record["sha256"], record["tuned_sha256"]  # as records were then
    path.write_text(json.dumps(record))
    assert read_tuned(request.folder).base == toy_bert
    other = tmp_path / "other"
    shutil.copytree(toy_bert, other)
    (other / "config.json").write_text(json.dumps(config | {"tokenizer_class": "RobertaTokenizer"}))
    with pytest.raises(RequestError):  # read as BERT's by the tfmt that wrote the record
        read_tuned(request.folder, model=str(other))
