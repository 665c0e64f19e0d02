"""How weights are distributed (P1, figures 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfmt.errors import RequestError
from tfmt.figures.base import read_weights
from tfmt.figures.captions import MAKE_FULL_RUNS, tell_rates, warn_of_collapse, warn_of_rates
from tfmt.figures.runs import read_table
from tfmt.figures.style import COLOURS, PALE, finish_figure, make_panels, set_title, styled, wrap_title
from tfmt.results.analyses import describe, full_runs, tell_kept_epoch
from tfmt.results.groups import column_title
from tfmt.runs.records import Sources, find_distributions, name_sources
from tfmt.training.distribution import MAGNITUDE, Distribution, Distributions, bin_edges, join, measure_sublayers

_TITLES = {
    "attention": "attention",
    "attention_layernorm": "attention LayerNorm",
    "feedforward": "feed-forward",
    "feedforward_layernorm": "feed-forward LayerNorm",
}
# How a part's weights are drawn after fine-tuning; kernel and bias are drawn as one, gamma and beta apart.
_LINES = {"gamma": (COLOURS[4], "-"), "beta": (COLOURS[2], "--"), "all": (COLOURS[0], "-")}
_LABELS = {"gamma": "gamma", "beta": "beta", "all": "all weights"}
_SHOWN = 0.998  # the share of the weights that the width of a panel holds at the least
_DRAWN_BINS = 70


@styled
def plot_weights(
    runs: Sources | None = None,
    *,
    model: Any = None,
    tasks: Sequence[str] = (),
    where: str = "",
    epoch: str = "best",
) -> tuple[Figure, pd.DataFrame]:
    """Distributions of the weights of the four sublayers over all blocks, pre-trained beside fully fine-tuned.

    A LayerNorm's gammas and betas are drawn apart; together their areas are 1. Above each panel stand, before and
    after fine-tuning, Sarle's bimodality coefficient of its weights (two modes above 0.56; see
    `tfmt.results.bimodality`) and the share of those that are larger than 0.5, `distribution.MAGNITUDE`.

    Args:
      runs: the folder of the runs' folders, a packed study, or several, with `full` runs.
      model: instead of runs, a model: a name or folder as for `--model`, a TFBert model from tfmt, or the folder of a
        run that kept its weights, which are shown beside those that it began with.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: whose scores choose the learning rate. The weights are those of the epoch that each run kept, whichever
        this is; where it is another one the figure says so.

    Returns:
      The figure, and one row for each `task`, `sublayer`, `part` (kernel, bias, gamma, beta, all) and `state`
      (pre-trained, fine-tuned; of a model's folder `as stored`, of an object `as given`): `learning_rate` (of the
      fine-tuned runs; missing for a model), `runs`, `count`, `mean`, `deviation`, `lowest`, `highest`, `bimodality`,
      `threshold`, `magnitude_ratio` (missing for one mode), `ashman_d`, `bimodality_of_all`, `share_beyond`.
      A task's runs are taken together.

    Raises:
      RequestError: neither or both of runs and model, no `full` runs, or no such model.
    """
    if (runs is None) == (model is None):
        raise RequestError("give runs or a model, one of them")
    notes: list[str] = []
    shown: dict[str, dict[str, Distributions]] = {}
    counts: dict[str, int] = {}
    rates: dict[str, float] = {}
    warned: list[str] = []
    if runs is None:
        given = read_weights(model)
        shown[given.name] = {state: measure_sublayers(given.table, read) for state, read in given.states.items()}
        counts[given.name] = 1
        rate = given.record.spec.learning_rate if given.record else None
        rates |= {} if rate is None else {given.name: rate}
    else:
        table, _, notes = read_table(runs, tasks, where)
        kept: list[pd.DataFrame] = []
        stored, broken = find_distributions(runs)
        notes += [f"not read: {message}" for message in broken]
        for task, mine in full_runs(table, epoch):
            found = [stored[run_id] for run_id in mine["run_id"] if run_id in stored]
            if found:
                shown[task] = {
                    "pre-trained": found[0].before,
                    "fine-tuned": _join_runs([each.after for each in found]),
                }
                counts[task], rates[task] = len(found), float(mine["learning_rate"].iloc[0])
                kept.append(mine[mine["run_id"].isin(list(stored))])
                warned += warn_of_collapse(task, kept[-1])
            else:
                notes.append(f"left out: {task}, whose full runs kept no distributions")
        if not shown and broken:  # the file that cannot be read, and not that there is none
            raise RequestError(broken[0])
        if not shown:
            asked = name_sources(runs)
            raise RequestError(f"--runs={asked}: no full run with its distributions of weights; {MAKE_FULL_RUNS}")
        warned = tell_kept_epoch(pd.concat(kept), epoch) + warned
    rows = []
    for task, states in shown.items():
        for sublayer in _TITLES:
            for state, measured in states.items():
                parts = {**measured[sublayer], "all": join(measured[sublayer].values())}
                for part, whole in parts.items():
                    start: dict[str, Any] = {"task": task, "sublayer": sublayer, "part": part, "state": state}
                    rows.append(start | {"learning_rate": rates.get(task), "runs": counts[task]} | _tell(whole))
    frame = pd.DataFrame(rows).astype({"learning_rate": float})
    figure, panels = make_panels(len(shown), len(_TITLES), 2.6, 2.0)
    handles: dict[str, Any] = {}
    for row, (task, states) in zip(panels, shown.items(), strict=True):
        trained = f", {tell_rates([rates[task]])}" if task in rates else ""
        for panel, (sublayer, title) in zip(row, _TITLES.items(), strict=True):
            _draw_sublayer(panel, {state: part[sublayer] for state, part in states.items()}, handles)
            shown_here = (frame["task"] == task) & (frame["sublayer"] == sublayer) & (frame["part"] == "all")
            set_title(panel, f"{title}{trained}\n{_tell_states(frame[shown_here])}", 2.8, fontsize=8)
            panel.set_xlabel("weight")
        row[0].set_ylabel(f"{wrap_title(column_title(task), 1.8)}\n\ndensity")
    warned = warn_of_rates(frame) + warned
    finish_figure(figure, handles, warned)
    frame.attrs["notes"] = notes + warned
    return figure, frame


def _tell_states(states: pd.DataFrame) -> str:
    """A line on a sublayer's weights; with fine-tuned ones one before and one after."""
    times = ("before: ", "after: ") if len(states) > 1 else ("",)
    told = zip(times, states["bimodality"], states["share_beyond"], strict=True)
    return "\n".join(f"{time}Sarle {sarle:.2f}, |w| > {MAGNITUDE}: {100 * share:.2g} %" for time, sarle, share in told)


