"""The papers' tables from hand-made records, against the text that a reader sees."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tfmt import protocol
from tfmt.claims.claims import evaluate_claims, tabulate_claims
from tfmt.errors import RequestError
from tfmt.results.formats import FORMATS, Table, format_tables
from tfmt.results.groups import tell_left_out
from tfmt.results.tables import TABLE_NAMES, build_tables, format_percent, format_rate
from tfmt.results.where import narrow
from tfmt.runs.records import RECORD_FILE, read_runs
from tfmt.runs.sealed import seal_json
from tfmt.spec import ARITHMETIC

AddRun = Callable[..., Any]
Runs = Callable[[], pd.DataFrame]


def only(tables: tuple[Table, ...]) -> Table:
    assert len(tables) == 1
    return tables[0]


def cells(table: Table, block: int = 0) -> dict[str, dict[str, str]]:
    """Row title to column title to text."""
    grid = table.blocks[block]
    return {row[0]: dict(zip(grid.columns[1:], row[1:], strict=True)) for row in grid.rows}


def test_table_1_in_markdown(add_run: AddRun, add_seeds: AddRun, runs: Runs) -> None:
    add_seeds([0.80, 0.81, 0.82], mode="full", learning_rate=5e-5)
    add_seeds([0.90, 0.92, 0.70], mode="full", learning_rate=1e-5)
    add_seeds([0.70, 0.71, 0.72], mode="full", task="rte", learning_rate=5e-5)
    add_seeds([0.500, 0.502], mode="frozen", learning_rate=1e-3)
    add_run(0.4, mode="random", task="rte", learning_rate=1e-2, collapsed=True)
    text = format_tables(build_tables(runs(), "1"), "markdown")
    assert text == (
        "### Table 1: modules of BERT, each tuned alone\n"
        "\n"
        "|         | tuned % | MRPC               | RTE                      | average |\n"
        "|---------|---------|--------------------|--------------------------|---------|\n"
        "| Full-FT | 100     | 84.0 ± 12.2 [90.0] | 71.0 ± 1.0 [71.0]        | 77.5    |\n"
        "| Frozen  | 0       | 50.1 ± 0.1 (2/3)   | -                        | -       |\n"
        "| Random  | 0.034   | -                  | 40.0† (1/3, 1 collapsed) | -       |\n"
        "\n"
        "Learning rate chosen\n"
        "\n"
        "|         | MRPC | RTE   |\n"
        "|---------|------|-------|\n"
        "| Full-FT | 1e-5 | 5e-5  |\n"
        "| Frozen  | 1e-3 | -     |\n"
        "| Random  | -    | 1e-2† |\n"
        "\n"
        "- Percent on the development split, best epoch of each run: mean ± sample standard deviation (n - 1)"
        " [median] over seeds 0, 1, 2, at the learning rate with the best mean.\n"
        "- The rate (and the best epoch) is chosen on the split that is reported, as in the paper. A rate with a seed"
        " that diverged, failed or has an undefined score is not eligible while another is; of the eligible, those with"
        " the most seeds compete.\n"
        "- Rates were chosen among different numbers of rates, 1 to 2 a cell; --table=optimism has how many.\n"
        "- Best of different numbers of epochs: Full-FT of 5; Frozen, Random of 20. Of more epochs the best is higher"
        " by luck alone.\n"
        "- A dash: no runs, or no eligible rate. (2/3): fewer seeds than the table has. Lost and collapsed runs are"
        " counted behind the score. †: with runs that collapsed, which predict one class only, or a constant: such a"
        " number is what the split gives for learning nothing, and decides no claim.\n"
        f"- {caption_of_scores(runs)}\n"
        f"- Model bert-base-uncased (sha256 aaaaaaaa), arithmetic {ARITHMETIC}, batch_size 16,"
        " max_length 128, batching random, precision float32, epochs by P1's rule (5/20).\n"
        "- Made with tfmt 0.1.0, Python 3.11.9, tensorflow 2.21.0.\n"
        "- 12 runs: 12 scored.\n"
        "- In the paper's table and not run here: CoLA, SST-2, STS-B, QQP, MNLI, QNLI, Multi-head attention,"
        " Feed-forward, LayerNorms, Attention LayerNorms, Feed-forward LayerNorms, BitFit.\n"
    )


def caption_of_scores(runs: Runs) -> str:
    """`read_runs` may or may not carry the number of examples."""
    n = ", validation N=408" if "examples" in runs() else ""
    return f"Scores: MRPC f1{n}; RTE accuracy{n}."


def test_caption_tells_split_and_n(add_run: AddRun, runs: Runs) -> None:
    add_run(0.4)
    frame = runs()
    frame["examples"] = [{"train": 3668, "validation": 1408}]
    assert "Scores: MRPC f1, validation N=1,408." in only(build_tables(frame, "1")).caption


@pytest.mark.parametrize(
    ("outcomes", "text", "rate"),
    [
        # Rates 1e-4 and 1e-3; three seeds each: a number is a score, a word how the run ended, None no run.
        ([[0.6, 0.6, 0.6], [0.9, 0.9, "diverged"]], "60.0 ± 0.0 [60.0]", "1e-4 (1 diverged)"),
        ([[0.6, 0.6, 0.6], [0.9, 0.9, "failed"]], "60.0 ± 0.0 [60.0]", "1e-4 (1 failed)"),
        ([["failed", 0.5, 0.6], [0.9, 0.9, "diverged"]], "- (2/3, 1 diverged)", "-"),
        ([["diverged", "failed", 0.6], [None, None, None]], "- (1/3, 1 diverged, 1 failed)", "-"),
        ([["diverged"] * 3, ["diverged"] * 3], "- (0/3, 3 diverged)", "-"),
        ([[0.6, 0.6, 0.6], [0.9, None, None]], "60.0 ± 0.0 [60.0]", "1e-4"),
        ([[0.6, None, None], [0.9, "diverged", None]], "60.0 (1/3)", "1e-4 (1 diverged)"),
        ([[0.6, 0.6, 0.6], [0.9, 0.9, "undefined"]], "60.0 ± 0.0 [60.0]", "1e-4 (1 undefined)"),
        ([[None, None, None], [0.9, 0.9, "undefined"]], "- (2/3, 1 undefined)", "-"),
        ([[0.6, 0.6, 0.6], [0.6, 0.6, 0.6]], "60.0 ± 0.0 [60.0]", "1e-4"),
        ([[0.6, 0.6, 0.6], [0.9, 0.9, "leaks"]], "60.0 ± 0.0 [60.0]", "1e-4 (1 failed)"),
        ([[0.6, 0.6, 0.6], [0.7, 0.7, "collapses"]], "62.3 ± 13.3 [70.0]† (1 collapsed)", "1e-3†"),
    ],
)
def test_which_rate_a_cell_takes(
    add_run: AddRun, add_seeds: AddRun, runs: Runs, outcomes: list[list[Any]], text: str, rate: str
) -> None:
    add_seeds([0.5, 0.5, 0.5], mode="frozen")
    for learning_rate, ended in zip((1e-4, 1e-3), outcomes, strict=True):
        for seed, outcome in enumerate(ended):
            run = {"mode": "layernorm", "seed": seed, "learning_rate": learning_rate}
            if outcome in ("diverged", "failed"):
                add_run(None, status=outcome, **run)
            elif outcome == "undefined":
                add_run(None, **run)
            elif outcome == "leaks":
                add_run(0.9, frozen_changed=3, **run)
            elif outcome == "collapses":
                add_run(0.47, collapsed=True, **run)
            elif outcome is not None:
                add_run(outcome, **run)
    table = only(build_tables(runs(), "1"))
    assert cells(table)["LayerNorms"]["MRPC"] == text
    assert cells(table, 1)["LayerNorms"]["MRPC"] == rate
    leaking = [line for line in table.caption if line.startswith("Counted as failed, it changed frozen weights: mrpc-")]
    assert len(leaking) == outcomes[1].count("leaks")


def test_dispersion_and_every_seed(add_run: AddRun, add_seeds: AddRun, runs: Runs) -> None:
    add_seeds([0.50, 0.90, 0.70, 0.80], learning_rate=1e-3)
    add_run(0.2, seed=4, learning_rate=1e-3, collapsed=True)
    add_seeds([0.60, 0.61], mode="layernorm")
    add_run(None, mode="layernorm", seed=2, status="diverged")
    table = only(build_tables(runs(), "1", every_seed=True))
    # Mean 3.1 / 5, squared deviations 0.0144 + 0.0784 + 0.0064 + 0.0324 + 0.1764 over 4.
    assert cells(table)["Full-FT"]["MRPC"] == "62.0 ± 27.7 [70.0]† (1 collapsed)"
    assert "(n - 1) [median] over seeds 0, 1, 2, 3, 4" in table.caption[0]
    (seeds,) = (block for block in table.blocks if block.title == "Every seed")
    assert seeds.columns == ("", "seed", "MRPC")
    assert [row[1:] for row in seeds.rows if row[0] == "Full-FT"] == [
        ("0", "50.0"), ("1", "90.0"), ("2", "70.0"), ("3", "80.0"), ("4", "20.0†"),
    ]  # fmt: skip
    told = [row[2] for row in seeds.rows if row[0] == "LayerNorms"]
    assert told == ["60.0", "61.0", "diverged", "-", "-"]
    full, layernorms = table.numbers
    assert (full["median"], full["collapsed_seeds"], full["lost_seeds"]) == (pytest.approx(0.7), [4], {})
    assert full["deviation"] == pytest.approx((0.308 / 4) ** 0.5)
    assert (layernorms["median"], layernorms["lost_seeds"]) == (None, {2: "diverged"})
    assert not any(block.title == "Every seed" for block in only(build_tables(runs(), "1")).blocks)


def test_medians_stand_where_there_is_room(add_seeds: AddRun, runs: Runs) -> None:
    tasks = ("cola", "mrpc", "stsb", "rte", "sst2")
    for task in tasks[:4]:
        add_seeds([0.5, 0.6, 0.8], task=task)
    table = only(build_tables(runs(), "1"))
    assert cells(table)["Full-FT"]["RTE"] == "63.3 ± 15.3 [60.0]"
    add_seeds([0.5, 0.6, 0.8], task=tasks[4])
    table = only(build_tables(runs(), "1"))
    assert cells(table)["Full-FT"]["RTE"] == "63.3 ± 15.3"
    assert "[median]" not in table.caption[0]
    assert {row["median"] for row in table.numbers} == {0.6}


def test_odd_seeds_are_counted_over_the_table(add_run: AddRun, runs: Runs) -> None:
    add_run(0.5, mode="full", seed=7)
    add_run(0.6, mode="full", seed=9)
    add_run(0.5, mode="frozen", seed=0)
    assert [row["MRPC"] for row in cells(only(build_tables(runs(), "1"))).values()] == [
        "55.0 ± 7.1 (2/3)",
        "50.0 (1/3)",
    ]


def test_collapsed_cells_are_marked_wherever_they_count(add_seeds: AddRun, runs: Runs) -> None:
    add_seeds([0.802, 0.802], collapsed=True)
    add_seeds([0.7, 0.7], task="rte")
    add_seeds([0.6, 0.6], mode="layernorm")
    add_seeds([0.5, 0.5], mode="layernorm", learning_rate=1e-4, collapsed=True)
    add_seeds([0.6, 0.6], mode="layernorm", task="rte")
    table = only(build_tables(runs(), "1"))
    assert cells(table) == {
        "Full-FT": {"tuned %": "100", "MRPC": "80.2 ± 0.0† (2 collapsed)", "RTE": "70.0 ± 0.0", "average": "75.1†"},
        "LayerNorms": {"tuned %": "0.034", "MRPC": "60.0 ± 0.0", "RTE": "60.0 ± 0.0", "average": "60.0"},
    }
    assert cells(table, 1)["Full-FT"] == {"MRPC": "1e-3†", "RTE": "1e-3"}
    assert sum("†: with runs that collapsed" in line for line in table.caption) == 1
    assert r"80.2 $\pm$ 0.0\dag{} {\tiny(2 collapsed)}" in format_tables([table], "latex")
    frame = runs()
    assert "†" not in format_tables(build_tables(frame[frame["collapsed"] != True], "1"), "markdown")  # noqa: E712


@pytest.mark.parametrize(("epoch", "text"), [("best", "80.0"), ("last", "60.0† (1 collapsed)")])
def test_a_collapse_is_that_of_the_epoch_that_is_shown(add_run: AddRun, runs: Runs, epoch: str, text: str) -> None:
    add_run(0.8, last=0.6, collapsed=False, collapsed_in=(False, False, True))  # best in epoch 1
    assert cells(only(build_tables(runs(), "1", epoch=epoch)))["Full-FT"]["MRPC"] == text


def test_last_epoch(add_run: AddRun, runs: Runs) -> None:
    add_run(0.9, last=0.3, learning_rate=1e-3)
    add_run(0.8, last=0.7, learning_rate=1e-4)
    table = only(build_tables(runs(), "1", epoch="last"))
    assert cells(table)["Full-FT"]["MRPC"] == "70.0"
    assert "last epoch of each run" in table.caption[0]


def test_table_2_has_token_tasks_and_no_average(add_run: AddRun, runs: Runs) -> None:
    add_run(0.9, task="conll2003_ner", model="bert-base-cased")
    add_run(0.95, task="ptb_pos", model="bert-base-cased")
    add_run(0.5, task="mrpc", model="bert-base-cased")
    table = only(build_tables(runs(), "2"))
    assert table.blocks[0].columns == ("", "tuned %", "PTB tags", "CoNLL-2003 entities")
    assert cells(table)["Full-FT"] == {"tuned %": "100", "PTB tags": "95.0", "CoNLL-2003 entities": "90.0"}


def test_table_3_has_blocks_in_order_below_what_they_are_compared_with(add_run: AddRun, runs: Runs) -> None:
    for block in (10, 2, 0):
        add_run(0.5 + block / 100, mode="layernorm", layers=str(block), task="cola")
    add_run(0.7, mode="layernorm", task="cola")
    add_run(0.2, mode="frozen", task="cola")
    add_run(0.2, mode="frozen", task="sst2")
    add_run(0.2, mode="layernorm", layers="0-3", task="cola")
    table = only(build_tables(runs(), "3"))
    assert table.blocks[0].columns == ("", "tuned %", "CoLA")
    assert {title: row["CoLA"] for title, row in cells(table).items()} == {
        "Frozen": "20.0",
        "LayerNorms": "70.0",
        "LayerNorms block 0": "50.0",
        "LayerNorms block 2": "52.0",
        "LayerNorms block 10": "60.0",
    }
    assert list(cells(table)) == [
        "Frozen",
        "LayerNorms",
        "LayerNorms block 0",
        "LayerNorms block 2",
        "LayerNorms block 10",
    ]


def test_table_4_sets_outliers_beside_random_weights(add_run: AddRun, runs: Runs) -> None:
    for mode in ("outliers", "outliers_control"):
        for size in (16, 4):
            add_run(0.5, mode=mode, mask_size=size)
    add_run(0.6, mode="outliers", mask_size=4, outlier_pool="gamma")
    add_run(0.2, mode="frozen")
    assert list(cells(only(build_tables(runs(), "4")))) == [
        "Frozen",
        "Outliers n=4, gamma alone",
        "Outliers n=4",
        "Random LayerNorm weights n=4",
        "Outliers n=16",
        "Random LayerNorm weights n=16",
    ]


def test_fisher_table_tells_a_union_by_the_runs_it_unites(add_run: AddRun, runs: Runs, tmp_path: Path) -> None:
    for fraction in (0.1, 0.5):
        own = [
            add_run(0.5 + fraction / 10, mode="fisher", mask_fraction=fraction, task=task, learning_rate=1e-5)
            for task in ("mrpc", "stsb")
        ]
        folders = tuple(str(tmp_path / "runs" / record.run_id) for record in own)
        origin = {"tfmt": "0.1.0", "data_sha256": "r" * 64}
        add_run(0.4 + fraction / 10, mode="fisher", fisher_from=folders, task="rte", origin=origin | {"tfmt": "0.1.0"})
        add_run(0.3, mode="fisher_control", mask_fraction=fraction, task="rte", origin=origin)
    add_run(0.6, mode="layernorm_feedforward", task="rte", origin=origin)
    add_run(0.1, mode="fisher", fisher_from=("elsewhere/a", "elsewhere/b"), task="rte", origin=origin)
    table = only(build_tables(runs(), "fisher"))
    assert {title: row["RTE"] for title, row in cells(table).items()} == {
        "Feed-forward LayerNorms": "60.0",
        "Fisher f=0.1": "-",
        "Union of other tasks' Fisher masks": "10.0",
        "Union of other tasks' Fisher masks f=0.1": "41.0",
        "Random feed-forward LayerNorm weights f=0.1": "30.0",
        "Fisher f=0.5": "-",
        "Union of other tasks' Fisher masks f=0.5": "45.0",
        "Random feed-forward LayerNorm weights f=0.5": "30.0",
    }


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ({"origin": {"arithmetic": 7}}, "arithmetic 7"),
        ({"origin": {"model_sha256": "c" * 64}}, "model bert-base-uncased (sha256 cccccccc)"),
        ({"batching": "grouped"}, "batching grouped"),
        ({"precision": "bfloat16"}, "precision bfloat16"),
        ({"train_limit": 100}, "train_limit 100"),
        ({"epochs": 3}, "3 epochs"),
        ({"schedule": "constant"}, "schedule constant"),
        ({"optimizer": "sgd"}, "optimizer sgd"),
        ({"clip_norm": 1.0}, "clip_norm 1.0"),
        ({"early_stopping": 3}, "early_stopping 3"),
    ],
)
def test_what_differs_is_never_averaged(add_seeds: AddRun, runs: Runs, field: dict[str, Any], told: str) -> None:
    add_seeds([0.5, 0.5, 0.5])
    add_seeds([0.8, 0.8], **field)
    first, second = build_tables(runs(), "1")
    assert cells(first)["Full-FT"]["MRPC"] == "50.0 ± 0.0 [50.0]"
    assert cells(second)["Full-FT"]["MRPC"] == "80.0 ± 0.0"
    assert second.title == f"Table 1: modules of BERT, each tuned alone (2 of 2: {told})"


def test_versions_of_one_arithmetic_share_a_table(add_seeds: AddRun, add_run: AddRun, runs: Runs) -> None:
    add_seeds([0.5, 0.7])
    add_run(0.9, seed=2, origin={"tfmt": "0.2.0"})
    table = only(build_tables(runs(), "1"))
    assert cells(table)["Full-FT"]["MRPC"] == "70.0 ± 20.0 [70.0]"
    assert any("tfmt 0.1.0, " in line and "; or tfmt 0.2.0, " in line for line in table.caption)


def test_epochs_by_the_rule_and_by_number_may_share_runs(add_run: AddRun, runs: Runs) -> None:
    add_run(0.5, mode="full")  # 5 epochs by the rule
    add_run(0.7, mode="full", epochs=20)
    add_run(0.6, mode="layernorm")  # 20 by the rule
    by_rule, by_number = build_tables(runs(), "1")
    assert {title: row["MRPC"] for title, row in cells(by_rule).items()} == {"Full-FT": "50.0", "LayerNorms": "60.0"}
    assert {title: row["MRPC"] for title, row in cells(by_number).items()} == {"Full-FT": "70.0", "LayerNorms": "60.0"}
    assert "by P1's rule (5/20)" in by_rule.title
    assert "20 epochs" in by_number.title


def test_other_data_of_a_task_is_another_column(add_run: AddRun, runs: Runs) -> None:
    add_run(0.5)
    add_run(0.9, origin={"data_sha256": "d" * 64})
    table = only(build_tables(runs(), "1"))
    assert cells(table)["Full-FT"] == {
        "tuned %": "100",
        "MRPC (data dddddddd)": "90.0",
        "MRPC (data mrpc0000)": "50.0",
        "average": "70.0",
    }


def test_one_result_kept_in_two_ways_counts_once(add_run: AddRun, runs: Runs, tmp_path: Path) -> None:
    scores = tmp_path / "runs" / add_run(0.5, keep="scores").run_id
    scores.rename(scores.with_name("brought-together-from-another-folder"))
    add_run(0.5, keep="tuned")
    add_run(None, status="failed", keep="tuned", keep_epoch="last")
    table = only(build_tables(runs(), "1"))
    assert cells(table)["Full-FT"]["MRPC"] == "50.0"
    assert "1 run: 1 scored." in table.caption


def test_what_no_table_tells_apart_is_refused(add_run: AddRun, runs: Runs) -> None:
    for source in ("a", "b"):
        add_run(0.5, mode="fisher", fisher_from=(f"elsewhere/{source}",), origin={"git_commit": source})
    frame = runs()
    frame["run_id"] = ["first", "second"]
    with pytest.raises(
        RequestError, match=r"runs first and second belong to one cell .* differ in fisher_from: keep them"
    ):
        build_tables(frame, "fisher")


def test_numbers_behind_the_text(add_run: AddRun, add_seeds: AddRun, runs: Runs) -> None:
    add_seeds([0.5, 0.7], learning_rate=1e-3)
    add_run(None, status="diverged", learning_rate=1e-2, seed=0)
    (numbers,) = only(build_tables(runs(), "1")).numbers
    assert numbers["mean"] == pytest.approx(0.6)
    assert numbers["deviation"] == pytest.approx(0.1 * 2**0.5)
    assert {
        name: numbers[name] for name in ("mode", "task", "learning_rate", "seeds", "diverged", "runs", "epochs")
    } == {
        "mode": "full",
        "task": "mrpc",
        "learning_rate": 1e-3,
        "seeds": 2,
        "diverged": 1,
        "runs": 3,
        "epochs": 5,
    }
    assert numbers["scores"] == {0: 0.5, 1: 0.7}
    assert (numbers["batching"], numbers["tfmt"]) == ("random", "0.1.0")


def test_broken_records_are_named(add_run: AddRun, runs: Runs, tmp_path: Path) -> None:
    add_run(0.5)
    truncated = add_run(0.6, seed=1).run_id
    path = tmp_path / "runs" / truncated / RECORD_FILE
    path.write_bytes(path.read_bytes()[:200])
    other = tmp_path / "runs" / "other"
    other.mkdir()
    (other / RECORD_FILE).write_text('{"schema": 99}', encoding="utf-8")
    for name in ("1", "2", "runs"):
        caption = "\n".join(only(build_tables(runs(), name)).caption)
        assert f"Not read: {truncated}/record.json: broken record" in caption
        assert f"Not read: other/{RECORD_FILE}: schema 99, this tfmt reads schema 1" in caption


@pytest.mark.parametrize("name", ["1", "2", "3", "4", "fisher"])
def test_no_runs_say_what_makes_them(runs: Runs, name: str) -> None:
    table = only(build_tables(runs(), name))
    flagfile = "fisher.flags" if name == "fisher" else f"table{name}.flags"
    assert table.blocks == ()
    assert table.caption == (f"No runs for it here. Make them: tfmt-sweep --flagfile={flagfile}",)
    assert format_tables([table], "markdown").endswith(f"- {table.caption[0]}\n")


def test_list_of_runs(add_run: AddRun, runs: Runs) -> None:
    add_run(0.5, last=0.25, seed=0, collapsed=True)
    add_run(None, status="diverged", seed=1)
    add_run(0.5, frozen_changed=2, seed=2)
    table = only(build_tables(runs(), "runs"))
    (block,) = table.blocks
    assert block.columns == (
        "task", "mode", "layers", "rate", "seed", "score", "best", "last", "N", "status", "run", "notes",
    )  # fmt: skip
    assert [row[:5] for row in block.rows] == [("MRPC", "full", "all", "1e-3", seed) for seed in "012"]
    assert [row[5:10] + row[11:] for row in block.rows] == [
        ("f1", "50.0", "25.0", "408", "completed", "collapsed"),
        ("-", "-", "-", "-", "diverged", "the run diverged"),
        ("f1", "50.0", "50.0", "408", "completed", "2 frozen weights changed"),
    ]
    # What is the same of all is told once; what names a run stands in each row.
    assert table.caption == (
        "3 runs: 2 completed, 1 diverged.",
        "Model: bert-base-uncased (sha256 aaaaaaaa).",
        "All of them: tuned 36,864, tuned % 100, seconds 6.",
    )
    (alone,) = only(build_tables(runs().iloc[:1], "runs")).blocks
    assert len(alone.columns) == 15
    tested = runs()
    tested["score_test"] = [0.375, None, None]
    table = only(build_tables(tested, "runs"))
    (block,) = table.blocks
    place = block.columns.index("test")
    assert [row[place] for row in block.rows] == ["37.5", "-", "-"]
    assert any(line.startswith("Test: ") and "chose nothing" in line for line in table.caption)
    assert only(build_tables(runs().iloc[:0], "runs")).caption == ("0 runs.",)


def test_a_list_of_runs_names_masks_and_fits_a_terminal(add_seeds: AddRun, runs: Runs) -> None:
    for task in ("mrpc", "rte"):
        add_seeds([0.5, 0.6], mode="outliers", mask_size=16, task=task)
        add_seeds([0.5, 0.6], mode="fisher", mask_fraction=0.25, layers="0-3", task=task)
    text = format_tables(build_tables(runs(), "runs"), "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    # Without the name of the folder, which says it all again.
    assert all(len(line[: line.rindex("|", 0, -1)]) <= 100 for line in lines)
    assert {line.split("|")[2].strip() for line in lines[2:]} == {"outliers n=16", "fisher f=0.25"}


def test_runs_of_another_arithmetic_are_told_wherever_runs_are(add_seeds: AddRun, runs: Runs) -> None:
    add_seeds([0.5, 0.6])
    assert not any("another arithmetic" in line for line in only(build_tables(runs(), "1")).caption)
    add_seeds([0.5, 0.6], mode="frozen", task="rte", origin={"arithmetic": ARITHMETIC - 1})
    add_seeds([0.5], mode="frozen", task="rte", origin={"arithmetic": ARITHMETIC - 2})
    told = (
        f"Runs of another arithmetic than this tfmt's, {ARITHMETIC}: 1 of arithmetic {ARITHMETIC - 2}, 2 of arithmetic"
        f" {ARITHMETIC - 1}. Each arithmetic is judged and averaged by itself."
    )
    tables = build_tables(runs(), "1")
    assert [table.title.rpartition(": ")[2] for table in tables] == [
        f"arithmetic {ARITHMETIC})", f"arithmetic {ARITHMETIC - 1})", f"arithmetic {ARITHMETIC - 2})",
    ]  # fmt: skip
    for table in (*tables, only(build_tables(runs(), "runs")), only(build_tables(runs(), "2"))):
        assert told in table.caption


def test_wrong_requests(runs: Runs) -> None:
    with pytest.raises(RequestError, match=r"--table must be one of 1, 2, 3, 4, fisher, runs\. Received: '5'"):
        build_tables(runs(), "5")
    with pytest.raises(RequestError, match=r"--epoch must be one of best, last\. Received: 'first'"):
        build_tables(runs(), "1", epoch="first")


@pytest.mark.parametrize(
    ("percent", "text"),
    [
        (0, "0"),
        (100, "100"),
        (25.893, "25.9"),
        (1.5, "1.5"),
        (0.0336713, "0.034"),
        (0.0000877, "0.000088"),
        (0.1, "0.10"),
    ],
)
def test_percent(percent: float, text: str) -> None:
    assert format_percent(percent) == text


@pytest.mark.parametrize(("rate", "text"), [(1e-5, "1e-5"), (5e-3, "5e-3"), (2.5e-4, "2.5e-4"), (1.0, "1e0")])
def test_rate(rate: float, text: str) -> None:
    assert format_rate(rate) == text


def test_three_thousand_records_take_seconds(add_run: AddRun, runs: Runs, tmp_path: Path) -> None:
    record = add_run(0.5, epochs_kept=20)
    whole = record.to_json()
    (tmp_path / "runs" / record.run_id / RECORD_FILE).unlink()
    modes = ("full", "frozen", "attention", "feedforward", "layernorm", "bitfit", "random")
    count = 0
    for mode in modes:
        for rate in protocol.LEARNING_RATES:
            for seed in range(62):
                run_id = f"{mode}-{rate}-{seed}"
                text = whole.replace(f'"run_id": "{record.run_id}"', f'"run_id": "{run_id}"')
                text = text.replace('"mode": "full"', f'"mode": "{mode}"').replace('"seed": 0', f'"seed": {seed}')
                text = text.replace('"learning_rate": 0.001', f'"learning_rate": {rate}')
                folder = tmp_path / "runs" / run_id
                folder.mkdir()
                content = {key: value for key, value in json.loads(text).items() if key != "sha256"}
                (folder / RECORD_FILE).write_text(seal_json(content), encoding="utf-8")
                count += 1
    assert count == 3038
    started = time.process_time()
    format_tables(build_tables(runs(), "1"), "markdown")
    assert time.process_time() - started < 5


def test_neither_tensorflow_nor_transformers_is_imported() -> None:
    code = (
        "import sys, tfmt.claims.claims, tfmt.results.tables, tfmt.study.grid;"
        "slow = {'tensorflow', 'tf_keras', 'transformers', 'pandas', 'scipy'} & set(sys.modules);"
        "sys.exit(str(slow) if slow else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_models_of_one_name_stay_apart_and_no_path_is_told(add_seeds: AddRun, add_run: AddRun, tmp_path: Path) -> None:
    """In every table in every format; what a user wrote stays in records and in the commands of claims."""
    for digest, place in (("c" * 64, "/tell-tale/one/bert"), ("d" * 64, "/tell-tale/other/bert")):
        for mode in ("full", "layernorm"):
            add_seeds([0.5, 0.6], model=place, mode=mode, data_dir="/tell-tale/glue", origin={"model_sha256": digest})
    failed = add_run(None, status="failed", model="/tell-tale/bert", mode="fisher", task="rte",
                     fisher_from=("/tell-tale/runs/a",))  # fmt: skip
    told = failed.model_copy(update={"error": "/tell-tale/bert/config.json: missing"})
    (tmp_path / "runs" / failed.run_id / RECORD_FILE).write_text(told.to_json())
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / RECORD_FILE).write_text("{")
    runs = narrow(read_runs(tmp_path / "runs"), "model=/tell-tale/one/bert,/tell-tale/other/bert,/tell-tale/bert")
    for name, form in itertools.product(TABLE_NAMES, FORMATS):
        text = format_tables(build_tables(runs, name), form)
        assert "tell-tale" not in text, (name, form)
        assert str(tmp_path) not in text, (name, form)
    titles = {table.title for table in build_tables(runs, "1")}
    ends = [f"of 2: model bert (sha256 {digest}))" for digest in ("cccccccc", "dddddddd")]
    assert all(any(title.endswith(end) for title in titles) for end in ends)
    (block,) = only(build_tables(runs, "runs")).blocks
    assert {row[0] for row in block.rows} == {f"bert (sha256 {letter * 8})" for letter in "acd"}
    verdicts = evaluate_claims(runs)
    claims = tabulate_claims(verdicts, broken=runs.attrs["broken"], notes=tell_left_out(runs))
    assert any("model bert (sha256 cccccccc)" in line for line in claims.caption)
    commands = {verdict.command for verdict in verdicts}
    assert any("tell-tale" in command for command in commands)
    cells = [cell for part in claims.blocks for row in part.rows for cell in row if cell not in commands]
    assert not [text for text in (claims.title, *claims.caption, *cells) if "tell-tale" in text]
