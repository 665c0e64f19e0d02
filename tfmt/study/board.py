"""What a person sees of a sweep: a bar over its runs and one for each in progress; plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from tfmt.metrics import COLLAPSED_MARK
from tfmt.spec import RunSpec
from tfmt.study.times import format_seconds
from tfmt.study.worker import Ended
from tfmt.training.progress import Standing
from tfmt.words import counted

_PLAIN_SECONDS = 30.0


class Best(NamedTuple):
    """The best score of a task and mode or selection, a fraction, and whether its run collapsed in that epoch."""

    name: str
    score: float
    collapsed: bool

    def __str__(self) -> str:
        return f"{self.name} {100 * self.score:.2f}{COLLAPSED_MARK if self.collapsed else ''}"


class Running(NamedTuple):
    """A run in progress, where it stands if it has told so, and on which machine, if on another one."""

    spec: RunSpec
    standing: Standing | None = None
    where: str = ""


class _Cell(NamedTuple):
    """What has a best score of its own; two selections may be told alike."""

    task: str
    mode: str
    select: str
    budget: str
    told: str

    @classmethod
    def of(cls, spec: RunSpec) -> _Cell:
        """A run's."""
        return cls(spec.task, spec.mode, spec.select, spec.budget, f"{spec.task} {spec.trained}")


class Board:
    """Counts of done, failed and running runs, where these stand, time left, and the best score by task and mode.

    Args:
      total: runs of the sweep.
      verbosity: from 1 on each run that ends has a line.

    Attributes:
      left: runs that were begun and could not be ended, and have no record.
      paused: runs that wait for what others show.
      stopped: runs that waited and are not gone on with, as others are better.
      spared: runs that are not begun for that reason.
    """

    def __init__(self, total: int, verbosity: int = 0) -> None:
        self.total, self._verbosity = total, verbosity
        self.counts = {"completed": 0, "diverged": 0, "failed": 0}
        self.best: dict[_Cell, Best] = {}
        self.scored: Counter[_Cell] = Counter()
        self.collapsed: Counter[_Cell] = Counter()
        self.stored = self.left = self.paused = self.stopped = self.spared = 0
        self._latest: _Cell | None = None
        self._bar: Any = None
        self._lines: list[Any] = []
        self._said = 0.0

    @property
    def done(self) -> int:
        """Runs of which no more is to be done."""
        return sum(self.counts.values()) + self.stopped + self.spared

    def book(self, spec: RunSpec, name: str, ended: Ended, *, stored: bool = False) -> None:
        """Counts a run that ended; `stored` if this sweep only found its record."""
        self.counts[ended.status] += 1
        self.stored += stored
        if ended.record and ended.record.result and ended.status == "completed":
            result, key = ended.record.result, _Cell.of(spec)
            self._latest = key
            flat = result.collapsed_in(result.best_epoch) is True
            self.scored[key] += 1
            self.collapsed[key] += flat
            if result.score_best is not None and (key not in self.best or result.score_best > self.best[key].score):
                self.best[key] = Best(result.score_name, result.score_best, flat)
        if not stored:
            self.note(f"{name}: {ended.status}" + (f": {ended.error}" if ended.error else ""))
        if self._bar is not None:
            self._bar.update(self.done - self._bar.n)

    def note(self, line: str) -> None:
        """Says what happened to a run, if each is to be told of."""
        if self._verbosity >= 1:
            self._say(line)

    def show(self, running: Sequence[Running], seconds_left: float | None) -> None:
        """Shows how things stand.

        Args:
          running: the runs in progress.
          seconds_left: until all is done, if that can be judged.
        """
        machines = len({run.where for run in running if run.where})
        on = f" on {counted(machines, 'machine')}" if machines else ""
        parts = [f"{self.counts['failed']} failed", f"{len(running)} running{on}"]
        if self.paused:
            parts.append(f"{self.paused:,} waiting for others")
        if self.stopped or self.spared:
            parts.insert(0, f"{self.stopped + self.spared:,} not needed")
        if self.counts["diverged"]:
            parts.insert(0, f"{self.counts['diverged']} diverged")
        if seconds_left:
            parts.append(f"{format_seconds(seconds_left)} left")
        if self._latest in self.best:
            assert self._latest is not None
            parts.append(f"best {self._latest.told} {self.best[self._latest]}")
        text = ", ".join(parts)
        if self._bar is not None and not self._bar.disable:
            self._bar.update(self.done - self._bar.n)
            self._bar.set_postfix_str(text)
            self._show_running(running)
        elif time.monotonic() - self._said > _PLAIN_SECONDS or not self._said:
            self._said = time.monotonic()
            self._say("; ".join([f"{self.done}/{self.total} done, {text}", *map(_describe, running)]))

    def _show_running(self, running: Sequence[Running]) -> None:
        """A bar below the sweep's for each run in progress, over its steps."""
        while len(self._lines) > len(running):
            self._lines.pop().close()
        while len(self._lines) < len(running):
            self._lines.append(_make_bar(1, "  {desc} |{bar}|", position=len(self._lines) + 1))
        for line, run in zip(self._lines, running, strict=True):
            line.total, line.n = (run.standing.steps, run.standing.step) if run.standing else (1, 0)
            line.set_description_str(_describe(run))

    def summary(self) -> str:
        """The end of a sweep: counts, and the best score of each task and mode."""
        counts = ", ".join(f"{count:,} {_told(status)}" for status, count in self.counts.items() if count)
        counts = counts or "none done"
        if self.stopped:
            counts += f", {self.stopped:,} stopped early"
        if self.spared:
            counts += f", {self.spared:,} not begun"
        if self.stopped or self.spared:
            counts += " (others are better)"
        if self.paused:
            counts += f", {self.paused:,} waiting for others"
        if self.left:
            counts += f", {self.left:,} left without a record (the same command tries again)"
        before = f" ({self.stored:,} of them before)" if self.stored else ""
        lines = [f"runs      {self.total:,}: {counts}{before}"]
        for key, best in self.best.items():
            flat = f" ({self.collapsed[key]} of {self.scored[key]} runs collapsed)" if self.collapsed[key] else ""
            lines.append(f"best      {key.told}: {best}{flat}")
        if any(self.collapsed.values()):
            lines.append(
                f"{COLLAPSED_MARK}         a run that collapsed predicts one class only, or a constant: "
                "its score is what the split gives for learning nothing"
            )
        return "\n".join(lines)

    def tell(self, line: str) -> None:
        """Says what a person should know at once."""
        self._say(f"tfmt-sweep: {line}")

    def _say(self, line: str) -> None:
        if self._bar is not None and not self._bar.disable:
            tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Board:
        self._bar = _make_bar(self.total, "{n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}", initial=self.done)
        return self

    def __exit__(self, *_: Any) -> None:
        for line in reversed(self._lines):
            line.close()
        self._bar.close()
        self._lines, self._bar = [], None


