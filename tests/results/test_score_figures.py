"""Figures of scores: what they draw of made-up runs with known numbers, with one row and with many."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tfmt import figures
from tfmt.figures.style import look
from tfmt.runs.records import RECORD_FILE, Record
from tfmt.runs.sealed import unseal

Add = Callable[..., Record]
Check = Callable[[Figure], None]
RATES = (1e-5, 1e-4, 1e-3)
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
MODES = ("full", "frozen", "attention", "feedforward", "layernorm", "layernorm_attention", "layernorm_feedforward",
         "bitfit", "random")  # fmt: skip


def check_percents(figure: Figure) -> None:
    """Axes of scores end at 0 and 100 % but for a small margin, and have no tick beyond; below 0 what can be."""
    panels = [panel for panel in figure.axes if panel.get_ylabel().endswith("(%)")]
    assert panels
    for panel in panels:
        signed = "correlation" in panel.get_ylabel() or "pearson" in panel.get_ylabel()
        low, high = panel.get_ylim()
        assert low >= (-103 if signed else -3)
        assert high <= 103
        ticks = [tick for tick in panel.get_yticks() if low <= tick <= high]
        assert len(ticks) >= 2
        assert max(ticks) <= 100
        assert signed or min(ticks) >= 0


def add_blocks(add: Add, task: str, blocks: list[float], **keywords: Any) -> None:
    for block, score in enumerate(blocks):
        for seed in (0, 1):
            add(score + 0.02 * seed, task=task, mode="layernorm", layers=str(block), seed=seed, **keywords)


def test_layers(check: Check, add_run: Add, tmp_path: Path) -> None:
    for task in ("mrpc", "cola"):
        add_blocks(add_run, task, [0.5, 0.7, 0.6])
    add_run(0.9, task="mrpc", mode="full")
    add_run(0.3, task="mrpc", mode="frozen")
    add_run(0.8, task="mrpc", mode="layernorm")
    figure, frame = figures.plot_layers(tmp_path / "runs")
    check(figure)
    mine = frame[(frame["task"] == "mrpc") & frame["block"].notna()]
    assert mine["block"].tolist() == [0, 1, 2]
    assert mine["mean"].tolist() == pytest.approx([0.51, 0.71, 0.61])
    assert mine["deviation"].tolist() == pytest.approx([np.std([0, 0.02], ddof=1)] * 3)
    assert dict(zip(frame["row"], frame["mean"], strict=True))["Full-FT"] == 0.9
    cola, mrpc = figure.axes
    assert (cola.get_title(), mrpc.get_title()) == ("CoLA, rate 1e-3", "MRPC, rate 1e-3")
    (points,) = (line for line in mrpc.lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_ydata(), [51, 71, 61])
    assert [line.get_ydata()[0] for line in mrpc.lines[:3]] == [90, 80, 30]
    assert mrpc.get_ylabel() == "f1 (%)"
    for panel, told in ((mrpc, {90.0, 80.0, 30.0}), (cola, set())):
        flat = {line.get_ydata()[0] for line in panel.lines if list(line.get_xdata()) == [0, 1]}
        assert flat == told
    assert frame.attrs["notes"] == [
        f"CoLA: no line of {name}, no comparable runs" for name in ("Full-FT", "LayerNorms", "Frozen")
    ]


def test_lines_of_whole_models_are_at_their_own_chosen_rates(check: Check, add_run: Add, tmp_path: Path) -> None:
    """Frozen over cached blocks is a reference, too; a whole model that lost seeds at all its rates is none."""
    for task, rate in (("mrpc", 1e-3), ("rte", 1e-4)):
        add_blocks(add_run, task, [0.5, 0.7, 0.6], learning_rate=rate)
        for seed, score in enumerate((0.30, 0.34)):
            add_run(score, task=task, mode="frozen", frozen_prefix="cached", seed=seed, learning_rate=5e-3)
            add_run(score - 0.1, task=task, mode="frozen", frozen_prefix="cached", seed=seed, learning_rate=1e-5)
            add_run(score + 0.5, task=task, mode="full", seed=seed, learning_rate=1e-5)
        add_run(0.9, task=task, mode="layernorm", seed=0)
        add_run(None, task=task, mode="layernorm", seed=1, status="diverged")
    add_run(0.99, task="rte", mode="full", batching="fixed")  # of other settings: no reference
    figure, frame = figures.plot_layers(tmp_path / "runs")
    check(figure)
    for panel in figure.axes:
        flat = sorted(line.get_ydata()[0] for line in panel.lines if list(line.get_xdata()) == [0, 1])
        assert flat == pytest.approx([100 * np.mean([0.30, 0.34]), 100 * np.mean([0.80, 0.84])])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["Full-FT, rate 1e-5", "Frozen cached prefix, rate 5e-3"]
    assert [panel.get_title() for panel in figure.axes] == ["MRPC, rate 1e-3", "RTE, rate 1e-4"]
    assert "MRPC: no line of LayerNorms, no rate without lost seeds" in frame.attrs["notes"]
    warning = "Learning rates differ between panels: what differs between them is not the task's effect alone."
    assert frame.attrs["notes"][-1] == warning
    assert figure.texts[0].get_text().replace("\n", " ") == warning


@pytest.mark.parametrize(("tasks", "blocks"), [(1, 1), (1, 24), (8, 12)])
def test_sizes_of_layers(check: Check, add_run: Add, tmp_path: Path, tasks: int, blocks: int) -> None:
    for task in TASKS[:tasks]:
        add_blocks(add_run, task, [0.01 + 0.04 * block for block in range(blocks)], collapsed=task == "cola")
        for mode, score in (("full", 0.995), ("frozen", 0.0), ("layernorm", 0.9)):
            for seed in (0, 1):
                add_run(score - seed * score / 10, task=task, mode=mode, seed=seed)
    figure, _ = figures.plot_layers(tmp_path / "runs")
    check(figure)
    assert len(figure.axes) == tasks
    check_percents(figure)
    squares = [line for line in figure.axes[0].lines if line.get_marker() == "s" and line.get_markersize() == 10]
    assert sum(len(line.get_xdata()) for line in squares) == blocks


def test_layers_leaves_a_gap_where_a_block_is_missing(check: Check, add_run: Add, tmp_path: Path) -> None:
    for block, score in ((0, 0.5), (3, 0.6)):
        add_run(score, mode="layernorm", layers=str(block))
    add_run(None, mode="layernorm", layers="2", status="diverged")
    figure, frame = figures.plot_layers(tmp_path / "runs")
    check(figure)
    (points,) = (line for line in figure.axes[0].lines if line.get_marker() == "o")
    np.testing.assert_array_equal(points.get_ydata(), [50, np.nan, np.nan, 60])
    assert frame[frame["block"] == 2]["lost"].tolist() == [1]


def test_layers_over_cached_blocks_are_a_line_of_their_own(check: Check, add_run: Add, tmp_path: Path) -> None:
    add_run(0.5, mode="layernorm", layers="0")  # nothing lies below it
    for block, score in ((1, 0.4), (2, 0.6)):
        add_run(score, mode="layernorm", layers=str(block), frozen_prefix="cached")
    figure, frame = figures.plot_layers(tmp_path / "runs")
    check(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LayerNorms of one block, cached prefix"]
    assert frame["frozen_prefix"].tolist() == ["live", "cached", "cached"]
    add_run(0.7, mode="layernorm", layers="2")
    figure, frame = figures.plot_layers(tmp_path / "runs")
    check(figure)
    lines = [
        line.get_ydata() for line in figure.axes[0].lines if len(line.get_xdata()) == 3 and line.get_marker() != "_"
    ]
    drawn_lines = [list(line) for line in lines if not np.isnan(line).all()]
    assert [50, 40, 60] in drawn_lines
    assert any(np.array_equal(line, [50, np.nan, 70], equal_nan=True) for line in drawn_lines)


def test_rates(check: Check, add_run: Add, tmp_path: Path) -> None:
    for mode, rate, seed in itertools.product(("full", "layernorm"), RATES, (0, 1)):
        add_run(0.5 + 0.1 * RATES.index(rate) + 0.02 * seed, mode=mode, learning_rate=rate, seed=seed)
    add_run(None, status="diverged", mode="full", learning_rate=1e-2, seed=0)
    add_run(0.6, mode="full", learning_rate=5e-3, seed=0)
    add_run(None, status="diverged", mode="full", learning_rate=5e-3, seed=1)
    figure, frame = figures.plot_rates(tmp_path / "runs")
    check(figure)
    full = frame[frame["mode"] == "full"].set_index("learning_rate")
    assert full["mean"].round(6).tolist() == [0.51, 0.61, 0.71, 0.6, pytest.approx(np.nan, nan_ok=True)]
    assert full["diverged"].tolist() == [0, 0, 0, 1, 1]
    assert full.index[full["chosen"]].tolist() == [1e-3]
    (panel,) = figure.axes
    marks = {
        line.get_marker(): line for line in panel.lines if line.get_linestyle() == "None" and len(line.get_xdata())
    }
    assert len(marks["x"].get_xdata()) == 1
    rings = [line for line in panel.lines if line.get_markersize() == 10]
    assert [len(line.get_xdata()) for line in rings] == [1, 1]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1e-5", "1e-4", "1e-3", "5e-3", "1e-2"]


def test_many_rows_and_tasks(check: Check, add_run: Add, tmp_path: Path) -> None:
    modes: list[dict[str, Any]] = [{"mode": mode} for mode in ("full", "frozen", "attention", "feedforward", "bitfit")]
    modes += [
        {"mode": mode, "mask_size": size} for mode in ("outliers", "outliers_control") for size in (4, 16, 64, 256)
    ]
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    for task, mode, rate in itertools.product(tasks, modes, (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)):
        add_run(0.5, task=task, learning_rate=rate, epochs_kept=3, **mode)
    for draw in (figures.plot_rates, figures.plot_curves):
        figure, frame = draw(tmp_path / "runs")
        check(figure)
        assert set(frame["task"]) == set(tasks)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len([label for label in labels if label != "rate that a table reports"]) == len(modes)
    assert len({str(look(number)) for number in range(40)}) == 40


def test_one_run(check: Check, add_run: Add, tmp_path: Path) -> None:
    add_run(0.5, mode="layernorm", layers="0", epochs_kept=2)
    for draw in (figures.plot_layers, figures.plot_curves):
        figure, frame = draw(tmp_path / "runs")
        check(figure)
        assert figure.axes[0].lines
        assert len(frame) in (1, 2)
    add_run(0.5, mode="full")
    figure, frame = figures.plot_rates(tmp_path / "runs")
    check(figure)
    assert len(frame) == 1


@pytest.mark.parametrize(("rows", "tasks"), [(1, 1), (3, 1), (9, 1), (1, 8), (9, 8)])
def test_sizes_of_rates(check: Check, add_run: Add, tmp_path: Path, rows: int, tasks: int) -> None:
    """Scores down to 0 and up to 100 %, seeds missing and lost, a collapsed cell in each row."""
    scores: dict[tuple[str, str, float], list[float]] = {}
    lost = 0
    rates = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
    for task, mode, (place, rate) in itertools.product(TASKS[:tasks], MODES[:rows], enumerate(rates)):
        if rate == 1e-2:
            lost += 1
            add_run(None, task=task, mode=mode, learning_rate=rate, status="diverged")
            continue
        low = -0.1 if task == "cola" else 0.0
        mine = [max(low, 1 - 0.19 * place - 0.05 * MODES.index(mode) - 0.3 * seed) for seed in range(3 - place % 2)]
        for seed, score in enumerate(mine):
            add_run(score, task=task, mode=mode, learning_rate=rate, seed=seed, collapsed=place == 5)
        scores[task, mode, rate] = mine
        if place == 4:
            add_run(None, task=task, mode=mode, learning_rate=rate, seed=8, status="diverged")
    figure, frame = figures.plot_rates(tmp_path / "runs")
    check(figure)
    check_percents(figure)
    assert frame["collapsed"].tolist() == [
        len(scores.get((task, mode, rate), ())) * (rate == 5e-3)
        for task, mode, rate in zip(frame["task"], frame["mode"], frame["learning_rate"], strict=True)
    ]
    crosses = 0
    for panel, task in zip(figure.axes, TASKS, strict=False):
        box = panel.get_window_extent()
        assert box.width > 1.8 * figure.dpi
        assert box.height > 1.4 * figure.dpi
        lines = [line for line in panel.lines if len(line.get_xdata()) == len(rates)]
        assert len(lines) == rows
        for line, mode in zip(lines, MODES, strict=False):
            expected = [100 * np.mean(scores[task, mode, rate]) for rate in rates[:-1]]
            np.testing.assert_allclose(line.get_ydata(), [*expected, np.nan])
        crosses += sum(line.get_marker() == "x" for line in panel.lines)
        squares = [line for line in panel.lines if line.get_marker() == "s" and line.get_markersize() == 10]
        assert sum(len(line.get_xdata()) for line in squares if line.get_color() == "0.85") == rows
    assert crosses == lost
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[rows:] == [
        "rate that a table reports", "some seeds lost", "all seeds lost", "some seeds predict one class",
    ]  # fmt: skip


def test_negative_scores_are_shown_and_others_stop_at_0(check: Check, add_run: Add, tmp_path: Path) -> None:
    for task, seed in itertools.product(("cola", "mrpc"), (0, 1)):
        add_run(0.05 + 0.2 * seed, task=task, learning_rate=1e-4, seed=seed)
        add_run(0.3 * seed - 0.3 if task == "cola" else 0.0, task=task, learning_rate=1e-3, seed=seed)
    figure, _ = figures.plot_rates(tmp_path / "runs")
    check(figure)
    cola, mrpc = (panel.get_ylim()[0] for panel in figure.axes)
    assert cola < 100 * (-0.15 - np.std([0, -0.3], ddof=1))
    assert -3 <= mrpc <= 0


def test_a_score_that_is_nowhere_defined(check: Check, add_run: Add, tmp_path: Path) -> None:
    add_run(None, task="stsb", epochs_kept=2)
    for draw in (figures.plot_rates, figures.plot_curves):
        figure, _ = draw(tmp_path / "runs")
        check(figure)
        panel = figure.axes[-1]
        assert [text.get_text() for text in panel.texts] == ["no score"]
        low, high = panel.get_ylim()
        assert -3 <= low <= 0
        assert 100 <= high <= 103


def test_curves(check: Check, add_run: Add, tmp_path: Path) -> None:
    for seed in (0, 1):
        add_run(0.5 + 0.1 * seed, mode="layernorm", seed=seed, epochs_kept=4)
        add_run(0.4, mode="layernorm", seed=seed, epochs_kept=4, learning_rate=1e-5)  # not the chosen rate
    add_run(None, mode="full", status="diverged")
    figure, frame = figures.plot_curves(tmp_path / "runs")
    check(figure)
    assert frame["learning_rate"].unique().tolist() == [1e-3]
    assert frame.groupby("epoch")["score"].mean().tolist() == pytest.approx([0.55] * 4)
    losses, scores = figure.axes
    np.testing.assert_allclose(scores.lines[-1].get_ydata(), [55] * 4)
    assert losses.get_ylabel() == "mean training loss"
    assert scores.get_ylabel() == "f1 (%)"


def test_runs_that_may_not_be_compared_are_left_out_and_told(check: Check, add_run: Add, tmp_path: Path) -> None:
    for seed in (0, 1):
        add_run(0.5, mode="full", seed=seed)
    add_run(0.9, mode="full", batching="grouped")
    figure, frame = figures.plot_rates(tmp_path / "runs")
    check(figure)
    assert frame["mean"].tolist() == [0.5]
    assert frame.attrs["notes"] == [
        "left out: 1 run with other settings, batching grouped", "shown: 2 runs, batching random",
    ]  # fmt: skip


@pytest.fixture
def add_curve(add_run: Add, tmp_path: Path) -> Callable[..., Record]:
    """Writes a run with a loss and a score after each epoch; one that diverged keeps its whole epochs."""

    def add(losses: list[float], scores: list[float | None], status: str = "completed", **keywords: Any) -> Record:
        record = add_run(scores[-1] if scores else None, **keywords)
        told = unseal(json.loads(record.to_json()))
        told["status"] = status
        if status != "completed":
            told["result"] |= {"score_best": None, "score_last": None, "best_epoch": None, "collapsed": None}
        name = told["result"]["score_name"]
        told["result"]["epochs"] = [
            {"epoch": number, "train_loss": loss, "metrics": {"validation": {name: score}}, "seconds": 1.0}
            for number, (loss, score) in enumerate(zip(losses, scores, strict=True), 1)
        ]
        changed = Record.model_validate(told)
        (tmp_path / "runs" / record.run_id / RECORD_FILE).write_text(changed.to_json())
        return changed

    return add


@pytest.mark.parametrize(("rows", "tasks"), [(1, 1), (3, 1), (9, 1), (1, 8), (9, 8)])
def test_points_of_one_epoch_lie_side_by_side(
    check: Check, add_curve: Add, tmp_path: Path, rows: int, tasks: int
) -> None:
    """Each row's mean at a place of its own, its seeds as points around it."""
    for task, (number, mode), seed in itertools.product(TASKS[:tasks], enumerate(MODES[:rows]), (0, 1)):
        add_curve([0.7 + 0.02 * seed], [0.5 + 0.01 * number + 0.1 * seed], task=task, mode=mode, seed=seed)
    figure, _ = figures.plot_curves(tmp_path / "runs")
    check(figure)
    check_percents(figure)
    assert len(figure.axes) == 2 * tasks
    for losses, scores in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        means = [line for line in scores.lines if line.get_marker() != "."]
        np.testing.assert_allclose([line.get_ydata()[0] for line in means], 100 * (0.55 + 0.01 * np.arange(rows)))
        np.testing.assert_allclose([line.get_ydata()[0] for line in losses.lines if line.get_marker() != "."], 0.71)
        dots = scores.transData.transform([(line.get_xdata()[0], 0) for line in means])[:, 0]
        assert (np.diff(dots) > means[0].get_markersize() * figure.dpi / 72).all()
        seeds = [line for line in scores.lines if line.get_marker() == "."]
        assert len(seeds) == 2 * rows
        assert {line.get_xdata()[0] for line in seeds} == {line.get_xdata()[0] for line in means}


