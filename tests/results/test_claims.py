"""Every claim's rule on made-up runs where it holds, fails, is mixed, or lacks runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tfmt.claims.claims import Verdict, evaluate_claims, tabulate_claims
from tfmt.claims.comparisons import Gap, compare, student_interval
from tfmt.claims.rules import RULES
from tfmt.errors import RequestError
from tfmt.results.analyses import tabulate_change, tabulate_weights
from tfmt.results.formats import FORMATS, format_tables
from tfmt.runs.records import WeightDistributions
from tfmt.spec import ARITHMETIC
from tfmt.training.distribution import measure

Add = Callable[..., Any]
Runs = Callable[[], pd.DataFrame]
NOISE = (0.0, 0.002, -0.002)


@pytest.fixture
def add_score(add_seeds: Add) -> Callable[..., None]:
    """Writes three seeds whose mean is a score."""
    return lambda score, **spec: add_seeds([score + noise for noise in NOISE], **spec)


def verdict_on(claim: str, runs: pd.DataFrame, **inputs: pd.DataFrame) -> Verdict:
    (found,) = (verdict for verdict in evaluate_claims(runs, **inputs) if verdict.rule.name == claim)
    return found


def test_there_is_one_rule_for_each_claim() -> None:
    assert [rule.name for rule in RULES] == [f"C{i}" for i in range(1, 12)] + [f"F{i}" for i in range(1, 6)]
    for rule in RULES:
        assert 0 < rule.fails_below < rule.holds_from <= 1
        assert rule.make.startswith("tfmt-sweep --flagfile=")
        assert bool(rule.modes) == (rule.needs in ("group", "change"))


def test_nothing_is_decided_without_runs(runs: Runs) -> None:
    verdicts = evaluate_claims(runs())
    assert [verdict.rule for verdict in verdicts] == list(RULES)
    for verdict in verdicts:
        assert verdict.outcome == "not enough runs"
        assert verdict.command == verdict.rule.make
        assert verdict.gaps


# Claim; scores by row (mode, or mode and what else it needs) for each of some tasks; the outcome. Scores are the
# means of three seeds. The boundary cases lie at the rule's margin or just beyond it.
GLUE = {
    "C1": [
        ([{"full": 0.80, "attention": 0.77, "feedforward": 0.79, "layernorm": 0.81}], "holds"),
        ([{"full": 0.80, "attention": 0.769, "feedforward": 0.79, "layernorm": 0.81}], "mixed"),
        ([{"full": 0.80, "attention": 0.70, "feedforward": 0.70, "layernorm": 0.81}], "fails"),
        ([{"full": 0.80, "attention": 0.80, "layernorm": 0.80}], "not enough runs"),
    ],
    "C2": [
        ([{"full": 0.8, "layernorm": 0.79}, {"full": 0.8, "layernorm": 0.7}], "holds"),
        ([{"full": 0.8, "layernorm": 0.79}, *[{"full": 0.8, "layernorm": 0.78}] * 3], "mixed"),
        ([{"full": 0.8, "layernorm": 0.789}], "fails"),
        ([{"full": 0.8}], "not enough runs"),
        ([{"layernorm": 0.8}, {"full": 0.8}], "not enough runs"),
    ],
    "C3": [
        ([{"layernorm": 0.8, "layernorm_attention": 0.78, "layernorm_feedforward": 0.79}], "holds"),
        ([{"layernorm": 0.8, "layernorm_attention": 0.779, "layernorm_feedforward": 0.79}], "mixed"),
        ([{"layernorm": 0.8, "layernorm_attention": 0.77, "layernorm_feedforward": 0.77}], "fails"),
        ([{"layernorm": 0.8, "layernorm_attention": 0.8}], "not enough runs"),
    ],
    "C4": [
        ([{"layernorm": 0.83, "random": 0.80}], "holds"),
        ([{"layernorm": 0.83, "random": 0.80}, {"layernorm": 0.83, "random": 0.81}], "mixed"),
        ([{"layernorm": 0.83, "random": 0.801}], "fails"),
        ([{"layernorm": 0.83}], "not enough runs"),
    ],
    "F2": [
        ([{"layernorm_feedforward": 0.78, "full": 0.80, "bitfit": 0.79}], "holds"),
        ([{"layernorm_feedforward": 0.78, "full": 0.81, "bitfit": 0.79}], "mixed"),
        ([{"layernorm_feedforward": 0.78, "full": 0.81, "bitfit": 0.82}], "fails"),
        ([{"layernorm_feedforward": 0.78, "full": 0.80}], "not enough runs"),
    ],
}


@pytest.mark.parametrize(
    ("claim", "tasks", "outcome"), [(claim, *case) for claim, cases in GLUE.items() for case in cases]
)
def test_modes_compared_on_sentences(
    add_score: Add, runs: Runs, claim: str, tasks: list[dict[str, float]], outcome: str
) -> None:
    for task, scores in zip(("mrpc", "rte", "cola", "stsb"), tasks, strict=False):
        for mode, score in scores.items():
            add_score(score, task=task, mode=mode)
    verdict = verdict_on(claim, runs())
    assert verdict.outcome == outcome
    assert bool(verdict.command) == (outcome == "not enough runs")


@pytest.mark.parametrize(
    ("scores", "outcome"),
    [
        ({"full": 0.9, "attention": 0.88, "feedforward": 0.88, "layernorm": 0.88, "random": 0.8}, "holds"),
        ({"full": 0.9, "attention": 0.88, "feedforward": 0.88, "layernorm": 0.88, "random": 0.87}, "mixed"),
        ({"full": 0.9, "attention": 0.8, "feedforward": 0.8, "layernorm": 0.8, "random": 0.8}, "fails"),
        ({"full": 0.9, "attention": 0.8, "feedforward": 0.8, "layernorm": 0.8}, "not enough runs"),
    ],
)
def test_c5_looks_at_token_tasks_alone(add_score: Add, runs: Runs, scores: dict[str, float], outcome: str) -> None:
    for mode, score in scores.items():
        add_score(score, task="ptb_pos", mode=mode)
        add_score(0.5, task="mrpc", mode=mode)
    assert verdict_on("C5", runs()).outcome == outcome
    assert {each.task for each in verdict_on("C4", runs()).comparisons} <= {"MRPC"}


def add_blocks(
    add_score: Add, scores: list[float], whole: float | None = 0.8, task: str = "cola", prefix: str = "live"
) -> None:
    for block, score in enumerate(scores):
        # Below block 0 there is nothing to cache.
        more = {"frozen_prefix": prefix} if block else {}
        add_score(score, mode="layernorm", layers=str(block), task=task, tuned=100, **more)
    if whole is not None:
        add_score(whole, mode="layernorm", task=task, tuned=600)


@pytest.mark.parametrize(
    ("scores", "c6", "c7"),
    [
        ([0.50, 0.60, 0.77, 0.70, 0.60, 0.50], "holds", "holds"),
        ([0.50, 0.60, 0.76, 0.70, 0.60, 0.50], "fails", "holds"),
        ([0.50, 0.50, 0.60, 0.60, 0.90, 0.90], "holds", "mixed"),
        ([0.90, 0.90, 0.60, 0.60, 0.90, 0.90], "holds", "fails"),
        ([0.50, 0.60, 0.79, 0.70, 0.60], "not enough runs", "not enough runs"),
    ],
)
@pytest.mark.parametrize("prefix", ["live", "cached"])
def test_single_blocks(add_score: Add, runs: Runs, scores: list[float], c6: str, c7: str, prefix: str) -> None:
    add_blocks(add_score, scores, prefix=prefix)
    frame = runs()
    assert verdict_on("C6", frame).outcome == c6
    assert verdict_on("C7", frame).outcome == c7
    if len(scores) == 5:
        assert verdict_on("C7", frame).gaps == (Gap("CoLA", "LayerNorms of block 5: no score"),)
        assert " --layers=all,each " in verdict_on("C7", frame).command


def without_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs as they are where those that failed had no parameters yet."""
    return frame.assign(tuned=frame["tuned"].astype(float).where(frame["status"] != "failed"))


