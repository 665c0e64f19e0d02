"""What ends a worker or refuses a folder is tried again; a run is recorded as failed where it is the cause itself.

The workers are scripts: no process is started and nothing is computed.
"""

import errno
import os
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfmt import sweep
from tfmt.runs.records import find_records
from tfmt.runs.runner import prepare, record_failure
from tfmt.spec import RunSpec
from tfmt.study import sweep as study_sweep
from tfmt.study.pool import death_of
from tfmt.study.worker import Ended

DISK = "/runs/x/lease.1: cannot be written (Permission denied); see to it and run the same command again"


class Workers:
    """Workers of which each answers a run as `answer` says: an `Ended`, or what its process dies of.

    Attributes:
      submitted: (seed, worker, first run of its process) of each run that was handed out.
    """

    renews = True

    def __init__(self, answer, count=1):
        self.answer, self.count = answer, count
        self.submitted, self.closed, self.warm = [], 0, set()
        self.busy = {}

    def __call__(self, places, output_dir, *_):
        self.output_dir = output_dir
        return self

    def workers(self):
        return range(self.count)

    def where(self, worker):
        return ""

    def submit(self, worker, spec, sources, folders, *, fresh=False, until=None):
        first = fresh or worker not in self.warm
        self.warm.add(worker)
        self.busy[worker] = spec, sources
        self.submitted.append((spec.seed, worker, first))
        return first

    def wait_for_any(self, seconds):
        found = []
        for worker, (spec, _) in sorted(self.busy.items()):
            tries = sum(seed == spec.seed for seed, *_ in self.submitted)
            ended = self.answer(spec, tries, self)
            if ended is None:
                continue
            del self.busy[worker]
            if isinstance(ended, str):
                ended = death_of(ended)
            if ended.unexpected:
                self.warm.discard(worker)
            found.append((worker, ended))
        return found

    def close(self):
        self.closed += 1


@pytest.fixture
def run(toy_bert, toy_glue, tmp_path, monkeypatch, capsys):
    """Runs a sweep of frozen runs on workers that answer by a function; its status, words, records and workers."""

    def run(answer, seeds, workers=1, **changes):
        made = Workers(answer, workers)
        monkeypatch.setattr(study_sweep, "ProcessPool", made)
        monkeypatch.setattr(study_sweep, "_POLL_SECONDS", 0.01)
        settings = {"model": toy_bert, "data_dir": toy_glue, "task": "mrpc", "mode": "frozen", "max_length": 32,
                    "seed": ",".join(map(str, range(seeds))), "workers": workers,
                    "output_dir": tmp_path / "runs"} | changes  # fmt: skip
        status = sweep.main([f"--{name}={value}" for name, value in settings.items()])
        said = capsys.readouterr()
        failed = {record.spec.seed: record.error for record in find_records(tmp_path / "runs")[0]}
        return SimpleNamespace(status=status, out=said.out, err=said.err, failed=failed, workers=made)

    return run


def done(*_):
    return Ended("completed")


def only(seed, *answers):
    """Answers of one run, in turn; all others end well."""

    def answer(spec, tries, _):
        return answers[min(tries, len(answers)) - 1] if spec.seed == seed else done()

    return answer


def test_run_that_kills_two_processes_of_its_own_is_recorded(run):
    ended = run(only(1, "signal 9"), 4)
    assert ended.failed == {1: "its process died (signal 9), in two processes of its own; is there enough memory?"}
    assert ended.status == 1
    # In a process that had done another run before, which says little; then in two of its own. The rest goes on.
    assert [(first) for seed, _, first in ended.workers.submitted if seed == 1] == [False, True, True]
    assert {seed for seed, *_ in ended.workers.submitted} == {0, 1, 2, 3}
    again = run(done, 4)
    assert (again.status, again.workers.submitted[:1]) == (1, [(0, 0, True)])
    assert 1 not in {seed for seed, *_ in again.workers.submitted}
    assert run(done, 4, retry_failed="true").status == 0


def test_first_run_of_all_that_dies_twice_is_recorded(run):
    ended = run(only(0, "exit status 134"), 2)
    assert ended.failed == {0: "its process died (exit status 134), in two processes of its own"}
    assert len([seed for seed, *_ in ended.workers.submitted if seed == 0]) == 2


@pytest.mark.parametrize("answers", [
    ["signal 9", Ended("completed")],  # another needed the memory
    ["signal 15", "signal 15", "signal 15", Ended("completed")],  # somebody ends it
    ["signal 9", "signal 11", "exit status 1", Ended("completed")],
    [Ended("hindered", error="MemoryError", cause="MemoryError", unexpected=True), Ended("completed")],
    [Ended("hindered", error=DISK), Ended("hindered", error=DISK), Ended("hindered", error=DISK), Ended("completed")],
])  # fmt: skip
def test_what_happened_to_a_run_is_not_its_result(run, answers):
    ended = run(only(0, *answers), 3)
    assert (ended.status, ended.failed) == (0, {})
    assert "3 completed" in ended.out
    assert ended.err.count("; it is tried again") == 1


