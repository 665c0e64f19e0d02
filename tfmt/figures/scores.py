"""The axis of scores in percent."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tfmt.results.groups import Group

# Words of the names of scores that may be below zero.
_SIGNED = ("correlation", "pearson", "spearman")


def score_label(group: Group, column: str) -> str:
    """The label of a score's axis."""
    names = sorted(set(group.runs.loc[group.runs["column"] == column, "score_name"].dropna()))
    return f"{'/'.join(names).replace('_', ' ') or 'score'} (%)"


def fit_scores(panel: Axes, lows: Any, highs: Any) -> None:
    """Limits and ticks of a panel's scores: from the data, but not beyond what a score can be.

    Args:
      panel: with its label, whose name says whether the score may be negative.
      lows: the lower ends of what is drawn, in percent, any shape; NaN is nothing.
      highs: the upper ends.
    """
    floor = -100.0 if any(word in panel.get_ylabel() for word in _SIGNED) else 0.0
    known = np.concatenate([np.ravel(np.asarray(ends, float)) for ends in (lows, highs)])
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 100.0)
    low, high = max(min(low, high - 1.0), floor), min(max(high, low + 1.0), 100.0)
    margin = min(0.06 * (high - low), 3.0)
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    panel.set_ylim(low - margin, high + margin)
    panel.set_yticks([tick for tick in ticks if max(low - margin, floor) <= tick <= min(high + margin, 100.0)])
    if not len(known):
        panel.text(0.5, 0.5, "no score", transform=panel.transAxes, ha="center", va="center", color="0.4")