@pytest.mark.parametrize("lost", ["all", "0"])
def test_a_run_that_failed_early_has_no_count_of_blocks(add_score: Add, runs: Runs, lost: str) -> None:
    add_blocks(add_score, [0.5, 0.6, 0.7, 0.8, 0.7, 0.6])
    before = {claim: verdict_on(claim, runs()).outcome for claim in ("C6", "C7")}
    add_score(0.5, mode="layernorm", layers=lost, task="cola", learning_rate=5e-3, status="failed")
    frame = without_counts(runs())
    assert {claim: verdict_on(claim, frame).outcome for claim in ("C6", "C7")} == before


def test_blocks_are_counted_whatever_run_failed(add_score: Add, runs: Runs) -> None:
    add_blocks(add_score, [0.5, 0.6, 0.7])
    add_score(0.5, mode="layernorm", task="cola", learning_rate=5e-3, status="failed")
    assert verdict_on("C7", without_counts(runs())).gaps == (Gap("CoLA", "LayerNorms of blocks 3-5: no score"),)


def test_c7_needs_three_blocks_and_c6_the_whole_model(add_score: Add, runs: Runs) -> None:
    add_blocks(add_score, [0.5, 0.5], whole=None)
    assert verdict_on("C7", runs()).gaps == (Gap("CoLA", "2 blocks of at least 3"),)
    add_score(0.5, mode="layernorm", layers="2", task="cola", tuned=100)
    assert verdict_on("C7", runs()).outcome == "fails"
    assert verdict_on("C6", runs()).outcome == "not enough runs"


def test_c6_does_not_credit_a_block_with_its_luck(add_seeds: Add, add_score: Add, runs: Runs) -> None:
    # Each block is lucky with one seed: the best block of each seed is as good as the whole, none is on other seeds.
    for block in range(3):
        lucky = [0.8 if seed == block else 0.6 for seed in range(3)]
        add_seeds(lucky, mode="layernorm", layers=str(block), task="cola", tuned=200)
    add_score(0.8, mode="layernorm", task="cola", tuned=600)
    (comparison,) = verdict_on("C6", runs()).comparisons
    assert comparison.value == pytest.approx(-20)


