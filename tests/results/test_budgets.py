"""`tfmt-report --table=budget`: methods by budgets from hand-made records, against the text that a reader sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tfmt import report
from tfmt.errors import RequestError
from tfmt.results.budgets import MEAN, build_budgets
from tfmt.results.cells import Seeds
from tfmt.results.formats import FORMATS, Block, Table, format_tables
from tfmt.results.row_names import find_row, name_row, split_names
from tfmt.results.rows import Row, find_rows
from tfmt.results.tables import TABLE_NAMES, build_tables
from tfmt.results.where import narrow
from tfmt.runs.records import Record, find_records, tabulate

Add = Callable[..., Record]
FISHER = {"mode": "custom", "select": "fisher = all:fisher(budget)"}
RANDOM = {"mode": "custom", "select": "all:random(budget)"}
CHANGE = {"mode": "custom", "select": "moved = all:change(budget)"}
FULL_RUN = {"name": "moved", "movable": 6144, "cost": {"full_run": "mrpc-full-lr5e-05-s0-0123456789"}}


def frame(folder: Path) -> tuple[pd.DataFrame, list[Record]]:
    records, broken = find_records(folder / "runs")
    return tabulate(records, broken), records


def build(folder: Path, **keywords: Any) -> Table:
    (table,) = build_budgets(*frame(folder), **keywords)
    return table


def grid(block: Block) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(block.columns[1:], row[1:], strict=True)) for row in block.rows}


def test_methods_by_budgets(add_study: Any, tmp_path: Path) -> None:
    add_study()
    table = build(tmp_path)
    titles = ["MRPC", "RTE", "Mean of 2 tasks", "Without a budget", "Learning rate chosen"]
    assert [block.title for block in table.blocks] == titles
    mrpc, _, mean, beside, rates = table.blocks
    assert mrpc.columns == ("", "6,144 (0.0056 %)", "547,412 (0.50 %)", "backward passes", "can move")
    assert grid(mrpc)["fisher"] == {
        "6,144 (0.0056 %)": "82.1 ± 0.1 ↑",
        "547,412 (0.50 %)": "82.1 ± 0.1 ↑",
        "backward passes": "1,024",
        "can move": "1 to 97.6 %",  # 6,000 of 547,412 and of 6,144
    }
    assert grid(mrpc)["all:random(budget)"]["6,144 (0.0056 %)"] == "72.2 ± 0.2"
    assert mrpc.bold == {(1, 1), (1, 2)}
    assert [row[0] for row in mrpc.rows] == ["all:random(budget)", "fisher"]
    assert grid(mean)["fisher"]["6,144 (0.0056 %)"] == "82.1 ± 0.1 ↑"
    assert mean.bold == {(1, 1), (1, 2)}
    assert [row[:6] for row in beside.rows] == [
        ("Full-FT", "109,482,240", "100", "90.1 ± 0.1", "90.1 ± 0.1", "90.1 ± 0.1"),
        ("Frozen", "0", "0", "50.0 ± 0.0", "50.0 ± 0.0", "50.0 ± 0.0"),
        ("value biases", "9,216", "0.0084", "75.0 ± 0.0", "75.0 ± 0.0", "75.0 ± 0.0"),
    ]
    assert ("fisher", "6,144 (0.0056 %)", "1e-1 ↑", "1e-1 ↑") in rates.rows
    assert ("all:random(budget)", "547,412 (0.50 %)", "1e-2", "1e-2") in rates.rows
    assert any(line.startswith("↓ and ↑: the rate is the lowest or highest") for line in table.caption)
    named = "Selections: fisher = all:fisher(budget); value biases = attention.value.bias."
    assert named in table.caption


def test_numbers(add_study: Any, tmp_path: Path) -> None:
    add_study()
    numbers = pd.DataFrame(build(tmp_path).numbers)
    one = numbers[(numbers["method"] == "fisher") & (numbers["column"] == "rte") & (numbers["budget"] == "6144")].iloc[
        0
    ]
    assert (one["tuned_min"], one["tuned_max"], one["edge"], one["backward_passes"]) == (6144, 6144, "↑", 1024)
    assert one["mean"] == pytest.approx(0.821)
    assert one["movable"] == pytest.approx(6000 / 6144)
    assert one["clearly_best"]
    mean = numbers[(numbers["method"] == "fisher") & (numbers["column"] == MEAN)]
    assert mean["mean"].tolist() == pytest.approx([0.821, 0.821])
    assert mean["deviation"].tolist() == pytest.approx([np.std([0, 0.001, 0.002], ddof=1)] * 2)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(add_study: Any, tmp_path: Path, form: str) -> None:
    add_study()
    text = format_tables([build(tmp_path)], form)
    told = {
        "markdown": "**82.1 ± 0.1 ↑**",
        "html": "<td><b>82.1 ± 0.1 ↑</b></td>",
        "latex": r"\textbf{82.1 $\pm$ 0.1 $\uparrow$}",
        "csv": "clearly_best",
        "json": '"clearly_best": true',
    }
    assert told[form] in text


def test_best_is_bold_only_where_its_interval_is_clear(add_run: Add, tmp_path: Path) -> None:
    ours, theirs = (0.80, 0.82, 0.81), (0.79, 0.80, 0.805)
    for seed, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        run = {"seed": seed, "tuned": 6144, "budget": "6144"}
        add_run(one, **run | FISHER)
        add_run(other, **run | RANDOM)
    difference = np.subtract(ours, theirs)
    low, _ = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    assert low < 0
    assert build(tmp_path).blocks[0].bold == set()


def test_a_run_that_collapsed_is_never_the_best(add_run: Add, tmp_path: Path) -> None:
    for seed in range(3):
        run = {"seed": seed, "tuned": 6144, "budget": "6144"}
        add_run(0.8 + 0.001 * seed, collapsed=seed == 0, **run | FISHER)
        add_run(0.6 + 0.002 * seed, **run | RANDOM)
    table = build(tmp_path)
    assert table.blocks[0].bold == set()
    assert "†" in grid(table.blocks[0])["fisher"]["6,144 (0.0056 %)"]


def test_budgets_are_counts_however_they_are_written(add_run: Add, tmp_path: Path) -> None:
    """Percent of one task's encoder is another count on a token task, whose model has no pooler."""
    add_run(0.8, tuned=6144, budget="6144", **FISHER)
    add_run(0.7, tuned=6144, budget="0.0056118%", **RANDOM)
    add_run(0.6, tuned=6111, budget="0.0056118%", task="conll2003_ner", **RANDOM)
    add_run(0.6, tuned=6111, budget="6111", task="conll2003_ner", **FISHER)
    table = build(tmp_path)
    by_title = {block.title: block for block in table.blocks}
    assert by_title["MRPC"].columns[1:] == ("6,144 (0.0056 %)",)
    assert by_title["CoNLL-2003 entities"].columns[1:] == ("6,111 (0.0056 %)",)
    assert by_title["Mean of 2 tasks"].columns[1:] == ("6,111 to 6,144 (0.0056 %)",)
    assert grid(by_title["Mean of 2 tasks"])["fisher"] == {"6,111 to 6,144 (0.0056 %)": "70.0"}


