"""What a sweep has on another machine: a worker of that machine, and a shelf for what it does not share a disk for.

It is thin. The runs are executed by the process that a sweep of that machine would start as well, so that signals,
checkpoints and the isolation of runs from each other are the same. It knows nothing of what carries the calls.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfmt.runs import origin
from tfmt.runs.lease import start_of
from tfmt.runs.runner import Sources
from tfmt.spec import ARITHMETIC, RunSpec
from tfmt.study.places import Place
from tfmt.study.pool import ProcessPool
from tfmt.study.shelf import Shelf
from tfmt.training.progress import Standing
from tfmt.version import __version__

ORPHAN_SECONDS = 10.0  # that a worker may live on, for its checkpoint, when its hand is gone
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Process:
    """A process of a machine.

    Attributes:
      pid: its number.
      start: when it started, as `start_of` tells; another process may get its number.
    """

    pid: int
    start: str | None

    @property
    def lives(self) -> bool:
        """Whether it does, on this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return start_of(self.pid) == self.start


@dataclass(frozen=True)
class Kind:
    """What decides the numbers that a machine computes, apart from the run.

    Attributes:
      tfmt: tfmt's version.
      arithmetic: the number of its arithmetic.
      packages: versions of what it computes with.
      onednn: what TF_ENABLE_ONEDNN_OPTS says.
    """

    tfmt: str
    arithmetic: int
    packages: dict[str, str]
    onednn: bool | None

    @classmethod
    def here(cls) -> Kind:
        """This machine's."""
        return cls(__version__, ARITHMETIC, origin.package_versions(), origin.onednn())

    def tell_difference(self, other: Kind) -> str:
        """In what another machine differs: `tensorflow 2.20.0 (here 2.21.0)`; "" where it does not."""
        named = [("tfmt", other.tfmt, self.tfmt), ("arithmetic", other.arithmetic, self.arithmetic)]
        named += [
            (name, other.packages.get(name), self.packages.get(name))
            for name in sorted(self.packages.keys() | other.packages.keys())
        ]
        named.append(("TF_ENABLE_ONEDNN_OPTS", other.onednn, self.onednn))
        return ", ".join(f"{name} {theirs} (here {ours})" for name, theirs, ours in named if theirs != ours)


class Hand:
    """A worker of another machine, called from the sweep's, one call at a time, with plain values.

    Args:
      place: where it computes.
      verbosity: from 1 on libraries may talk, into the log of whoever started it.
      after: the worker of a hand that is gone, whose devices this one takes over once it has ended.
    """

    def __init__(self, place: Place, verbosity: int = 0, after: Process | None = None) -> None:
        self._place, self._verbosity, self._after = place, verbosity, after
        self._shelf = Shelf()
        self._pool: ProcessPool | None = None
        self._told: list[Standing | float] = []
        self._busy = False

    def greet(self) -> Kind:
        """What decides the machine's numbers; told once the devices are free."""
        self._await_predecessor()
        return Kind.here()

    def shelf(self, name: str, *arguments: Any) -> Any:
        """Calls a method of the shelf."""
        return getattr(self._shelf, name)(*arguments)

    def begin(self, output_dir: str, spec: str, sources: str, fresh: bool, until: int | None) -> tuple[bool, Process]:
        """Starts a run; see `Pool.submit`.

        Args:
          output_dir: the folder of the runs' folders on this machine; the first call decides.
          spec: the run, as JSON.
          sources: where its model and data lie on this machine, as JSON.
          fresh, until: as of `Pool.submit`.

        Returns:
          (whether the run is the first of its process, that process).
        """
        if self._busy:  # with one that was given up
            self.end()
        if self._pool is None:
            os.environ.pop("OMP_NUM_THREADS", None)  # who started this process may have set it; a place has its own
            self._pool = ProcessPool(
                [self._place],
                Path(output_dir),
                self._verbosity,
                self._note,
                lambda _, seconds: self._told.append(seconds),
            )
        first = self._pool.submit(0, RunSpec.from_json(spec), Sources.from_json(sources), fresh=fresh, until=until)
        pid = self._pool.process(0)
        assert pid is not None
        self._busy = True
        return first, Process(pid, start_of(pid))

    def _note(self, _: int, told: Standing | float) -> None:
        self._told.append(told)

    def _await_predecessor(self) -> None:
        if self._after is not None:
            end = time.monotonic() + ORPHAN_SECONDS + 1
            while self._after.lives and time.monotonic() < end:
                time.sleep(_LOOK_SECONDS)
            if self._after.lives:
                with suppress(OSError):
                    os.kill(self._after.pid, signal.SIGKILL)
            self._after = None

    def listen(self, seconds: float) -> tuple[Sequence[Standing | float], tuple[Any, str] | None]:
        """Waits, at most so long, for what the worker tells.

        Returns:
          (where the run stands and for how many seconds it was silent when it was given up, in order; how it ended and
          its record as JSON, if it has).
        """
        assert self._pool is not None
        found = self._pool.wait_for_any(seconds)
        told, self._told = self._told, []
        if not found:
            return told, None
        ((_, ended),) = found
        self._busy = False
        return told, (replace(ended, record=None), ended.record.to_json() if ended.record else "")

    def end(self) -> None:
        """Ends the worker: at once where it is idle, else after the step that it is at, with a checkpoint."""
        if self._pool is not None:
            self._pool.close()
            self._pool, self._busy = None, False