@pytest.mark.parametrize(
    ("outliers", "frozen", "outcome"),
    [
        ({"stsb": 0.53, "rte": 0.505}, 0.5, "holds"),
        ({"stsb": 0.52, "rte": 0.505}, 0.5, "mixed"),
        ({"stsb": 0.52, "rte": 0.50, "mrpc": 0.6}, 0.5, "fails"),
        ({"stsb": 0.53}, None, "not enough runs"),
    ],
)
def test_c9(add_score: Add, runs: Runs, outliers: dict[str, float], frozen: float | None, outcome: str) -> None:
    for task, score in outliers.items():
        add_score(score, mode="outliers", mask_size=4, task=task)
        add_score(0.9, mode="outliers", mask_size=16, task=task)
        if frozen is not None:
            add_score(frozen, mode="frozen", task=task)
    verdict = verdict_on("C9", runs())
    assert verdict.outcome == outcome
    if outcome == "not enough runs":
        assert verdict.command == (
            "tfmt-sweep --model=bert-base-uncased --task=stsb --mode=frozen,outliers --mask_size=4 --learning_rate=1e-3"
            " --seed=0,1,2 --batching=random --keep=scores"
        )


@pytest.mark.parametrize(
    ("by_size", "outcome", "slope"),
    [
        ({4: 0.5, 16: 0.505, 64: 0.51, 256: 0.515}, "holds", 0.5),
        ({4: 0.5, 16: 0.6, 64: 0.5}, "fails", 0.0),
        ({4: 0.5, 256: 0.8}, "not enough runs", None),
    ],
)
def test_c10(add_score: Add, runs: Runs, by_size: dict[int, float], outcome: str, slope: float | None) -> None:
    for size, score in by_size.items():
        add_score(score, mode="outliers", mask_size=size)
    verdict = verdict_on("C10", runs())
    assert verdict.outcome == outcome
    assert [each.value for each in verdict.comparisons] == ([] if slope is None else [pytest.approx(slope)])


def test_c10_is_mixed_over_tasks(add_score: Add, runs: Runs) -> None:
    for size, score in {4: 0.5, 16: 0.6, 64: 0.7}.items():
        add_score(score, mode="outliers", mask_size=size, task="rte")
        add_score(1 - score, mode="outliers", mask_size=size, task="cola")
    assert verdict_on("C10", runs()).outcome == "mixed"


@pytest.mark.parametrize(
    ("pairs", "outcome"),
    [
        ({4: (0.505, 0.5), 16: (0.6, 0.5)}, "holds"),
        ({4: (0.504, 0.5), 16: (0.6, 0.5)}, "mixed"),
        ({4: (0.5, 0.5), 16: (0.4, 0.5)}, "fails"),
        ({4: (0.5, None)}, "not enough runs"),
    ],
)
def test_c11(add_score: Add, runs: Runs, pairs: dict[int, tuple[float, float | None]], outcome: str) -> None:
    for size, (outliers, control) in pairs.items():
        add_score(outliers, mode="outliers", mask_size=size)
        if control is not None:
            add_score(control, mode="outliers_control", mask_size=size)
    assert verdict_on("C11", runs()).outcome == outcome


def test_pools_of_outliers_are_not_mixed(add_score: Add, runs: Runs) -> None:
    add_score(0.6, mode="outliers", mask_size=4, outlier_pool="gamma")
    add_score(0.5, mode="outliers_control", mask_size=4)
    assert verdict_on("C11", runs()).outcome == "not enough runs"
    add_score(0.5, mode="outliers_control", mask_size=4, outlier_pool="gamma")
    assert verdict_on("C11", runs()).outcome == "holds"


@pytest.mark.parametrize(
    ("scores", "outcome"),
    [
        ({"layernorm_feedforward": 0.8, "fisher": 0.78, "fisher_control": 0.775}, "holds"),
        ({"layernorm_feedforward": 0.8, "fisher": 0.78, "fisher_control": 0.779}, "mixed"),
        ({"layernorm_feedforward": 0.8, "fisher": 0.77, "fisher_control": 0.78}, "fails"),
        ({"layernorm_feedforward": 0.8, "fisher": 0.78}, "not enough runs"),
    ],
)
def test_f4(add_score: Add, runs: Runs, scores: dict[str, float], outcome: str) -> None:
    for mode, score in scores.items():
        add_score(score, mode=mode, mask_fraction=0.1)
    # A large part and a union of masks do not count.
    for mode in ("fisher", "fisher_control"):
        add_score(0.1, mode=mode, mask_fraction=0.5)
    add_score(0.1, mode="fisher", fisher_from=("elsewhere/a",))
    assert verdict_on("F4", runs()).outcome == outcome