def test_run_that_hangs_in_two_processes_of_its_own_is_recorded(run):
    ended = run(only(0, "hung"), 2)
    assert ended.failed == {0: "its process hung, in two processes of its own"}
    assert "1 completed, 1 failed" in ended.out


@pytest.mark.parametrize("met", [
    Ended("hindered", error=DISK), Ended("hindered", error="its process died", unexpected=True),
])  # fmt: skip
def test_tries_come_to_an_end_without_a_record(run, met):
    ended = run(only(1, met), 3)
    assert (ended.status, ended.failed) == (1, {})
    assert len([seed for seed, *_ in ended.workers.submitted if seed == 1]) == study_sweep.TRIES
    assert "2 completed, 1 left without a record (the same command tries again)" in ended.out
    last = ended.err.splitlines()[-1]
    assert met.error in last
    assert last.endswith("; the same command tries it again")
    assert run(done, 3).status == 0


def test_memory_that_lacks_in_two_fresh_processes_is_recorded(run):
    met = Ended("hindered", error="ResourceExhaustedError: no room", cause="ResourceExhaustedError", unexpected=True)
    ended = run(only(0, met), 2)
    assert ended.failed == {0: "ResourceExhaustedError: no room, in two processes of its own; is there enough memory?"}


def test_three_runs_in_a_row_that_end_their_processes_stop_the_sweep(run):
    ended = run(lambda *_: "signal 9", 8)
    assert ended.status == 1
    assert len(ended.failed) == 3
    assert "3 runs in a row met what no run should" in ended.err
    assert "left as before: 5 runs" in ended.err
    assert ended.err.splitlines()[-1].endswith("with --retry_failed")


def test_answers_beside_the_one_that_stops_the_sweep_are_booked(run):
    """Of four workers one meets a full disk; two have answered with it, and the last does so while the sweep stops."""
    full = "/runs/x/spec.json: the disk is full; free some space and run the same command again"

    def answer(spec, tries, workers):
        workers.looks = getattr(workers, "looks", defaultdict(int))
        workers.looks[spec.seed] += 1
        late = spec.seed == 3 and workers.looks[3] < 2
        return None if late else Ended("stop", error=full) if spec.seed == 0 else done()

    ended = run(answer, 9, workers=4)
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == f"tfmt-sweep: {full}"
    assert "3 completed" in ended.out
    assert sorted(seed for seed, *_ in ended.workers.submitted) == [0, 1, 2, 3]
    assert (ended.failed, ended.workers.closed) == ({}, 1)


def test_runs_that_end_while_the_sweep_stops_are_booked(run):
    """A worker that is asked to stop may be at its last step: then the record says so."""

    def answer(spec, tries, workers):
        if spec.seed == 0:
            return Ended("stop", error="the disk is full")
        if spec.seed == 1:
            workers.close = lambda: record_failure(prepare(spec, workers.output_dir), "no number")
        return None

    ended = run(answer, 4, workers=3)
    assert ended.failed == {1: "no number"}
    assert "1 failed" in ended.out


def test_disk_that_takes_nothing_from_anybody_stops_the_sweep(run, monkeypatch):
    monkeypatch.setattr(study_sweep, "_find_refusal", lambda folder: refusals.pop() if refusals else "")
    refusals = ["Read-only file system", ""]
    ended = run(lambda *_: Ended("hindered", error=DISK), 8)
    assert ended.status == 1
    assert len(ended.workers.submitted) == 1
    assert ended.err.splitlines()[-1] == f"tfmt-sweep: {DISK}"


def test_folder_of_another_user_ends_nothing_and_is_told_once(run, toy_bert, toy_glue, tmp_path, monkeypatch):
    spec = RunSpec.make(model=str(toy_bert), data_dir=str(toy_glue), task="mrpc", mode="frozen", max_length=32, seed=1)
    closed = prepare(spec, tmp_path / "runs").folder
    closed.mkdir(parents=True)
    real = os.listdir

    def listdir(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    ended = run(done, 4)
    assert ended.status == 1
    assert {seed for seed, *_ in ended.workers.submitted} == {0, 2, 3}
    assert "3 completed, 1 left without a record" in ended.out
    assert ended.err.count(f"{closed}: cannot be read now (Permission denied)") == 2  # when it is met, and at the end
    monkeypatch.setattr(os, "listdir", real)
    assert run(done, 4).status == 0
