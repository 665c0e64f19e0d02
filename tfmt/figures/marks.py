"""What marks beside the lines mean, drawn and named alike in all figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from tfmt.figures.style import PALE

CHOSEN = "rate that a table reports"
PARTLY_LOST = "some seeds lost"
LOST = "all seeds lost"
DIVERGED = "diverged"
BEYOND = "loss beyond the axis"
COLLAPSED = "some seeds predict one class"
_HOLLOW: dict[str, Any] = {"marker": None, "markerfacecolor": "white", "markeredgewidth": 0.8, "zorder": 4}
_CROSS: dict[str, Any] = {"marker": "x", "markersize": 5.5, "markeredgewidth": 0.8, "zorder": 4.1}
# What each is drawn from, in the legend's order; a marker of None is that of the row.
_LOOKS: dict[str, tuple[dict[str, Any], ...]] = {
    CHOSEN: ({"marker": "o", "markersize": 10, "markerfacecolor": "none"},),
    PARTLY_LOST: ({**_HOLLOW, "markeredgewidth": 1.0},),
    LOST: (_HOLLOW, _CROSS),
    DIVERGED: (_HOLLOW, _CROSS),
    BEYOND: ({"marker": r"$\uparrow$", "markersize": 6, "markeredgewidth": 0.3},),
    COLLAPSED: ({"marker": "s", "markersize": 10, "color": PALE, "zorder": 1.5},),
}
# Marks above a panel lie so far apart, in points.
APART = 6.5


def draw_marks(panel: Axes, kind: str, places: Any, heights: Any, style: dict[str, Any], **where: Any) -> None:
    """Marks of one kind in the colour and with the marker of a row; nothing where there is no place."""
    if len(places):
        for look in _LOOKS[kind]:
            own = {"color": style["color"], "linestyle": "none"} | look
            panel.plot(places, heights, **own | {"marker": look["marker"] or style["marker"]}, **where)


def draw_above(panel: Axes, marks: Sequence[tuple[float, str, dict[str, Any]]], beside: int) -> int:
    """Marks above a panel, where no line runs: those of one place stacked, so many beside each other.

    Args:
      panel: the panel.
      marks: the place along the x axis, the kind, and the style of the row.
      beside: how many marks stand side by side.

    Returns:
      How many lines of marks stand above the panel, each `APART` points high.
    """
    figure = panel.get_figure()
    assert figure is not None
    deep = 0
    for place in dict.fromkeys(place for place, _, _ in marks):
        mine = [(kind, style) for there, kind, style in marks if there == place]
        for number, (kind, style) in enumerate(mine):
            line = number // beside
            width = min(len(mine) - line * beside, beside)
            right, up = APART * (number % beside - (width - 1) / 2), APART * (line + 0.7)
            moved = ScaledTranslation(right / 72, up / 72, figure.dpi_scale_trans)
            draw_marks(panel, kind, [place], [1], style, transform=panel.get_xaxis_transform() + moved, clip_on=False)
            deep = max(deep, line + 1)
    return deep


def mark_collapsed(panel: Axes, places: Any, means: Any, collapsed: Any) -> set[str]:
    """A pale square behind the points of which seeds collapsed; the kind, if there are some."""
    which = np.asarray(collapsed, float) > 0
    draw_marks(panel, COLLAPSED, np.asarray(places)[which], np.asarray(means)[which], {"color": PALE})
    return {COLLAPSED} if which.any() else set()


def mark_handles(kinds: Collection[str]) -> dict[str, Any]:
    """The legend's entries for the kinds that were drawn."""
    handles: dict[str, Any] = {}
    for kind in _LOOKS:
        if kind in kinds:
            looks = ({"color": "0.4", "linestyle": "none"} | look for look in _LOOKS[kind])
            handles[kind] = tuple(Line2D([], [], **look | {"marker": look["marker"] or "o"}) for look in looks)
    return handles