def _told(status: str) -> str:
    """A status, and of what is no failure why it is none: it leaves the sweep's exit status as it is."""
    return "diverged (their loss is no number any more: results, no failures)" if status == "diverged" else status


def _make_bar(total: int, bar_format: str, **more: Any) -> Any:
    return tqdm(
        total=total, file=sys.stderr, dynamic_ncols=True, leave=False, unit="run", disable=not sys.stderr.isatty(),
        bar_format=bar_format, **more,
    )  # fmt: skip


def _describe(run: Running) -> str:
    """`mrpc layernorm 0.005 seed 0: epoch 2/5 loss 0.43`, with the blocks and the mask's size where a mode has them."""
    spec, standing, where = run
    parts: list[str] = [spec.task, spec.trained]
    if spec.layers != "all":
        parts.append(f"layers {spec.layers}")
    if spec.mask_size is not None:
        parts.append(f"n={spec.mask_size}")
    if spec.mask_fraction is not None:
        parts.append(f"f={spec.mask_fraction:g}")
    parts += [f"{spec.learning_rate:g}", f"seed {spec.seed}"]
    at = f"epoch {standing.epoch}/{standing.epochs} loss {standing.loss:.2f}" if standing else "setting up"
    return f"{' '.join(parts)}{where and f' on {where}'}: {at}"