def _tell(whole: Distribution) -> dict[str, float]:
    """A distribution in a few numbers."""
    told = {"count": whole.count, "mean": whole.mean, "deviation": max(whole.moments[0], 0.0) ** 0.5}
    return told | {"lowest": whole.lowest, "highest": whole.highest} | describe({"all": whole})


def _join_runs(found: Sequence[Distributions]) -> Distributions:
    """The weights of several runs taken together."""
    return {
        sublayer: {part: join(each[sublayer][part] for each in found) for part in parts}
        for sublayer, parts in found[0].items()
    }


def _draw_sublayer(panel: Axes, states: Mapping[str, Mapping[str, Distribution]], handles: dict[str, Any]) -> None:
    """Pre-trained, or a model alone, as a pale area, fine-tuned as lines, the parts of a LayerNorm apart."""
    whole = join(part for parts in states.values() for part in parts.values())
    low, high = _reach(whole)
    edges = np.linspace(low, high, _DRAWN_BINS + 1)
    for state, parts in states.items():
        together = {"all": join(parts.values())} if "gamma" not in parts else parts
        count = sum(part.count for part in parts.values())
        for name, part in together.items():
            density = _mass(part, edges) / np.diff(edges) / count
            colour, line = _LINES[name]
            label = f"{_LABELS[name]}, {state}"
            if state != "fine-tuned":
                drawn: Any = panel.stairs(density, edges, fill=True, facecolor=PALE, edgecolor=colour, linewidth=0.5,
                                          hatch={"beta": "/////", "gamma": "....."}.get(name))  # fmt: skip
            else:
                drawn = panel.stairs(density, edges, color=colour, linestyle=line, linewidth=1.2, baseline=None)
            handles.setdefault(label, drawn)
    panel.set_xlim(low, high)
    panel.margins(y=0.08)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _reach(whole: Distribution) -> tuple[float, float]:
    """From where to where a panel goes: nearly all weights, whatever the outliers."""
    edges, below = bin_edges(), np.concatenate([[0], np.cumsum(whole.histogram)]) / whole.count
    tail = (1 - _SHOWN) / 2
    low = edges[np.searchsorted(below, tail, side="right") - 1]
    high = edges[min(int(np.searchsorted(below, 1 - tail)), len(edges) - 1)]
    margin = 0.03 * (high - low)
    return float(low - margin), float(high + margin)


def _mass(part: Distribution, edges: np.ndarray) -> np.ndarray:
    """Weights between the edges; a stored bin that an edge cuts is taken as even."""
    return np.diff(np.interp(edges, bin_edges(), np.concatenate([[0], np.cumsum(part.histogram)])))