def components(feedforward_layernorm: float, other: float = 0.002) -> dict[str, dict[str, float]]:
    change = {
        "query.kernel": other,
        "query.bias": 9.0,  # a dense layer counts by its kernel
        "attention.output.LayerNorm.gamma": other / 2,
        "output.LayerNorm.gamma": feedforward_layernorm * 1.5,
        "output.LayerNorm.beta": feedforward_layernorm * 0.5,
        "classifier.kernel": 9.0,  # new in every run
    }
    return {name: {"0": value * 0.9, "1": value * 1.1} for name, value in change.items()}


@pytest.mark.parametrize(
    ("moved", "outcome"),
    [([0.004], "holds"), ([0.004, 0.001], "mixed"), ([0.001], "fails")],
)
def test_f1(add_run: Add, runs: Runs, moved: list[float], outcome: str) -> None:
    records = [
        add_run(0.8, seed=seed, task=task, change=components(change * (1 + seed / 10)))
        for task, change in zip(("mrpc", "rte"), moved, strict=False)
        for seed in range(2)
    ]
    # The rate that is not chosen says nothing.
    records += [add_run(0.2, seed=seed, learning_rate=1e-2, change=components(1.0)) for seed in range(2)]
    verdict = verdict_on("F1", runs(), change=tabulate_change(records))
    assert verdict.outcome == outcome
    ratios = {each.task: each.value for each in verdict.comparisons}
    assert ratios["MRPC"] == pytest.approx(moved[0] / 0.002 * math.sqrt(1.1))


def test_f1_needs_two_seeds_with_change(add_run: Add, runs: Runs) -> None:
    records = [add_run(0.8, seed=0, change=components(1.0)), add_run(0.8, seed=1)]
    verdict = verdict_on("F1", runs(), change=tabulate_change(records))
    assert verdict.outcome == "not enough runs"
    assert "1 of at least 2 shared seeds" in verdict.gaps[0].reason
    assert verdict_on("F1", runs()).gaps == (Gap("all", "no change numbers"),)


def weights(layernorm: float, ratio: float | None, others: float, task: str = "rte") -> pd.DataFrame:
    rows = [(task, f"{name}_layernorm", layernorm, 0.55, ratio) for name in ("attention", "feedforward")]
    rows += [(task, name, others, 0.55, None) for name in ("attention", "feedforward")]
    return pd.DataFrame(rows, columns=["task", "sublayer", "bimodality", "threshold", "magnitude_ratio"])


@pytest.mark.parametrize(
    ("frame", "outcome"),
    [
        (weights(0.7, 2.0, 0.3), "holds"),
        (weights(0.7, 1.9, 0.3), "mixed"),
        (weights(0.3, None, 0.7), "fails"),
        (weights(0.7, 2.0, 0.3).iloc[:3], "not enough runs"),
        (None, "not enough runs"),
    ],
)
def test_c8(runs: Runs, frame: pd.DataFrame | None, outcome: str) -> None:
    verdict = verdict_on("C8", runs(), **({} if frame is None else {"weights": frame}))
    assert verdict.outcome == outcome
    assert bool(verdict.command) == (outcome == "not enough runs")


def fisher(by_block: list[float], gamma: float = 0.4, other: float = 1.0, task: str = "rte") -> pd.DataFrame:
    rows: list[tuple[Any, ...]] = []
    for block, total in enumerate(by_block):
        rows.append((task, "output.LayerNorm.gamma", block, total * gamma, 10))
        rows.append((task, "output.LayerNorm.beta", block, total * (1 - gamma), 10))
        rows.append((task, "query.kernel", block, other, 100))
        rows.append((task, "query.bias", block, other, 10))
    rows.append((task, "classifier.kernel", None, 1e6, 10))
    return pd.DataFrame(rows, columns=["task", "component", "block", "total", "weights"])


@pytest.mark.parametrize(
    ("frame", "f3", "f5"),
    [
        (fisher([1, 2, 3]), "holds", "holds"),
        (fisher([1, 2, 3], gamma=0.6), "holds", "mixed"),
        (fisher([3, 2, 1], gamma=0.6), "holds", "fails"),
        (fisher([1, 2, 3], other=100.0), "fails", "holds"),
        (pd.concat([fisher([1, 2, 3]), fisher([1, 2, 3], other=100.0, task="cola")]), "mixed", "holds"),
        (fisher([1, 2]), "holds", "not enough runs"),
        (fisher([]), "not enough runs", "not enough runs"),
        (None, "not enough runs", "not enough runs"),
    ],
)
def test_f3_and_f5(runs: Runs, frame: pd.DataFrame | None, f3: str, f5: str) -> None:
    inputs = {} if frame is None else {"fisher": frame}
    assert verdict_on("F3", runs(), **inputs).outcome == f3
    assert verdict_on("F5", runs(), **inputs).outcome == f5


def test_seeds_give_analyses_an_interval(runs: Runs) -> None:
    frame = pd.concat([fisher([1, 2, 3 + seed]).assign(seed=seed) for seed in range(3)])
    (comparison,) = verdict_on("F3", runs(), fisher=frame).comparisons
    assert comparison.seeds == 3
    assert comparison.low is not None
    assert comparison.low < comparison.value


