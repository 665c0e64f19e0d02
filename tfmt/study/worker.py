"""A process that executes runs one after another, on one workbench for as long as they share it."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from tfmt import liveness, quiet, signals, streams
from tfmt.errors import RequestError, RunError, SurroundingsError
from tfmt.files import UnwritableError, disk_error, relocated, there
from tfmt.memory import keep_memory
from tfmt.runs.lease import TakenError
from tfmt.runs.records import Record, read_record
from tfmt.runs.runner import Request, Sources, UnexpectedError, execute_until, make_bench, prepare, record_failure
from tfmt.spec import RunSpec
from tfmt.study.places import Place
from tfmt.training.progress import Standing

if TYPE_CHECKING:
    from tfmt.training.workbench import Workbench


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
      status: `completed`, `diverged` or `failed`; `paused` where it waits after the epoch that it was to be taken to;
        `taken` when another process has it; `hindered` when its surroundings ended it, of which nothing is recorded;
        `stop` when nothing can be written any more.
      record: of a completed or diverged run.
      error: of the others, one line.
      unexpected: what ended it may have broken TensorFlow; its process should execute nothing more.
      cause: of a hindered run what may be its own doing, equal where it ended in the same way: a signal, an exit
        status, the type of an error. Empty where it surely is not, as of a disk.
    """

    status: str
    record: Record | None = None
    error: str = ""
    unexpected: bool = False
    cause: str = ""


class Executor:
    """Executes runs, and keeps the workbench between those that share it.

    Args:
      output_dir: the folder of the runs' folders.
      threads: threads of one operation; 0 for TensorFlow's choice.
      verbosity: from 1 on libraries may talk.
      tell: is told now and then where a run stands.
      needs_gpu: execute nothing without one.
    """

    def __init__(
        self, output_dir: Path, threads: int = 0, verbosity: int = 0, tell: Callable[[Standing], None] | None = None,
        *, needs_gpu: bool = False,
    ) -> None:  # fmt: skip
        self._output_dir, self._threads, self._verbosity, self._tell = output_dir, threads, verbosity, tell
        self._needs_gpu = needs_gpu
        self._request: Request | None = None
        self._bench: Workbench | None = None
        self._warm = self._told = False

    def execute(self, spec: RunSpec, sources: Sources | None = None, until: int | None = None) -> Ended:
        """Executes one run; whatever goes wrong with it is in the result.

        Args:
          spec: the run.
          sources: model and data as the sweep found them; without them they are looked for.
          until: after how many of its epochs it is to wait; None for its end.

        Raises:
          Stop: a signal asked for it.
        """
        signals.check()
        with relocated(sources.places if sources else {}):
            ended = self._execute(spec, sources, until)
            return replace(ended, error=there(ended.error))

    def _execute(self, spec: RunSpec, sources: Sources | None, until: int | None) -> Ended:
        started = time.perf_counter()
        request = None
        try:
            request = prepare(spec, self._output_dir, self._request, sources)
            liveness.sign()
            bench = self._bench_of(request)
        except (RequestError, RunError) as error:
            return self._drop_bench(_ended_by(error))
        except Exception as error:
            return self._drop_bench(_met(error, request.folder if request else self._output_dir))
        try:
            epoch = spec.epochs if until is None else until
            ended = execute_until(request, bench, epoch, started=started, quiet=True, tell=self._tell)
            return Ended(ended.status, ended) if isinstance(ended, Record) else Ended("paused")
        except signals.Stop as stop:
            stop.kept = f"{request.run_id}: {stop.kept or 'nothing was computed yet'}"
            raise
        except (RequestError, RunError) as error:
            met = _ended_by(error, request)
        except Exception as error:
            met = _met(error, request.folder)
        # A bench is the next run's only where this one came to its end, and its proof held.
        return self._drop_bench(met)

    def _drop_bench(self, ended: Ended) -> Ended:
        self._request = self._bench = None
        return ended

    def _bench_of(self, request: Request) -> Workbench:
        """The workbench of a run: the last run's, or a new one."""
        if not self._warm:
            quiet.import_tensorflow(self._verbosity)
            liveness.sign()
            self._warm = True
        if self._needs_gpu:
            from tfmt.training.devices import require_gpu

            try:
                require_gpu()
            except RequestError as error:
                raise SurroundingsError(f"{socket.gethostname()}: {error}".replace("--require_gpu: ", "")) from None
        if self._bench is None or self._request is None or self._request.bench_key != request.bench_key:
            self._request = self._bench = None
            gc.collect()  # the last model goes before the next one comes
            self._bench = make_bench(request, threads=self._threads)
            if not self._told:
                print(f"tfmt-sweep: trains on {self._bench.devices.described}", file=sys.stderr, flush=True)
                self._told = True
        self._request = request
        return self._bench


