"""Contributions against scores measured anew without each example."""

import numpy as np
import pytest

from tfmt.metrics import headline, score
from tfmt.results.contributions import contributions
from tfmt.tasks import custom_task, find_task

RNG = np.random.default_rng(3)


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state


def left_out_by_hand(task, metric, labels, predictions, lengths=None):
    """Tukey's pseudo-values, moved to the score, each from `score` of the other examples."""
    sentences = np.arange(labels.size) if lengths is None else np.repeat(np.arange(len(lengths)), lengths)
    count = sentences[-1] + 1

    def measure(kept):
        words = np.isin(sentences, kept)
        parts = None if lengths is None else np.asarray(lengths)[kept]
        return score(task, labels[words], predictions[words], parts).values[metric]

    whole = measure(np.arange(count))
    pseudo = np.array([count * whole - (count - 1) * measure(np.delete(np.arange(count), i)) for i in range(count)])
    return pseudo - pseudo.mean() + whole


def mostly_right(task, labels, share=0.7):
    others = RNG.integers(0, task.num_labels, labels.size)
    return np.where(RNG.random(labels.size) < share, labels, others)


CASES = [("cola", "matthews_correlation"), ("mrpc", "f1"), ("mrpc", "accuracy"), ("mnli", "accuracy")]


@pytest.mark.parametrize(("name", "metric"), CASES)
def test_classes(name, metric):
    task = find_task(name)
    labels = RNG.integers(0, task.num_labels, 60)
    predictions = mostly_right(task, labels)
    found = contributions(task, labels, predictions, metric=metric)
    assert found == pytest.approx(left_out_by_hand(task, metric, labels, predictions), abs=1e-11)
    assert found.mean() == pytest.approx(score(task, labels, predictions).values[metric], abs=1e-12)
    if metric == "accuracy":
        assert found == pytest.approx((labels == predictions).astype(float), abs=1e-12)


def test_matthews_where_leaving_one_out_leaves_one_class():
    task = find_task("cola")
    labels, predictions = np.array([1, 0, 1, 1, 0]), np.array([1, 0, 1, 1, 1])  # one 0 is predicted
    by_hand = left_out_by_hand(task, "matthews_correlation", labels, predictions)
    assert contributions(task, labels, predictions) == pytest.approx(by_hand)
    assert contributions(task, labels, np.ones(5, int)) == pytest.approx(np.zeros(5))


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@pytest.mark.parametrize("ties", [False, True])
def test_correlations(metric, ties):
    task = find_task("stsb")
    labels = RNG.uniform(0, 5, 70)
    predictions = labels + RNG.normal(0, 1, 70)
    if ties:
        labels, predictions = labels.round(), predictions.round()
    labels, predictions = labels.astype(np.float32), predictions.astype(np.float32)
    found = contributions(task, labels, predictions, metric=metric)
    assert found == pytest.approx(left_out_by_hand(task, metric, labels, predictions), abs=1e-6)


def test_a_chunk_of_examples_changes_no_rank(monkeypatch):
    labels, predictions = RNG.uniform(0, 5, (2, 50))
    whole = contributions(find_task("stsb"), labels, predictions, metric="spearman")
    monkeypatch.setattr("tfmt.results.contributions._CHUNK", 7)
    assert (contributions(find_task("stsb"), labels, predictions, metric="spearman") == whole).all()


def test_the_headline_may_be_the_mean_of_two():
    task = find_task("stsb")
    labels = RNG.uniform(0, 5, 40)
    predictions = labels + RNG.normal(0, 1, 40)
    both = [contributions(task, labels, predictions, metric=metric) for metric in ("pearson", "spearman")]
    found = contributions(task, labels, predictions)
    assert found == pytest.approx((both[0] + both[1]) / 2)
    measured = headline(task, {"validation": score(task, labels, predictions).values})
    assert found.mean() == pytest.approx(measured)


@pytest.mark.parametrize("metric", ["precision", "recall", "f1", "strict_f1"])
@pytest.mark.parametrize("classes", [find_task("conll2003_ner").classes, ("B", "I", "O")], ids=["typed", "untyped"])
def test_entities_are_left_out_by_sentences(metric, classes):
    task = custom_task("tokens", ("words",), classes)
    lengths = RNG.integers(1, 9, 25)
    labels = RNG.integers(0, task.num_labels, lengths.sum())
    predictions = mostly_right(task, labels, 0.8)
    found = contributions(task, labels, predictions, lengths, metric)
    assert found == pytest.approx(left_out_by_hand(task, metric, labels, predictions, lengths), abs=1e-10)


def test_words_are_left_out_by_sentences():
    task = find_task("ptb_pos")
    lengths = np.array([3, 0, 1, 7, 2, 5])
    labels = RNG.integers(0, task.num_labels, lengths.sum())
    predictions = np.where(RNG.random(labels.size) < 0.7, labels, task.fill_class)
    found = contributions(task, labels, predictions, lengths)
    assert found == pytest.approx(left_out_by_hand(task, "accuracy", labels, predictions, lengths))


def test_entities_that_nobody_sees_are_zero():
    task = find_task("conll2003_ner")
    nothing = np.zeros(5, int)
    assert contributions(task, nothing, nothing, np.array([2, 3])).tolist() == [0, 0]


def test_one_example_is_the_score():
    assert contributions(find_task("sst2"), np.array([1]), np.array([1])).tolist() == [1.0]
    assert contributions(find_task("ptb_pos"), np.array([1, 2]), np.array([1, 3]), np.array([2])).tolist() == [0.5]


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "message"),
    [
        ("mrpc", [0, 0], [0, 0], "f1 is not defined for these"),
        ("mrpc", [0, 1, 0], [0, 1, 0], "f1 is not defined without example 1"),
        ("stsb", [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], "pearson is not defined: the predictions are constant"),
        ("stsb", [1.0, 2.0, 3.0], [2.0, 2.0, 3.0], "pearson is not defined without example 2"),
        ("stsb", [1.0, 2.0], [1.0, 2.0], "pearson is not defined without example 0"),
        ("mrpc", [0, 1], [0, 1, 0], "one prediction a label"),
        ("ptb_pos", [0, 1], [0, 1], "sentence_lengths that add up to 2 words"),
    ],
)
def test_what_is_not_defined_is_refused(name, labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        contributions(find_task(name), np.array(labels), np.array(predictions))


def test_another_metric_is_refused():
    with pytest.raises(ValueError, match="sst2 has the metrics accuracy"):
        contributions(find_task("sst2"), np.array([0, 1]), np.array([0, 1]), metric="f1")
