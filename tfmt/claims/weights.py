"""The measurements of the claims about weights: from the numbers of `results.analyses` to comparisons.

A full run that collapsed has the weights of a model that learned nothing, and decides nothing here either. Fisher
information is estimated before its run trains the encoder, so that it stands whatever became of the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfmt.claims.comparisons import Comparison, Found, Gap, all_or_gaps, compare, tell_collapsed, thirds
from tfmt.results.groups import Group
from tfmt.results.rows import Row

if TYPE_CHECKING:
    import pandas as pd

# How many times the magnitude of the smaller mode "much higher" is.
MUCH_HIGHER = 2.0
FEEDFORWARD_LAYERNORM = "output.LayerNorm"


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
            count = sum(value == 1 for value in mine["collapsed"]) if "collapsed" in mine else 0
            collapsed = (f"{Row('full').title} {count} of {len(mine)}",) if count else ()
            excess = dict(zip(seeds, mine["bimodality"] - mine["threshold"], strict=True))
            if sublayer.endswith("layernorm"):
                ratio = {
                    seed: math.log(r)
                    for seed, r in zip(seeds, mine["magnitude_ratio"].astype(float).fillna(1.0), strict=True)
                }
                told = f"{sublayer}: bimodality - threshold"
                found.append(compare(str(task), told, excess, 0.0, "index", 1, collapsed))
                told = f"{sublayer}: larger / smaller mode"
                found.append(compare(str(task), told, ratio, MUCH_HIGHER, "times", 1, collapsed))
            else:
                excess = {seed: -value for seed, value in excess.items()}
                told = f"{sublayer}: threshold - bimodality"
                found.append(compare(str(task), told, excess, 0.0, "index", 1, collapsed))
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
                if seed in cell.scores and run_id in means.index and means.loc[run_id].notna().sum() > 1:
                    found = means.loc[run_id].dropna()
                    others = found.drop(FEEDFORWARD_LAYERNORM, errors="ignore")
                    if FEEDFORWARD_LAYERNORM in found and found[FEEDFORWARD_LAYERNORM] > 0 and others.max() > 0:
                        by_seed[int(seed)] = math.log(found[FEEDFORWARD_LAYERNORM] / others.max())
        collapsed = tell_collapsed(group, (Row("full"),), column)
        told = "change of feed-forward LayerNorms / largest other"
        yield compare(column, told, by_seed, 1.0, "times", collapsed=collapsed)


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
