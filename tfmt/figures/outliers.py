"""Where the farthest weights of each LayerNorm lie: block x dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfmt.bert.vocabulary import Weight
from tfmt.figures.base import read_weights
from tfmt.figures.style import COLOURS, finish_figure, make_panels, set_title, styled, tick_whole

DEVIATIONS = 3.0
RECURRING_SHARE = 0.25
_TITLES = {"attention_layernorm": "attention LayerNorm", "feedforward_layernorm": "feed-forward LayerNorm"}
_LOOKS = {"gamma": (COLOURS[4], "o"), "beta": (COLOURS[2], "^")}
_MOST_NAMED = 16
# Distances in standard deviations whose marker the legend shows; farther ones are drawn as the last.
_SIZES = (3.0, 10.0, 30.0)


def find_outliers(weights: Sequence[Weight], read: Callable[[str], np.ndarray]) -> pd.DataFrame:
    """The LayerNorm weights that lie more than 3 standard deviations from the mean of their vector.

    A vector is the gamma or the beta of one LayerNorm. A dimension recurs in a sublayer if, for gamma or for beta, it
    lies beyond in more than a quarter of the blocks and in two at the least (Kovaleva et al., 2021; Puccetti et al.,
    2022: in bert-base-uncased 308 and 381).

    Args:
      weights: the model's table.
      read: gives a variable's values by path.

    Returns:
      `sublayer`, `part`, `block`, `dimension` (from 0), `value`, `deviations` (signed), `blocks` (in how many blocks
      this sublayer and part have it beyond), `recurs`.
    """
    rows = []
    blocks = len({weight.block for weight in weights if weight.block is not None})
    for weight in weights:
        if weight.sublayer in _TITLES:
            values = np.asarray(read(weight.path), np.float64)
            spread = values.std()
            distance = (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
            rows += [
                (weight.sublayer, weight.part, weight.block, int(place), values[place], distance[place])
                for place in np.flatnonzero(np.abs(distance) > DEVIATIONS)
            ]
    frame = pd.DataFrame(rows, columns=["sublayer", "part", "block", "dimension", "value", "deviations"])
    # Without a row pandas knows no types.
    frame = frame.astype({"block": int, "dimension": int, "value": float, "deviations": float})
    frame["blocks"] = frame.groupby(["sublayer", "part", "dimension"])["block"].transform("count").astype(int)
    often = (frame["blocks"] > RECURRING_SHARE * blocks) & (frame["blocks"] >= 2)
    frame["recurs"] = often.groupby([frame["sublayer"], frame["dimension"]]).transform("any").astype(bool)
    return frame


@styled
def plot_outliers(model: Any) -> tuple[Figure, pd.DataFrame]:
    """Where the farthest LayerNorm weights lie, and the dimensions that recur across blocks, which are named.

    A marker's area grows with the distance from the mean of its vector in standard deviations.

    Args:
      model: a name or folder as for `--model`, the folder of a run that kept its weights, or a TFBert model from tfmt.

    Returns:
      The figure, and what `find_outliers` returns.

    Raises:
      RequestError: no such model.
    """
    found = read_weights(model)
    weights, name = found.table, found.name
    frame = find_outliers(weights, found.read)
    hidden = next(weight.size for weight in weights if weight.part == "gamma")
    blocks = len({weight.block for weight in weights if weight.block is not None})
    figure, panels = make_panels(2, 1, 6.8, max(1.7, 0.9 + 0.13 * blocks), sharex=True)
    handles: dict[str, Any] = {}
    notes: list[str] = []
    for panel, (sublayer, title) in zip(panels.flat, _TITLES.items(), strict=True):
        mine = frame[frame["sublayer"] == sublayer]
        for part, (colour, marker) in _LOOKS.items():
            some = mine[mine["part"] == part]
            sizes = _area(np.abs(some["deviations"].to_numpy()))
            # Hollow, so that the gamma and the beta of one dimension can both be seen.
            drawn = panel.scatter(some["dimension"], some["block"], s=sizes, marker=marker, facecolors="none",
                                  edgecolors=colour, linewidths=1.0, zorder=3)  # fmt: skip
            handles.setdefault(f"{part} beyond {DEVIATIONS:g} standard deviations", drawn)
        recurring = (
            mine[mine["recurs"]].groupby("dimension")["blocks"].max().sort_values(ascending=False, kind="stable")
        )
        named = sorted(int(dimension) for dimension in recurring.index[:_MOST_NAMED])
        if len(recurring) > len(named):
            notes.append(f"{title}: {len(recurring)} dimensions recur; the {len(named)} most frequent are named")
        _name_dimensions(panel, named, hidden)
        set_title(panel, f"{name}: {title}", pad=26 if named else None)
        panel.set_ylabel("block (from 0)")
        panel.set_xlim(-0.01 * hidden, 1.01 * hidden)
        panel.set_ylim(-0.6, blocks - 0.4)
        tick_whole(panel.yaxis, 0, blocks - 1, most=8)
    panels.flat[-1].set_xlabel("dimension (from 0)")
    farthest = float(np.abs(frame["deviations"]).max()) if len(frame) else 0.0
    finish_figure(figure, handles | _size_handles(farthest))
    frame.attrs["notes"] = notes
    return figure, frame


def _area(deviations: Any) -> Any:
    """A marker's area in square points; it grows with the distance up to the last of `_SIZES`."""
    return 3.0 * np.minimum(deviations, _SIZES[-1])


def _size_handles(farthest: float) -> dict[str, Any]:
    """The legend's entries that say what a marker's size means, for the distances that are there."""
    entries = {}
    for distance in _SIZES:
        if distance <= farthest:
            name = f"{distance:g} standard deviations{' or more' if distance == _SIZES[-1] else ''}"
            entries[name] = Line2D([], [], linestyle="none", marker="o", markersize=float(_area(distance)) ** 0.5,
                                   markerfacecolor="none", markeredgecolor="0.4")  # fmt: skip
    return entries


def _name_dimensions(panel: Axes, named: Sequence[int], hidden: int) -> None:
    """A line through each dimension, and its number above it, moved aside where numbers would touch."""
    for dimension, place in zip(named, spread(named, 0.032 * hidden, 0, hidden - 1), strict=True):
        panel.axvline(dimension, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        panel.annotate(
            str(dimension), (dimension, 1), xycoords=("data", "axes fraction"), xytext=(place, 1.06),
            textcoords=("data", "axes fraction"), rotation=90, ha="center", va="bottom", fontsize=7,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Rising places moved as little as their order needs to lie `gap` apart, within the bounds if that can be."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    for index in reversed(range(len(moved))):
        limit = high if index == len(moved) - 1 else moved[index + 1] - gap
        moved[index] = min(moved[index], limit)
    return moved
