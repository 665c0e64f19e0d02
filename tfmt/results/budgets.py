"""Ways of choosing weights against each other at equal counts: each one's score by how many weights it may tune.

A *method* is a `custom` row without its budget. Each chooses its learning rate for every budget by itself: one rate for
all would decide the ranking.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from tfmt.expressions import split_label
from tfmt.metrics import COLLAPSED_MARK
from tfmt.results.cells import ALL_SEEDS, Cell, Seeds
from tfmt.results.comparing import Difference, compare_cells
from tfmt.results.crossfit import (
    check_protocol,
    describe_crossfit,
    describe_paper_choice,
    protocols_of,
    tell_uncertain_halves,
)
from tfmt.results.formats import Block, Table
from tfmt.results.groups import Group, column_title, describe_settings, group_runs, name_parts, tell_left_out
from tfmt.results.intervals import CONFIDENCE, SEEDS_ALONE, mean_over_tasks
from tfmt.results.rows import Row, annotate, keep_runs
from tfmt.results.stopped import tell_searched
from tfmt.results.tables import (
    RATES,
    format_percent,
    format_rates,
    number_cell,
    tell_choosers,
    tell_runs,
    tell_scores,
    tell_tries,
)
from tfmt.selection.stored import SelectionFacts

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.results.predicted import Predicted
    from tfmt.runs.records import Record

TITLE = "Budgets: ways of choosing weights, at equal counts"
FLAGFILE = "budget.flags"
MEAN = "mean of tasks"
LOWEST, HIGHEST = "↓", "↑"  # behind a score whose rate is the lowest or highest that was tried


@dataclass(frozen=True)
class Budget:
    """How many weights of the encoder train, lowest and highest, and their share in percent, by column."""

    counts: Mapping[str, tuple[int, int]]
    percents: Mapping[str, tuple[float, float]]

    def tell(self, columns: Iterable[str]) -> str:
        """`6,144 (0.0056 %)` of these columns."""
        columns = list(columns)
        counts = [self.counts[column] for column in columns if column in self.counts]
        percents = [self.percents[column] for column in columns if column in self.percents]
        return f"{tell_counts(counts)} ({tell_percents(percents)} %)" if counts and percents else "-"

    def mean_count(self, columns: Iterable[str]) -> float:
        """The mean count over these columns."""
        return statistics.fmean(sum(self.counts[column]) / 2 for column in columns if column in self.counts)


@dataclass(frozen=True)
class Frontier:
    """The runs of a group that have a budget, and what stands beside them.

    Attributes:
      group: the runs.
      columns: the tasks that have runs with a budget.
      methods: rows without their budget.
      budgets: the fewest weights first.
      rows: (method, place in `budgets`, column) to row.
      others: rows without a budget, of whole models, that these tasks have.
    """

    group: Group
    columns: tuple[str, ...]
    methods: tuple[Row, ...]
    budgets: tuple[Budget, ...]
    rows: Mapping[tuple[Row, int, str], Row] = field(repr=False)
    others: tuple[Row, ...]

    def under(self, protocol: str) -> Frontier:
        """The same with the cells of a protocol."""
        return replace(self, group=self.group.under(protocol))

    def cell(self, method: Row, number: int, column: str) -> Cell | None:
        """A method's cell at a budget."""
        row = self.rows.get((method, number, column))
        return None if row is None else self.group.cells.get((row, column))

    def cells(self, method: Row, number: int) -> list[Cell] | None:
        """A method's cells at a budget, one a task; None where a task has no score."""
        found = [self.cell(method, number, column) for column in self.columns]
        known = [cell for cell in found if cell and cell.eligible]
        return known if len(known) == len(found) else None

    def count_of(self, row: Row, columns: Sequence[str]) -> float:
        """How many weights a row tunes, the mean over these columns."""
        runs = self.group.runs
        mine = runs[(runs["row"] == row) & runs["column"].isin(columns)].dropna(subset="tuned")
        return float(mine.groupby("column")["tuned"].mean().mean())

    def other_cells(self, row: Row) -> list[Cell] | None:
        """The same of a row without a budget."""
        found = [self.group.cells.get((row, column)) for column in self.columns]
        known = [cell for cell in found if cell and cell.eligible]
        return known if len(known) == len(found) else None


