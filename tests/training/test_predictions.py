"""What a run predicted, example by example: every number of its record can be made again from it."""

import hashlib
import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from tfmt.data.examples import Examples
from tfmt.data.sources import read_dataset
from tfmt.runs.records import find_predictions, pack_runs, read_record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import fine_tune, predictions
from tfmt.training.fine_tune import FineTuning
from tfmt.training.predictions import read_predictions


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm", "epochs": 3}


def run(request, bench):
    return execute(request, bench, started=0.0, quiet=True)


@pytest.mark.parametrize("keep", ["tuned", "scores"])
def test_metrics_of_every_epoch_and_half_are_made_again_from_the_file(bench, settings, tmp_path, keep):
    request = prepare(RunSpec.make(**settings | {"keep": keep}), tmp_path)
    record = run(request, bench)
    stored = read_predictions(request.folder, sha256=record.predictions_sha256)
    assert stored.run_id == record.run_id
    texts = request.dataset.splits["validation"].texts
    hashes = [hashlib.sha256("\0".join(("half", *pair)).encode()).hexdigest() for pair in zip(*texts, strict=True)]
    halves = np.array([int(each >= sorted(hashes)[len(hashes) // 2]) for each in hashes])
    assert set(halves) == {0, 1}
    truth = stored.truth["validation"]
    np.testing.assert_array_equal(truth.labels, request.dataset.splits["validation"].labels)
    np.testing.assert_array_equal(truth.halves, halves)
    assert list(stored.by_epoch["validation"]) == [1, 2, 3]
    for epoch in record.result.epochs:
        assert stored.score(request.task, "validation", epoch.epoch).values == epoch.metrics["validation"]
        predicted = stored.by_epoch["validation"][epoch.epoch]
        for half in (0, 1):
            of_half = truth.labels[halves == half], predicted[halves == half]
            assert epoch.halves["validation"][half] == {
                "accuracy": accuracy_score(*of_half), "f1": f1_score(*of_half),
            }  # fmt: skip
    size = (request.folder / "predictions.safetensors").stat().st_size
    assert size < 1000 + 3 * len(halves) + 2 * len(halves)  # a byte for each example and epoch


def test_predictions_of_a_resumed_run_are_the_uninterrupted_runs(bench, settings, tmp_path, die_before_write):
    whole, broken = (prepare(RunSpec.make(**settings), tmp_path / name) for name in ("whole", "broken"))
    expected = run(whole, bench)
    die_before_write(broken, bench, 4)  # two epochs, each kept or saved
    found = run(broken, bench)
    assert found.cost.resumed == 1
    assert found.predictions_sha256 == expected.predictions_sha256
    name = "predictions.safetensors"
    assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert read_record(broken.folder).result.epochs[0].halves == expected.result.epochs[0].halves


def test_a_run_that_diverges_before_its_first_epoch_ends_has_predicted_nothing(bench, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(FineTuning, "_train_epoch", lambda *_: "the loss was nan at step 1 (epoch 1)")
    request = prepare(RunSpec.make(**settings), tmp_path / "runs")
    record = run(request, bench)
    assert record.status == "diverged"
    stored = read_predictions(request.folder, sha256=record.predictions_sha256)
    assert stored.by_epoch == {"validation": {}}
    pack_runs(tmp_path / "runs", [record], tmp_path / "study.jsonl.gz")
    packed, broken = find_predictions(tmp_path / "study.jsonl.gz", [record])
    assert broken == []
    assert packed[record.run_id].by_epoch == stored.by_epoch


def test_of_a_large_split_the_kept_and_the_last_epoch_are_kept(bench, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "EVERY_EPOCH", 10)
    scores = iter([0.1, 0.9, 0.3, 0.2])
    monkeypatch.setattr(fine_tune, "headline", lambda *_: next(scores))
    request = prepare(RunSpec.make(**settings | {"epochs": 4}), tmp_path)
    record = run(request, bench)
    stored = read_predictions(request.folder)
    assert list(stored.by_epoch["validation"]) == [2, 4]
    for epoch in (2, 4):
        again = stored.score(request.task, "validation", epoch).values
        assert again == record.result.epochs[epoch - 1].metrics["validation"]


def test_sentences_of_tokens_stay_whole_in_their_half(toy_bert, tmp_path):
    rows = [
        {"words": ["good", f"film{i}", "the"][: 2 + i % 2], "tags": ["X", "Y", "Z"][: 2 + i % 2]} for i in range(60)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = RunSpec.make(
        model=str(toy_bert), task="custom", data_dir=str(tmp_path / "data.jsonl"), mode="frozen", epochs=1,
        text_columns=("words",), label_column="tags", task_type="tokens", validation_fraction=0.3, max_length=16,
        keep="scores",
    )  # fmt: skip
    request = prepare(spec, tmp_path / "runs")
    record = run(request, make_bench(request))
    stored = read_predictions(request.folder, sha256=record.predictions_sha256)
    truth, predicted = stored.truth["validation"], stored.by_epoch["validation"][1]
    assert stored.score(request.task, "validation", 1).values == record.result.epochs[0].metrics["validation"]
    right = [0, 0]
    words = [0, 0]
    start = 0
    for half, length in zip(truth.halves, truth.sentence_lengths, strict=True):
        span = slice(start, start + length)
        right[half] += int((truth.labels[span] == predicted[span]).sum())
        words[half] += int(length)
        start += length
    told = record.result.epochs[0].halves["validation"]
    for half in (0, 1):
        assert told[half]["accuracy"] == (pytest.approx(right[half] / words[half]) if words[half] else None)


def test_halves_of_the_packaged_text_are_halves():
    """Its validation split was itself made by a hash of the text."""
    halves = read_dataset("rotten_tomatoes").splits["validation"].halves
    assert np.bincount(halves).tolist() == [508, 509]


def test_half_depends_on_the_texts_alone_and_equal_ones_are_together():
    texts = [f"text {number // 2}" for number in range(40)]
    whole = Examples((texts,), np.arange(40) % 2)
    np.testing.assert_array_equal(whole.halves[::2], whole.halves[1::2])
    assert np.bincount(whole.halves).tolist() == [20, 20]
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_array_equal(whole.take(order).halves, whole.halves[order])
    words = Examples((" ".join(texts).split(),), None, np.full(40, 2))
    assert np.bincount(words.halves).tolist() == [20, 20]
