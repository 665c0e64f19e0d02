"""load_tuned gives the model of the kept epoch back."""

import shutil

import pytest

import tfmt
from tfmt.errors import RequestError
from tfmt.metrics import score
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.tuned.load import load_tuned


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
    found = score(request.task, bench.labels["validation"], bench.predict("validation")).values
    assert found == record.result.epochs[record.result.best_epoch - 1].metrics["validation"]
    base = tfmt.load_bert(str(toy_bert), seed=0)
    moved = sum(
        int((variable.numpy() != base.all_weights[path].numpy()).sum()) for path, variable in model.all_weights.items()
    )
    assert 0 < moved <= record.parameters.trainable


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
    (request.folder / "tuned.safetensors").unlink()
    with pytest.raises(RequestError, match=r"tuned\.safetensors: missing"):
        load_tuned(request.folder)
    with pytest.raises(RequestError, match=r"record\.json: missing"):
        load_tuned(tmp_path)
