"""What choosing gains, against arithmetic by hand."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from tfmt.results.formats import FORMATS, Table, format_tables
from tfmt.results.optimism import build_optimism

AddRun = Callable[..., Any]
Runs = Callable[[], pd.DataFrame]


def texts(table: Table) -> dict[str, dict[str, tuple[str, ...]]]:
    return {block.title.partition(" ")[0]: {row[0]: row[1:] for row in block.rows} for block in table.blocks}


def add_two_seeds(add_run: AddRun, **spec: Any) -> None:
    """At 1e-4 the papers' protocol has 0.65 and 0.65, the last epochs 0.64 and 0.62.

    Cross-fitted the first half chooses 1e-3 and the second 1e-4: (0.5 + 0.6) / 2 and (0.58 + 0.5) / 2.
    """
    for rate, seed, best, last, halves in [
        (1e-4, 0, 0.65, 0.64, [(0.60, 0.70), (0.62, 0.66)]), (1e-4, 1, 0.65, 0.62, [(0.58, 0.72), (0.50, 0.74)]),
        (1e-3, 0, 0.62, 0.62, [(0.70, 0.50), (0.64, 0.60)]), (1e-3, 1, 0.63, 0.63, [(0.66, 0.56), (0.68, 0.58)]),
    ]:  # fmt: skip
        add_run(best, last=last, learning_rate=rate, seed=seed, halves=halves, **spec)


def test_gains_of_the_papers_protocol(add_run: AddRun, runs: Runs) -> None:
    add_two_seeds(add_run)
    add_two_seeds(add_run, mode="layernorm", task="rte")
    add_run(0.5, last=0.5, mode="frozen", learning_rate=1e-4, collapsed=True)
    (table,) = build_optimism(runs())
    assert table.blocks[0].columns == ("", "MRPC", "RTE", "average")
    assert texts(table) == {
        "Best": {
            "Full-FT": ("+2.0 ± 1.4", "-", "-"),
            "Frozen": ("0.0 (1/2, 1 collapsed)", "-", "-"),
            "LayerNorms": ("-", "+2.0 ± 1.4", "-"),
        },
        "Above": {
            "Full-FT": ("+10.5 ± 0.7", "-", "-"),
            "Frozen": ("-", "-", "-"),
            "LayerNorms": ("-", "+10.5 ± 0.7", "-"),
        },
        "Tries": {"Full-FT": ("5 x 2", "-"), "Frozen": ("20 x 1", "-"), "LayerNorms": ("-", "20 x 2")},
    }
    rows = list(csv.DictReader(io.StringIO(format_tables([table], "csv"))))
    first = {name: float(rows[0][name]) for name in ("over_last", "over_last_deviation", "over_crossfit", "mean")}
    assert first == pytest.approx({"over_last": 0.02, "over_last_deviation": 0.02 / 2**0.5, "over_crossfit": 0.105,
                                   "mean": 0.65})  # fmt: skip
    assert any("Best of different numbers of epochs: Full-FT of 5; Frozen of 20." in line for line in table.caption)
    for form in FORMATS:
        assert format_tables([table], form)


def test_modes_of_other_numbers_of_epochs_are_told(add_run: AddRun, runs: Runs) -> None:
    def told() -> list[str]:
        (table,) = build_optimism(runs())
        return [line.partition(". ")[0] for line in table.caption if line.startswith("Best of different numbers")]

    add_run(0.5)
    add_run(0.5, mode="layernorm", task="rte")
    assert told() == []  # never on one task
    add_run(0.5, mode="layernorm")
    assert told() == ["Best of different numbers of epochs: Full-FT of 5; LayerNorms of 20"]
    for mode in ("frozen", "bitfit"):
        add_run(0.5, mode=mode)
        add_run(0.5, mode=mode, task="sst2")
    assert told() == ["Best of different numbers of epochs: Full-FT of 5; the others of 20"]
    add_run(0.5, task="sst2")
    add_run(0.5, mode="layernorm", task="sst2")
    assert told() == ["Best of different numbers of epochs: Full-FT of 5; the others of 10 or 20"]


def test_one_protocol_and_the_last_epoch_leave_one_gain(add_run: AddRun, runs: Runs) -> None:
    add_two_seeds(add_run)
    for asked, left in [({"protocol": "paper"}, {"Best", "Tries"}), ({"protocol": "crossfit"}, {"Above", "Tries"}),
                        ({"epoch": "last"}, {"Above", "Tries"})]:  # fmt: skip
        (table,) = build_optimism(runs(), **asked)
        assert set(texts(table)) == left
    # The last epochs have 0.64 and 0.62 at 1e-4, 0.62 and 0.63 at 1e-3, so the papers' protocol takes 1e-4.
    # Cross-fitted: (0.60 + 0.62) / 2 and (0.58 + 0.50) / 2.
    assert texts(table)["Above"]["Full-FT"] == ("+5.5 ± 3.5",)
    assert texts(table)["Tries"]["Full-FT"] == ("1 x 2",)


def test_lost_rates_and_runs_without_halves(add_run: AddRun, runs: Runs) -> None:
    assert build_optimism(runs())[0].caption == ("No runs.",)
    add_two_seeds(add_run)
    add_run(0.7, last=0.6, learning_rate=1e-4, seed=2)
    (table,) = build_optimism(runs())
    assert texts(table)["Best"]["Full-FT"] == ("+4.7 ± 4.7",)  # 1, 3 and 10 points
    assert texts(table)["Above"]["Full-FT"] == ("+10.5 ± 0.7 (2/3)",)
    assert any("Not cross-fitted: 1 run without" in line for line in table.caption)
    add_run(None, status="diverged", learning_rate=1e-4, seed=3)
    (table,) = build_optimism(runs())
    assert texts(table)["Best"]["Full-FT"] == ("0.0 ± 0.0 (2/4)",)  # 1e-3 is left
