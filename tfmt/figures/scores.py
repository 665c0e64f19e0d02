"""Scores by block (P1, table 3) and by learning rate."""

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
from matplotlib.ticker import FixedLocator, NullLocator

from tfmt.figures.runs import Shown, find_shown
from tfmt.figures.style import COLOURS, add_legend, look, make_task_panels, styled, tick_whole, wrap_title
from tfmt.results.groups import Group, column_title
from tfmt.results.rows import Row
from tfmt.results.tables import format_rate

# The rows that stand beside the blocks, each with its line.
_REFERENCES = ((Row("full"), "-."), (Row("layernorm"), "--"), (Row("frozen"), ":"))


def score_label(group: Group, column: str) -> str:
    """The label of a score's axis."""
    names = sorted(set(group.runs.loc[group.runs["column"] == column, "score_name"].dropna()))
    return f"{'/'.join(names).replace('_', ' ') or 'score'} (%)"


def _finish(frame: pd.DataFrame, shown: Shown) -> pd.DataFrame:
    frame.attrs["notes"] = list(shown.notes)
    return frame


@styled
def plot_layers(runs: str | Path, *, tasks: Sequence[str] = (), epoch: str = "best") -> tuple[Figure, pd.DataFrame]:
    """Score by the block whose LayerNorms alone are tuned, beside all LayerNorms, full fine-tuning and frozen.

    Points are means over seeds at the cell's chosen rate, bars and bands one sample standard deviation.

    Args:
      runs: the folder of the runs' folders.
      tasks: which tasks; none means all.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.

    Returns:
      The figure, and `task`, `row`, `block` (missing for whole models), `frozen_prefix`, `mean` and `deviation`
      (fractions), `seeds`, `learning_rate`, `lost` (runs of the chosen rate that diverged, failed or have no score).

    Raises:
      RequestError: no runs of single blocks.
    """
    whole = [row for row, _ in _REFERENCES]

    def is_block(row: Row) -> bool:
        return row.mode == "layernorm" and row.layers.isdecimal()

    missing = "no runs of single blocks; make them: tfmt-sweep --flagfile=table3.flags"
    shown = find_shown(runs, tasks, epoch, lambda row: is_block(row) or row in whole, is_block, missing)
    group = shown.group
    columns = [column for column in group.columns if any((r, column) in group.cells for r in group.rows if is_block(r))]
    rows = []
    for column in columns:
        for row in sorted(group.rows, key=lambda row: (not is_block(row), row.order)):
            if (row, column) in group.cells:
                cell = group.cells[row, column]
                block = int(row.layers) if is_block(row) else None
                rows.append((column, row.title, block, row.frozen_prefix, cell.mean, cell.deviation, len(cell.scores),
                             cell.learning_rate, sum(cell.lost.values())))  # fmt: skip
    names = ["task", "row", "block", "frozen_prefix", "mean", "deviation", "seeds", "learning_rate", "lost"]
    frame = pd.DataFrame(rows, columns=names).astype({"block": "Int64", "mean": float, "deviation": float})
    figure, panels = make_task_panels(columns)
    handles: dict[str, Any] = {}
    for panel, column in zip(panels, columns, strict=True):
        mine = frame[frame["task"] == column]
        for number, (row, line) in enumerate(_REFERENCES, 1):
            whole_model = group.cells.get((row, column))
            if whole_model is None or whole_model.mean is None:
                continue
            mean, deviation = whole_model.mean, whole_model.deviation
            handles[row.title] = panel.axhline(100 * mean, color=COLOURS[number], linestyle=line)
            if deviation:
                low, high = (100 * (mean + sign * deviation) for sign in (-1, 1))
                panel.axhspan(low, high, color=COLOURS[number], alpha=0.12, linewidth=0)
        blocks = int(mine["block"].max()) + 1
        handles |= _draw_blocks(panel, mine.dropna(subset="block"), blocks)
        panel.set(
            title=wrap_title(column_title(column), 3.2), xlabel="block (from 0)", ylabel=score_label(group, column)
        )
        panel.set_xlim(-0.6, blocks - 0.4)
        tick_whole(panel.xaxis, 0, blocks - 1)
    add_legend(figure, handles)
    return figure, _finish(frame, shown)


def _draw_blocks(panel: Axes, mine: pd.DataFrame, blocks: int) -> dict[str, Any]:
    """The line over the blocks, and one for runs over cached blocks; {label: line}."""
    live = mine["frozen_prefix"] == Row("layernorm").frozen_prefix
    lines = {"": mine[live]}
    if not live.all():
        # Below the first block there is nothing to cache: its runs belong to both lines.
        lines[", cached prefix"] = mine[~live | (mine["block"] == 0)]
        if (mine.loc[live, "block"] == 0).all():
            del lines[""]
    drawn = {}
    for ending, part in lines.items():
        points = part.set_index("block").reindex(np.arange(blocks))  # a block without runs is a gap in the line
        means, spread = (100 * points[name].to_numpy(float) for name in ("mean", "deviation"))
        style = look(len(_REFERENCES) + 1 if ending else 0) | {"linestyle": "--" if ending else "-"}
        drawn[f"LayerNorms of one block{ending}"] = panel.errorbar(
            points.index, means, yerr=np.nan_to_num(spread), capsize=2.5, linewidth=1, **style
        )
    return drawn


