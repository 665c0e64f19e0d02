"""Cross-fitted scores against arithmetic by hand, and against what is known of settings that are all equal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tfmt.errors import RequestError
from tfmt.protocol import LEARNING_RATES
from tfmt.results.cells import ALL_SEEDS
from tfmt.results.crossfit import cross_fit
from tfmt.results.formats import Table, format_tables
from tfmt.results.groups import Group, _make_cells, group_runs
from tfmt.results.rows import Row, annotate
from tfmt.results.tables import build_tables
from tfmt.runs.records import Record

AddRun = Callable[..., Any]
Runs = Callable[[], pd.DataFrame]

# Rate to each seed's scores on the two halves, epoch by epoch.
HALVES = {
    1e-4: [[(0.60, 0.70), (0.62, 0.66)], [(0.58, 0.72), (0.50, 0.74)]],
    1e-3: [[(0.70, 0.50), (0.64, 0.60)], [(0.66, 0.56), (0.68, 0.58)]],
}


def only(tables: tuple[Table, ...]) -> Table:
    assert len(tables) == 1
    return tables[0]


def texts(table: Table) -> dict[str, dict[str, list[str]]]:
    """Title of a block to title of a row to its texts."""
    return {block.title.partition(":")[0]: {row[0]: list(row[1:]) for row in block.rows} for block in table.blocks}


@pytest.fixture
def add_halves(add_run: AddRun) -> AddRun:
    """Writes runs with scores on halves; their scores on the whole split are the means of both."""

    def add(halves: dict[float, list[Any]], **spec: Any) -> None:
        for rate, by_seed in halves.items():
            for seed, epochs in enumerate(by_seed):
                run = spec | {"learning_rate": rate, "seed": seed}
                if epochs is None:
                    continue
                if isinstance(epochs, str):
                    add_run(None, status=epochs, **run)
                    continue
                means = [None if None in pair else statistics.fmean(pair) for pair in epochs]
                best = max((mean for mean in means if mean is not None), default=None)
                add_run(best, last=means[-1], halves=epochs, **run)

    return add


def cell_of(runs: pd.DataFrame, epoch: str = "best") -> Any:
    (group,) = group_runs(annotate(runs, epoch))
    return group.under("crossfit").cells.get((Row("full"), "mrpc"))


# The first half chooses 1e-3: 0.70 and 0.68 against 0.62 and 0.58; the second has 0.50 and 0.58 there.
# The second chooses 1e-4: 0.70 and 0.74 against 0.60 and 0.58; the first has 0.60 and 0.50 there.
def test_each_half_chooses_rate_and_epoch_and_the_other_scores(add_halves: AddRun, runs: Runs) -> None:
    add_halves(HALVES)
    cell = cell_of(runs())
    assert cell.rates == (1e-3, 1e-4)
    assert cell.scores == pytest.approx({0: (0.50 + 0.60) / 2, 1: (0.58 + 0.50) / 2})
    assert (cell.mean, cell.deviation) == pytest.approx((0.545, 0.01 / 2**0.5))
    paper = only(build_tables(runs(), "1", protocol="paper"))
    assert [block.title for block in paper.blocks] == ["", "Learning rate chosen"]
    assert not any("ross-fitted" in line for line in paper.caption)
    both = only(build_tables(runs(), "1"))
    # By the papers' protocol 1e-4 wins: 0.65 and 0.65 against 0.62 and 0.63.
    assert texts(both) == {
        "The papers' protocol": {"Full-FT": ["100", "65.0 ± 0.0"]},
        "Cross-fitted": {"Full-FT": ["100", "54.5 ± 0.7"]},
        "Learning rate chosen": {"Full-FT": ["1e-4"]},
        "Learning rate chosen, cross-fitted": {"Full-FT": ["1e-3, 1e-4"]},
    }
    alone = only(build_tables(runs(), "1", protocol="crossfit"))
    assert texts(alone) == {title: rows for title, rows in texts(both).items() if "ross-fitted" in title}
    told = "No means over examples, so computed on each half and averaged: f1. A half on which one is not"
    assert any(told in line for line in both.caption)
    assert not any("is chosen on the split that is reported" in line for line in alone.caption)


def test_the_last_epoch_is_the_last_whatever_the_halves_say(add_halves: AddRun, runs: Runs) -> None:
    add_halves(HALVES)
    cell = cell_of(runs(), "last")
    assert cell.rates == (1e-3, 1e-4)
    assert cell.scores == pytest.approx({0: (0.60 + 0.62) / 2, 1: (0.58 + 0.50) / 2})


def test_of_equal_epochs_and_rates_the_earlier_and_the_lower_win(add_halves: AddRun, runs: Runs) -> None:
    first, second = cross_fit([(0.5, 0.1), (0.7, 0.2), (0.7, 0.2)], [True, False, True], "best")
    assert (first.chooses, first.reports, first.collapsed) == (0.7, 0.2, False)
    assert (second.chooses, second.reports, second.collapsed) == (0.2, 0.7, False)
    add_halves({1e-3: [[(0.5, 0.6)]], 1e-4: [[(0.5, 0.6)]]})
    assert cell_of(runs()).rates == (1e-4, 1e-4)


@pytest.mark.parametrize(
    ("halves", "text", "rates"),
    [
        # A rate with a lost seed is not eligible while another is, in both folds.
        ({1e-4: [[(0.6, 0.6)], [(0.6, 0.8)]], 1e-3: [[(0.9, 0.9)], "diverged"]}, "65.0 ± 7.1", "1e-4 (1 diverged)"),
        ({1e-4: ["failed", [(0.6, 0.6)]], 1e-3: [[(0.9, 0.9)], "diverged"]}, "- (1/2, 1 diverged)", "-"),
        # Not defined on the half that chooses: the fold's other rate is taken; the other fold's choice is its own.
        ({1e-4: [[(0.6, 0.6)]], 1e-3: [[(None, 0.5)]]}, "60.0 (1/2)", "1e-4 (1 undefined)"),
        # Not defined on the half that scores what the other chose: no score. What it chose does not hang on that.
        ({1e-4: [[(0.6, 0.8)]], 1e-3: [[(0.9, None)]]}, "- (0/2, 1 undefined)", "-"),
        # An epoch that is not defined is not the best one.
        ({1e-4: [[(None, 0.5), (0.6, 0.8)]]}, "70.0 (1/2)", "1e-4"),
        # Rates with the most seeds compete; where each half chose one that has other seeds, those of both count.
        ({1e-4: [[(0.5, 0.8)], [(0.5, 0.9)]], 1e-3: [[(0.9, 0.9)]]}, "67.5 ± 3.5", "1e-4"),
        ({1e-4: [[(0.5, 0.9)]], 1e-3: [None, [(0.9, 0.5)]]}, "- (0/2)", "-"),
    ],
)  # fmt: skip
def test_lost_and_undefined(
    add_halves: AddRun, add_run: AddRun, runs: Runs, halves: dict[float, list[Any]], text: str, rates: str
) -> None:
    add_halves({1e-3: [[(0.1, 0.1)], [(0.1, 0.1)]]}, mode="frozen")
    add_halves(halves)
    told = texts(only(build_tables(runs(), "1", protocol="crossfit")))
    assert told["Cross-fitted"]["Full-FT"][1] == text
    assert told["Learning rate chosen, cross-fitted"]["Full-FT"] == [rates]


def test_a_collapse_is_that_of_the_epochs_that_are_scored(add_run: AddRun, runs: Runs) -> None:
    add_run(0.65, halves=[(0.6, 0.5), (0.7, 0.4)], collapsed_in=(False, True), seed=0)
    add_run(0.65, halves=[(0.6, 0.6), (0.7, 0.7), (0.1, 0.1)], collapsed_in=(True, False, True), seed=1)
    cell = cell_of(runs())
    assert cell.collapsed_seeds == {0}
    assert cell.text.endswith("† (1 collapsed)")


def test_records_without_halves_are_told_and_not_guessed(add_halves: AddRun, add_run: AddRun, runs: Runs) -> None:
    add_run(0.9, seed=0)
    (table,) = build_tables(runs(), "1")
    assert [block.title for block in table.blocks] == ["", "Learning rate chosen"]
    (table,) = build_tables(runs(), "1", protocol="crossfit")
    assert texts(table)["Cross-fitted"] == {"Full-FT": ["100", "-"]}
    assert "Not cross-fitted: 1 run without scores on halves, from before they were recorded." in table.caption
    add_run(0.8, seed=1, halves=[(0.7, 0.9)])
    add_run(None, seed=2, status="diverged")
    add_run(0.5, seed=0, mode="frozen")
    (table,) = build_tables(runs(), "1")
    told = texts(table)
    assert told["The papers' protocol"]["Full-FT"] == ["100", "- (2/3, 1 diverged)"]
    assert told["Cross-fitted"] == {"Full-FT": ["100", "- (1/3, 1 diverged)"], "Frozen": ["0", "-"]}
    assert any("Not cross-fitted: 2 runs without" in line for line in table.caption)


def test_an_epoch_without_halves_leaves_the_run_out(add_run: AddRun) -> None:
    """A run that an earlier version began and this one ended."""
    record = add_run(0.5, halves=[(0.4, 0.6), (0.5, 0.5)])
    record.result.epochs[0].halves = {}
    assert record.half_scores is None


def test_headlines_on_halves(add_run: AddRun) -> None:
    """A mean of two metrics, the first of two splits, and the metric that a task of one's own turned out to have."""

    def told(record: Record, halves: dict[str, Any]) -> Any:
        record.result.epochs[0].halves = halves
        return record.half_scores

    half = {"pearson": 0.5, "spearman": 0.6}
    stsb = {"validation": [half, half | {"pearson": None}]}
    assert told(add_run(task="stsb"), stsb) == ((pytest.approx(0.55), None),)
    other = [{"accuracy": 0.1}, {"accuracy": 0.2}]
    mnli = {"validation_mismatched": other, "validation_matched": [{"accuracy": 0.7}, {"accuracy": 0.8}]}
    assert told(add_run(task="mnli"), mnli) == ((0.7, 0.8),)
    own = {"task": "custom", "text_columns": ("words",), "label_column": "tags", "task_type": "tokens"} | {
        "data_dir": "own",
        "epochs": 1,
    }
    record = add_run(**own)
    entities = {"precision": 0.1, "recall": 0.2, "f1": 0.3, "strict_f1": 0.4}
    record.result.predicted = {"validation": {"B-x": 2, "I-x": 0, "O": 3}}
    assert told(record, {"validation": [entities, entities]}) == ((0.3, 0.3),)
    record.result.predicted = {"validation": {"noun": 2, "verb": 0, "(no prediction)": 1}}
    assert told(record, {"validation": other}) == ((0.1, 0.2),)


