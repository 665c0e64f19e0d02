"""A study's runs, one after another or side by side, each once, whatever happens to some of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfmt.errors import RequestError, RunError
from tfmt.files import UnwritableError
from tfmt.runs.lease import is_held
from tfmt.runs.records import RECORD_FILE, Record, find_records, read_record
from tfmt.runs.runner import Request, bench_key, prepare, record_failure
from tfmt.spec import RunSpec, digest_json
from tfmt.study.board import Board
from tfmt.study.grid import Grid, HeldOutUnion
from tfmt.study.times import Times, format_seconds
from tfmt.study.worker import Ended, Executor, Place, share_places, work

RESUMPTIONS = 3  # how often a run is taken up again after its process died
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
    """

    spec: RunSpec
    folder: Path
    seconds: float | None = None
    deaths: int = 0
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
        self._folders: dict[RunSpec, Path] = {}
        self._ended: dict[RunSpec, str] = {}
        self._unions = list(grid.unions)
        self.times = Times()
        self.board = Board(len(grid), verbosity)
        request: Request | None = None
        for spec in sorted(grid.runs, key=lambda spec: repr(bench_key(spec))):  # each task's text is read once
            request = prepare(spec, output_dir, request)
            self._folders[spec] = request.folder
        for spec in grid.runs:
            self._admit(Item(spec, self._folders[spec]))
        self._release_unions()

    def run(self, workers: int = 1) -> None:
        """Runs what is not done.

        Args:
          workers: processes; 0 runs everything in this one.

        Raises:
          RequestError: a run wants more replicas than a worker has GPUs. Nothing has been run.
          RunError: the folder can no longer be written. Failed runs are in `failures`.
        """
        places = share_places(workers, visible_gpus(), _cores())
        self._check_replicas(places)
        with self.board:
            self.board.show(0, self._seconds_left(max(workers, 1)))
            if workers:
                self._run_processes(places)
            else:
                self._run_here()

    def _check_replicas(self, places: list[Place]) -> None:
        wanted = max((spec.replicas for spec in self._folders), default=0)
        for place in places:
            if place.gpus is not None and wanted > len(place.gpus):
                raise RequestError(
                    f"--replicas={wanted}: with --workers={len(places)} a worker has {len(place.gpus)} GPUs; "
                    "take fewer workers or replicas"
                )

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
            self._book(item, Ended("failed", error=f"{error}; delete the file to run this run again"), stored=True)
            return True
        if record.status == "failed" and self._retry:
            return False
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
                item = Item(spec, prepare(spec, self.output_dir).folder)
            except RequestError as error:
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

    def _seconds_left(self, workers: int) -> float | None:
        seconds = [self.times.estimate(item.spec) for item in self._waiting]
        seconds += [self.times.estimate(union.own) for union in self._unions]
        known = [second for second in seconds if second is not None]
        return sum(known) / len(known) * len(seconds) / workers if known else None

    # ---- in this process -------------------------------------------------------------------------------------------

    def _run_here(self) -> None:
        executor = Executor(self.output_dir, verbosity=self._verbosity)
        last: Item | None = None
        while True:
            item = self._next(last, set())
            if item is None:
                if not self._held:
                    return
                time.sleep(_POLL_SECONDS)
                continue
            self.board.show(1, self._seconds_left(1))
            self._close(item, executor.execute(item.spec))
            last = item

    # ---- in processes ----------------------------------------------------------------------------------------------

    def _run_processes(self, places: list[Place]) -> None:
        hands = [_Hand(place, self.output_dir, self._verbosity) for place in places]
        try:
            while True:
                self._hand_out(hands)
                busy = [hand for hand in hands if hand.item is not None]
                if not busy and not self._held:
                    return
                self.board.show(len(busy), self._seconds_left(len(hands)))
                if not busy:
                    time.sleep(_POLL_SECONDS)
                    continue
                multiprocessing.connection.wait([hand.pipe for hand in busy], timeout=_POLL_SECONDS)
                for hand in busy:
                    self._take_back(hand)
        finally:
            for hand in hands:
                hand.dismiss()
            for hand in hands:
                hand.wait()

    def _hand_out(self, hands: list[_Hand]) -> None:
        for hand in hands:
            if hand.item is None:
                busy = {other.last.bench for other in hands if other is not hand and other.last is not None}
                item = self._next(hand.last, busy)
                if item is None:
                    return
                hand.give(item)

    def _take_back(self, hand: _Hand) -> None:
        """Books what a process has to say, if anything; replaces it if it has died."""
        item = hand.item
        assert item is not None
        try:
            if not hand.pipe.poll():
                return
            status, error, record = hand.pipe.recv()
            hand.item = None
            self._close(item, Ended(status, Record.model_validate_json(record) if record else None, error))
        except (EOFError, ConnectionError):
            hand.bury()
            item.deaths += 1
            if item.deaths <= RESUMPTIONS:
                self._waiting.append(item)
                return
            message = f"its process died {item.deaths} times ({hand.cause}); is there enough memory?"
            with contextlib.suppress(RequestError, RunError):
                record_failure(prepare(item.spec, self.output_dir), message)
            self._close(item, Ended("failed", error=message))


