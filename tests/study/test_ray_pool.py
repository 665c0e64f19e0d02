"""The places of a cluster, with machines of this process in place of Ray's: what becomes of runs when these go."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfmt.bert.configs import FoundModel
from tfmt.errors import RunError
from tfmt.runs.runner import Sources
from tfmt.spec import RunSpec
from tfmt.study import ray_pool
from tfmt.study.cluster import LostError, Node, Wish
from tfmt.study.hand import Kind, Process
from tfmt.study.ray_pool import RayPool
from tfmt.study.worker import Ended
from tfmt.training.progress import Standing

SPEC = RunSpec.make(model="toy", task="rotten_tomatoes", mode="frozen", learning_rate=1e-3)
STANDING = Standing(1, 2, 3, 6, 0.5, 48, 0, 0.0)


class Hand:
    """A machine's hand; runs end when the test says so."""

    def __init__(self, node, after, kind):
        self.node, self.after, self.kind = node, after, kind
        self.begun, self.ended, self.alive, self.told = [], [], True, []
        self.closed = False

    def greet(self):
        return self.kind

    def shelf(self, name, *arguments):
        assert name == "sees"
        return True

    def begin(self, output_dir, spec, sources, fresh, until):
        self.begun.append((output_dir, RunSpec.from_json(spec), fresh, until))
        return True, Process(10_000_000 + len(self.begun), "0")

    def listen(self, seconds):
        told, self.told = self.told, []
        if self.ended:
            return told, (self.ended.pop(), "")
        time.sleep(0.01)
        return told, None

    def end(self):
        self.closed = True


