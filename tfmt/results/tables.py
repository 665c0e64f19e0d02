"""The papers' tables, from runs.

Each table is a `Layout`: which runs are its rows, which runs of other tables stand above them for comparison, and what
the paper's own table holds. The cells and the choice of the learning rate are in `cells`, what may share a table in
`groups`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from tfmt import protocol
from tfmt.errors import RequestError
from tfmt.expressions import shorten
from tfmt.metrics import COLLAPSED_MARK
from tfmt.results.cells import ALL_SEEDS, Cell, Seeds
from tfmt.results.crossfit import (
    check_protocol,
    describe_crossfit,
    describe_paper_choice,
    protocols_of,
    tell_uncertain_halves,
)
from tfmt.results.formats import Block, Table
from tfmt.results.groups import Group, column_title, describe_settings, group_runs, name_parts, tell_left_out
from tfmt.results.rows import (
    GLUE_TASKS,
    P2_TASKS,
    SMALL_GLUE_TASKS,
    TOKEN_TASKS,
    Row,
    annotate,
    is_token_task,
    keep_runs,
    none_if_missing,
)
from tfmt.results.stopped import list_stopped, tell_searched
from tfmt.words import counted, without_folders

if TYPE_CHECKING:
    import pandas as pd

# The rows of P1, tables 1 and 2.
MODULE_MODES = (
    "full",
    "frozen",
    "attention",
    "feedforward",
    "layernorm",
    "layernorm_attention",
    "layernorm_feedforward",
    "bitfit",
    "random",
)


@dataclass(frozen=True)
class Layout:
    """One table of a paper.

    Attributes:
      title: what it shows.
      belongs: whether a row is one of the table's own.
      compared: whether a row of another table stands above them.
      tokens: whether its tasks tag words.
      tasks: the tasks of the paper's table.
      rows: the rows of the paper's table, as far as the paper names them.
      average: whether it has a column for the mean over the tasks.
      flagfile: the sweep that makes its runs.
    """

    title: str
    belongs: Callable[[Row], bool]
    compared: Callable[[Row], bool]
    tokens: bool
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    average: bool
    flagfile: str


def _whole_model(*modes: str) -> Callable[[Row], bool]:
    """Rows of these modes with all layers."""
    return lambda row: row.mode in modes and row.layers == "all"


LAYOUTS: dict[str, Layout] = {
    "1": Layout(
        title="Table 1: modules of BERT, each tuned alone",
        belongs=_whole_model(*MODULE_MODES),
        compared=_whole_model(),
        tokens=False,
        tasks=GLUE_TASKS,
        rows=tuple(map(Row, MODULE_MODES)),
        average=True,
        flagfile="table1.flags",
    ),
    "2": Layout(
        title="Table 2: modules of BERT, each tuned alone, on token-level tasks",
        belongs=_whole_model(*MODULE_MODES),
        compared=_whole_model(),
        tokens=True,
        tasks=TOKEN_TASKS,
        rows=tuple(map(Row, MODULE_MODES)),
        average=False,
        flagfile="table2.flags",
    ),
    "3": Layout(
        title="Table 3: the LayerNorms of one block (0-based)",
        belongs=lambda row: row.mode == "layernorm" and row.layers.isdecimal(),
        compared=_whole_model("full", "frozen", "layernorm"),
        tokens=False,
        tasks=SMALL_GLUE_TASKS,
        rows=(),
        average=True,
        flagfile="table3.flags",
    ),
    "4": Layout(
        title="Table 4: n weights of each LayerNorm, outliers and random ones",
        belongs=_whole_model("outliers", "outliers_control"),
        compared=_whole_model("frozen", "layernorm"),
        tokens=False,
        tasks=SMALL_GLUE_TASKS,
        rows=tuple(Row(mode, mask_size=n) for n in protocol.MASK_SIZES for mode in ("outliers", "outliers_control")),
        average=True,
        flagfile="table4.flags",
    ),
    "fisher": Layout(
        title="Fisher: the part of the feed-forward LayerNorms with the highest Fisher information (P2)",
        belongs=_whole_model("fisher", "fisher_control"),
        compared=_whole_model("full", "frozen", "bitfit", "layernorm", "layernorm_feedforward"),
        tokens=False,
        tasks=P2_TASKS,
        rows=(),
        average=True,
        flagfile="fisher.flags",
    ),
}
TABLE_NAMES = (*LAYOUTS, "runs")


def build_tables(
    runs: pd.DataFrame,
    name: str,
    epoch: str = "best",
    *,
    protocol: str | None = None,
    every_seed: bool = False,
    roles: Seeds = ALL_SEEDS,
) -> tuple[Table, ...]:
    """One of the papers' tables, or the list of runs.

    Args:
      runs: what `read_runs` returns.
      name: `1`, `2`, `3`, `4`, `fisher` or `runs`.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.
      protocol: `paper`: rate and epoch are chosen on the split that is reported; `crossfit`: on one half of it, and
        scored on the other; None for both, where records have scores on halves.
      every_seed: whether each seed's score is listed, too.
      roles: which seeds choose the learning rate, and which are reported.

    Returns:
      One table for each group of runs that may be compared (see `groups`), the largest group first. Without runs
      for it, one table without rows, whose caption says what makes them.

    Raises:
      RequestError: no such table, epoch or protocol, or runs that no table can tell apart.
    """
    if name not in TABLE_NAMES:
        raise RequestError(f"--table must be one of {', '.join(TABLE_NAMES)}. Received: {name!r}")
    check_protocol(protocol)
    broken = tell_left_out(runs)
    annotated = annotate(runs, epoch)
    if name == "runs":
        return (_list_runs(annotated, broken),)
    layout = LAYOUTS[name]
    mine = [
        is_token_task(task, task_type) == layout.tokens and (layout.belongs(row) or layout.compared(row))
        for row, task, task_type in zip(annotated["row"], annotated["task"], annotated["task_type"], strict=True)
    ]
    groups = [group for group in group_runs(keep_runs(annotated, mine), roles) if any(map(layout.belongs, group.rows))]
    if not groups:
        caption = (f"No runs for it here. Make them: tfmt-sweep --flagfile={layout.flagfile}", *broken)
        return (Table(name, layout.title, caption, (), ()),)
    return tuple(
        _fill(name, layout, layout.title + behind, group, epoch, protocol, every_seed, broken)
        for group, behind in name_parts(groups)
    )


def _fill(
    name: str,
    layout: Layout,
    title: str,
    group: Group,
    epoch: str,
    protocol: str | None,
    every_seed: bool,
    broken: tuple[str, ...],
) -> Table:
    """The table of one group."""
    own = [row for row in group.rows if layout.belongs(row)]
    own.sort(key=lambda row: (row.mask_size or 0, row.mask_fraction or 0.0, row.order))
    rows = [row for row in group.rows if not layout.belongs(row)] + own
    columns = [column for column in group.columns if any((row, column) in group.cells for row in own)]
    titles = tuple(map(column_title, columns))
    shown = group.runs[group.runs["column"].isin(columns)]
    views = protocols_of(shown, protocol)
    average = ("average",) if layout.average and len(columns) > 1 else ()
    median = len(columns) <= _MOST_WITH_MEDIAN
    scores, rates, seeds = [], [], []
    numbers: list[dict[str, Any]] = []
    told: list[Cell] = []
    for view in views:
        cells = group.under(view).cells
        texts, chosen = [], []
        for row in rows:
            line = [cells.get((row, column)) for column in columns]
            told += [cell for cell in line if cell]
            # What is tuned does not hang on which runs have scores on halves.
            percent = _percent_tuned(group.cells.get((row, column)) for column in columns)
            mean = (_average(line),) if average else ()
            texts.append((row.title, percent, *(cell.tell(median) if cell else "-" for cell in line), *mean))
            chosen.append((row.title, *(_rate(cell) for cell in line)))
            places = [(cell, column) for cell, column in zip(line, columns, strict=True) if cell]
            numbers += [number_cell(group, cell, row, column, epoch, view) for cell, column in places]
        heading = PROTOCOL_HEADINGS[view] if len(views) > 1 or view != "paper" else ""
        scores.append(Block(heading, ("", "tuned %", *titles, *average), tuple(texts)))
        rates.append(Block(RATES[view], ("", *titles), tuple(chosen)))
        if every_seed:
            seeds.append(Block(_SEEDS[view], ("", "seed", *titles), _seed_lines(group, cells, rows, columns)))
    return Table(
        name=name,
        title=title,
        caption=_caption(layout, group, rows, columns, epoch, views, told, median) + broken,
        blocks=(*scores, *seeds, *rates),
        numbers=tuple(numbers),
    )


PROTOCOL_HEADINGS = {
    "paper": "The papers' protocol: chosen on the split that is reported",
    "crossfit": "Cross-fitted: chosen on one half of the split, scored on the other",
}
_SEEDS = {"paper": "Every seed", "crossfit": "Every seed, cross-fitted"}
RATES = {"paper": "Learning rate chosen", "crossfit": "Learning rate chosen, cross-fitted"}


_MOST_WITH_MEDIAN = 4  # columns of scores; with more a line is too long for a page


def _seed_lines(
    group: Group, cells: Mapping[tuple[Row, str], Cell], rows: list[Row], columns: list[str]
) -> tuple[tuple[str, ...], ...]:
    """A line for each row and seed: its score, or how it ended."""
    lines = []
    for row in rows:
        for seed in group.reported:
            texts = [cell.tell_seed(seed) if (cell := cells.get((row, column))) else "-" for column in columns]
            lines.append((row.title, str(seed), *texts))
    return tuple(lines)


def average(values: Iterable[float | None]) -> float | None:
    """The mean over the tasks, where every task has a value."""
    values = list(values)
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _average(cells: Iterable[Cell | None]) -> str:
    """The mean over the tasks as text, where every task has one."""
    cells = list(cells)
    mean = average(cell.mean if cell else None for cell in cells)
    return "-" if mean is None else f"{100 * mean:.1f}{max(cell.mark for cell in cells if cell)}"


def _rate(cell: Cell | None) -> str:
    if cell is None or not cell.eligible:
        return "-"
    lost = ", ".join(f"{number} {outcome}" for outcome, number in cell.lost_anywhere.items())
    return format_rates(cell) + cell.mark + (f" ({lost})" if lost else "")


def format_rates(cell: Cell) -> str:
    """The rate that a cell chose, or both where two halves chose different ones."""
    return ", ".join(map(format_rate, dict.fromkeys(cell.rates)))


def format_rate(rate: float) -> str:
    """`1e-3`, `2.5e-4`: a learning rate as the papers write it."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_percent(percent: float) -> str:
    """At least two digits that mean something: `100`, `25.9`, `0.034`, `0.00035`."""
    if percent == 0 or percent >= 99.95:
        return f"{percent:.0f}"
    return f"{percent:.{max(1, 1 - math.floor(math.log10(percent)))}f}"


