"""How long runs will take, judged by like runs that have ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tfmt.errors import RequestError
from tfmt.runs.paused import Paused
from tfmt.runs.records import Record
from tfmt.spec import RunSpec
from tfmt.tasks import find_task
from tfmt.training.progress import Standing


class Times:
    """Mean seconds per epoch and training example, by model, task and mode, and by fewer of these where need be.

    The epochs that runs in progress, and those that wait, have behind them count, too.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[float, float]] = {}
        self._running: dict[RunSpec, tuple[float, float]] = {}
        self._so_far: dict[tuple[Any, ...], tuple[float, float]] | None = None  # the sums of `_running`, by key
        self._examples: dict[tuple[Any, ...], int] = {}
        self.count = 0

    def add(self, record: Record) -> None:
        """Takes a run's time into account, if it came to its end."""
        self.forget(record.spec)
        if record.status != "completed" or record.cost is None or record.result is None:
            return
        spec, cost = record.spec, record.cost
        examples = record.result.examples.get("train", 0)
        work = examples * len(record.result.epochs)
        if not work:
            return
        self.count += 1
        self._examples[_source(spec)] = examples
        _add(self._known, spec, cost.seconds, work)

    def note(self, spec: RunSpec, standing: Standing) -> None:
        """Takes the epochs into account that a run in progress has behind it, in place of what was noted of it."""
        if standing.timed:
            self._examples.setdefault(_source(spec), standing.examples)
            self._running[spec] = standing.seconds, standing.examples * standing.timed
            self._so_far = None

    def note_paused(self, paused: Paused) -> None:
        """Takes the epochs of a run that waits into account, in place of what was noted of it."""
        examples = paused.examples.get("train", 0)
        if examples:
            self._examples.setdefault(_source(paused.spec), examples)
            seconds = sum(epoch.seconds for epoch in paused.epochs)
            self._running[paused.spec] = seconds, examples * paused.epoch
            self._so_far = None

    def forget(self, spec: RunSpec) -> None:
        """Drops what was noted of a run in progress, as it has ended."""
        if self._running.pop(spec, None):
            self._so_far = None

    def _sum_up(self) -> dict[tuple[Any, ...], tuple[float, float]]:
        """The sums of what is in progress, made anew where that has changed since they were asked for."""
        if self._so_far is None:
            self._so_far = {}
            for spec, (seconds, work) in self._running.items():
                _add(self._so_far, spec, seconds, work)
        return self._so_far

    def count_examples(self, spec: RunSpec) -> int | None:
        """Training examples of a run's epoch, by runs on the same data or by the task's published size."""
        return self._examples.get(_source(spec)) or _published(spec)

    def estimate(self, spec: RunSpec) -> float | None:
        """Seconds that a run will take; None if no epoch of its model has been timed, or its data is not known."""
        examples = self.count_examples(spec)
        if examples is None:
            return None
        so_far = self._sum_up()
        for key in _keys(spec):
            if key in self._known or key in so_far:
                (ended, before), (running, now) = (sums.get(key, (0.0, 0.0)) for sums in (self._known, so_far))
                return (ended + running) / (before + now) * examples * spec.epochs
        return None


def _add(sums: dict[tuple[Any, ...], tuple[float, float]], spec: RunSpec, seconds: float, work: float) -> None:
    for key in _keys(spec):
        total, units = sums.get(key, (0.0, 0.0))
        sums[key] = total + seconds, units + work


def _source(spec: RunSpec) -> tuple[Any, ...]:
    return spec.task, spec.data_dir, spec.train_limit


def _keys(spec: RunSpec) -> Iterator[tuple[Any, ...]]:
    """From like runs to unlike ones."""
    yield spec.model, spec.task, spec.trained, spec.layers
    yield spec.model, spec.task, spec.mode
    yield spec.model, spec.mode
    yield (spec.model,)


def _published(spec: RunSpec) -> int | None:
    """Training examples of a task by its published size."""
    try:
        size = find_task(spec.task).sizes.get("train")
    except RequestError:
        return None  # custom data
    return min(size, spec.train_limit) if size and spec.train_limit else size


def format_seconds(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