def test_the_cost_of_a_full_run(add_run: Add, tmp_path: Path) -> None:
    add_run(0.8, tuned=6144, budget="6144", selection=FULL_RUN, **CHANGE)
    table = build(tmp_path)
    assert grid(table.blocks[0])["moved"] == {"6,144 (0.0056 %)": "80.0", "backward passes": "a full run"}
    assert table.numbers[0]["full_run"] is True


def test_seeds_that_choose_are_not_reported(add_run: Add, tmp_path: Path) -> None:
    for seed, scores in enumerate(((0.9, 0.1), (0.5, 0.6), (0.5, 0.6))):
        for rate, score in zip((1e-3, 1e-2), scores, strict=True):
            add_run(score, seed=seed, learning_rate=rate, tuned=6144, budget="6144", **FISHER)
    table = build(tmp_path, roles=Seeds((0,), (1, 2)))
    assert table.blocks[0].rows == (("fisher", "50.0 ± 0.0 ↓"),)
    assert "over seeds 1, 2, at the learning rate with the best mean over seeds 0" in table.caption[0]


def test_both_protocols(add_run: Add, tmp_path: Path) -> None:
    for select, score in ((FISHER, 0.8), (RANDOM, 0.7)):
        for seed in range(2):
            add_run(score, seed=seed, halves=[(score + 0.02, score - 0.02)], tuned=6144, budget="6144", **select)
    table = build(tmp_path)
    assert [block.title for block in table.blocks] == [
        "MRPC", "MRPC, cross-fitted", "Learning rate chosen", "Learning rate chosen, cross-fitted",
    ]  # fmt: skip
    assert {each["protocol"] for each in table.numbers} == {"paper", "crossfit"}
    assert build(tmp_path, protocol="crossfit").blocks[0].title == "MRPC, cross-fitted"


def test_without_budgets_there_is_the_command_that_makes_some(add_run: Add, tmp_path: Path) -> None:
    add_run(0.8)
    assert "tfmt-sweep --flagfile=budget.flags" in build(tmp_path).caption[0]


