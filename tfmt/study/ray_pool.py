"""The machines of a Ray cluster as the workers of a sweep: one actor a place, each with a `Hand` on its machine.

What is next is the sweep's choice, as on one machine; only the hands are elsewhere. Each place has a thread here that
talks to its actor and may block: it ships what is not there, starts the run, listens, and brings back what a machine
that shares no disk has made. A place is lost with its actor, and another one is made where its machine still lives.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import queue
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmt.errors import RequestError, RunError, SurroundingsError
from tfmt.files import UnwritableError, exists
from tfmt.runs.lease import Lease, TakenError
from tfmt.runs.records import RECORD_FILE, Record
from tfmt.runs.runner import Sources, bench_key
from tfmt.spec import RunSpec
from tfmt.study.cluster import Cluster, LostError, Node, Wish
from tfmt.study.hand import Kind, Process
from tfmt.study.parcels import fetch_run, list_reads, place_reads, send_run
from tfmt.study.pool import Tell, TellHung
from tfmt.study.worker import Ended
from tfmt.training.progress import Standing
from tfmt.words import counted

_SCOUT_SECONDS = 5.0  # between two looks at the cluster's machines
_HEAD_SECONDS = 20.0  # without an answer of the head, which then counts as gone; Ray ends this process after a minute
_LISTEN_SECONDS = 1.0  # that a hand listens in one call
_SILENT_SECONDS = 30.0  # without an answer of a hand that listens
_END_SECONDS = 330.0  # without an answer of a hand that ends its worker, which may have a checkpoint to write
_BUSY_SECONDS = 900.0  # without an answer of a hand that reads or writes files
_FULL_SECONDS = 30.0  # without a place that is there, of which a person is then told
_NOBODY_SECONDS = 600.0  # that a sweep waits for some machine, when none is left
_SIGHTS = 6  # looks of a machine for the file that shows whether it shares the disk; network disks are late
_SIGHT_SECONDS = 0.5
_LOSSES = 3  # of places and runs in a row, without a run that ended; then the machine is at fault


class _ClosingError(Exception):
    """The sweep ends."""


@dataclass(frozen=True)
class _Job:
    """A run that a place is to do; see `Pool.submit`."""

    spec: RunSpec
    sources: Sources
    folders: tuple[Path, ...]
    fresh: bool
    until: int | None


@dataclass
class _Seat:
    """A place, and the thread that talks to it.

    Attributes:
      number: the worker's.
      node: its machine.
      after: the worker of the place before, which may still be ending.
      since: when it was made, by the monotonic clock.
      ready: its actor lives.
      busy: it has a run.
      warm: its worker's process has had one.
      proven: it has brought one to an end.
      process: its worker's.
    """

    number: int
    node: Node
    after: Process | None = None
    jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    busy: bool = False
    warm: bool = False
    proven: bool = False
    process: Process | None = None


class RayPool:
    """The machines of a Ray cluster as workers; see `Pool`.

    Args:
      cluster: the connection.
      wish: what each run has.
      most: how many runs at once; 0 is as many as there is room for.
      output_dir: the folder of the runs' folders, on this machine.
      verbosity: from 1 on libraries may talk, in the machines' logs.
      tell, tell_hung: as of `ProcessPool`.
      say: takes a line for people.
    """

    renews = True

    def __init__(
        self, cluster: Cluster, wish: Wish, most: int, output_dir: Path, verbosity: int, tell: Tell,
        tell_hung: TellHung, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._cluster, self._wish, self._most, self._verbosity = cluster, wish, most, verbosity
        self._output_dir = output_dir.absolute()
        self._tell, self._tell_hung, self._say = tell, tell_hung, say
        self._seats: dict[int, _Seat] = {}
        self._names: list[str] = []  # of the machine of every place that there was
        self._refused: dict[str, str] = {}  # machines by Ray's number, and why nothing is computed there
        self._losses: Counter[str] = Counter()
        self._orphans: dict[str, list[Process]] = {}
        self._shared: dict[str, bool] = {}
        self._events: queue.SimpleQueue[Callable[[], list[tuple[int, Ended]]]] = queue.SimpleQueue()
        self._closing, self._wake = threading.Event(), threading.Event()
        self._kind = Kind.here()
        self._fault: RunError | None = None
        self._last_there, self._told_full = time.monotonic(), False
        secret = secrets.token_hex(8)
        self._sign, self._secret = self._output_dir / f".probe.{secret}", secret
        self._token = hashlib.sha256(f"{socket.gethostname()} {self._output_dir}".encode()).hexdigest()[:16]
        try:
            self._sign.write_text(secret)
        except OSError as error:
            raise UnwritableError.of(self._sign, error) from None
        self._nodes = cluster.nodes()
        self._fill(self._nodes)
        self._scout = threading.Thread(target=self._look_around, daemon=True)
        self._scout.start()

    # ---- what a sweep asks -----------------------------------------------------------------------------------------

    def workers(self) -> Sequence[int]:
        """The places that are there by now."""
        return [number for number, seat in self._seats.items() if seat.ready and seat.node.node_id not in self._refused]

    def where(self, worker: int) -> str:
        """The machine's name."""
        return self._names[worker]

    def submit(
        self, worker: int, spec: RunSpec, sources: Sources, folders: Sequence[Path] = (), *, fresh: bool = False,
        until: int | None = None,
    ) -> bool:  # fmt: skip
        """Hands a run to the thread of a place."""
        seat = self._seats[worker]
        first = fresh or not seat.warm
        seat.busy = seat.warm = True
        seat.jobs.put(_Job(spec, sources, tuple(folders), fresh, until))
        return first

    def wait_for_any(self, seconds: float) -> list[tuple[int, Ended]]:
        """Waits for what some place tells, or for another place.

        Raises:
          RunError: the head is gone, or every machine has been for long.
        """
        found: list[tuple[int, Ended]] = []
        with contextlib.suppress(queue.Empty):
            found += self._events.get(timeout=seconds)() if seconds else self._events.get_nowait()()
            while True:
                found += self._events.get_nowait()()
        if self._fault is not None and not found:
            raise self._fault
        return found

    def close(self) -> None:
        """Ends all places: at once where they are idle, else after the step that they are at."""
        self._closing.set()
        self._wake.set()
        busy = sum(seat.busy for seat in self._seats.values())
        if busy:
            print(f"tfmt-sweep: waits for the checkpoints of {counted(busy, 'run')}", file=sys.stderr, flush=True)
        for seat in self._seats.values():
            seat.jobs.put(None)
        for seat in self._seats.values():
            if seat.thread is not None:
                seat.thread.join()
        with contextlib.suppress(OSError):
            self._sign.unlink(missing_ok=True)

    # ---- machines --------------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Looks for machines that come and go, and whether the head is there; a thread of its own, as it may hang."""
        answered = time.monotonic()
        while not self._closing.is_set():
            self._wake.wait(_SCOUT_SECONDS)
            self._wake.clear()
            now = time.monotonic()
            if self._cluster.answers():
                answered = now
                try:
                    nodes = self._cluster.nodes()
                except RunError as error:
                    self._note_apart(error)
                    return
                except Exception:  # the head is busy: it is asked again
                    continue
                self._events.put(lambda nodes=nodes: self._note_nodes(nodes))  # type: ignore[misc]
            elif now - answered > _HEAD_SECONDS:
                self._note_apart(RunError(
                    f"the cluster's head at {self._cluster.address} no longer answers; start it and run the same "
                    "command again"
                ))  # fmt: skip
                return

    def _note_nodes(self, nodes: list[Node]) -> list[tuple[int, Ended]]:
        known = {node.node_id for node in self._nodes}
        living = {node.node_id for node in nodes}
        for node in self._nodes:
            if node.node_id not in living:
                self._say(f"{node.name} has left the cluster")
                for seat in [seat for seat in self._seats.values() if seat.node == node and not seat.busy]:
                    self._dismiss(seat)
        for node in nodes:
            if node.node_id not in known:
                self._say(f"{node.name} has joined the cluster")
        self._nodes = nodes
        self._fill(nodes)
        passed = time.monotonic() - self._last_there
        if self.workers():
            self._last_there, self._told_full = time.monotonic(), False
        elif self._seats:
            if passed > _FULL_SECONDS and not self._told_full:
                self._told_full = True
                self._say(
                    f"waits for room: other work has the cluster, or its {counted(len(nodes), 'machine')} starts up"
                )
        elif passed > _NOBODY_SECONDS:
            self._fault = RunError(
                f"no machine of the cluster is left to compute on ({self._tell_refused() or 'all have gone'}); run the "
                "same command again"
            )
        return []

    def _tell_refused(self) -> str:
        return "; ".join(self._refused.values())

    def _note_apart(self, fault: RunError) -> None:
        """Has the sweep end, as it is not in the cluster any more."""

        def note() -> list[tuple[int, Ended]]:
            self._fault = fault
            return []

        self._events.put(note)

    def _fill(self, nodes: Iterable[Node]) -> None:
        """Makes places where machines have room for more, one on each in turn."""
        there = Counter(seat.node.node_id for seat in self._seats.values())
        more = [
            (number, node)
            for node in nodes
            if node.node_id not in self._refused
            for number in range(there[node.node_id], self._wish.places(node))
        ]
        for _, node in sorted(more, key=lambda each: each[0]):
            # A machine that other work has is not waited for where another one may have room.
            now = time.monotonic()
            making = sum(seat.ready or now - seat.since < _FULL_SECONDS for seat in self._seats.values())
            if self._most and making >= self._most:
                return
            orphans = self._orphans.get(node.node_id)
            seat = _Seat(len(self._names), node, orphans.pop() if orphans else None)
            self._names.append(node.name)
            self._seats[seat.number] = seat
            seat.thread = threading.Thread(target=self._attend, args=(seat,), daemon=True)
            seat.thread.start()

    def _refuse(self, node: Node, why: str) -> None:
        if node.node_id not in self._refused:
            self._refused[node.node_id] = f"{node.name}: {why}"
            self._say(f"nothing is computed on {node.name}: {why}")
        if {other.node_id for other in self._nodes if self._wish.places(other)} <= self._refused.keys():
            self._fault = RunError(f"no machine of the cluster can compute this sweep: {self._tell_refused()}")

    # ---- the thread of a place -------------------------------------------------------------------------------------

    def _attend(self, seat: _Seat) -> None:
        """Makes an actor, does what comes, and takes leave."""
        actor = None
        try:
            actor = self._cluster.make_hand(seat.node, self._wish, self._verbosity, seat.after)
            if not self._welcome(seat, actor):
                return
            talk = _Talk(self, seat, actor)
            while (job := seat.jobs.get()) is not None:
                ended = talk.do(job)
                self._events.put(lambda ended=ended: self._note_ended(seat, ended))  # type: ignore[misc]
            with contextlib.suppress(Exception):
                self._cluster.ask(actor, _END_SECONDS, "end")
        except _ClosingError:
            pass
        except LostError as error:
            note, told = self._note_unfit if error.unfit else self._note_lost, str(error)
            self._events.put(lambda: note(seat, told))
        except Exception as error:  # of tfmt's own making: told as what ended the run, and never swallowed
            told = f"{type(error).__name__}: {error}"
            self._events.put(lambda: self._note_lost(seat, told))
        finally:
            if actor is not None:
                self._cluster.kill(actor)

    def _welcome(self, seat: _Seat, actor: Any) -> bool:
        """Whether a machine computes as this one does; waits until it has room for the actor."""
        greeting = actor.greet.remote()
        while (kind := self._cluster.wait_for(greeting, _LISTEN_SECONDS)) is None:
            if self._closing.is_set():
                return False
        if why := self._kind.tell_difference(kind):
            self._events.put(lambda: self._note_unfit(seat, why))
            return False
        if seat.node.node_id not in self._shared:
            self._shared[seat.node.node_id] = self._is_shared(actor)
        self._events.put(lambda: self._note_ready(seat))
        return True

    def _is_shared(self, actor: Any) -> bool:
        for look in range(_SIGHTS):
            if look:
                time.sleep(_SIGHT_SECONDS)
            if self._cluster.ask(actor, _BUSY_SECONDS, "shelf", "sees", str(self._sign), self._secret):
                return True
        return False

    # ---- what places tell, in the sweep's thread -------------------------------------------------------------------

    def _note_ready(self, seat: _Seat) -> list[tuple[int, Ended]]:
        if self._most and len(self.workers()) >= self._most:  # others were faster
            self._dismiss(seat)
        else:
            seat.ready = True
        return []

    def _dismiss(self, seat: _Seat) -> None:
        """Gives up a place that is idle."""
        self._seats.pop(seat.number, None)
        seat.jobs.put(None)

    def _note_unfit(self, seat: _Seat, why: str) -> list[tuple[int, Ended]]:
        self._seats.pop(seat.number, None)
        self._refuse(seat.node, why)
        return []

    def _note_ended(self, seat: _Seat, ended: Ended) -> list[tuple[int, Ended]]:
        seat.busy = False
        seat.warm = seat.warm and not ended.unexpected
        if ended.status != "hindered":
            self._losses[seat.node.node_id] = 0
            seat.proven = True
        elif not ended.unexpected:  # as by its disk; what ended a process may be the run's own doing
            self._count_loss(seat.node, ended.error)
        return [(seat.number, ended)]

    def _count_loss(self, node: Node, why: str) -> None:
        self._losses[node.node_id] += 1
        if self._losses[node.node_id] == _LOSSES and node in self._nodes:  # else it is gone anyway
            self._refuse(node, f"{_LOSSES} times in a row something went wrong there, the last time: {why}")

    def _note_lost(self, seat: _Seat, why: str) -> list[tuple[int, Ended]]:
        """A place is gone; its run goes elsewhere, and bears no blame."""
        self._seats.pop(seat.number, None)
        if seat.ready:
            self._wake.set()
        if (orphan := seat.process or seat.after) is not None:
            self._orphans.setdefault(seat.node.node_id, []).append(orphan)
        if not seat.proven:
            self._count_loss(seat.node, f"a place was lost ({why})")
        logging.getLogger("ray").error("tfmt: a place on %s is lost: %s", seat.node.name, why)
        if not seat.busy:
            return []
        return [(seat.number, Ended("hindered", error=f"its place was lost, as {why}", unexpected=True))]