def _ended_by(error: RequestError | RunError, request: Request | None = None) -> Ended:
    """How a run ended that raised.

    Args:
      error: what it raised; most of those that are its own fault are recorded already.
      request: the run, if its execution had begun.
    """
    if isinstance(error, TakenError):
        return Ended("taken", error=str(error))
    if isinstance(error, UnwritableError) and error.disk_full:
        return Ended("stop", error=str(error))
    if isinstance(error, UnexpectedError):
        return Ended("hindered", error=error.told, cause=error.cause, unexpected=True)
    if isinstance(error, SurroundingsError):
        return Ended("hindered", error=str(error))
    if request is None:
        return Ended("failed", error=str(error))
    message = there(str(error)).removeprefix(f"{request.run_id}: ")
    try:
        recorded = read_record(request.folder).error == message
    except (RequestError, SurroundingsError):
        recorded = False
    if not recorded:
        # Where even that fails the folder is another run's; the message is in the list at the end.
        with contextlib.suppress(RequestError, RunError, OSError):
            record_failure(request, message)
    return Ended("failed", error=message)


def _met(error: Exception, place: Path) -> Ended:
    """How a run ended that met what no code of tfmt expects: a disk that refuses, or something that may pass."""
    refused = disk_error(error, place) if isinstance(error, OSError) else None
    if refused is not None:
        return _ended_by(refused)
    first, cause = (str(error).splitlines() or [""])[0], type(error).__name__
    return Ended("hindered", error=f"{cause}: {first}" if first else cause, cause=cause, unexpected=True)


def work(pipe: Connection, place: Place, output_dir: Path, verbosity: int) -> None:
    """The body of a worker process: takes specs from the pipe and answers with how each ended.

    It ends after the first run that met something unexpected, as TensorFlow may be broken from then on.

    Args:
      pipe: gives a spec and its sources as JSON and after which epoch it is to wait, or "" to end; takes an `Ended` and
        its record as JSON, and before them now and then a `Standing`, or None as a sign of life.
      place: where to compute.
      output_dir: the folder of the runs' folders.
      verbosity: from 1 on libraries may talk.
    """
    # Ctrl-C reaches every process of a terminal; the sweep alone decides what it means and then sends SIGTERM, which a
    # batch system may have sent here, too.
    for number in set(signals.SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # heeded below, also where the sweep was started to ignore it
    ended_by = 0
    with streams.tolerated():
        try:
            with signals.heeded((signal.SIGTERM,), patient=True):
                stop_with_sweep(place.orphan_seconds)
                _work(pipe, place, output_dir, verbosity)
        except signals.Stop as stop:
            ended_by = stop.number
            if stop.kept:
                print(f"tfmt-sweep: {stop.kept}", file=sys.stderr)
        streams.settle()
    if ended_by:
        signals.end_by(ended_by)


def stop_with_sweep(seconds: float | None = None) -> None:
    """Has this process stop as on SIGTERM, its checkpoint written, when the process that started it has died.

    Args:
      seconds: then it has so long for that, and is killed; None leaves it the time that it takes.
    """
    sweep = multiprocessing.parent_process()
    if seconds is not None:  # what ends the other process may end its whole group
        os.setsid()

    def wait() -> None:
        assert sweep is not None
        sweep.join()
        os.kill(os.getpid(), signal.SIGTERM)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)

    if sweep is not None:
        threading.Thread(target=wait, daemon=True).start()


def _work(pipe: Connection, place: Place, output_dir: Path, verbosity: int) -> None:
    quiet.set_verbosity(verbosity)
    keep_memory()

    def tell(standing: Standing) -> None:
        with contextlib.suppress(OSError):  # the sweep is gone, and SIGTERM on its way
            pipe.send(standing)

    def give_sign() -> None:
        with contextlib.suppress(OSError):
            pipe.send(None)

    executor = Executor(output_dir, place.settle(), verbosity, tell, needs_gpu=place.needs_gpu)
    ended = None
    with liveness.watched(give_sign), quiet.plain_warnings("tfmt-sweep"):
        while ended is None or not ended.unexpected:
            try:
                told = pipe.recv()
            except EOFError:  # the sweep is gone
                return
            if not told:
                return
            ended = executor.execute(RunSpec.from_json(told[0]), Sources.from_json(told[1]), told[2])
            record = ended.record.to_json() if ended.record else ""
            try:
                pipe.send((replace(ended, record=None), record))
            except OSError:
                return