def _percent_tuned(cells: Iterable[Cell | None]) -> str:
    """The share of the encoder tuned; masks that are unions have another one on each task."""
    known = [cell.tuned for cell in cells if cell and cell.tuned]
    if not known:
        return "-"
    lowest = format_percent(min(low for low, _ in known))
    highest = format_percent(max(high for _, high in known))
    return lowest if lowest == highest else f"{lowest} to {highest}"


def number_cell(group: Group, cell: Cell, row: Row, column: str, epoch: str, protocol: str) -> dict[str, Any]:
    """One cell as numbers, with all that it hangs on."""
    numbers: dict[str, Any] = {
        "protocol": protocol,
        "row": row.title,
        **asdict(row),
        "column": column,
        "task": column.partition(" ")[0],
    }
    numbers |= {"score_name": "/".join(_score_names(group, column)), "epoch": epoch}
    numbers |= {"mean": cell.mean, "median": cell.median, "deviation": cell.deviation}
    numbers |= {"seeds": len(cell.scores), "seeds_asked": cell.asked}
    rates = cell.rates if cell.eligible else ()
    numbers |= {"learning_rate": rates[0] if len(set(rates)) == 1 else None, "learning_rates": rates}
    numbers |= {"eligible": cell.eligible}
    numbers |= {"collapsed": cell.collapsed if cell.eligible else 0, "scores": dict(cell.scores)}
    roles = group.roles
    numbers |= {"choose_on": roles.choose_on, "report_on": roles.report_on, "chose_alone": cell.chose_alone}
    numbers |= {
        "rates_tried": len(cell.tried),
        "collapsed_seeds": sorted(cell.collapsed_seeds),
        "lost_seeds": dict(cell.ended),
    }
    numbers |= {name: cell.lost_anywhere.get(name, 0) for name in ("diverged", "failed", "undefined")}
    numbers |= {"tuned_percent_min": cell.tuned[0] if cell.tuned else None}
    numbers |= {"tuned_percent_max": cell.tuned[1] if cell.tuned else None, "runs": cell.runs, "epochs": cell.epochs}
    models = {name: "/".join(sorted(set(group.runs[name]))) for name in ("model_name", "tfmt")}
    return (
        numbers
        | {"model": models.pop("model_name")}
        | models
        | {name: value for name, value in group.settings.items() if name != "epochs"}
    )


