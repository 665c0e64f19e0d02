"""What one cell of a table says: the learning rate chosen, its seeds, and what became of them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfmt.errors import RequestError
from tfmt.metrics import COLLAPSED_MARK
from tfmt.results.crossfit import Fold

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Seeds:
    """Which seeds choose the learning rate, and of which the scores at that rate are reported.

    Attributes:
      choose_on: the seeds that choose; None for all.
      report_on: the seeds that are reported; None for all.
    """

    choose_on: tuple[int, ...] | None = None
    report_on: tuple[int, ...] | None = None

    def choose(self, seed: int) -> bool:
        """Whether a seed's scores choose the rate."""
        return self.choose_on is None or seed in self.choose_on

    def report(self, seed: int) -> bool:
        """Whether a seed's score is reported."""
        return self.report_on is None or seed in self.report_on

    def describe(self, seeds: Iterable[int]) -> str:
        """`over seeds 2, 3, at the learning rate with the best mean over seeds 0, 1`, of the seeds that there are."""
        seeds = list(seeds)
        reported = ", ".join(str(seed) for seed in seeds if self.report(seed))
        told = f"over seeds {reported}, at the learning rate with the best mean"
        if self.choose_on is None:
            return told
        return f"{told} over seeds {', '.join(str(seed) for seed in seeds if self.choose(seed))}"


ALL_SEEDS = Seeds()


def part_seeds(runs: pd.DataFrame, choose_on: Sequence[str], report_on: Sequence[str]) -> Seeds:
    """Reads which seeds choose and which are reported, as they were given; where one is not said, it is all others.

    Args:
      runs: what `read_runs` returns, or some rows of it.
      choose_on: seeds that choose the learning rate; none for those that are not reported.
      report_on: seeds that are reported; none for those that do not choose.

    Returns:
      `ALL_SEEDS` where neither is said.

    Raises:
      RequestError: no seed, one that no run has, one in both, or none is left for the other part.
    """
    if not choose_on and not report_on:
        return ALL_SEEDS
    known = sorted({int(seed) for seed in runs["seed"]})
    there = ", ".join(map(str, known))
    parts = {}
    for name, texts in (("choose_on", choose_on), ("report_on", report_on)):
        for text in texts:
            if not text.strip().isdecimal() or len(text) > _LONGEST_SEED:
                raise RequestError(f"--{name}: expected seeds, as 0,1. Received: {text[:_LONGEST_SEED]!r}")
            if int(text) not in known:
                raise RequestError(f"--{name}: no run has seed {int(text)}; there is {there}")
        parts[name] = tuple(sorted({int(text) for text in texts}))
    if both := set(parts["choose_on"]) & set(parts["report_on"]):
        told = ", ".join(map(str, sorted(both)))
        raise RequestError(f"--choose_on and --report_on share seed {told}: a seed that chooses is not reported")
    rest = tuple(seed for seed in known if seed not in parts["choose_on"] + parts["report_on"])
    roles = Seeds(parts["choose_on"] or rest, parts["report_on"] or rest)
    if not roles.choose_on or not roles.report_on:
        given, other = ("report_on", "choose") if not roles.choose_on else ("choose_on", "report")
        raise RequestError(f"--{given}: there is {there}, so no seed is left to {other}")
    return roles


_LONGEST_SEED = 20  # digits


