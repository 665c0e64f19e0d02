"""Whole runs on a toy BERT: what moves, what a repeated, interrupted or resumed run gives, and what it writes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfmt.errors import RunError
from tfmt.runs.records import DISTRIBUTIONS_FILE, find_distributions, read_record, read_runs
from tfmt.runs.runner import execute, finished, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.train import _report
from tfmt.training import fine_tune
from tfmt.training.distribution import bin_edges


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm", "epochs": 3}


def run(bench, settings, folder, **changes):
    request = prepare(RunSpec.make(**(settings | changes)), folder)
    return request, execute(request, bench, started=time.perf_counter(), quiet=True)


@pytest.mark.parametrize("mode", ["full", "frozen", "attention", "layernorm_feedforward", "bitfit"])
def test_same_run_twice_is_identical(bench, settings, tmp_path, same, mode):
    first, one = run(bench, settings, tmp_path / "a", mode=mode)
    run(bench, settings, tmp_path / "between", mode="layernorm", seed=5)  # a bench that was used in between
    second, two = run(bench, settings, tmp_path / "b", mode=mode)
    assert first.run_id == second.run_id
    assert same(first, one) == same(second, two)
    assert one.proof.frozen_changed == 0
    assert one.proof.frozen_sha256_before == one.proof.frozen_sha256_after


def test_seeds_and_rates_differ(bench, settings, tmp_path):
    records = [run(bench, settings, tmp_path, **change)[1] for change in ({}, {"seed": 1}, {"learning_rate": 1e-3})]
    losses = {record.result.epochs[-1].train_loss for record in records}
    assert len(losses) == 3
    assert len(read_runs(tmp_path)) == 3


@pytest.mark.parametrize(("mode", "writes"), [
    ("layernorm", 1), ("layernorm", 4), ("full", 6), ("random", 3), ("bitfit", 8),
])  # fmt: skip
def test_interrupted_and_resumed_is_identical(
    bench, settings, tmp_path, monkeypatch, same, die_before_write, mode, writes
):
    # A checkpoint after every step, dropout on: the run dies before its n-th write and starts again.
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    spec = RunSpec.make(**(settings | {"mode": mode}))
    whole = prepare(spec, tmp_path / "whole")
    expected = execute(whole, bench, started=0.0, quiet=True)
    broken = prepare(spec, tmp_path / "broken")
    die_before_write(broken, bench, writes)
    assert finished(broken) is None
    run(bench, settings, tmp_path / "other", mode="frozen", seed=7)
    resumed = execute(broken, bench, started=0.0, quiet=True)
    assert (resumed.cost.resumed, resumed.cost.computed_on) == (1, [])
    assert same(broken, resumed) == same(whole, expected)
    assert not (broken.folder / "checkpoint").exists()


def test_sigkill_in_the_middle_and_resumed_is_identical(bench, settings, tmp_path, same):
    flags = [f"--{name}={value}" for name, value in (settings | {"epochs": 100, "keep_epoch": "last"}).items()]
    command = [sys.executable, "-m", "tfmt.train", *flags, f"--output_dir={tmp_path / 'killed'}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.time() + 300
    while not list((tmp_path / "killed").glob("*/checkpoint/state.*.safetensors")) and time.time() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "killed").glob("*/record.json"))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "0 others" in done.stdout
    assert "tensorflow" not in done.stderr.lower()
    request, expected = run(bench, settings, tmp_path / "whole", epochs=100, keep_epoch="last")
    resumed = prepare(request.spec, tmp_path / "killed")
    killed = read_record(resumed.folder)
    assert killed.cost.resumed == 1
    assert same(resumed, killed) == same(request, expected)


def test_record_says_what_happened(bench, settings, tmp_path):
    request, record = run(bench, settings, tmp_path, validation_limit=0)
    assert read_record(request.folder) == record
    assert record.parameters.tuned == 2 * 2 * 2 * 16
    assert record.parameters.head == 2 * 16 + 2
    assert record.parameters.total - record.parameters.head == sum(
        array.size for array in load_file(f"{settings['model']}/model.safetensors").values()
    )
    assert record.result.examples == {"train": 48, "validation": 20}
    assert record.cost.steps == 3 * 3
    assert record.cost.tokens < record.cost.padded_tokens <= 9 * 16 * 32
    # Adam: two slots for each trained weight, and a few scalars.
    assert 8 * record.parameters.trainable <= record.cost.optimizer_bytes <= 8 * record.parameters.trainable + 64
    assert sum(record.result.predicted["validation"].values()) == 20
    best = max(epoch.metrics["validation"]["f1"] for epoch in record.result.epochs)
    assert record.result.score_best == best
    assert record.result.score_last == record.result.epochs[-1].metrics["validation"]["f1"]
    assert set(os.listdir(request.folder)) >= {"record.json", "spec.json", "tuned.safetensors"}
    assert json.loads((request.folder / "record.json").read_text())["schema"] == 1


def test_change_of_a_full_run_against_numpy(bench, settings, tmp_path):
    request, record = run(bench, settings, tmp_path, mode="full", keep_epoch="last")
    base = load_file(f"{settings['model']}/model.safetensors")
    tuned = load_file(request.folder / "tuned.safetensors")
    name = "bert.encoder.layer.1.output.LayerNorm.bias"
    expected = np.abs(tuned[name].astype(np.float64) - base[name]).mean()
    assert record.change["output.LayerNorm.beta"]["1"] == pytest.approx(expected, rel=1e-12)
    assert record.change["pooler.kernel"].keys() == {"-"}
    assert len(record.change) == 16 + 5 + 2
    # The distributions of its weights, before and after.
    found, broken = find_distributions(tmp_path)
    assert (list(found), broken) == ([request.run_id], [])
    names = [f"bert.encoder.layer.{block}.output.LayerNorm.weight" for block in (0, 1)]
    for tensors, distributions in ((base, found[request.run_id].before), (tuned, found[request.run_id].after)):
        gammas = np.concatenate([tensors[name] for name in names]).astype(np.float64)
        assert distributions["feedforward_layernorm"]["gamma"].mean == pytest.approx(gammas.mean(), rel=1e-12)
        expected = np.histogram(gammas, bin_edges())[0]
        np.testing.assert_array_equal(distributions["feedforward_layernorm"]["gamma"].histogram, expected)
    (request.folder / DISTRIBUTIONS_FILE).write_text('{"schema": 1, "run')
    assert str(request.folder) in find_distributions(request.folder)[1][0]


def test_weights_that_are_lost_in_the_last_step_are_a_diverged_run(bench, settings, tmp_path, monkeypatch):
    real, steps = bench.train_step, iter(range(1, 100))

    def lose(batch):
        loss = real(batch)
        if next(steps) == 3:  # the last of the first epoch
            variable = bench.model.all_weights["bert/encoder/layer_._0/output/LayerNorm/gamma"]
            variable.assign(np.full(variable.shape, np.inf, np.float32))
        return loss

    monkeypatch.setattr(bench, "train_step", lose)
    request, record = run(bench, settings, tmp_path, mode="full", keep="scores")
    assert (record.status, record.change) == ("diverged", None)
    assert "not finite at the end of epoch 1" in record.error
    assert sorted(path.name for path in request.folder.glob("*.json")) == ["record.json", "spec.json"]


def test_scores_only_keeps_no_weights(bench, settings, tmp_path):
    request, record = run(bench, settings, tmp_path, keep="scores")
    assert record.status == "completed"
    assert not (request.folder / "tuned.safetensors").exists()
    request, record = run(bench, settings, tmp_path, keep="scores", mode="full")
    assert not (request.folder / "tuned.safetensors").exists()
    assert find_distributions(request.folder)[0].keys() == {record.run_id}


def test_diverged_run_is_recorded_with_what_was_measured(bench, settings, tmp_path, monkeypatch):
    real, steps = bench.train_step, iter(range(100))
    monkeypatch.setattr(bench, "train_step", lambda batch: real(batch) if next(steps) < 4 else float("nan"))
    request, record = run(bench, settings, tmp_path)
    assert record.status == "diverged"
    assert "step 5" in record.error
    assert len(record.result.epochs) == 1
    assert not (request.folder / "tuned.safetensors").exists()
    assert finished(request).status == "diverged"
    assert "no failure: exit status 0" in _report(record, "folder")
    assert "collapsed: one class for all" not in _report(record, "folder")
    flat = [epoch.model_copy(update={"collapsed": True}) for epoch in record.result.epochs]
    result = record.result.model_copy(update={"collapsed": True, "epochs": flat})
    assert "collapsed: one class for all" in _report(record.model_copy(update={"result": result}), "folder")


def test_moved_frozen_weight_fails_the_run(settings, tmp_path, monkeypatch):
    request = prepare(RunSpec.make(**settings), tmp_path)
    bench = make_bench(request)
    real = bench.train_step

    def meddle(batch):
        variable = bench.model.all_weights["bert/pooler/dense/bias"]
        variable.assign_add(np.full(variable.shape, 1e-3, np.float32))
        return real(batch)

    monkeypatch.setattr(bench, "train_step", meddle)
    with pytest.raises(RunError, match="16 weights outside the selection changed"):
        execute(request, bench, started=0.0, quiet=True)
    assert read_runs(tmp_path).status.tolist() == ["failed"]
