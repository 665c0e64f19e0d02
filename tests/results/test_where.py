"""Narrowing a folder of mixed runs, in Python and as commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tfmt import analyze, report
from tfmt.errors import RequestError
from tfmt.results.tables import build_tables
from tfmt.results.where import narrow

Add = Callable[..., Any]
Runs = Callable[[], pd.DataFrame]


@pytest.fixture
def mixed(add_run: Add, runs: Runs) -> pd.DataFrame:
    for task in ("mrpc", "rte", "cola"):
        for rate in (1e-3, 5e-5):
            add_run(0.8, task=task, mode="layernorm", learning_rate=rate)
            add_run(0.9, task=task, mode="full", learning_rate=rate)
    for layers in ("0-3", "0,5"):
        add_run(0.7, task="mrpc", mode="layernorm", layers=layers)
    add_run(0.7, task="mrpc", mode="outliers", mask_size=16)
    add_run(None, status="diverged", task="rte", mode="bitfit")
    return runs()


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("", 16), ("task=mrpc", 7), ("task=mrpc,rte mode=layernorm", 6), ("task=mrpc mode=layernorm layers=all", 2),
        ("learning_rate=0.001 mode=full", 3), ("learning_rate=1e-3,5e-5 mode=full  task=cola", 2), ("layers=0+5", 1),
        ("layers=0-3,0+5", 2), ("layers=0+1+2+3", 1), ("mask_size=16", 1), ("mask_size=none mode=full", 6),
        ("status=diverged", 1), ("seed=0 schedule=linear", 16), ("label_column=none", 16),
        ("model='bert-base-uncased' task=cola", 4),
    ],
)  # fmt: skip
def test_conditions_mean_what_they_say(mixed: pd.DataFrame, where: str, count: int) -> None:
    kept = narrow(mixed, where)
    assert len(kept) == count
    assert len(kept.attrs["left_out"]) == (count < 16)
    assert all(f"{16 - count} of 16 runs" in line for line in kept.attrs["left_out"])


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("mrpc", {"expected field=value"}), ("task=", {"expected field=value"}), ("lr=1e-3", {"'lr' is no field"}),
        ("task=sst2", {"no run has task=sst2; there is", "mrpc", "rte", "cola"}),
        ("mode=full learning_rate=1", {"no run has learning_rate=1; there is", "0.001", "5e-05"}),
        ("layers=9", {"all", "0-3", "0+5"}), ("mask_size=many", {"none", "16"}),
        ("label_column=x", {"there is none"}), ("model='a", {"no closing quotation"}),
    ],
)  # fmt: skip
def test_what_no_run_has_is_refused_with_what_there_is(mixed: pd.DataFrame, where: str, told: set[str]) -> None:
    with pytest.raises(RequestError) as refused:
        narrow(mixed, where)
    assert all(part in str(refused.value) for part in told), refused.value


def test_a_union_keeps_the_fraction_of_runs_that_are_left_out(add_run: Add, runs: Runs, tmp_path: Path) -> None:
    own = [add_run(0.8, task=task, mode="fisher", mask_fraction=0.2) for task in ("rte", "cola")]
    folders = tuple(str(tmp_path / "runs" / record.run_id) for record in own)
    add_run(0.7, task="mrpc", mode="fisher", fisher_from=folders)
    (whole,) = build_tables(runs(), "fisher")
    (part,) = build_tables(narrow(runs(), "task=mrpc mask_fraction=0.2"), "fisher")
    (name,) = (row[0] for row in part.blocks[0].rows)
    assert name in [row[0] for row in whole.blocks[0].rows]


def test_commands_take_conditions(mixed: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = f"--runs={tmp_path / 'runs'}"
    assert report.main([folder, "--table=runs", "--where=task=rte mode=bitfit,full"]) == 0
    out, err = capsys.readouterr()
    assert "left out by --where='task=rte mode=bitfit,full': 13 of 16 runs" in err
    assert "Left out by --where" in out
    heads, _, *rows = [line for line in out.splitlines() if line.startswith("|")]
    assert heads.replace(" ", "").startswith("|task|mode|layers|rate|seed|tuned%|")
    assert sorted(row.replace(" ", "").split("|")[1:6] for row in rows) == [
        ["RTE", "bitfit", "all", "1e-3", "0"], ["RTE", "full", "all", "1e-3", "0"], ["RTE", "full", "all", "5e-5", "0"],
    ]  # fmt: skip
    assert report.main([folder, "--claims", "--where=mode=layernorm,full"]) == 0
    assert "\n- Left out by --where=mode=layernorm,full: 2 of 16 runs.\n" in capsys.readouterr().out
    assert report.main([folder, "--claims", "--where=task=qqp"]) == 2
    assert "there is" in capsys.readouterr().err
    data = tmp_path / "rates.csv"
    command = ["--figure=rates", folder, f"--output={tmp_path / 'rates.png'}", f"--data={data}"]
    assert analyze.main([*command, "--where=mode=layernorm layers=all", "--task=mrpc,rte"]) == 0
    told = capsys.readouterr().err
    assert "left out by --task=mrpc,rte: 4 of 16 runs" in told
    assert "left out by --where='mode=layernorm layers=all': 8 of 12 runs" in told
    assert analyze.main([*command, "--task=mrpc,sst2"]) == 2
    assert "--task=mrpc,sst2: no run has task=sst2; there is " in capsys.readouterr().err
    drawn = pd.read_csv(data)
    assert set(drawn["task"]) == {"mrpc", "rte"}
    assert drawn["row"].nunique() == 1
