"""What a person sees of a sweep: one bar over its runs, or now and then a plain line without a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from tfmt.spec import RunSpec
from tfmt.study.times import format_seconds
from tfmt.study.worker import Ended

_PLAIN_SECONDS = 30.0


class Board:
    """Counts of done, failed and running runs, time left, and the best score by task and mode.

    Args:
      total: runs of the sweep.
      verbosity: from 1 on each run that ends has a line.
    """

    def __init__(self, total: int, verbosity: int = 0) -> None:
        self.total, self._verbosity = total, verbosity
        self.counts = {"completed": 0, "diverged": 0, "failed": 0}
        self.best: dict[tuple[str, str], tuple[str, float]] = {}
        self.stored = 0
        self._latest: tuple[str, str] | None = None
        self._bar: Any = None
        self._said = 0.0

    @property
    def done(self) -> int:
        """Runs that ended."""
        return sum(self.counts.values())

    def book(self, spec: RunSpec, name: str, ended: Ended, *, stored: bool = False) -> None:
        """Counts a run that ended; `stored` if this sweep only found its record."""
        self.counts[ended.status] += 1
        self.stored += stored
        if ended.record and ended.record.result and ended.status == "completed":
            result, key = ended.record.result, (spec.task, spec.mode)
            self._latest = key
            if result.score_best is not None and result.score_best > self.best.get(key, ("", -2.0))[1]:
                self.best[key] = (result.score_name, result.score_best)
        if self._verbosity >= 1 and not stored:
            self._say(f"{name}: {ended.status}" + (f": {ended.error}" if ended.error else ""))
        if self._bar is not None:
            self._bar.update(self.done - self._bar.n)

    def show(self, running: int, seconds_left: float | None) -> None:
        """Shows how things stand."""
        parts = [f"{self.counts['failed']} failed", f"{running} running"]
        if self.counts["diverged"]:
            parts.insert(0, f"{self.counts['diverged']} diverged")
        if seconds_left:
            parts.append(f"{format_seconds(seconds_left)} left")
        if self._latest in self.best:
            assert self._latest is not None
            task, mode = self._latest
            name, value = self.best[self._latest]
            parts.append(f"best {task} {mode} {name} {100 * value:.2f}")
        text = ", ".join(parts)
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(text)
        elif time.monotonic() - self._said > _PLAIN_SECONDS or not self._said:
            self._said = time.monotonic()
            self._say(f"{self.done}/{self.total} done, {text}")

    def summary(self) -> str:
        """The end of a sweep: counts, and the best score of each task and mode."""
        counts = ", ".join(f"{count:,} {_told(status)}" for status, count in self.counts.items() if count)
        counts = counts or "none done"
        before = f" ({self.stored:,} of them before)" if self.stored else ""
        lines = [f"runs      {self.total:,}: {counts}{before}"]
        for (task, mode), (name, value) in self.best.items():
            lines.append(f"best      {task} {mode}: {name} {100 * value:.2f}")
        return "\n".join(lines)

    def _say(self, line: str) -> None:
        if self._bar is not None and not self._bar.disable:
            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Board:
        self._bar = tqdm(
            total=self.total, initial=self.done, file=sys.stderr, dynamic_ncols=True, leave=False, unit="run",
            disable=not sys.stderr.isatty(), bar_format="{n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
        )  # fmt: skip
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        self._bar = None


def _told(status: str) -> str:
    """A status, and of what is no failure why it is none: it leaves the sweep's exit status as it is."""
    return "diverged (their loss is no number any more: results, no failures)" if status == "diverged" else status
