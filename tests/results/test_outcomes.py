"""Scores by rate, and the runs that were lost: compared with what was written."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tfmt.results.outcomes import tabulate_lost, tabulate_rates
from tfmt.results.tables import build_tables
from tfmt.runs.records import Record, find_records

Add = Callable[..., Record]
Runs = Callable[[], pd.DataFrame]


def test_every_rate_has_its_score_and_the_tables_rate_a_mark(add_run: Add, runs: Runs) -> None:
    scores = {1e-4: [0.70, 0.74], 1e-3: [0.80, 0.83]}
    for rate, seeds in scores.items():
        for seed, score in enumerate(seeds):
            add_run(score, mode="layernorm", learning_rate=rate, seed=seed)
    add_run(0.9, mode="full", learning_rate=1e-3, seed=0)
    add_run(None, mode="full", learning_rate=1e-3, seed=1, status="diverged")
    add_run(0.6, mode="full", learning_rate=1e-4, seed=0)
    add_run(0.5, task="rte", mode="full", learning_rate=5e-3, collapsed=True)
    (table,) = tabulate_rates(runs())
    mrpc, rte = table.blocks
    assert (mrpc.title, mrpc.columns) == ("MRPC", ("", "1e-4", "1e-3"))
    told = {
        rate: f"{100 * statistics.fmean(seeds):.1f} ± {100 * statistics.stdev(seeds):.1f}"
        for rate, seeds in scores.items()
    }
    assert mrpc.rows == (
        ("Full-FT", "60.0 (1/2)*", "- (1/2, 1 diverged)"),
        ("LayerNorms", told[1e-4], f"{told[1e-3]}*"),
    )
    assert (rte.columns, rte.rows) == (("", "5e-3"), (("Full-FT", "50.0† (1/2, 1 collapsed)*"),))
    (first,) = build_tables(runs(), "1")
    chosen = {row["row"]: row["learning_rate"] for row in first.numbers if row["task"] == "mrpc"}
    assert {
        row["row"]: row["learning_rate"] for row in table.numbers if row["chosen"] and row["column"] == "mrpc"
    } == chosen


def test_runs_that_may_not_be_compared_have_tables_of_their_own(add_run: Add, runs: Runs) -> None:
    add_run(0.5)
    add_run(0.6, batching="fixed")
    tables = tabulate_rates(runs())
    assert [table.title for table in tables] == [
        f"Score by learning rate ({part} of 2: batching {name})" for part, name in ((1, "fixed"), (2, "random"))
    ]


def test_lost_runs_are_listed_with_their_reasons(add_run: Add, runs: Runs, tmp_path: Path) -> None:
    add_run(0.9, seed=0)
    diverged = add_run(None, seed=1, status="diverged")
    failed = add_run(None, seed=2, status="failed")
    collapsed = add_run(0.5, seed=3, collapsed=True)
    leaking = add_run(0.5, seed=4, frozen_changed=2)
    undefined = add_run(None, seed=5)
    records, _ = find_records(tmp_path / "runs")
    table = tabulate_lost(runs(), records)
    (block,) = table.blocks
    why = {row[-1]: (row[0], row[-2]) for row in block.rows}
    assert why == {
        diverged.run_id: ("diverged", "the run diverged"),
        failed.run_id: ("failed", "the run failed"),
        leaking.run_id: ("failed", "2 frozen weights changed"),
        undefined.run_id: ("undefined", "-"),
        collapsed.run_id: ("collapsed", "-"),
    }
    assert table.numbers == ({"completed": 3, "diverged": 1, "failed": 2, "undefined": 1, "collapsed": 1},)


def test_a_collapsed_run_names_its_one_answer(add_run: Add, runs: Runs, tmp_path: Path) -> None:
    record = add_run(0.5, collapsed=True)
    assert record.result is not None
    result = record.result.model_copy(update={"predicted": {"validation": {"yes": 0, "no": 408}}})
    table = tabulate_lost(runs(), [record.model_copy(update={"result": result})])
    assert table.blocks[0].rows[0][-2] == "no for all 408 of validation"


def test_without_lost_runs_there_is_a_word(add_run: Add, runs: Runs, tmp_path: Path) -> None:
    record = add_run(0.5)
    table = tabulate_lost(runs(), [record])
    assert table.blocks == ()
    assert table.caption == ("Of 1 run none diverged, failed or collapsed.",)


@pytest.mark.parametrize("epoch", ["best", "last"])
def test_the_epoch_that_was_asked_for(add_run: Add, runs: Runs, epoch: str) -> None:
    add_run(0.8, last=0.6, collapsed_in=(False, True), mode="full")
    (table,) = tabulate_rates(runs(), epoch)
    assert table.blocks[0].rows[0][1] == {"best": "80.0*", "last": "60.0† (1 collapsed)*"}[epoch]
