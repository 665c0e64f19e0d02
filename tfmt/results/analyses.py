"""The measurements of the claims about weights: from an analysis' numbers to comparisons.

The numbers come as DataFrames, which the `tabulate_` functions make from what runs left in their folders; one's own
will do as well:

- `change` (F1): `run_id`, `component`, `block`, `change`: how far full fine-tuning moved each component.
- `weights` (C8): `task`, `sublayer`, `bimodality`, `threshold`, `magnitude_ratio`: of P1's figures 1 and 2 a statistic
  of bimodality, the threshold above which it means two modes, and how many times the magnitude of the smaller mode the
  larger one has (1, or missing, where there is one mode).
- `fisher` (F3, F5): `task`, `component`, `block`, `total`, `weights`: the sum of the Fisher information, and how many
  weights it is over.

Components are those of `tfmt.bert.vocabulary`, with their parts: `output.LayerNorm.gamma`. An optional column `seed`
gives the last two an interval.
"""

from __future__ import annotations

import math
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
from tfmt.results.comparisons import Comparison, Found, Gap, all_or_gaps, compare, thirds
from tfmt.results.groups import Group, describe_settings, differing_settings, group_runs
from tfmt.results.rows import Row, annotate, keep_runs
from tfmt.training.distribution import Distribution, join

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.study.records import Record, WeightDistributions

# How many times the magnitude of the smaller mode "much higher" is.
MUCH_HIGHER = 2.0
FEEDFORWARD_LAYERNORM = "output.LayerNorm"
COLUMNS = {
    "change": ("run_id", "component", "block", "change"),
    "weights": ("task", "sublayer", "bimodality", "threshold", "magnitude_ratio"),
    "fisher": ("task", "component", "block", "total", "weights"),
}


def tabulate_change(records: Iterable[Record]) -> pd.DataFrame:
    """The `change` of records as a DataFrame: `run_id`, `component`, `block` (text), `change`."""
    import pandas as pd

    rows = [
        (record.run_id, component, block, change)
        for record in records
        for component, blocks in (record.change or {}).items()
        for block, change in blocks.items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS["change"]))


def full_runs(runs: pd.DataFrame, epoch: str = "best") -> Iterator[tuple[str, pd.DataFrame]]:
    """Full fine-tuning of whole models at each task's chosen rate: (task, its runs, one a seed).

    Where runs may not be compared with each other (other models, versions, ...) the task says which they are.
    """
    annotated = annotate(runs, epoch)
    groups = group_runs(keep_runs(annotated, (row == Row("full") for row in annotated["row"])))
    for group, told in _told_apart(groups):
        for column in group.columns:
            cell = group.cells[Row("full"), column]
            mine = group.runs[(group.runs["column"] == column) & (group.runs["learning_rate"] == cell.learning_rate)]
            if cell.eligible:
                yield column + told, mine


def _told_apart(groups: list[Group]) -> Iterator[tuple[Group, str]]:
    """Groups with what tells them from each other, for the end of a task's name."""
    differing = differing_settings(groups)
    for group in groups:
        yield group, f" ({describe_settings(group, differing)})" if differing else ""


def tabulate_weights(
    runs: pd.DataFrame, distributions: Mapping[str, WeightDistributions], epoch: str = "best"
) -> pd.DataFrame:
    """What C8 asks of the weights after full fine-tuning, gamma and beta of a LayerNorm together.

    Args:
      runs: what `read_runs` returns.
      distributions: from `find_distributions`.
      epoch: whose scores choose the learning rate.

    Returns:
      `task`, `seed`, `sublayer`, `bimodality` (Sarle's coefficient of the middle 98 % of the weights), `threshold`,
      `magnitude_ratio`, `ashman_d`, `bimodality_of_all` (outliers included), `share_beyond` (of weights larger than
      `distribution.MAGNITUDE`); see `bimodality`.
    """
    import pandas as pd

    rows = []
    for task, mine in full_runs(runs, epoch):
        for run_id, seed in zip(mine["run_id"], mine["seed"], strict=True):
            if run_id in distributions:
                for sublayer, parts in distributions[run_id].after.items():
                    rows.append({"task": task, "seed": int(seed), "sublayer": sublayer} | describe(parts))
    columns = ["task", "seed", "sublayer", "bimodality", "threshold", "magnitude_ratio", "ashman_d"]
    return pd.DataFrame(rows, columns=[*columns, "bimodality_of_all", "share_beyond"])


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
                        rows.append((column + told, seed, component, block, total, fisher.weights[component]))
    return pd.DataFrame(rows, columns=["task", "seed", "component", "block", "total", "weights"])


def check_columns(name: str, frame: pd.DataFrame) -> None:
    """Says which columns a supplied DataFrame lacks, or that it has two rows for one thing."""
    columns = COLUMNS[name]
    missing = [column for column in columns if column not in frame]
    if missing:
        raise RequestError(f"the {name} numbers have no column {', '.join(missing)}; expected {', '.join(columns)}")
    keys = [column for column in ("run_id", "task", "seed", "sublayer", "component", "block") if column in frame]
    if frame.duplicated(keys).any():
        raise RequestError(f"the {name} numbers have more than one row for one {', '.join(keys)}")


def _whole(component: str) -> str:
    """`output.LayerNorm` of `output.LayerNorm.gamma`."""
    return component.rpartition(".")[0]


