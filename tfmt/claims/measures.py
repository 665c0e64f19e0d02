"""The measurements of the claims about scores: from comparable runs to comparisons.

None of them looks at a result to decide what to compare: rows, sizes, blocks and bounds are fixed, and where a claim
speaks of a best one, it is chosen on other seeds than it is judged on. A comparison is told of every row that it reads
which of them collapsed, also of blocks that are only chosen among: had they learned, another might have been chosen.
"""

from __future__ import annotations

import math
import statistics

from tfmt.claims.comparisons import (
    Found,
    Gap,
    all_or_gaps,
    contrast,
    difference,
    seed_scores,
    tell_collapsed,
    thirds,
)
from tfmt.results.groups import Group, column_title
from tfmt.results.rows import Row
from tfmt.spec import format_layers

# The margins, in points (percent of the score). The papers name none; these were fixed before any run.
ON_PAR = 1.0
LITTLE = 2.0
CLOSE = 3.0
CLEAR = 3.0
BETTER = 0.5
# P2 does not say how small a small part is.
SMALL_FRACTION = 0.2

MODULES = ("attention", "feedforward", "layernorm")


def modules_against_full(group: Group) -> Found:
    """C1: attention, feed-forward and LayerNorms, each against full fine-tuning."""
    for column in group.columns:
        yield from all_or_gaps(difference(group, column, Row(mode), Row("full"), -CLOSE) for mode in MODULES)


def layernorms_against_full(group: Group) -> Found:
    """C2: LayerNorms against full fine-tuning."""
    for column in group.columns:
        yield difference(group, column, Row("layernorm"), Row("full"), -ON_PAR)


def one_layernorm_against_both(group: Group) -> Found:
    """C3: each of the two LayerNorms against both; judging the better of them would reward its luck."""
    for column in group.columns:
        ones = (Row("layernorm_attention"), Row("layernorm_feedforward"))
        yield from all_or_gaps(difference(group, column, one, Row("layernorm"), -LITTLE) for one in ones)


def layernorms_against_random(group: Group) -> Found:
    """C4: LayerNorms against as many random weights."""
    for column in group.columns:
        yield difference(group, column, Row("layernorm"), Row("random"), CLEAR)


def modules_and_random_on_tokens(group: Group) -> Found:
    """C5: C1 and C4 on token-level tasks."""
    for column in group.columns:
        close = [difference(group, column, Row(mode), Row("full"), -CLOSE) for mode in MODULES]
        yield from all_or_gaps([*close, difference(group, column, Row("layernorm"), Row("random"), CLEAR)])


def _block_scores(group: Group, column: str) -> dict[Row, dict[int, float]] | Gap:
    """Seed to score of each block's LayerNorms, in order, for a model of three or more blocks all of which were run."""
    blocks = {int(row.layers): row for row in group.rows if row.mode == "layernorm" and row.layers.isdecimal()}
    counted = group.runs[group.runs["tuned"].notna()]  # a run that failed early has no count
    tuned = dict(zip(counted["layers"], counted["tuned"], strict=True))
    expected = max(blocks, default=-1) + 1
    sizes = [tuned[row.layers] for row in blocks.values() if row.layers in tuned]
    if tuned.get("all", 0) > 0 and sizes:
        # Every block's LayerNorms are of one size, so the whole model's count tells how many blocks it has.
        expected = max(expected, round(tuned["all"] / max(sizes)))
    scores = [seed_scores(group, blocks[block], column) if block in blocks else {} for block in range(expected)]
    missing = tuple(block for block, by_seed in enumerate(scores) if not by_seed)
    if missing:
        told = format_layers(missing)
        return Gap(column_title(column), f"LayerNorms of block{'s' * (len(missing) > 1)} {told}: no score")
    if expected < 3:
        return Gap(column_title(column), f"{expected} blocks of at least 3")
    return {blocks[block]: by_seed for block, by_seed in enumerate(scores)}


def best_block_against_all(group: Group) -> Found:
    """C6: the best block's LayerNorms against all. For each seed the block is chosen by the mean of the other seeds."""
    for column in group.columns:
        blocks = _block_scores(group, column)
        if isinstance(blocks, Gap):
            yield blocks
            continue
        whole = Row("layernorm")
        shared = set(seed_scores(group, whole, column)).intersection(*blocks.values())
        weights = {}
        for seed in sorted(shared) if len(shared) > 1 else ():
            others = shared - {seed}
            best = max(blocks, key=lambda row: statistics.fmean(blocks[row][other] for other in others))
            weights[seed] = {best: 1.0, whole: -1.0}
        collapsed = tell_collapsed(group, (whole, *blocks), column)
        yield contrast(group, column, "best block's LayerNorms - LayerNorms", weights, -CLOSE, collapsed=collapsed)


