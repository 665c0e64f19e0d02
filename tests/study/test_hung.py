"""A worker that gives no sign of life any more is replaced; one that only takes long is not."""

import multiprocessing
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tfmt import liveness
from tfmt.data.batches import evaluation_batches, plan_epoch, training_batches
from tfmt.data.tokens import TokenizedSplit
from tfmt.study import pool, worker
from tfmt.study import sweep as study_sweep
from tfmt.study.grid import expand_grid
from tfmt.study.places import Place
from tfmt.study.pool import ProcessPool
from tfmt.study.worker import Ended
from tfmt.training.progress import Standing


def standing(step, timed=0):
    return Standing(1, 2, step, 1000, 0.5, 16, timed, 0.0)


class Process:
    """Stands for a process; it dies of no signal by itself."""

    exitcode = None

    def __init__(self):
        self.signals = []

    def terminate(self):
        self.signals.append("SIGTERM")

    def kill(self):
        self.signals.append("SIGKILL")

    def join(self, timeout=None):
        assert self.exitcode is not None or timeout is not None


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A pool of one process, its end of the pipe, what was told of it, and a clock that stands until it is moved."""
    clock, told = [1000.0], []
    monkeypatch.setattr(pool, "monotonic", lambda: clock[0])
    made = ProcessPool([Place()], tmp_path, tell_hung=lambda number, seconds: told.append((number, seconds)))
    process = made._workers[0]
    process.pipe, theirs = multiprocessing.Pipe()
    process._process, process.busy = Process(), True

    def wait(seconds, *says):
        for said in says:
            theirs.send(said)
        found = []
        for _ in range(int(seconds)):
            clock[0] += 1
            found += made.wait_for_any(0.0)
        return found

    return made, process, theirs, told, wait


def test_no_sign_for_ten_minutes_then_sigterm_a_grace_and_sigkill(watched):
    _, process, theirs, told, wait = watched
    system = process._process
    assert wait(pool.HUNG_SECONDS) == []
    assert (told, system.signals) == ([], [])
    assert wait(1) == []
    assert told == [(0, pool.HUNG_SECONDS + 1)]
    assert system.signals == ["SIGTERM"]
    assert wait(pool.GRACE_SECONDS) == []
    assert system.signals == ["SIGTERM"]
    wait(1)
    assert system.signals == ["SIGTERM", "SIGKILL"]
    system.exitcode = -9
    theirs.close()
    assert wait(1) == [(0, pool.death_of("hung"))]
    assert len(told) == 1
    assert not process.busy


def test_what_even_sigkill_does_not_end_is_given_up(watched):
    _, process, _, told, wait = watched
    assert wait(pool.HUNG_SECONDS + 2 * pool.GRACE_SECONDS + 2) == [(0, pool.death_of("hung"))]
    assert process._process is None
    assert len(told) == 1


@pytest.mark.parametrize("sign", [None, standing(7)])
def test_whoever_gives_signs_is_left_alone(watched, sign):
    _, process, _, told, wait = watched
    for _ in range(5):
        wait(pool.HUNG_SECONDS - 1, sign)
    assert (told, process._process.signals) == ([], [])


def test_slow_steps_are_waited_for(watched):
    _, _, _, told, wait = watched
    wait(100, standing(1))
    wait(100, standing(3))  # 50 s a step
    wait(400, standing(5))  # the evaluation behind it, of which the next says that it is over
    wait(pool.HUNG_STEPS * 50 - 1, standing(6, timed=1))
    assert told == []
    wait(2)
    assert len(told) == 1


def test_answer_that_comes_while_a_process_is_asked_to_end_counts(watched):
    made, process, theirs, _, wait = watched
    wait(pool.HUNG_SECONDS + 1)
    process._process.exitcode = 0
    assert wait(1, (Ended("failed", error="no"), "")) == [(0, Ended("failed", error="no"))]
    assert theirs.recv() == ""
    assert process._process is None
    assert list(made.workers()) == [0]


def test_sweep_that_was_stopped_itself_finds_nobody_hung(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(pool, "monotonic", lambda: clock[0])
    made = ProcessPool([Place()], tmp_path)
    process = made._workers[0]
    process.pipe, _theirs = multiprocessing.Pipe()
    process._process, process.busy = Process(), True
    for _ in range(3):
        clock[0] += 10 * pool.HUNG_SECONDS
        made.wait_for_any(0.0)
    assert process._process.signals == []


def hang(pipe, *_):
    """The body of a worker that a dead disk holds after its first step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.recv()
    pipe.send(standing(1))
    time.sleep(120)


