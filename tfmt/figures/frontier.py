"""Score by how many weights are tuned, for each way of choosing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from tfmt.errors import RequestError
from tfmt.figures.runs import find_shown
from tfmt.figures.scores import fit_scores, score_label
from tfmt.figures.style import COLOURS, LINES, MARKERS, finish_figure, make_task_panels, set_title, styled
from tfmt.results.budgets import FLAGFILE, MEAN, Frontier, find_edge, find_frontier, mean_over_columns
from tfmt.results.cells import Cell
from tfmt.results.groups import column_title
from tfmt.results.rows import Row
from tfmt.runs.records import Sources, name_sources

_REFERENCES = {"full": "-", "frozen": ":"}  # drawn across the panel
_POINTS = ("*", "X", "d", ">", "p", "h")  # markers of single points
_BAND = 0.13  # opacity
_EDGE = "rate at the end of its grid"
_EDGE_LOOK: dict[str, Any] = {"markerfacecolor": "white", "zorder": 4}


@styled
def plot_frontier(
    runs: Sources, *, tasks: Sequence[str] = (), where: str = "", epoch: str = "best"
) -> tuple[Figure, pd.DataFrame]:
    """Score by the number of weights that are tuned, a line for each way of choosing them, one panel a task.

    Lines are means over seeds, bands one sample standard deviation; each point is at its own learning rate, and hollow
    where that is the lowest or highest that was tried. What has no budget is a single point, full fine-tuning and the
    frozen encoder are lines across. Of several tasks the last panel has their mean, with the deviation over seeds of
    a seed's mean.

    Args:
      runs: the folder of the runs' folders, a packed study, or several.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.

    Returns:
      The figure, and `task` (`mean of tasks` of the last panel), `row`, `tuned` (weights, of several tasks their
      mean), `mean` and `deviation` (fractions), `seeds`, `learning_rate` (missing where there are several), `edge`,
      `collapsed`.

    Raises:
      RequestError: no runs with a budget.
    """
    missing = f"no runs with a --budget; make some: tfmt-sweep --flagfile={FLAGFILE}"
    shown = find_shown(
        runs, tasks, where, epoch, lambda row: row.layers == "all", lambda row: bool(row.budget), missing
    )
    frontier = find_frontier(shown.group)
    if frontier is None:
        raise RequestError(f"--runs={name_sources(runs)}: no run with a budget came to its selection")
    frame = _tabulate(frontier)
    columns = list(dict.fromkeys(frame["task"]))
    figure, panels = make_task_panels(columns)
    looks = _looks(frontier)
    handles: dict[str, Any] = {}
    for panel, column in zip(panels, columns, strict=True):
        mine = frame[frame["task"] == column]
        for title, look in looks.items():
            part = mine[mine["row"] == title]
            if not part.empty:
                handles[title] = _draw(panel, part, look)
        _finish(panel, frontier, column, mine)
    ordered = {title: handles[title] for title in looks if title in handles}
    if frame["edge"].astype(bool).any():
        ordered[_EDGE] = Line2D([], [], color="0.4", linestyle="none", marker="o", **_EDGE_LOOK)
    finish_figure(figure, ordered)
    frame.attrs["notes"] = list(shown.notes)
    return figure, frame


def _looks(frontier: Frontier) -> dict[str, dict[str, Any]]:
    """How each row is drawn: methods as lines, full and frozen across in black, others as larger points."""
    found: dict[str, dict[str, Any]] = {}
    for number, method in enumerate(frontier.methods):
        found[method.title] = {
            "color": COLOURS[1 + number % (len(COLOURS) - 1)],
            "linestyle": LINES[number % len(LINES)],
            "marker": MARKERS[number % len(MARKERS)],
        }
    number = 0
    for row in frontier.others:
        if row.mode in _REFERENCES:
            found[row.title] = {"color": COLOURS[0], "linestyle": _REFERENCES[row.mode]}
        else:
            found[row.title] = {"color": COLOURS[0], "linestyle": "none", "marker": _POINTS[number % len(_POINTS)],
                                "markersize": 7.5, "zorder": 5}  # fmt: skip
            number += 1
    return found


def _tabulate(frontier: Frontier) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    places: list[tuple[Row, str, float, list[Cell]]] = []
    for column in frontier.columns:
        for method, number, at in frontier.rows:
            cell = frontier.cell(method, number, column)
            if at == column and cell and cell.eligible:
                places.append((method, column, frontier.budgets[number].mean_count([column]), [cell]))
        for row in frontier.others:
            cell = frontier.group.cells.get((row, column))
            if cell and cell.eligible:
                places.append((row, column, frontier.count_of(row, (column,)), [cell]))
    if len(frontier.columns) > 1:
        for method in frontier.methods:
            for number, budget in enumerate(frontier.budgets):
                if cells := frontier.cells(method, number):
                    places.append((method, MEAN, budget.mean_count(frontier.columns), cells))
        for row in frontier.others:
            if cells := frontier.other_cells(row):
                places.append((row, MEAN, frontier.count_of(row, frontier.columns), cells))
    for row, column, tuned, cells in places:
        mean, deviation = mean_over_columns(cells)
        rates = {rate for cell in cells for rate in cell.rates}
        edges = "".join(sorted({sign for cell in cells for sign in find_edge(cell)}))
        lines.append(
            {"task": column, "row": row.title, "mode": row.mode, "tuned": tuned, "mean": mean, "deviation": deviation}
            | {"seeds": min(len(cell.scores) for cell in cells), "edge": edges}
            | {"learning_rate": rates.pop() if len(rates) == 1 else None}
            | {"collapsed": sum(cell.collapsed for cell in cells)}
        )
    names = ["task", "row", "mode", "tuned", "mean", "deviation", "seeds", "edge", "learning_rate", "collapsed"]
    return pd.DataFrame(lines, columns=names).astype({"deviation": float, "learning_rate": float})


def _draw(panel: Axes, part: pd.DataFrame, look: dict[str, Any]) -> Any:
    """One row; returns what stands for it in the legend."""
    part = part.sort_values("tuned")
    places, means = part["tuned"].to_numpy(float), 100 * part["mean"].to_numpy(float)
    spread = np.nan_to_num(100 * part["deviation"].to_numpy(float))
    if part["mode"].iloc[0] in _REFERENCES:
        panel.axhspan(means[0] - spread[0], means[0] + spread[0], color=look["color"], alpha=_BAND / 2, linewidth=0)
        return panel.axhline(means[0], linewidth=1, **look)
    if look["linestyle"] == "none":
        panel.errorbar(places, means, yerr=spread, fmt="none", ecolor=look["color"], capsize=2, linewidth=0.8)
    else:
        panel.fill_between(places, means - spread, means + spread, color=look["color"], alpha=_BAND, linewidth=0)
    (drawn,) = panel.plot(places, means, **look)
    edge = part["edge"].astype(bool).to_numpy()
    if edge.any():
        panel.plot(places[edge], means[edge], **look | {"linestyle": "none"} | _EDGE_LOOK)
    return drawn


def _finish(panel: Axes, frontier: Frontier, column: str, mine: pd.DataFrame) -> None:
    set_title(panel, f"Mean of {len(frontier.columns)} tasks" if column == MEAN else column_title(column))
    label = "score (%)" if column == MEAN else score_label(frontier.group, column)
    panel.set(xlabel="tuned weights of the encoder", ylabel=label)
    panel.set_xscale("log")
    inside = mine.loc[~mine["mode"].isin(_REFERENCES), "tuned"]
    inside = inside[inside > 0]
    if len(inside):
        low, high = float(inside.min()), float(inside.max())
        panel.set_xlim(low / 1.6, high * 1.6)
        powers = [10.0**power for power in range(-1, 12) if low / 1.6 <= 10.0**power <= high * 1.6]
        ticks = powers if len(powers) > 1 else sorted({low, high})
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xticks(ticks, [_short(tick) for tick in ticks])
    spread = mine["deviation"].fillna(0)
    fit_scores(panel, 100 * (mine["mean"] - spread), 100 * (mine["mean"] + spread))


def _short(count: float) -> str:
    """`10k`, `1M`: a count as a tick says it."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{sign}"
    return f"{count:.3g}"