def _part(component: str) -> str:
    """`gamma` of `output.LayerNorm.gamma`."""
    return component.rpartition(".")[2]


def modes_of_weights(weights: pd.DataFrame) -> Found:
    """C8: two modes, one of much higher magnitude, in both LayerNorms; one mode in attention and feed-forward."""
    for task, part in weights.groupby("task", sort=False):
        found: list[Comparison | Gap] = []
        for sublayer in ("attention_layernorm", "feedforward_layernorm", "attention", "feedforward"):
            mine = part[part["sublayer"] == sublayer]
            seeds = [int(seed) for seed in mine["seed"]] if "seed" in mine else list(range(len(mine)))
            excess = dict(zip(seeds, mine["bimodality"] - mine["threshold"], strict=True))
            if sublayer.endswith("layernorm"):
                ratio = {
                    seed: math.log(r)
                    for seed, r in zip(seeds, mine["magnitude_ratio"].astype(float).fillna(1.0), strict=True)
                }
                found.append(compare(str(task), f"{sublayer}: bimodality - threshold", excess, 0.0, "index", 1))
                found.append(compare(str(task), f"{sublayer}: larger / smaller mode", ratio, MUCH_HIGHER, "times", 1))
            else:
                excess = {seed: -value for seed, value in excess.items()}
                found.append(compare(str(task), f"{sublayer}: threshold - bimodality", excess, 0.0, "index", 1))
        yield from all_or_gaps(found)


def change_of_components(group: Group, change: pd.DataFrame) -> Found:
    """F1: the change of the feed-forward LayerNorms against the largest change of another component, run by run.

    A component's change is the mean over its blocks; a LayerNorm's gamma and beta count alike, as they are of one
    size, and a dense layer counts by its kernel, which has all but a thousandth of its weights.
    """
    kept = change[~change["component"].str.startswith("classifier") & ~change["component"].str.endswith(".bias")]
    component = kept["component"].map(_whole)
    means = kept.assign(component=component).groupby(["run_id", "component"])["change"].mean().unstack()
    for column in group.columns:
        cell = group.cells.get((Row("full"), column))
        by_seed = {}
        if cell and cell.eligible:
            runs = group.runs[(group.runs["column"] == column) & (group.runs["learning_rate"] == cell.learning_rate)]
            for run_id, seed in zip(runs["run_id"], runs["seed"], strict=True):
                if run_id in means.index and means.loc[run_id].notna().sum() > 1:
                    found = means.loc[run_id].dropna()
                    others = found.drop(FEEDFORWARD_LAYERNORM, errors="ignore")
                    if FEEDFORWARD_LAYERNORM in found and found[FEEDFORWARD_LAYERNORM] > 0 and others.max() > 0:
                        by_seed[int(seed)] = math.log(found[FEEDFORWARD_LAYERNORM] / others.max())
        yield compare(column, "change of feed-forward LayerNorms / largest other", by_seed, 1.0, "times")


def _by_seed(fisher: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame]]:
    """The Fisher information of each seed; without seeds there is one."""
    for seed, part in fisher.groupby("seed") if "seed" in fisher else ((0, fisher),):
        yield int(str(seed)), part


def fisher_of_components(fisher: pd.DataFrame) -> Found:
    """F3: Fisher information per weight of the feed-forward LayerNorms against the largest of another component."""
    encoder = fisher[~fisher["component"].str.startswith("classifier")]
    encoder = encoder.assign(component=encoder["component"].map(_whole))
    for task, part in encoder.groupby("task", sort=False):
        by_seed = {}
        for seed, mine in _by_seed(part):
            sums = mine.groupby("component")[["total", "weights"]].sum()
            mean = sums["total"] / sums["weights"]
            others = mean.drop(FEEDFORWARD_LAYERNORM, errors="ignore")
            if FEEDFORWARD_LAYERNORM in mean and mean[FEEDFORWARD_LAYERNORM] > 0 and len(others) and others.max() > 0:
                by_seed[seed] = math.log(mean[FEEDFORWARD_LAYERNORM] / others.max())
        what = "Fisher information per weight, feed-forward LayerNorms / largest other"
        yield compare(str(task), what, by_seed, 1.0, "times", 1)


def fisher_by_block_and_part(fisher: pd.DataFrame) -> Found:
    """F5: in the feed-forward LayerNorms, the last third of the blocks against the others, and beta against gamma."""
    inside = fisher[fisher["component"].str.startswith(FEEDFORWARD_LAYERNORM + ".")]
    for task, part in inside.groupby("task", sort=False):
        lead, ratio = {}, {}
        for seed, mine in _by_seed(part):
            blocks = mine.assign(block=mine["block"].astype(int)).groupby("block")["total"].sum().sort_index()
            if len(blocks) >= 3 and blocks.sum() > 0:
                first, middle, last = (
                    100 * blocks.iloc[list(third)].sum() / blocks.sum() for third in thirds(len(blocks))
                )
                lead[seed] = float(last - max(first, middle))
            sums = mine.groupby(mine["component"].map(_part))["total"].sum()
            if sums.get("beta", 0.0) > 0 and sums.get("gamma", 0.0) > 0:
                ratio[seed] = math.log(sums["beta"] / sums["gamma"])
        blocks_lead = compare(str(task), "share of the last third of blocks - larger other", lead, 0.0, "points", 1)
        yield from all_or_gaps((blocks_lead, compare(str(task), "beta / gamma", ratio, 1.0, "times", 1)))
