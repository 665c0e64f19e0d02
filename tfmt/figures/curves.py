"""Training loss and score by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tfmt.errors import RequestError
from tfmt.figures.captions import tell_rates, title_with_rates, warn_of_rates
from tfmt.figures.marks import APART, BEYOND, DIVERGED, draw_above, draw_marks, mark_handles
from tfmt.figures.runs import Shown, find_shown
from tfmt.figures.scores import fit_scores, score_label
from tfmt.figures.style import finish_figure, look, make_panels, set_title, styled, tick_whole
from tfmt.results.groups import column_title
from tfmt.results.rows import Row
from tfmt.runs.records import Sources, name_sources
from tfmt.training.epoch import headline_of
from tfmt.words import counted

# A loss this many times the typical run's largest one is not on the axis: it would flatten all others.
_BEYOND = 5.0
# What a run that diverged adds to the axis: losses up to so many times the largest of the others.
_NEAR = 1.25
_NOT_COMPLETED = ("diverged", "failed")


@styled
def plot_curves(
    runs: Sources, *, tasks: Sequence[str] = (), where: str = "", epoch: str = "best"
) -> tuple[Figure, pd.DataFrame]:
    """Mean training loss and development score after each epoch, of each mode at its chosen learning rate.

    Thin lines are seeds, the thick one is the mean of those that completed, over the epochs that all of them have. A
    run that diverged is shown up to its last whole epoch, with a cross there; the axis of losses is that of the runs
    that completed, and an arrow tells that a loss lies beyond it.

    Args:
      runs: the folder of the runs' folders, a packed study, or several.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: whose scores choose the rate: each run's `best` epoch's or its `last` one's.

    Returns:
      The figure, and `task`, `row`, `learning_rate`, `seed`, `run_id`, `epoch`, `train_loss`, `score` (a fraction),
      `outcome` (scored, undefined, diverged or failed).

    Raises:
      RequestError: no run with an epoch.
    """

    def is_any(row: Row) -> bool:
        return True

    shown = find_shown(runs, tasks, where, epoch, is_any, is_any, "no runs")
    group, notes = shown.group, list(shown.notes)
    kept = [row for row in group.rows if row.layers == "all"] or list(group.rows)
    if len(kept) < len(group.rows):
        notes.append(f"left out: {counted(len(group.rows) - len(kept), 'row')} of single blocks")
    frame, lost = _tabulate(shown, kept)
    columns = [column for column in group.columns if column in set(frame["task"])]
    if not columns:
        raise RequestError(f"--runs={name_sources(runs)}: no run ended an epoch, so there is nothing to draw")
    # A task's two panels lie side by side, and many tasks two by two.
    beside = 1 if len(columns) <= 3 else 2
    figure, panels = make_panels(math.ceil(len(columns) / beside), 2 * beside, *((3.6, 2.4), (2.7, 2.2))[beside - 1])
    for empty in panels.flat[2 * len(columns) :]:
        empty.remove()
    titles = [row.title for row in kept]
    rates = pd.concat([part for part in (frame, lost) if len(part)]).groupby("row")["learning_rate"].unique()
    handles: dict[str, Any] = {}
    kinds: set[str] = set()
    above = 0
    for (losses, scores), column in zip(panels.reshape(-1, 2), columns, strict=False):
        mine, unfinished = frame[frame["task"] == column], lost[lost["task"] == column]
        last = int(mine["epoch"].max())
        top = _fit_losses(losses, mine)
        marks = []
        for number, title in enumerate(titles):
            part, none = mine[mine["row"] == title], unfinished[unfinished["row"] == title]
            if part.empty and none.empty:
                continue
            # With one epoch there are no lines, only points: side by side.
            aside = 0.5 * ((number + 0.5) / len(titles) - 0.5) if last == 1 else 0.0
            style = look(number)
            handles.setdefault(f"{title}, {tell_rates(rates[title])}", Line2D([], [], **style))
            for panel, name, times in ((losses, "train_loss", 1), (scores, "score", 100)):
                _draw_row(panel, part, name, times, style, aside)
            marks += _mark_lost(losses, part, none, top, style, aside)
        kinds |= {kind for _, kind, _ in marks} | ({DIVERGED} if "diverged" in set(mine["outcome"]) else set())
        lines = draw_above(losses, marks, 3 if 1 < last < 10 else 1)
        above = max(above, lines)
        losses.set_ylabel("mean training loss")
        scores.set_ylabel(score_label(group, column))
        fit_scores(scores, 100 * mine["score"], 100 * mine["score"])
        for panel in (losses, scores):
            set_title(panel, title_with_rates(column, mine["learning_rate"]), pad=6 + APART * lines)
            panel.set_xlabel("epoch")
            tick_whole(panel.xaxis, 1, last)
            panel.set_xlim(1 - max(0.3, 0.03 * last), last + max(0.3, 0.03 * last))
        notes += _tell_beyond(column, mine[mine["train_loss"] > top])
    for column, row, seed, outcome in zip(*(lost[name] for name in ("task", "row", "seed", "outcome")), strict=True):
        notes.append(f"{column_title(column)}: {row}, seed {seed}: {outcome} before an epoch ended")
    if group.settings["early_stopping"]:
        notes.append("a row's mean ends with the first of its runs that early stopping ended")
    warned = warn_of_rates(frame)
    finish_figure(figure, handles | mark_handles(kinds), warned, APART * above)
    frame.attrs["notes"] = notes + warned
    return figure, frame


def _tabulate(shown: Shown, kept: Sequence[Row]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The epochs of the runs at the chosen rates; and the runs of which none ended (`task`, `row`, `seed`, ...)."""
    group = shown.group
    rows, lost = [], []
    for column in group.columns:
        for row in kept:
            if (row, column) not in group.cells:
                continue
            rate = group.cells[row, column].learning_rate
            mine = group.runs[(group.runs["column"] == column) & (group.runs["row"] == row)]
            mine = mine[mine["learning_rate"] == rate]
            for run_id, seed, outcome in zip(mine["run_id"], mine["seed"], mine["outcome"], strict=True):
                result = shown.records[run_id].result
                start = (column, row.title, rate, int(seed), run_id)
                if not (result and result.epochs):
                    lost.append((*start, outcome))
                    continue
                for each in result.epochs:
                    score = headline_of(each, result.score_name)
                    rows.append((*start, each.epoch, each.train_loss, score, outcome))
    names = ["task", "row", "learning_rate", "seed", "run_id"]
    frame = pd.DataFrame(rows, columns=[*names, "epoch", "train_loss", "score", "outcome"]).astype({"score": float})
    return frame, pd.DataFrame(lost, columns=[*names, "outcome"])