class Machines:
    """A cluster of hands, one a place."""

    address = "head:1"

    def __init__(self, *names, cpus=1.0):
        self.there = [Node(f"id-{name}", name, cpus, 0.0) for name in names]
        self.hands, self.killed, self.kinds, self.headless = [], [], {}, False

    def nodes(self):
        return list(self.there)

    def answers(self):
        return not self.headless

    def make_hand(self, node, wish, verbosity, after):
        hand = Hand(node, after, self.kinds.get(node.name, Kind.here()))
        self.hands.append(hand)
        return SimpleNamespace(hand=hand, greet=SimpleNamespace(remote=lambda: hand))

    def wait_for(self, hand, seconds):
        return self._call(hand, "greet")

    def ask(self, actor, seconds, method, *arguments):
        return self._call(actor.hand, method, *arguments)

    def _call(self, hand, method, *arguments):
        if not hand.alive:
            raise LostError("was killed")
        return getattr(hand, method)(*arguments)

    def kill(self, actor):
        self.killed.append(actor.hand)

    def at(self, name):
        return [hand for hand in self.hands if hand.node.name == name][-1]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Makes a pool on machines; it is closed at the end, and no thread is left."""
    monkeypatch.setattr(ray_pool, "_SCOUT_SECONDS", 0.02)
    monkeypatch.setattr(ray_pool, "list_reads", lambda *_: {})
    made = []

    def start(machines, most=0, cpus=1):
        told = SimpleNamespace(said=[], standings=[], hung=[])
        pool = RayPool(
            machines, Wish(0.0, cpus), most, tmp_path, 0, lambda worker, at: told.standings.append((worker, at)),
            lambda worker, seconds: told.hung.append((worker, seconds)), told.said.append,
        )  # fmt: skip
        made.append(pool)
        return pool, told

    before = set(threading.enumerate())
    yield start
    for pool in made:
        pool.close()
        assert not pool._sign.exists()
    end = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


def until(pool, what):
    """Listens until something holds; all runs that ended meanwhile."""
    found, end = [], time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        found += pool.wait_for_any(0.02)
    return found


def listen(pool, count=1):
    """Listens until so many runs have ended."""
    found, end = [], time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < end
        found += pool.wait_for_any(0.02)
    return found


def submit(pool, worker, **more):
    sources = Sources(FoundModel("toy", None, None, Path("toy")), {}, {})
    return pool.submit(worker, SPEC, sources, [pool._output_dir / "run"], **more)


def test_runs_go_to_machines_by_name_and_tell_where_they_stand(start, tmp_path):
    machines = Machines("east", "west")
    pool, told = start(machines)
    until(pool, lambda: len(pool.workers()) == 2)
    assert [pool.where(worker) for worker in pool.workers()] == ["east", "west"]
    assert submit(pool, 1, fresh=False, until=2)
    until(pool, lambda: machines.at("west").begun)
    assert machines.at("west").begun == [(str(tmp_path), SPEC, False, 2)]
    machines.at("west").told = [STANDING, 700.0]
    until(pool, lambda: told.hung)
    assert (told.standings, told.hung) == ([(1, STANDING)], [(1, 700.0)])
    machines.at("west").ended.append(Ended("completed"))
    assert listen(pool) == [(1, Ended("completed"))]
    assert not submit(pool, 1)  # its process is warm
    assert submit(pool, 0)
    machines.at("west").ended.append(Ended("hindered", error="no", unexpected=True))
    assert [worker for worker, _ in listen(pool)] == [1]
    assert submit(pool, 1)  # it is another process


def test_most_is_how_many_at_once(start):
    pool, _ = start(Machines("a", "b", "c", cpus=4.0), most=5, cpus=2)
    until(pool, lambda: len(pool.workers()) == 5)
    assert [pool.where(worker) for worker in pool.workers()] == ["a", "b", "c", "a", "b"]


def test_lost_place_ends_its_run_without_blame_and_another_waits_for_the_worker_that_may_still_live(start):
    machines = Machines("a")
    pool, told = start(machines)
    until(pool, pool.workers)
    submit(pool, 0)
    until(pool, lambda: machines.at("a").begun)
    first = machines.at("a")
    first.alive = False
    ((worker, ended),) = listen(pool)
    assert (worker, ended.status, ended.cause, ended.unexpected) == (0, "hindered", "", True)
    assert pool.where(0) == "a"
    assert not told.standings
    until(pool, pool.workers)
    assert list(pool.workers()) == [1]  # a number is not given twice
    assert machines.at("a").after == Process(10_000_001, "0")
    assert first in machines.killed


def test_machines_join_and_leave(start):
    machines = Machines("a")
    pool, told = start(machines)
    until(pool, pool.workers)
    machines.there.append(Node("id-b", "b", 1.0, 0.0))
    until(pool, lambda: len(pool.workers()) == 2)
    machines.there.pop(0)
    machines.at("a").alive = False
    submit(pool, 0)
    ((worker, ended),) = listen(pool)
    assert (worker, ended.status) == (0, "hindered")
    until(pool, lambda: "a has left the cluster" in told.said)
    assert told.said == ["b has joined the cluster", "a has left the cluster"]
    assert [pool.where(worker) for worker in pool.workers()] == ["b"]


def test_machine_that_computes_otherwise_is_refused_by_name(start):
    machines = Machines("same", "old")
    here = Kind.here()
    machines.kinds["old"] = Kind("0.0.1", here.arithmetic - 1, here.packages | {"tensorflow": "2.1"}, here.onednn)
    pool, told = start(machines)
    until(pool, lambda: told.said and pool.workers())
    assert [pool.where(worker) for worker in pool.workers()] == ["same"]
    (line,) = told.said
    assert line.startswith("nothing is computed on old: tfmt 0.0.1 (here ")
    assert f"arithmetic {here.arithmetic - 1} (here {here.arithmetic})" in line
    assert f"tensorflow 2.1 (here {here.packages['tensorflow']})" in line
    assert "numpy" not in line


def test_sweep_ends_where_no_machine_can_compute_it(start):
    machines = Machines("old")
    machines.kinds["old"] = Kind("0.0.1", 1, {}, None)
    pool, _ = start(machines)
    with pytest.raises(RunError, match=r"no machine of the cluster can compute this sweep: old: tfmt 0\.0\.1"):
        until(pool, lambda: False)


def test_machine_whose_places_are_lost_one_after_the_other_is_given_up(start):
    machines = Machines("bad", "good")
    pool, told = start(machines)
    for _ in range(3):
        until(pool, lambda: "bad" in map(pool.where, pool.workers()))
        (worker,) = (worker for worker in pool.workers() if pool.where(worker) == "bad")
        machines.at("bad").alive = False
        submit(pool, worker)
        assert listen(pool)[0][0] == worker
    until(pool, lambda: told.said)
    assert told.said[0].startswith("nothing is computed on bad: 3 times in a row something went wrong there")
    assert [pool.where(worker) for worker in pool.workers()] == ["good"]


def test_machine_on_which_runs_do_not_end_is_given_up_and_one_that_ended_some_is_not(start):
    machines = Machines("bad", "good")
    pool, told = start(machines)
    until(pool, lambda: len(pool.workers()) == 2)
    for status in ("hindered", "hindered", "completed", "hindered", "hindered", "hindered"):
        submit(pool, 0)
        machines.at("bad").ended.append(Ended(status, error="a disk"))
        assert listen(pool)[0][1].status == status
    (line,) = told.said
    assert line == "nothing is computed on bad: 3 times in a row something went wrong there, the last time: a disk"
    assert list(pool.workers()) == [1]


def test_actors_that_die_before_they_live_are_not_made_for_ever(start):
    machines = Machines("bad", "good")
    plain = machines.wait_for

    def wait_for(hand, seconds):
        if hand.node.name == "bad":
            raise LostError("was killed")
        return plain(hand, seconds)

    machines.wait_for = wait_for
    pool, told = start(machines)
    until(pool, lambda: told.said)
    assert [hand.node.name for hand in machines.hands].count("bad") == 3


def test_what_a_machine_cannot_even_begin_to_make_is_told(start):
    machines = Machines("a")
    plain, failed = machines.make_hand, []

    def make_hand(*given):
        if not failed:
            failed.append(True)
            raise ValueError("no such machine")
        return plain(*given)

    machines.make_hand = make_hand
    pool, _ = start(machines)
    until(pool, pool.workers)
    assert list(pool.workers()) == [1]


def test_a_machine_that_other_work_has_does_not_use_up_the_places(start, monkeypatch):
    monkeypatch.setattr(ray_pool, "_FULL_SECONDS", 0.1)
    machines = Machines("full", "free", cpus=2.0)
    plain, full = machines.wait_for, [True]
    machines.wait_for = lambda hand, seconds: None if full and hand.node.name == "full" else plain(hand, seconds)
    pool, _ = start(machines, most=2)
    until(pool, lambda: len(pool.workers()) == 2)
    assert {pool.where(worker) for worker in pool.workers()} == {"free"}
    full.clear()  # now it has room, too, and is not needed
    until(pool, lambda: len(pool._seats) == 2)
    assert {pool.where(worker) for worker in pool.workers()} == {"free"}


def test_head_that_is_gone_ends_the_sweep(start, monkeypatch):
    monkeypatch.setattr(ray_pool, "_HEAD_SECONDS", 0.1)
    machines = Machines("a")
    pool, _ = start(machines)
    until(pool, pool.workers)
    machines.headless = True
    with pytest.raises(RunError, match=r"the cluster's head at head:1 no longer answers"):
        until(pool, lambda: False)


def test_sweep_ends_where_its_own_machine_has_left(start):
    machines = Machines("a")
    pool, _ = start(machines)
    until(pool, pool.workers)

    def nodes():
        raise RunError("this machine is no longer part of the cluster")

    machines.nodes = nodes
    with pytest.raises(RunError, match="no longer part of the cluster"):
        until(pool, lambda: False)


def test_close_ends_workers_at_work_too(start, capsys):
    machines = Machines("a", "b")
    pool, _ = start(machines)
    until(pool, lambda: len(pool.workers()) == 2)
    submit(pool, 0)
    until(pool, lambda: machines.at("a").begun)
    pool.close()
    assert [hand.closed for hand in machines.hands] == [True, True]
    assert capsys.readouterr().err == "tfmt-sweep: waits for the checkpoints of 1 run\n"