def _score_names(group: Group, column: str) -> list[str]:
    return sorted(set(group.runs.loc[group.runs["column"] == column, "score_name"].dropna()))


def _caption(
    layout: Layout,
    group: Group,
    rows: list[Row],
    columns: list[str],
    epoch: str,
    views: Sequence[str],
    cells: list[Cell],
    median: bool,
) -> tuple[str, ...]:
    """What the numbers are, line by line."""
    shown = group.runs[group.runs["column"].isin(columns)]
    middle = " [median]" if median and any(len(cell.scores) > 2 for cell in cells if cell.eligible) else ""
    statistic = (
        f"Percent on the development split, {epoch} epoch of each run: mean ± sample standard deviation (n - 1)"
        f"{middle} {group.roles.describe(group.seeds)}."
    )
    selection = [describe_paper_choice(epoch)] if "paper" in views else []
    eligible = (
        "A rate with a seed that diverged, failed or has an undefined score is not eligible while another is; of the"
        " eligible, those with the most seeds compete."
    )
    marks = (
        "A dash: no runs, or no eligible rate. (2/3): fewer seeds than the table has. Lost and collapsed runs are"
        " counted behind the score."
    )
    if any(cell.mark for cell in cells):
        marks += (
            f" {COLLAPSED_MARK}: with runs that collapsed, which predict one class only, or a constant: such a number"
            " is what the split gives for learning nothing, and decides no claim."
        )
    if any(cell.eligible and cell.lost_anywhere for cell in cells):
        eligible += " Behind a rate stand the runs that were lost at others."
    lines = [statistic, " ".join([*selection, eligible]), *tell_choosers(cells)]
    if "paper" in views and epoch == "best":
        lines += tell_tries({place: cell for place, cell in group.cells.items() if place[0] in rows})
    if "crossfit" in views:
        listed = " Where the halves chose different rates, both are listed."
        lines += [describe_crossfit(epoch, shown["score_name"].dropna()) + listed, *tell_uncertain_halves(shown)]
    lines += tell_searched(shown, halves="crossfit" in views)
    lines += [marks, f"Scores: {tell_scores(shown, columns)}.", f"{describe_settings(group)}."]
    lines[-1] = lines[-1][0].upper() + lines[-1][1:]
    lines += tell_runs(shown)
    missing = [
        column_title(task) for task in layout.tasks if task not in {column.partition(" ")[0] for column in columns}
    ]
    missing += [row.title for row in layout.rows if row not in rows]
    if missing:
        lines.append(f"In the paper's table and not run here: {', '.join(missing)}.")
    return tuple(lines)


