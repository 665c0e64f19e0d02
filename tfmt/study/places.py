"""The GPUs and cores of this machine, and how workers share them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a worker computes.

    Attributes:
      gpus: values for CUDA_VISIBLE_DEVICES; None leaves them all.
      cores: the cores it may use; None leaves them all.
      threads: how many it uses; None is one a core of `cores`.
      orphan_seconds: how long it may live on when whoever started it is gone, for its checkpoint; None leaves it the
        time that this takes.
      needs_gpu: what TensorFlow computes without one there is not wanted.
    """

    gpus: tuple[str, ...] | None = None
    cores: tuple[int, ...] | None = None
    threads: int | None = None
    orphan_seconds: float | None = None
    needs_gpu: bool = False

    def settle(self) -> int:
        """Moves this process there, before TensorFlow is imported; the number of threads to use, 0 for its choice."""
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)
        if self.cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        return len(self.cores or ()) if self.threads is None else self.threads


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


def visible_cores() -> tuple[int, ...]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def share_places(workers: int, gpus: tuple[str, ...], cores: tuple[int, ...]) -> list[Place]:
    """Divides GPUs, or cores where there are none, between workers.

    With fewer GPUs than workers several share one; with fewer cores than workers, too.

    Example:
      >>> [place.cores for place in share_places(2, (), (0, 1, 2, 3))]
      [(0, 1), (2, 3)]
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