def test_wrong_numbers_are_refused(runs: Runs) -> None:
    with pytest.raises(RequestError, match="the fisher numbers have no column weights"):
        evaluate_claims(runs(), fisher=fisher([1]).drop(columns="weights"))
    with pytest.raises(RequestError, match="more than one row for one task, sublayer"):
        evaluate_claims(runs(), weights=pd.concat([weights(1, 2, 0)] * 2))


def test_a_lost_run_is_no_evidence(add_run: Add, add_score: Add, runs: Runs) -> None:
    add_score(0.8, mode="full")
    add_score(0.8, mode="layernorm", learning_rate=1e-2)
    add_run(None, mode="layernorm", learning_rate=1e-2, seed=3, status="diverged")
    verdict = verdict_on("C2", runs())
    assert verdict.outcome == "not enough runs"
    assert verdict.gaps == (Gap("MRPC", "LayerNorms - Full-FT: 0 of at least 2 shared seeds"),)
    assert "--learning_rate=1e-3,1e-2 --seed=0,1,2,3" in verdict.command


def outcomes(runs: pd.DataFrame, **inputs: pd.DataFrame) -> dict[str, str]:
    return {verdict.rule.name: verdict.outcome for verdict in evaluate_claims(runs, **inputs)}


def test_two_collapsed_models_are_not_on_par(add_seeds: Add, runs: Runs) -> None:
    for mode in ("full", "layernorm", "frozen"):
        add_seeds([0.802, 0.802], mode=mode, collapsed=True)
    add_seeds([0.802, 0.802], mode="outliers", mask_size=4)
    frame = runs()
    for claim, row in (("C2", "LayerNorms 2 of 2"), ("C9", "Frozen 2 of 2")):
        verdict = verdict_on(claim, frame)
        assert verdict.outcome == "undecided"
        (comparison,) = verdict.comparisons
        assert (comparison.value, comparison.low, comparison.high) == (0.0, 0.0, 0.0)  # it is shown
        assert (comparison.holds, comparison.clear) == (None, False)
        assert row in comparison.collapsed
    summary, numbers, missing, _ = tabulate_claims(evaluate_claims(frame)).blocks
    assert summary.columns == ("claim", "verdict", "for it", "clearly", "collapsed", "what it says")
    assert summary.rows[1] == (
        "C2", "undecided", "-", "-", "1 of 1", "LayerNorms are often on par with full fine-tuning."
    )  # fmt: skip
    assert numbers.rows[0] == (
        "C2", "MRPC", "LayerNorms - Full-FT", "0.0", "0.0 to 0.0", "seeds alone: no predictions", "-1.0", "2",
        "collapsed",
    )  # fmt: skip
    assert ("C2", "collapsed on MRPC: LayerNorms 2 of 2, Full-FT 2 of 2", "-") in missing.rows
    assert ("C9", "collapsed on MRPC: Frozen 2 of 2", "-") in missing.rows
    # Not a word of certainty on any claim.
    assert ", clearly" not in format_tables([tabulate_claims(evaluate_claims(frame))], "markdown")
    told = [row for row in tabulate_claims(evaluate_claims(frame)).numbers if row["claim"] == "C2"]
    assert [(row["holds"], row["clear"], row["value"]) for row in told] == [(None, False, 0.0)]


@pytest.mark.parametrize(
    ("collapsed", "others", "outcome"),
    [
        # C2 holds from half of the comparisons for it and fails below a quarter: what is left open may not change that.
        (1, [0.8], "holds"),
        (1, [0.8, 0.5], "undecided"),  # 1 or 2 of 3: holds from 2
        (1, [0.5], "undecided"),
        (1, [0.5, 0.5, 0.5, 0.5], "fails"),  # at most 1 of 5
        (1, [0.8, 0.8, 0.5, 0.5, 0.5, 0.5], "mixed"),  # 2 or 3 of 7
        (1, [0.8, 0.5, 0.5, 0.5], "undecided"),  # 1 or 2 of 5, the first of which fails
        (2, [0.8, 0.8], "holds"),
        (2, [0.8, 0.5], "undecided"),
        (2, [], "undecided"),
    ],
)
def test_what_collapsed_is_counted_as_open(
    add_seeds: Add, add_score: Add, runs: Runs, collapsed: int, others: list[float], outcome: str
) -> None:
    tasks = iter(("mrpc", "rte", "cola", "stsb", "sst2", "qqp", "qnli"))
    for _ in range(collapsed):
        task = next(tasks)
        add_score(0.8, mode="full", task=task)
        add_seeds([0.8, 0.8, 0.8], mode="layernorm", task=task, collapsed=True)
    for score in others:
        task = next(tasks)
        add_score(0.8, mode="full", task=task)
        add_score(score, mode="layernorm", task=task)
    verdict = verdict_on("C2", runs())
    assert verdict.outcome == outcome
    assert len(verdict.comparisons) == collapsed + len(others)