class _Hand:
    """The sweep's end of a worker process, which starts with its first run and anew after a death."""

    def __init__(self, place: Place, output_dir: Path, verbosity: int) -> None:
        self._place, self._output_dir, self._verbosity = place, output_dir, verbosity
        self._process: Any = None
        self.pipe: Any = None
        self.item: Item | None = None
        self.last: Item | None = None
        self.cause = ""

    def give(self, item: Item) -> None:
        """Starts a run."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
            self.pipe, theirs = context.Pipe()
            arguments = (theirs, self._place, self._output_dir, self._verbosity)
            self._process = context.Process(target=work, args=arguments, daemon=True)
            self._process.start()
            theirs.close()  # so that the pipe ends with the process
        self.item = self.last = item
        with contextlib.suppress(OSError):  # a process that has died meanwhile shows when it is asked
            self.pipe.send(item.spec.to_json())

    def bury(self) -> None:
        """Notes what a process died of."""
        self._process.join()
        code = self._process.exitcode
        self.cause = f"signal {-code}" if code < 0 else f"exit status {code}"
        self.pipe.close()
        self._process = self.item = self.last = None

    def dismiss(self) -> None:
        """Ends the process: at once if it is idle, else after the step that it is at."""
        if self._process is None:
            return
        if self.item is not None:
            self._process.terminate()
        with contextlib.suppress(OSError):
            self.pipe.send("")

    def wait(self) -> None:
        """Waits for the end that `dismiss` asked for."""
        if self._process is not None:
            self._process.join(60)
            self._process.kill()
            self.pipe.close()


# ---- a dry run -----------------------------------------------------------------------------------------------------


def describe_sweep(grid: Grid, output_dir: str | Path, workers: int) -> str:
    """How many runs a grid has, how many are done, and how long the rest will take; reads no weights and no data."""
    records = find_records(output_dir)[0] if Path(output_dir).is_dir() else []
    times, status = Times(), {}
    for record in records:
        times.add(record)
        status[_settings(record.spec)] = record.status
    ended = [status.get(_settings(spec)) for spec in grid.runs]
    failed = ended.count("failed")
    open_ = [spec for spec, end in zip(grid.runs, ended, strict=True) if end is None]
    done = len(grid.runs) - len(open_) - failed
    unions = [union.own for union in grid.unions]
    counts = " x ".join(_count_axes(grid))
    lines = [f"runs      {len(grid):,}" + (f" ({counts})" if counts else "")]
    if grid.unions:
        lines.append(f"unions    {len(grid.unions):,} of them wait for the masks of others, and count as not done here")
    lines.append(f"done      {done:,}" + (f", and {failed:,} failed (--retry_failed: again)" if failed else ""))
    seconds = [times.estimate(spec) for spec in [*open_, *unions]]
    known = [second for second in seconds if second is not None]
    if not seconds:
        lines.append("time      nothing is left to run")
    elif known:
        estimate = sum(known) / len(known) * len(seconds) / max(workers, 1)
        lines.append(f"time      about {format_seconds(estimate)}, as {times.count:,} runs took")
    else:
        lines.append("time      known once a run has been timed")
    lines.append("          (told from settings alone: weights and data, which run ids also depend on, were not read)")
    return "\n".join(lines)


def _settings(spec: RunSpec) -> str:
    return digest_json(spec.identity())


def _count_axes(grid: Grid) -> Iterator[str]:
    """The numbers of tasks, modes, ..., where their product is the number of runs."""
    names = {"task": "tasks", "mode": "modes", "layers": "layers", "mask_size": "mask sizes",
             "mask_fraction": "mask fractions", "learning_rate": "learning rates", "seed": "seeds"}  # fmt: skip
    counts = {words: len({getattr(run, name) for run in grid.runs}) for name, words in names.items()}
    product = 1
    for count in counts.values():
        product *= count
    if product == len(grid):
        yield from (f"{count} {words if count > 1 else words[:-1]}" for words, count in counts.items()
                    if count > 1 or words in ("tasks", "modes"))  # fmt: skip


# ---- the machine ---------------------------------------------------------------------------------------------------


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; found without TensorFlow."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(part for part in chosen.split(",") if part.strip() not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(str(index) for index, line in enumerate(listed.splitlines()) if line.startswith("GPU "))


def _cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _check_writable(output_dir: Path) -> None:
    probe = output_dir / f".probe.{os.getpid()}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RequestError(f"--output_dir: {output_dir} cannot be written ({error.strerror})") from None
