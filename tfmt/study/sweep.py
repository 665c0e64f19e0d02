"""A study's runs, one after another or side by side, each once, whatever happens to some of them."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmt.errors import RequestError, RequestWarning, RunError
from tfmt.files import UnwritableError
from tfmt.runs.folder import UnkeptError, check_kept, tell_other_model
from tfmt.runs.lease import is_held
from tfmt.runs.records import RECORD_FILE, read_record
from tfmt.runs.runner import Request, Sources, bench_key, prepare, record_failure
from tfmt.spec import RunSpec
from tfmt.study.board import Board
from tfmt.study.grid import Grid, HeldOutUnion
from tfmt.study.places import Place, share_places, visible_cores, visible_gpus
from tfmt.study.pool import OwnProcess, Pool, ProcessPool
from tfmt.study.times import Times
from tfmt.study.worker import Ended
from tfmt.training.progress import Standing
from tfmt.words import counted

RESUMPTIONS = 3  # how often a run is taken up again after its process died
UNEXPECTED_RUNS = 3  # in a row, that no error of tfmt's own ended; then the machine is at fault and not the runs
_POLL_SECONDS = 1.0  # between looks at runs that another sweep holds


def shape_key(spec: RunSpec) -> tuple[Any, ...]:
    """Equal for runs on one workbench that can share the traced step."""
    return (spec.mode, spec.layers, spec.mask_size, spec.mask_fraction, spec.outlier_pool, spec.fisher_from,
            spec.adam_epsilon, spec.frozen_prefix)  # fmt: skip


@dataclass(eq=False)
class Item:
    """A run of the sweep that is not done.

    Attributes:
      spec: what to do.
      folder: where its files go.
      seconds: how long it will take, None if no like run has been timed.
      deaths: processes that died over it.
      standing: where it stands, if it is in progress and has told so.
    """

    spec: RunSpec
    folder: Path
    seconds: float | None = None
    deaths: int = 0
    standing: Standing | None = None
    bench: tuple[Any, ...] = field(init=False)
    shape: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.bench, self.shape = bench_key(self.spec), shape_key(self.spec)


def choose(waiting: list[Item], last: Item | None, busy: set[tuple[Any, ...]]) -> Item:
    """The run that a process should do next.

    It goes on with what is traced, then with what is loaded, then with the workbench that has most work left and that
    no other process has; within these the longest run comes first, so that no long one is left for the end.

    Args:
      waiting: the runs to choose from, in the order of the grid; not empty.
      last: what the process did last.
      busy: workbenches of the other processes.
    """
    left: dict[tuple[Any, ...], float] = {}
    for item in waiting:
        left[item.bench] = left.get(item.bench, 0.0) + (item.seconds or 0.0)

    def rank(pair: tuple[int, Item]) -> tuple[Any, ...]:
        index, item = pair
        loaded = last is not None and item.bench == last.bench
        traced = loaded and last is not None and item.shape == last.shape
        return not loaded, not traced, item.bench in busy, -left[item.bench], -(item.seconds or 0.0), index

    return min(enumerate(waiting), key=rank)[1]


class Sweep:
    """All runs of a grid below one folder.

    Args:
      grid: the runs.
      output_dir: the folder of the runs' folders.
      retry_failed: run those again that a record calls failed.
      verbosity: from 1 on every run is told of, and libraries may talk.

    Raises:
      RequestError: some run's model or data cannot be had, or the folder cannot be written. Nothing has been run.
    """

    def __init__(self, grid: Grid, output_dir: str | Path, *, retry_failed: bool = False, verbosity: int = 0) -> None:
        self.output_dir = Path(output_dir)
        self._retry, self._verbosity = retry_failed, verbosity
        _check_writable(self.output_dir)
        self.failures: dict[str, str] = {}
        self._waiting: list[Item] = []
        self._held: list[Item] = []
        self._doing: dict[int, Item] = {}
        self._workers = 1
        self._folders: dict[RunSpec, Path] = {}
        self._sources: dict[tuple[Any, ...], Sources] = {}  # by workbench: found once, whatever becomes of the hub
        self._ended: dict[RunSpec, str] = {}
        self._unexpected = 0  # runs since the last success
        self._unions = list(grid.unions)
        self.times = Times()
        self.board = Board(len(grid), verbosity)
        request: Request | None = None
        told = ""
        for spec in sorted(grid.runs, key=lambda spec: repr(bench_key(spec))):  # each task's text is read once
            request = prepare(spec, output_dir, request)
            self._folders[spec] = request.folder
            self._sources[bench_key(spec)] = request.sources
            if not told and not request.folder.exists() and (told := tell_other_model(request)):
                warnings.warn(f"{told}; so it may be with other runs", RequestWarning, stacklevel=2)
        self._check_kept()
        for spec in grid.runs:
            self._admit(Item(spec, self._folders[spec]))
        self._release_unions()

    def run(self, workers: int = 1) -> None:
        """Runs what is not done.

        Args:
          workers: processes; 0 runs everything in this one.

        Raises:
          RequestError: a run wants more replicas than a worker has GPUs. Nothing has been run.
          RunError: the folder can no longer be written, or several runs in a row met something unexpected, as all
            others would. Failed runs are in `failures`.
        """
        places = share_places(workers, visible_gpus(), visible_cores())
        self._check_replicas(places)
        with self.board:
            self._workers = max(workers, 1)
            self._show()
            if workers:
                self._run_on(ProcessPool(places, self.output_dir, self._verbosity, self._note_standing))
            else:
                self._run_on(OwnProcess(self.output_dir, self._verbosity, self._note_standing))

    def _check_replicas(self, places: list[Place]) -> None:
        wanted = max((spec.replicas for spec in self._folders), default=0)
        for place in places:
            for spec in self._folders:
                if place.gpus and not spec.replicas and spec.batch_size % len(place.gpus):
                    raise RequestError(
                        f"--batch_size={spec.batch_size}: with --workers={len(places)} a worker has "
                        f"{counted(len(place.gpus), 'GPU')}, which share a batch evenly; give --replicas"
                    )
            if place.gpus is not None and wanted > len(place.gpus):
                raise RequestError(
                    f"--replicas={wanted}: with --workers={len(places)} a worker has "
                    f"{counted(len(place.gpus), 'GPU')}; take fewer workers or replicas"
                )

    def _check_kept(self) -> None:
        """Refuses to ask for weights that earlier runs did not keep, before other runs take their time."""
        lacking = []
        for spec, folder in self._folders.items():
            if (folder / RECORD_FILE).exists():
                try:
                    check_kept(spec, read_record(folder), folder)
                except UnkeptError as error:
                    lacking.append(str(error))
                except RequestError:
                    continue  # a damaged record is told of with the failed runs
        if lacking:
            others = f" ({counted(len(lacking) - 1, 'other run')} likewise)" if len(lacking) > 1 else ""
            raise RequestError(lacking[0] + others)

    # ---- what is to do ---------------------------------------------------------------------------------------------

    def _admit(self, item: Item) -> None:
        """Books a run that has ended before; lets the others wait."""
        if not self._book_stored(item):
            self._waiting.append(item)

    def _book_stored(self, item: Item) -> bool:
        """Books a run whose record is there, whoever wrote it; False if it has still to be run."""
        if not (item.folder / RECORD_FILE).exists():
            return False
        try:
            record = read_record(item.folder)
        except RequestError as error:  # not written by this version, or damaged; only its owner may delete it
            self._book(item, Ended("failed", error=str(error)), stored=True)
            return True
        if record.status == "failed" and self._retry:
            return False
        try:
            check_kept(item.spec, record, item.folder)
        except UnkeptError as error:  # another sweep was faster and keeps less
            self._book(item, Ended("failed", error=str(error)), stored=True)
            return True
        self._book(item, Ended(record.status, record, record.error or ""), stored=True)
        return True

    def _book(self, item: Item, ended: Ended, *, stored: bool = False) -> None:
        self._ended[item.spec] = ended.status
        if ended.status == "failed":
            self.failures[item.folder.name] = (ended.error.splitlines() or [""])[0]
        if ended.record is not None:
            self.times.add(ended.record)
        self.board.book(item.spec, item.folder.name, ended, stored=stored)

    def _release_unions(self) -> None:
        """Lets those union runs wait whose masks are all there."""
        for union in [union for union in self._unions if all(source in self._ended for source in union.sources)]:
            self._unions.remove(union)
            try:
                spec = union.spec(lambda source: self._folders[source])
                item = Item(spec, prepare(spec, self.output_dir, sources=self._sources[bench_key(spec)]).folder)
            except (RequestError, RunError) as error:
                self._book_lost(union, str(error))
                continue
            self._admit(item)

    def _book_lost(self, union: HeldOutUnion, error: str) -> None:
        label = f"{union.own.label()} (union)"
        self.failures[label] = error
        self.board.book(union.own, label, Ended("failed", error=error))

    def _next(self, last: Item | None, busy: set[tuple[Any, ...]]) -> Item | None:
        """A run that this process may start now."""
        held, self._held = self._held, []
        for item in held:
            if not self._book_stored(item):
                (self._held if is_held(item.folder) else self._waiting).append(item)
        self._release_unions()  # another sweep may have ended what they wait for
        while self._waiting:
            for item in self._waiting:
                item.seconds = self.times.estimate(item.spec)
            item = choose(self._waiting, last, busy)
            self._waiting.remove(item)
            if self._book_stored(item):  # another sweep was faster
                self._release_unions()
            elif item.folder.exists() and is_held(item.folder):
                self._held.append(item)
            else:
                return item
        return None

    def _close(self, item: Item, ended: Ended) -> None:
        """Books how a run ended, or lets it wait if another process has it."""
        if ended.status == "stop":
            raise UnwritableError(ended.error)
        if ended.status == "taken":
            self._held.append(item)
            return
        self._book(item, ended)
        self._release_unions()
        if ended.unexpected:
            self._unexpected += 1
            if self._unexpected == UNEXPECTED_RUNS:
                raise RunError(
                    f"{self._unexpected} runs in a row met what no run should, the last of them {ended.error!r}; "
                    f"left as before: {counted(self.board.total - self.board.done, 'run')}; see to it, then run the "
                    "same command again with --retry_failed"
                )
        elif ended.status != "failed":
            self._unexpected = 0

    def _seconds_left(self) -> float | None:
        """Seconds until all is done, None if no like epoch has been timed; runs that cannot be judged are as others."""
        open_specs = [item.spec for item in self._waiting] + [union.own for union in self._unions]
        shares = [1.0] * len(open_specs)
        for item in self._doing.values():
            open_specs.append(item.spec)
            shares.append(1 - item.standing.step / item.standing.steps if item.standing else 1.0)
        seconds = list(map(self.times.estimate, open_specs))
        known = [second for second in seconds if second is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        left = [share * (mean if second is None else second) for share, second in zip(shares, seconds, strict=True)]
        return max(sum(left) / self._workers, max(left))  # no run is shared by workers

    def _show(self) -> None:
        self.board.show([(item.spec, item.standing) for item in self._doing.values()], self._seconds_left())

    def _note_standing(self, worker: int, standing: Standing) -> None:
        """Takes what a worker tells of its run."""
        item = self._doing[worker]
        item.standing = standing
        self.times.note(item.spec, standing)
        self._show()

    # ---- doing it --------------------------------------------------------------------------------------------------

    def _run_on(self, pool: Pool) -> None:
        doing = self._doing
        loaded: dict[int, Item] = {}  # what a worker did last, whose workbench it still has
        try:
            while True:
                self._hand_out(pool, doing, loaded)
                if not doing and not self._held:
                    return
                self._show()
                if not doing:
                    time.sleep(_POLL_SECONDS)
                    continue
                for worker, ended in pool.wait_for_any(_POLL_SECONDS):
                    item = doing.pop(worker)
                    item.standing = None
                    self.times.forget(item.spec)
                    if ended is None or ended.unexpected:
                        del loaded[worker]
                    if ended is None:
                        self._note_death(item, pool.died_of(worker))
                    else:
                        self._close(item, ended)
        finally:
            pool.close()

    def _hand_out(self, pool: Pool, doing: dict[int, Item], loaded: dict[int, Item]) -> None:
        for worker in range(len(pool)):
            if worker not in doing:
                busy = {item.bench for other, item in loaded.items() if other != worker}
                item = self._next(loaded.get(worker), busy)
                if item is None:
                    return
                doing[worker] = loaded[worker] = item
                pool.submit(worker, item.spec, self._sources[item.bench])

    def _note_death(self, item: Item, cause: str) -> None:
        """Lets a run wait again whose process died; after too many deaths it has failed."""
        item.deaths += 1
        if item.deaths <= RESUMPTIONS:
            self._waiting.append(item)
            return
        message = f"its process died {item.deaths} times ({cause}); is there enough memory?"
        with contextlib.suppress(RequestError, RunError):
            record_failure(prepare(item.spec, self.output_dir, sources=self._sources[item.bench]), message)
        self._close(item, Ended("failed", error=message, unexpected=True))


def _check_writable(output_dir: Path) -> None:
    probe = output_dir / f".probe.{os.getpid()}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # a sweep of the same number in another container may have been here
    except OSError as error:
        raise RequestError(f"--output_dir: {output_dir} cannot be written ({error.strerror})") from None