def test_rates_that_not_every_seed_has_tried_were_chosen_by_a_look_at_both_halves(
    add_halves: AddRun, runs: Runs
) -> None:
    add_halves(HALVES)
    assert not any("were searched" in told for told in only(build_tables(runs(), "1")).caption)
    add_halves({rate: by_seed[: 1 + (rate == 1e-4)] for rate, by_seed in HALVES.items()}, mode="layernorm")
    line = "Learning rates were searched with some of the seeds: LayerNorms on mrpc."
    leak = " A search looks at the whole split, so what it chose leaks into both halves."
    assert only(build_tables(runs(), "1")).caption.count(line + leak) == 1
    assert only(build_tables(runs(), "1", protocol="paper")).caption.count(line) == 1


def test_numbers_of_both(add_halves: AddRun, runs: Runs) -> None:
    add_halves(HALVES)
    rows = list(csv.DictReader(io.StringIO(format_tables(build_tables(runs(), "1"), "csv"))))
    assert [row["protocol"] for row in rows] == ["paper", "crossfit"]
    assert [row["learning_rate"] for row in rows] == ["0.0001", ""]
    assert [row["learning_rates"] for row in rows] == ["[0.0001]", "[0.001, 0.0001]"]
    assert [float(row["mean"]) for row in rows] == pytest.approx([0.65, 0.545])
    assert [float(row["median"]) for row in rows] == pytest.approx([0.65, 0.545])


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_both_blocks_line_up(add_halves: AddRun, runs: Runs, form: str) -> None:
    for mode in ("full", "layernorm"):
        for task in ("mrpc", "rte", "stsb"):
            add_halves(HALVES, mode=mode, task=task)
    text = format_tables(build_tables(runs(), "1"), form)
    if form == "markdown":
        for part in text.split("\n\n"):
            assert len({len(line) for line in part.splitlines() if line.startswith("|")}) <= 1
    assert text.count("54.5") == 6 + 2  # an average over the tasks in each row


