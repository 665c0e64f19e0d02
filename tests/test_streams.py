"""Output that nobody reads any more, or that cannot be written: what is only said never ends what is done."""

import errno
import io
import os
import pty
import sys
import time
import warnings

import pytest
from tqdm import tqdm

from tfmt import streams
from tfmt.errors import RequestWarning
from tfmt.flags import Command, run_command
from tfmt.quiet import plain_warnings


def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def closed_terminal():
    master, terminal = pty.openpty()
    stream = os.fdopen(terminal, "w")
    assert stream.isatty()
    os.close(master)
    return stream


def full_disk():
    return open("/dev/full", "w")


def closed_file():
    stream = open(os.devnull, "w")  # noqa: SIM115
    stream.close()
    return stream


LOST = {"pipe": closed_pipe, "terminal": closed_terminal, "disk": full_disk, "file": closed_file, "none": lambda: None}


def talk(values):
    """Says something in every way in which a run does, and more than any buffer holds."""
    bar = tqdm(total=2, file=sys.stderr, mininterval=0)
    bar.update(1)
    tqdm.write("an epoch", file=sys.stderr)
    bar.close()
    print("done " * 10_000)
    print("a line", file=sys.stderr, flush=True)
    warnings.warn("not what was meant", RequestWarning, stacklevel=1)
    with plain_warnings("tfmt-test"):
        warnings.warn("nor this", RequestWarning, stacklevel=1)
    done.append(True)


done = []


def command(main):
    return Command("tfmt-test", "Talks.", (), define=lambda values: None, main=main, check=lambda values: None)


@pytest.mark.parametrize(("name", "status"), [("pipe", 0), ("terminal", 0), ("disk", 1), ("file", 0), ("none", 0)])
def test_command_whose_output_is_lost_does_its_work(monkeypatch, name, status):
    out, err = LOST[name](), LOST[name]()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    done.clear()
    assert run_command(command(talk), []) == status
    assert done == [True]
    assert (sys.stdout, sys.stderr) == (out, err)
    for stream in filter(None, (out, err)):  # Python flushes and closes them when it ends, and would complain
        stream.close()


def test_output_that_a_full_disk_lacks_is_told_of(monkeypatch, capsys):
    with full_disk() as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run_command(command(lambda values: print("a table")), []) == 1
    assert capsys.readouterr().err == (
        f"tfmt-test: not all of its output could be written ({os.strerror(errno.ENOSPC)})\n"
    )


def test_work_that_takes_long_says_what_it_is(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(streams, "SLOW_SECONDS", 0.01)
    with streams.told_if_slow("reads"):
        for _ in range(2000):
            if said.getvalue():
                break
            time.sleep(0.01)
    monkeypatch.setattr(streams, "SLOW_SECONDS", 600.0)
    with streams.told_if_slow("nothing to wait for"):
        pass
    with streams.told_if_slow("loads") as tell:
        tell()
        tell()
    assert said.getvalue() == "reads\nloads\n"
