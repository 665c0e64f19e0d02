"""Many sweeps on one folder: shares of a grid, who helps whom, what others hold, and processes that are lost."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfmt import liveness, signals, sweep
from tfmt.errors import RequestError
from tfmt.flags import parse
from tfmt.runs import lease, runner
from tfmt.runs.lease import Lease, is_held
from tfmt.runs.records import find_records
from tfmt.runs.runner import bench_key
from tfmt.spec import RunSpec
from tfmt.study import sweep as study_sweep
from tfmt.study.grid import expand_grid
from tfmt.study.shards import Shard, parse_shard, shape_key, share_slots
from tfmt.study.sweep import Item, Sweep, choose
from tfmt.study.worker import Ended
from tfmt.tasks import find_task

GRID = {"task": "mrpc", "mode": "frozen,layernorm", "learning_rate": "1e-2,1e-3", "seed": "0,1,2", "epochs": 30}
HELD = "held      1 run by other processes; {} failed"


@pytest.fixture(scope="module")
def shared(toy_bert, toy_glue):
    return {"model": toy_bert, "data_dir": toy_glue, "max_length": 32} | GRID


@pytest.fixture(scope="module")
def untouched(shared, tmp_path_factory):
    """What an uninterrupted sweep gives."""
    folder = tmp_path_factory.mktemp("untouched")
    assert sweep.main(flags_of(shared, folder)) == 0
    return numbers(folder)


def flags_of(shared, folder, **changes):
    return [f"--{name}={value}" for name, value in (shared | {"workers": 0, "output_dir": folder} | changes).items()]


def numbers(folder):
    """What must be the same in two sweeps of one grid, by run."""
    found = {}
    for record in find_records(folder)[0]:
        epochs = [epoch.model_dump(exclude={"seconds"}) for epoch in record.result.epochs]
        found[record.run_id] = (record.status, epochs, record.result.predicted, record.proof, record.change,
                                record.tuned_sha256, record.predictions_sha256)  # fmt: skip
    return found


# ---- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_shares_are_stretches_of_like_runs_with_as_much_work_each(count):
    axes = {"task": ("mrpc", "rte", "cola"), "mode": ("full", "layernorm", "frozen"), "learning_rate": (1e-3, 1e-4),
            "seed": (0, 1, 2)}  # fmt: skip
    grid = expand_grid(axes, {"model": "m"})
    shares = share_slots(grid, count)
    assert set(shares) == set(grid.runs)
    assert list(shares.values()) == sorted(shares.values())
    assert set(shares.values()) == set(range(count))
    works, whole = Counter(), 0
    for run, share in shares.items():
        work = run.epochs * find_task(run.task).sizes["train"]
        works[share], whole = works[share] + work, whole + work
    longest = max(run.epochs * find_task(run.task).sizes["train"] for run in grid.runs)
    assert all(abs(work - whole / count) <= longest for work in works.values())
    for key in (bench_key, lambda run: (bench_key(run), shape_key(run))):  # each lies together
        order = [key(run) for run in shares]
        assert sum(a != b for a, b in itertools.pairwise(order)) == len(set(order)) - 1


def test_shares_of_data_whose_size_nobody_knows_are_even_by_epochs():
    grid = expand_grid({"task": ("custom",), "mode": ("full", "frozen"), "seed": tuple(range(6))},
                       {"model": "m", "data_dir": "d", "task_type": "classification", "text_columns": ("a",),
                        "label_column": "b"})  # fmt: skip
    (long,) = {run.epochs for run in grid.runs if run.mode == "frozen"}
    (short,) = {run.epochs for run in grid.runs if run.mode == "full"}
    works = Counter()
    for run, share in share_slots(grid, 3).items():
        works[share] += run.epochs
    assert max(works.values()) - min(works.values()) <= long
    assert sum(works.values()) == 6 * (long + short)


def test_more_shares_than_runs_and_unions_go_with_their_own_run():
    axes = {"task": ("mrpc", "rte"), "mode": ("fisher",), "mask_fraction": (0.1, 0.2), "seed": (0, 1)}
    grid = expand_grid(axes, {"model": "m"}, fisher_union="held_out")
    assert len(grid.unions) == 8
    for count in (2, 5, 50):
        shares = share_slots(grid, count)
        assert all(shares[union] == shares[union.own] for union in grid.unions)
        assert set(shares.values()) <= set(range(count))
        assert len(shares) == 16


def test_shard_is_read():
    assert parse_shard("") == Shard(0, 1)
    assert parse_shard("3/4") == Shard(3, 4)
    for text, words in (("4/4", "0 to 3, as --array=0-3 counts"), ("x/y", "must be i/n"), ("/", "must be i/n"),
                        ("0/0", "n is 0"), ("-1/4", "must be i/n"), ("1", "must be i/n"), ("1/2/3", "i/n"),
                        ("0/1\n", "i/n"), ("٣/٤", "i/n")):  # fmt: skip
        with pytest.raises(RequestError, match=r"^--shard=") as caught:
            parse_shard(text)
        assert words in str(caught.value)


def item(mode, seed, share, seconds=None, **more):
    made = Item(RunSpec.make(model="m", task="mrpc", mode=mode, seed=seed), None, **more)
    made.share, made.seconds = share, seconds
    return made


def test_own_runs_come_first_and_then_the_end_of_the_longest_share():
    mine = [item("full", 0, (1, 4)), item("full", 1, (1, 5))]
    others = [item("frozen", seed, (0, seed), 1.0) for seed in range(3)]
    others += [item("layernorm", seed, (2, 6 + seed), 9.0) for seed in range(3)]
    assert choose(others + mine, None, set(), 1) is mine[0]
    assert choose([*others, mine[1]], mine[0], set(), 1) is mine[1]
    assert choose(others, mine[1], set(), 1) is others[5]
    assert choose(others[:5], others[5], set(), 1) is others[4]
    # It stays with the share that it helps, whose model and step it has.
    assert choose(others[:4], others[4], set(), 1) is others[3]
    assert choose(others[:3], others[3], set(), 1) is others[2]
    # Without times the number of runs tells.
    untimed = [item("frozen", seed, (0, seed)) for seed in range(3)] + [item("frozen", 9, (2, 9))]
    assert choose(untimed, None, set(), 1) is untimed[2]
    # What needs a process of its own waits for one, also where it is the share's own.
    suspect = item("full", 2, (1, 4), suspect=True)
    assert choose([suspect, others[0]], mine[0], set(), 1) is others[0]
    assert choose([suspect, others[0]], None, set(), 1) is suspect


# ---- what others hold ------------------------------------------------------------------------------------------------


class Workers:
    """Workers that do nothing, and answer what a function says of each spec."""

    renews = True

    def __init__(self, answer, count):
        self.answer, self.count, self.submitted, self.busy = answer, count, [], {}

    def __call__(self, *_):
        return self

    def workers(self):
        return range(self.count)

    def where(self, _):
        return ""

    def submit(self, worker, spec, _, folders=(), *, fresh=False, until=None):
        self.submitted.append(spec)
        self.busy[worker] = spec
        return False

    def wait_for_any(self, seconds):
        ended = [(worker, self.answer(spec)) for worker, spec in self.busy.items()]
        self.busy = {worker: spec for worker, spec in self.busy.items() if (worker, None) in ended}
        return [pair for pair in ended if pair[1] is not None]

    def close(self):
        pass


@pytest.fixture
def run(shared, tmp_path, monkeypatch, capsys):
    """Runs a sweep on workers that do nothing; its status, its words, and the runs that it began."""

    def run(*flags, answer=lambda _: Ended("completed"), count=1, **changes):
        workers = Workers(answer, count)
        monkeypatch.setattr(study_sweep, "ProcessPool", workers)
        monkeypatch.setattr(study_sweep, "_POLL_SECONDS", 0.02)
        status = sweep.main([*flags_of(shared, tmp_path, workers=count, **changes), *flags])
        return SimpleNamespace(status=status, began=workers.submitted, **capsys.readouterr()._asdict())

    return run


def spec_of(settings):
    """A run of the grid."""
    return RunSpec.make(**{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()})


def folder_of(shared, folder, **changes):
    """The folder of a run of the grid, made."""
    settings = {"mode": "frozen", "learning_rate": 1e-3, "seed": 0} | changes
    found = runner.prepare(spec_of(shared | settings), folder)
    found.folder.mkdir(parents=True)
    return found.folder


def told(spec):
    return spec.mode, spec.learning_rate, spec.seed


def test_sweep_does_its_share_first_and_then_the_end_of_the_other(run, shared):
    whole = [told(spec) for spec in run().began]
    first = [told(spec) for spec in run("--shard=0/2").began]
    second = [told(spec) for spec in run("--shard=1/2").began]
    assert sorted(whole) == sorted(first) == sorted(second)
    assert set(first[:6]) == set(second[6:])
    order = [(mode, rate, seed) for mode in ("frozen", "layernorm") for rate in (1e-2, 1e-3) for seed in range(3)]
    assert first == order[:6] + order[:5:-1]
    assert second == order[6:] + order[5::-1]


@pytest.mark.parametrize("text", ["4/4", "x/y", "0/0"])
def test_shares_that_cannot_be_are_refused_before_anything_is_read(text, capsys):
    for more in ([], ["--only_check_args"], ["--dry_run"]):
        assert sweep.main(["--model=/nowhere", "--task=mrpc", "--mode=frozen", f"--shard={text}", *more]) == 2
        assert capsys.readouterr().err.startswith(f"tfmt-sweep: --shard={text}: ")


def test_sweep_leaves_what_others_hold(run, shared, tmp_path):
    with Lease(folder_of(shared, tmp_path)):
        left = run("--leave")
        assert (left.status, len(left.began), HELD.format(0) in left.out) == (0, 11, True)
        ends = {2: Ended("failed", error="no")}
        left = run("--leave", answer=lambda spec: ends.get(spec.seed, Ended("completed")))
        assert (left.status, HELD.format(4) in left.out) == (0, True)
    left = run("--leave", answer=lambda spec: ends.get(spec.seed, Ended("completed")))
    assert (left.status, len(left.began), "held" in left.out) == (1, 12, False)


def test_what_became_free_meanwhile_is_not_left(run, shared, tmp_path):
    held, began = Lease(folder_of(shared, tmp_path)), []

    def answer(spec):
        began.append(spec)
        if len(began) == 11:
            held.__exit__()
        return Ended("completed")

    held.__enter__()
    assert (run("--leave", answer=answer).status, len(began)) == (0, 12)


def test_unreadable_folders_are_tried_a_few_times_and_not_waited_for(run, shared, tmp_path, monkeypatch):
    folder, real = folder_of(shared, tmp_path, seed=1), os.listdir

    def listdir(path):
        if path == folder:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(lease.os, "listdir", listdir)
    with Lease(folder_of(shared, tmp_path)):
        left = run("--leave")
    assert (left.status, len(left.began), HELD.format(0) in left.out) == (1, 10, True)
    assert f"{folder.name} left without a record" in left.err


@pytest.mark.parametrize("search", ["first_seed", "halving"])
def test_sweep_leaves_what_waits_for_what_others_hold(run, shared, tmp_path, search):
    with Lease(folder_of(shared, tmp_path, epochs=5)):
        left = run("--leave", mode="frozen", search=search, epochs=5)
    # The other rate has begun its first seed, and the four runs of other seeds wait.
    assert (left.status, len(left.began)) == (0, 1)
    assert "held      1 run by other processes, 4 more wait for what these show; 0 failed" in left.out


def test_runs_of_others_are_looked_at_now_and_then_with_one_probe_of_the_clock(run, shared, tmp_path, monkeypatch):
    looks, probes, ended, disk_time = [], [], iter(range(1000)), lease._disk_time
    monkeypatch.setattr(lease, "LOOK_SECONDS", (0.4, 0.6))

    def look(folder, clock):
        looks.append(time.monotonic())
        return is_held(folder, clock)

    def probe(folder):
        probes.append(folder)
        return disk_time(folder)

    monkeypatch.setattr(study_sweep, "is_held", look)
    monkeypatch.setattr(lease, "_disk_time", probe)
    with contextlib.ExitStack() as leases:
        for seed in range(3):
            leases.enter_context(Lease(folder_of(shared, tmp_path, seed=seed, epochs=1)))

        def answer(spec):
            if next(ended) == 200:
                leases.close()
            time.sleep(0.01)
            return Ended("completed")

        seeds = ",".join(map(str, range(150)))
        done = run(answer=answer, mode="frozen", learning_rate="1e-3,1e-2", seed=seeds, epochs=1)
    assert (done.status, len(done.began)) == (0, 300)
    times = 2 + (looks[-1] - looks[0]) / 0.4
    assert len(probes) <= times < len(looks) <= 3 * times
    assert not list(tmp_path.rglob(".clock*"))


CHANGED = {"mode": "custom", "learning_rate": "1e-3,1e-4", "seed": "0", "epochs": 1}
SELECT = "--select=layernorm:change(5, rate=1e-3, epochs=1)"


@pytest.fixture(scope="module")
def full(shared, tmp_path_factory):
    """A full fine-tuning that others compare with, as its finished folder, and its workbench."""
    settings = {"mode": "full", "learning_rate": 1e-3, "epochs": 1, "seed": 0}
    spec = spec_of(shared | settings)
    request = runner.prepare(spec, tmp_path_factory.mktemp("full"))
    bench = runner.make_bench(request)
    runner.execute(request, bench, started=0.0, quiet=True)
    return SimpleNamespace(folder=request.folder, bench=bench)


def test_what_this_sweep_ends_frees_at_once_what_waits_for_it(run, shared, full, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LOOK_SECONDS", (1000.0, 1000.0))
    times = iter(range(3))

    def answer(spec):
        if spec.mode == "full":
            if next(times) < 2:  # it takes a while, in which the other worker gets nothing
                return None
            shutil.copytree(full.folder, tmp_path / full.folder.name)
        return Ended("completed")

    done = run(SELECT, answer=answer, count=2, **CHANGED)
    assert done.status == 0
    assert [(spec.mode, spec.learning_rate) for spec in done.began] == [
        ("full", 1e-3),
        ("custom", 1e-3),
        ("custom", 1e-4),
    ]


def test_full_run_that_a_worker_makes_by_the_way_frees_at_once_what_waits_for_it(shared, full, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "LOOK_SECONDS", (1000.0, 1000.0))
    values = sweep.COMMAND.flags()
    parse(values, [*flags_of(shared, tmp_path, **CHANGED), SELECT])
    made = Sweep(sweep.read_grid(values), tmp_path)
    own, first, second = made._waiting
    assert (own.spec.mode, first.spec.learning_rate, second.spec.learning_rate) == ("full", 1e-3, 1e-4)
    made._waiting, made._doing = [own, second], {0: first}  # as a worker has the first, which makes what it needs
    assert made._next(None, set()) is None
    assert (made._held, made._next(None, set())) == ([own, second], None)
    shutil.copytree(full.folder, own.folder)
    assert (made._next(None, set()), made._held) == (second, [])
    assert made.board.counts["completed"] == 1


def test_run_waits_for_a_full_run_of_another_process_and_shows_that_it_lives(shared, full, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_SLICE_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "SIGN_SECONDS", 0.0)
    settings = shared | CHANGED | {"learning_rate": 1e-3, "seed": 0, "select": SELECT.removeprefix("--select=")}
    spec = spec_of(settings)
    request = runner.prepare(spec, tmp_path)
    (needed,) = request.full_runs.values()
    shutil.copytree(full.folder, needed.folder)
    record = (needed.folder / "record.json").rename(tmp_path / "record.json")
    signs = []

    def sign():
        signs.append(True)
        if len(signs) == 8:
            record.rename(needed.folder / "record.json")

    with Lease(needed.folder), liveness.watched(sign):
        assert runner.execute(request, full.bench, started=0.0, quiet=True).status == "completed"
    monkeypatch.setattr(lease, "LOOK_SECONDS", (1000.0, 1000.0))
    shutil.rmtree(request.folder)
    record = (needed.folder / "record.json").rename(tmp_path / "record.json")
    stop = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    stop.start()
    with Lease(needed.folder), signals.heeded(), pytest.raises(signals.Stop), signals.held():
        runner.execute(request, full.bench, started=0.0, quiet=True)


# ---- processes that are stopped, killed and frozen -------------------------------------------------------------------


def begin(*flags, folder):
    """A sweep as a process, its output in a file."""
    command = [sys.executable, "-m", "tfmt.sweep", "--verbosity=1", *flags]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)


def find_running(folder, owned):
    """The folder of a run that some process is in the middle of, behind its first checkpoint."""
    for path in folder.glob("*/lease.*"):
        with contextlib.suppress(OSError, ValueError):
            told = json.loads(path.read_text())
            at = path.parent
            going = "pid" in told and owned(told["pid"]) and not (at / "record.json").exists()
            if going and list(at.glob("checkpoint/state.*.safetensors")):
                return at
    return None


def freeze(process, folder):
    """Stops a process in the middle of a run; the run's folder, or None while there is none."""
    if find_running(folder, lambda pid: pid == process.pid) is None:
        return None
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    found = find_running(folder, lambda pid: pid == process.pid)
    if found is None:  # it came to its end just now
        process.send_signal(signal.SIGCONT)
    return found