def test_no_such_protocol(runs: Runs) -> None:
    with pytest.raises(RequestError, match=r"--protocol must be one of paper, crossfit\. Received: 'both'"):
        build_tables(runs(), "1", protocol="both")


TRUTH = 0.7


def draw_equal_settings(studies: int, epochs: int, examples: int, seed: int = 0) -> Group:
    """Studies of seven rates, three seeds and some epochs, none of which is any better than another.

    In each study an example is as hard for all of them (a Beta variable, of mean `TRUTH`), so that scores go together.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    seeds = 3
    hard = generator.beta(7, 3, (studies, 2, examples // 2))  # study, half, example
    shape = (len(LEARNING_RATES), seeds, epochs, studies, 2, examples // 2)
    scores = (generator.random(shape, np.float32) < hard).mean(axis=-1)
    rows = [
        {"row": Row("full", layers=str(study)), "column": "rte", "learning_rate": rate, "seed": one,
         "outcome": "scored", "score": scores[at, one, :, study].mean(axis=-1).max(), "collapsed": False,
         "folds": cross_fit(scores[at, one, :, study].tolist(), [False] * epochs, "best"),
         "tuned_percent": 100.0, "epochs": epochs}
        for at, rate in enumerate(LEARNING_RATES) for one in range(seeds) for study in range(studies)
    ]  # fmt: skip
    runs, among = pd.DataFrame(rows), tuple(range(seeds))
    return Group({}, runs, _make_cells(runs, among, ALL_SEEDS, "paper"), among)


@pytest.mark.parametrize("epochs", [1, 20])
def test_equal_settings_have_a_head_start_by_the_papers_protocol_alone(epochs: int) -> None:
    group = draw_equal_settings(studies=300, epochs=epochs, examples=100)
    excess = {}
    for protocol in ("paper", "crossfit"):
        means = np.array([cell.mean for cell in group.under(protocol).cells.values()]) - TRUTH
        assert len(means) == 300
        excess[protocol] = means.mean(), means.std(ddof=1) / 300**0.5
    mean, error = excess["crossfit"]
    assert abs(mean) < 3 * error
    assert error < 0.003
    mean, error = excess["paper"]
    assert mean > (0.03 if epochs == 1 else 0.08)
    assert mean > 10 * error