def test_a_diverged_loss_flattens_no_other(check: Check, add_curve: Add, add_run: Add, tmp_path: Path) -> None:
    for seed in (0, 1):
        add_curve([0.7, 0.4, 0.2], [0.6, 0.7, 0.8 + 0.02 * seed], mode="layernorm", seed=seed)
        add_curve([0.8, 0.5, 0.3], [0.6, 0.7, 0.7], mode="full", seed=seed)
    add_curve([0.9, 1e6], [0.5, 0.3], "diverged", mode="full", seed=2)
    add_curve([0.75], [0.4], "diverged", mode="bitfit", seed=0)
    add_run(None, status="diverged", mode="random", seed=0)
    add_curve([0.6, 88.0, 0.6], [0.5, 0.3, 0.5], mode="attention")  # completed, and far from all others on its way
    figure, frame = figures.plot_curves(tmp_path / "runs")
    check(figure)
    losses, scores = figure.axes
    low, high = losses.get_ylim()
    assert -0.05 <= low < 0.2
    assert 0.8 < high < 1.0
    above = [line for line in losses.lines if not line.get_clip_on()]
    arrows = [line.get_xdata()[0] for line in above if line.get_marker() == r"$\uparrow$"]
    assert sorted(arrows) == [2, 2]
    crosses = {
        (tuple(line.get_xdata()), None if line in above else line.get_ydata()[0])
        for line in losses.lines
        if line.get_marker() == "x"
    }
    assert crosses == {((2,), None), ((1,), 0.75), ((1,), None)}  # full, BitFit, Random
    assert frame.attrs["notes"] == [
        "MRPC: Full-FT, seed 2: the loss of epoch 2, 1e+06, lies beyond the axis",
        "MRPC: Multi-head attention, seed 0: the loss of epoch 2, 88, lies beyond the axis",
        "MRPC: Random, seed 0: diverged before an epoch ended",
    ]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-2:] == ["diverged", "loss beyond the axis"]
    assert "Random, rate 1e-3" in labels
    # Nothing of a run that diverged is in a mean.
    means = [list(line.get_ydata()) for line in scores.lines if line.get_linewidth() > 1]
    assert [60, 70, 70] in [pytest.approx(mean) for mean in means]
    assert frame.loc[frame["outcome"] == "diverged", "row"].unique().tolist() == ["Full-FT", "BitFit"]


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("tasks", [1, 8])
def test_sizes_of_curves(check: Check, add_curve: Add, tmp_path: Path, rows: int, tasks: int) -> None:
    for (place, task), (number, mode) in itertools.product(enumerate(TASKS[:tasks]), enumerate(MODES[:rows])):
        rate = (1e-5, 1e-4)[place % 2]
        for seed in range(1 + number % 3):  # some rows lack seeds
            epochs = 3 if seed == 1 else 20
            losses = [0.7 * 0.9**epoch for epoch in range(epochs)]
            scores = [min(1.0, 0.1 * number + 0.05 * epoch) for epoch in range(epochs)]
            status = "diverged" if seed == 1 else "completed"
            add_curve([*losses[:-1], 1e9] if seed == 1 else losses, scores, status, task=task, mode=mode, seed=seed,
                      learning_rate=rate)  # fmt: skip
    figure, frame = figures.plot_curves(tmp_path / "runs")
    check(figure)
    check_percents(figure)
    assert len(figure.axes) == 2 * tasks
    for panel in figure.axes[::2]:
        assert panel.get_ylim()[1] < 1
    rates = ["1e-5", "1e-4"] * 4
    assert [panel.get_title().rpartition(", ")[2] for panel in figure.axes[::2]] == [f"rate {r}" for r in rates[:tasks]]
    warned = [note for note in frame.attrs["notes"] if "Learning rates differ" in note]
    assert len(warned) == (tasks > 1)
    assert bool(figure.texts) == (tasks > 1)
