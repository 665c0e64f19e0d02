"""A process that executes runs one after another, on one workbench for as long as they share it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmt import quiet
from tfmt.errors import RequestError, RunError
from tfmt.files import UnwritableError
from tfmt.memory import keep_memory
from tfmt.runs.lease import TakenError
from tfmt.runs.records import Record, read_record
from tfmt.runs.runner import Request, bench_key, execute, make_bench, prepare, record_failure
from tfmt.spec import RunSpec

if TYPE_CHECKING:
    from tfmt.training.workbench import Workbench


@dataclass(frozen=True)
class Place:
    """Where a worker computes.

    Attributes:
      gpus: values for CUDA_VISIBLE_DEVICES; None leaves them all.
      cores: the cores it may use; None leaves them all.
    """

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None

    def settle(self) -> int:
        """Moves this process there, before TensorFlow is imported; the number of threads to use, 0 for its choice."""
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        if self.cores is None:
            return 0
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        return len(self.cores)


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
      status: `completed`, `diverged` or `failed`; `taken` when another process has it; `stop` when nothing can be
        written any more.
      record: of a completed or diverged run.
      error: of the others, one line.
    """

    status: str
    record: Record | None = None
    error: str = ""


class Executor:
    """Executes runs, and keeps the workbench between those that share it.

    Args:
      output_dir: the folder of the runs' folders.
      threads: threads of one operation; 0 for TensorFlow's choice.
      verbosity: from 1 on libraries may talk.
    """

    def __init__(self, output_dir: Path, threads: int = 0, verbosity: int = 0) -> None:
        self._output_dir, self._threads, self._verbosity = output_dir, threads, verbosity
        self._request: Request | None = None
        self._bench: Workbench | None = None
        self._warm = False

    def execute(self, spec: RunSpec) -> Ended:
        """Executes one run; whatever goes wrong with it is in the result."""
        started = time.perf_counter()
        try:
            request = prepare(spec, self._output_dir, self._request)
            if not self._warm:
                quiet.import_tensorflow(self._verbosity)
                self._warm = True
            if self._bench is None or self._request is None or bench_key(self._request.spec) != bench_key(spec):
                self._request = self._bench = None
                gc.collect()  # the last model goes before the next one comes
                self._bench = make_bench(request, threads=self._threads)
            self._request = request
        except UnwritableError as error:
            return Ended("stop", error=str(error))
        except (RequestError, RunError) as error:
            return Ended("failed", error=str(error))
        try:
            record = execute(request, self._bench, started=started, quiet=True)
        except TakenError as error:
            self._bench = None
            return Ended("taken", error=str(error))
        except UnwritableError as error:
            return Ended("stop", error=str(error))
        except Exception as error:
            self._bench = None  # in whatever state the error left it
            return _failed(request, error)
        return Ended(record.status, record)


def _failed(request: Request, error: Exception) -> Ended:
    """A run that raised; most of them have recorded that themselves."""
    message = (str(error).splitlines() or [""])[0].removeprefix(f"{request.run_id}: ")
    if not isinstance(error, RequestError | RunError):
        message = f"{type(error).__name__}: {message}"
    try:
        recorded = read_record(request.folder).error == message
    except RequestError:
        recorded = False
    if not recorded:
        # Where even that fails the folder is another run's; the message is in the list at the end.
        with contextlib.suppress(RequestError, RunError):
            record_failure(request, message)
    return Ended("failed", error=message)


def work(pipe: Connection, place: Place, output_dir: Path, verbosity: int) -> None:
    """The body of a worker process: takes specs from the pipe and answers with how each ended.

    Args:
      pipe: gives a spec as JSON, or "" to end; takes status, error and the record as JSON.
      place: where to compute.
      output_dir: the folder of the runs' folders.
      verbosity: from 1 on libraries may talk.
    """
    # Ctrl-C reaches every process of a terminal; the sweep alone decides what it means and then sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    quiet.set_verbosity(verbosity)
    keep_memory()
    executor = Executor(output_dir, place.settle(), verbosity)
    while True:
        try:
            text = pipe.recv()
        except EOFError:  # the sweep is gone
            return
        if not text:
            return
        ended = executor.execute(RunSpec.from_json(text))
        try:
            pipe.send((ended.status, ended.error, ended.record.to_json() if ended.record else ""))
        except OSError:
            return


def _leave(*_: Any) -> None:
    sys.exit(1)  # an exception, so that the lease is given back


def share_places(workers: int, gpus: tuple[str, ...], cores: tuple[int, ...]) -> list[Place]:
    """Divides GPUs, or cores where there are none, between workers.

    With fewer GPUs than workers several share one; with fewer cores than workers, too.

    Example:
      >>> share_places(2, (), (0, 1, 2, 3))
      [Place(gpus=None, cores=(0, 1)), Place(gpus=None, cores=(2, 3))]
    """
    if gpus:
        return [Place(gpus=_share(gpus, workers, index)) for index in range(workers)]
    if workers == 1:
        return [Place()]
    return [Place(cores=_share(cores, workers, index)) for index in range(workers)]


def _share(all_: tuple[Any, ...], workers: int, index: int) -> tuple[Any, ...]:
    if workers >= len(all_):
        return (all_[index % len(all_)],)
    each, more = divmod(len(all_), workers)
    first = index * each + min(index, more)
    return all_[first : first + each + (index < more)]