class _Talk:
    """What the thread of a place says to its hand; all of it blocks."""

    def __init__(self, pool: RayPool, seat: _Seat, actor: Any) -> None:
        self._pool, self._seat, self._actor = pool, seat, actor
        self._shared = pool._shared[seat.node.node_id]
        self._placed: dict[tuple[Any, ...], dict[str, str]] = {}  # by what runs read: where it lies there

    def do(self, job: _Job) -> Ended:
        """Has a run executed."""
        try:
            with self._holding(job) as check:
                return self._do(job, check)
        except TakenError as error:
            return Ended("taken", error=str(error))
        except UnwritableError as error:
            return Ended("stop" if error.disk_full else "hindered", error=str(error))
        except SurroundingsError as error:
            return Ended("hindered", error=str(error))
        except RequestError as error:
            return Ended("failed", error=str(error))

    @contextlib.contextmanager
    def _holding(self, job: _Job) -> Iterator[Callable[[], None]]:
        """Holds the run's lease where its worker, which sees another disk, cannot."""
        if self._shared:
            yield lambda: None
            return
        folder = job.folders[0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableError.of(folder, error) from None
        with Lease(folder, self._seat.node.name) as lease:
            yield lease.check

    def _do(self, job: _Job, check: Callable[[], None]) -> Ended:
        sources = job.sources.at(self._place(job))
        folder, needed = job.folders[0], job.folders[1:]
        if self._shared:
            output_dir = str(self._pool._output_dir)
        else:
            for each in (folder, *(full for full in needed if exists(full / RECORD_FILE))):
                send_run(self._call, self._pool._token, each)
            output_dir = str(Path(self._call("folder_of", self._pool._token, "x")).parent)
        _, self._seat.process = self._ask(
            "begin", output_dir, job.spec.to_json(), sources.to_json(), job.fresh, job.until, seconds=_END_SECONDS
        )
        try:
            ended = self._listen(job, check)
        except (RequestError, RunError):  # the run goes elsewhere, or waits: it must not go on here
            self._ask("end", seconds=_END_SECONDS)
            self._seat.warm = False
            raise
        if not self._shared:
            self._bring(folder, check, checkpoint=False)
            for full in needed:
                self._bring_full(full)
            self._call("drop_run", self._pool._token, folder.name)
        # A disk that is full there is not so elsewhere, and what is not recorded is no result of the run.
        if ended.status == "stop" and not (self._shared and str(self._pool._output_dir) in ended.error):
            return Ended("hindered", error=ended.error)
        if ended.status == "failed" and not exists(folder / RECORD_FILE):
            return Ended("hindered", error=ended.error)
        return ended

    def _place(self, job: _Job) -> dict[str, str]:
        """Sees to it that the machine has what a run reads; where it lies there."""
        spec = job.spec
        key = (*bench_key(spec), spec.fisher_from, spec.select)
        if key not in self._placed:
            self._placed[key] = place_reads(self._call, list_reads(spec, job.sources))
        return self._placed[key]

    def _listen(self, job: _Job, check: Callable[[], None]) -> Ended:
        pool, epoch = self._pool, -1  # what a run has at its start tells others of it
        while True:
            if pool._closing.is_set():
                self._leave(job, check)
            told, found = self._ask("listen", _LISTEN_SECONDS, seconds=_LISTEN_SECONDS + _SILENT_SECONDS)
            for each in told:
                pool._events.put(lambda each=each: self._pass_on(each))  # type: ignore[misc]
            if found is not None:
                ended, record = found
                return Ended(
                    ended.status, Record.model_validate_json(record) if record else None, ended.error,
                    ended.unexpected, ended.cause,
                )  # fmt: skip
            timed = max((each.timed for each in told if isinstance(each, Standing)), default=epoch)
            if timed > epoch and not self._shared:
                self._bring(job.folders[0], check, checkpoint=True)
            epoch = max(epoch, timed)

    def _pass_on(self, told: Standing | float) -> list[tuple[int, Ended]]:
        if self._seat.busy:
            if isinstance(told, Standing):
                self._pool._tell(self._seat.number, told)
            else:
                self._pool._tell_hung(self._seat.number, told)
        return []

    def _leave(self, job: _Job, check: Callable[[], None]) -> None:
        """Ends the worker, which writes its checkpoint, and takes that along."""
        self._ask("end", seconds=_END_SECONDS)
        if not self._shared:  # it may have come to its end
            self._bring(job.folders[0], check, checkpoint=False)
        raise _ClosingError

    def _bring(self, folder: Path, check: Callable[[], None], *, checkpoint: bool) -> None:
        fetch_run(
            self._calling(closing=True), self._pool._token, folder.name, folder, checkpoint=checkpoint, check=check
        )

    def _bring_full(self, folder: Path) -> None:
        """Brings a full run that the worker has made by the way, where nobody else has."""
        if exists(folder / RECORD_FILE) or not self._call("snapshot", self._pool._token, folder.name, False):
            return
        with contextlib.suppress(TakenError):
            folder.mkdir(parents=True, exist_ok=True)
            with Lease(folder, self._seat.node.name) as lease:
                self._bring(folder, lease.check, checkpoint=False)

    def _ask(self, method: str, *arguments: Any, seconds: float = _BUSY_SECONDS) -> Any:
        return self._pool._cluster.ask(self._actor, seconds, method, *arguments)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Calls the shelf, unless the sweep ends."""
        return self._calling()(name, *arguments)

    def _calling(self, *, closing: bool = False) -> Callable[..., Any]:
        """Calls the shelf.

        Args:
          closing: also while the sweep ends.
        """

        def call(name: str, *arguments: Any) -> Any:
            if not closing and self._pool._closing.is_set():
                raise _ClosingError
            try:
                return self._ask("shelf", name, *arguments)
            except UnwritableError as error:  # which says nothing of this machine's disk
                raise SurroundingsError(str(error)) from None

        return call
