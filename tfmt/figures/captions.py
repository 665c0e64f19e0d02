"""What a figure says of its runs: without their learning rates a rate's effect looks like a task's."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from tfmt.results.groups import column_title
from tfmt.results.tables import format_rate
from tfmt.words import counted

MAKE_FULL_RUNS = "make some: tfmt-sweep --flagfile=figures.flags"


def tell_rates(rates: Iterable[float]) -> str:
    """`rate 1e-3`, `rates 1e-4, 1e-3`, and of more the lowest and the highest: `rates 1e-5 to 1e-3`."""
    told = [format_rate(rate) for rate in sorted(set(rates))]
    if len(told) > 2:
        return f"rates {told[0]} to {told[-1]}"
    return f"rate{'s' if len(told) > 1 else ''} {', '.join(told)}"


def title_with_rates(column: str, rates: Iterable[float]) -> str:
    """A panel's title: the task, and at which learning rate the runs in it were trained."""
    return f"{column_title(column)}, {tell_rates(rates)}"


def warn_of_rates(frame: pd.DataFrame) -> list[str]:
    """The sentence for panels whose runs were trained at different rates, if there are such.

    Args:
      frame: `task`, `learning_rate` and, where a panel shows several kinds of runs, `row`.
    """
    by_row = frame.groupby("row" if "row" in frame else frame["task"].notna())["learning_rate"]
    if (by_row.nunique() <= 1).all():
        return []
    told = ""
    if len(by_row) == 1:
        rates = dict(zip(frame["task"], frame["learning_rate"], strict=True))
        told = f" ({', '.join(f'{column_title(task)} {format_rate(rate)}' for task, rate in rates.items())})"
    return [f"Learning rates differ between panels{told}: what differs between them is not the task's effect alone."]


def warn_of_collapse(task: str, runs: pd.DataFrame) -> list[str]:
    """The sentence for a task of whose runs some predict one class: how far their weights moved tells of no task."""
    collapsed = sum(each is True or each == 1 for each in runs["collapsed"])
    return (
        [f"{column_title(task)}: {collapsed} of {counted(len(runs), 'run')} predicted one class."] if collapsed else []
    )