def test_one_collapsed_seed_or_block_keeps_a_comparison_from_deciding(add_run: Add, add_score: Add, runs: Runs) -> None:
    # One of three seeds, at the best rate. The rate below it, where none collapsed, is not taken in its place.
    add_score(0.8, mode="full")
    for seed, score in enumerate((0.9, 0.9, 0.81)):
        add_run(score, seed=seed, mode="layernorm", collapsed=seed == 2)
    add_score(0.80, mode="layernorm", learning_rate=1e-4)
    (comparison,) = verdict_on("C2", runs()).comparisons
    assert comparison.value == pytest.approx(7.0)
    assert comparison.collapsed == ("LayerNorms 1 of 3",)
    # A rate that is not chosen says nothing.
    add_score(0.3, mode="random", collapsed=True)
    add_score(0.4, mode="random", learning_rate=1e-4)
    add_score(0.95, mode="layernorm", learning_rate=1e-2)
    assert outcomes(runs())["C4"] == "holds"


def test_every_rule_of_scores_knows_what_collapsed(add_score: Add, runs: Runs) -> None:
    modes = ("full", "attention", "feedforward", "layernorm", "layernorm_attention", "layernorm_feedforward", "bitfit")
    for task in ("mrpc", "ptb_pos"):
        for mode in modes:
            add_score(0.8, task=task, mode=mode, collapsed=mode in ("full", "layernorm", "layernorm_feedforward"))
        for mode in ("random", "frozen"):
            add_score(0.6, task=task, mode=mode, collapsed=mode == "frozen")
    for n in (4, 16, 64):
        for mode in ("outliers", "outliers_control"):
            add_score(0.7, mode=mode, mask_size=n, collapsed=n == 16)
    for mode in ("fisher", "fisher_control"):
        add_score(0.8, mode=mode, mask_fraction=0.1)
    for block in range(6):
        add_score(0.8, mode="layernorm", layers=str(block), tuned=6144, collapsed=block == 5)
    found = {verdict.rule.name: verdict for verdict in evaluate_claims(runs())}
    undecided = {name for name, verdict in found.items() if verdict.outcome == "undecided"}
    assert undecided == {"C1", "C2", "C3", "C4", "C5", "C6", "C7", "C9", "C10", "F2", "F4"}
    # Two of three sizes speak against it, so that the collapsed one cannot change the verdict.
    assert found["C11"].outcome == "fails"
    # The middle third is collapsed nowhere, the first neither, the last in one of its blocks.
    assert [bool(each.collapsed) for each in found["C7"].comparisons] == [False, True]
    assert found["C7"].outcome == "undecided"
    assert [bool(each.collapsed) for each in found["F4"].comparisons] == [True, False]
    assert found["C6"].comparisons[0].collapsed == ("LayerNorms 3 of 3", "LayerNorms block 5 3 of 3")


def test_weights_of_a_collapsed_model_decide_nothing(add_run: Add, runs: Runs) -> None:
    records = [add_run(0.8, seed=seed, change=components(0.004), collapsed=seed == 0) for seed in range(2)]
    verdict = verdict_on("F1", runs(), change=tabulate_change(records))
    assert verdict.outcome == "undecided"
    assert verdict.comparisons[0].collapsed == ("Full-FT 1 of 2",)
    told = pd.concat(
        [weights(0.7, 2.0, 0.3).assign(seed=0, collapsed=False), weights(0.7, 2.0, 0.3).assign(seed=1, collapsed=True)]
    )
    assert outcomes(runs(), weights=told)["C8"] == "undecided"
    assert outcomes(runs(), weights=told.assign(collapsed=False))["C8"] == "holds"


def test_differences_are_paired_over_shared_seeds(add_run: Add, runs: Runs) -> None:
    for seed, full in ((0, 0.5), (1, 0.7), (2, 0.9)):
        add_run(full, seed=seed, mode="full")
    for seed, layernorm in ((1, 0.71), (2, 0.93), (3, 0.1)):
        add_run(layernorm, seed=seed, mode="layernorm")
    (comparison,) = verdict_on("C2", runs()).comparisons
    assert comparison.seeds == 2
    assert comparison.value == pytest.approx(2.0)
    low, high = stats.t.interval(0.95, 1, loc=2.0, scale=math.sqrt(2.0) / math.sqrt(2.0))
    assert (comparison.low, comparison.high) == (pytest.approx(low), pytest.approx(high))


def test_runs_that_may_not_be_compared_are_judged_apart(add_score: Add, runs: Runs) -> None:
    for mode, score in (("full", 0.8), ("layernorm", 0.8)):
        add_score(score, mode=mode)
        add_score(score - 0.3 * (mode == "layernorm"), mode=mode, batching="grouped")
    add_score(0.5, mode="layernorm", precision="bfloat16")
    found = {verdict.runs: verdict.outcome for verdict in evaluate_claims(runs()) if verdict.rule.name == "C2"}
    assert found == {"batching random": "holds", "batching grouped": "fails"}