class Spec:
    """Stands for a spec, and for its sources."""

    @staticmethod
    def to_json():
        return "{}"


def test_hung_process_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "work", hang)
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    monkeypatch.setattr(pool, "GRACE_SECONDS", 0.5)
    told = []
    made = ProcessPool(
        [Place()],
        tmp_path,
        tell=lambda *_: monkeypatch.setattr(pool, "HUNG_SECONDS", 0.2),  # from when on it takes no heed of SIGTERM
        tell_hung=lambda *_: told.append(True),
    )
    assert made.submit(0, Spec, Spec)
    process, found = made._workers[0]._process, []
    for _ in range(600):
        if found := made.wait_for_any(0.1):
            break
    assert found == [(0, pool.death_of("hung"))]
    assert told == [True]
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("seconds", "shown"), [(pool.HUNG_SECONDS + 1, "10 min"), (75.0, "75 s")])
def test_sweep_tells_whose_process_hangs_and_that_it_is_replaced(
    toy_bert, toy_glue, tmp_path, monkeypatch, capsys, seconds, shown
):
    """The first process of the sweep's one worker gives no sign any more; the second does what it is asked to."""

    class Hangs(ProcessPool):
        def __init__(self, places, output_dir, verbosity, tell, tell_hung):
            super().__init__(places, output_dir, verbosity, tell, tell_hung)
            self.fresh = []
            made.append(self)

        def submit(self, worker, spec, sources, folders, *, fresh=False, until=None):
            self.fresh.append(fresh)
            return True

        def wait_for_any(self, _):
            if len(self.fresh) > 1:
                return [(0, Ended("failed", error="no"))]
            self._tell_hung(0, seconds)
            lines.append(capsys.readouterr().err.splitlines()[-1])  # told at once, and not when it is over
            return [(0, pool.death_of("hung"))]

    made, lines = [], []
    monkeypatch.setattr(study_sweep, "ProcessPool", Hangs)
    settings = {"model": str(toy_bert), "data_dir": str(toy_glue), "max_length": 32, "epochs": 2}
    grid = expand_grid({"task": ("mrpc",), "mode": ("layernorm",), "learning_rate": (1e-3,), "seed": (0,)}, settings)
    sweep = study_sweep.Sweep(grid, tmp_path)
    sweep.run(workers=1)
    (name,) = sweep.failures
    assert lines == [f"tfmt-sweep: {name}: its process gave no sign for {shown}, and is replaced"]
    assert f"tfmt-sweep: {name}: its process hung; it is tried again\n" in capsys.readouterr().err
    assert made[0].fresh == [False, True]


def test_worker_hands_signs_of_life_on(tmp_path, monkeypatch):
    class Executor:
        def __init__(self, *_, **__):
            pass

        def execute(self, *_):
            liveness.sign()
            liveness.sign()  # right behind the first
            return Ended("failed", error="no")

    monkeypatch.setattr(worker, "Executor", Executor)
    monkeypatch.setattr(worker.RunSpec, "from_json", lambda text: text)
    monkeypatch.setattr(worker.Sources, "from_json", lambda text: text)
    monkeypatch.setattr(worker, "keep_memory", lambda: None)
    ours, theirs = multiprocessing.Pipe()
    ours.send(("spec", "sources", None))
    ours.send("")
    worker._work(theirs, Place(), tmp_path, 0)
    assert ours.recv() is None
    assert ours.recv() == (Ended("failed", error="no"), "")
    assert not ours.poll()
    liveness.sign()
    assert not ours.poll()  # nobody listens any more


def test_each_batch_gives_a_sign(monkeypatch):
    monkeypatch.setattr(liveness, "SIGN_SECONDS", 0.0)
    split = TokenizedSplit(np.ones(40, np.int32), np.arange(0, 41, 4), np.full(10, 4, np.int32), None, 0)
    signs = []
    with liveness.watched(lambda: signs.append(True)):
        assert len(list(evaluation_batches(split, 8))) == len(signs) == 5
        signs.clear()
        assert len(list(training_batches(split, plan_epoch(split.lengths, 2, "fixed", 0, 0, 8)))) == len(signs) == 5
