"""A signal that comes while a run trains: what is kept, what is said, and that the same command ends as if none had."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading

import pytest

from tfmt import signals
from tfmt.runs.lease import is_held
from tfmt.runs.records import find_records, read_record
from tfmt.runs.runner import execute, finished, prepare
from tfmt.spec import RunSpec
from tfmt.tensors import read_tensors
from tfmt.training import fine_tune, fisher
from tfmt.training.progress import Progress
from tfmt.training.workbench import Workbench


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm", "epochs": 2}


@pytest.fixture
def send_at(monkeypatch):
    """Sends a signal to this process in the n-th call, counted from 1, of a function of an object."""

    def arrange(owner, name, call, number=signal.SIGTERM):
        real, calls = getattr(owner, name), iter(range(1, 1000))

        def function(*arguments, **named):
            result = real(*arguments, **named)
            if next(calls) == call:
                os.kill(os.getpid(), number)
            return result

        monkeypatch.setattr(owner, name, function)

    return arrange


def stop(request, bench):
    """Executes a run as a command does; what is kept of it when it is stopped."""
    with pytest.raises(signals.Stop) as stopped, signals.heeded():
        execute(request, bench, started=0.0, quiet=True)
    assert not is_held(request.folder)
    return stopped.value.kept


FISHER = {"mode": "fisher", "mask_fraction": 0.2, "fisher_examples": 8}
FISHER_KEPT = "what is done of the Fisher information is kept"
PREFIX = {"layers": "1", "frozen_prefix": "cached"}
# Where the signal comes: in which call of which function, of a run with these settings and three steps an epoch; what
# is kept, and how many steps are left, those of the head for the Fisher information included.
PLACES = {
    "step": (Workbench, "train_step", 2, {}, "checkpoint written at step 2 of 3 in epoch 1", 4),
    "last step": (Workbench, "train_step", 3, {"mode": "full"}, "checkpoint written at step 3 of 3 in epoch 1", 3),
    "evaluation": (Workbench, "_run", 2, {}, "checkpoint written at step 3 of 3 in epoch 2", 0),
    "end of epoch": (fine_tune, "count_predicted", 1, {}, "checkpoint written at the end of epoch 1", 3),
    "prefix": (Workbench, "_run", 1, PREFIX, "no step was taken yet", 6),
    "Fisher head": (Workbench, "train_step", 2, FISHER, "the head for Fisher information is kept at step 2 of 3", 7),
    "Fisher sums": (fisher, "_estimate", 1, FISHER, FISHER_KEPT, 6),
    "Fisher components": (fisher, "component_fisher", 1, FISHER, FISHER_KEPT, 6),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_stopped_and_resumed_is_identical(bench, settings, tmp_path, monkeypatch, same, send_at, place):
    owner, name, call, changes, kept, left = PLACES[place]
    spec = RunSpec.make(**settings | changes)
    whole, broken = prepare(spec, tmp_path / "whole"), prepare(spec, tmp_path / "broken")
    expected = execute(whole, bench, started=0.0, quiet=True)
    bench._prefix = None
    bench.component_sums.clear()
    send_at(owner, name, call)
    assert stop(broken, bench) == kept
    monkeypatch.undo()
    assert finished(broken) is None
    bench.component_sums.clear()
    steps, real = [], bench.train_step
    monkeypatch.setattr(bench, "train_step", lambda batch: steps.append(1) or real(batch))
    if place == "Fisher components":
        monkeypatch.setattr(fisher, "_estimate", None)
    record = execute(broken, bench, started=0.0, quiet=True)
    assert (len(steps), record.cost.resumed) == (left, int(kept.startswith("checkpoint")))
    assert same(broken, record) == same(whole, expected)


def test_signal_after_the_last_step_lets_the_record_be_written(bench, settings, tmp_path, send_at):
    request = prepare(RunSpec.make(**settings), tmp_path)
    send_at(fine_tune, "examine", 1, signal.SIGUSR1)
    assert stop(request, bench) == "the run has ended, and its record is written"
    assert read_record(request.folder).status == "completed"


def test_checkpoint_is_written_before_the_line_that_promises_it(bench, settings, tmp_path, monkeypatch):
    request = prepare(RunSpec.make(**settings | {"epochs": 3}), tmp_path)
    promised = []

    def epoch(self, number, *_):
        paths = (request.folder / "checkpoint").glob("state.*.safetensors")
        promised.append((number, max(read_tensors(path)[1]["epoch"] for path in paths)))

    monkeypatch.setattr(Progress, "epoch", epoch)
    execute(request, bench, started=0.0, quiet=True)
    assert promised == [(1, 1), (2, 2), (3, 2)]  # after the last epoch comes the record


def command(settings, folder):
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "tfmt.train", *flags, f"--output_dir={folder}"]


def test_sigterm_ends_a_command_as_sigterm_does_and_the_same_command_goes_on(bench, settings, tmp_path, same):
    settings = settings | {"epochs": 30, "keep_epoch": "last"}
    line = command(settings, tmp_path / "stopped")
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        watchdog = threading.Timer(200, process.kill)
        watchdog.start()
        said = [line.decode() for line in iter(process.stderr.readline, b"") if not stop_after_epoch(process, line)]
        assert process.wait() == -signal.SIGTERM
        watchdog.cancel()
    assert "trains on 1 CPU device, " in said[1]
    assert said[-1].startswith("tfmt-train: stopped by SIGTERM; checkpoint written at ")
    assert said[-1].endswith("; the same command goes on\n")
    spec = RunSpec.make(**settings)
    whole, stopped = prepare(spec, tmp_path / "whole"), prepare(spec, tmp_path / "stopped")
    record = execute(stopped, bench, started=0.0, quiet=True)
    assert record.cost.resumed == 1
    assert same(stopped, record) == same(whole, execute(whole, bench, started=0.0, quiet=True))


def stop_after_epoch(process, line):
    if line.startswith(b"epoch 3/"):
        process.send_signal(signal.SIGTERM)


def test_closed_terminal_and_lost_pipe_stop_nothing(settings, tmp_path):
    master, terminal = pty.openpty()

    def take_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command(settings | {"epochs": 10}, tmp_path),
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(terminal)
    process.stdout.close()
    assert b"mrpc layernorm: 10 epochs" in os.read(master, 1000)  # before TensorFlow is imported
    os.close(master)  # the session's leader gets SIGHUP, and whatever it writes EIO
    assert process.wait(200) == 0
    (record,) = find_records(tmp_path)[0]
    assert record.status == "completed"
    assert len(record.result.epochs) == 10
