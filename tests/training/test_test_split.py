"""A test split with labels is scored once, with the weights that are kept, and decides nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from tfmt import tokenize
from tfmt.data.sources import read_dataset, read_dataset_for
from tfmt.errors import RequestWarning
from tfmt.runs.records import read_runs
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import fine_tune
from tfmt.training.predictions import read_predictions
from tfmt.tuned.load import load_tuned

WORDS = np.array(["good", "bad", "film", "plot", "the", "dull", "bright", "actor"])
OWN = {"task": "custom", "text_columns": ("text",), "label_column": "mood", "task_type": "classification",
       "mode": "layernorm", "epochs": 3, "max_length": 16, "batch_size": 8, "learning_rate": 1e-2}  # fmt: skip


def sentences(count, seed):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(2, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def own(toy_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for number, split in enumerate(("train", "validation", "test")):
        rows = [{"text": text, "mood": "up" if "good" in text else "down"} for text in sentences(40, number)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**OWN, "model": str(toy_bert), "data_dir": str(folder)}


def run(settings, folder):
    request = prepare(RunSpec.make(**settings), folder)
    return request, execute(request, make_bench(request), started=0.0, quiet=True)


@pytest.mark.parametrize(("keep_epoch", "kept"), [("best", 2), ("last", 3)])
def test_scored_with_the_weights_of_the_kept_epoch(own, tmp_path, monkeypatch, keep_epoch, kept):
    scores = iter([0.1, 0.9, 0.5, 0.9])
    with monkeypatch.context() as patched:
        patched.setattr(fine_tune, "headline", lambda *_: next(scores))
        request, record = run(own | {"keep_epoch": keep_epoch}, tmp_path)
    stored = read_predictions(request.folder, sha256=record.predictions_sha256)
    assert list(stored.by_epoch["test"]) == [kept]
    labels = read_dataset_for(request.spec).test.labels
    assert record.result.test == {"accuracy": accuracy_score(labels, stored.by_epoch["test"][kept])}
    assert record.result.score_test == record.result.test["accuracy"]
    assert record.result.examples["test"] == 40
    assert read_runs(tmp_path).score_test.tolist() == [record.result.score_test]
    # The model as tfmt gives it back predicts the same.
    texts = list(read_dataset_for(request.spec).test.texts[0])
    model = load_tuned(request.folder)
    logits = model(tokenize(own["model"], texts, max_length=16)).logits.numpy()
    np.testing.assert_array_equal(logits.argmax(-1), stored.by_epoch["test"][kept])


@pytest.mark.parametrize(("keep_epoch", "kept"), [("best", 1), ("last", 2)])
def test_of_a_run_that_stopped_early(own, tmp_path, keep_epoch, kept):
    # The rate is too low to change a prediction, so the second epoch is no better.
    request, record = run(own | {"keep_epoch": keep_epoch, "learning_rate": 1e-12, "early_stopping": 1}, tmp_path)
    assert (record.result.stopped_early, record.kept_epoch) == (2, kept)
    stored = read_predictions(request.folder, sha256=record.predictions_sha256)
    assert list(stored.by_epoch["test"]) == [kept]
    labels = read_dataset_for(request.spec).test.labels
    assert record.result.test == {"accuracy": accuracy_score(labels, stored.by_epoch["test"][kept])}
    assert (request.folder / "tuned.safetensors").exists()


def test_decides_no_other_number(own, tmp_path):
    with_test, record = run(own, tmp_path / "with")
    bare = tmp_path / "bare"
    bare.mkdir()
    for split in ("train", "validation"):
        name = f"{split}.jsonl"
        (bare / name).write_bytes((Path(own["data_dir"]) / name).read_bytes())
    without, plain = run(own | {"data_dir": str(bare)}, tmp_path / "without")
    assert plain.result.test is None
    assert plain.result.epochs == [epoch.model_copy(update={"seconds": plain.result.epochs[i].seconds})
                                   for i, epoch in enumerate(record.result.epochs)]  # fmt: skip
    assert with_test.run_id != without.run_id
    assert with_test.digests["data"] == without.digests["data"]
    assert record.origin.test_sha256 == with_test.digests["test"]


def test_of_a_resumed_run(own, tmp_path, die_before_write):
    _, expected = run(own, tmp_path / "whole")
    broken = prepare(RunSpec.make(**own), tmp_path / "broken")
    bench = make_bench(broken)
    die_before_write(broken, bench, 4)
    found = execute(broken, bench, started=0.0, quiet=True)
    assert found.cost.resumed == 1
    assert found.predictions_sha256 == expected.predictions_sha256
    assert found.result.test == expected.result.test


def test_without_labels_or_with_unknown_ones_it_is_not_scored(own, tmp_path):
    for name in ("train", "validation"):
        source = Path(own["data_dir"]) / f"{name}.jsonl"
        (tmp_path / source.name).write_bytes(source.read_bytes())
    ask = {"text_columns": ("text",), "label_column": "mood", "task_type": "classification"}
    (tmp_path / "test.jsonl").write_text('{"text": "a"}\n')
    assert read_dataset("custom", str(tmp_path), **ask).test is None
    (tmp_path / "test.jsonl").write_text('{"text": "a", "mood": "sideways"}\n')
    (tmp_path / "test.tsv").write_text("text\tmood\n")
    with pytest.warns(RequestWarning, match="keep one test file; the test split is not scored"):
        assert read_dataset("custom", str(tmp_path), **ask).test is None
    (tmp_path / "test.tsv").unlink()
    with pytest.warns(RequestWarning, match=r"test\.jsonl:1: labels in the test split .*sideways.*; the test split is"):
        assert read_dataset("custom", str(tmp_path), **ask).test is None


def test_entities_of_conll(tmp_path):
    for number, name in enumerate(("train", "valid", "test")):
        lines = ["-DOCSTART- -X- -X- O", ""]
        for text in sentences(24, number):
            lines += [f"{word} NN I-NP {'B-PER' if word == 'actor' else 'O'}" for word in text.split()] + [""]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    dataset = read_dataset("conll2003_ner", str(tmp_path))
    assert set(dataset.splits) == {"train", "validation"}
    assert len(dataset.test) == 24
    (tmp_path / "test.txt").unlink()
    assert read_dataset("conll2003_ner", str(tmp_path)).digests == {"data": dataset.digest}
