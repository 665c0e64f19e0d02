"""How much of a score is that it was chosen: the papers' protocol against the last epoch and against cross-fitting.

Optimism is the field's word (Efron 1986) for what a score gains by being of the data that chose it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tfmt.results.cells import ALL_SEEDS, Cell, Seeds
from tfmt.results.crossfit import (
    check_protocol,
    describe_crossfit,
    protocols_of,
    tell_uncertain_halves,
)
from tfmt.results.formats import Block, Table
from tfmt.results.groups import Group, column_title, describe_settings, group_runs, name_parts, tell_left_out
from tfmt.results.rows import Row, annotate, none_if_missing
from tfmt.results.stopped import tell_searched
from tfmt.results.tables import average, tell_runs, tell_tries

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Optimism: what choosing on the reported split gains"


@dataclass(frozen=True)
class Gain:
    """What the papers' protocol shows above another score of the same cell.

    Attributes:
      by_seed: seed to difference, as a fraction; of the seeds that both have.
      asked: how many seeds are reported in the table.
      collapsed: how many of them are of runs that collapsed, on either side.
    """

    by_seed: Mapping[int, float]
    asked: int
    collapsed: int

    @property
    def mean(self) -> float | None:
        """Mean over the seeds, None without any."""
        return statistics.fmean(self.by_seed.values()) if self.by_seed else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, None for fewer than two."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    @property
    def text(self) -> str:
        """`+1.3 ± 0.4` in points, with what the reader must know of its seeds behind it."""
        if self.mean is None:
            return "-"
        notes = [f"{len(self.by_seed)}/{self.asked}"] if len(self.by_seed) < self.asked else []
        notes += [f"{self.collapsed} collapsed"] if self.collapsed else []
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return tell_points(self.mean) + spread + (f" ({', '.join(notes)})" if notes else "")


def tell_points(difference: float) -> str:
    """A difference of scores in percent, with its sign; 0.0 has none."""
    return f"{100 * difference:+.1f}" if abs(difference) >= 0.0005 else "0.0"


def build_optimism(
    runs: pd.DataFrame, epoch: str = "best", *, protocol: str | None = None, roles: Seeds = ALL_SEEDS
) -> tuple[Table, ...]:
    """What the best of all epochs and rates gains over the last epoch, and over the cross-fitted score.

    Args:
      runs: what `read_runs` returns.
      epoch: `best`; with `last` the rates alone were chosen, and there is nothing to gain over the last epoch.
      protocol: `paper` leaves the gain over the last epoch alone, `crossfit` that over the cross-fitted score; None:
        both.
      roles: which seeds choose the learning rate, and which are reported.

    Returns:
      One table for each group of runs that may be compared, the largest first; without runs one without rows.

    Raises:
      RequestError: no such epoch or protocol, or runs that no table can tell apart.
    """
    check_protocol(protocol)
    notes = tell_left_out(runs)
    groups = group_runs(annotate(runs, epoch), roles)
    if not groups:
        return (Table("optimism", TITLE, ("No runs.", *notes), (), ()),)
    return tuple(_fill(TITLE + behind, group, epoch, protocol, notes) for group, behind in name_parts(groups))


def _fill(title: str, group: Group, epoch: str, protocol: str | None, notes: tuple[str, ...]) -> Table:
    gains: dict[str, dict[tuple[Row, str], Gain]] = {}
    if epoch == "best" and protocol != "crossfit":
        gains["last"] = {place: _over_last(group, *place) for place in group.cells}
    if "crossfit" in protocols_of(group.runs, protocol):
        fitted = group.under("crossfit").cells
        gains["crossfit"] = {place: _over_crossfit(cell, fitted.get(place)) for place, cell in group.cells.items()}
    heads = tuple(map(column_title, group.columns))
    several = ("average",) if len(heads) > 1 else ()
    blocks = []
    for name, mine in gains.items():
        lines = []
        for row in group.rows:
            found = [mine.get((row, column)) for column in group.columns]
            mean = average(gain.mean if gain else None for gain in found)
            texts = [gain.text if gain else "-" for gain in found]
            lines.append((row.title, *texts, *(["-" if mean is None else tell_points(mean)] if several else [])))
        blocks.append(Block(_HEADINGS[name], ("", *heads, *several), tuple(lines)))
    tries = tuple(
        (row.title, *(_tries(group.cells.get((row, column)), epoch) for column in group.columns)) for row in group.rows
    )
    blocks.append(Block("Tries of each seed", ("", *heads), tries))
    numbers = []
    for (row, column), cell in sorted(group.cells.items(), key=lambda place: (place[0][0].order, place[0][1])):
        told: dict[str, Any] = {"row": row.title, **asdict(row), "column": column, "task": column.partition(" ")[0]}
        told |= {"epoch": epoch, "mean": cell.mean, "epochs": cell.epochs, "rates": len(cell.tried)}
        for name, mine in gains.items():
            gain = mine[row, column]
            told |= {f"over_{name}": gain.mean, f"over_{name}_deviation": gain.deviation}
            told |= {f"over_{name}_seeds": dict(gain.by_seed), f"over_{name}_collapsed": gain.collapsed}
        numbers.append(told)
    return Table("optimism", title, _caption(group, epoch, list(gains)) + notes, tuple(blocks), tuple(numbers))


_HEADINGS = {
    "last": "Best epoch above the last epoch of the same runs",
    "crossfit": "Above the cross-fitted score",
}


def _over_last(group: Group, row: Row, column: str) -> Gain:
    """The best epochs of the chosen rate's runs above their last ones."""
    cell = group.cells[row, column]
    runs = group.runs[(group.runs["row"] == row) & (group.runs["column"] == column)]
    runs = runs[runs["learning_rate"] == cell.learning_rate]
    last = {int(seed): none_if_missing(score) for seed, score in zip(runs["seed"], runs["score_last"], strict=True)}
    scores = cell.scores if cell.eligible else {}
    by_seed = {seed: best - score for seed, best in scores.items() if (score := last[seed]) is not None}
    return Gain(by_seed, cell.asked, len(cell.collapsed_seeds & set(by_seed)))


