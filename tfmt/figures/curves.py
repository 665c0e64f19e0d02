"""Training loss and score by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tfmt.errors import RequestError
from tfmt.figures.runs import find_shown
from tfmt.figures.scores import score_label
from tfmt.figures.style import add_legend, look, make_panels, styled, tick_whole, wrap_title
from tfmt.results.groups import column_title
from tfmt.results.rows import Row
from tfmt.training.epoch import Epoch


@styled
def plot_curves(runs: str | Path, *, tasks: Sequence[str] = (), epoch: str = "best") -> tuple[Figure, pd.DataFrame]:
    """Mean training loss and development score after each epoch, of each mode at its chosen learning rate.

    Thin lines are seeds, the thick one is their mean over the epochs that all of them have. A run that diverged is
    shown up to its last whole epoch.

    Args:
      runs: the folder of the runs' folders.
      tasks: which tasks; none means all.
      epoch: whose scores choose the rate: each run's `best` epoch's or its `last` one's.

    Returns:
      The figure, and `task`, `row`, `learning_rate`, `seed`, `run_id`, `epoch`, `train_loss`, `score` (a fraction).

    Raises:
      RequestError: no run with an epoch.
    """

    def is_any(row: Row) -> bool:
        return True

    shown = find_shown(runs, tasks, epoch, is_any, is_any, "no runs")
    group, notes = shown.group, list(shown.notes)
    kept = [row for row in group.rows if row.layers == "all"] or list(group.rows)
    if len(kept) < len(group.rows):
        notes.append(f"left out: {len(group.rows) - len(kept)} rows of single blocks")
    rows = []
    for column in group.columns:
        for row in kept:
            if (row, column) not in group.cells:
                continue
            rate = group.cells[row, column].learning_rate
            mine = group.runs[(group.runs["column"] == column) & (group.runs["row"] == row)]
            mine = mine[mine["learning_rate"] == rate]
            for run_id, seed in zip(mine["run_id"], mine["seed"], strict=True):
                result = shown.records[run_id].result
                for each in result.epochs if result else ():
                    score = headline_of(each, result.score_name if result else "")
                    rows.append((column, row.title, rate, int(seed), run_id, each.epoch, each.train_loss, score))
    names = ["task", "row", "learning_rate", "seed", "run_id", "epoch", "train_loss", "score"]
    frame = pd.DataFrame(rows, columns=names).astype({"score": float})
    columns = [column for column in group.columns if column in set(frame["task"])]
    if not columns:
        raise RequestError(f"--runs={runs}: no run ended an epoch, so there is nothing to draw")
    figure, panels = make_panels(len(columns), 2, 3.6, 2.4)
    handles: dict[str, Any] = {}
    titles = [row.title for row in kept]
    for (losses, scores), column in zip(panels, columns, strict=True):
        for number, title in enumerate(titles):
            part = frame[(frame["task"] == column) & (frame["row"] == title)]
            if part.empty:
                continue
            style = look(number)
            for panel, name, times in ((losses, "train_loss", 1), (scores, "score", 100)):
                table = times * part.pivot(index="epoch", columns="seed", values=name)
                if table.shape[1] > 1:
                    thin = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.7, "alpha": 0.45}
                    panel.plot(table.index, table, **thin)
                mean = table.mean(axis=1, skipna=False)
                (drawn,) = panel.plot(mean.index, mean, **style, markevery=max(1, len(mean) // 10))
                handles.setdefault(title, drawn)
        losses.set_ylabel("mean training loss")
        scores.set_ylabel(score_label(group, column))
        for panel in (losses, scores):
            panel.set(title=wrap_title(column_title(column), 3.2), xlabel="epoch")
            tick_whole(panel.xaxis, 1, int(frame["epoch"].max()))
            panel.set_xlim(0.7, frame["epoch"].max() + 0.3)
    add_legend(figure, handles)
    frame.attrs["notes"] = notes
    return figure, frame


def headline_of(epoch: Epoch, score_name: str) -> float | None:
    """The headline score of an epoch: a metric of the first split, or the mean of the two that its name joins."""
    metrics = next(iter(epoch.metrics.values()), {})
    names = [score_name] if score_name in metrics else [name for name in metrics if name in score_name.split("_")]
    values = [metrics[name] for name in names]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