def tell_runs(runs: pd.DataFrame) -> list[str]:
    """Caption lines on what made the runs that a table shows, how they ended, and which changed frozen weights."""
    versions = zip(runs["tfmt"], map(none_if_missing, runs["packages"]), strict=True)
    made_with = sorted({f"tfmt {own}" + (f", {packages}" if packages else "") for own, packages in versions})
    ended = runs["outcome"].value_counts()
    counts = [f"{ended[name]} {name}" for name in ("scored", "undefined", "diverged", "failed") if name in ended]
    leaking = runs[runs["frozen_changed"].astype(float) > 0]
    return [
        f"Made with {'; or '.join(made_with)}.",
        f"{counted(len(runs), 'run')}: {', '.join(counts)}.",
        *(f"Counted as failed, it changed frozen weights: {run_id}." for run_id in leaking["run_id"]),
    ]


def tell_choosers(cells: Iterable[Cell]) -> list[str]:
    """Caption lines where rates were not all chosen in one way: by some seeds alone, or among fewer rates."""
    cells = list(cells)
    lines = []
    if any(cell.eligible and cell.chose_alone for cell in cells):
        lines.append(
            "(seed 0 chose): the other seeds ran at no other rate, so that seed's luck is in the choice and in the"
            " mean; --choose_on and --report_on take it out."
        )
    numbers = sorted({len(cell.tried) for cell in cells})
    if len(numbers) > 1:
        lines.append(
            f"Rates were chosen among different numbers of rates, {numbers[0]} to {numbers[-1]} a cell;"
            " --table=optimism has how many."
        )
    return lines


