"""Two settings against each other: their paired difference on each task and over tasks, with its interval.

Each setting is taken at its own chosen learning rate, as tables take it. The difference is paired over the seeds that
both have, and over examples where the runs kept what they predicted (`tfmt.results.intervals`).
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmt.metrics import COLLAPSED_MARK
from tfmt.results import intervals
from tfmt.results.cells import ALL_SEEDS, Cell, Seeds
from tfmt.results.crossfit import (
    check_protocol,
    describe_crossfit,
    describe_paper_choice,
    protocols_of,
    tell_uncertain_halves,
)
from tfmt.results.formats import Block, Table
from tfmt.results.groups import (
    Group,
    column_title,
    describe_settings,
    differing_settings,
    group_runs,
    name_parts,
    tell_left_out,
)
from tfmt.results.intervals import (
    CONFIDENCE,
    SEEDS_ALONE,
    Interval,
    difference_interval,
    mean_interval,
    mean_over_tasks,
)
from tfmt.results.predicted import NotPredictedError, Predicted
from tfmt.results.row_names import find_row, split_names
from tfmt.results.rows import Row, annotate, keep_runs
from tfmt.results.stopped import tell_searched
from tfmt.results.tables import PROTOCOL_HEADINGS, format_rates, tell_choosers, tell_runs, tell_tries

if TYPE_CHECKING:
    import pandas as pd

# Why there is no interval, where the runs kept no predictions: the words of `Interval.method`.
NONE_ONE_SEED = "none: one run a setting, and no predictions"
NONE_SEEDS_EQUAL = "none: the seeds are equal, and no predictions"
_WITHOUT_PREDICTIONS = {
    intervals.SEEDS_ON_ONE_EXAMPLE: SEEDS_ALONE,
    intervals.NONE_ONE_NUMBER: NONE_ONE_SEED,
    intervals.NONE_NOTHING_VARIES: NONE_SEEDS_EQUAL,
}
_HEADS = ("difference", "low", "high", "interval", "rates", "lost and collapsed")


@dataclass(frozen=True)
class Difference:
    """The left setting less the right one on one task.

    Attributes:
      column: the task, as `Group.columns` names it.
      cells: the two settings' cells.
      seeds: of each side those that are compared, in pairs where both sides have them.
      scores: each side's mean score over these seeds, as a fraction.
      interval: of the difference, as fractions.
      examples: how many examples it is over; None where the runs' predictions are not at hand.
      reason: why they are not; empty where they are.
    """

    column: str
    cells: tuple[Cell, Cell]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    scores: tuple[float, float]
    interval: Interval
    examples: int | None
    reason: str

    @property
    def paired(self) -> bool:
        """Whether it is of runs with the same seeds."""
        return self.seeds[0] == self.seeds[1]


def compare_settings(
    runs: pd.DataFrame,
    settings: str,
    *,
    epoch: str = "best",
    protocol: str | None = None,
    roles: Seeds = ALL_SEEDS,
    predicted: Predicted | None = None,
) -> tuple[Table, ...]:
    """Two settings' difference on every task that both have, and its mean over these tasks.

    Args:
      runs: what `read_runs` returns.
      settings: `LEFT,RIGHT`, as `find_row` reads them: `layernorm,full`.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.
      protocol: `paper`: rate and epoch are chosen on the split that is reported; `crossfit`: on one half of it, and
        scored on the other; None for both, where records have scores on halves.
      roles: which seeds choose the learning rate, and which are compared.
      predicted: what the runs predicted, of that epoch; None compares over seeds alone.

    Returns:
      One table for each group of runs that may be compared and has both settings on a task, the largest first; one
      without rows where there is none.

    Raises:
      RequestError: what is compared is not two settings that runs have.
    """
    check_protocol(protocol)
    annotated = annotate(runs, epoch)
    left, right = (find_row(name, annotated["row"]) for name in split_names(settings))
    groups = group_runs(keep_runs(annotated, (row in (left, right) for row in annotated["row"])), roles)
    title = f"{left.title} against {right.title}"
    notes = tell_left_out(runs)
    found, apart = [], []
    for group in groups:
        views = {name: group.under(name) for name in protocols_of(group.runs, protocol)}
        if any(_both(view, column, left, right) for view in views.values() for column in view.columns):
            found.append((group, views))
        else:
            apart.append(next(iter(views.values())))
    if apart:
        differing = differing_settings(groups)
        notes = (f"Not compared: {'; '.join(_tell_apart(group, left, right, differing) for group in apart)}.", *notes)
    if not found:
        return (Table("compare", title, ("No task has runs of both that may be compared.", *notes), (), ()),)
    if predicted is not None:
        every = [view for _, views in found for view in views.values()]
        predicted.load((view, row, column) for view in every for column in view.columns
                       if _both(view, column, left, right) for row in (left, right))  # fmt: skip
    tables = []
    for (group, behind), (_, views) in zip(name_parts([group for group, _ in found]), found, strict=True):
        compared = {name: _compare_columns(view, left, right, predicted) for name, view in views.items()}
        tables.append(_tabulate(title + behind, group, (left, right), compared, epoch, notes))
    return tuple(tables)


def _both(group: Group, column: str, left: Row, right: Row) -> bool:
    """Whether both settings have a score on a task."""
    return all(_is_there(group.cells.get((row, column))) for row in (left, right))


def _tell_apart(group: Group, left: Row, right: Row, differing: list[str]) -> str:
    """Why nothing of a group can be compared."""
    reasons = _compare_columns(group, left, right, None)
    told = ", ".join(f"{column_title(column)} ({reason})" for column, reason in reasons.items())
    return told + (f" with {describe_settings(group, differing)}" if differing else "")


def _compare_columns(group: Group, left: Row, right: Row, predicted: Predicted | None) -> dict[str, Difference | str]:
    """The difference on each task, or why there is none."""
    return {column: compare_cells(group, column, left, right, predicted) for column in group.columns}


def compare_cells(group: Group, column: str, left: Row, right: Row, predicted: Predicted | None) -> Difference | str:
    """The difference of two rows on one task, or why there is none.

    Args:
      group: the runs, with the cells of a protocol.
      column: the task.
      left: the first row.
      right: the row that is taken from it.
      predicted: what the runs predicted, with these cells loaded; None compares over seeds alone.
    """
    ours, theirs = group.cells.get((left, column)), group.cells.get((right, column))
    lacking = [_tell_lacking(row, cell) for row, cell in ((left, ours), (right, theirs)) if not _is_there(cell)]
    if lacking or ours is None or theirs is None:
        return ", ".join(lacking)
    shared = tuple(seed for seed in ours.scores if seed in theirs.scores)
    seeds = (shared, shared) if shared else (tuple(ours.scores), tuple(theirs.scores))
    mine, others = ([cell.scores[seed] for seed in chosen] for cell, chosen in zip((ours, theirs), seeds, strict=True))
    reason = "no predictions were read"
    matrices: Mapping[Row, np.ndarray] | None = None
    if predicted is not None:
        try:
            matrices = predicted.of_cells(group, column, {left: seeds[0], right: seeds[1]})
            reason = ""
        except NotPredictedError as error:
            reason = str(error)
    values = (matrices[left], matrices[right]) if matrices else (np.array([mine]).T, np.array([others]).T)
    interval = mean_interval(values[0] - values[1]) if shared else difference_interval(*values)
    if matrices is None:
        interval = dataclasses.replace(interval, method=_WITHOUT_PREDICTIONS[interval.method])
    examples = values[0].shape[1] if matrices else None
    scores = (statistics.fmean(mine), statistics.fmean(others))
    return Difference(column, (ours, theirs), seeds, scores, interval, examples, reason)


def _is_there(cell: Cell | None) -> bool:
    return cell is not None and cell.eligible


def _tell_lacking(row: Row, cell: Cell | None) -> str:
    if cell is None:
        return f"no {row.title} runs"
    lost = ", ".join(f"{number} {outcome}" for outcome, number in cell.lost.items())
    return f"no rate of {row.title} is eligible ({lost})"


def _tabulate(
    title: str,
    group: Group,
    rows: tuple[Row, Row],
    compared: Mapping[str, Mapping[str, Difference | str]],
    epoch: str,
    notes: tuple[str, ...],
) -> Table:
    """A group's table, a block a protocol."""
    blocks, numbers = [], []
    for protocol, by_column in compared.items():
        found = [each for each in by_column.values() if isinstance(each, Difference)]
        lines = [_line(group, rows, each) for each in found]
        told = [_numbers(group, rows, each) for each in found]
        if len(found) > 1:
            mean = mean_over_tasks([each.interval for each in found])
            scores = [statistics.fmean(each.scores[side] for each in found) for side in (0, 1)]
            marks = [max(each.cells[side].mark for each in found) for side in (0, 1)]
            texts = [f"{100 * score:.1f}{mark}" for score, mark in zip(scores, marks, strict=True)]
            lines.append((f"mean of {len(found)} tasks", "-", "-", "-", *texts, *_tell_interval(mean), "-", "-"))
            told.append(
                {"left": rows[0].title, "right": rows[1].title, "column": "mean of tasks",
                 "tasks": [each.column for each in found], "left_score": scores[0], "right_score": scores[1],
                 **_interval_numbers(mean)}
            )  # fmt: skip
        heading = PROTOCOL_HEADINGS[protocol] if len(compared) > 1 or protocol != "paper" else ""
        heads = ("task", "score", "N", "seeds", rows[0].title, rows[1].title, *_HEADS)
        blocks += [Block(heading, heads, tuple(lines))] if lines else []
        numbers += [{"protocol": protocol, "epoch": epoch} | each for each in told]
    return Table("compare", title, _caption(group, rows, compared, epoch) + notes, tuple(blocks), tuple(numbers))


