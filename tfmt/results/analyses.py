"""What runs tell of weights beside their scores, as DataFrames.

The `tabulate_` functions make them from what runs left in their folders; one's own will do as well for the claims that
are decided by them:

- `change` (F1): `run_id`, `component`, `block`, `change`: how far full fine-tuning moved each component.
- `weights` (C8): `task`, `sublayer`, `bimodality`, `threshold`, `magnitude_ratio`: of P1's figures 1 and 2 a statistic
  of bimodality, the threshold above which it means two modes, and how many times the magnitude of the smaller mode the
  larger one has (1, or missing, where there is one mode).
- `fisher` (F3, F5): `task`, `component`, `block`, `total`, `weights`: the sum of the Fisher information, and how many
  weights it is over.

Components are those of `tfmt.bert.vocabulary`, with their parts: `output.LayerNorm.gamma`. Of the last two an optional
column `seed` gives an interval, and an optional column `told` parts what is judged apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from tfmt.errors import RequestError
from tfmt.results.bimodality import (
    SARLE_THRESHOLD,
    ashman_d,
    bimodality_coefficient,
    coefficient_of_all,
    fit_two_normals,
    magnitude_ratio,
)
from tfmt.results.cells import ALL_SEEDS, Seeds
from tfmt.results.groups import Group, describe_settings, differing_settings, group_runs
from tfmt.results.rows import Row, annotate, keep_runs
from tfmt.training.distribution import Distribution, join

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.runs.records import Record, WeightDistributions

COLUMNS = {
    "change": ("run_id", "component", "block", "change"),
    "weights": ("task", "sublayer", "bimodality", "threshold", "magnitude_ratio"),
    "fisher": ("task", "component", "block", "total", "weights"),
}


def tabulate_change(records: Iterable[Record]) -> pd.DataFrame:
    """The `change` of records as a DataFrame: `run_id`, `learning_rate`, `component`, `block` (text), `change`.

    How far weights move depends on the rate first of all: runs of different rates do not tell of their tasks.
    """
    import pandas as pd

    rows = [
        (record.run_id, record.spec.learning_rate, component, block, change)
        for record in records
        for component, blocks in (record.change or {}).items()
        for block, change in blocks.items()
    ]
    return pd.DataFrame(rows, columns=["run_id", "learning_rate", "component", "block", "change"])


def full_runs(runs: pd.DataFrame, epoch: str = "best", roles: Seeds = ALL_SEEDS) -> Iterator[tuple[str, pd.DataFrame]]:
    """Full fine-tuning of whole models at each task's chosen rate: (task, its runs, one a seed, of one rate).

    The runs have the columns of `annotate`; `learning_rate` is that rate, `collapsed` says which of them decide
    nothing. Where runs may not be compared with each other (other models, another arithmetic, ...) the task and their
    column `told` say which they are.
    """
    annotated = annotate(runs, epoch)
    groups = group_runs(keep_runs(annotated, (row == Row("full") for row in annotated["row"])), roles)
    for group, told in _told_apart(groups):
        for column in group.columns:
            cell = group.cells[Row("full"), column]
            mine = group.runs[(group.runs["column"] == column) & (group.runs["learning_rate"] == cell.learning_rate)]
            mine = mine[mine["seed"].isin(list(cell.scores))]
            if cell.eligible:
                yield _name(column, told), mine.assign(told=told)


def tell_kept_epoch(runs: pd.DataFrame, epoch: str) -> list[str]:
    """The caption line for runs that kept the weights of another epoch than the one whose scores count, if any did.

    Change and distributions are of the epoch that `keep_epoch` names: a record has no other's. Whatever `epoch` is, it
    chooses the learning rate and says which runs collapsed.

    Args:
      runs: what `read_runs` returns, or some rows of it.
      epoch: whose scores count, `best` or `last`.
    """
    last = runs["epochs"].where(runs["stopped_early"].isna(), runs["stopped_early"])
    other = runs[(runs["keep_epoch"] != epoch) & (runs["best_epoch"] != last)]
    if other.empty:
        return []
    return [
        f"Weights are those of each run's {' or '.join(sorted(set(other['keep_epoch'])))} epoch, which it kept"
        f" (--keep_epoch); the {epoch} epoch's scores only chose the learning rate and say what collapsed."
    ]


def _told_apart(groups: list[Group]) -> Iterator[tuple[Group, str]]:
    """Groups with what tells them from each other, empty where there is one."""
    differing = differing_settings(groups)
    for group in groups:
        yield group, describe_settings(group, differing) if differing else ""


def _name(column: str, told: str) -> str:
    return f"{column} ({told})" if told else column


def tabulate_weights(
    runs: pd.DataFrame,
    distributions: Mapping[str, WeightDistributions],
    epoch: str = "best",
    roles: Seeds = ALL_SEEDS,
) -> pd.DataFrame:
    """What C8 asks of the weights after full fine-tuning, gamma and beta of a LayerNorm together.

    Args:
      runs: what `read_runs` returns.
      distributions: from `find_distributions`.
      epoch: whose scores choose the learning rate.
      roles: which seeds choose it, and which are looked at.

    Returns:
      `task`, `learning_rate`, `seed`, `collapsed` (whether the run was), `sublayer`, `bimodality` (Sarle's coefficient
      of the middle 98 % of the weights), `threshold`, `magnitude_ratio`, `ashman_d`, `bimodality_of_all` (outliers
      included), `share_beyond` (of weights larger than `distribution.MAGNITUDE`), see `bimodality`; `told` (which runs,
      where some may not be compared with others).
    """
    import pandas as pd

    rows = []
    for task, mine in full_runs(runs, epoch, roles):
        names = ("run_id", "learning_rate", "seed", "collapsed", "told")
        for run_id, rate, seed, collapsed, told in zip(*(mine[name] for name in names), strict=True):
            if run_id in distributions:
                run = {"task": task, "learning_rate": rate, "seed": int(seed), "collapsed": collapsed == 1}
                run["told"] = told
                for sublayer, parts in distributions[run_id].after.items():
                    rows.append(run | {"sublayer": sublayer} | describe(parts))
    columns = ["task", "learning_rate", "seed", "collapsed", "sublayer", "bimodality", "threshold", "magnitude_ratio"]
    return pd.DataFrame(rows, columns=[*columns, "ashman_d", "bimodality_of_all", "share_beyond", "told"])


def describe(parts: Mapping[str, Distribution]) -> dict[str, float]:
    """The statistics of a sublayer's weights, its parts taken together."""
    whole = join(parts.values())
    modes = fit_two_normals(whole)
    return {
        "bimodality": bimodality_coefficient(whole),
        "threshold": SARLE_THRESHOLD,
        "magnitude_ratio": magnitude_ratio(modes),
        "ashman_d": ashman_d(modes),
        "bimodality_of_all": coefficient_of_all(whole),
        "share_beyond": whole.beyond / whole.count,
    }


