"""Intervals of claims over seeds and examples: of what each example adds to a sum of scores, made by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfmt.claims.claims import Verdict, evaluate_claims, tabulate_claims
from tfmt.claims.comparisons import Comparison, student_interval
from tfmt.results import intervals
from tfmt.results.intervals import mean_interval
from tfmt.results.predicted import Predicted
from tfmt.runs.records import find_records, tabulate

Add = Callable[..., Any]
LABELS = np.tile([1, 0, 0, 1, 1], 16)
N = len(LABELS)


@pytest.fixture
def add_right(add_predicted: Add) -> Add:
    """Writes three runs of RTE that are right for some of 80 examples; returns which, `(seeds, examples)`."""
    generator = np.random.default_rng(1)

    def add(share: float, seeds: int = 3, **spec: Any) -> np.ndarray:
        right = generator.random((seeds, N)) < share
        for seed, each in enumerate(right):
            told = np.where(each, LABELS, 1 - LABELS)
            add_predicted(float(each.mean()), LABELS, told, seed=seed, task="rte", **spec)
        return right.astype(float)

    return add


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., dict[str, Verdict]]:
    """The verdict on each claim, of what was written so far."""

    def judge_runs(read: bool = True) -> dict[str, Verdict]:
        records, _ = find_records(tmp_path / "runs")
        predicted = Predicted(tmp_path / "runs", records) if read else None
        return {verdict.rule.name: verdict for verdict in evaluate_claims(tabulate(records), predicted=predicted)}

    return judge_runs


def check(comparison: Comparison, matrix: np.ndarray) -> None:
    """The comparison is that of a matrix in points, and its interval no narrower than that of seeds alone."""
    expected = mean_interval(matrix)
    assert comparison.value == pytest.approx(matrix.mean(), abs=1e-9)
    assert (comparison.low, comparison.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (comparison.over, comparison.examples, comparison.not_predicted) == (expected.method, N, "")
    low, high = student_interval(matrix.mean(axis=1))
    assert comparison.low <= low + 1e-9
    assert comparison.high >= high - 1e-9


def test_a_difference_of_two_modes(add_right: Add, judge: Any) -> None:
    full, layernorm = add_right(0.8, mode="full"), add_right(0.78, mode="layernorm")
    (comparison,) = judge()["C2"].comparisons
    check(comparison, 100 * (layernorm - full))
    (alone,) = judge(read=False)["C2"].comparisons
    assert (alone.value, alone.holds) == (comparison.value, comparison.holds)
    assert (alone.low, alone.high) == pytest.approx(student_interval(100 * (layernorm - full).mean(axis=1)))
    assert (alone.over, alone.examples) == (intervals.SEEDS_ALONE, None)


def test_blocks(add_right: Add, judge: Any) -> None:
    blocks = [add_right(0.7, mode="layernorm", layers=str(block)) for block in range(3)]
    whole = add_right(0.75, mode="layernorm")
    verdicts = judge()
    means = [block.mean(axis=1) for block in blocks]
    best = [max(range(3), key=lambda block: np.delete(means[block], seed).mean()) for seed in range(3)]
    assert len(set(best)) > 1  # or the test would not see which seed chose what
    (comparison,) = verdicts["C6"].comparisons
    check(comparison, 100 * (np.array([blocks[block][seed] for seed, block in enumerate(best)]) - whole))
    for comparison, other in zip(verdicts["C7"].comparisons, (0, 2), strict=True):
        check(comparison, 100 * (blocks[1] - blocks[other]))


def test_a_slope(add_right: Add, judge: Any) -> None:
    sizes = (4, 16, 256)
    right = {size: add_right(0.6 + 0.02 * step, mode="outliers", mask_size=size) for step, size in enumerate(sizes)}
    (comparison,) = judge()["C10"].comparisons
    slopes = np.array([[statistics.linear_regression((1, 2, 4), [right[size][seed, i] for size in sizes]).slope
                        for i in range(N)] for seed in range(3)])  # fmt: skip
    check(comparison, 100 * slopes)
    assert comparison.unit == "points a step"


def test_both_protocols(add_predicted: Add, judge: Any) -> None:
    generator = np.random.default_rng(2)
    half_of = np.arange(N) % 4 == 0
    right = {}
    for mode in ("full", "layernorm"):
        for seed in range(3):
            told = right[mode, seed] = (generator.random(N) < 0.8).astype(float)
            add_predicted(
                told.mean(), LABELS, np.where(told == 1, LABELS, 1 - LABELS), half_of=half_of, mode=mode, seed=seed,
                halves=[(told[~half_of].mean(), told[half_of].mean())], task="rte",
            )  # fmt: skip
    matrix = 100 * np.array([right["layernorm", seed] - right["full", seed] for seed in range(3)])
    verdict = judge()["C2"]
    (comparison,) = verdict.comparisons
    check(comparison, matrix)
    # Both halves count alike: 60 and 20 examples.
    parts = (matrix[:, ~half_of], matrix[:, half_of])
    by_seed = sum(part.mean(axis=1) for part in parts) / 2
    (crossfit,) = verdict.crossfit.comparisons
    assert crossfit.value == pytest.approx(by_seed.mean(), abs=1e-9)
    assert crossfit.examples == N
    whole = np.empty_like(matrix)
    for chosen, part in ((~half_of, parts[0]), (half_of, parts[1])):
        whole[:, chosen] = by_seed[:, None] + (part - part.mean(axis=1, keepdims=True)) * N / 2 / part.shape[1]
    check(crossfit, whole)


def test_runs_without_predictions_are_told(add_right: Add, add_seeds: Add, judge: Any) -> None:
    full = add_right(0.8, mode="full")
    add_seeds([0.7, 0.71, 0.73], mode="layernorm", task="rte")
    verdicts = judge()
    (comparison,) = verdicts["C2"].comparisons
    assert comparison.over == intervals.SEEDS_ALONE
    differences = 100 * (np.array([0.7, 0.71, 0.73]) - full.mean(axis=1))
    assert (comparison.low, comparison.high) == pytest.approx(student_interval(differences))
    table = tabulate_claims(tuple(verdicts.values()))
    (line,) = (line for line in table.caption if line.startswith("Over seeds alone"))
    assert "1 comparison (rte-layernorm-" in line
    assert "kept no predictions" in line
    (numbers,) = (block for block in table.blocks if block.title == "The numbers")
    assert numbers.rows[0][numbers.columns.index("over")] == "seeds alone: no predictions"


def test_equal_runs_have_no_interval(add_predicted: Add, judge: Any) -> None:
    for mode in ("full", "layernorm"):
        for seed in (0, 1):
            add_predicted(1.0, LABELS, LABELS, mode=mode, seed=seed, task="rte")
    (comparison,) = judge()["C2"].comparisons
    assert (comparison.low, comparison.high, comparison.holds, comparison.clear) == (None, None, True, False)
    assert comparison.over == intervals.NONE_NOTHING_VARIES
