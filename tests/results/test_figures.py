"""Figures of made-up runs and toy weights with known answers: what they draw, and the numbers beside them."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.numpy import load_file, save_file

from tfmt import figures, report
from tfmt.bert.configs import BertShape
from tfmt.bert.vocabulary import list_weights
from tfmt.claims.claims import evaluate_claims, tabulate_claims
from tfmt.errors import RequestError
from tfmt.figures.outliers import find_outliers, spread
from tfmt.results.analyses import tabulate_change, tabulate_weights
from tfmt.runs.records import (
    DISTRIBUTIONS_FILE,
    RECORD_FILE,
    Record,
    WeightDistributions,
    find_distributions,
    find_records,
    read_runs,
)
from tfmt.selection.stored import FisherNotes
from tfmt.training.distribution import measure_sublayers

Add = Callable[..., Record]
Check = Callable[[Figure], None]


def drawn(panel: Axes) -> int:
    """How many artists of a panel show data."""
    return len(panel.lines) + len(panel.patches) + len(panel.collections) + len(panel.images)


# ---- weights -------------------------------------------------------------------------------------------------------


def toy_weights(blocks: int = 4, hidden: int = 48, apart: float = 0.8, seed: int = 0) -> dict[str, np.ndarray]:
    """A BERT whose gammas lie around `apart` and all its other weights around 0."""
    generator = np.random.default_rng(seed)
    table = list_weights(BertShape(hidden, blocks, 2, 2 * hidden, 20, 10, 2), "sentence", 2)
    return {
        weight.path: generator.normal(apart if weight.part == "gamma" else 0, 0.05, weight.shape).astype(np.float32)
        for weight in table
    }


def table_of(values: dict[str, np.ndarray], blocks: int = 4, hidden: int = 48) -> Any:
    return list_weights(BertShape(hidden, blocks, 2, 2 * hidden, 20, 10, 2), "sentence", 2)


@pytest.fixture
def add_full(add_run: Add, tmp_path: Path) -> Callable[..., Record]:
    """Writes a full run with the change and the distributions of toy weights."""

    def add(blocks: int = 4, shift: float = 0.3, **keywords: Any) -> Record:
        before = toy_weights(blocks)
        table = table_of(before, blocks)
        moved = "output/LayerNorm/beta"
        after = {
            path: value + shift * (path.endswith(moved) and "attention" not in path) for path, value in before.items()
        }
        change: dict[str, dict[str, float]] = {}
        for weight in table:
            if weight.sublayer != "classifier":
                mean = float(np.abs(after[weight.path].astype(float) - before[weight.path]).mean()) + 1e-3
                change.setdefault(weight.component, {})["-" if weight.block is None else str(weight.block)] = mean
        record = add_run(0.5, mode="full", change=change, **keywords)
        measured = [measure_sublayers(table, values.__getitem__) for values in (before, after)]
        stored = WeightDistributions(schema_=1, run_id=record.run_id, before=measured[0], after=measured[1])
        path = tmp_path / "runs" / record.run_id / DISTRIBUTIONS_FILE
        path.write_text(stored.model_dump_json(by_alias=True))
        return record

    return add


@pytest.mark.parametrize("runs", [1, 3])
def test_weights(check: Check, add_full: Add, tmp_path: Path, runs: int) -> None:
    for task, seed in itertools.product(("mrpc", "rte")[:runs], range(runs)):
        add_full(task=task, seed=seed)
    figure, frame = figures.plot_weights(tmp_path / "runs")
    check(figure)
    assert all(drawn(panel) for panel in figure.axes)
    one = frame[frame["task"] == "mrpc"].set_index(["sublayer", "part", "state"])
    beta, gamma = (one.loc[("feedforward_layernorm", part, "fine-tuned")] for part in ("beta", "gamma"))
    assert beta["mean"] == pytest.approx(0.3, abs=0.02)  # the planted shift
    assert one.loc[("feedforward_layernorm", "beta", "pre-trained"), "mean"] == pytest.approx(0, abs=0.02)
    assert gamma["mean"] == pytest.approx(0.8, abs=0.02)
    assert gamma["count"] == runs * 4 * 48
    whole = one.loc[("attention_layernorm", "all", "fine-tuned")]
    assert whole["bimodality"] > whole["threshold"]
    assert whole["magnitude_ratio"] == pytest.approx(0.8 / (0.05 * np.sqrt(2 / np.pi)), rel=0.1)
    assert whole["share_beyond"] == pytest.approx(0.5, abs=0.01)
    panel = next(panel for panel in figure.axes if panel.get_title().startswith("feed-forward LayerNorm"))
    told = {state: one.loc[("feedforward_layernorm", "all", state)] for state in ("pre-trained", "fine-tuned")}
    assert told["pre-trained"]["bimodality"] - told["fine-tuned"]["bimodality"] > 0.01  # the shift brings them closer
    assert panel.get_title().splitlines() == [
        "feed-forward LayerNorm, rate 1e-3",
        f"before: Sarle {told['pre-trained']['bimodality']:.2f}, |w| > 0.5: 50 %",
        f"after: Sarle {told['fine-tuned']['bimodality']:.2f}, |w| > 0.5: 50 %",
    ]
    assert frame["learning_rate"].unique().tolist() == [1e-3]
    for sublayer in ("attention", "feedforward"):
        single = one.loc[(sublayer, "all", "fine-tuned")]
        assert single["bimodality"] < single["threshold"]
        assert np.isnan(single["magnitude_ratio"])


def test_areas_of_a_layernorms_parts_make_one(add_full: Add, tmp_path: Path) -> None:
    add_full()
    figure, _ = figures.plot_weights(tmp_path / "runs")
    panel = next(panel for panel in figure.axes if panel.get_title().startswith("attention LayerNorm"))
    areas = [float(np.sum(np.diff(step.get_data().edges) * step.get_data().values)) for step in panel.patches]
    assert sum(areas[:2]) == pytest.approx(1, abs=0.01)  # pre-trained beta and gamma
    assert sum(areas[2:]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("blocks", "runs"), [(4, 1), (1, 1), (2, 3)])
def test_change(check: Check, add_full: Add, tmp_path: Path, blocks: int, runs: int) -> None:
    for seed in range(runs):
        add_full(blocks, shift=0.3 + 0.1 * seed, seed=seed)
    figure, frame = figures.plot_change(tmp_path / "runs")
    check(figure)
    means = frame.groupby("component")["change"].mean()
    assert means.idxmax() == "output.LayerNorm.beta"
    assert means.max() == pytest.approx(0.301 + 0.1 * (runs - 1) / 2, abs=1e-6)
    bars, chart = figure.axes[:2]
    assert len(bars.patches) == len(means) == 16 + 5 + 2
    assert chart.images[0].get_array().shape == (23, blocks)


TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")


@pytest.mark.parametrize("draw", [figures.plot_change, figures.plot_weights])
def test_panels_of_different_rates_say_so(check: Check, add_full: Add, tmp_path: Path, draw: Any) -> None:
    add_full(task="mrpc", learning_rate=5e-3)
    figure, frame = draw(tmp_path / "runs")
    check(figure)
    assert not figure.texts
    assert frame.attrs["notes"] == []
    add_full(task="rte", learning_rate=1e-4, collapsed=True)
    figure, frame = draw(tmp_path / "runs")
    check(figure)
    assert dict(zip(frame["task"], frame["learning_rate"], strict=True)) == {"mrpc": 5e-3, "rte": 1e-4}
    assert frame.attrs["notes"] == [
        "Learning rates differ between panels (MRPC 5e-3, RTE 1e-4): what differs between them is not the task's"
        " effect alone.",
        "RTE: 1 of 1 run predicted one class.",
    ]
    assert [text.get_text().replace("\n", " ") for text in figure.texts] == [" ".join(frame.attrs["notes"])]
    titles = [panel.get_title() for panel in figure.axes if panel.get_subplotspec() is not None]
    half = len(titles) // 2
    assert all("rate 5e-3" in title for title in titles[:half])
    assert all("rate 1e-4" in title for title in titles[half:])


def test_many_tasks_and_long_names(check: Check, add_run: Add, add_full: Add, tmp_path: Path) -> None:
    for task in TASKS:
        add_full(2, task=task, learning_rate=1e-4 if task < "n" else 5e-3)
        add_fisher(add_run, tmp_path, 2, task=task)
    for draw in (figures.plot_change, figures.plot_weights, figures.plot_fisher):
        figure, frame = draw(tmp_path / "runs")
        check(figure)
        assert list(dict.fromkeys(frame["task"])) == list(TASKS)
        assert figure.get_figheight() < 24
    for schedule, batching, ratio in (("linear", "random", 0.1), ("constant", "grouped", 0.25)):
        add_full(2, task="conll2003_ner", schedule=schedule, batching=batching, warmup_ratio=ratio)
    for draw in (figures.plot_change, figures.plot_weights):
        check(draw(tmp_path / "runs", tasks=["conll2003_ner", "mrpc"])[0])


def test_damaged_distributions_of_the_only_run_are_named(add_full: Add, tmp_path: Path) -> None:
    path = tmp_path / "runs" / add_full().run_id / DISTRIBUTIONS_FILE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RequestError, match=re.escape(str(path))):
        figures.plot_weights(tmp_path / "runs")


def test_a_run_without_its_numbers_is_named(add_run: Add, tmp_path: Path) -> None:
    add_run(0.5, mode="full")
    for draw in (figures.plot_weights, figures.plot_change):
        with pytest.raises(RequestError, match=r"--flagfile=figures\.flags"):
            draw(tmp_path / "runs")
    with pytest.raises(RequestError, match=r"--flagfile=fisher\.flags"):
        figures.plot_fisher(tmp_path / "runs")
    with pytest.raises(RequestError, match="one of them"):
        figures.plot_weights()


# ---- Fisher information --------------------------------------------------------------------------------------------


def add_fisher(
    add_run: Add, tmp_path: Path, blocks: int = 3, examples: int = 100, times: float = 1.0, **keywords: Any
) -> None:
    """A fisher run in which the betas of the feed-forward LayerNorms have most, the more the later the block."""
    record = add_run(0.5, mode="fisher", mask_fraction=keywords.pop("mask_fraction", 0.1), **keywords)
    totals: dict[str, dict[str, float]] = {}
    sizes = {}
    for weight in table_of({}, blocks):
        total = 1e-3 if weight.part != "beta" else 2.0 * (1 + (weight.block or 0))
        total *= 5 if weight.sublayer == "feedforward_layernorm" else 1
        block = "-" if weight.block is None else str(weight.block)
        totals.setdefault(weight.component, {})[block] = times * total * (weight.part != "bias")
        sizes[weight.component] = weight.size
    fisher = FisherNotes(
        examples=examples, head_epochs=1, head_learning_rate=5e-3, head_train_loss=0.6, totals=totals, weights=sizes
    )
    path = tmp_path / "runs" / record.run_id / RECORD_FILE
    path.write_text(record.model_copy(update={"fisher": fisher}).to_json())


@pytest.mark.parametrize(("blocks", "seeds"), [(3, 1), (1, 1), (3, 3)])
def test_fisher(check: Check, add_run: Add, tmp_path: Path, blocks: int, seeds: int) -> None:
    for seed, fraction in itertools.product(range(seeds), (0.1, 0.2)):  # a fraction does not change the information
        add_fisher(add_run, tmp_path, blocks, seed=seed, mask_fraction=fraction)
    figure, frame = figures.plot_fisher(tmp_path / "runs")
    check(figure)
    assert len(frame) == seeds * (16 * blocks + 5 + 2 + 2)
    beta = frame[(frame["component"] == "output.LayerNorm.beta") & (frame["seed"] == 0)]
    assert beta["total"].tolist() == [10.0 * (1 + block) for block in range(blocks)]
    assert beta["mean"].tolist() == pytest.approx((beta["total"] / 48).tolist())
    own, _ = figures.plot_fisher(frame[["task", "component", "block", "total", "weights", "seed"]])
    check(own)


def test_a_component_without_information_is_shown_as_none(check: Check, add_run: Add, tmp_path: Path) -> None:
    add_fisher(add_run, tmp_path, 3)  # no bias has any
    figure, frame = figures.plot_fisher(tmp_path / "runs")
    check(figure)
    names = list(dict.fromkeys(frame["component"]))
    biases = {name for name in names if name.endswith(".bias")}
    sums, _, cells = figure.axes[:3]
    written = {names[round(text.get_position()[1])] for text in sums.texts}
    assert {text.get_text() for text in sums.texts} == {"none"}
    assert written == biases
    image = cells.images[0].get_array()
    hatched = {names[round(patch.get_y() + 0.5)] for patch in cells.patches}
    inside = {name for name in biases if not name.startswith(("pooler", "classifier"))}
    assert hatched == inside
    assert len(cells.patches) == 3 * len(inside)
    for row, name in enumerate(names):
        has_cells = name not in biases and not name.startswith(("pooler", "classifier", "embeddings"))
        assert np.ma.getmaskarray(image)[row].tolist() == [not has_cells] * 3
    assert "none: 0 or rounding" in [text.get_text() for text in figure.legends[0].get_texts()]
    frame["total"] = frame["total"].where(frame["component"] != "key.kernel", 1e-17)  # rounding, squared
    figure, _ = figures.plot_fisher(frame)
    check(figure)
    assert "key.kernel" in {names[round(text.get_position()[1])] for text in figure.axes[0].texts}
    figure, _ = figures.plot_fisher(frame.assign(total=0.0))
    check(figure)
    assert len(figure.axes[0].texts) == len(names)
    assert figure.axes[2].images[0].get_array().count() == 0


def test_the_most_examples_speak(add_run: Add, tmp_path: Path) -> None:
    add_fisher(add_run, tmp_path, examples=10, times=7.0, fisher_examples=10)
    add_fisher(add_run, tmp_path, examples=99, times=3.0, fisher_examples=99)
    _, frame = figures.plot_fisher(tmp_path / "runs")
    assert frame[frame["component"] == "output.LayerNorm.beta"]["total"].tolist() == [30.0, 60.0, 90.0]


def test_claims_of_weights_and_fisher_from_records_alone(
    add_run: Add, add_full: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, seed in itertools.product(("mrpc", "rte"), (0, 1)):
        add_full(task=task, seed=seed)
        add_full(task=task, seed=seed, learning_rate=1e-5)  # as good; the lower rate is the chosen one
        add_fisher(add_run, tmp_path, task=task, seed=seed)
    assert report.main([f"--runs={tmp_path / 'runs'}", "--claims"]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    verdicts = {line[0]: line[1:4] for line in lines if len(line) == 5 and line[0][:1] in "CF"}
    assert verdicts["C8"] == ["holds", "12 of 12", "12 of 12"]
    assert verdicts["F1"][0] == "holds"
    assert verdicts["F3"][:2] == ["holds", "2 of 2"]
    assert verdicts["F5"][:2] == ["holds", "4 of 4"]


def test_claims_name_what_cannot_be_read(add_full: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = add_full()
    path = tmp_path / "runs" / record.run_id / DISTRIBUTIONS_FILE
    path.write_text("{")
    assert report.main([f"--runs={tmp_path / 'runs'}", "--claims"]) == 0
    assert str(path) in capsys.readouterr().err


# ---- outliers ------------------------------------------------------------------------------------------------------


def test_planted_outliers_are_found() -> None:
    values = toy_weights(blocks=4, hidden=400)
    table = table_of(values, 4, 400)
    for path in values:  # nothing lies beyond 3 deviations but what is planted
        values[path] = np.clip(values[path], np.mean(values[path]) - 0.1, np.mean(values[path]) + 0.1)
    for block, dimension, part in ((0, 7, "gamma"), (2, 7, "gamma"), (3, 7, "beta"), (1, 30, "beta")):
        values[f"bert/encoder/layer_._{block}/output/LayerNorm/{part}"][dimension] = -3.0
    frame = find_outliers(table, values.__getitem__)
    assert set(frame["sublayer"]) == {"feedforward_layernorm"}
    found = list(frame[["block", "part", "dimension", "blocks", "recurs"]].itertuples(index=False, name=None))
    assert sorted(found) == [
        (0, "gamma", 7, 2, True), (1, "beta", 30, 1, False), (2, "gamma", 7, 2, True), (3, "beta", 7, 1, True),
    ]  # fmt: skip
    vector = values["bert/encoder/layer_._0/output/LayerNorm/gamma"].astype(float)
    assert frame["deviations"].iloc[0] == pytest.approx((-3 - vector.mean()) / vector.std())


def test_a_model_without_outliers(check: Check, toy_bert: Path) -> None:
    figure, frame = figures.plot_outliers(str(toy_bert))  # of 16 weights none can lie far from the mean
    check(figure)
    assert len(frame) == 0
    assert frame.columns.tolist()[-2:] == ["blocks", "recurs"]


def test_a_markers_size_is_explained(check: Check, make_toy_bert: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_toy_bert(tmp_path / "bert", blocks=2, hidden=128)
    tensors = load_file(folder / "model.safetensors")
    for block, value in ((0, 0.1), (1, 5.0)):
        weight = tensors[f"bert.encoder.layer.{block}.output.LayerNorm.weight"]
        weight[:] = np.where(np.arange(128) % 2, 0.01, -0.01)
        weight[20] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    figure, frame = figures.plot_outliers(str(folder))
    check(figure)
    mine = frame[(frame["sublayer"] == "feedforward_layernorm") & (frame["part"] == "gamma")]
    far = mine["deviations"].abs()
    assert far.between(5, 12).all()
    areas = next(points.get_sizes() for points in figure.axes[1].collections if len(points.get_offsets()) == len(mine))
    legend = figure.legends[0]
    entries = dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))
    assert list(entries)[2:] == ["3 standard deviations", "10 standard deviations"]
    for name, handle in list(entries.items())[2:]:
        # A marker's area in the legend is that of a point as far away.
        assert handle.get_markersize() ** 2 / float(name.split()[0]) == pytest.approx(areas[0] / far.iloc[0])


@pytest.mark.parametrize("blocks", [1, 4])
def test_outliers_of_a_model_folder(
    check: Check, make_toy_bert: Callable[..., Path], tmp_path: Path, blocks: int
) -> None:
    folder = make_toy_bert(tmp_path / "bert", blocks=blocks, hidden=64)
    tensors = load_file(folder / "model.safetensors")
    for block, dimension in itertools.product(range(blocks), (20, 21, 22)):
        tensors[f"bert.encoder.layer.{block}.output.LayerNorm.weight"][dimension] = 9.0 + dimension
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    figure, frame = figures.plot_outliers(str(folder))
    check(figure)
    assert all(drawn(panel) for panel in figure.axes)
    mine = frame[(frame["sublayer"] == "feedforward_layernorm") & frame["recurs"]]
    named = [text.get_text() for text in figure.axes[1].texts]
    if blocks == 1:
        assert mine.empty
        assert named == []
    else:
        assert {20, 21, 22} <= set(mine["dimension"])
        assert {"20", "21", "22"} <= set(named)
    figure, frame = figures.plot_weights(model=str(folder))
    check(figure)
    assert set(frame["state"]) == {"as stored"}


def test_names_are_spread() -> None:
    assert spread([1.0, 5.0], 2, 0, 10) == [1.0, 5.0]
    assert spread([1.0, 1.5, 2.0], 2, 0, 10) == [1.0, 3.0, 5.0]
    assert spread([9.0, 9.5, 10.0], 2, 0, 10) == [6.0, 8.0, 10.0]
    assert spread([], 2, 0, 10) == []


@pytest.mark.parametrize(("epoch", "kept", "told"), [("best", "best", ""), ("last", "best", "best"),
                                                     ("best", "last", "last"), ("last", "last", "")])  # fmt: skip
def test_figures_and_claims_of_weights_say_whose_epoch_they_are(
    check: Check, add_full: Add, tmp_path: Path, epoch: str, kept: str, told: str
) -> None:
    for seed in range(2):
        add_full(2, seed=seed, keep_epoch=kept)
    expected = f"Weights are those of each run's {told} epoch, which it kept (--keep_epoch); the {epoch} epoch's scores"
    for draw in (figures.plot_change, figures.plot_weights):
        figure, frame = draw(tmp_path / "runs", epoch=epoch)
        check(figure)
        drawn = " ".join(figure.get_suptitle().split())
        assert (expected in drawn) == bool(told)
        assert ("(--keep_epoch)" in " ".join(frame.attrs["notes"])) == bool(told)
    runs, (records, _) = read_runs(tmp_path / "runs"), find_records(tmp_path / "runs")
    stored, _ = find_distributions(tmp_path / "runs")
    verdicts = evaluate_claims(runs, epoch=epoch, change=tabulate_change(records),
                               weights=tabulate_weights(runs, stored, epoch))  # fmt: skip
    caption = tabulate_claims(verdicts, epoch).caption
    assert any(line.startswith(f"F1, C8: {expected}") or line.startswith(f"C8, F1: {expected}")
               for line in caption) == bool(told)  # fmt: skip


def test_figures_of_a_model_have_its_name_and_no_path(
    toy_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(toy_bert, tmp_path / "tell-tale" / "my-bert")
    monkeypatch.chdir(folder)
    draws = (figures.plot_outliers, figures.plot_weights)
    for number, (draw, model) in enumerate(itertools.product(draws, (folder, "."))):
        figure, frame = draw(model=str(model))
        drawn = [panel.get_title() + panel.get_ylabel() for panel in figure.axes]
        assert any("my-bert" in text for text in drawn)
        for ending in ("svg", "pdf", "png"):
            figures.save_figure(figure, tmp_path / f"{number}.{ending}")
            assert b"tell-tale" not in (tmp_path / f"{number}.{ending}").read_bytes()
        assert not any("tell-tale" in text for text in (*drawn, frame.to_csv()))