def _line(group: Group, rows: tuple[Row, Row], each: Difference) -> tuple[str, ...]:
    """A task's line."""
    return (
        column_title(each.column),
        _score_name(group, each.column),
        "-" if each.examples is None else f"{each.examples:,}",
        _tell_seeds(each),
        *(f"{100 * score:.1f}{cell.mark}" for score, cell in zip(each.scores, each.cells, strict=True)),
        *_tell_interval(each.interval),
        " / ".join(map(format_rates, each.cells)),
        _tell_lost(rows, each.cells),
    )


def _score_name(group: Group, column: str) -> str:
    return "/".join(sorted(set(group.runs.loc[group.runs["column"] == column, "score_name"].dropna())))


def _tell_seeds(each: Difference) -> str:
    """How many seeds, and of how many each side has, where these are not all."""
    ours, theirs = (len(cell.scores) for cell in each.cells)
    if not each.paired:
        return f"{ours} and {theirs}, none shared"
    count = len(each.seeds[0])
    return str(count) if count == ours == theirs else f"{count} shared of {ours} and {theirs}"


def _tell_interval(interval: Interval) -> tuple[str, str, str, str]:
    """Difference, low and high in points, and what the interval is over."""
    ends = ("-" if end is None else f"{100 * end:+.2f}" for end in (interval.low, interval.high))
    return (f"{100 * interval.mean:+.2f}", *ends, interval.method)  # type: ignore[return-value]


