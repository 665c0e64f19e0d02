"""The picture that change and Fisher information share: components down the side, bars, and a map over the blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tfmt.figures.style import COLOURS, MAP, PALE, add_legend, tick_whole, wrap_title
from tfmt.results.groups import column_title

# Fill and hatch of each part of a layer.
_PARTS = {
    "table": ("0.75", ""),
    "kernel": (COLOURS[5], ""),
    "bias": ("white", "/////"),
    "gamma": (COLOURS[4], "....."),
    "beta": (COLOURS[1], "xxxxx"),
}
# What is smaller than the largest by more than this is rounding: the bias of a key moves no softmax.
_REACH = 1e7


def draw_components(
    frame: pd.DataFrame, bars: Sequence[tuple[str, str, bool]], cells: tuple[str, str], *, log: bool
) -> Figure:
    """Bars by component, and a map of block x component; one row of panels for each task.

    Args:
      frame: `task`, `component`, `block` (text, `-` outside the blocks) and columns of numbers, one row a run,
        component and block, components in the model's order.
      bars: for each panel of bars the column, the axis' label, and whether blocks are added up instead of averaged.
      cells: the map's column and label; it shows the mean over runs.
      log: whether scales are logarithmic.
    """
    tasks = list(dict.fromkeys(frame["task"]))
    counts = [frame.loc[frame["task"] == task, "component"].nunique() for task in tasks]
    figure = Figure(figsize=(3.0 + 2.1 * len(bars) + 2.6, sum(0.6 + 0.155 * count for count in counts) + 0.5),
                    layout="constrained")  # fmt: skip
    panels: Any = figure.subplots(
        len(tasks), len(bars) + 1, squeeze=False,
        gridspec_kw={"width_ratios": [2.0] * len(bars) + [2.6], "height_ratios": [max(count, 4) for count in counts]},
    )  # fmt: skip
    used: dict[str, Any] = {}
    for row, task in zip(panels, tasks, strict=True):
        mine = frame[frame["task"] == task]
        components = list(dict.fromkeys(mine["component"]))
        places = np.arange(len(components))
        parts = [component.rpartition(".")[2] for component in components]
        for panel, (name, label, added) in zip(row, bars, strict=False):
            by_run = mine.groupby(["run", "component"])[name]
            values = (by_run.sum() if added else by_run.mean()).unstack("component")[components]
            if not log:
                values, label = _scale(values, label)
            means = values.mean().to_numpy()
            for part in dict.fromkeys(parts):
                colour, hatch = _PARTS[part]
                which = [place for place in places if parts[place] == part]
                panel.barh(which, means[which], color=colour, hatch=hatch, edgecolor="black", linewidth=0.5)
                used.setdefault(part, Patch(facecolor=colour, hatch=hatch, edgecolor="black", linewidth=0.5))
            if len(values) > 1:
                reach = np.abs(values.agg(["min", "max"]).to_numpy() - means)
                panel.errorbar(means, places, xerr=reach, fmt="none", ecolor="black", capsize=1.5, linewidth=0.8)
            top = np.nanmax(values.to_numpy())
            if log and top > 0:
                panel.set_xscale("log")
                panel.set_xlim(means[means > top / _REACH].min() / 2, top * 2)
            else:
                panel.xaxis.set_major_locator(MaxNLocator(nbins=5))
            panel.set(xlabel=label, title=wrap_title(column_title(task), 2.0))
            panel.grid(axis="y", visible=False)
        for panel in row:
            panel.set_yticks(places, components if panel is row[0] else [""] * len(places))
            panel.set_ylim(len(components) - 0.5, -0.5)
            panel.tick_params(axis="y", length=0)
        _draw_map(figure, row[-1], mine, components, cells, log)
    add_legend(figure, used)
    return figure


def _draw_map(
    figure: Figure, panel: Any, mine: pd.DataFrame, components: list[str], cells: tuple[str, str], log: bool
) -> None:
    """Block x component; components outside the blocks are left pale."""
    name, label = cells
    inside = mine[mine["block"] != "-"]
    table = inside.assign(block=inside["block"].astype(int)).groupby(["component", "block"])[name].mean().unstack()
    blocks = np.arange(int(table.columns.max()) + 1)
    table = table.reindex(index=components, columns=blocks)
    if not log:
        table, label = _scale(table, label)
    values = table.to_numpy(float)
    top = np.nanmax(values)
    low = max(np.nanmin(np.where(values > top / _REACH, values, np.nan)), top / _REACH) if top > 0 else 0.1
    scale = LogNorm(low if top > low else low / 10, max(top, low)) if log else Normalize(0, top if top > 0 else 1)
    image = panel.imshow(np.ma.masked_invalid(values), norm=scale, cmap=_map(), aspect="auto", interpolation="nearest")
    panel.set_facecolor(PALE)
    panel.grid(visible=False)
    panel.set(xlabel="block (from 0)")
    tick_whole(panel.xaxis, 0, len(blocks) - 1)
    figure.colorbar(image, ax=panel, label=label, pad=0.02)


def _scale(values: pd.DataFrame, label: str) -> tuple[pd.DataFrame, str]:
    """Small numbers in units of a power of ten, which the label tells: beside the axis it would touch the label."""
    top = float(np.nanmax(values.to_numpy(float)))
    power = math.floor(math.log10(top)) if top > 0 else 0
    return (values, label) if -2 < power < 3 else (values / 10.0**power, f"{label}, $10^{{{power}}}$")


def _map() -> Any:
    """The map of colours; zeros and rounding take its palest."""
    import matplotlib as mpl

    colours = mpl.colormaps[MAP].copy()
    return colours.with_extremes(bad=PALE, under=colours(0.0))
