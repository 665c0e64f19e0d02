"""One run on 1, 2 and 4 devices, dropout on: the same numbers but for rounding."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import fine_tune

STEPS = 24
# Softmax does not see the bias of a key, so its gradient is rounding alone, which Adam makes as large as any.
ROUNDING_ALONE = ".attention.self.key.bias"


@pytest.fixture
def settings(toy_bert, toy_glue):
    """48 examples in batches of 8; of 19 examples to evaluate a last batch is uneven for 2 and for 4 devices."""
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "max_length": 32, "epochs": STEPS // 6,
            "batch_size": 8, "validation_limit": 19, "keep_epoch": "last", "learning_rate": 1e-3}  # fmt: skip


def run(settings, folder, stop_after=None):
    """The record, the loss of every step and the tuned weights; stopped, a run leaves its checkpoint."""
    request = prepare(RunSpec.make(**settings), folder)
    bench = make_bench(request)
    real, losses = bench.train_step, []

    def train_step(batch):
        if len(losses) == stop_after:
            raise KeyboardInterrupt
        losses.append(float(real(batch)))
        return np.float32(losses[-1])

    bench.train_step = train_step
    if stop_after is not None:
        with pytest.raises(KeyboardInterrupt):
            execute(request, bench, started=0.0, quiet=True)
        return None, losses, None
    record = execute(request, bench, started=0.0, quiet=True)
    return record, losses, load_file(request.folder / "tuned.safetensors")


def assert_same_run(one, other):
    record, losses, weights = one
    again, other_losses, other_weights = other
    assert record.run_id == again.run_id
    np.testing.assert_allclose(other_losses, losses[-len(other_losses) :], atol=1e-5)
    assert [epoch.metrics for epoch in again.result.epochs] == [epoch.metrics for epoch in record.result.epochs]
    assert weights.keys() == other_weights.keys()
    for name, values in weights.items():
        if not name.removesuffix(".values").endswith(ROUNDING_ALONE):
            np.testing.assert_allclose(other_weights[name], values, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("mode", "replicas"), [("layernorm", 2), ("layernorm", 4), ("full", 2), ("full", 4)])
def test_devices_change_rounding_alone(settings, tmp_path, mode, replicas):
    one = run(settings | {"mode": mode, "replicas": 1}, tmp_path / "one")
    some = run(settings | {"mode": mode, "replicas": replicas}, tmp_path / "some")
    assert len(one[1]) == STEPS
    assert (one[0].cost.replicas, some[0].cost.replicas) == (1, replicas)
    assert_same_run(one, some)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_a_run_goes_on_on_another_number_of_devices(settings, tmp_path, monkeypatch, before, after):
    settings |= {"mode": "layernorm"}
    whole = run(settings | {"replicas": before}, tmp_path / "whole")
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    run(settings | {"replicas": before}, tmp_path / "resumed", stop_after=8)
    resumed = run(settings | {"replicas": after}, tmp_path / "resumed")
    assert len(resumed[1]) == STEPS - 8
    assert (resumed[0].cost.resumed, resumed[0].cost.replicas) == (1, after)
    assert_same_run(whole, resumed)