def tell_tries(cells: Mapping[tuple[Row, str], Cell]) -> list[str]:
    """The caption line for rows that chose among different numbers of epochs on one task.

    Args:
      cells: (row, column) to cell.
    """
    by_column: dict[str, dict[int, list[Row]]] = {}
    for (row, column), cell in cells.items():
        by_column.setdefault(column, {}).setdefault(cell.epochs, []).append(row)
    rows: dict[int, set[Row]] = {}
    for numbers in by_column.values():
        for epochs, mine in numbers.items() if len(numbers) > 1 else ():
            rows.setdefault(epochs, set()).update(mine)
    if not rows:
        return []
    alike: dict[frozenset[Row], list[int]] = {}
    for epochs in sorted(rows):
        alike.setdefault(frozenset(rows[epochs]), []).append(epochs)
    most = max(alike, key=len)
    apart = len(most) > 2 and sum(map(len, alike)) == len(set().union(*alike))
    told = []
    for those, counts in sorted(alike.items(), key=lambda item: (apart and item[0] is most, item[1])):
        named = ", ".join(row.title for row in sorted(those, key=lambda row: row.order))
        told.append(f"{'the others' if apart and those is most else named} of {' or '.join(map(str, counts))}")
    return [f"Best of different numbers of epochs: {'; '.join(told)}. Of more epochs the best is higher by luck alone."]


def tell_scores(runs: pd.DataFrame, columns: Iterable[str]) -> str:
    """Metric, split and N of each column, as far as the runs say."""
    told = []
    for column in columns:
        part = runs[runs["column"] == column]
        text = f"{column_title(column)} {'/'.join(sorted(set(part['score_name'].dropna()))) or 'none'}"
        counts: dict[str, int] = {}
        for examples in part.get("examples", ()):
            if isinstance(examples, Mapping):
                counts |= {split: n for split, n in examples.items() if split != "train"}
        told.append(text + "".join(f", {split} N={n:,}" for split, n in counts.items()))
    return "; ".join(told)


# Columns that a list of runs does without where they say the same of all.
_TOLD_ONCE = ("tuned", "tuned %", "score", "N", "seconds", "status", "notes")