def test_the_command(add_study: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_study()
    runs = f"--runs={tmp_path / 'runs'}"
    assert report.main([runs, "--table=budget", "--choose_on=0"]) == 0
    assert "**82.2 ± 0.1 ↑**" in capsys.readouterr().out
    assert report.main([runs, "--compare=fisher:budget=6144,all:random(budget):budget=6144", "--format=json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert table["title"] == "fisher b=6144 against all:random(budget) b=6144"
    for name in TABLE_NAMES:
        assert report.main([runs, f"--table={name}"]) == 0
    assert report.main([runs, "--claims"]) == 0
    assert report.main([runs, f"--html={tmp_path / 'study.html'}"]) == 0
    page = (tmp_path / "study.html").read_text()
    assert "<b>82.1 ± 0.1 ↑</b>" in page


# ---- rows of selections ---------------------------------------------------------------------------------------------


def test_rows_of_selections(add_run: Add, tmp_path: Path) -> None:
    for select in ("upper half=attention@6-last", "layernorm@0 +  layernorm@1", 'run("/home/me/runs/a-b") + pooler'):
        add_run(0.5, mode="custom", select=select)
    runs, _ = frame(tmp_path)
    titles = {row.title for row in find_rows(runs)}
    assert titles == {"upper half", "layernorm@0 + layernorm@1", 'run("a-b") + pooler'}
    (listed,) = build_tables(runs, "runs")
    assert "custom: upper half" in {row[listed.blocks[0].columns.index("mode")] for row in listed.blocks[0].rows}
    assert "/home" not in format_tables([listed], "json")


@pytest.mark.parametrize(
    ("selects", "titles"),
    [
        # A run without the name of its expression is of the same row.
        (("heads = attention@0", "attention@0"), {"heads"}),
        # A name of two expressions, two names of one, and a mode's title name nothing.
        (("heads = attention@0", "heads = attention@1"), {"attention@0", "attention@1"}),
        (("one = attention@0", "two = attention@0"), {"attention@0"}),
        (("BitFit = attention@0",), {"attention@0"}),
    ],
)
def test_what_names_a_selection(add_run: Add, tmp_path: Path, selects: tuple[str, ...], titles: set[str]) -> None:
    for seed, select in enumerate(selects):
        add_run(0.5, mode="custom", select=select, seed=seed)
    assert {row.title for row in find_rows(frame(tmp_path)[0])} == titles


def test_runs_of_one_name_in_two_folders_are_two_rows(add_run: Add, tmp_path: Path) -> None:
    places = ("/home/one/r", "/home/two/r", "/home/two/other")
    for place in places:
        for seed in (0, 1):
            add_run(0.5, mode="custom", select=f'run("{place}") + pooler', seed=seed)
        add_run(0.5, mode="custom", select=f'mask("{place}.safetensors") & pooler')
    runs, _ = frame(tmp_path)
    rows = find_rows(runs)
    assert len(set(rows)) == 6
    mine = sorted({row.title for row in rows if "run" in row.title})
    assert mine == ['run("one/r") + pooler', 'run("other") + pooler', 'run("two/r") + pooler']
    assert find_row(f"custom:select={mine[2]}", rows).title == mine[2]
    assert len(narrow(runs, "select='run(\"/home/two/r\") + pooler'")) == 2
    assert len(narrow(runs, "select='run(\"r\") + pooler'")) == 4


ROWS = [
    Row("layernorm"),
    Row("fisher", mask_fraction=0.1),
    Row("custom", select="fisher = all:fisher(budget)", budget="0.5%"),
    Row("custom", select="fisher = all:fisher(budget)", budget="6144"),
    Row("custom", select="my heads = attention[head=0,2]"),
    Row("custom", select="a, b = attention@0"),
    Row("custom", select="all:random(budget, per=tensor)", budget="5%"),
    Row("custom", select="layernorm = layernorm@0"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_every_row_has_a_name_that_finds_it(row: Row) -> None:
    assert find_row(name_row(row), ROWS) == row
    assert split_names(f"{name_row(row)},random") == (name_row(row), "random")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("fisher:budget=0.5%", ROWS[2]),
        ("fisher:budget=6144", ROWS[3]),
        ("my heads", ROWS[4]),
        ("custom:select=a, b", ROWS[5]),
        ("all:random( budget,per=tensor )", ROWS[6]),
        ("layernorm", ROWS[0]),
        ("custom:select=layernorm", ROWS[7]),
    ],
)
def test_what_a_name_means(name: str, row: Row) -> None:
    assert find_row(name, ROWS) == row


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("heads", "'heads' is no mode and no selection there is (a, b, all:random(budget, per=tensor), fisher, "),
        (
            "fisher:budget=7",
            "no run of 'fisher:budget=7'; there is fisher:mask_fraction=0.1, custom:select=fisher:budget=",
        ),
    ],
)
def test_names_of_none(name: str, told: str) -> None:
    with pytest.raises(RequestError) as refused:
        find_row(name, ROWS)
    assert told in str(refused.value)


def test_where_takes_names_and_expressions(add_run: Add, add_study: Any, tmp_path: Path) -> None:
    add_study(tasks=("mrpc",))
    add_run(0.5, mode="custom", select="all:random(10, per=tensor)")
    runs, _ = frame(tmp_path)
    assert set(narrow(runs, "select=fisher")["select"]) == {FISHER["select"]}
    assert len(narrow(runs, "select='value biases,fisher' budget=none,6144")) == 3 + 9
    assert len(narrow(runs, "select='all:random(10,per=tensor)'")) == 1
    assert set(narrow(runs, "budget=547412")["budget"]) == {"547412"}
    with pytest.raises(RequestError, match="no run has select=lora; there is"):
        narrow(runs, "select=lora")
