"""Runs that end before their planned epochs: where, what is kept and told of them, however they are interrupted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmt import train
from tfmt.results.tables import build_tables
from tfmt.runs.paused import Paused
from tfmt.runs.records import Record, read_record, read_runs
from tfmt.runs.runner import execute, execute_until, finished, prepare
from tfmt.runs.sealed import seal_json
from tfmt.spec import RunSpec
from tfmt.study.grid import expand_grid
from tfmt.study.sweep import Sweep
from tfmt.study.times import Times
from tfmt.training import fine_tune
from tfmt.training.epoch import headline_of, stops_early
from tfmt.training.predictions import read_predictions

EPOCHS = 8


def find_end(scores, patience):
    """By plain loops: after which epoch a run of these scores stops; None if it does not before its end."""
    for epoch in range(patience, len(scores)):
        window = scores[epoch - patience : epoch]
        before = [score for score in scores[: epoch - patience] if score is not None]
        if all(score is None or (before and score <= max(before)) for score in window):
            return epoch
    return None


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3).map(float)), max_size=12), st.integers(1, 4))
def test_stops_after_so_many_epochs_without_a_better_score(scores, patience):
    ends = [epoch for epoch in range(1, len(scores)) if stops_early(scores[:epoch], patience)]
    assert (ends[0] if ends else None) == find_end(scores, patience)
    assert not any(stops_early(scores[:epoch], 0) for epoch in range(len(scores) + 1))


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm", "epochs": EPOCHS}


@pytest.fixture
def run(bench):
    return lambda request: execute(request, bench, started=0.0, quiet=True)


@pytest.fixture(scope="module")
def whole(settings, bench, tmp_path_factory):
    """A run to its planned end: the record, and its scores."""
    request = prepare(RunSpec.make(**settings), tmp_path_factory.mktemp("whole"))
    record = execute(request, bench, started=0.0, quiet=True)
    return record, [headline_of(epoch, record.result.score_name) for epoch in record.result.epochs]


@pytest.mark.parametrize("keep_epoch", ["best", "last"])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_is_the_beginning_of_the_planned_run(prepared, run, whole, patience, keep_epoch):
    planned, scores = whole
    end = find_end(scores, patience)
    assert end is not None  # else this tries nothing
    request = prepared("runs", early_stopping=patience, keep_epoch=keep_epoch)
    record = run(request)
    result = record.result
    assert (record.status, result.stopped_early, len(result.epochs)) == ("completed", end, end)
    assert [(e.train_loss, e.metrics) for e in result.epochs] == [
        (e.train_loss, e.metrics) for e in planned.result.epochs[:end]
    ]
    assert result.score_best == max(scores[:end])
    assert result.score_last == scores[end - 1]
    assert record.kept_epoch == (end if keep_epoch == "last" else result.best_epoch)
    assert record.cost.steps == end * 3
    assert (request.folder / "tuned.safetensors").exists()
    assert not (request.folder / "checkpoint").exists()
    stored = read_predictions(request.folder, sha256=record.predictions_sha256)
    assert record.kept_epoch in stored.by_epoch["validation"]
    assert planned.result.stopped_early is None
    patience = "1 epoch" if patience == 1 else f"{patience} epochs"
    assert f"stopped   after epoch {end} of {EPOCHS}: no better score in {patience} (" in train._report(record, "runs")
    assert finished(request) == read_record(request.folder) == record


@pytest.mark.parametrize("keep_epoch", ["best", "last"])
@pytest.mark.parametrize("writes", [1, 3, 5])
def test_killed_and_resumed_is_identical(prepared, bench, run, same, monkeypatch, die_before_write, keep_epoch, writes):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    asked = {"early_stopping": 2, "keep_epoch": keep_epoch}
    one, broken = prepared("one", **asked), prepared("broken", **asked)
    expected = run(one)
    assert expected.result.stopped_early
    die_before_write(broken, bench, writes)
    record = run(broken)
    assert record.cost.resumed == 1
    assert record.result.stopped_early == expected.result.stopped_early
    assert same(broken, record) == same(one, expected)


def test_a_run_that_was_to_wait_behind_its_end_has_a_record(prepared, bench, run, same):
    one, waits = prepared("one", early_stopping=2), prepared("waits", early_stopping=2)
    expected = run(one)
    end = expected.result.stopped_early
    paused = execute_until(waits, bench, end - 1, started=0.0, quiet=True)
    assert isinstance(paused, Paused)
    record = execute_until(waits, bench, end, started=0.0, quiet=True)
    assert isinstance(record, Record)
    assert same(waits, record) == same(one, expected)
    assert not (waits.folder / "paused.json").exists()


@pytest.mark.parametrize("search", ["all", "halving"])
def test_a_sweep_counts_it_as_done(settings, tmp_path, search):
    # The rate 1e-12 changes no prediction: one epoch, and two without a better score.
    axes = {"task": ("mrpc",), "mode": ("layernorm",), "learning_rate": (1e-12, 1e-11, 1e-2), "seed": (0, 1)}
    shared = {name: value for name, value in settings.items() if name not in (*axes, "learning_rate")}
    grid = expand_grid(axes, shared | {"early_stopping": 2, "keep": "scores"})
    for _ in range(2):  # and takes nothing up again
        sweep = Sweep(grid, tmp_path, search=search)
        sweep.run(workers=0)
        assert (sweep.failures, sweep.left, sweep.board.paused) == ({}, {}, 0)
        assert sweep.board.done == len(grid)
    runs = read_runs(tmp_path)
    slow = runs[runs["learning_rate"] < 1e-3]
    assert len(slow) > 0
    assert set(slow["stopped_early"]) == {3}
    assert set(runs["status"]) == {"completed"}
    (table,) = build_tables(runs, "runs")
    assert "stopped early after epoch 3" in str(table)
    (table,) = build_tables(runs, "1")
    assert "early_stopping 2" in " ".join(table.caption)


def test_the_time_of_a_run_is_that_of_the_epochs_it_trained(prepared, run):
    record = run(prepared("runs", early_stopping=1))
    times = Times()
    times.add(record)
    each = record.cost.seconds / len(record.result.epochs)
    assert times.estimate(record.spec) == pytest.approx(EPOCHS * each)


def test_a_record_of_before_is_read(prepared, run):
    request = prepared("runs")
    run(request)
    path = request.folder / "record.json"
    told = json.loads(path.read_text())
    del told["sha256"], told["result"]["stopped_early"]
    for name in ("optimizer", "weight_decay", "clip_norm", "early_stopping"):
        del told["spec"][name]
    path.write_text(seal_json(told))
    record = read_record(request.folder)
    assert (record.result.stopped_early, record.spec) == (None, request.spec)
    assert finished(prepared("runs")) == record
