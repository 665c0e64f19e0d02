"""Score by the block whose LayerNorms are tuned (P1, table 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfmt.figures.captions import tell_rates, title_with_rates, warn_of_rates
from tfmt.figures.marks import mark_collapsed, mark_handles
from tfmt.figures.runs import find_shown
from tfmt.figures.scores import fit_scores, score_label
from tfmt.figures.style import COLOURS, finish_figure, look, make_task_panels, set_title, styled, tick_whole
from tfmt.results.groups import Group, column_title
from tfmt.results.rows import MODE_TITLES, Row
from tfmt.runs.records import Sources

# The modes of whole models that stand beside the blocks, each with its line. Frozen over cached blocks is Frozen, too.
_REFERENCES = {"full": "-.", "layernorm": "--", "frozen": ":"}


def _is_block(row: Row) -> bool:
    return row.mode == "layernorm" and row.layers.isdecimal()


def _is_reference(row: Row) -> bool:
    return row.mode in _REFERENCES and row.layers == "all"


@styled
def plot_layers(
    runs: Sources, *, tasks: Sequence[str] = (), where: str = "", epoch: str = "best"
) -> tuple[Figure, pd.DataFrame]:
    """Score by the block whose LayerNorms alone are tuned, beside all LayerNorms, full fine-tuning and frozen.

    Points are means over seeds at the cell's chosen rate, bars and bands one sample standard deviation. The three
    whole models are lines at their mean, each at its own chosen rate, where comparable runs of them are there.

    Args:
      runs: the folder of the runs' folders, a packed study, or several.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.

    Returns:
      The figure, and `task`, `row`, `mode`, `block` (missing for whole models), `frozen_prefix`, `mean` and
      `deviation` (fractions), `seeds`, `learning_rate`, `lost` (runs of the chosen rate that diverged, failed or have
      no score), `collapsed` (seeds that predict one class).

    Raises:
      RequestError: no runs of single blocks.
    """
    missing = "no runs of single blocks; make them: tfmt-sweep --flagfile=table3.flags"
    shown = find_shown(runs, tasks, where, epoch, lambda row: _is_block(row) or _is_reference(row), _is_block, missing)
    group, notes = shown.group, list(shown.notes)
    frame = _tabulate(group)
    columns = list(dict.fromkeys(frame["task"]))
    figure, panels = make_task_panels(columns)
    handles: dict[str, Any] = {}
    kinds: set[str] = set()
    for panel, column in zip(panels, columns, strict=True):
        mine = frame[frame["task"] == column]
        blocks = mine.dropna(subset="block")
        count = int(blocks["block"].max()) + 1
        for label, reference in _references(frame, column, notes).items():
            handles.setdefault(label, _draw_reference(panel, reference))
        handles |= _draw_blocks(panel, blocks, count, kinds)
        set_title(panel, title_with_rates(column, blocks["learning_rate"]))
        panel.set(xlabel="block (from 0)", ylabel=score_label(group, column))
        panel.set_xlim(-0.6, count - 0.4)
        tick_whole(panel.xaxis, 0, count - 1)
        spread = mine["deviation"].fillna(0)
        fit_scores(panel, 100 * (mine["mean"] - spread), 100 * (mine["mean"] + spread))
    warned = warn_of_rates(frame)
    finish_figure(figure, handles | mark_handles(kinds), warned)
    frame.attrs["notes"] = notes + warned
    return figure, frame


def _tabulate(group: Group) -> pd.DataFrame:
    """The cells of tasks that have single blocks, blocks before whole models."""
    columns = [
        column for column in group.columns if any((r, column) in group.cells for r in group.rows if _is_block(r))
    ]
    rows = [
        {
            "task": column,
            "row": row.title,
            "mode": row.mode,
            "block": int(row.layers) if _is_block(row) else None,
            "frozen_prefix": row.frozen_prefix,
            "mean": cell.mean,
            "deviation": cell.deviation,
            "seeds": len(cell.scores),
            "learning_rate": cell.learning_rate,
            "lost": sum(cell.lost.values()),
            "collapsed": cell.collapsed,
        }
        for column in columns
        for row in sorted(group.rows, key=lambda row: (not _is_block(row), row.order))
        if (cell := group.cells.get((row, column))) is not None
    ]
    return pd.DataFrame(rows).astype({"block": "Int64", "mean": float, "deviation": float})


def _references(frame: pd.DataFrame, column: str, notes: list[str]) -> dict[str, pd.Series[Any]]:
    """Label to row of the whole models of a task that have a score; of those that do not, a note."""
    found = {}
    for mode in _REFERENCES:
        mine = frame[(frame["mode"] == mode) & frame["block"].isna()]
        here = mine[(mine["task"] == column) & mine["mean"].notna()]
        if here.empty:
            why = "no rate without lost seeds" if (mine["task"] == column).any() else "no comparable runs"
            notes.append(f"{column_title(column)}: no line of {MODE_TITLES[mode]}, {why}")
            continue
        one = here.sort_values("frozen_prefix").iloc[-1]  # live before cached, if there are both
        found[f"{one['row']}, {tell_rates(mine.loc[mine['row'] == one['row'], 'learning_rate'])}"] = one
    return found


def _draw_reference(panel: Axes, reference: pd.Series[Any]) -> Any:
    colour = COLOURS[1 + list(_REFERENCES).index(reference["mode"])]
    mean, deviation = 100 * reference["mean"], 100 * reference["deviation"]
    if deviation > 0:
        panel.axhspan(mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)
    return panel.axhline(mean, color=colour, linestyle=_REFERENCES[reference["mode"]])


def _draw_blocks(panel: Axes, mine: pd.DataFrame, blocks: int, kinds: set[str]) -> dict[str, Any]:
    """The line over the blocks, and one for runs over cached blocks; {label: artist}. Adds the marks it needed."""
    live = mine["frozen_prefix"] == Row("layernorm").frozen_prefix
    lines = {"": mine[live]}
    if not live.all():
        # Below the first block there is nothing to cache: its runs belong to both lines.
        lines[", cached prefix"] = mine[~live | (mine["block"] == 0)]
        if (mine.loc[live, "block"] == 0).all():
            del lines[""]
    drawn: dict[str, Any] = {}
    for ending, part in lines.items():
        points = part.set_index("block").reindex(np.arange(blocks))  # a block without runs is a gap in the line
        means, spread = (100 * points[name].to_numpy(float) for name in ("mean", "deviation"))
        style = look(len(_REFERENCES) + 1 if ending else 0) | {"linestyle": "--" if ending else "-"}
        drawn[f"LayerNorms of one block{ending}"] = panel.errorbar(
            points.index, means, yerr=np.nan_to_num(spread), capsize=2.5, linewidth=1, **style
        )
        kinds |= mark_collapsed(panel, points.index, means, points["collapsed"])
    return drawn
