"""The picture that change and Fisher information share: components down the side, bars, and a map over the blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from tfmt.figures.captions import title_with_rates
from tfmt.figures.style import COLOURS, MAP, PALE, finish_figure, set_title, tick_whole
from tfmt.results.groups import column_title

# Fill and hatch of each part of a layer.
_PARTS = {
    "table": ("0.75", ""),
    "kernel": (COLOURS[5], ""),
    "bias": ("white", "/////"),
    "gamma": (COLOURS[4], "....."),
    "beta": (COLOURS[1], "xxxxx"),
}
# Of squared gradients, what is smaller than the largest by more than this is rounding: the bias of a key moves no
# softmax, so that its gradient is of the size of float32's last bits.
_REACH = 1e12
# Inches of a panel of bars and of a map with its scale.
_BAR, _CELLS = 2.0, 2.6
_NOTHING_LABEL = "none: 0 or rounding"
_NOTHING: dict[str, Any] = {"facecolor": PALE, "edgecolor": "0.5", "hatch": "xxxx", "linewidth": 0}


def draw_components(
    frame: pd.DataFrame, bars: Sequence[tuple[str, str, bool]], cells: tuple[str, str], *, log: bool,
    notes: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Bars by component, and a map of block x component for each task; of many tasks two beside each other.

    On a logarithmic scale a component of nothing, 0 or rounding, has no bar but the word, and hatched cells.

    Args:
      frame: `task`, `component`, `block` (text, `-` outside the blocks) and columns of numbers, one row a run,
        component and block, components in the model's order; optionally `learning_rate`, which the title then tells.
      bars: for each panel of bars the column, the axis' label, and whether blocks are added up instead of averaged.
      cells: the map's column and label; it shows the mean over runs.
      log: whether scales are logarithmic.
      notes: what stands above the panels.
    """
    tasks = list(dict.fromkeys(frame["task"]))
    by_task = {task: frame[frame["task"] == task] for task in tasks}
    beside = 1 if len(tasks) <= 2 else 2
    named = {task: list(dict.fromkeys(mine["component"])) for task, mine in by_task.items()}
    lines = [tasks[start : start + beside] for start in range(0, len(tasks), beside)]
    counts = [max(6, *(len(named[task]) for task in line)) for line in lines]
    wide = len(bars) + 1
    size = 1.8 + beside * (_BAR * len(bars) + _CELLS), sum(0.75 + 0.14 * count for count in counts)
    figure = Figure(figsize=size, layout="constrained")
    panels: Any = figure.subplots(
        len(lines), wide * beside, squeeze=False,
        gridspec_kw={"width_ratios": [*[_BAR] * len(bars), _CELLS] * beside, "height_ratios": counts},
    )  # fmt: skip
    for empty in panels.flat[wide * len(tasks) :]:
        empty.remove()
    used: dict[str, Any] = {}
    for row, task in zip(panels.reshape(-1, wide), tasks, strict=False):
        mine = by_task[task]
        components = named[task]
        left = tasks[tasks.index(task) - 1] if tasks.index(task) % beside else None
        told = left is None or named[left] != components  # else the names to the left serve both
        title = title_with_rates(task, mine["learning_rate"]) if "learning_rate" in mine else column_title(task)
        for panel, (name, label, added) in zip(row, bars, strict=False):
            by_run = mine.groupby(["run", "component"])[name]
            values = (by_run.sum() if added else by_run.mean()).unstack("component")[components]
            _draw_bars(panel, values, label, log, used)
            panel.grid(axis="y", visible=False)
        for panel in row:
            panel.set_yticks(range(len(components)), components if told and panel is row[0] else [""] * len(components))
            panel.set_ylim(len(components) - 0.5, -0.5)
            panel.tick_params(axis="y", length=0)
            set_title(panel, title, _BAR - 0.15, fontsize=8)
        _draw_map(figure, row[-1], mine, components, cells, log, used)
    finish_figure(figure, used, notes)
    return figure


def _draw_bars(panel: Any, values: pd.DataFrame, label: str, log: bool, used: dict[str, Any]) -> None:
    """A bar for each component: the mean over runs, from the lowest to the highest."""
    if not log:
        values, label = _scale(values, label)
    places = np.arange(len(values.columns))
    parts = [component.rpartition(".")[2] for component in values.columns]
    means = values.mean().to_numpy()
    for part in dict.fromkeys(parts):
        colour, hatch = _PARTS[part]
        which = [place for place in places if parts[place] == part]
        looks: dict[str, Any] = {"facecolor": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5}
        panel.barh(which, means[which], **looks)
        used.setdefault(part, Patch(**looks))
    top = np.nanmax(values.to_numpy())
    nothing = ~(means > top / _REACH) if log else np.zeros(len(means), bool)
    if len(values) > 1:
        reach = np.abs(values.agg(["min", "max"]).to_numpy() - means)[:, ~nothing]
        panel.errorbar(means[~nothing], places[~nothing], xerr=reach, fmt="none", ecolor="black", capsize=1.5,
                       linewidth=0.8)  # fmt: skip
    panel.set_xlabel(label)
    if not log:
        panel.xaxis.set_major_locator(MaxNLocator(nbins=4))
        return
    if nothing.all():
        panel.set(xlim=(0, 1), xticks=[])
    else:
        panel.set_xscale("log")
        panel.set_xlim(means[~nothing].min() / 2, top * 2)
    for place in places[nothing]:
        panel.text(0.02, place, "none", transform=panel.get_yaxis_transform(), va="center", fontsize=6.5, color="0.35")


def _draw_map(
    figure: Figure, panel: Any, mine: pd.DataFrame, components: list[str], cells: tuple[str, str], log: bool,
    used: dict[str, Any],
) -> None:  # fmt: skip
    """Block x component; components outside the blocks are left white."""
    name, label = cells
    inside = mine[mine["block"] != "-"]
    table = inside.assign(block=inside["block"].astype(int)).groupby(["component", "block"])[name].mean().unstack()
    blocks = np.arange(int(table.columns.max()) + 1)
    table = table.reindex(index=components, columns=blocks)
    if not log:
        table, label = _scale(table, label)
    values = table.to_numpy(float)
    top = np.nanmax(values)
    nothing = (values <= top / _REACH) if log else np.zeros(values.shape, bool)
    for row, block in zip(*np.nonzero(nothing), strict=True):
        panel.add_patch(Rectangle((block - 0.5, row - 0.5), 1, 1, **_NOTHING))
        used[_NOTHING_LABEL] = Patch(**_NOTHING)
    shown = np.ma.masked_where(nothing | np.isnan(values), values)
    if not shown.count():
        scale: Normalize = Normalize(0, 1)
    elif log:
        low = float(shown.min())
        scale = LogNorm(low if top > low else low / 10, top)
    else:
        scale = Normalize(0, top if top > 0 else 1)
    image = panel.imshow(shown, norm=scale, cmap=MAP, aspect="auto", interpolation="nearest")
    panel.grid(visible=False)
    panel.set(xlabel="block (from 0)")
    tick_whole(panel.xaxis, 0, len(blocks) - 1, most=8)
    if shown.count():
        figure.colorbar(image, ax=panel, label=label, pad=0.02)


def _scale(values: pd.DataFrame, label: str) -> tuple[pd.DataFrame, str]:
    """Small numbers in units of a power of ten, which the label tells: beside the axis it would touch the label."""
    top = float(np.nanmax(values.to_numpy(float)))
    power = math.floor(math.log10(top)) if top > 0 else 0
    return (values, label) if -2 < power < 3 else (values / 10.0**power, f"{label}, $10^{{{power}}}$")
