"""What a claim is decided by: one number a comparison, its interval, and the bound it must reach.

The interval of a comparison of scores is over seeds and examples together where the runs' predictions were read
(`tfmt.results.intervals`), of others over seeds alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tfmt.results.groups import Group, column_title
from tfmt.results.intervals import CONFIDENCE, SEEDS, SEEDS_ALONE, mean_interval
from tfmt.results.predicted import NotPredictedError
from tfmt.results.rows import Row

LEAST_SEEDS = 2


@dataclass(frozen=True)
class Comparison:
    """One thing against another on one task.

    Attributes:
      task: the task, as a table names it.
      compared: what is compared, `LayerNorms - Full-FT`.
      unit: `points` (a difference, in percent), `points a step` (a slope), `times` (a ratio), or `index`.
      value: the mean over the seeds; of ratios the geometric one.
      low: lower end of the interval; None for a single seed.
      high: upper end of it.
      bound: the least value at which the comparison speaks for the claim.
      seeds: how many seeds both sides share.
      collapsed: what it read of which a run predicted one class only, or a constant: `Full-FT 2 of 3`. Such a
        comparison decides nothing: two models that learned nothing are on par, whatever was tuned.
      over: what the interval is over, or why there is none, in the words of `Interval.method`.
      examples: how many examples it is over, if it is.
      not_predicted: of a comparison of scores without them, why.
    """

    task: str
    compared: str
    unit: str
    value: float
    low: float | None
    high: float | None
    bound: float
    seeds: int
    collapsed: tuple[str, ...] = ()
    over: str = SEEDS
    examples: int | None = None
    not_predicted: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the mean reaches the bound, None where that decides nothing; a mean's rounding does not count."""
        return None if self.collapsed else self.value >= self.bound - 1e-9

    @property
    def clear(self) -> bool:
        """Whether it decides, and its whole interval lies on the mean's side of the bound."""
        if self.holds is None or self.low is None or self.high is None:
            return False
        return self.low >= self.bound - 1e-9 if self.holds else self.high < self.bound


@dataclass(frozen=True)
class Gap:
    """A comparison that the runs do not allow, and why."""

    task: str
    reason: str


Found = Iterator[Comparison | Gap]


def student_interval(values: Iterable[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's t interval for the mean of two or more values (n - 1 degrees of freedom)."""
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, without that package's long import

    values = list(values)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * spread
    mean = statistics.fmean(values)
    return mean - reach, mean + reach


def compare(
    task: str,
    compared: str,
    by_seed: Mapping[int, float],
    bound: float,
    unit: str = "points",
    least: int = LEAST_SEEDS,
    collapsed: tuple[str, ...] = (),
) -> Comparison | Gap:
    """The comparison of values that each seed gives.

    Args:
      task: the task's column.
      compared: what is compared.
      by_seed: seed to difference, or to the natural logarithm of a ratio for the unit `times`.
      bound: the least value that speaks for the claim; for `times` a ratio.
      unit: the unit.
      least: how many seeds are needed.
      collapsed: what of it collapsed, from `tell_collapsed`.
    """
    if len(by_seed) < least:
        return Gap(column_title(task), f"{compared}: {len(by_seed)} of at least {least} shared seeds")
    values = list(by_seed.values())
    value = statistics.fmean(values)
    low, high = student_interval(values) if len(values) > 1 else (None, None)
    if unit == "times":
        value, low, high = _exp(value), None if low is None else _exp(low), None if high is None else _exp(high)
    return Comparison(column_title(task), compared, unit, value, low, high, bound, len(values), collapsed)


def _exp(value: float) -> float:
    """The interval of two seeds may be wider than a float holds."""
    return math.exp(min(value, 700.0))


def seed_scores(group: Group, row: Row, column: str) -> dict[int, float]:
    """Seed to score in percent at a cell's chosen rate; empty where there is no run or no eligible rate."""
    cell = group.cells.get((row, column))
    return {seed: 100 * score for seed, score in cell.scores.items()} if cell and cell.eligible else {}


def tell_collapsed(group: Group, rows: Iterable[Row], column: str) -> tuple[str, ...]:
    """The rows of which a run collapsed at its cell's chosen rate, whichever seeds are shared: the rate hangs on it."""
    cells = [(row, group.cells.get((row, column))) for row in rows]
    return tuple(
        f"{row.title} {cell.collapsed} of {len(cell.scores)}" for row, cell in cells if cell and cell.shows_collapse
    )


def contrast(
    group: Group,
    column: str,
    compared: str,
    weights: Mapping[int, Mapping[Row, float]],
    bound: float,
    unit: str = "points",
    collapsed: tuple[str, ...] = (),
) -> Comparison | Gap:
    """The comparison of sums of cells' scores, each score times a weight.

    Its interval is over seeds and examples where it is known what the runs predicted: a score is the mean of what each
    example adds to it, so each seed's sum of scores is the mean of as many numbers as there are examples.

    Args:
      group: the runs.
      column: the task's column.
      compared: what is compared.
      weights: seed to row to weight; the rows' cells have a score of that seed.
      bound: the least value that speaks for the claim.
      unit: the unit.
      collapsed: what of it collapsed, from `tell_collapsed`.
    """
    scores = {row: seed_scores(group, row, column) for by_row in weights.values() for row in by_row}
    by_seed = {
        seed: math.fsum(weight * scores[row][seed] for row, weight in by_row.items())
        for seed, by_row in weights.items()
    }
    found = compare(column, compared, by_seed, bound, unit, collapsed=collapsed)
    if isinstance(found, Gap):
        return found
    seeds = {row: [seed for seed, by_row in weights.items() if row in by_row] for row in scores}
    try:
        if group.predicted is None:
            raise NotPredictedError("no predictions were read")
        parts = group.predicted.of_cells(group, column, seeds)
    except NotPredictedError as error:
        return replace(found, over=SEEDS_ALONE, not_predicted=str(error))
    matrix = 100 * np.stack(
        [
            sum(weight * parts[row][seeds[row].index(seed)] for row, weight in by_row.items())
            for seed, by_row in weights.items()
        ]
    )
    interval = mean_interval(matrix)
    return replace(found, low=interval.low, high=interval.high, over=interval.method, examples=matrix.shape[1])


def difference(group: Group, column: str, left: Row, right: Row, bound: float) -> Comparison | Gap:
    """`left` minus `right` in points, paired over the seeds that both have."""
    ours, theirs = seed_scores(group, left, column), seed_scores(group, right, column)
    weights = {seed: {left: 1.0, right: -1.0} for seed in ours if seed in theirs}
    collapsed = tell_collapsed(group, (left, right), column)
    return contrast(group, column, f"{left.title} - {right.title}", weights, bound, collapsed=collapsed)


def all_or_gaps(found: Iterable[Comparison | Gap]) -> Iterator[Comparison | Gap]:
    """A task's comparisons if all could be made, otherwise what was missing: a claim is not judged by a part of it."""
    found = list(found)
    gaps = [each for each in found if isinstance(each, Gap)]
    yield from gaps or found


def thirds(count: int) -> tuple[range, range, range]:
    """First, middle and last third of the blocks; what does not divide goes to the middle."""
    size = count // 3
    return range(size), range(size, count - size), range(count - size, count)