@dataclass(frozen=True)
class Cell:
    """The runs of one row on one task.

    Attributes:
      rates: the learning rate chosen, cross-fitted the one that each half chose; where none is eligible, the one with
        the most scored seeds.
      eligible: whether it may be reported: no seed that chooses it or that is reported diverged, failed or has an
        undefined score there.
      scores: seed to score (a fraction) at that rate; cross-fitted the mean of what the two halves scored.
      collapsed_seeds: those of `scores` that predicted one class only, or a constant.
      ended: the other seeds that are reported, each to how it ended: `diverged`, `failed`, `undefined`.
      lost_anywhere: how many runs ended so, over all rates.
      asked: how many seeds are reported in the table.
      tried: the learning rates that were tried.
      chose_alone: the reported seeds that chose the rate, where others that are reported tried no other; empty where
        all chose, or none, or it was asked which seeds choose.
      epochs: how many epochs its runs train.
      runs: how many runs the cell was made from.
      tuned: the share of the encoder's weights tuned, in percent, lowest and highest; None where no run tells.
    """

    rates: tuple[float, ...]
    eligible: bool
    scores: Mapping[int, float]
    collapsed_seeds: frozenset[int]
    ended: Mapping[int, str]
    lost_anywhere: Mapping[str, int]
    asked: int
    tried: tuple[float, ...]
    chose_alone: tuple[int, ...]
    epochs: int
    runs: int
    tuned: tuple[float, float] | None

    @property
    def learning_rate(self) -> float:
        """The rate chosen; of a cross-fitted cell, which has two, the one that the first half chose."""
        return self.rates[0]

    @property
    def mean(self) -> float | None:
        """Mean over the seeds, None where no rate is eligible."""
        return statistics.fmean(self.scores.values()) if self.eligible else None

    @property
    def median(self) -> float | None:
        """Median over the seeds, None where no rate is eligible."""
        return statistics.median(self.scores.values()) if self.eligible else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds (n - 1 in the denominator), None for fewer than two."""
        return statistics.stdev(self.scores.values()) if self.eligible and len(self.scores) > 1 else None

    @property
    def lost(self) -> dict[str, int]:
        """`diverged`, `failed`, `undefined` to the number of the chosen rate's seeds that ended so."""
        return dict(sorted(Counter(self.ended.values()).items()))

    @property
    def collapsed(self) -> int:
        """How many of the scored seeds predicted one class only, or a constant."""
        return len(self.collapsed_seeds)

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
        return self.tell()

    def tell(self, median: bool = False) -> str:
        """The cell's text.

        Args:
          median: whether the median follows in brackets, where there are seeds enough for it to differ from the mean.
        """
        notes = []
        if len(self.scores) < self.asked:
            notes.append(f"{len(self.scores)}/{self.asked}")
        notes += [f"{number} {outcome}" for outcome, number in self.lost.items()]
        if self.shows_collapse:
            notes.append(f"{self.collapsed} collapsed")
        if self.eligible and self.chose_alone:
            seeds = ", ".join(map(str, self.chose_alone))
            notes.append(f"seed{'s' * (len(self.chose_alone) > 1)} {seeds} chose")
        behind = f" ({', '.join(notes)})" if notes else ""
        if self.mean is None:
            return f"-{behind}"
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        middle = f" [{100 * self.median:.1f}]" if median and self.median is not None and len(self.scores) > 2 else ""
        return f"{100 * self.mean:.1f}{spread}{middle}{self.mark}{behind}"

    def tell_seed(self, seed: int) -> str:
        """A seed's score at the chosen rate in percent, or how it ended; a dash where it did not run."""
        mark = COLLAPSED_MARK if seed in self.collapsed_seeds else ""
        return f"{100 * self.scores[seed]:.1f}{mark}" if seed in self.scores else self.ended.get(seed, "-")


@dataclass(frozen=True)
class _Try:
    """One run: how it ended, and what each choice sees of it; nothing where it was lost."""

    outcome: str
    folds: tuple[Fold, ...] = ()