def tabulate_fisher(runs: pd.DataFrame, records: Iterable[Record]) -> pd.DataFrame:
    """The Fisher information that `fisher` runs estimated: `task`, `seed`, `component`, `block`, `total`, `weights`.

    `told` says which runs, where some may not be compared with others.

    It does not depend on a run's rate or fraction, so that one run speaks for all of its seed; where runs of one task
    used different numbers of examples, those with the most speak.
    """
    import pandas as pd

    known = {record.run_id: record.fisher for record in records if record.fisher and record.fisher.totals}
    annotated = annotate(runs)
    usable = zip(annotated["row"], annotated["run_id"], annotated["outcome"], strict=True)
    groups = group_runs(
        keep_runs(annotated, [row.mode == "fisher" and name in known and how != "failed" for row, name, how in usable])
    )
    rows = []
    for group, told in _told_apart(groups):
        for column in group.columns:
            mine = group.runs[group.runs["column"] == column]
            most = max(known[run_id].examples for run_id in mine["run_id"])
            by_seed = {
                int(seed): known[run_id]
                for run_id, seed in sorted(zip(mine["run_id"], mine["seed"], strict=True), reverse=True)
                if known[run_id].examples == most
            }
            for seed, fisher in sorted(by_seed.items()):
                for component, blocks in fisher.totals.items():
                    for block, total in blocks.items():
                        weights = fisher.weights[component]
                        rows.append((_name(column, told), seed, component, block, total, weights, told))
    return pd.DataFrame(rows, columns=["task", "seed", "component", "block", "total", "weights", "told"])


def check_columns(name: str, frame: pd.DataFrame) -> None:
    """Says which columns a supplied DataFrame lacks, or that it has two rows for one thing."""
    columns = COLUMNS[name]
    missing = [column for column in columns if column not in frame]
    if missing:
        raise RequestError(f"the {name} numbers have no column {', '.join(missing)}; expected {', '.join(columns)}")
    keys = [column for column in ("run_id", "task", "seed", "sublayer", "component", "block") if column in frame]
    if frame.duplicated(keys).any():
        raise RequestError(f"the {name} numbers have more than one row for one {', '.join(keys)}")