def middle_blocks_against_others(group: Group) -> Found:
    """C7: the mean over the middle third of the blocks against the first and against the last third."""
    for column in group.columns:
        blocks = _block_scores(group, column)
        if isinstance(blocks, Gap):
            yield blocks
            continue
        rows = list(blocks)
        shared = sorted(set(blocks[rows[0]]).intersection(*blocks.values()))
        first, middle, last = thirds(len(rows))
        for name, third in (("first", first), ("last", last)):
            by_row = {rows[i]: 1 / len(middle) for i in middle} | {rows[i]: -1 / len(third) for i in third}
            weights = dict.fromkeys(shared, by_row)
            collapsed = tell_collapsed(group, [rows[i] for i in sorted({*middle, *third})], column)
            yield contrast(
                group, column, f"middle third of blocks - {name} third", weights, BETTER, collapsed=collapsed
            )


def outliers_against_frozen(group: Group) -> Found:
    """C9: four outliers a LayerNorm against none; on STS-B by a clear margin."""
    rows = [row for row in group.rows if row.mode == "outliers" and row.mask_size == 4]
    for column in group.columns:
        notably = column.partition(" ")[0] == "stsb"
        for row in rows or [Row("outliers", mask_size=4)]:
            yield difference(group, column, row, Row("frozen"), CLEAR if notably else BETTER)


def score_by_outliers(group: Group) -> Found:
    """C10: the slope of the score over the number of outliers, per fourfold number, a line fitted by least squares."""
    for column in group.columns:
        for pool in sorted({row.outlier_pool for row in group.rows}):
            rows = [row for row in group.rows if row.mode == "outliers" and row.outlier_pool == pool]
            sizes = {row.mask_size or 1: row for row in rows if seed_scores(group, row, column)}
            scores = {row: seed_scores(group, row, column) for row in sizes.values()}
            name = "slope over n" + ("" if pool == Row("outliers").outlier_pool else f" ({pool} alone)")
            if len(scores) < 3:
                yield Gap(column_title(column), f"{name}: {len(scores)} of at least 3 numbers of outliers")
                continue
            shared = sorted(set(next(iter(scores.values()))).intersection(*scores.values()))
            # The slope of a line fitted by least squares is a sum of the scores, each times a weight of its step.
            steps = {row: math.log(row.mask_size or 1, 4) for row in scores}
            centre = statistics.fmean(steps.values())
            spread = sum((step - centre) ** 2 for step in steps.values())
            by_row = {row: (step - centre) / spread for row, step in steps.items()}
            weights = dict.fromkeys(shared, by_row)
            collapsed = tell_collapsed(group, rows, column)
            yield contrast(group, column, name, weights, BETTER, "points a step", collapsed)


def outliers_against_control(group: Group) -> Found:
    """C11: outliers against as many random weights of each LayerNorm, size by size."""
    outliers = [row for row in group.rows if row.mode == "outliers"] or [Row("outliers", mask_size=4)]
    for column in group.columns:
        for row in outliers:
            control = Row("outliers_control", mask_size=row.mask_size, outlier_pool=row.outlier_pool)
            yield difference(group, column, row, control, BETTER)


def feedforward_layernorm_against_others(group: Group) -> Found:
    """F2: P2's LayerNorms against full fine-tuning and BitFit."""
    for column in group.columns:
        one = Row("layernorm_feedforward")
        yield from all_or_gaps(difference(group, column, one, Row(mode), -LITTLE) for mode in ("full", "bitfit"))


def fisher_against_control(group: Group) -> Found:
    """F4: a small Fisher-chosen part against the whole, and against as many random weights."""
    chosen = [row for row in group.rows if row.mode == "fisher" and not row.union and row.mask_fraction is not None]
    small = [row for row in chosen if (row.mask_fraction or 1.0) <= SMALL_FRACTION]
    for column in group.columns:
        for row in small or [Row("fisher", mask_fraction=SMALL_FRACTION)]:
            control = Row("fisher_control", mask_fraction=row.mask_fraction)
            yield from all_or_gaps(
                (
                    difference(group, column, row, Row("layernorm_feedforward"), -LITTLE),
                    difference(group, column, row, control, BETTER),
                )
            )