def find_frontier(group: Group) -> Frontier | None:
    """The runs of a group by method and budget; None where no run has a budget.

    Rows that tune equally many weights of one task are of one budget, however it was written.
    """
    known = group.runs.dropna(subset="tuned")
    counts: dict[tuple[Row, str], tuple[int, int]] = {}
    for place, part in known.groupby(["row", "column"], sort=False):
        counts[cast("tuple[Row, str]", place)] = int(part["tuned"].min()), int(part["tuned"].max())
    rows = [row for row in group.rows if row.budget and any(there == row for there, _ in counts)]
    if not rows:
        return None
    columns = tuple(column for column in group.columns if any((row, column) in counts for row in rows))
    parts = _join_equal(rows, columns, counts)
    parts.sort(key=lambda part: min(count for (row, _), count in counts.items() if row in part))
    budgets: list[Budget] = []
    places: dict[tuple[Row, int, str], Row] = {}
    for number, mine in enumerate(parts):
        here = {column: [row for row in mine if (row, column) in counts] for column in columns}
        here = {column: found for column, found in here.items() if found}
        budgets.append(
            Budget(
                {column: _range(counts[row, column] for row in found) for column, found in here.items()},
                {column: _range(cell.tuned for row in found if (cell := group.cells.get((row, column))) and cell.tuned)
                 for column, found in here.items() if any((row, column) in group.cells for row in found)},
            )
        )  # fmt: skip
        for row in mine:
            for column in columns:
                if (row, column) in group.cells:
                    places.setdefault((replace(row, budget=""), number, column), row)
    methods = tuple(sorted({method for method, _, _ in places}, key=lambda row: row.order))
    others = tuple(
        row for row in group.rows
        if not row.budget and row.layers == "all" and any((row, column) in group.cells for column in columns)
    )  # fmt: skip
    return Frontier(group, columns, methods, tuple(budgets), places, others)


def _join_equal(
    rows: Sequence[Row], columns: Sequence[str], counts: Mapping[tuple[Row, str], tuple[int, int]]
) -> list[list[Row]]:
    """Rows in parts: those are together that have equal counts on a column, or a chain of such rows between them."""
    parts: list[list[Row]] = []
    for row in rows:
        mine = {(column, counts[row, column]) for column in columns if (row, column) in counts}
        near = [part for part in parts if any(counts.get((other, at)) == count for other in part for at, count in mine)]
        parts = [part for part in parts if part not in near] + [[each for part in near for each in part] + [row]]
    return parts


def _range(pairs: Iterable[tuple[Any, Any]]) -> tuple[Any, Any]:
    pairs = list(pairs)
    return min(low for low, _ in pairs), max(high for _, high in pairs)


def mean_over_columns(cells: Sequence[Cell]) -> tuple[float, float | None]:
    """The mean of cells with a score, one a task, and the deviation over seeds of a seed's mean over the tasks."""
    mean = statistics.fmean(cell.mean for cell in cells if cell.mean is not None)
    shared = set.intersection(*(set(cell.scores) for cell in cells))
    by_seed = [statistics.fmean(cell.scores[seed] for cell in cells) for seed in sorted(shared)]
    return mean, statistics.stdev(by_seed) if len(by_seed) > 1 else None


def find_edge(cell: Cell | None) -> str:
    """`↓` where the chosen rate is the lowest of several that were tried, `↑` where it is the highest, else nothing."""
    if cell is None or not cell.eligible or len(cell.tried) < 2:
        return ""
    return LOWEST * (min(cell.rates) == cell.tried[0]) + HIGHEST * (max(cell.rates) == cell.tried[-1])


