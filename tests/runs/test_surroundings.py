"""What the surroundings do to a run (disk, permission, memory) is not its result: nothing is recorded."""

import contextlib
import errno
import os
from pathlib import Path

import pytest
import tensorflow as tf

from tfmt import train
from tfmt.errors import SurroundingsError
from tfmt.files import UnreadableError, UnwritableError, disk_error
from tfmt.runs import folder, lease, runner
from tfmt.runs.lease import Lease, is_held
from tfmt.runs.runner import UnexpectedError, execute, prepare, record_failure
from tfmt.spec import RunSpec
from tfmt.training import fine_tune


@pytest.fixture
def settings(toy_bert, toy_glue):
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "mode": "layernorm", "max_length": 32}


@pytest.fixture
def request_(settings, tmp_path):
    return prepare(RunSpec.make(**settings), tmp_path)


@pytest.fixture
def let_run_raise(monkeypatch):
    def arrange(error):
        class Hindered:
            def __init__(self, *_, **__):
                pass

            def run(self):
                raise error

        monkeypatch.setattr(fine_tune, "FineTuning", Hindered)

    return arrange


OUT_OF_MEMORY = tf.errors.ResourceExhaustedError(None, None, "failed to allocate\nmemory")
MET = {
    "memory": (MemoryError("no room"), "MemoryError: no room"),
    "GPU": (OUT_OF_MEMORY, "ResourceExhaustedError: failed to allocate"),
    "no process": (BlockingIOError(errno.EAGAIN, "no more processes"), "BlockingIOError: [Errno 11] no more"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    "full for TensorFlow": (
        tf.errors.ResourceExhaustedError(None, None, "part; No space left on device"),
        "the disk is full",
    ),
    "temporary": (FileNotFoundError(errno.ENOENT, "No usable temporary directory"), "No usable temporary directory"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    "broken": (OSError(errno.EIO, "Input/output error", "/there"), "/there: cannot be written (Input/output error)"),
}


@pytest.mark.parametrize("met", MET)
def test_command_says_what_it_met_and_where_and_records_nothing(
    settings, request_, tmp_path, let_run_raise, monkeypatch, capsys, met
):
    error, told = MET[met]
    let_run_raise(error)
    monkeypatch.setattr(runner, "_make_bench", lambda *_: type("Bench", (), {"devices": tf.Module("cpu")})())
    monkeypatch.setattr(tf.Module, "described", "toy", raising=False)
    assert train.main([*(f"--{name}={value}" for name, value in settings.items()), f"--output_dir={tmp_path}"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfmt-train: ")]
    assert told in line
    assert "/there" in line or str(request_.folder) in line
    assert "the same command" in line
    assert sorted(path.name for path in request_.folder.iterdir() if "lease" not in path.name) == ["spec.json"]
    assert not is_held(request_.folder)


def test_memory_that_lacks_already_for_the_workbench(request_, monkeypatch):
    def make(*_):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(runner, "_make_bench", make)
    with pytest.raises(UnexpectedError, match="failed to allocate; nothing is recorded") as raised:
        runner.make_bench(request_)
    assert isinstance(raised.value, SurroundingsError)
    assert raised.value.cause == "ResourceExhaustedError"


def test_number_that_is_not_finite_is_the_runs_result(request_, let_run_raise, monkeypatch):
    told = []
    monkeypatch.setattr(runner, "_record", lambda *arguments: arguments[3:5])
    monkeypatch.setattr(runner, "_finish", lambda request, record, check: told.append(record))
    let_run_raise(FloatingPointError("no number"))
    with pytest.raises(runner.RunError) as raised:
        execute(request_, None, started=0.0, quiet=True)
    assert not isinstance(raised.value, SurroundingsError)
    assert told == [("failed", "FloatingPointError: no number")]


def test_errors_that_met_nobody_are_of_the_disk_or_of_something_else():
    assert "there: cannot be written" in str(
        disk_error(PermissionError(errno.EACCES, "Permission denied"), Path("there"))
    )
    assert "that: cannot be" in str(disk_error(OSError(errno.ENOTDIR, "Not a directory", b"that"), Path("there")))
    assert disk_error(OSError(errno.ENOMEM, "Cannot allocate memory"), Path("there")) is None


@pytest.mark.parametrize("write", [
    lambda request: record_failure(request, "no"), lambda request: execute(request, None, started=0.0, quiet=True),
])  # fmt: skip
def test_spec_is_written_by_who_holds_the_folder(request_, monkeypatch, let_run_raise, write):
    real, held = folder.write_whole, []

    def write_whole(path, content):
        held.append((path.name, is_held(path.parent)))
        real(path, content)

    monkeypatch.setattr(folder, "write_whole", write_whole)
    let_run_raise(MemoryError())
    folder.open_folder(request_)
    assert held == []
    with Lease(request_.folder), pytest.raises(lease.TakenError):
        write(request_)
    assert held == []
    with contextlib.suppress(UnexpectedError):
        write(request_)
    assert held == [("spec.json", True)]


def deny(monkeypatch, owner, name, path):
    """Refuses one function for one path, as for who is not root."""
    real = getattr(owner, name)

    def function(given, *arguments, **named):
        if Path(given) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(given, *arguments, **named)

    monkeypatch.setattr(owner, name, function)


def test_folder_that_nobody_else_may_enter(request_, monkeypatch):
    folder.open_folder(request_)
    deny(monkeypatch, os, "listdir", request_.folder)
    with pytest.raises(UnreadableError, match=f"{request_.folder}: cannot be read now .Permission denied"):
        is_held(request_.folder)
    deny(monkeypatch, os, "stat", request_.folder / "record.json")
    with pytest.raises(UnreadableError, match=r"record\.json: cannot be read now"):
        folder.finished(request_)


def test_folder_that_only_its_owner_may_write(request_, monkeypatch):
    """Whether its owner lives can be seen all the same."""
    folder.open_folder(request_)
    with Lease(request_.folder):
        monkeypatch.setattr(Path, "touch", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))
        assert is_held(request_.folder)
    assert not is_held(request_.folder)
    real = os.open

    def open_(path, flags, *more):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, flags, *more)

    monkeypatch.setattr(lease.os, "open", open_)
    with pytest.raises(UnwritableError, match=r"lease\.2: cannot be written"):
        execute(request_, None, started=0.0, quiet=True)
