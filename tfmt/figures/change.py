"""How far full fine-tuning moved the weights (P1, section 3; P2)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from tfmt.errors import RequestError
from tfmt.figures.captions import MAKE_FULL_RUNS, warn_of_collapse, warn_of_rates
from tfmt.figures.components import draw_components
from tfmt.figures.runs import read_table
from tfmt.figures.style import styled
from tfmt.results.analyses import full_runs, tabulate_change, tell_kept_epoch
from tfmt.runs.records import Sources, name_sources


@styled
def plot_change(
    runs: Sources, *, tasks: Sequence[str] = (), where: str = "", epoch: str = "best"
) -> tuple[Figure, pd.DataFrame]:
    """How far full fine-tuning moved each component: mean |fine-tuned - pre-trained|, overall and by block.

    Bars show the mean over a task's runs at its chosen rate, and from the lowest to the highest.

    Args:
      runs: the folder of the runs' folders, a packed study, or several, with `full` runs.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: whose scores choose the learning rate. The change is that of the epoch that each run kept, whichever this
        is; where it is another one the figure says so.

    Returns:
      The figure, and `task`, `learning_rate`, `seed`, `run_id`, `component`, `block` (`-` outside the blocks),
      `change`.

    Raises:
      RequestError: no `full` runs.
    """
    table, records, notes = read_table(runs, tasks, where)
    change = tabulate_change(records.values())[["run_id", "component", "block", "change"]]
    parts, warned, shown = [], [], []
    for task, runs_of_task in full_runs(table, epoch):
        mine = runs_of_task[runs_of_task["run_id"].isin(change["run_id"])]
        if not mine.empty:
            parts.append(mine[["run_id", "learning_rate", "seed"]].merge(change, on="run_id").assign(task=task))
            warned += warn_of_collapse(task, mine)
            shown.append(mine)
    if not parts:
        raise RequestError(f"--runs={name_sources(runs)}: no full run with its change; {MAKE_FULL_RUNS}")
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[["task", "learning_rate", "seed", "run_id", "component", "block", "change"]]
    warned = tell_kept_epoch(pd.concat(shown), epoch) + warn_of_rates(frame) + warned
    label = "mean |fine-tuned - pre-trained|"
    figure = draw_components(
        frame.assign(run=frame["run_id"]), [("change", label, False)], ("change", label), log=False, notes=warned
    )
    frame.attrs["notes"] = notes + warned
    return figure, frame