def _over_crossfit(cell: Cell, fitted: Cell | None) -> Gain:
    """The scores that chose themselves above those that did not."""
    if fitted is None or not (cell.eligible and fitted.eligible):
        return Gain({}, cell.asked, 0)
    by_seed = {seed: score - fitted.scores[seed] for seed, score in cell.scores.items() if seed in fitted.scores}
    return Gain(by_seed, cell.asked, len((cell.collapsed_seeds | fitted.collapsed_seeds) & set(by_seed)))


def _tries(cell: Cell | None, epoch: str) -> str:
    if cell is None:
        return "-"
    return f"{cell.epochs if epoch == 'best' else 1} x {len(cell.tried)}"


def _caption(group: Group, epoch: str, gains: list[str]) -> tuple[str, ...]:
    what = "epochs and rates" if epoch == "best" else "rates, last epochs"
    lines = [
        f"Points, percent of the score on the development split: how far the papers' protocol, the best of all {what}"
        " on the split that is reported, lies above another score of the same seeds; mean ± sample standard deviation"
        f" (n - 1) of the differences {group.roles.describe(group.seeds)}.",
    ]
    if "last" in gains:
        lines.append(
            "Above the last epoch: of the same runs, at the rate that their best epochs chose. What stopping in time is"
            " worth is in it, and luck."
        )
    if "crossfit" in gains:
        lines += [
            describe_crossfit(epoch, group.runs["score_name"].dropna()),
            "Above the cross-fitted score: luck in choosing, and what it costs to choose by half the examples.",
            *tell_uncertain_halves(group.runs),
        ]
    lines += tell_searched(group.runs, halves="crossfit" in gains)
    planned = "planned epochs" if group.settings["early_stopping"] else "epochs"
    lines.append(f"Tries: {planned if epoch == 'best' else 'the last epoch'} x learning rates.")
    lines += tell_tries(group.cells) if epoch == "best" else []
    lines.append(
        "A dash: no runs, no eligible rate, or no score to compare with. (2/3): fewer seeds than the table has."
    )
    settings = f"{describe_settings(group)}."
    return (*lines, settings[0].upper() + settings[1:], *tell_runs(group.runs))
