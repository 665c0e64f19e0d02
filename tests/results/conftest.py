"""Hand-made runs: a `Record` in a folder of its own for each, and what `read_runs` makes of them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tfmt.runs.records import RECORD_FILE, Record, read_runs
from tfmt.spec import ARITHMETIC, RunSpec
from tfmt.training.predictions import Predictions, SplitTruth

SCORE_NAMES = {"cola": "matthews_correlation", "mrpc": "f1", "stsb": "pearson_spearman", "conll2003_ner": "f1"}
TUNED_PERCENT = {"full": 100.0, "frozen": 0.0, "layernorm": 0.0336713, "random": 0.0336713, "bitfit": 0.094}


def make_record(
    score: float | None = 0.5,
    *,
    last: float | None = None,
    status: str = "completed",
    collapsed: bool = False,
    collapsed_in: tuple[bool, ...] = (),
    frozen_changed: int = 0,
    change: dict[str, dict[str, float]] | None = None,
    origin: dict[str, Any] | None = None,
    epochs_kept: int = 1,
    halves: list[tuple[float | None, float | None]] | None = None,
    tuned: int = 36864,
    selection: dict[str, Any] | None = None,
    **spec: Any,
) -> Record:
    """A record of a run; what is not said is ordinary. `halves`: each epoch's score on both halves.

    `selection` is what its `SelectionFacts` have beside the expression.
    """
    settings = {"model": "bert-base-uncased", "task": "mrpc", "mode": "full", "learning_rate": 1e-3}
    settings |= {"batching": "random", "keep": "scores"} | spec
    run = RunSpec.make(**settings)
    told = {"tfmt": "0.1.0", "arithmetic": ARITHMETIC, "model_sha256": "a" * 64, "data_sha256": run.task.ljust(64, "0")}
    told |= origin or {}
    digests = {key: str(value) for key, value in told.items()} | {"fisher_from": str(run.fisher_from)}
    digests |= {"select": f"{run.select} {run.budget}"} if run.select else {}
    name = SCORE_NAMES.get(run.task, "accuracy")
    ended = status == "completed"
    names = ("pearson", "spearman") if run.task == "stsb" else (name,)
    split = "validation_matched" if run.task == "mnli" else "validation"
    epochs = [
        {
            "epoch": i + 1,
            "train_loss": 0.5,
            "metrics": {"validation": {name: score}},
            "seconds": 1.0,
            "collapsed": collapsed_in[i] if collapsed_in else None,
            "halves": {split: [dict.fromkeys(names, half) for half in halves[i]]} if halves else {},
        }
        for i in range(len(halves or ()) or len(collapsed_in) or epochs_kept)
    ]
    return Record.model_validate(
        {
            "schema": 1,
            "run_id": run.run_id(**digests),
            "status": status,
            "error": None if ended else f"the run {status}",
            "spec": run.model_dump(),
            "parameters": {
                "total": 109483778,
                "tuned": tuned,
                "head": 1538,
                "trainable": tuned + 1538,
                "tuned_percent": 100 * tuned / 109482240 if run.select else TUNED_PERCENT.get(run.mode, 1.25),
            },
            "result": {
                "score_name": name,
                "score_last": score if last is None else last,
                "score_best": score,
                "best_epoch": 1,
                "collapsed": collapsed,
                "epochs": epochs,
                "examples": {"train": 3668, "validation": 408},
                "predicted": {"validation": {"0": 200, "1": 208}},
            }
            if ended
            else None,
            "cost": {
                "setup_seconds": 1.0,
                "train_seconds": 2.0,
                "eval_seconds": 3.0,
                "steps": 10,
                "tokens": 100,
                "padded_tokens": 120,
                "peak_rss_mb": 1000.0,
                "optimizer_bytes": 1000,
                "replicas": 1,
                "threads": 2,
                "devices": ["CPU:0"],
                "jit_compile": False,
                "resumed": 0,
            },
            "proof": {
                "selected_changed": 10,
                "frozen_changed": frozen_changed,
                "frozen_sha256_before": "b" * 64,
                "frozen_sha256_after": "b" * 64,
            },
            "change": change,
            "selection": None if selection is None else {"expression": run.select, "normal_form": ""} | selection,
            "origin": {
                "packages": {"tensorflow": "2.21.0"},
                "python": "3.11.9",
                "git_commit": None,
                "git_dirty": None,
                "data_notes": {},
                "started": "2025-01-01T00:00:00+00:00",
                "finished": "2025-01-01T00:01:00+00:00",
                **told,
            },
        }
    )


@pytest.fixture
def add_run(tmp_path: Path) -> Callable[..., Record]:
    """Writes a run's record below `tmp_path/runs`."""

    def add(score: float | None = 0.5, **keywords: Any) -> Record:
        record = make_record(score, **keywords)
        folder = tmp_path / "runs" / record.run_id
        folder.mkdir(parents=True)
        (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
        return record

    return add


@pytest.fixture
def add_predicted(tmp_path: Path) -> Callable[..., Record]:
    """Writes a run's record and what it predicted for `labels`; `predictions` are those of each epoch."""

    def add(
        score: float, labels: Any, *predictions: Any, half_of: Any = None, lengths: Any = None, **spec: Any
    ) -> Record:
        record = make_record(score, epochs_kept=len(predictions), **spec)
        folder = tmp_path / "runs" / record.run_id
        folder.mkdir(parents=True)
        lengths = None if lengths is None else np.asarray(lengths)
        halves = np.arange(len(labels if lengths is None else lengths)) % 2 if half_of is None else np.asarray(half_of)
        truth = SplitTruth(np.asarray(labels), halves.astype(np.uint8), lengths)
        by_epoch = {epoch: np.asarray(each) for epoch, each in enumerate(predictions, 1) if each is not None}
        digest = Predictions(record.run_id, {"validation": truth}, {"validation": by_epoch}).write(folder)
        record = record.model_copy(update={"predictions_sha256": digest})
        (folder / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
        return record

    return add


@pytest.fixture
def add_seeds(add_run: Callable[..., Record]) -> Callable[..., None]:
    """Writes one run for each score, with seeds 0, 1, ..."""

    def add(scores: list[float], **keywords: Any) -> None:
        for seed, score in enumerate(scores):
            add_run(score, seed=seed, **keywords)

    return add


@pytest.fixture
def add_study(add_run: Callable[..., Record]) -> Callable[..., None]:
    """Writes two methods at two budgets and three rates, full, frozen and a structural selection; three seeds each.

    Fisher is best at the highest rate, random in the middle of the grid.
    """
    fisher = {"name": "fisher", "movable": 6000, "cost": {"backward_passes": 1024, "seconds": 30.0}}

    def add(tasks: tuple[str, ...] = ("mrpc", "rte"), counts: tuple[int, ...] = (6144, 547412)) -> None:
        for task, count, rate, seed in itertools.product(tasks, counts, (1e-3, 1e-2, 1e-1), range(3)):
            run = {"task": task, "learning_rate": rate, "seed": seed, "tuned": count, "budget": str(count)}
            run |= {"mode": "custom"}
            high, middle = 0.02 * (rate == 1e-1), 0.02 * (rate == 1e-2)
            add_run(0.80 + high + 0.001 * seed, select="fisher = all:fisher(budget)", selection=fisher, **run)
            add_run(0.70 + middle + 0.002 * seed, select="all:random(budget)", selection={"movable": count}, **run)
        for task, seed in itertools.product(tasks, range(3)):
            run = {"task": task, "seed": seed}
            add_run(0.9 + 0.001 * seed, mode="full", tuned=109482240, **run)
            add_run(0.5, mode="frozen", tuned=0, **run)
            add_run(0.75, mode="custom", select="value biases = attention.value.bias", tuned=9216, **run)

    return add


@pytest.fixture
def runs(tmp_path: Path) -> Callable[[], pd.DataFrame]:
    """Reads what was written so far."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    return lambda: read_runs(tmp_path / "runs")


# ---- figures as drawn ----------------------------------------------------------------------------------------------


def texts_of(figure: Figure) -> list[Text]:
    """What is written on a figure, drawn once so that everything has its place."""
    FigureCanvasAgg(figure).draw()
    texts = [*figure.texts, *(text for panel in figure.axes for text in (panel.title, panel.xaxis.label))]
    texts += [panel.yaxis.label for panel in figure.axes]
    for panel in figure.axes:
        texts += panel.texts
        for axis in (panel.xaxis, panel.yaxis) if panel.axison else ():
            low, high = sorted(axis.get_view_interval())  # ticks beyond are there and not drawn
            ticks = axis.get_major_ticks() + axis.get_minor_ticks()
            texts += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_visible()]
    for legend in figure.legends:
        texts += legend.get_texts()
    return [text for text in texts if text.get_text() and text.get_visible()]


def overlaps(left: list[Bbox], right: list[Bbox]) -> np.ndarray:
    """(i, j): whether the i-th box of the left and the j-th of the right share more than a pixel each way."""
    one, other = (np.array([box.extents for box in boxes]).reshape(-1, 4) for boxes in (left, right))
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    return (high - low > 1).all(axis=2)


def check_drawn(figure: Figure) -> None:
    """No two texts touch, no text touches a mark above a panel, nothing leaves the page, panels have a size to read."""
    assert figure.axes
    texts = texts_of(figure)
    boxes = [Text.get_window_extent(text) for text in texts]  # of an annotation the text alone, without its arrow
    lines = [line for panel in figure.axes for line in panel.lines if not line.get_clip_on()]
    marks = [line.get_window_extent() for line in lines]
    width, height = figure.canvas.get_width_height()
    for artist, box in zip(texts + lines, boxes + marks, strict=True):
        assert box.x0 > -1, artist
        assert box.x1 < width + 1, artist
        assert box.y0 > -1, artist
        assert box.y1 < height + 1, artist
    touching = [(texts[one], texts[other]) for one, other in np.argwhere(np.triu(overlaps(boxes, boxes), 1))]
    touching += [(texts[one], lines[other]) for one, other in np.argwhere(overlaps(boxes, marks))]
    assert not touching
    for panel in figure.axes:
        if panel.get_subplotspec() is not None:  # a scale of colours has none
            box = panel.get_window_extent()
            assert box.width > 1.2 * figure.dpi, panel.get_title()
            assert box.height > 1.0 * figure.dpi, panel.get_title()
    for legend in figure.legends:
        assert legend.get_window_extent().height < 0.35 * height


@pytest.fixture
def check() -> Iterator[Callable[[Figure], None]]:
    """`check_drawn`, in a test in which a figure that draws with a warning fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # matplotlib 3.9 calls pyparsing by names that pyparsing 3.3 gave up.
        warnings.filterwarnings("ignore", r"'\w+' (argument is )?deprecated", DeprecationWarning)
        yield check_drawn
