"""What a sweep shows of its runs, on a terminal and off it, and from when on it says how long it will take."""

import io
import multiprocessing
import sys
from types import SimpleNamespace

import pytest

from tfmt.runs.records import Result
from tfmt.spec import RunSpec
from tfmt.study import board as study_board
from tfmt.study.board import Board, Running
from tfmt.study.places import Place
from tfmt.study.pool import ProcessPool
from tfmt.study.times import Times
from tfmt.study.worker import Ended
from tfmt.training import progress
from tfmt.training.epoch import Epoch
from tfmt.training.progress import Progress, Standing

SPEC = RunSpec.make(model="m", task="mrpc", mode="layernorm", learning_rate=5e-3, epochs=5)
OUTLIERS = RunSpec.make(model="m", task="rte", mode="outliers", mask_size=4, layers="0-3", seed=1, epochs=5)
STANDING = Standing(epoch=2, epochs=5, step=30, steps=100, loss=0.4271, examples=320, timed=1, seconds=40.0)


class Terminal(io.StringIO):
    """Stands for a terminal."""

    def isatty(self):
        return True


def end(score, *, flat):
    epochs = [Epoch(epoch=1, train_loss=0.5, metrics={"validation": {"f1": score}}, seconds=1.0, collapsed=flat)]
    result = Result(score_name="f1", score_last=score, score_best=score, best_epoch=1, collapsed=flat, epochs=epochs,
                    examples={}, predicted={})  # fmt: skip
    return Ended("completed", SimpleNamespace(result=result))


def test_terminal_shows_each_run_in_progress(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    with Board(3) as board:
        board.show([Running(SPEC, STANDING), Running(OUTLIERS)], 600.0)
        both = terminal.getvalue()
        terminal.truncate(0)
        board.show([Running(OUTLIERS, STANDING)], None)
    assert "mrpc layernorm 0.005 seed 0: epoch 2/5 loss 0.43" in both
    assert "rte outliers layers 0-3 n=4 0.005 seed 1: setting up" in both
    assert "2 running, 10 min left" in both
    assert "rte outliers layers 0-3 n=4 0.005 seed 1: epoch 2/5 loss 0.43" in terminal.getvalue()
    assert "mrpc" not in terminal.getvalue()


def test_plain_lines_without_a_terminal(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(study_board.time, "monotonic", lambda: clock[0])
    with Board(3) as board:
        for seconds in (0, 1, 31):
            clock[0] += seconds
            board.show([Running(SPEC, STANDING), Running(OUTLIERS)], 600.0)
    told = capsys.readouterr().err
    assert told.splitlines() == 2 * [
        "0/3 done, 0 failed, 2 running, 10 min left; mrpc layernorm 0.005 seed 0: epoch 2/5 loss 0.43; "
        "rte outliers layers 0-3 n=4 0.005 seed 1: setting up"
    ]
    assert "\r" not in told


@pytest.mark.parametrize(("ends", "shown"), [
    ([(0.8, True), (0.7, False)], ["best      mrpc layernorm: f1 80.00† (1 of 2 runs collapsed)", "†  "]),
    ([(0.7, True), (0.8, False)], ["best      mrpc layernorm: f1 80.00 (1 of 2 runs collapsed)", "†  "]),
    ([(0.7, False), (0.8, False)], ["best      mrpc layernorm: f1 80.00"]),
])  # fmt: skip
def test_summary_flags_collapsed_runs(ends, shown):
    board = Board(2)
    for score, flat in ends:
        board.book(SPEC, "run", end(score, flat=flat))
    lines = board.summary().splitlines()
    assert lines[0] == "runs      2: 2 completed"
    assert [line[: len(start)] for line, start in zip(lines[1:], shown, strict=True)] == shown
    assert ("learning nothing" in lines[-1]) == (len(shown) > 1)


def test_selections_that_are_told_alike_have_scores_of_their_own():
    board = Board(2)
    for place, score in (("one", 0.7), ("two", 0.8)):
        select = f'run("{place}/r") + pooler'
        spec = RunSpec.make(model="m", task="mrpc", mode="custom", select=select, learning_rate=5e-3)
        board.book(spec, "run", end(score, flat=False))
    told = 'best      mrpc run("r") + pooler: f1'
    assert board.summary().splitlines()[1:] == [f"{told} 70.00", f"{told} 80.00"]


def test_estimates_begin_with_the_first_epoch():
    times = Times()
    times.note(SPEC, STANDING)
    other = RunSpec.make(model="m", task="mrpc", mode="layernorm", learning_rate=5e-3, epochs=20, seed=1)
    assert times.estimate(SPEC) == pytest.approx(5 * 40)
    assert times.estimate(other) == pytest.approx(20 * 40)
    larger = RunSpec.make(model="m", task="mnli", mode="full")
    assert times.estimate(larger) == pytest.approx(5 * 40 / 320 * 392_702)
    times.note(SPEC, Standing(3, 5, 40, 100, 0.4, examples=320, timed=2, seconds=60.0))  # in place of the first
    assert times.estimate(SPEC) == pytest.approx(5 * 30)
    times.forget(SPEC)
    assert times.estimate(SPEC) is None


def test_a_run_tells_where_it_stands_at_most_once_a_second_and_after_each_epoch(monkeypatch):
    told, clock = [], [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress(total=8, done=1, batch_size=16, epochs=2, quiet=True, tell=told.append)
    for step in (2, 3, 4):  # a run that is taken up in its first epoch
        clock[0] += 0.6
        shown.step(1, step, 0.5)
    shown.epoch(1, 0.4, "f1", 0.8, 7.0)
    for step in (5, 6, 7, 8):
        shown.step(2, step, 0.3)
    shown.epoch(2, 0.2, "f1", 0.8, 5.0)
    assert told == [
        Standing(1, 2, 3, 8, 0.5, 64, 0, 0.0),
        Standing(1, 2, 4, 8, 0.4, 64, 1, 7.0),
        Standing(2, 2, 8, 8, 0.2, 64, 2, 12.0),
    ]


def test_pool_hands_on_what_a_worker_tells_before_its_run_ends(tmp_path):
    told = []
    pool = ProcessPool([Place()], tmp_path, 0, lambda worker, standing: told.append((worker, standing)))
    (process,) = pool._workers
    process.pipe, theirs = multiprocessing.Pipe()
    process.busy = True
    theirs.send(STANDING)
    assert pool.wait_for_any(1.0) == []
    theirs.send(STANDING)
    theirs.send((Ended("failed", error="no"), ""))
    assert pool.wait_for_any(1.0) == [(0, Ended("failed", error="no"))]
    assert told == 2 * [(0, STANDING)]
    assert not process.busy
