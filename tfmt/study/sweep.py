"""A study's runs, one after another or side by side, each once, whatever happens to some of them."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfmt.errors import RequestError, RequestWarning, RunError, SurroundingsError
from tfmt.files import UnreadableError, UnwritableError, check_output, exists
from tfmt.runs.folder import UnkeptError, check_kept, drop_paused, tell_other_model, tidy_finished
from tfmt.runs.lease import disk_clock, is_held, time_to_look
from tfmt.runs.paused import PAUSED_FILE, read_paused
from tfmt.runs.records import RECORD_FILE, read_record
from tfmt.runs.runner import Request, Sources, bench_key, prepare, record_failure
from tfmt.spec import RunSpec
from tfmt.study.board import Board, Running
from tfmt.study.grid import Grid, HeldOutUnion
from tfmt.study.places import Place, share_places, visible_cores, visible_gpus
from tfmt.study.pool import OwnProcess, Pool, ProcessPool, Tell, TellHung
from tfmt.study.search import Course, Search, Slot
from tfmt.study.shards import Shard, shape_key, share_slots
from tfmt.study.times import Times, format_seconds
from tfmt.study.worker import Ended
from tfmt.training.progress import Standing
from tfmt.words import counted

# Makes workers of: the folder of the runs' folders, verbosity, whom to tell where runs stand and of those that give no
# sign any more, and who takes a line for people.
MakePool = Callable[[Path, int, Tell, TellHung, Callable[[str], None]], Pool]
TRIES = 4  # of a run in one sweep, whatever ends them
UNEXPECTED_RUNS = 3  # in a row, that no error of tfmt's own ended; then the machine is at fault and not the runs
_POLL_SECONDS = 1.0  # between looks at what this sweep's own workers do, and before another try at a folder


@dataclass(eq=False)
class Item:
    """A run of the sweep that is not done.

    Attributes:
      spec: what to do.
      folder: where its files go.
      union: the union of the grid that it is, if it is one.
      until: after how many of its epochs it stops for now.
      out: it is not gone on with, as others are better.
      seconds: how long that will take, None if no like run has been timed.
      tries: how often its surroundings ended it.
      deaths: of what processes died, or met something unexpected, whose first run it was.
      suspect: it may be what ended its process; so the next one is its own.
      fresh: it is the first run of the process that it is in.
      share: whose it is, of the sweeps that share the grid, and how far behind in the order of the shares.
      standing: where it stands, if it is in progress and has told so.
      where: the machine that it is on, if it is in progress on another one.
    """

    spec: RunSpec
    folder: Path
    union: HeldOutUnion | None = None
    until: int = 0
    out: bool = False
    seconds: float | None = None
    tries: int = 0
    deaths: set[str] = field(default_factory=set)
    suspect: bool = False
    fresh: bool = False
    share: tuple[int, int] = (0, 0)
    standing: Standing | None = None
    where: str = ""
    bench: tuple[Any, ...] = field(init=False)
    shape: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.bench, self.shape = bench_key(self.spec), shape_key(self.spec)

    @property
    def slot(self) -> Slot:
        """What the grid asked for."""
        return self.union or self.spec


def choose(waiting: list[Item], last: Item | None, busy: set[tuple[Any, ...]], share: int = 0) -> Item:
    """The run that a process should do next.

    It goes on with what is traced, then with what is loaded, then with the workbench that has most work left and that
    no other process has; within these the longest run comes first, so that no long one is left for the end. A run that
    needs a process of its own goes to one that has nothing loaded yet.

    All this of the runs of its own share. Without any it helps with the share in which most work is left, and stays
    there: from the end on, so that it meets its owner late.

    Args:
      waiting: the runs to choose from, in the order of the grid; not empty.
      last: what the process did last.
      busy: workbenches of the other processes.
      share: the process's own.
    """
    placed = [item for item in waiting if item.suspect == (last is None)] or waiting
    own = [(index, item) for index, item in enumerate(placed) if item.share[0] == share]
    if not own:
        return _choose_to_help(placed, last)
    left: dict[tuple[Any, ...], float] = {}
    for _, item in own:
        left[item.bench] = left.get(item.bench, 0.0) + (item.seconds or 0.0)

    def rank(pair: tuple[int, Item]) -> tuple[Any, ...]:
        index, item = pair
        loaded = last is not None and item.bench == last.bench
        traced = loaded and last is not None and item.shape == last.shape
        return not loaded, not traced, item.bench in busy, -left[item.bench], -(item.seconds or 0.0), index

    return min(own, key=rank)[1]


def _choose_to_help(waiting: list[Item], last: Item | None) -> Item:
    """The last run of another share: of the one that the process helped before, or of that with most work left."""
    left: dict[int, tuple[float, int]] = {}
    for item in waiting:
        seconds, runs = left.get(item.share[0], (0.0, 0))
        left[item.share[0]] = seconds + (item.seconds or 0.0), runs + 1
    most = last.share[0] if last is not None and last.share[0] in left else max(left, key=left.__getitem__)
    return max((item for item in waiting if item.share[0] == most), key=lambda item: item.share)


class Sweep:
    """All runs of a grid below one folder.

    Args:
      grid: the runs.
      output_dir: the folder of the runs' folders.
      search: which of the runs are needed, see `study.search`.
      shard: which of the runs come first, as other sweeps do the others; see `study.shards`.
      leave: end where nothing is free, instead of waiting for runs that others hold.
      retry_failed: run those again that a record calls failed.
      verbosity: from 1 on every run is told of, and libraries may talk.

    Raises:
      RequestError: some run's model or data cannot be had, or the folder cannot be written. Nothing has been run.
    """

    def __init__(
        self, grid: Grid, output_dir: str | Path, *, search: str = "all", shard: Shard | None = None,
        leave: bool = False, retry_failed: bool = False, verbosity: int = 0,
    ) -> None:  # fmt: skip
        self.output_dir = Path(output_dir)
        self._retry, self._verbosity = retry_failed, verbosity
        check_output(self.output_dir / "run", "--output_dir", makes_folders=True)  # writes nothing
        self.failures: dict[str, str] = {}
        self.left: dict[str, str] = {}  # runs without a record that are not tried again: what they met last
        self._search = Search(grid, search)
        self._shard, self._leaves = shard or Shard(), leave
        shares = share_slots(grid, self._shard.count)
        self._shares = {slot: (share, place) for place, (slot, share) in enumerate(shares.items())}
        self._idle: dict[Slot, Item] = {}  # runs that have not ended and are not due: they wait for others, or are out
        self._waiting: list[Item] = []
        self._held: list[Item] = []  # others are at them, or at a full run that they compare with
        self._look_at = 0.0  # when these are looked at again
        self._news: set[Path] = set()  # folders of which this sweep's own workers have let go since
        self._booked: set[Path] = set()
        self._refused: list[Item] = []  # their folders cannot be read or written
        self._stop: RunError | None = None
        self._renews = False
        self._doing: dict[int, Item] = {}
        self._workers = 1
        self._folders: dict[RunSpec, Path] = {}
        self._needed: dict[RunSpec, tuple[Path, ...]] = {}  # folders of the full runs that a run compares with
        self._sources: dict[tuple[Any, ...], Sources] = {}  # by workbench: found once, whatever becomes of the hub
        self._ended: dict[RunSpec, str] = {}
        self._unexpected = self._recorded = 0  # runs since the last success, and those of them with a record
        self._unions = list(grid.unions)
        self.times = Times()
        self.board = Board(len(grid), verbosity)
        request: Request | None = None
        told = ""
        for spec in sorted(grid.runs, key=lambda spec: repr(bench_key(spec))):  # each task's text is read once
            request = prepare(spec, output_dir, request)
            self._folders[spec] = request.folder
            self._needed[spec] = tuple(full.folder for full in request.full_runs.values())
            self._sources[bench_key(spec)] = request.sources
            if not told and not request.folder.exists() and (told := tell_other_model(request)):
                warnings.warn(f"{told}; so it may be with other runs", RequestWarning, stacklevel=2)
        _check_writable(self.output_dir)  # by writing, so not before the request is known to be right
        self._check_kept()
        for spec in grid.runs:
            self._admit(Item(spec, self._folders[spec]))
        self._release()

    def run(self, workers: int = 1, make_pool: MakePool | None = None) -> None:
        """Runs what is not done.

        Args:
          workers: processes; 0 runs everything in this one.
          make_pool: gives other workers than these.

        Raises:
          RequestError: a run wants more replicas than a worker has GPUs. Nothing has been run.
          RunError: the folder can no longer be written, or several runs in a row met something unexpected, as all
            others would. Failed runs are in `failures`, those that their surroundings did not let end in `left`.
        """
        places = share_places(workers, visible_gpus(), visible_cores()) if make_pool is None else []
        self._check_replicas(places)
        with self.board:
            self._show()
            pool: Pool
            if make_pool is not None:
                pool = make_pool(
                    self.output_dir, self._verbosity, self._note_standing, self._note_hung, self.board.tell
                )
            elif workers:
                pool = ProcessPool(places, self.output_dir, self._verbosity, self._note_standing, self._note_hung)
            else:
                pool = OwnProcess(self.output_dir, self._verbosity, self._note_standing)
            self._renews = pool.renews
            self._run_on(pool)
        if self._stop is not None:
            raise self._stop
        for union in self._unions if not self._held else []:  # else it may be these that it waits for
            if self._search.granted(union):
                self._leave(f"{union.own.label()} (union)", "waits for the masks of runs that have no record")

    @property
    def held(self) -> int:
        """Runs that others were at when this sweep left."""
        return len(self._held)

    @property
    def awaiting(self) -> int:
        """Runs that were not due when this sweep left, as they wait for what others show."""
        return sum(not item.out for item in self._idle.values()) + sum(
            self._search.granted(union) is not None for union in self._unions
        )

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
            try:
                if spec.keep == "tuned" and exists(folder / RECORD_FILE):
                    check_kept(spec, read_record(folder), folder)
            except UnkeptError as error:
                lacking.append(str(error))
            except (RequestError, SurroundingsError):
                continue  # one that is damaged, or cannot be read now, is told of when its turn comes
        if lacking:
            others = f" ({counted(len(lacking) - 1, 'other run')} likewise)" if len(lacking) > 1 else ""
            raise RequestError(lacking[0] + others)

    # ---- what is to do ---------------------------------------------------------------------------------------------

    def _admit(self, item: Item) -> None:
        """Books a run that has ended before; the others are idle until they are due."""
        item.share = self._shares[item.slot]
        try:
            self._note_paused(item)
            done = self._book_stored(item)
        except UnreadableError:  # it may be readable when its turn comes
            done = False
        if not done:
            self._idle[item.slot] = item

    def _note_paused(self, item: Item) -> int:
        """Takes what a run has shown that waits, or did so before; after how many epochs.

        Raises:
          UnreadableError: what it says cannot be told now.
        """
        try:
            paused = read_paused(item.folder)
        except RequestError:  # damaged: the run makes it anew from its checkpoint
            return 0
        if paused is None:
            return 0
        self._search.note(item.slot, Course.of(paused.epochs, paused.score_name))
        self.times.note_paused(paused)
        return paused.epoch

    def _park(self, item: Item) -> bool:
        """Lets a run be idle that has come as far as it may, whoever took it there."""
        if self._note_paused(item) < item.until:
            return False
        self._idle[item.slot] = item
        return True

    def _release(self) -> None:
        """Lets those runs wait for a process that are due by now, and drops those that others have overtaken."""
        self._release_unions()
        for slot, item in list(self._idle.items()):
            until, done = self._search.granted(slot), self._search.course(slot).epochs
            if until is None and not item.out:
                item.out = True
                if drop_paused(item.folder):
                    self.board.note(f"{item.folder.name}: stopped after epoch {done}, as others are better")
            elif until is not None and until > done:
                item.until, item.out = until, False
                self._waiting.append(self._idle.pop(slot))
        begun = [item.out for slot, item in self._idle.items() if self._search.course(slot).epochs]
        out = sum(item.out for item in self._idle.values())
        self.board.stopped, self.board.paused = sum(begun), len(begun) - sum(begun)
        unions = sum(self._search.granted(union) is None for union in self._unions)
        self.board.spared = out - self.board.stopped + unions

    def _book_stored(self, item: Item) -> bool:
        """Books a run whose record is there, whoever wrote it; False if it has still to be run.

        Raises:
          UnreadableError: whether there is one, or what it says, cannot be told now.
        """
        if not exists(item.folder / RECORD_FILE):
            return False
        try:
            record = read_record(item.folder)
        except RequestError as error:  # not written by this version, or damaged; only its owner may delete it
            self._book(item, Ended("failed", error=str(error)), stored=True)
            return True
        if record.status == "failed" and self._retry:
            return False
        tidy_finished(item.folder, record)
        try:
            check_kept(item.spec, record, item.folder)
        except UnkeptError as error:  # another sweep was faster and keeps less
            self._book(item, Ended("failed", error=str(error)), stored=True)
            return True
        self._book(item, Ended(record.status, record, record.error or ""), stored=True)
        return True

    def _book(self, item: Item, ended: Ended, *, stored: bool = False) -> None:
        self._ended[item.spec] = ended.status
        self._booked.add(item.folder)
        result = ended.record.result if ended.record and ended.status != "failed" else None
        course = Course.of(result.epochs, result.score_name) if result else Course()
        self._search.note(item.slot, replace(course, ended=ended.status))
        if ended.status == "failed":
            self.failures[item.folder.name] = (ended.error.splitlines() or [""])[0]
        if ended.record is not None:
            self.times.add(ended.record)
        self.board.book(item.spec, item.folder.name, ended, stored=stored)

    def _release_unions(self) -> None:
        """Admits those union runs whose masks are all there."""
        for union in list(self._unions):
            sources = [run for run in map(self._find_mask, union.sources) if run is not None]
            if len(sources) < len(union.sources):
                continue
            self._unions.remove(union)
            try:
                spec = replace(union, sources=tuple(sources)).spec(lambda source: self._folders[source])
                folder = prepare(spec, self.output_dir, sources=self._sources[bench_key(spec)]).folder
                item = Item(spec, folder, union)
            except SurroundingsError as error:
                self._leave(f"{union.own.label()} (union)", str(error))
                continue
            except (RequestError, RunError) as error:
                self._book_lost(union, str(error))
                continue
            self._admit(item)

    def _find_mask(self, source: RunSpec) -> RunSpec | None:
        """The run that has the mask of one of a union's sources; None while there is none.

        A mask is chosen before tuning starts, so runs that differ in their rate alone have the same. Where a search may
        leave the lowest rate out, the lowest that came to its end serves.
        """
        if self._search.way == "all":
            return source if source in self._ended else None
        ended = [run for run in self._search.like(source) if run in self._ended]
        masked = [run for run in ended if self._ended[run] != "failed"]
        if not masked and not self._search.settled(source):
            return None
        return next(iter(masked or ended), None)

    def _book_lost(self, union: HeldOutUnion, error: str) -> None:
        label = f"{union.own.label()} (union)"
        self._search.note(union, Course(ended="failed"))
        self.failures[label] = error
        self.board.book(union.own, label, Ended("failed", error=error))

    def _next(self, last: Item | None, busy: set[tuple[Any, ...]]) -> Item | None:
        """A run that this process may start now."""
        self._look_at_held()
        self._release()  # another sweep may have ended what they wait for
        clock = disk_clock(self.output_dir)
        while self._waiting:
            for item in self._waiting:
                seconds = self.times.estimate(item.spec)
                item.seconds = None if seconds is None else seconds * self._share_left(item)
            item = choose(self._waiting, last, busy, self._shard.index)
            self._waiting.remove(item)
            if self._is_open(item, clock):
                return item
            self._release()
        return None

    def _look_at_held(self, *, now: bool = False) -> None:
        """Looks at the runs that others hold where it is time to; at those of this sweep's own workers in any case.

        Args:
          now: it is time to look at all.
        """
        self._news |= {folder for folder in self._made_here() - self._booked if exists(folder / RECORD_FILE)}
        now = now or time.monotonic() >= self._look_at
        looked = [item for item in self._held if now or not self._news.isdisjoint(self._folders_of(item))]
        self._news.clear()
        self._held = [item for item in self._held if item not in looked]
        clock = disk_clock(self.output_dir)
        self._waiting += [item for item in looked if self._is_open(item, clock)]

    def _hold(self, item: Item) -> None:
        if not self._held:
            self._look_at = time_to_look()
        self._held.append(item)

    def _folders_of(self, item: Item) -> tuple[Path, ...]:
        """The folders in which a run writes: its own, and those of the full runs that it may make first."""
        return item.folder, *self._needed.get(item.spec, ())

    def _made_here(self) -> set[Path]:
        """The folders of the full runs that this sweep's own workers may be making by the way."""
        return {folder for item in self._doing.values() for folder in self._needed.get(item.spec, ())}

    def _is_open(self, item: Item, clock: Callable[[], float]) -> bool:
        """Whether a run may be started; else it is booked, or waits for the process that has it or for its folder."""
        try:
            done = self._note_paused(item)  # also of a run that failed behind it, whose record does not count here
            if self._book_stored(item):  # another sweep was faster
                return False
            if done >= item.until:
                self._idle[item.slot] = item
                return False
            # One that another process makes would be waited for by this one, which may as well do something else.
            needed = [folder for folder in self._needed.get(item.spec, ()) if not exists(folder / RECORD_FILE)]
            here = self._made_here() | {other.folder for other in self._doing.values()}
            held = any(
                folder in here or (exists(folder) and is_held(folder, clock)) for folder in (item.folder, *needed)
            )
        except SurroundingsError as error:
            self._close(item, Ended("hindered", error=str(error)))
            return False
        if held:
            self._hold(item)
        return not held

    def _close(self, item: Item, ended: Ended) -> None:
        """Books how a run ended, or lets it wait if another process has it or if it is to be tried again.

        Why the sweep has to stop, if it has to, is then in `_stop`.
        """
        if ended.status == "stop":
            self._stop = self._stop or UnwritableError(ended.error)
        elif ended.status == "taken":
            self._hold(item)
        elif ended.status == "hindered":
            self._try_again(item, ended)
        elif ended.status == "paused":
            self._unexpected = self._recorded = 0
            self._close_paused(item)
        else:
            self._book(item, ended)
            self._release()
            if ended.status != "failed":
                self._unexpected = self._recorded = 0

    def _close_paused(self, item: Item) -> None:
        """Lets a run be idle that waits."""
        try:
            parked, error = self._park(item), f"{item.folder / PAUSED_FILE}: gone, or damaged, since it was written"
        except UnreadableError as unreadable:
            parked, error = False, str(unreadable)
        if not parked:
            self._try_again(item, Ended("hindered", error=error))
            return
        self.board.note(f"{item.folder.name}: waits after epoch {self._search.course(item.slot).epochs}")
        self._release()

    def _try_again(self, item: Item, ended: Ended) -> None:
        """Lets a run wait again that its surroundings ended, unless that was its own doing or happened too often.

        A run is taken for the cause once it has ended the same way as the first run of two processes. What they died of
        is remembered by this sweep alone: it sees both, as it hands a run that is suspect to a process of its own.
        """
        name = item.folder.name
        item.tries += 1
        if ended.cause and item.fresh and ended.cause in item.deaths:
            self._record_death(item, ended)
            return
        if ended.cause and item.fresh:
            item.deaths.add(ended.cause)
        item.suspect = ended.unexpected
        if not ended.unexpected and _find_refusal(self.output_dir):  # so it is with all others
            self._stop = self._stop or UnwritableError(ended.error)
            return
        # A process that met something unexpected and cannot be replaced is no place for another try.
        if item.tries >= TRIES or (ended.unexpected and not self._renews):
            self._leave(name, ended.error)  # told at the end
            if ended.unexpected:
                self._count_unexpected(ended)
            return
        if item.tries == 1:
            self.board.tell(f"{name}: {ended.error}; it is tried again")
        (self._waiting if ended.unexpected else self._refused).append(item)

    def _leave(self, name: str, met: str) -> None:
        self.left[name] = met
        self.board.left += 1

    def _record_death(self, item: Item, ended: Ended) -> None:
        """Records a run that ends its process whenever it is tried."""
        short = "; is there enough memory?" if ended.cause in _SHORT_OF_MEMORY else ""
        message = f"{ended.error}, in two processes of its own{short}"
        with contextlib.suppress(RequestError, RunError, OSError):
            request = prepare(item.spec, self.output_dir, sources=self._sources[item.bench])
            record_failure(request, message, item.where)
            self._recorded += 1
        self._book(item, Ended("failed", error=message))
        self._release()
        self._count_unexpected(ended)

    def _count_unexpected(self, ended: Ended) -> None:
        self._unexpected += 1
        if self._unexpected == UNEXPECTED_RUNS and self._stop is None:
            retry = " with --retry_failed" if self._recorded else ""
            self._stop = RunError(
                f"{self._unexpected} runs in a row met what no run should, the last of them {ended.error!r}; "
                f"left as before: {counted(self.board.total - self.board.done, 'run')}; see to it, then run the "
                f"same command again{retry}"
            )

    def _seconds_left(self) -> float | None:
        """Seconds until all is done, None if no like epoch has been timed; runs that cannot be judged are as others."""
        unions = [(union.own, self._search.granted(union) or 0) for union in self._unions]
        parts = [(item.spec, self._share_left(item)) for item in (*self._waiting, *self._doing.values())]
        parts += [(own, until / own.epochs) for own, until in unions if until]
        parts += [(spec, epochs / spec.epochs) for spec, epochs in self._search.undecided()]
        seconds = [self.times.estimate(spec) for spec, _ in parts]
        known = [second for second in seconds if second is not None]
        if not known:
            return None
        mean = sum(known) / len(known)
        left = [share * (mean if second is None else second) for (_, share), second in zip(parts, seconds, strict=True)]
        # No run is shared by workers.
        longest = max((part for part, (_, share) in zip(left, parts, strict=True) if share <= 1), default=0.0)
        return max(sum(left) / self._workers, longest)

    def _share_left(self, item: Item) -> float:
        """How much of a whole run is left until a run stops for now."""
        if item.standing is not None:
            done = item.standing.step / item.standing.steps
        else:
            done = self._search.course(item.slot).epochs / item.spec.epochs
        return max(item.until / item.spec.epochs - done, 0.0)

    def _show(self) -> None:
        running = [Running(item.spec, item.standing, item.where) for item in self._doing.values()]
        self.board.show(running, self._seconds_left())

    def _note_standing(self, worker: int, standing: Standing) -> None:
        """Takes what a worker tells of its run."""
        item = self._doing[worker]
        item.standing = standing
        self.times.note(item.spec, standing)
        self._show()

    def _note_hung(self, worker: int, seconds: float) -> None:
        name = self._doing[worker].folder.name
        self.board.tell(f"{name}: its process gave no sign for {format_seconds(seconds)}, and is replaced")

    # ---- doing it --------------------------------------------------------------------------------------------------

    def _run_on(self, pool: Pool) -> None:
        """Runs until nothing is left to do, or until `_stop` says that the sweep has to stop."""
        loaded: dict[int, Item] = {}  # what a worker did last, whose workbench it still has
        try:
            while self._stop is None:
                self._hand_out(pool, loaded)
                if not self._doing and not self._waiting and (self._leaves or not self._held):
                    if self._refused:
                        time.sleep(_POLL_SECONDS)
                        self._waiting, self._refused = self._waiting + self._refused, []
                        continue
                    self._look_at_held(now=True)  # some may have become free, or have ended, since
                    self._release()
                    if not self._waiting and not self._refused:
                        return
                    continue
                self._show()
                # Also while nothing is done: a worker may come, or what the workers hang on be gone.
                self._take_answers(pool, loaded, _POLL_SECONDS)
            self._take_answers(pool, loaded, 0.0)  # those that have come meanwhile
        finally:
            pool.close()
            self._book_ended()

    def _take_answers(self, pool: Pool, loaded: dict[int, Item], seconds: float) -> None:
        """Books all runs that have ended, also where the first of them says that the sweep has to stop."""
        for worker, ended in pool.wait_for_any(seconds):
            item = self._doing.pop(worker)
            self._news.update(self._folders_of(item))
            begun, item.standing = item.standing is not None, None
            self.times.forget(item.spec)
            if ended.unexpected:
                del loaded[worker]
            if ended.error and (where := pool.where(worker)):
                ended = replace(ended, error=f"{ended.error} (on {where})")
            self._close(item, ended)
            # The disk fails under each; what fails on another machine need not do so here.
            if begun and ended.status == "hindered" and not ended.unexpected and not pool.where(worker):
                self._count_unexpected(ended)

    def _book_ended(self) -> None:
        """Books the runs that came to their end while the sweep stopped."""
        while self._doing:
            _, item = self._doing.popitem()
            with contextlib.suppress(SurroundingsError):
                self._book_stored(item)

    def _hand_out(self, pool: Pool, loaded: dict[int, Item]) -> None:
        workers = pool.workers()
        self._workers = max(len(workers), 1)
        for worker in workers:
            if worker not in self._doing and self._stop is None:
                busy = {item.bench for other, item in loaded.items() if other != worker and other in workers}
                item = self._next(loaded.get(worker), busy)
                if item is None or self._stop is not None:
                    return
                self._doing[worker] = loaded[worker] = item
                item.where = pool.where(worker)
                item.fresh = pool.submit(
                    worker, item.spec, self._sources[item.bench], self._folders_of(item), fresh=item.suspect,
                    until=item.until,
                )  # fmt: skip


# What a process without enough memory dies of, or says: the kernel's signal among them.
_SHORT_OF_MEMORY = ("signal 9", "MemoryError", "ResourceExhaustedError")


def _check_writable(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"--output_dir: {output_dir} cannot be written ({error.strerror})") from None
    if refusal := _find_refusal(output_dir):
        raise RequestError(f"--output_dir: {output_dir} cannot be written ({refusal})")


def _find_refusal(output_dir: Path) -> str:
    """Why nothing can be written into the folder of the runs; "" where it can."""
    probe = output_dir / f".probe.{os.getpid()}"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # a sweep of the same number in another container may have been here
    except OSError as error:
        return error.strerror or str(error)
    return ""
