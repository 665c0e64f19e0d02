"""The runs that a figure shows: comparable ones of the tasks asked for, and what was left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from tfmt.errors import RequestError
from tfmt.results.groups import Group, describe_settings, differing_settings, group_runs
from tfmt.results.rows import Row, annotate, keep_runs
from tfmt.results.where import narrow
from tfmt.runs.records import Record, Sources, find_records, name_sources, none_found, tabulate
from tfmt.spec import TASK_NAMES
from tfmt.words import counted


@dataclass(frozen=True)
class Shown:
    """Comparable runs.

    Attributes:
      group: the runs.
      records: run id to record.
      notes: what is not shown and why.
    """

    group: Group
    records: dict[str, Record]
    notes: tuple[str, ...]


def read_table(
    runs: Sources, tasks: Sequence[str] = (), where: str = ""
) -> tuple[pd.DataFrame, dict[str, Record], list[str]]:
    """Some runs: as `read_runs` has them, their records, and what could not be read or was left out.

    Args:
      runs: the folder of the runs' folders, a packed study, or several.
      tasks: names of tasks; none for all.
      where: further conditions, as in `narrow`.

    Raises:
      RequestError: no such folder, no record of these tasks or conditions in it, or no such task.
    """
    unknown = [task for task in tasks if task not in TASK_NAMES]
    if unknown:
        raise RequestError(f"--task={unknown[0]}: expected {', '.join(TASK_NAMES)}, or several with commas")
    records, broken = find_records(runs)
    if not records:
        raise none_found(runs, broken)
    table = tabulate(records, broken)
    if tasks:
        table = narrow(table, f"task={','.join(tasks)}", given=f"--task={','.join(tasks)}")
    table = narrow(table, where)
    kept = set(table["run_id"])
    notes = [*(f"not read: {message}" for message in broken), *table.attrs["left_out"]]
    return table, {record.run_id: record for record in records if record.run_id in kept}, notes


def find_shown(
    runs: Sources, tasks: Sequence[str], where: str, epoch: str, wanted: Callable[[Row], bool],
    needed: Callable[[Row], bool], missing: str,
) -> Shown:  # fmt: skip
    """The largest group of comparable runs.

    Args:
      runs: the folder of the runs' folders, a packed study, or several.
      tasks: names; none for all.
      where: conditions, as in `narrow`.
      epoch: whose scores.
      wanted: which rows the figure shows.
      needed: of which at least one must be there.
      missing: what is said if there is none.

    Raises:
      RequestError: there are no such runs.
    """
    table, records, notes = read_table(runs, tasks, where)
    annotated = annotate(table, epoch)
    groups = group_runs(keep_runs(annotated, map(wanted, annotated["row"])))
    groups = [group for group in groups if any(map(needed, group.rows))]
    if not groups:
        raise RequestError(f"--runs={name_sources(runs)}: {missing}")
    differing = differing_settings(groups)
    for other in groups[1:]:
        notes.append(
            f"left out: {counted(len(other.runs), 'run')} with other settings, {describe_settings(other, differing)}"
        )
    if len(groups) > 1:
        notes.append(f"shown: {counted(len(groups[0].runs), 'run')}, {describe_settings(groups[0], differing)}")
    return Shown(groups[0], records, tuple(notes))
