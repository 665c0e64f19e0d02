"""Score by learning rate and mode."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from tfmt.figures.runs import find_shown
from tfmt.figures.scores import fit_scores, mark_collapsed, score_label
from tfmt.figures.style import finish_figure, look, make_task_panels, set_title, styled
from tfmt.results.groups import Group, column_title
from tfmt.results.rows import Row
from tfmt.results.tables import format_rate

_RING: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 10, "markerfacecolor": "none"}
# Crosses of what was lost stand above a panel, so many beside each other and so far apart in points.
_BESIDE, _APART = 3, 6.5


@styled
def plot_rates(runs: str | Path, *, tasks: Sequence[str] = (), epoch: str = "best") -> tuple[Figure, pd.DataFrame]:
    """Score by learning rate and mode: what one looks at before trusting a table.

    Points are means over seeds, bars one sample standard deviation. The rate that a table reports has a ring, a hollow
    point lost some of its seeds, and a crossed one above the panel all of them; a pale square tells that seeds
    collapsed.

    Args:
      runs: the folder of the runs' folders.
      tasks: which tasks; none means all.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.

    Returns:
      The figure, and `task`, `row`, `mode`, `learning_rate`, `mean` and `deviation` (fractions), `seeds` (with a
      score), `diverged`, `failed`, `undefined` (other seeds), `chosen`, `collapsed` (scored seeds that predict one
      class).

    Raises:
      RequestError: no runs of whole models.
    """

    def is_whole(row: Row) -> bool:
        return row.layers == "all"

    missing = "no runs of whole models (--layers=all); make some: tfmt-sweep --flagfile=demo_study.flags"
    shown = find_shown(runs, tasks, epoch, is_whole, is_whole, missing)
    group = shown.group
    frame = _tabulate(group)
    titles = [row.title for row in group.rows]
    rates = sorted(set(frame["learning_rate"]))
    figure, panels = make_task_panels(group.columns)
    rows: dict[str, Any] = {}
    marks: dict[str, Any] = {}
    for panel, column in zip(panels, group.columns, strict=True):
        mine = frame[frame["task"] == column]
        for number, title in enumerate(titles):
            part = mine[mine["row"] == title]
            if not part.empty:
                # Side by side, so that bars of equal rates can be told apart.
                aside = 10 ** (min(0.025, 0.15 / len(titles)) * (number - (len(titles) - 1) / 2))
                drawn = _draw_rates(panel, part, look(number), aside, marks)
                rows.setdefault(title, drawn)
        deep = _draw_lost(panel, mine[mine["seeds"] == 0], titles, marks)
        set_title(panel, column_title(column), pad=6 + _APART * deep)
        panel.set(xlabel="peak learning rate", ylabel=score_label(group, column))
        _tick_rates(panel, rates)
        spread = mine["deviation"].fillna(0)
        fit_scores(panel, 100 * (mine["mean"] - spread), 100 * (mine["mean"] + spread))
    finish_figure(figure, rows | marks)
    frame.attrs["notes"] = list(shown.notes)
    return figure, frame


def _tabulate(group: Group) -> pd.DataFrame:
    rows = []
    for column in group.columns:
        for row in group.rows:
            if (row, column) not in group.cells:
                continue
            cell = group.cells[row, column]
            mine = group.runs[(group.runs["column"] == column) & (group.runs["row"] == row)]
            for rate, part in mine.groupby("learning_rate"):
                scored = part[part["outcome"] == "scored"]
                scores = scored["score"].tolist()
                lost = Counter(part["outcome"])
                mean = statistics.fmean(scores) if scores else None
                deviation = statistics.stdev(scores) if len(scores) > 1 else None
                chosen = cell.eligible and cell.learning_rate == rate
                collapsed = sum(each is True or each == 1 for each in scored["collapsed"])
                rows.append((column, row.title, row.mode, rate, mean, deviation, len(scores), lost["diverged"],
                             lost["failed"], lost["undefined"], chosen, collapsed))  # fmt: skip
    names = ["task", "row", "mode", "learning_rate", "mean", "deviation", "seeds"]
    names += ["diverged", "failed", "undefined", "chosen", "collapsed"]
    return pd.DataFrame(rows, columns=names).astype({"mean": float, "deviation": float})


def _draw_rates(panel: Axes, part: pd.DataFrame, style: dict[str, Any], aside: float, marks: dict[str, Any]) -> Any:
    """One row's line; returns what stands for it in the legend, and adds there the marks that it needed."""
    places = part["learning_rate"].to_numpy(float) * aside
    means, spread = (100 * part[name].to_numpy(float) for name in ("mean", "deviation"))
    (drawn,) = panel.plot(places, means, **style)
    known = ~np.isnan(means)
    panel.errorbar(places[known], means[known], yerr=np.nan_to_num(spread[known]), fmt="none", ecolor=style["color"],
                   capsize=2, linewidth=0.8)  # fmt: skip
    chosen = part["chosen"].to_numpy(bool)
    panel.plot(places[chosen], means[chosen], **_RING, markeredgecolor=style["color"])
    if chosen.any():
        marks["the rate that a table reports"] = Line2D([], [], **_RING, markeredgecolor="0.4")
    partly = known & (part[["diverged", "failed", "undefined"]].sum(axis=1).to_numpy() > 0)
    hollow: dict[str, Any] = {"linestyle": "none", "markerfacecolor": "white", "zorder": 4}
    panel.plot(places[partly], means[partly], **hollow, marker=style["marker"], color=style["color"])
    if partly.any():
        marks["some seeds lost"] = Line2D([], [], **hollow, marker="o", color="0.4")
    marks |= mark_collapsed(panel, places, means, part["collapsed"])
    return drawn