def test_numbers_of_another_arithmetic_are_judged_apart(runs: Runs) -> None:
    new = fisher([1, 2, 3])
    old = fisher([1, 2, 3], other=100.0, task="rte (arithmetic 4)")
    both = pd.concat([new.assign(told="arithmetic 5"), old.assign(told="arithmetic 4")])
    found = {each.runs: each.outcome for each in evaluate_claims(runs(), fisher=both) if each.rule.name == "F3"}
    assert found == {"arithmetic 5": "holds", "arithmetic 4": "fails"}
    # One's own numbers need no such column.
    assert verdict_on("F3", runs(), fisher=pd.concat([new, old])).outcome == "mixed"


def test_analyses_tell_runs_apart_that_may_not_be_compared(add_run: Add, runs: Runs) -> None:
    distributions = {}
    part = measure([np.linspace(-1.0, 1.0, 100, dtype=np.float32)])
    for arithmetic in (ARITHMETIC, ARITHMETIC - 1):
        run_id = add_run(0.8, origin={"arithmetic": arithmetic}).run_id
        distributions[run_id] = WeightDistributions(
            schema_=1, run_id=run_id, before={}, after={"attention": {"kernel": part}}
        )
    told = tabulate_weights(runs(), distributions)[["task", "told"]].values.tolist()
    assert sorted(told) == sorted(
        [f"mrpc (arithmetic {number})", f"arithmetic {number}"] for number in (ARITHMETIC, ARITHMETIC - 1)
    )


def test_clear_and_unclear() -> None:
    clear = compare("mrpc", "a - b", {0: 1.0, 1: 1.1, 2: 0.9}, 0.5)
    unclear = compare("mrpc", "a - b", {0: 4.0, 1: -1.0}, 0.5)
    against = compare("mrpc", "a - b", {0: -1.0, 1: -1.1, 2: -0.9}, 0.5)
    assert [(each.holds, each.clear) for each in (clear, unclear, against) if not isinstance(each, Gap)] == [
        (True, True),
        (True, False),
        (False, True),
    ]
    assert isinstance(compare("mrpc", "a - b", {0: 1.0}, 0.5), Gap)
    assert student_interval([1.0, 1.0]) == (1.0, 1.0)


def test_printed(add_score: Add, runs: Runs) -> None:
    add_score(0.8, mode="full", task="rte")
    add_score(0.795, mode="layernorm", task="rte")
    add_score(0.6, mode="random", task="rte")
    add_score(0.6, mode="random", task="cola")
    table = tabulate_claims(evaluate_claims(runs()), broken=["runs/x/record.json: broken record"])
    verdicts, numbers, missing, rules = table.blocks
    assert verdicts.columns == ("claim", "verdict", "for it", "clearly", "what it says")
    assert verdicts.rows[:2] == (
        ("C1", "not enough runs", "-", "-", "Every module alone comes close to full fine-tuning."),
        ("C2", "holds", "1 of 1", "1 of 1", "LayerNorms are often on par with full fine-tuning."),
    )
    assert numbers.rows == (
        ("C2", "RTE", "LayerNorms - Full-FT", "-0.5", "-0.5 to -0.5", "seeds alone: no predictions", "-1.0", "3",
         "yes, clearly"),
        ("C4", "RTE", "LayerNorms - Random", "+19.5", "+19.5 to +19.5", "seeds alone: no predictions", "+3.0", "3",
         "yes, clearly"),
    )  # fmt: skip
    assert missing.rows[0] == (
        "C1",
        "RTE: Multi-head attention - Full-FT: 0 of at least 2 shared seeds,"
        " Feed-forward - Full-FT: 0 of at least 2 shared seeds",
        "tfmt-sweep --model=bert-base-uncased --task=rte --mode=full,attention,feedforward,layernorm"
        " --learning_rate=1e-3 --seed=0,1,2 --batching=random --keep=scores",
    )
    assert ("C4", "left out: CoLA", "-") in missing.rows
    assert len(rules.rows) == 16
    assert table.caption[-2:] == (
        f"Runs: model bert-base-uncased (sha256 aaaaaaaa), arithmetic {ARITHMETIC}, batch_size 16,"
        " max_length 128, batching random, precision float32.",
        "Not read: runs/x/record.json: broken record",
    )
    for form in FORMATS:
        assert "C11" in format_tables([table], form)


def test_numbers_of_weights_tell_the_rate_and_what_collapsed(add_run: Add, runs: Runs) -> None:
    distributions = {}
    records = []
    part = measure([np.linspace(-1.0, 1.0, 100, dtype=np.float32)])
    for seed, (rate, score, collapsed) in enumerate(((1e-3, 0.5, False), (1e-4, 0.8, False), (1e-4, 0.8, True))):
        records.append(
            add_run(score, seed=seed, learning_rate=rate, collapsed=collapsed, change={"query.kernel": {"0": 0.1}})
        )
        distributions[records[-1].run_id] = WeightDistributions(
            schema_=1, run_id=records[-1].run_id, before={}, after={"attention": {"kernel": part}}
        )
    change = tabulate_change(records).set_index("run_id")["learning_rate"].to_dict()
    assert change == {record.run_id: record.spec.learning_rate for record in records}
    measured = tabulate_weights(runs(), distributions)
    assert measured[["learning_rate", "seed", "collapsed"]].values.tolist() == [[1e-4, 1, False], [1e-4, 2, True]]


