"""`tfmt-analyze`: the files that it writes, and what it says to wrong requests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from tfmt import analyze, figures
from tfmt.runs.records import Record

Add = Callable[..., Record]


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_command_writes_the_same_file_twice(
    add_run: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    add_run(0.5, mode="full", epochs_kept=2)
    written = []
    for name in ("a", "b"):
        output, data = tmp_path / f"{name}.{ending}", tmp_path / f"{name}.csv"
        flags = ["--figure=curves", f"--runs={tmp_path / 'runs'}", f"--output={output}", f"--data={data}"]
        assert analyze.main(flags) == 0
        assert capsys.readouterr().out == f"wrote {output}\nwrote {data}  (2 rows)\n"
        written.append(output.read_bytes())
        assert pd.read_csv(data)["epoch"].tolist() == [1, 2]
    assert written[0] == written[1]
    assert written[0].startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, ["--figure is required", "weights"]),
        ({"figure": "pie"}, ["--figure", "pie"]),
        ({"figure": "rates", "runs": "/nowhere"}, ["/nowhere"]),
        ({"figure": "rates", "task": "mrp"}, ["--task=mrp", "mrpc"]),
        ({"figure": "rates", "task": "rte"}, ["--task=rte", "no run has task=rte"]),
        ({"figure": "rates", "output": "a.gif"}, ["--output=a.gif", ".png, .pdf, .svg"]),
        ({"figure": "rates", "output": "/nowhere/a.png"}, ["--output", "there is no folder /nowhere"]),
        ({"figure": "rates", "data": "/nowhere/a.csv"}, ["--data", "there is no folder /nowhere"]),
        ({"figure": "rates", "data": "a.txt"}, ["--data=a.txt", ".csv"]),
        ({"figure": "rates", "model": "demo"}, ["--model", "rates"]),
        ({"figure": "layers"}, ["single blocks", "table3.flags"]),
        ({"figure": "outliers"}, ["--model"]),
        ({"figure": "outliers", "model": "/nowhere"}, ["/nowhere"]),
        ({"figure": "weights", "model": "demo", "task": "rte"}, ["--task", "--model"]),
        ({"figure": "fisher"}, ["--mode=fisher", "fisher.flags"]),
    ],
)  # fmt: skip
def test_wrong_requests(
    add_run: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, str], words: list[str]
) -> None:
    add_run(0.5, mode="full")
    of_runs = {} if "model" in flags else {"runs": str(tmp_path / "runs")}
    status = analyze.main([f"--{name}={value}" for name, value in (of_runs | flags).items()])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("tfmt-analyze: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_drawing_leaves_matplotlib_as_it_was(add_run: Add, tmp_path: Path) -> None:
    add_run(0.5, mode="full")
    before = dict(mpl.rcParams)
    figure, _ = figures.plot_rates(tmp_path / "runs")
    figures.save_figure(figure, tmp_path / "rates.svg")
    assert dict(mpl.rcParams) == before
    code = "import sys, tfmt.figures, tfmt.analyze; "
    code += "print([m for m in ('tensorflow', 'matplotlib.pyplot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