def _list_runs(runs: pd.DataFrame, broken: tuple[str, ...]) -> Table:
    """Every run with its status. What says the same of all runs, and names none of them, is told in the caption."""
    models = _name_models(runs)
    rows: list[dict[str, str]] = []
    columns = ["row", "learning_rate", "seed", "tuned", "tuned_percent", "score_name", "score_best", "score_last"]
    columns += ["task", "examples", "seconds", "status", "run_id", "collapsed", "frozen_changed", "error"]
    columns += ["score_test", "stopped_early", "optimizer"]
    for model, *record in zip(models, *(map(none_if_missing, runs[name]) for name in columns), strict=True):
        row, rate, seed, tuned, percent, score_name, best, last, task, examples, *told = record
        seconds, status, run_id, collapsed, leaked, error, test, stopped, optimizer = told
        notes = [] if optimizer == "adam" else [f"by {optimizer}"]
        notes += ["collapsed"] if collapsed else []
        notes += [f"stopped early after epoch {int(stopped)}"] if stopped else []
        notes += [f"{counted(int(leaked), 'frozen weight')} changed"] if leaked else []
        notes += [without_folders(error)] if error else []
        held_out = [n for split, n in (examples or {}).items() if split != "train"]
        size = "" if row.mask_size is None else f" n={row.mask_size}"
        kind = row.mode + (size if row.mask_fraction is None else f" f={row.mask_fraction:g}")
        rows.append(
            {
                "model": model,
                "task": column_title(task),
                "mode": f"{kind}: {row.title}" if row.select else kind,
                "layers": row.layers,
                "rate": format_rate(rate),
                "seed": str(seed),
                "tuned": "-" if tuned is None else f"{int(tuned):,}",
                "tuned %": "-" if percent is None else format_percent(percent),
                "score": score_name or "-",
                "best": "-" if best is None else f"{100 * best:.1f}",
                "last": "-" if last is None else f"{100 * last:.1f}",
                "test": "-" if test is None else f"{100 * test:.1f}",
                "N": f"{held_out[0]:,}" if held_out else "-",
                "seconds": "-" if seconds is None else f"{seconds:.0f}",
                "status": status,
                "run": run_id,
                "notes": "; ".join(notes),
            }
        )
    alike = [name for name in _TOLD_ONCE if len(rows) > 1 and len({row[name] for row in rows}) == 1]
    counts = ", ".join(f"{number} {status}" for status, number in runs["status"].value_counts().items())
    caption = [f"{counted(len(runs), 'run')}{': ' + counts if counts else ''}."]
    if len(set(models)) == 1:
        alike.append("model")  # also of a single run, which has all else in its row
        caption.append(f"Model: {models[0]}.")
    if shared := [f"{name} {rows[0][name]}" for name in alike if name not in ("model", "test") and rows[0][name]]:
        caption.append(f"All of them: {', '.join(shared)}.")
    if all(row["test"] == "-" for row in rows):
        alike.append("test")  # no run has such a split
    else:
        caption.append("Test: the test split's labels, with the weights of the kept epoch; it chose nothing.")
    heads = [name for name in rows[0] if name not in alike] if rows else []
    unlisted = ("row", "score", "model_name", "half_scores", "collapsed_epochs", "folds")
    names = [name for name in runs.columns if name not in unlisted]
    numbers = tuple(
        {str(name): none_if_missing(value) for name, value in _without_places(row).items() if name in names}
        for row in runs.to_dict("records")
    )
    blocks: tuple[Block, ...] = ()
    if rows:
        blocks = (Block("", tuple(heads), tuple(tuple(row[name] for name in heads) for row in rows)),)
    if stopped := list_stopped(runs.attrs.get("stopped", ())):
        blocks += (Block("Stopped by a search", ("run", "status", "score", "there"), stopped),)
    return Table("runs", "Runs", (*caption, *broken), blocks, numbers)


def _name_models(runs: pd.DataFrame) -> list[str]:
    """Each run's model by its name, with the digest where two models have one name, or the caption names the only."""
    pairs = list(zip(runs["model_name"], runs["model_sha256"], strict=True))
    digests: dict[str, set[str]] = {}
    for name, digest in pairs:
        digests.setdefault(name, set()).add(digest)
    told = len(digests) == 1 or any(len(found) > 1 for found in digests.values())
    return [f"{name} (sha256 {digest[:8]})" if told else name for name, digest in pairs]


def _without_places(run: dict[Hashable, Any]) -> dict[Hashable, Any]:
    """A run's row that says what it was made of and not where on a machine that lay."""
    error = none_if_missing(run["error"])
    return run | {
        "model": run["model_name"],
        "data_dir": PurePath(run["data_dir"]).name,
        "fisher_from": tuple(PurePath(place).name for place in run["fisher_from"]),
        "select": shorten(run["select"]),
        "error": error and without_folders(error),
    }