@styled
def plot_rates(runs: str | Path, *, tasks: Sequence[str] = (), epoch: str = "best") -> tuple[Figure, pd.DataFrame]:
    """Score by learning rate and mode: what one looks at before trusting a table.

    Points are means over seeds, bars one sample standard deviation. The rate that a table reports has a ring, a hollow
    point lost some of its seeds, and a cross at the foot all of them.

    Args:
      runs: the folder of the runs' folders.
      tasks: which tasks; none means all.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.

    Returns:
      The figure, and `task`, `row`, `mode`, `learning_rate`, `mean` and `deviation` (fractions), `seeds` (with a
      score), `diverged`, `failed`, `undefined` (other seeds), `chosen`.

    Raises:
      RequestError: no runs of whole models.
    """

    def is_whole(row: Row) -> bool:
        return row.layers == "all"

    missing = "no runs of whole models (--layers=all); make some: tfmt-sweep --flagfile=demo_study.flags"
    shown = find_shown(runs, tasks, epoch, is_whole, is_whole, missing)
    group = shown.group
    rows = []
    for column in group.columns:
        for row in group.rows:
            if (row, column) not in group.cells:
                continue
            cell = group.cells[row, column]
            mine = group.runs[(group.runs["column"] == column) & (group.runs["row"] == row)]
            for rate, part in mine.groupby("learning_rate"):
                scores = part["score"].dropna().tolist()
                lost = Counter(part["outcome"])
                mean = statistics.fmean(scores) if scores else None
                deviation = statistics.stdev(scores) if len(scores) > 1 else None
                chosen = cell.eligible and cell.learning_rate == rate
                rows.append((column, row.title, row.mode, rate, mean, deviation, len(scores), lost["diverged"],
                             lost["failed"], lost["undefined"], chosen))  # fmt: skip
    names = ["task", "row", "mode", "learning_rate", "mean", "deviation", "seeds"]
    names += ["diverged", "failed", "undefined", "chosen"]
    frame = pd.DataFrame(rows, columns=names).astype({"mean": float, "deviation": float})
    figure, panels = make_task_panels(group.columns)
    handles: dict[str, Any] = {}
    for panel, column in zip(panels, group.columns, strict=True):
        mine = frame[frame["task"] == column]
        for number, row in enumerate(group.rows):
            part = mine[mine["row"] == row.title]
            if not part.empty:
                # Side by side, so that bars of equal rates can be told apart.
                aside = 10 ** (min(0.025, 0.15 / len(group.rows)) * (number - (len(group.rows) - 1) / 2))
                drawn = _draw_rates(panel, part, look(number), aside, number)
                handles.setdefault(row.title, drawn)
        rates = sorted(set(frame["learning_rate"]))
        panel.set(
            title=wrap_title(column_title(column), 3.2), xlabel="peak learning rate", ylabel=score_label(group, column)
        )
        panel.set_xscale("log")
        panel.margins(y=0.1)
        panel.set_xlim(rates[0] / 2, rates[-1] * 2)
        panel.xaxis.set_major_locator(FixedLocator(rates))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(rates, list(map(format_rate, rates)), rotation=90 if len(rates) > 3 else 0)
    add_legend(figure, handles)
    return figure, _finish(frame, shown)


def _draw_rates(panel: Axes, part: pd.DataFrame, style: dict[str, Any], aside: float, number: int) -> Any:
    """One mode's line; returns what stands for it in the legend."""
    places = part["learning_rate"].to_numpy(float) * aside
    means, spread = (100 * part[name].to_numpy(float) for name in ("mean", "deviation"))
    lost = part[["diverged", "failed", "undefined"]].sum(axis=1).to_numpy() > 0
    (drawn,) = panel.plot(places, means, **style)
    known = ~np.isnan(means)
    panel.errorbar(places[known], means[known], yerr=np.nan_to_num(spread[known]), fmt="none", ecolor=style["color"],
                   capsize=2, linewidth=0.8)  # fmt: skip
    panel.plot(places[lost], means[lost], linestyle="none", marker=style["marker"], color=style["color"],
               markerfacecolor="white", zorder=4)  # fmt: skip
    chosen = part["chosen"].to_numpy(bool)
    panel.plot(places[chosen], means[chosen], linestyle="none", marker="o", markersize=10, markerfacecolor="none",
               markeredgecolor=style["color"])  # fmt: skip
    nothing = places[~known]
    if len(nothing):  # matplotlib's layout takes an empty line that is not clipped to reach the page's corner
        panel.plot(nothing, np.full(len(nothing), 0.03 + 0.05 * (number % 6)), linestyle="none", marker="x",
                   color=style["color"], transform=panel.get_xaxis_transform(), clip_on=False)  # fmt: skip
    return drawn
