"""Sweeps on a Ray cluster of this machine: the local sweep's records bit for bit, whatever is killed or frozen."""

import os
import signal
import time

import psutil
import pytest
from cluster.clusters import (
    Command,
    Ring,
    actors_of,
    bits,
    freeze,
    is_whole,
    resumed,
    wait_until,
    wake,
    workers_of,
)

# So that Ray counts a machine as gone after about 12 s.
HEALTH = {
    "RAY_health_check_initial_delay_ms": 2000,
    "RAY_health_check_period_ms": 2000,
    "RAY_health_check_timeout_ms": 2000,
    "RAY_health_check_failure_threshold": 3,
}
LOST = r"its place was lost, as .*; it is tried again"


@pytest.fixture(scope="module")
def grid(make_toy_bert, tmp_path_factory):
    """Four runs of five seconds each."""
    from conftest import write_toy_mrpc

    folder = tmp_path_factory.mktemp("reads")
    return {
        "model": make_toy_bert(folder / "bert"), "data_dir": write_toy_mrpc(folder / "glue", train=480),
        "task": "mrpc", "mode": "layernorm", "learning_rate": "1e-3,1e-2", "seed": "0,1", "max_length": 32,
        "epochs": 60,
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

    def begin(**changes):
        flags = grid | {"ray": ring.address, "output_dir": tmp_path / "runs"} | changes
        commands.append(Command(tmp_path, start=impatient_sweep, **flags))
        return commands[-1]

    yield begin
    for command in commands:
        command.process.kill()
        command.process.wait()


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


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


def test_runs_as_on_one_machine(two, start, runs, untouched):
    done = start()
    assert done.end(120) == 0, done.told
    assert len(untouched) == 4
    assert bits(runs) == untouched
    assert all(map(is_whole, filter(os.path.isdir, runs.iterdir())))
    # Nothing of Ray's is on the terminal.
    assert all(line.startswith(("runs ", "best ", "records ")) or "/4 done" in line for _, line in done.lines)
    again = start()
    assert again.end(60) == 0
    assert "4 completed (4 of them before)" in again.told


def test_an_actor_is_killed(two, start, runs, untouched, measure):
    sweep = start()
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
    assert bits(runs) == untouched
    assert resumed(runs)[run.name] == 1
    assert all(map(is_whole, filter(os.path.isdir, runs.iterdir())))


def test_the_sweep_is_killed_and_then_interrupted(two, start, runs, untouched, measure):
    sweep = start()
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

    sweep = start()
    in_the_middle(runs, two[1])
    asked = sweep.send(signal.SIGINT)
    assert sweep.end(60) == -signal.SIGINT, sweep.told
    measure("Ctrl-C: the sweep has ended", time.monotonic() - asked)
    assert "the same command goes on" in sweep.told

    sweep = start()
    assert sweep.end(120) == 0, sweep.told
    assert bits(runs) == untouched
    assert resumed(runs)[run.name] >= 1
    assert not any(resumed(record.parent)[record.parent.name] for record in ended)


def test_a_machine_fails_and_others_freeze(ring, start, runs, untouched, measure):
    raylets = [ring.add(name) for name in ("killed", "halted", "frozen", "fine")]
    sweep = start()
    pending, hit = dict(zip(("killed", "halted", "frozen"), raylets, strict=False)), {}
    still = []

    def strike():
        for name, raylet in list(pending.items()):
            if found := find_middle(runs, raylet):
                worker, run = found
                if name == "killed":
                    raylet.kill()
                    raylet.wait()  # as a zombie it would still answer
                else:
                    stopped = [raylet] if name == "halted" else [raylet, *actors_of(raylet), worker]
                    freeze(*stopped)
                    still.extend(stopped)
                hit[name] = run, time.monotonic()
                del pending[name]
        return not pending

    wait_until(strike, 60)
    told = {name: f"{run.name}.*{LOST}" for name, (run, _) in hit.items()}
    told["halted"] = "halted has left the cluster"  # its actor goes on with the run
    for name, bound in (("killed", 5), ("halted", 16), ("frozen", 16)):
        seconds = sweep.see(told[name], 30) - hit[name][1]
        measure(f"a raylet {name}: noticed", seconds)
        assert seconds < bound
    wait_until(lambda: len(list(runs.glob("*/record.json"))) == 3, 60)
    assert sweep.process.poll() is None  # it waits for the run that the frozen worker holds
    wake(*still)
    assert sweep.end(120) == 0, sweep.told
    assert bits(runs) == untouched
    assert sweep.told.count("; it is tried again") == 2
    ring.clear()