def make_cell(runs: pd.DataFrame, asked: int, seeds: Seeds = ALL_SEEDS, protocol: str = "paper") -> Cell | None:
    """Chooses the learning rate of the runs of one row and column.

    A rate is eligible if none of its seeds was lost. Of the eligible ones those with the most seeds compete, so that
    one lucky seed does not beat the mean of three; the best mean wins, then the lower rate. Cross-fitted, each half
    chooses so by its own scores, and nothing of the other half has a say in it.

    Args:
      runs: rows of what `annotate` returns.
      asked: how many seeds are reported in the table.
      seeds: which seeds choose, and which are reported.
      protocol: `paper`, or `crossfit`, for which runs without scores on halves count as not there.

    Returns:
      The cell; None where no run is there.
    """
    tries = _read(runs, protocol)
    if not tries:
        return None
    chosen = [_choose(tries, fold, seeds.choose) for fold in range(1 if protocol == "paper" else 2)]
    rates = tuple(rate for rate, _ in chosen)
    scores, ended, collapsed = {}, {}, set()
    for seed in sorted({seed for by_seed in tries.values() for seed in by_seed if seeds.report(seed)}):
        found = [(fold, tries[rate][seed]) for fold, rate in enumerate(rates) if seed in tries[rate]]
        lost = [each.outcome for _, each in found if not each.folds]
        told = [each.folds[fold] for fold, each in found if each.folds]
        values = [fold.reports for fold in told if fold.reports is not None]
        if lost or len(values) < len(told):
            ended[seed] = lost[0] if lost else "undefined"
        elif len(values) == len(rates):
            scores[seed] = statistics.fmean(values)
            if any(fold.collapsed for fold in told):
                collapsed.add(seed)
    every = [each for by_seed in tries.values() for each in by_seed.values()]
    times = Counter(seed for by_seed in tries.values() for seed in by_seed if seed in scores)
    chose = tuple(sorted(seed for seed, number in times.items() if number > 1))
    alone = 0 < len(chose) < len(scores) and seeds.choose_on is None
    # Not where others are only missing yet, so that the rate with the most seeds was taken and not theirs.
    alone = alone and any(_choose(tries, fold, chose.__contains__)[0] == rate for fold, rate in enumerate(rates))
    percents = [float(value) for value in runs["tuned_percent"].dropna()]
    return Cell(
        rates=rates,
        eligible=all(eligible for _, eligible in chosen) and bool(scores) and not ended,
        scores=scores,
        collapsed_seeds=frozenset(collapsed),
        ended=ended,
        lost_anywhere=dict(sorted(Counter(each.outcome for each in every if each.outcome != "scored").items())),
        asked=asked,
        tried=tuple(sorted(tries)),
        chose_alone=chose if alone else (),
        epochs=int(runs["epochs"].iloc[0]),
        runs=len(every),
        tuned=(min(percents), max(percents)) if percents else None,
    )


def _read(runs: pd.DataFrame, protocol: str) -> dict[float, dict[int, _Try]]:
    """The runs by rate and seed."""
    tries: dict[float, dict[int, _Try]] = {}
    columns = ("learning_rate", "seed", "outcome", "score", "collapsed")
    halves = runs["folds"] if protocol == "crossfit" else [None] * len(runs)
    for (rate, seed, outcome, score, collapsed), both in zip(
        zip(*(runs[name] for name in columns), strict=True), halves, strict=True
    ):
        folds: tuple[Fold, ...] | None
        if outcome not in ("scored", "undefined"):
            folds = ()
        elif protocol == "crossfit":
            folds = both
            outcome = "undefined" if both and any(None in (each.chooses, each.reports) for each in both) else "scored"
        else:
            value = float(score) if outcome == "scored" else None
            folds = (Fold(value, value, collapsed == 1),)  # None or NaN where a record does not say
        if folds is not None:
            tries.setdefault(float(rate), {})[int(seed)] = _Try(outcome, folds)
    return tries


def _choose(tries: Mapping[float, Mapping[int, _Try]], fold: int, choose: Callable[[int], bool]) -> tuple[float, bool]:
    """The rate that a fold chooses, and whether it is eligible."""

    def standing(rate: float) -> tuple[bool, int, float, float]:
        mine = [each for seed, each in tries[rate].items() if choose(seed)]
        values = [value for each in mine if each.folds and (value := each.folds[fold].chooses) is not None]
        eligible = bool(values) and len(values) == len(mine)
        return eligible, len(values), statistics.fmean(values) if values else -math.inf, -rate

    chosen = max(tries, key=standing)
    return chosen, standing(chosen)[0]
