"""Score by learning rate and mode."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tfmt.figures.marks import APART, CHOSEN, LOST, PARTLY_LOST, draw_above, draw_marks, mark_collapsed, mark_handles
from tfmt.figures.runs import find_shown
from tfmt.figures.scores import fit_scores, score_label
from tfmt.figures.style import finish_figure, look, make_task_panels, set_title, styled
from tfmt.results.groups import Group, column_title
from tfmt.results.rows import Row
from tfmt.results.tables import format_rate
from tfmt.runs.records import Sources


@styled
def plot_rates(
    runs: Sources, *, tasks: Sequence[str] = (), where: str = "", epoch: str = "best"
) -> tuple[Figure, pd.DataFrame]:
    """Score by learning rate and mode: what one looks at before trusting a table.

    Points are means over seeds, bars one sample standard deviation. The rate that a table reports has a ring, a hollow
    point lost some of its seeds, and a crossed one above the panel all of them; a pale square tells that seeds
    collapsed.

    Args:
      runs: the folder of the runs' folders, a packed study, or several.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
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
    shown = find_shown(runs, tasks, where, epoch, is_whole, is_whole, missing)
    group = shown.group
    frame = _tabulate(group)
    titles = [row.title for row in group.rows]
    rates = sorted(set(frame["learning_rate"]))
    figure, panels = make_task_panels(group.columns)
    handles: dict[str, Any] = {}
    kinds: set[str] = set()
    above = 0
    for panel, column in zip(panels, group.columns, strict=True):
        mine = frame[frame["task"] == column]
        for number, title in enumerate(titles):
            part = mine[mine["row"] == title]
            if not part.empty:
                # Side by side, so that bars of equal rates can be told apart.
                aside = 10 ** (min(0.025, 0.15 / len(titles)) * (number - (len(titles) - 1) / 2))
                drawn = _draw_rates(panel, part, look(number), aside, kinds)
                handles.setdefault(title, drawn)
        lost = mine[mine["seeds"] == 0]
        kinds |= {LOST} if len(lost) else set()
        crosses = [
            (rate, LOST, look(titles.index(title)))
            for rate, title in zip(lost["learning_rate"], lost["row"], strict=True)
        ]
        lines = draw_above(panel, crosses, 3)
        above = max(above, lines)
        set_title(panel, column_title(column), pad=6 + APART * lines)
        panel.set(xlabel="peak learning rate", ylabel=score_label(group, column))
        _tick_rates(panel, rates)
        spread = mine["deviation"].fillna(0)
        fit_scores(panel, 100 * (mine["mean"] - spread), 100 * (mine["mean"] + spread))
    finish_figure(figure, handles | mark_handles(kinds), above=APART * above)
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


def _draw_rates(panel: Axes, part: pd.DataFrame, style: dict[str, Any], aside: float, kinds: set[str]) -> Any:
    """One row's line; returns what stands for it in the legend, and adds the marks that it needed."""
    places = part["learning_rate"].to_numpy(float) * aside
    means, spread = (100 * part[name].to_numpy(float) for name in ("mean", "deviation"))
    (drawn,) = panel.plot(places, means, **style)
    known = ~np.isnan(means)
    panel.errorbar(places[known], means[known], yerr=np.nan_to_num(spread[known]), fmt="none", ecolor=style["color"],
                   capsize=2, linewidth=0.8)  # fmt: skip
    chosen = part["chosen"].to_numpy(bool)
    partly = known & (part[["diverged", "failed", "undefined"]].sum(axis=1).to_numpy() > 0)
    for kind, which in ((CHOSEN, chosen), (PARTLY_LOST, partly)):
        draw_marks(panel, kind, places[which], means[which], style)
        kinds |= {kind} if which.any() else set()
    kinds |= mark_collapsed(panel, places, means, part["collapsed"])
    return drawn


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