def _tell_lost(rows: tuple[Row, Row], cells: tuple[Cell, Cell]) -> str:
    """What collapsed at the chosen rate, and what was lost at any."""
    told = []
    for row, cell in zip(rows, cells, strict=True):
        counts = [f"{cell.collapsed} of {len(cell.scores)} collapsed"] if cell.shows_collapse else []
        counts += [f"{number} {outcome} at other rates" for outcome, number in cell.lost_anywhere.items()]
        told += [f"{row.title}: {', '.join(counts)}"] if counts else []
    return "; ".join(told) or "-"


def _numbers(group: Group, rows: tuple[Row, Row], each: Difference) -> dict[str, Any]:
    """A difference as numbers, with all that it hangs on."""
    numbers: dict[str, Any] = {"left": rows[0].title, "right": rows[1].title, "column": each.column}
    numbers |= {"task": each.column.partition(" ")[0], "score_name": _score_name(group, each.column)}
    numbers |= {"examples": each.examples, "paired": each.paired}
    for side, cell, seeds, score in zip(("left", "right"), each.cells, each.seeds, each.scores, strict=True):
        numbers |= {f"{side}_score": score, f"{side}_seeds": seeds, f"{side}_scores": dict(cell.scores)}
        numbers |= {f"{side}_learning_rates": cell.rates, f"{side}_collapsed": cell.collapsed}
        numbers |= {f"{side}_lost": dict(cell.lost_anywhere)}
    return numbers | _interval_numbers(each.interval) | {"not_predicted": each.reason}


def _interval_numbers(interval: Interval) -> dict[str, Any]:
    told = dataclasses.asdict(interval)
    return {"difference": told.pop("mean"), "confidence": CONFIDENCE} | told


def _caption(
    group: Group, rows: tuple[Row, Row], compared: Mapping[str, Mapping[str, Difference | str]], epoch: str
) -> tuple[str, ...]:
    """What the numbers are, line by line."""
    left, right = (row.title for row in rows)
    found = [each for by_column in compared.values() for each in by_column.values() if isinstance(each, Difference)]
    lines = [
        f"Points (percent of the score) on the development split, {epoch} epoch of each run: {left} less {right},"
        f" {group.roles.describe(group.seeds)}, each setting's own. Run against run where both have a seed.",
        f"Low, high: a {100 * CONFIDENCE:.0f} % interval for other seeds and other examples.",
    ]
    if "paper" in compared:
        lines[-1] += " Of the choice below it knows nothing."
        lines.append(describe_paper_choice(epoch))
        lines += tell_tries(group.cells) if epoch == "best" else []
    lines += tell_choosers(cell for each in found for cell in each.cells)
    if "crossfit" in compared:
        names = group.runs["score_name"].dropna()
        lines += [describe_crossfit(epoch, names), *tell_uncertain_halves(group.runs)]
    lines += tell_searched(group.runs, halves="crossfit" in compared)
    if any(cell.mark for each in found for cell in each.cells):
        lines.append(
            f"{COLLAPSED_MARK}: with runs that collapsed, which predict one class only, or a constant; a difference"
            " from such a number says little of the settings."
        )
    if len({each.column for each in found}) > 1:
        lines.append(
            "The mean over tasks counts each alike. The tasks were chosen and not drawn: its interval is for other"
            " seeds and examples on the same tasks."
        )
    alone = {each.column: each.reason for each in found if each.reason}
    if alone:
        told = "; ".join(f"{column_title(column)} ({reason})" for column, reason in alone.items())
        lines.append(f"Over seeds alone, as what the runs predicted is not at hand: {told}.")
    for protocol, by_column in compared.items():
        missing = {column: each for column, each in by_column.items() if isinstance(each, str)}
        if missing:
            told = "; ".join(f"{column_title(column)} ({reason})" for column, reason in missing.items())
            behind = ", cross-fitted" if protocol == "crossfit" else ""
            lines.append(f"Left out{behind}: {told}.")
    told = describe_settings(group)
    return (*lines, f"{told[0].upper()}{told[1:]}.", *tell_runs(group.runs))
