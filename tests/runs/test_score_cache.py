"""Scores that processes share: measured once, the same bits for all, and again where they are lost."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from tfmt import signals
from tfmt.errors import RequestWarning
from tfmt.files import UnwritableError
from tfmt.runs import score_cache
from tfmt.runs.lease import Lease
from tfmt.runs.score_cache import SCORES_FILE, read_or_measure

KEY = {"model": "d9e29d", "examples": 1024, "rate": 0.1, "paths": ["a", "b"]}
SCORES = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "b/bias": np.zeros(4, np.float32)}
ROOT = Path(__file__).resolve().parents[2]


def same(found, expected=SCORES):
    assert found.keys() == expected.keys()
    return all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def refuse():
    raise AssertionError("measured again")


def file_of(folder):
    (path,) = folder.glob(f"*/{SCORES_FILE}")
    return path


def test_measured_once_and_then_read(tmp_path):
    folder = tmp_path / "scores"
    assert same(read_or_measure(folder, KEY, lambda: SCORES))
    reordered = dict(reversed(KEY.items()))
    assert same(read_or_measure(folder, reordered, refuse))
    other = {"c": np.ones(2, np.float32)}
    assert same(read_or_measure(folder, KEY | {"rate": 0.2}, lambda: other), other)
    assert same(read_or_measure(folder, KEY, refuse))
    assert len(list(folder.iterdir())) == 2


def test_an_error_in_measuring_leaves_nothing_behind(tmp_path):
    with pytest.raises(FloatingPointError):
        read_or_measure(tmp_path, KEY, _fail)
    assert not list(tmp_path.glob(f"*/*{SCORES_FILE}*"))
    assert same(read_or_measure(tmp_path, KEY, lambda: SCORES))


def _fail():
    raise FloatingPointError("not finite")


@pytest.mark.parametrize("damage", ["flipped bit", "cut off", "another key", "no safetensors"])
def test_a_file_that_is_of_no_use_is_set_aside_and_measured_again(tmp_path, damage):
    read_or_measure(tmp_path, KEY, lambda: SCORES)
    path = file_of(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-3] ^= 1
    elif damage == "cut off":
        del content[-5:]
    elif damage == "no safetensors":
        content = b"nothing"
    else:
        read_or_measure(tmp_path / "other", KEY | {"examples": 512}, lambda: SCORES)
        content = file_of(tmp_path / "other").read_bytes()
    path.write_bytes(content)
    with pytest.warns(RequestWarning, match="measured again") as warned:
        found = read_or_measure(tmp_path, KEY, lambda: SCORES)
    assert same(found)
    assert len(warned) == 1
    assert str(path) in str(warned[0].message)
    assert path.with_name(f"damaged.{SCORES_FILE}").read_bytes() == content
    assert same(read_or_measure(tmp_path, KEY, refuse))


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def no_room(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tfmt.tensors.save_file", no_room)
        with pytest.raises(UnwritableError, match="the disk is full") as error:
            read_or_measure(tmp_path, KEY, lambda: SCORES)
    assert error.value.disk_full
    assert not list(tmp_path.glob(f"*/*{SCORES_FILE}*"))
    assert same(read_or_measure(tmp_path, KEY, lambda: SCORES))


def test_who_was_overtaken_while_measuring_takes_the_others_scores(tmp_path):
    mine = {name: values + 1 for name, values in SCORES.items()}

    def sleep_and_measure():
        """Another process finds this one silent, takes over, and is done when it wakes up."""
        (lease,) = tmp_path.glob("*/lease.1")
        lease.with_name("lease.2").write_text(json.dumps({"released": True}))
        score_cache.write_tensors(lease.with_name(SCORES_FILE), SCORES, {"key": json.dumps(KEY, sort_keys=True)})
        return mine

    assert same(read_or_measure(tmp_path, KEY, sleep_and_measure))


def test_a_signal_ends_the_wait(tmp_path, capsys):
    read_or_measure(tmp_path, KEY, lambda: SCORES)
    path = file_of(tmp_path)
    path.unlink()
    with Lease(path.parent), signals.heeded(), signals.held():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(signals.Stop):
            read_or_measure(tmp_path, KEY, refuse, quiet=False)
    assert capsys.readouterr().err.count("waiting for another process") == 1
    assert same(read_or_measure(tmp_path, KEY, lambda: SCORES))


# ---- several processes -----------------------------------------------------------------------------------------------

WORKER = """
import json, os, sys, time
from pathlib import Path
import numpy as np
from tfmt.runs.score_cache import read_or_measure
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
def measure():
    (folder / f"measured.{os.getpid()}").touch()
    time.sleep(seconds)
    return {"a": np.random.default_rng().random(1000, np.float32)}  # no two processes have the same
found = read_or_measure(folder / "scores", {"seed": 0}, measure)
print(found["a"].tobytes().hex())
assert "tensorflow" not in sys.modules
"""


def start(folder, seconds):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True, env=environment
    )


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_of_processes_that_want_the_same_one_measures(tmp_path):
    workers = [start(tmp_path, 1) for _ in range(3)]
    printed = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert len(set(printed)) == 1
    assert len(printed[0]) == 8001
    assert len(list(tmp_path.glob("measured.*"))) == 1


def test_who_waits_takes_over_from_one_that_dies(tmp_path):
    dying = start(tmp_path, 600)
    wait_for(lambda: list(tmp_path.glob("measured.*")))
    waiting = start(tmp_path, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=3)
    dying.kill()
    dying.communicate()
    printed, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert len(printed) == 8001
    assert len(list(tmp_path.glob("measured.*"))) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_or_measure(tmp_path / "scores", {"seed": 0}, refuse)
    assert found["a"].tobytes().hex() == printed.strip()
