"""Sweeps on a Ray cluster of this machine: the local sweep's records bit for bit, whatever is killed or frozen."""

import contextlib
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
from cluster.clusters import (
    Command,
    Ring,
    actors_of,
    bits,
    environed,
    freeze,
    is_whole,
    resumed,
    wait_until,
    wake,
    workers_of,
)

import tfmt

# So that Ray counts a machine as gone after about 12 s: those of docs/cluster.md.
HEALTH = {
    "RAY_health_check_initial_delay_ms": 2000,
    "RAY_health_check_period_ms": 2000,
    "RAY_health_check_timeout_ms": 2000,
    "RAY_health_check_failure_threshold": 3,
}
LOST = r"its place was lost, as .*; it is tried again"


@pytest.fixture(scope="module")
def grid(make_toy_bert, tmp_path_factory):
    """Four runs of three seconds each."""
    from conftest import write_toy_mrpc

    folder = tmp_path_factory.mktemp("reads")
    return {
        "model": make_toy_bert(folder / "bert"), "data_dir": write_toy_mrpc(folder / "glue", train=480),
        "task": "mrpc", "mode": "layernorm", "learning_rate": "1e-3,1e-2", "seed": "0,1", "max_length": 32,
        "epochs": 36,
    }  # fmt: skip


@pytest.fixture(scope="module")
def untouched(grid, tmp_path_factory):
    """The records of the local sweep."""
    folder = tmp_path_factory.mktemp("local")
    local = Command(folder, **grid, workers=2, output_dir=folder / "runs")
    assert local.end(120) == 0, local.told
    return bits(folder / "runs")


@pytest.fixture(scope="module")
def ring():
    """A cluster without nodes; those that a test adds are gone after it."""
    made = Ring(**HEALTH)
    yield made
    made.close()


@pytest.fixture
def two(ring):
    """Two nodes that share the disk."""
    yield [ring.add("first"), ring.add("second")]
    ring.clear()


@pytest.fixture
def start(ring, grid, tmp_path, impatient_sweep):
    """Starts the sweep; with what is still there of it at the end the test has failed anyway."""
    commands = []

    def begin(*code, **changes):
        flags = grid | {"ray": ring.address, "output_dir": tmp_path / "runs"} | changes
        *python, program = impatient_sweep
        commands.append(Command(tmp_path, start=[*python, "; ".join([*code, program])], **flags))
        return commands[-1]

    yield begin
    for command in commands:
        command.process.kill()
        command.end(10)
        # Nothing of Ray's is on the terminal.
        assert all(re.match(r"tfmt-sweep: |runs |best |records |held |\d/\d done, ", line) for _, line in command.lines)


@pytest.fixture
def still():
    """Processes that a test has frozen; none stays so, whatever comes of the test."""
    frozen = []
    yield frozen
    for process in frozen:
        with contextlib.suppress(ProcessLookupError):
            wake(process)


