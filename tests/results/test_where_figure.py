"""Where selections lie and what they share: against sets of indices drawn by hand on a toy model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from tfmt import analyze, figures, report
from tfmt.bert.configs import find_shape
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError
from tfmt.figures import where
from tfmt.runs.records import Record
from tfmt.selection.stored import SELECTION_FILE, write_selection

Add = Callable[..., Record]
Check = Callable[[Figure], None]


@pytest.fixture
def add_chosen(add_run: Add, toy_bert: Path, tmp_path: Path) -> Callable[..., dict[str, set[int]]]:
    """Writes a run with a random selection, or all of the LayerNorms' gammas; {path: indices of it}."""
    weights = list_weights(find_shape(str(toy_bert)), "sentence", 2)
    encoder = [weight for weight in weights if weight.sublayer != "classifier"]

    def add(name: str, draw: int | None, number: int | None = None, **spec: object) -> dict[str, set[int]]:
        generator = np.random.default_rng(draw)
        masks = {w.path: np.sort(generator.choice(w.size, min(9, w.size), replace=False)) for w in encoder}
        whole = [weight.path for weight in encoder if weight.part == "gamma"] if draw is None else []
        masks = {} if draw is None else masks
        expression = "layernorm.gamma" if draw is None else f"all:random({number or draw}, per=tensor)"
        record = add_run(0.5, model=str(toy_bert), mode="custom", select=f"{name} = {expression}", **spec)
        folder = tmp_path / "runs" / record.run_id
        write_selection(folder / SELECTION_FILE, weights, masks, whole, {"run_id": record.run_id})
        sizes = {weight.path: weight.size for weight in weights}
        return {path: set(map(int, masks[path])) for path in masks} | {path: set(range(sizes[path])) for path in whole}

    return add


def joined(chosen: dict[str, set[int]]) -> set[tuple[str, int]]:
    return {(path, index) for path, indices in chosen.items() for index in indices}


def test_overlaps_are_those_of_the_sets(check: Check, add_chosen: Add, toy_bert: Path, tmp_path: Path) -> None:
    one = joined(add_chosen("one", 1))
    gammas = joined(add_chosen("gammas", None))
    again = joined(add_chosen("one", 2, seed=1, number=1))
    elsewhere = joined(add_chosen("one", 3, task="rte", number=1))
    figure, frame = figures.plot_where(tmp_path / "runs")
    check(figure)
    size = sum(w.size for w in list_weights(find_shape(str(toy_bert)), "sentence", 1) if w.sublayer != "classifier")
    found = frame[frame["kind"] == "overlap"].set_index("differ")
    for differ, left, right in (("row", gammas, one), ("seed", one, again), ("task", one, elsewhere)):
        told = found.loc[differ]
        shared = len(left & right)
        assert told["shared"] == shared
        assert told["expected"] == pytest.approx(len(left) * len(right) / size)
        assert told["ratio"] == pytest.approx(shared * size / len(left) / len(right))
        assert told["overlap"] == pytest.approx(shared / min(len(left), len(right)))
        assert told["jaccard"] == pytest.approx(shared / len(left | right))
    shares = frame[(frame["kind"] == "share") & (frame["row"] == "gammas")].set_index(["component", "block"])["share"]
    assert shares["output.LayerNorm.gamma", "1"] == 1
    assert shares["embeddings.LayerNorm.gamma", "-"] == 1
    assert shares["output.LayerNorm.beta", "1"] == 0
    query = frame[(frame["component"] == "query.kernel") & (frame["row"] == "one")]
    assert query["selected"].tolist() == [9] * 6  # two blocks, three selections
    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert titles[:2] == ["gammas", "one"]
    columns = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert columns == ["1", "2", "other\ntasks", "other\nseeds"]


def test_learning_rates_change_no_selection(add_chosen: Add, tmp_path: Path) -> None:
    add_chosen("one", 1, learning_rate=1e-3)
    add_chosen("one", 1, learning_rate=1e-2)
    _, frame = figures.plot_where(tmp_path / "runs")
    assert (frame["kind"] == "share").all()


def test_what_cannot_be_read_is_told(
    add_run: Add, add_chosen: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_chosen("one", 1)
    add_run(0.5, mode="layernorm")
    add_run(0.5, mode="full")
    runs, pack = tmp_path / "runs", tmp_path / "study.jsonl.gz"
    command = ["--figure=where", f"--output={tmp_path / 'where.png'}"]
    assert analyze.main([*command, f"--runs={runs}", f"--data={tmp_path / 'where.csv'}"]) == 0
    assert "left out: 1 run without a selection.safetensors" in capsys.readouterr().err
    assert len(pd.read_csv(tmp_path / "where.csv"))
    assert report.main([f"--runs={runs}", f"--pack={pack}"]) == 0
    assert analyze.main([*command, f"--runs={pack}"]) == 2
    assert "no selections beside all weights and none: left out: 2 runs" in capsys.readouterr().err
    with pytest.raises(RequestError, match="no selections"):
        figures.plot_where(pack)


def test_many_selections(check: Check, add_chosen: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        add_chosen(f"a longer name {number}", number + 1)
    figure, _ = figures.plot_where(tmp_path / "runs")
    check(figure)
    monkeypatch.setattr(where, "MOST", 3)
    figure, frame = figures.plot_where(tmp_path / "runs")
    check(figure)
    assert len(frame["row"].unique()) == 3
    assert frame.attrs["notes"][0].startswith("shown: 3 of 5 selections; --where chooses others")