def _fit_losses(panel: Axes, mine: pd.DataFrame) -> float:
    """Limits of the axis of losses, from runs that completed and from what lies near them; returns the upper one."""
    completed = mine[~mine["outcome"].isin(_NOT_COMPLETED)]
    usual = completed if len(completed) else mine
    typical = float(usual.groupby("run_id")["train_loss"].max().median())
    highest = float(usual.loc[usual["train_loss"] <= _BEYOND * typical, "train_loss"].max())
    values = mine.loc[mine["train_loss"] <= _NEAR * highest, "train_loss"]
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or max(0.05 * abs(high), 1e-3)
    panel.set_ylim(max(low - margin, -0.02 * high), high + margin)
    panel.yaxis.set_major_locator(MaxNLocator(nbins=6))
    return high + margin


def _draw_row(panel: Axes, part: pd.DataFrame, name: str, times: float, style: dict[str, Any], aside: float) -> None:
    """The seeds of a row as thin lines, points where a line has one, and the mean of those that completed."""
    thin = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.7, "alpha": 0.45}
    table = times * part.pivot(index="epoch", columns="seed", values=name)
    ended = set(part.loc[~part["outcome"].isin(_NOT_COMPLETED), "seed"])
    completed = [seed for seed in table if seed in ended]
    for seed in table if table.shape[1] > 1 or not completed else ():
        values = table[seed].dropna()
        panel.plot(values.index + aside, values, **thin, marker="." if len(values) == 1 else None, markersize=4)
    if completed:
        mean = table[completed].mean(axis=1, skipna=False)
        panel.plot(mean.index + aside, mean, **style, markevery=max(1, len(mean) // 10))


def _mark_lost(
    panel: Axes, part: pd.DataFrame, unfinished: pd.DataFrame, top: float, style: dict[str, Any], aside: float
) -> list[tuple[float, str, dict[str, Any]]]:
    """A cross where a run diverged; returns the marks above the panel, for losses beyond the axis and for no loss."""
    above = []
    for _, run in part.groupby("run_id"):
        above += [(epoch + aside, BEYOND) for epoch in run.loc[run["train_loss"] > top, "epoch"]]
        last = run.sort_values("epoch").iloc[-1]
        if last["outcome"] == "diverged" and last["train_loss"] <= top:
            draw_marks(panel, DIVERGED, [last["epoch"] + aside], [last["train_loss"]], style)
        elif last["outcome"] == "diverged":
            above.append((last["epoch"] + aside, DIVERGED))
    if (unfinished["outcome"] == "diverged").any():
        above.append((1 + aside, DIVERGED))
    return [(place, kind, style) for place, kind in dict.fromkeys(above)]


def _tell_beyond(column: str, beyond: pd.DataFrame) -> list[str]:
    """Which runs leave the axis of losses."""
    worst = beyond.loc[beyond.groupby("run_id", sort=False)["train_loss"].idxmax()]
    named = zip(*(worst[name] for name in ("row", "seed", "epoch", "train_loss")), strict=True)
    return [
        f"{column_title(column)}: {row}, seed {seed}: the loss of epoch {epoch}, {loss:.3g}, lies beyond the axis"
        for row, seed, epoch, loss in named
    ]
