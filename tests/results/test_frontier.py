"""The frontier's figure: what it draws of made-up runs with known numbers, with few rows and with many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tfmt import figures
from tfmt.errors import RequestError
from tfmt.results.budgets import MEAN
from tfmt.runs.records import Record

Add = Callable[..., Record]
Check = Callable[[Figure], None]
FISHER = {"mode": "custom", "select": "fisher = all:fisher(budget)"}
RANDOM = {"mode": "custom", "select": "all:random(budget)"}


def test_lines_points_and_references(check: Check, add_study: Callable[..., None], tmp_path: Path) -> None:
    add_study()
    figure, frame = figures.plot_frontier(tmp_path / "runs")
    check(figure)
    assert [panel.get_title() for panel in figure.axes] == ["MRPC", "RTE", "Mean of 2 tasks"]
    mrpc = figure.axes[0]
    lines = [line for line in mrpc.lines if line.get_linestyle() != "None" and len(line.get_xdata()) == 2]
    curves = {tuple(line.get_xdata()): line.get_ydata() for line in lines if line.get_xdata()[0] > 1}
    assert set(curves) == {(6144.0, 547412.0)}
    across = sorted(float(line.get_ydata()[0]) for line in lines if list(line.get_xdata()) == [0, 1])
    assert across == pytest.approx([50.0, 90.1])
    points = [line for line in mrpc.lines if line.get_marker() == "*"]
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in points] == [([9216.0], [75.0])]
    hollow = [line for line in mrpc.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in hollow] == [pytest.approx([82.1, 82.1])]  # fisher's rate is the highest
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    names = ["all:random(budget)", "fisher", "Full-FT", "Frozen", "value biases", "rate at the end of its grid"]
    assert labels == names
    mean = frame[(frame["task"] == MEAN) & (frame["row"] == "fisher")]
    assert mean["tuned"].tolist() == [6144, 547412]
    assert mean["deviation"].tolist() == pytest.approx([np.std([0, 0.001, 0.002], ddof=1)] * 2)


@pytest.mark.parametrize(("methods", "tasks"), [(1, 1), (9, 1), (17, 5)])
def test_sizes(check: Check, add_run: Add, tmp_path: Path, methods: int, tasks: int) -> None:
    for task in ("cola", "mrpc", "stsb", "rte", "sst2")[:tasks]:
        for method in range(methods):
            for count in (6144, 36864, 102912, 547412, 5474112) if methods < 17 else (6144, 5474112):
                run = {"task": task, "mode": "custom", "select": f"a longer name {method} = pooler:fisher(budget)"}
                run["select"] = run["select"].replace("pooler", f"attention@{method}")
                add_run(0.02 + 0.05 * method, tuned=count, budget=str(count), **run)
        for mode, tuned in (("full", 109482240), ("frozen", 0), ("layernorm", 36864), ("bitfit", 102912)):
            add_run(0.5, mode=mode, task=task, tuned=tuned)
    figure, _ = figures.plot_frontier(tmp_path / "runs")
    check(figure)
    assert len(figure.axes) == tasks + (tasks > 1)


def test_one_budget_is_a_point(check: Check, add_run: Add, tmp_path: Path) -> None:
    add_run(0.8, tuned=6144, budget="6144", **FISHER)
    add_run(None, status="diverged", tuned=6144, budget="6144", **RANDOM)
    figure, frame = figures.plot_frontier(tmp_path / "runs")
    check(figure)
    assert frame["row"].tolist() == ["fisher"]


def test_without_budgets_there_is_nothing_to_draw(add_run: Add, tmp_path: Path) -> None:
    add_run(0.8)
    with pytest.raises(RequestError, match=r"no runs with a --budget; make some: tfmt-sweep --flagfile=budget\.flags"):
        figures.plot_frontier(tmp_path / "runs")
