"""Who executes a sweep's runs: processes of this machine, or this process itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from tfmt import signals
from tfmt.runs.records import Record
from tfmt.runs.runner import Sources
from tfmt.spec import RunSpec
from tfmt.study.places import Place
from tfmt.study.worker import Ended, Executor, work
from tfmt.training.progress import Standing
from tfmt.words import counted

_END_SECONDS = 300.0  # that a process may take to end, with a checkpoint to write
# A process hangs that gave no sign for so long, nor for as long as so many of its slowest steps take: on a disk that is
# away, in a collective operation that waits for ever. What gives none in between, as XLA's compiler, takes less.
HUNG_SECONDS = 600.0
HUNG_STEPS = 20
_KILLED_SECONDS = 5.0  # that the end of a killed process may take
GRACE_SECONDS = 60.0  # between SIGTERM, SIGKILL, and no longer waiting for what even that does not end
_LOOK_SECONDS = 5.0  # the most that counts between two looks: a sweep that was stopped itself cannot know more

# Is told the worker and where its run stands. A pool may do so whenever it is waited for, and need not.
Tell = Callable[[int, Standing], None]
# Is told the worker, and for how many seconds it has given no sign, before its process is replaced.
TellHung = Callable[[int, float], None]


def _tell_nobody(worker: int, _: Standing | float) -> None:
    """Nobody asked."""


class Pool(Protocol):
    """Workers, numbered from 0, that execute one run at a time each.

    A sweep asks no more of whoever computes. All that a worker needs is the spec, and where model and data lie; what it
    makes lies in the runs' folders. A worker starts with its first run, and anew with the next one after it has died
    or met something unexpected.

    Attributes:
      renews: whether there can be a fresh process for a run.
    """

    renews: bool

    def workers(self) -> Sequence[int]:
        """Those that are there; a number is not given twice."""

    def where(self, worker: int) -> str:
        """The name of the machine on which a worker computes; "" where it is this one."""

    def submit(
        self, worker: int, spec: RunSpec, sources: Sources, folders: Sequence[Path] = (), *, fresh: bool = False,
        until: int | None = None,
    ) -> bool:  # fmt: skip
        """Starts a run on an idle worker.

        Args:
          worker: which.
          spec: the run.
          sources: where its model and data lie.
          folders: where it writes: its own folder, then those of the full runs that it may make first.
          fresh: end the worker's process before, so that the run is the first of another.
          until: after how many of its epochs the run is to wait; None for its end.

        Returns:
          Whether the run is the first of its process.
        """

    def wait_for_any(self, seconds: float) -> list[tuple[int, Ended]]:
        """Waits, at most so long, until a run ended, be it with its worker; (worker, how its run ended) of each."""

    def close(self) -> None:
        """Ends all workers: at once where they are idle, else after the step that they are at."""


class OwnProcess:
    """The sweep's own process as the one worker.

    Args:
      output_dir: the folder of the runs' folders.
      verbosity: from 1 on libraries may talk.
      tell: is told where the run stands.
    """

    renews = False

    def __init__(self, output_dir: Path, verbosity: int = 0, tell: Tell = _tell_nobody) -> None:
        self._executor = Executor(output_dir, verbosity=verbosity, tell=lambda standing: tell(0, standing))
        self._run: tuple[RunSpec, Sources, int | None] | None = None

    def workers(self) -> Sequence[int]:
        """The one."""
        return range(1)

    def where(self, worker: int) -> str:
        """Here."""
        return ""

    def submit(
        self, worker: int, spec: RunSpec, sources: Sources, folders: Sequence[Path] = (), *, fresh: bool = False,
        until: int | None = None,
    ) -> bool:  # fmt: skip
        """Notes the run; `wait_for_any` executes it, also after one that met something unexpected."""
        self._run = spec, sources, until
        return False

    def wait_for_any(self, seconds: float) -> list[tuple[int, Ended]]:
        """Executes the run that was submitted, however long it takes; without one it only waits."""
        run, self._run = self._run, None
        if run is None:
            sleep(seconds)
            return []
        return [(0, self._executor.execute(*run))]

    def close(self) -> None:
        """Nothing is left to end."""


class ProcessPool:
    """Processes of this machine.

    Args:
      places: where each of them computes.
      output_dir: the folder of the runs' folders.
      verbosity: from 1 on libraries may talk.
      tell: is told where the runs stand.
      tell_hung: is told of workers that give no sign any more. They die of that, as "hung".
    """

    renews = True

    def __init__(
        self, places: Sequence[Place], output_dir: Path, verbosity: int = 0, tell: Tell = _tell_nobody,
        tell_hung: TellHung = _tell_nobody,
    ) -> None:  # fmt: skip
        self._workers = [_Process(place, output_dir, verbosity) for place in places]
        self._tell, self._tell_hung = tell, tell_hung
        self._looked = monotonic()

    def workers(self) -> Sequence[int]:
        """All of them: their processes come and go."""
        return range(len(self._workers))

    def where(self, worker: int) -> str:
        """Here."""
        return ""

    def process(self, worker: int) -> int | None:
        """The number of a worker's process, if it has one."""
        return self._workers[worker].pid

    def submit(
        self, worker: int, spec: RunSpec, sources: Sources, folders: Sequence[Path] = (), *, fresh: bool = False,
        until: int | None = None,
    ) -> bool:  # fmt: skip
        """Sends a run to a process, which is started if there is none."""
        return self._workers[worker].submit(spec, sources, fresh, until)

    def wait_for_any(self, seconds: float) -> list[tuple[int, Ended]]:
        """Waits for an answer or the end of some process, or until one tells where it stands."""
        busy = [(number, worker) for number, worker in enumerate(self._workers) if worker.busy]
        multiprocessing.connection.wait([worker.pipe for _, worker in busy], timeout=seconds)
        found: list[tuple[int, Ended]] = []
        for number, worker in busy:
            try:
                while worker.busy and worker.pipe.poll():
                    answer = worker.receive()
                    if isinstance(answer, Standing):
                        self._tell(number, answer)
                    elif answer is not None:
                        found.append((number, answer))
            except (EOFError, OSError):  # it died, be it in the middle of an answer
                found.append((number, worker.bury()))
        now = monotonic()
        passed, self._looked = min(now - self._looked, _LOOK_SECONDS), now
        for number, worker in busy:
            if worker.busy and (silent := worker.watch(passed)):
                self._tell_hung(number, silent)
            if worker.busy and worker.lost:
                found.append((number, worker.bury()))
        return found

    def close(self) -> None:
        """Ends all processes, and waits for that."""
        busy = sum(worker.busy for worker in self._workers)
        if busy:
            print(f"tfmt-sweep: waits for the checkpoints of {counted(busy, 'run')}", file=sys.stderr, flush=True)
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.join()