@pytest.mark.parametrize("workers", [0, 1])
def test_signal_of_a_batch_system_leaves_a_checkpoint_and_no_lease(shared, tmp_path, workers):
    # Long enough to be in the middle of for whoever looks from outside, also where the machine has much to do.
    few = {"mode": "layernorm", "learning_rate": 1e-3, "seed": "0", "epochs": 100, "output_dir": tmp_path / "runs"}
    process = begin(*flags_of(shared, tmp_path, **few | {"workers": workers}), folder=tmp_path)
    while (at := find_running(tmp_path / "runs", lambda _: True)) is None:
        assert process.poll() is None, (tmp_path / "said.txt").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGUSR1)  # as Slurm does, which tells every process of a step
    assert process.wait(60) == -signal.SIGUSR1
    said = (tmp_path / "said.txt").read_text()
    assert f"{at.name}: checkpoint written at step" in said
    assert "stopped by SIGUSR1" in said.splitlines()[-1]
    assert not (at / "record.json").exists()
    (left,) = at.glob("lease.*")
    assert json.loads(left.read_text()) == {"released": True}
    assert sweep.main(flags_of(shared, tmp_path, **few)) == 0
    (record,) = find_records(tmp_path / "runs")[0]
    assert record.cost.resumed == 1
    assert sweep.main(flags_of(shared, tmp_path, **few | {"output_dir": tmp_path / "untouched"})) == 0
    assert numbers(tmp_path / "runs") == numbers(tmp_path / "untouched")