@pytest.fixture
def other_tfmt(tmp_path):
    """The folder of a tfmt of another version."""
    folder = tmp_path / "other"
    shutil.copytree(Path(tfmt.__file__).parent, folder / "tfmt", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tfmt" / "version.py").write_text('__version__ = "0.0.1"\n')
    return folder


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def before_others(folder):
    """For PYTHONPATH: a folder, then what is there anyway."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def of_seed_0(bits):
    """Those of the runs of one seed."""
    return {run: told for run, told in bits.items() if "-s0-" in run}


def find_middle(runs, raylet):
    """A node's worker and the folder of its run, where that has a checkpoint."""
    for worker in workers_of(raylet):
        for state in runs.glob("*/checkpoint/state.*"):
            if f'"pid": {worker.pid},' in "".join(map(read, state.parents[1].glob("lease.*"))):
                return worker, state.parents[1]
    return None


def in_the_middle(runs, raylet):
    """Waits for that."""
    return wait_until(lambda: find_middle(runs, raylet), 60)


def read(path):
    """What is in a file; "" where it is gone by now."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def test_runs_as_on_one_machine(two, ring, start, runs, untouched, other_tfmt):
    ring.add("other", PYTHONPATH=before_others(other_tfmt))
    done = start()
    assert done.end(120) == 0, done.told
    assert len(untouched) == 4
    assert bits(runs) == untouched
    assert all(map(is_whole, filter(os.path.isdir, runs.iterdir())))
    assert f"nothing is computed on other: tfmt 0.0.1 (here {tfmt.__version__})" in done.told
    again = start()
    assert again.end(60) == 0
    assert "4 completed (4 of them before)" in again.told


def test_no_node_computes_alike(ring, start, other_tfmt):
    ring.add("other", PYTHONPATH=before_others(other_tfmt))
    sweep = start()
    assert sweep.end(60) == 1
    refused = f"other: tfmt 0.0.1 (here {tfmt.__version__})"
    assert f"tfmt-sweep: no machine of the cluster can compute this sweep: {refused}" in sweep.told
    ring.clear()


def test_an_actor_is_killed(two, start, runs, untouched, measure):
    sweep = start(seed=0)
    worker, run = in_the_middle(runs, two[0])
    (actor,) = actors_of(two[0])
    actor.kill()
    killed = time.monotonic()
    worker.wait(12)  # by SIGTERM
    measure("an actor killed: its worker has written its checkpoint and ended", time.monotonic() - killed)
    seconds = sweep.see(f"{run.name}.*{LOST}", 10) - killed
    measure("an actor killed: noticed", seconds)
    assert seconds < 1
    assert sweep.end(120) == 0, sweep.told
    assert bits(runs) == of_seed_0(untouched)
    assert resumed(runs)[run.name] == 1
    assert all(map(is_whole, filter(os.path.isdir, runs.iterdir())))


def test_the_sweep_is_killed_and_then_interrupted(two, start, runs, untouched, measure):
    sweep = start(seed=0)
    _, run = in_the_middle(runs, two[0])
    actors = [actor for raylet in two for actor in actors_of(raylet)]
    workers = [worker for raylet in two for worker in workers_of(raylet)]
    killed = sweep.send(signal.SIGKILL)
    psutil.wait_procs(actors, 20)
    measure("the sweep killed: its actors are gone", time.monotonic() - killed)
    psutil.wait_procs(workers, 20)
    measure("the sweep killed: its workers are gone", time.monotonic() - killed)
    assert not any(process.is_running() for process in (*actors, *workers))
    assert all('"released": true' in lease.read_text() for lease in runs.glob("*/lease.*"))
    ended = set(runs.glob("*/record.json"))

    sweep = start(seed=0)
    in_the_middle(runs, two[1])
    asked = sweep.send(signal.SIGINT)
    assert sweep.end(60) == -signal.SIGINT, sweep.told
    measure("Ctrl-C: the sweep has ended", time.monotonic() - asked)
    assert "the same command goes on" in sweep.told

    sweep = start(seed=0)
    assert sweep.end(120) == 0, sweep.told
    assert bits(runs) == of_seed_0(untouched)
    assert resumed(runs)[run.name] >= 1
    assert not any(resumed(record.parent)[record.parent.name] for record in ended)


def test_a_machine_fails_and_others_freeze(ring, start, runs, untouched, still, measure):
    raylets = [ring.add(name) for name in ("killed", "halted", "frozen", "fine")]
    sweep = start()
    pending, hit = dict(zip(("killed", "halted", "frozen"), raylets, strict=False)), {}

    def strike():
        for name, raylet in list(pending.items()):
            if found := find_middle(runs, raylet):
                worker, run = found
                if name == "killed":
                    raylet.kill()
                    raylet.wait()  # as a zombie it would still answer
                else:
                    stopped = [raylet] if name == "halted" else [raylet, *actors_of(raylet), worker]
                    still.extend(stopped)
                    freeze(*stopped)
                hit[name] = run, time.monotonic()
                del pending[name]
        return not pending

    wait_until(strike, 60)
    told = {name: f"{run.name}.*{LOST}" for name, (run, _) in hit.items()}
    told["halted"] = "halted has left the cluster"  # its actor goes on with the run
    for name, bound in (("killed", 5), ("halted", 20), ("frozen", 15)):
        seconds = sweep.see(told[name], 30) - hit[name][1]
        measure(f"a raylet {name}: noticed", seconds)
        assert seconds < bound
    wait_until(lambda: len(list(runs.glob("*/record.json"))) == 3, 60, lambda: sweep.told)
    assert sweep.process.poll() is None  # it waits for the run that the frozen worker holds
    wake(*still)
    assert sweep.end(120) == 0, sweep.told
    assert bits(runs) == untouched
    assert sweep.told.count("; it is tried again") == 2
    ring.clear()


WATCH = """
import os, sys

def watch(event, arguments):
    path = str(arguments[0]) if event == "open" else ""
    if path.startswith(os.environ["WATCHED"]) or "/parcels/" in path:
        with open(os.environ["WATCHED_LOG"], "a") as log:
            log.write(f"{path}\\n")

sys.addaudithook(watch)
"""


def test_nodes_share_no_disk(ring, start, grid, runs, untouched, tmp_path, measure):
    hook, log, own = tmp_path / "hook", tmp_path / "log", {}
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(WATCH)
    raylets = []
    for name in ("first", "second"):
        own[name] = tmp_path / name
        watched = {"WATCHED": Path(grid["model"]).parent, "WATCHED_LOG": log}
        raylets.append(ring.add(name, TFMT_NODE_DIR=own[name], PYTHONPATH=before_others(hook), **watched))
    sweep = start()
    # The lease is the sweep's own here, and names the node.
    run = wait_until(lambda: find_checkpoint_of("first", runs), 60)
    raylets[0].kill()
    killed = time.monotonic()
    raylets[0].wait()
    measure("a raylet killed, no disk shared: noticed", sweep.see(f"{run.name}.*{LOST}", 20) - killed)
    assert sweep.end(120) == 0, sweep.told
    assert bits(runs) == untouched
    assert resumed(runs)[run.name] == 1
    assert all(map(is_whole, filter(os.path.isdir, runs.iterdir())))
    assert all(len(list((folder / "parcels").iterdir())) == 2 for folder in own.values())
    assert not list((own["second"] / "runs").glob("*/mrpc-*"))
    opened = log.read_text().splitlines()  # on the nodes: nothing of what lies on the sweep's side
    assert all("/parcels/" in path for path in opened)
    assert {Path(path).name for path in opened} >= {"model.safetensors", "vocab.txt", "train.tsv", "dev.tsv"}
    ring.clear()


def find_checkpoint_of(node, runs):
    """The folder of a run that a node computes, where a checkpoint has come back."""
    for state in runs.glob("*/checkpoint/state.*"):
        if f'"node": "{node}"' in "".join(map(read, state.parents[1].glob("lease.*"))):
            return state.parents[1]
    return None


def test_what_cannot_be_had_is_refused(two, ring, start, tmp_path):
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen(9)
    port = silent.getsockname()[1]
    wrong = [
        ({"gpus_per_run": 1}, "--gpus_per_run=1: no machine of the cluster has more than 0 "),
        ({"gpus_per_run": 1.5}, "--gpus_per_run=1.5: must be 0, a part of one GPU as 0.5, or a whole number"),
        ({"cpus_per_run": 2}, "--cpus_per_run=2: no machine of the cluster has more than 1 "),
        ({"ray": "127.0.0.1:1"}, "--ray=127.0.0.1:1: nobody answers at 127.0.0.1:1 (Connection refused)"),
        ({"ray": f"127.0.0.1:{port}"}, f"--ray=127.0.0.1:{port}: nobody answers at 127.0.0.1:{port} (timed out)"),
        ({"ray": "ray://127.0.0.1:10001"}, "--ray=ray://127.0.0.1:10001: Ray Client is not for long work"),
        ({"ray": "auto"}, "--ray=auto: this machine is in no Ray cluster"),
    ]
    nowhere = {"RAY_TMPDIR": tmp_path}
    with environed(**nowhere):
        begun = [start(output_dir=tmp_path / f"runs{place}", **flags) for place, (flags, _) in enumerate(wrong)]
    for place, (command, (_, told)) in enumerate(zip(begun, wrong, strict=True)):
        assert command.end(60) == 2, command.told
        errors = [line for _, line in command.lines if not re.fullmatch(r"0/4 done, .*", line)]
        assert len(errors) == 1, command.told
        assert errors[0].startswith(f"tfmt-sweep: {told}")
        assert not list((tmp_path / f"runs{place}").glob("*"))
    silent.close()


def test_a_cluster_of_this_machine_alone(start, runs, untouched):
    done = start(ray="local", workers=1, seed=0)
    assert done.end(120) == 0, done.told
    assert bits(runs) == of_seed_0(untouched)


def test_the_sweeps_own_machine_leaves_and_the_head_is_killed(two, ring, start, runs, untouched, measure):
    more = {"seed": "0,1,2,3"}  # else all runs would have ended before it is noticed
    sweep = start("from tfmt.study import ray_pool; ray_pool._SCOUT_SECONDS = 0.5", **more)
    in_the_middle(runs, two[0])
    ring.kill_head("raylet")  # that by which the sweep is part of the cluster
    killed = time.monotonic()
    status = sweep.end(60)
    measure("the sweep's own raylet killed: the sweep has ended", time.monotonic() - killed)
    assert status == 1, sweep.told
    assert "tfmt-sweep: this machine is no longer part of the cluster" in sweep.told

    sweep = start("from tfmt.study import ray_pool; ray_pool._HEAD_SECONDS = 2", **more)
    in_the_middle(runs, two[0])
    workers = [worker for raylet in two for worker in workers_of(raylet)]
    ring.kill_head()
    killed = time.monotonic()
    status = sweep.end(60)
    measure("the head killed: the sweep has ended, which waits 2 s for it", time.monotonic() - killed)
    assert status == 1, sweep.told
    assert "tfmt-sweep: the cluster's head" in sweep.told
    psutil.wait_procs(workers, 60)
    measure("the head killed: its workers are gone", time.monotonic() - killed)
    local = start(ray="", workers=2, **more)
    assert local.end(120) == 0, local.told
    ended = bits(runs)
    assert len(ended) == 2 * len(untouched)
    assert {run: ended[run] for run in untouched} == untouched
    assert any(resumed(runs).values())
