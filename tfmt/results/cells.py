"""What one cell of a table says: the learning rate chosen, its seeds, and what became of them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfmt.metrics import COLLAPSED_MARK

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """The runs of one row on one task.

    Attributes:
      learning_rate: the rate chosen; where none is eligible, the one with the most scored seeds.
      eligible: whether the rate may be reported: no seed of it diverged, failed or has an undefined score.
      scores: seed to score (a fraction) at that rate.
      collapsed: how many of these seeds predicted one class only, or a constant.
      lost: `diverged`, `failed`, `undefined` to the number of that rate's seeds that ended so.
      lost_anywhere: the same over all rates.
      asked: how many seeds the table has.
      epochs: how many epochs its runs train.
      runs: how many runs the cell was made from.
      tuned: the share of the encoder's weights tuned, in percent, lowest and highest; None where no run tells.
    """

    learning_rate: float
    eligible: bool
    scores: Mapping[int, float]
    collapsed: int
    lost: Mapping[str, int]
    lost_anywhere: Mapping[str, int]
    asked: int
    epochs: int
    runs: int
    tuned: tuple[float, float] | None

    @property
    def mean(self) -> float | None:
        """Mean over the seeds, None where no rate is eligible."""
        return statistics.fmean(self.scores.values()) if self.eligible else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds (n - 1 in the denominator), None for fewer than two."""
        return statistics.stdev(self.scores.values()) if self.eligible and len(self.scores) > 1 else None

    @property
    def shows_collapse(self) -> bool:
        """Whether a run that collapsed is part of what the cell reports. It may all the same be the best rate's."""
        return self.eligible and self.collapsed > 0

    @property
    def mark(self) -> str:
        """`COLLAPSED_MARK` behind the cell's numbers, where it belongs."""
        return COLLAPSED_MARK if self.shows_collapse else ""

    @property
    def text(self) -> str:
        """`88.1 ± 0.4` in percent, with what the reader must know of its seeds behind it."""
        notes = []
        if len(self.scores) < self.asked:
            notes.append(f"{len(self.scores)}/{self.asked}")
        notes += [f"{number} {outcome}" for outcome, number in self.lost.items()]
        if self.shows_collapse:
            notes.append(f"{self.collapsed} collapsed")
        behind = f" ({', '.join(notes)})" if notes else ""
        if self.mean is None:
            return f"-{behind}"
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{spread}{self.mark}{behind}"


def make_cell(runs: pd.DataFrame, asked: int) -> Cell:
    """Chooses the learning rate of the runs of one row and column.

    A rate is eligible if none of its seeds was lost. Of the eligible ones those with the most seeds compete, so that
    one lucky seed does not beat the mean of three; the best mean wins, then the lower rate.
    """
    by_rate: dict[float, tuple[dict[int, float], Counter[str], int]] = {}
    columns = ("learning_rate", "seed", "outcome", "score", "collapsed")
    for rate, seed, outcome, score, collapsed in zip(*(runs[name] for name in columns), strict=True):
        scores, lost, _ = entry = by_rate.setdefault(rate, ({}, Counter(), 0))
        if outcome == "scored":
            scores[int(seed)] = float(score)
            by_rate[rate] = (scores, lost, entry[2] + (collapsed == 1))  # None or NaN where a record does not say
        else:
            lost[outcome] += 1

    def standing(rate: float) -> tuple[bool, int, float, float]:
        scores, lost, _ = by_rate[rate]
        return not lost, len(scores), statistics.fmean(scores.values()) if scores else -math.inf, -rate

    chosen = max(by_rate, key=standing)
    scores, lost, collapsed = by_rate[chosen]
    percents = [float(value) for value in runs["tuned_percent"].dropna()]
    return Cell(
        learning_rate=float(chosen),
        eligible=not lost,
        scores=dict(sorted(scores.items())),
        collapsed=collapsed,
        lost=dict(sorted(lost.items())),
        lost_anywhere=dict(sorted(sum((entry[1] for entry in by_rate.values()), Counter[str]()).items())),
        asked=asked,
        epochs=int(runs["epochs"].iloc[0]),
        runs=len(runs),
        tuned=(min(percents), max(percents)) if percents else None,
    )