def _draw_lost(panel: Axes, lost: pd.DataFrame, titles: Sequence[str], marks: dict[str, Any]) -> int:
    """Above the panel the marker, crossed out, of each row that lost all seeds of a rate; returns how many lines."""
    deep = 0
    for rate in sorted(set(lost["learning_rate"])):
        part = lost[lost["learning_rate"] == rate]
        for place, title in enumerate(part["row"]):
            beside = min(len(part) - place // _BESIDE * _BESIDE, _BESIDE)
            right = _APART * (place % _BESIDE - (beside - 1) / 2) / 72
            up = _APART * (place // _BESIDE + 0.7) / 72
            figure = panel.get_figure()
            assert figure is not None
            moved = panel.get_xaxis_transform() + ScaledTranslation(right, up, figure.dpi_scale_trans)
            style = look(titles.index(title))
            for marker, size in ((style["marker"], 4.5), ("x", 5.5)):
                panel.plot([rate], [1], linestyle="none", marker=marker, markersize=size, color=style["color"],
                           markerfacecolor="white", markeredgewidth=0.8, transform=moved, clip_on=False)  # fmt: skip
            deep = max(deep, place // _BESIDE + 1)
    if deep:
        crossed = (
            Line2D([], [], linestyle="none", marker=marker, color="0.4", markerfacecolor="white") for marker in "ox"
        )
        marks["all seeds lost"] = tuple(crossed)
    return deep


def _tick_rates(panel: Axes, rates: Sequence[float]) -> None:
    """Ticks at the rates; where they lie too close for their names, at some."""
    panel.set_xscale("log")
    panel.set_xlim(rates[0] / 2, rates[-1] * 2)
    least = 0.06 * np.log10(4 * rates[-1] / rates[0])
    named: list[float] = []
    for rate in rates:
        if not named or np.log10(rate / named[-1]) > least:
            named.append(rate)
    panel.xaxis.set_major_locator(FixedLocator(named))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(named, list(map(format_rate, named)), rotation=90 if len(named) > 3 else 0)
