"""Fisher information of every component by block (P2)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from tfmt.errors import RequestError
from tfmt.figures.components import draw_components
from tfmt.figures.runs import read_table
from tfmt.figures.style import styled
from tfmt.results.analyses import check_columns, tabulate_fisher
from tfmt.runs.records import Sources, name_sources


@styled
def plot_fisher(
    runs: Sources | pd.DataFrame, *, tasks: Sequence[str] = (), where: str = "", epoch: str = "best"
) -> tuple[Figure, pd.DataFrame]:
    """Fisher information of each component: its sum over the weights, its mean per weight, and the mean by block.

    Sum and mean say different things: a kernel has thousands of times the weights of a LayerNorm, so that its sum is
    large while a single weight of it matters little. Bars show the mean over seeds, and from the lowest to the
    highest. The numbers are those that the `fisher` runs chose their masks by; see `tfmt.training.fisher`.

    Args:
      runs: the folder of the runs' folders, a packed study, or several; or one's own DataFrame of `task`,
        `component`, `block`, `total`, `weights`, as `component_fisher` gives them, optionally with `seed`.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: makes no difference here.

    Returns:
      The figure, and `task`, `seed`, `component`, `block`, `total`, `weights`, `mean`.

    Raises:
      RequestError: no `fisher` runs, or a DataFrame without a column that is needed.
    """
    notes: list[str] = []
    if isinstance(runs, pd.DataFrame):
        check_columns("fisher", runs)
        frame = runs if "seed" in runs else runs.assign(seed=0)
    else:
        table, records, notes = read_table(runs, tasks, where)
        frame = tabulate_fisher(table, records.values())
    if frame.empty:
        place = "the DataFrame" if isinstance(runs, pd.DataFrame) else f"--runs={name_sources(runs)}"
        raise RequestError(
            f"{place}: no run of --mode=fisher with its Fisher information; make some:"
            " tfmt-sweep --flagfile=fisher.flags --mode=fisher"
        )
    frame = frame.assign(mean=frame["total"] / frame["weights"])
    bars = [("total", "sum over the weights", True), ("mean", "mean per weight", False)]
    figure = draw_components(frame.assign(run=frame["seed"]), bars, ("mean", "Fisher information per weight"), log=True)
    frame.attrs["notes"] = notes
    return figure, frame