def test_four_processes_two_of_them_killed_and_one_frozen(shared, untouched, tmp_path):
    runs, processes, at = tmp_path / "runs", [], {}
    try:
        for share in range(4):
            (tmp_path / str(share)).mkdir()
            flags = flags_of(shared, runs, shard=f"{share}/4")
            processes.append(begin("--leave", *flags, folder=tmp_path / str(share)))
        while len(at) < 3:
            for share in {0, 1, 2} - at.keys():
                assert processes[share].poll() is None
                if (found := freeze(processes[share], runs)) is not None:
                    at[share] = found
                    if share < 2:
                        processes[share].kill()
                        processes[share].wait()
            time.sleep(0.01)
        assert processes[3].wait(120) == 0
        assert HELD.format(0) in said(tmp_path / "3")
        assert len(find_records(runs)[0]) == 11
        assert is_held(at[2])
        processes[2].send_signal(signal.SIGCONT)
        assert processes[2].wait(120) == 0
        assert "held" not in said(tmp_path / "2")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert numbers(runs) == untouched
    ended = [
        line for share in range(4) for line in said(tmp_path / str(share)).splitlines() if line.endswith(": completed")
    ]
    assert sorted(ended) == sorted(f"{name}: completed" for name in untouched)
    records = {record.run_id: record.cost.resumed for record in find_records(runs)[0]}
    assert {name for name, resumed in records.items() if resumed} == {at[0].name, at[1].name}


def said(folder):
    return (folder / "said.txt").read_text()
