"""`tfmt-report --compare`: differences and intervals of hand-made runs, against SciPy, scikit-learn and counts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from tfmt import report
from tfmt.errors import RequestError
from tfmt.results import intervals
from tfmt.results.comparing import compare_settings
from tfmt.results.formats import FORMATS, Table, format_tables
from tfmt.results.predicted import Predicted
from tfmt.results.row_names import find_row, name_row, split_names
from tfmt.results.rows import Row
from tfmt.runs.records import find_records, pack_runs, tabulate
from tfmt.tasks import find_task
from tfmt.training.predictions import read_predictions

Add = Callable[..., Any]
LABELS = np.tile([1, 0, 0, 1, 1], 12)


def answers(wrong: Any) -> np.ndarray:
    """Predictions for `LABELS` that are wrong for these examples."""
    predictions = LABELS.copy()
    predictions[list(wrong)] = 1 - predictions[list(wrong)]
    return predictions


@pytest.fixture
def add_answers(add_predicted: Add) -> Add:
    """Writes a run of RTE (accuracy) or MRPC (F1) that is wrong for some of 60 examples."""

    def add(mode: str, seed: int, wrong: Any, task: str = "rte", **spec: Any) -> Any:
        told = answers(wrong)
        score = float(f1_score(LABELS, told)) if task == "mrpc" else float((told == LABELS).mean())
        return add_predicted(score, LABELS, told, mode=mode, seed=seed, task=task, **spec)

    return add


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., Table]:
    """The only table of a comparison, of what was written so far."""

    def compare_runs(settings: str = "layernorm,full", epoch: str = "best") -> Table:
        records, broken = find_records(tmp_path / "runs")
        predicted = Predicted(tmp_path / "runs", records, epoch)
        (table,) = compare_settings(tabulate(records, broken), settings, epoch=epoch, predicted=predicted)
        return table

    return compare_runs


def lines(table: Table, block: int = 0) -> list[dict[str, str]]:
    """Column head to text, line by line."""
    return [dict(zip(table.blocks[block].columns, row, strict=True)) for row in table.blocks[block].rows]


def test_one_run_a_setting_is_told_by_the_examples_that_only_one_gets_right(add_answers: Add, compare: Any) -> None:
    add_answers("layernorm", 0, wrong=range(5))
    add_answers("full", 0, wrong=range(3, 20))
    # As McNemar counts: 3 that only full gets right, 15 that only layernorm does, of 60.
    there, back, n = 15, 3, 60
    mean = (there - back) / n
    deviation = (((there + back) / n - mean**2) * n / (n - 1)) ** 0.5
    low, high = stats.t.interval(0.95, n - 1, mean, deviation / n**0.5)
    table = compare()
    (numbers,) = table.numbers
    assert (numbers["difference"], numbers["low"], numbers["high"]) == pytest.approx((mean, low, high), abs=1e-12)
    (line,) = lines(table)
    assert line == {
        "task": "RTE", "score": "accuracy", "N": "60", "seeds": "1", "LayerNorms": "91.7", "Full-FT": "71.7",
        "difference": "+20.00", "low": f"{100 * low:+.2f}", "high": f"{100 * high:+.2f}",
        "interval": intervals.EXAMPLES_OF_ONE_RUN, "rates": "1e-3 / 1e-3", "lost and collapsed": "-",
    }  # fmt: skip


def test_without_predictions_it_is_over_seeds_alone_and_says_so(add_seeds: Add, compare: Any) -> None:
    ours, theirs = np.array([0.80, 0.83, 0.78]), np.array([0.79, 0.80, 0.79])
    add_seeds(list(ours), mode="layernorm", task="rte")
    add_seeds(list(theirs), mode="full", task="rte")
    expected = stats.ttest_rel(ours, theirs).confidence_interval()
    table = compare()
    (numbers,) = table.numbers
    assert (numbers["low"], numbers["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    (line,) = lines(table)
    assert (line["N"], line["seeds"], line["interval"]) == ("-", "3", intervals.SEEDS_ALONE)
    assert any(text.startswith("Over seeds alone") and "kept no predictions" in text for text in table.caption)


@pytest.mark.parametrize("task", ["rte", "mrpc"])
def test_seeds_and_examples_together(add_answers: Add, compare: Any, task: str) -> None:
    generator = np.random.default_rng(0)
    runs = {}
    for mode, share in (("layernorm", 0.2), ("full", 0.1)):
        for seed in range(3):
            wrong = np.flatnonzero(generator.random(60) < share + 0.02 * seed)
            runs[mode, seed] = answers(wrong)
            add_answers(mode, seed, wrong, task)
    expected = intervals.compare(find_task(task), LABELS, runs, "layernorm", "full")
    (numbers,) = compare().numbers
    names = {"difference": "mean"} | {name: name for name in ("low", "high", "df", "seed_variance", "method")}
    assert {name: numbers[name] for name in names} == {name: getattr(expected, names[name]) for name in names}
    measure = f1_score if task == "mrpc" else lambda labels, told: (labels == told).mean()
    scores = {mode: np.mean([measure(LABELS, runs[mode, seed]) for seed in range(3)]) for mode in ("layernorm", "full")}
    assert numbers["difference"] == pytest.approx(scores["layernorm"] - scores["full"], abs=1e-12)
    assert (numbers["left_score"], numbers["right_score"]) == pytest.approx(tuple(scores.values()), abs=1e-12)
    assert (numbers["examples"], numbers["left_seeds"], numbers["paired"]) == (60, (0, 1, 2), True)


def test_each_setting_at_its_own_rate_and_over_the_seeds_that_both_have(add_answers: Add, compare: Any) -> None:
    for seed in (0, 1, 2):
        add_answers("layernorm", seed, wrong=range(seed + 3), learning_rate=1e-3)
        add_answers("layernorm", seed, wrong=range(20, 40 + seed), learning_rate=1e-2)
    for seed in (1, 2, 5):
        add_answers("full", seed, wrong=range(20 - seed, 30), learning_rate=5e-5)
        add_answers("full", seed, wrong=range(40), learning_rate=1e-5)
    table = compare()
    (numbers,) = table.numbers
    # Seeds 1 and 2 alone: 4 and 5 wrong on the left, 11 and 12 on the right.
    assert numbers["difference"] == pytest.approx((11 + 12 - 4 - 5) / 2 / 60, abs=1e-12)
    (line,) = lines(table)
    assert (line["seeds"], line["rates"]) == ("2 shared of 3 and 3", "1e-3 / 5e-5")


def test_settings_without_a_seed_in_common(add_seeds: Add, add_run: Add, compare: Any) -> None:
    ours, theirs = [0.80, 0.83, 0.78], [0.70, 0.74]
    add_seeds(ours, mode="layernorm", task="rte")
    for seed, score in enumerate(theirs, 7):
        add_run(score, mode="full", task="rte", seed=seed)
    table = compare()
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert (table.numbers[0]["low"], table.numbers[0]["high"]) == pytest.approx((expected.low, expected.high))
    assert lines(table)[0]["seeds"] == "3 and 2, none shared"


def test_the_mean_over_tasks(add_answers: Add, add_seeds: Add, compare: Any) -> None:
    for task in ("rte", "mrpc"):
        for seed in range(3):
            add_answers("layernorm", seed, range(3 + seed, 9), task)
            add_answers("full", seed, range(7, 14 + (seed == 1)), task)
    add_seeds([0.8, 0.9], mode="full", task="cola")
    table = compare()
    *tasks, mean = table.numbers
    assert [each["task"] for each in tasks] == mean["tasks"] == ["mrpc", "rte"]
    assert mean["difference"] == pytest.approx(np.mean([each["difference"] for each in tasks]), abs=1e-12)
    # Independent means: the variance of a sum, and Satterthwaite's degrees of freedom, from the printed intervals.
    variances = [((each["high"] - each["low"]) / 2 / stats.t.ppf(0.975, each["df"])) ** 2 for each in tasks]
    df = sum(variances) ** 2 / sum(v**2 / each["df"] for v, each in zip(variances, tasks, strict=True))
    reach = stats.t.ppf(0.975, df) * (sum(variances) / 4) ** 0.5
    assert (mean["high"] - mean["low"]) / 2 == pytest.approx(reach, rel=1e-9)
    assert lines(table)[-1]["task"] == "mean of 2 tasks"
    assert "Left out: CoLA (no LayerNorms runs)." in table.caption


def test_an_epoch_is_read_as_it_is_scored(add_predicted: Add, compare: Any) -> None:
    first, last, whole = answers(range(6)), answers(range(9)), answers(range(3))
    for mode, told in (("layernorm", (first, last)), ("full", (whole, whole))):
        scores = [float((each == LABELS).mean()) for each in told]
        add_predicted(scores[0], LABELS, *told, last=scores[1], mode=mode, task="rte")
    assert compare(epoch="best").numbers[0]["difference"] == pytest.approx(-3 / 60)
    numbers = compare(epoch="last").numbers[0]
    assert numbers["difference"] == pytest.approx(-6 / 60)
    assert numbers["examples"] == 60


def test_what_cannot_be_read_is_told_and_leaves_the_seeds(add_predicted: Add, compare: Any, tmp_path: Path) -> None:
    told = {"layernorm": (LABELS,), "full": (1 - LABELS,), "bitfit": (None, LABELS)}
    records = {
        mode: [add_predicted(1.0 - 0.1 * seed, LABELS, *each, mode=mode, seed=seed, task="rte") for seed in (0, 1)]
        for mode, each in told.items()
    }
    kept = records["layernorm"][0].run_id
    for setting, words in (
        ("layernorm,bitfit", "layernorm-lr0.001-s1"),  # its predictions score 1, its record says 0.9
        ("bitfit,full", "kept no predictions of epoch 1"),  # as of a large split, whose best epoch was not kept
        ("full,bitfit", "its predictions score 0.000000, its record says 1.0"),
    ):
        table = compare(setting)
        assert any(words in line for line in table.caption if line.startswith("Over seeds alone")), setting
        assert table.numbers[0]["examples"] is None
    (tmp_path / "runs" / kept / "predictions.safetensors").write_bytes(b"broken")
    assert f"{kept}/predictions.safetensors: not a file that tfmt wrote" in " ".join(compare("layernorm,full").caption)


def test_a_packed_study_is_compared_as_its_folders_are(crossed: Any, tmp_path: Path) -> None:
    records, _ = find_records(tmp_path / "runs")
    pack = tmp_path / "study.jsonl.gz"
    pack_runs(tmp_path / "runs", records, pack)
    told = [
        compare_settings(tabulate(records), "layernorm,full", predicted=Predicted(place, records))
        for place in (tmp_path / "runs", pack, [tmp_path / "runs", pack])
    ]
    assert told[0][0].numbers[0]["examples"] == 60
    assert told[0] == told[1] == told[2]


def test_a_folder_of_another_name_is_found(add_answers: Add, compare: Any, tmp_path: Path) -> None:
    for mode in ("layernorm", "full"):
        record = add_answers(mode, 0, range(3 if mode == "full" else 5))
        (tmp_path / "runs" / record.run_id).rename(tmp_path / "runs" / f"my {mode}")
    assert compare().numbers[0]["examples"] == 60


def test_other_examples_are_not_taken_for_the_same(add_predicted: Add, compare: Any) -> None:
    add_predicted(1.0, LABELS, LABELS, mode="layernorm", task="rte")
    add_predicted(1.0, 1 - LABELS, 1 - LABELS, mode="full", task="rte")
    assert "scored on different examples" in " ".join(compare().caption)


def test_only_what_is_compared_is_read_and_once(
    add_answers: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ("layernorm", "full", "bitfit"):
        for rate, wrong in ((1e-3, 5), (1e-4, 10)):
            for seed in (0, 1):
                add_answers(mode, seed, range(seed, wrong), learning_rate=rate)
    records, _ = find_records(tmp_path / "runs")
    opened = []

    def read(folder: Path, **keywords: Any) -> Any:
        opened.append(folder.name)
        return read_predictions(folder, **keywords)

    monkeypatch.setattr("tfmt.runs.records.read_predictions", read)
    predicted = Predicted(tmp_path / "runs", records)
    for _ in range(2):
        compare_settings(tabulate(records), "layernorm,full", predicted=predicted)
    wanted = {each.run_id for each in records if each.spec.mode != "bitfit" and each.spec.learning_rate == 1e-3}
    assert sorted(opened) == sorted(wanted)


def test_what_collapsed_diverged_or_has_no_rate(add_run: Add, add_seeds: Add, compare: Any) -> None:
    add_seeds([0.8, 0.7], mode="layernorm", task="rte")
    add_run(None, status="diverged", mode="layernorm", task="rte", learning_rate=1e-2)
    add_run(0.5, mode="full", task="rte", collapsed=True)
    add_run(0.6, mode="full", task="rte", seed=1)
    for mode in ("layernorm", "full"):
        add_run(0.6, mode=mode, task="cola", status="completed" if mode == "full" else "failed")
    table = compare()
    (line,) = lines(table)
    assert line["lost and collapsed"] == "LayerNorms: 1 diverged at other rates; Full-FT: 1 of 2 collapsed"
    assert (line["LayerNorms"], line["Full-FT"]) == ("75.0", "55.0†")
    assert "Left out: CoLA (no rate of LayerNorms is eligible (1 failed))." in table.caption
    assert any(text.startswith("†") for text in table.caption)
    assert (table.numbers[0]["right_collapsed"], table.numbers[0]["left_lost"]) == (1, {"diverged": 1})


def test_runs_that_may_not_be_compared_are_not(add_seeds: Add, runs: Any) -> None:
    add_seeds([0.8, 0.7], mode="layernorm", task="rte")
    add_seeds([0.8, 0.6], mode="full", task="rte", batching="grouped")
    (table,) = compare_settings(runs(), "layernorm,full")
    assert not table.blocks
    assert table.caption[0] == "No task has runs of both that may be compared."
    for told in ("RTE (no Full-FT runs) with batching random", "RTE (no LayerNorms runs) with batching grouped"):
        assert told in table.caption[1]
    add_seeds([0.8, 0.6], mode="full", task="rte")
    add_seeds([0.8, 0.65], mode="layernorm", task="rte", batching="grouped")
    titles = [table.title for table in compare_settings(runs(), "layernorm,full")]
    assert sorted(titles) == [f"LayerNorms against Full-FT ({i} of 2: batching {told})"
                              for i, told in enumerate(("grouped", "random"), 1)]  # fmt: skip


# Half 0 has 40 of the examples, half 1 has 20.
HALF_OF = np.arange(60) % 3 == 0


def shares(right: np.ndarray) -> tuple[float, float]:
    """Accuracy on both halves."""
    return float(right[~HALF_OF].mean()), float(right[HALF_OF].mean())


@pytest.fixture
def crossed(add_predicted: Add) -> dict[tuple[str, float, int, int], np.ndarray]:
    """Runs of two rates, the first better on half 0 and the second on half 1, and what they are right on."""
    generator = np.random.default_rng(5)
    right = {}
    for mode, rate, seed in itertools.product(("layernorm", "full"), (1e-4, 1e-3), (0, 1, 2)):
        chances = np.where((rate == 1e-3) == HALF_OF, 0.9, 0.6)
        epochs = [generator.random(60) < chances for _ in (0, 1)]
        right |= {(mode, rate, seed, at): told.astype(float) for at, told in enumerate(epochs)}
        predictions = [np.where(told, LABELS, 1 - LABELS) for told in epochs]
        spec = {"mode": mode, "task": "rte", "seed": seed, "learning_rate": rate}
        # The papers' epoch is the first, whatever the halves say.
        add_predicted(float(epochs[0].mean()), LABELS, *predictions, half_of=HALF_OF, last=float(epochs[1].mean()),
                      halves=[shares(told) for told in epochs], **spec)  # fmt: skip
    return right


def choose(right: dict[Any, np.ndarray], mode: str, half: int, seeds: tuple[int, ...]) -> np.ndarray:
    """What is right by the rate and the epochs that a half chooses; `(seeds, examples)`."""
    candidates = {}
    for rate in (1e-4, 1e-3):
        tries = [[right[mode, rate, seed, at] for at in (0, 1)] for seed in seeds]
        best = [max(pair, key=lambda told: shares(told)[half]) for pair in tries]
        candidates[rate] = (np.mean([shares(told)[half] for told in best]), np.array(best))
    return max(candidates.values(), key=lambda candidate: candidate[0])[1]


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0,)])
def test_cross_fitted_each_example_is_scored_by_the_choice_of_the_other_half(
    crossed: Any, tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    by_zero, by_one = (
        choose(crossed, "layernorm", half, seeds) - choose(crossed, "full", half, seeds) for half in (0, 1)
    )
    on_zero, on_one = by_one[:, ~HALF_OF], by_zero[:, HALF_OF]
    records, _ = find_records(tmp_path / "runs")
    records = [record for record in records if record.spec.seed in seeds]
    predicted = Predicted(tmp_path / "runs", records)
    (table,) = compare_settings(tabulate(records), "layernorm,full", predicted=predicted)
    paper, numbers = table.numbers
    assert (paper["protocol"], numbers["protocol"]) == ("paper", "crossfit")
    assert [block.title.partition(":")[0] for block in table.blocks] == ["The papers' protocol", "Cross-fitted"]
    assert paper["not_predicted"] == numbers["not_predicted"] == ""
    assert numbers["left_learning_rates"] == numbers["right_learning_rates"] == (1e-4, 1e-3)
    assert lines(table, 1)[0]["rates"] == "1e-4, 1e-3 / 1e-4, 1e-3"
    # Both halves count alike: the variance of a mean of two halves' means.
    assert numbers["difference"] == pytest.approx((on_zero.mean() + on_one.mean()) / 2, abs=1e-12)
    if len(seeds) == 1:
        variance = sum(part.var() / part.size for part in (on_zero, on_one)) / 4 * 60 / 59
        assert numbers["variance"] == pytest.approx(variance, rel=1e-9)
    else:
        by_seed = (on_zero.mean(axis=1) + on_one.mean(axis=1)) / 2
        low, high = stats.t.interval(0.95, 2, by_seed.mean(), stats.sem(by_seed))
        assert numbers["low"] <= low + 1e-12
        assert numbers["high"] >= high - 1e-12


ROWS = [Row("full"), Row("layernorm"), Row("layernorm", layers="5"), Row("layernorm", layers="0,5"),
        Row("outliers", mask_size=4), Row("outliers", mask_size=16),
        Row("outliers", mask_size=16, outlier_pool="gamma"), Row("fisher", mask_fraction=0.2),
        Row("fisher", mask_fraction=0.2, union=True), Row("bitfit", layers="3")]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=name_row)
def test_every_row_has_a_name_that_finds_it(row: Row) -> None:
    assert find_row(name_row(row), ROWS) == row
    assert split_names(f"{name_row(row)},random") == (name_row(row), "random")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("layernorm", Row("layernorm")),
        ("layernorm:layers=0,5", Row("layernorm", layers="0,5")),
        ("bitfit", Row("bitfit", layers="3")),
        ("outliers:outlier_pool=gamma", ROWS[6]),
        ("fisher:mask_fraction=2e-1", ROWS[7]),
        ("outliers:mask_size=16.0", ROWS[5]),
    ],
)
def test_what_a_name_means(name: str, row: Row) -> None:
    assert find_row(name, ROWS) == row


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("outliers", "may be any of outliers:mask_size=4, outliers:mask_size=16:outlier_pool=gamma,"
                     " outliers:mask_size=16; name one"),
        ("outliers:mask_size=5", "no run of 'outliers:mask_size=5'; there is outliers:mask_size=4, "),
        ("attention", "no run of 'attention'; there is full, layernorm, bitfit, outliers, fisher"),
        ("lora", "'lora' is no mode; expected one of full, frozen, "),
        ("outliers:16", "expected outliers:field=value with one of layers, mask_size, "),
        ("outliers:size=16", "Received: 'size=16'"),
    ],
)  # fmt: skip
def test_names_of_none_or_several(name: str, told: str) -> None:
    with pytest.raises(RequestError) as refused:
        find_row(name, ROWS)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "full", "full,", "full,layernorm,bitfit", "full,full"])
def test_two_settings_are_compared(text: str) -> None:
    with pytest.raises(RequestError, match="expected two"):
        split_names(text)


def test_the_command(add_answers: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        add_answers("layernorm", seed, range(3 + seed, 9))
        add_answers("full", seed, range(7, 14 + seed))
    folder = f"--runs={tmp_path / 'runs'}"
    assert report.main([folder, "--compare=layernorm,full", "--format=json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert (table["table"], table["numbers"][0]["examples"]) == ("compare", 60)
    assert report.main([folder, "--compare=layernorm,full", "--where=mode=full"]) == 2
    assert "no run of 'layernorm'; there is full" in capsys.readouterr().err
    for asked in ("--compare=layernorm", "--compare="):
        assert report.main([folder, asked]) == 2
        assert "expected two settings" in capsys.readouterr().err
    for name in FORMATS:
        assert report.main([folder, "--compare=layernorm,full", f"--format={name}"]) == 0
        assert "LayerNorms" in capsys.readouterr().out


def test_python_needs_no_predictions(add_seeds: Add, runs: Callable[[], pd.DataFrame]) -> None:
    add_seeds([0.8, 0.7], mode="layernorm")
    add_seeds([0.8, 0.6], mode="full")
    assert "MRPC (no predictions were read)" in format_tables(compare_settings(runs(), "layernorm,full"), "markdown")