def tell_counts(counts: Iterable[tuple[int, int]]) -> str:
    """`6,144`, or `6,111 to 6,144`; a dash for none."""
    counts = list(counts)
    if not counts:
        return "-"
    low, high = _range(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def tell_percents(percents: Iterable[tuple[float, float]]) -> str:
    """`0.0056`, or `0.0056 to 0.0057`; a dash for none."""
    percents = list(percents)
    if not percents:
        return "-"
    low, high = map(format_percent, _range(percents))
    return low if low == high else f"{low} to {high}"


# ---- the table ------------------------------------------------------------------------------------------------------


def build_budgets(
    runs: pd.DataFrame,
    records: Iterable[Record] = (),
    epoch: str = "best",
    *,
    protocol: str | None = None,
    roles: Seeds = ALL_SEEDS,
    predicted: Predicted | None = None,
) -> tuple[Table, ...]:
    """Methods by budgets on each task and over tasks, and beside them what was tuned without a budget.

    Args:
      runs: what `read_runs` returns.
      records: of the runs, for what selecting cost and how much of it can move.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.
      protocol: `paper`: rate and epoch are chosen on the split that is reported; `crossfit`: on one half of it, and
        scored on the other; None for both, where records have scores on halves.
      roles: which seeds choose the learning rate, and which are reported.
      predicted: what the runs predicted, of that epoch; without it what is clear is told over seeds alone.

    Returns:
      One table for each group of runs that may be compared and has budgets, the largest first; one without rows where
      there is none.

    Raises:
      RequestError: no such epoch or protocol, or runs that no table can tell apart.
    """
    check_protocol(protocol)
    notes = tell_left_out(runs)
    found = [(group, one) for group in group_runs(annotate(runs, epoch), roles) if (one := find_frontier(group))]
    if not found:
        caption = (f"No runs for it here. Make them: tfmt-sweep --flagfile={FLAGFILE}", *notes)
        return (Table("budget", TITLE, caption, (), ()),)
    facts = {record.run_id: record.selection for record in records if record.selection}
    names = name_parts([group for group, _ in found])
    return tuple(
        _Filler(one, facts, epoch, predicted).fill(TITLE + behind, protocol, notes)
        for (_, one), (_, behind) in zip(found, names, strict=True)
    )


@dataclass
class _Filler:
    """Makes one group's table."""

    frontier: Frontier
    facts: Mapping[str, SelectionFacts]
    epoch: str
    predicted: Predicted | None

    def __post_init__(self) -> None:
        runs = self.frontier.group.runs
        self.by_place: dict[tuple[Row, str], list[tuple[SelectionFacts, int]]] = {}
        for row, column, run_id, tuned in zip(*(runs[n] for n in ("row", "column", "run_id", "tuned")), strict=True):
            if run_id in self.facts and tuned == tuned:
                self.by_place.setdefault((row, column), []).append((self.facts[run_id], int(tuned)))
        self.numbers: list[dict[str, Any]] = []
        self.marks: set[str] = set()
        self.methods_of_intervals: set[str] = set()

    def fill(self, title: str, protocol: str | None, notes: tuple[str, ...]) -> Table:
        group = self.frontier.group
        views = protocols_of(group.runs[group.runs["column"].isin(self.frontier.columns)], protocol)
        blocks: list[Block] = []
        rates: list[Block] = []
        for view in views:
            one = self.frontier.under(view)
            self._load(one)
            behind = "" if view == "paper" else ", cross-fitted"
            for column in one.columns:
                blocks.append(self._score(one, column, view, column_title(column) + behind))
            if len(one.columns) > 1:
                blocks.append(self._average(one, view, f"Mean of {len(one.columns)} tasks{behind}"))
            if one.others:
                blocks.append(self._beside(one, view, f"Without a budget{behind}"))
            rates.append(self._rates(one, RATES[view]))
        return Table("budget", title, self._caption(views) + notes, (*blocks, *rates), tuple(self.numbers))

    def _load(self, one: Frontier) -> None:
        if self.predicted is not None:
            places = {(row, column): one.group.cells.get((row, column)) for (_, _, column), row in one.rows.items()}
            self.predicted.load((one.group, *place) for place, cell in places.items() if cell and cell.eligible)

    def _score(self, one: Frontier, column: str, view: str, title: str) -> Block:
        """A task's grid."""
        shown = [number for number in range(len(one.budgets)) if any(one.cell(m, number, column) for m in one.methods)]
        best = {number: self._find_best(one, number, (column,)) for number in shown}
        movable = self._any_stuck((row, at) for (_, _, at), row in one.rows.items() if at == column)
        lines: list[tuple[str, ...]] = []
        bold: set[tuple[int, int]] = set()
        for method in one.methods:
            line = [one.cell(method, number, column) for number in shown]
            if not any(line):
                continue
            rows = [(one.rows[method, n, column], column) for n in shown if (method, n, column) in one.rows]
            texts = [self._tell(cell) for cell in line]
            bold |= {(len(lines), 1 + i) for i, number in enumerate(shown) if best[number] == method}
            lines.append((method.title, *texts, *self._behind(rows, movable)))
            for number, cell in zip(shown, line, strict=True):
                if cell is not None:
                    row = one.rows[method, number, column]
                    self._number(one, row, column, cell, view, {"clearly_best": best[number] == method})
        heads = ("", *(one.budgets[number].tell((column,)) for number in shown), *self._heads(movable))
        return Block(title, heads, tuple(lines), frozenset(bold))

    def _average(self, one: Frontier, view: str, title: str) -> Block:
        """The grid of means over tasks."""
        shown = range(len(one.budgets))
        best = {number: self._find_best(one, number, one.columns) for number in shown}
        movable = self._any_stuck((row, column) for (_, _, column), row in one.rows.items())
        lines: list[tuple[str, ...]] = []
        bold: set[tuple[int, int]] = set()
        for method in one.methods:
            texts = []
            for number in shown:
                cells = one.cells(method, number)
                if cells is None:
                    texts.append("-")
                    continue
                mean, deviation = mean_over_columns(cells)
                edges = "".join(sorted({sign for cell in cells for sign in find_edge(cell)}))
                texts.append(_tell_score(mean, deviation, max(cell.mark for cell in cells), edges))
                clear = best[number] == method
                bold |= {(len(lines), 1 + number)} if clear else set()
                low, high = _range(one.budgets[number].counts.values())
                self.numbers.append(
                    {"protocol": view, "row": method.title, **asdict(method), "column": MEAN, "epoch": self.epoch}
                    | {"tasks": list(one.columns), "mean": mean, "deviation": deviation, "method": method.title}
                    | {"tuned_min": low, "tuned_max": high, "edge": edges, "clearly_best": clear}
                )
            rows = [(one.rows[key], key[2]) for key in one.rows if key[0] == method]
            lines.append((method.title, *texts, *self._behind(rows, movable)))
        heads = ("", *(budget.tell(one.columns) for budget in one.budgets), *self._heads(movable))
        return Block(title, heads, tuple(lines), frozenset(bold))

    def _beside(self, one: Frontier, view: str, title: str) -> Block:
        """The grid of what has no budget."""
        several = ("average",) if len(one.columns) > 1 else ()
        movable = self._any_stuck((row, column) for row in one.others for column in one.columns)
        lines: list[tuple[str, ...]] = []
        for row in one.others:
            mine = [(row, column) for column in one.columns]
            line = [one.group.cells.get(place) for place in mine]
            texts = [self._tell(cell) for cell in line]
            cells = one.other_cells(row)
            if several:
                texts.append(_tell_score(*mean_over_columns(cells), max(c.mark for c in cells)) if cells else "-")
            percent = tell_percents(cell.tuned for cell in line if cell and cell.tuned)
            counts = [pair for column in one.columns for pair in self._tuned(row, column)]
            lines.append((row.title, tell_counts(counts), percent, *texts, *self._behind(mine, movable)))
            for cell, column in zip(line, one.columns, strict=True):
                if cell is not None:
                    self._number(one, row, column, cell, view, {})
        titles = tuple(map(column_title, one.columns))
        return Block(title, ("", "tuned", "tuned %", *titles, *several, *self._heads(movable)), tuple(lines))

    def _rates(self, one: Frontier, title: str) -> Block:
        """The learning rate of each method at each budget."""
        lines = []
        for method in one.methods:
            for number, budget in enumerate(one.budgets):
                line = [one.cell(method, number, column) for column in one.columns]
                if any(line):
                    lines.append((method.title, budget.tell(one.columns), *map(_tell_rate, line)))
        for row in one.others:
            lines.append((row.title, "-", *(_tell_rate(one.group.cells.get((row, column))) for column in one.columns)))
        return Block(title, ("", "budget", *map(column_title, one.columns)), tuple(lines))

    def _find_best(self, one: Frontier, number: int, columns: Sequence[str]) -> Row | None:
        """The method that is clearly better than every other at a budget, on a task or on their mean; None for none."""
        means: dict[Row, float] = {}
        for method in one.methods:
            found = [one.cell(method, number, column) for column in columns]
            values = [cell.mean for cell in found if cell and cell.mean is not None]
            if len(values) == len(columns):
                means[method] = statistics.fmean(values)
        if len(means) < 2:
            return None
        best = max(means, key=lambda method: means[method])
        if any(cell and cell.shows_collapse for cell in (one.cell(best, number, column) for column in columns)):
            return None
        return (
            best if all(self._is_clear(one, number, columns, best, other) for other in means if other != best) else None
        )

    def _is_clear(self, one: Frontier, number: int, columns: Sequence[str], best: Row, other: Row) -> bool:
        intervals = []
        for column in columns:
            rows = (one.rows[best, number, column], one.rows[other, number, column])
            found = compare_cells(one.group, column, *rows, self.predicted)
            if not isinstance(found, Difference):
                return False
            intervals.append(found.interval)
        interval = intervals[0] if len(columns) == 1 else mean_over_tasks(intervals)
        self.methods_of_intervals.update(interval.method.split("; "))
        return interval.low is not None and interval.low > 0

    def _tell(self, cell: Cell | None) -> str:
        edge = find_edge(cell)
        self.marks.update(edge)
        return f"{cell.text} {edge}".rstrip() if cell else "-"

    # ---- what selecting cost, and what can move

    def _heads(self, movable: bool) -> tuple[str, ...]:
        return (("backward passes",) if self.by_place else ()) + (("can move",) if movable else ())

    def _behind(self, places: Sequence[tuple[Row, str]], movable: bool) -> list[str]:
        """What stands below these heads."""
        return ([self._cost(places)] if self.by_place else []) + ([self._movable(places)] if movable else [])

    def _cost(self, places: Iterable[tuple[Row, str]]) -> str:
        """What it took to find the weights of cells."""
        costs = [facts.cost for place in places for facts, _ in self.by_place.get(place, ())]
        if not costs:
            return "-"
        passes = tell_counts((cost.backward_passes, cost.backward_passes) for cost in costs)
        if not any(cost.full_run for cost in costs):
            return passes
        return "a full run" + ("" if passes == "0" else f" and {passes}")

    def _shares(self, places: Iterable[tuple[Row, str]]) -> list[float]:
        """The shares of the selected weights that the training data can move."""
        known = [pair for place in places for pair in self.by_place.get(place, ())]
        return [facts.movable / tuned for facts, tuned in known if facts.movable is not None and tuned]

    def _any_stuck(self, places: Iterable[tuple[Row, str]]) -> bool:
        return any(share < 1 for share in self._shares(places))

    def _movable(self, places: Iterable[tuple[Row, str]]) -> str:
        shares = [math.floor(1000 * share) / 10 for share in self._shares(places)]  # less than all is never `100 %`
        if not shares:
            return "-"
        low, high = f"{min(shares):g}", f"{max(shares):g}"
        return f"{low} %" if low == high else f"{low} to {high} %"

    def _number(self, one: Frontier, row: Row, column: str, cell: Cell, view: str, more: dict[str, Any]) -> None:
        """A cell as numbers."""
        known = self.by_place.get((row, column), ())
        (low, high), *_ = [*self._tuned(row, column), (None, None)]
        told = {
            "method": replace(row, budget="").title,
            "tuned_min": low,
            "tuned_max": high,
            "edge": find_edge(cell),
            "backward_passes": max((facts.cost.backward_passes for facts, _ in known), default=None),
            "full_run": any(facts.cost.full_run for facts, _ in known) if known else None,
            "selecting_seconds": max((facts.cost.seconds for facts, _ in known), default=None),
            "movable": min(self._shares([(row, column)]), default=None),
        }
        self.numbers.append(number_cell(one.group, cell, row, column, self.epoch, view) | told | more)

    def _tuned(self, row: Row, column: str) -> list[tuple[int, int]]:
        """The lowest and highest count of weights that a row tunes on a task, if a run tells."""
        runs = self.frontier.group.runs
        mine = runs.loc[(runs["row"] == row) & (runs["column"] == column), "tuned"].dropna()
        return [(int(mine.min()), int(mine.max()))] if len(mine) else []

    def _caption(self, views: Sequence[str]) -> tuple[str, ...]:
        """What the numbers are, line by line."""
        one = self.frontier
        group = one.group
        rows = {*one.rows.values(), *one.others}
        shown = keep_runs(group.runs, (row in rows for row in group.runs["row"]))
        shown = shown[shown["column"].isin(one.columns)]
        places = {(row, column) for row in rows for column in one.columns}
        cells = [cell for view in views for place, cell in group.under(view).cells.items() if place in places]
        lines = [
            f"Percent on the development split, {self.epoch} epoch of each run: mean ± sample standard deviation"
            f" (n - 1) {group.roles.describe(group.seeds)}, chosen for each method, budget and task by itself. Columns:"
            " weights of the encoder that train, and percent of it; the head trains beside them and is not counted.",
            f"Bold: better than every other method of its column, by the {100 * CONFIDENCE:.0f} % interval of each"
            f" difference{self._tell_intervals()}; of many comparisons some are clear by chance.",
        ]
        if self.marks:
            lines.append(
                f"{LOWEST} and {HIGHEST}: the rate is the lowest or highest of those that were tried, so that a better"
                " one may lie beyond."
            )
        lines += [describe_paper_choice(self.epoch)] if "paper" in views else []
        lines += tell_choosers(cells)
        if "paper" in views and self.epoch == "best":
            lines += tell_tries({place: cell for place, cell in group.cells.items() if place[0] in rows})
        if "crossfit" in views:
            lines += [describe_crossfit(self.epoch, shown["score_name"].dropna()), *tell_uncertain_halves(shown)]
        lines += tell_searched(shown, halves="crossfit" in views)
        if self.by_place:
            lines.append(
                "Backward passes: what it took to find the weights, on one example or a batch each, beside the"
                " training. Can move: the share of them that the training data give a gradient, where that is not all."
            )
        if any(cell.mark for cell in cells):
            lines.append(f"{COLLAPSED_MARK}: with runs that collapsed, which predict one class only, or a constant.")
        named = dict(split_label(row.select) for row in sorted(rows, key=lambda row: row.order))
        if told := "; ".join(f"{name} = {expression}" for name, expression in named.items() if name):
            lines.append(f"Selections: {told}.")
        settings = describe_settings(group)
        lines += [f"Scores: {tell_scores(shown, one.columns)}.", f"{settings[0].upper()}{settings[1:]}."]
        return (*lines, *tell_runs(shown))

    def _tell_intervals(self) -> str:
        """What the intervals are over."""
        alone = SEEDS_ALONE in self.methods_of_intervals
        if not alone:
            return " over seeds and examples"
        return " over seeds alone, as predictions are missing" + (
            " of some" if len(self.methods_of_intervals) > 1 else ""
        )


def _tell_score(mean: float, deviation: float | None, mark: str, edge: str = "") -> str:
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{100 * mean:.1f}{spread}{mark} {edge}".rstrip()


def _tell_rate(cell: Cell | None) -> str:
    if cell is None or not cell.eligible:
        return "-"
    return f"{format_rates(cell)}{cell.mark} {find_edge(cell)}".rstrip()