def add_halves(add_run: Add, scores: dict[str, tuple[float, float]], **spec: Any) -> None:
    """Writes for each mode a first epoch that is lucky on the first half, and a second that is lucky on the other.

    `scores`: what each half has without luck, and how much luck adds.
    """
    for mode, (score, luck) in scores.items():
        for seed, noise in enumerate(NOISE):
            halves = [(score + noise + luck, score + noise), (score + noise, score + noise + luck)]
            add_run(score + noise + luck / 2, seed=seed, mode=mode, halves=halves, **spec)


def test_each_protocol_has_its_verdict(add_run: Add, runs: Runs) -> None:
    # By the papers' protocol LayerNorms are 1 point below, cross-fitted 3: of two lucky epochs one half chooses one,
    # and the other half knows nothing of its luck.
    add_halves(add_run, {"full": (0.80, 0.0), "layernorm": (0.77, 0.04), "random": (0.70, 0.0)})
    c2, c4 = (verdict_on(claim, runs()) for claim in ("C2", "C4"))
    assert (c2.protocol, c2.outcome, [each.value for each in c2.comparisons]) == ("paper", "holds", [pytest.approx(-1)])
    assert c2.differs
    assert not c4.differs
    beside = c2.crossfit
    assert beside is not None
    assert (beside.protocol, beside.outcome) == ("crossfit", "fails")
    assert [each.value for each in beside.comparisons] == [pytest.approx(-3)]
    table = tabulate_claims(evaluate_claims(runs()))
    assert table.blocks[0].columns[:4] == ("claim", "verdict", "cross-fitted", "for it")
    told = {row[0]: row[1:4] for row in table.blocks[0].rows}
    assert told["C2"] == ("holds", "fails, 0 of 1 (differs)", "1 of 1")
    assert told["C4"] == ("holds", "holds, 1 of 1", "1 of 1")
    assert told["F3"] == ("not enough runs", "-", "-")
    titles = [block.title for block in table.blocks]
    assert titles[1:3] == ["The numbers", "The numbers, cross-fitted"]
    assert any("The protocols differ on C2 (holds; cross-fitted fails)." in line for line in table.caption)
    numbers = [(row["claim"], row["protocol"], row["verdict"]) for row in table.numbers if row.get("task")]
    assert numbers == [("C2", "paper", "holds"), ("C2", "crossfit", "fails"),
                       ("C4", "paper", "holds"), ("C4", "crossfit", "holds")]  # fmt: skip
    for form in FORMATS:
        assert format_tables([table], form)


@pytest.mark.parametrize(("protocol", "outcome"), [("paper", "holds"), ("crossfit", "fails")])
def test_one_protocol_alone(add_run: Add, runs: Runs, protocol: str, outcome: str) -> None:
    add_halves(add_run, {"full": (0.80, 0.0), "layernorm": (0.77, 0.04)})
    verdicts = evaluate_claims(runs(), protocol=protocol)
    (c2,) = (verdict for verdict in verdicts if verdict.rule.name == "C2")
    assert (c2.outcome, c2.protocol, c2.crossfit) == (outcome, protocol, None)
    table = tabulate_claims(verdicts)
    assert "cross-fitted" not in table.blocks[0].columns
    assert any("ross-fitted" in line for line in table.caption) == (protocol == "crossfit")


def test_runs_without_halves_have_the_papers_verdict_alone(add_score: Add, runs: Runs) -> None:
    for mode in ("full", "layernorm"):
        add_score(0.8, mode=mode)
    assert verdict_on("C2", runs()).crossfit is None
    c2 = next(each for each in evaluate_claims(runs(), protocol="crossfit") if each.rule.name == "C2")
    assert (c2.outcome, c2.command) == ("not enough runs", "")  # no sweep makes again what is there
    with pytest.raises(RequestError, match="--protocol must be one of paper, crossfit"):
        evaluate_claims(runs(), protocol="both")


def test_weights_have_one_verdict_whatever_the_scores(add_run: Add, runs: Runs) -> None:
    change = []
    for seed in range(3):
        record = add_run(0.8, seed=seed, halves=[(0.8, 0.8)])
        change += [(record.run_id, name, "0", value) for name, value in
                   (("output.LayerNorm.gamma", 2.0), ("attention.self.query.kernel", 1.0))]  # fmt: skip
    frame = pd.DataFrame(change, columns=["run_id", "component", "block", "change"])
    for protocol in (None, "crossfit"):
        (f1,) = (each for each in evaluate_claims(runs(), change=frame, protocol=protocol) if each.rule.name == "F1")
        assert (f1.outcome, f1.protocol, f1.crossfit) == ("holds", "", None)