def death_of(cause: str) -> Ended:
    """How a run ended whose process died; a signal by which people or batch systems end one says nothing of it."""
    asked = cause in {f"signal {int(number)}" for number in signals.SIGNALS}
    error = "its process hung" if cause == "hung" else f"its process died ({cause})"
    return Ended("hindered", error=error, unexpected=True, cause="" if asked else cause)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Process:
    """A worker process and this end of its pipe."""

    def __init__(self, place: Place, output_dir: Path, verbosity: int) -> None:
        self._arguments = place, output_dir, verbosity
        self._process: Any = None
        self.pipe: Any = None
        self.busy = self.lost = False
        self._start_watch()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else int(self._process.pid)

    def _start_watch(self) -> None:
        self._silent = self._slowest = 0.0
        self._hung = self.lost = False
        self._standing: tuple[float, Standing] | None = None

    def submit(self, spec: RunSpec, sources: Sources, fresh: bool, until: int | None) -> bool:
        if fresh and self._process is not None:
            self.dismiss()
            self.join()
        first = self._process is None
        if first:
            context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
            self.pipe, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, *self._arguments), daemon=True)
            # Ignored is what it inherits, until it has taken charge of signals itself; held, that none comes between.
            with signals.held(), _interrupts_ignored():
                process.start()
            self._process = process
            theirs.close()  # so that the pipe ends with the process
        self.busy = True
        self._start_watch()
        with contextlib.suppress(OSError):  # a process that has died meanwhile shows when it is asked
            self.pipe.send((spec.to_json(), sources.to_json(), until))
        return first

    def receive(self) -> Ended | Standing | None:
        """What waits in the pipe: how the run ended, where it stands, or None as a sign of life."""
        answer = self.pipe.recv()
        if not self._hung:
            self._silent = 0.0
        if answer is None:
            return None
        if isinstance(answer, Standing):
            self._time_steps(answer)
            return answer
        ended, record = answer
        self.busy = False
        if ended.unexpected or self._hung:  # the process ends by itself, or has been asked to
            self.dismiss()
            self._await_end(GRACE_SECONDS)
            self._forget()
        return replace(ended, record=Record.model_validate_json(record)) if record else ended

    def _time_steps(self, standing: Standing) -> None:
        """Notes how long the slowest step took, evaluation apart."""
        now = monotonic()
        if self._standing is not None:
            since, before = self._standing
            if standing.step > before.step and standing.timed == before.timed:
                self._slowest = max(self._slowest, (now - since) / (standing.step - before.step))
        self._standing = now, standing

    def watch(self, passed: float) -> float:
        """Ends a process that hangs, first asking it to; `lost` then says that even SIGKILL was in vain.

        Args:
          passed: seconds since the last call.

        Returns:
          Seconds without a sign, in the call that finds that it hangs; else 0.
        """
        self._silent += passed
        silent = self._silent
        if self._hung:
            if silent > GRACE_SECONDS:
                self._process.kill()
            self.lost = silent > 2 * GRACE_SECONDS
        elif silent > max(HUNG_SECONDS, HUNG_STEPS * self._slowest):
            self._hung, self._silent = True, 0.0
            self._process.terminate()
            return silent
        return 0.0

    def bury(self) -> Ended:
        """How the run ended of a process that died: of a signal, by an exit status, or hung."""
        self._await_end(0.0 if self.lost else GRACE_SECONDS)  # its pipe may end long before it does
        code = self._process.exitcode
        cause = "hung" if self._hung or code is None else f"signal {-code}" if code < 0 else f"exit status {code}"
        self._forget()
        return death_of(cause)

    def _await_end(self, seconds: float) -> None:
        """Waits so long for the end of the process, then ends it."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(_KILLED_SECONDS)

    def dismiss(self) -> None:
        """Asks the process to end."""
        if self._process is None:
            return
        if self.busy:
            self._process.terminate()
        with contextlib.suppress(OSError):
            self.pipe.send("")

    def join(self) -> None:
        """Waits for the end of the process, and makes room for a new one."""
        if self._process is not None:
            self._await_end(_END_SECONDS)
            self._forget()

    def _forget(self) -> None:
        # What hangs in the kernel outlives SIGKILL. Its lease counts for nothing once its own beat has stopped, and
        # Python must not wait for it at its own end.
        if self._process.exitcode is None:
            multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self.pipe.close()
        self._process, self.busy = None, False
