import warnings

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from sklearn import metrics

from tfmt.metrics import collapsed, count_predicted, headline, score
from tfmt.tasks import custom_task, find_task

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def classes(task, n=200):
    return RNG.integers(0, find_task(task).num_labels, n).astype(np.int32)


def test_cola_is_matthews_correlation_also_by_hand():
    task = find_task("cola")
    labels, predictions = np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 1])
    # 2 true positives, 1 false negative, 1 true negative, 1 false positive.
    by_hand = (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5
    assert score(task, labels, predictions).values == {"matthews_correlation": pytest.approx(by_hand)}
    labels, predictions = classes("cola"), classes("cola")
    expected = metrics.matthews_corrcoef(labels, predictions)
    assert score(task, labels, predictions).values["matthews_correlation"] == pytest.approx(expected)


def test_cola_that_collapses_is_zero():
    task = find_task("cola")
    labels = np.array([0, 1, 1])
    assert score(task, labels, np.ones(3, int)).values == {"matthews_correlation": 0.0}
    assert collapsed(task, np.ones(3, int))
    assert not collapsed(task, labels)


@pytest.mark.parametrize("name", ["mrpc", "qqp"])
def test_paraphrases_have_f1_and_accuracy(name):
    task = find_task(name)
    labels, predictions = classes(name), classes(name)
    measured = score(task, labels, predictions).values
    assert measured == {
        "f1": pytest.approx(metrics.f1_score(labels, predictions)),
        "accuracy": pytest.approx((labels == predictions).mean()),
    }
    assert headline(task, {"validation": measured}) == measured["f1"]


def test_f1_of_nothing_positive_is_zero_or_undefined():
    task = find_task("mrpc")
    assert score(task, np.array([1, 0]), np.array([0, 0])).values == {"f1": 0.0, "accuracy": 0.5}
    nothing = score(task, np.array([0, 0]), np.array([0, 0]))
    assert nothing.values == {"f1": None, "accuracy": 1.0}
    assert "positive" in nothing.undefined["f1"]
    assert headline(task, {"validation": nothing.values}) is None


def test_stsb_is_pearson_and_spearman():
    task = find_task("stsb")
    labels = RNG.uniform(0, 5, 100).astype(np.float32)
    predictions = (labels + RNG.normal(size=100)).astype(np.float32)
    measured = score(task, labels, predictions).values
    assert measured["pearson"] == pytest.approx(stats.pearsonr(labels, predictions)[0])
    assert measured["spearman"] == pytest.approx(stats.spearmanr(labels, predictions)[0])
    assert headline(task, {"validation": measured}) == pytest.approx(sum(measured.values()) / 2)


def test_correlations_of_a_constant_are_none_with_a_reason():
    task = find_task("stsb")
    labels = np.array([0, 1, 2, 3], np.float32)
    almost = np.array([2.5, 2.5, 2.5 + 2e-7, 2.5], np.float32)
    for predictions in (np.full(4, 2.5, np.float32), almost):
        scores = score(task, labels, predictions)
        assert scores.values == {"pearson": None, "spearman": None}
        assert scores.undefined["pearson"] == "the predictions are constant"
        assert collapsed(task, predictions)
        assert headline(task, {"validation": scores.values}) is None
    assert score(task, labels[:1], labels[:1]).undefined["spearman"] == "a correlation needs at least two examples"
    assert score(task, labels * 0, labels).undefined["pearson"] == "the labels are constant"
    broken = np.array([0, np.nan, 1, 2], np.float32)
    assert score(task, labels, broken).undefined["pearson"] == "a prediction is not finite"
    assert not collapsed(task, broken)


@pytest.mark.parametrize("name", ["sst2", "mnli", "qnli", "rte", "rotten_tomatoes"])
def test_the_others_have_accuracy(name):
    labels, predictions = classes(name), classes(name)
    assert score(find_task(name), labels, predictions).values == {
        "accuracy": pytest.approx(metrics.accuracy_score(labels, predictions))
    }


def test_mnli_takes_its_headline_from_matched():
    splits = {"validation_matched": {"accuracy": 0.8}, "validation_mismatched": {"accuracy": 0.7}}
    assert headline(find_task("mnli"), splits) == 0.8


def test_words_that_were_cut_off_are_wrong_tags():
    task = find_task("ptb_pos")
    predictions = np.array([4, 5, -1, -1])
    assert score(task, np.array([4, 6, 4, 5]), predictions).values == {"accuracy": 0.25}
    assert count_predicted(task, predictions)["(cut off)"] == 2
    assert not collapsed(task, predictions)
    assert collapsed(task, np.array([4, 4, -1]))


def test_entities_are_strict():
    task = find_task("conll2003_ner")
    number = {name: i for i, name in enumerate(task.classes)}
    truth = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-ORG", "I-ORG"], ["O"]]
    # Right person; right place; an organisation with a wrong border; one that does not begin with B- at all.
    predicted = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-ORG", "O"], ["I-MISC"]]
    labels = np.array([number[tag] for sentence in truth for tag in sentence])
    predictions = np.array([number[tag] for sentence in predicted for tag in sentence])
    measured = score(task, labels, predictions, np.array([3, 4, 1])).values
    assert measured == {name: pytest.approx(2 / 3) for name in ("precision", "recall", "f1")}


def test_entities_agree_with_seqeval_and_respect_sentences():
    task = find_task("conll2003_ner")
    lengths = RNG.integers(1, 12, 60)
    labels = np.zeros(lengths.sum(), np.int64)
    labels[RNG.random(len(labels)) < 0.3] = 1  # Single words, so that any sequence is valid IOB2.
    labels[RNG.random(len(labels)) < 0.2] = 5
    predictions = RNG.integers(0, 9, len(labels))
    names = np.array(task.classes)
    ends = np.cumsum(lengths)[:-1]
    expected = classification_report(
        [part.tolist() for part in np.split(names[labels], ends)],
        [part.tolist() for part in np.split(names[predictions], ends)],
        mode="strict",
        scheme=IOB2,
        output_dict=True,
        zero_division=0,
    )["micro avg"]
    measured = score(task, labels, predictions, lengths).values
    assert measured["f1"] == pytest.approx(expected["f1-score"])
    assert measured["precision"] == pytest.approx(expected["precision"])
    assert measured["recall"] == pytest.approx(expected["recall"])


def test_no_entities_predicted_is_zero_and_quiet(capfd):
    task = find_task("conll2003_ner")
    assert score(task, np.array([1, 0]), np.array([0, 0]), np.array([2])).values["f1"] == 0.0
    assert capfd.readouterr() == ("", "")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="one prediction a label"):
        score(find_task("rte"), np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="sentence_lengths"):
        score(find_task("conll2003_ner"), np.zeros(3, int), np.zeros(3, int), np.array([2]))


def test_predictions_are_counted_by_name():
    assert count_predicted(find_task("rte"), np.array([1, 1, 0])) == {"entailment": 1, "not_entailment": 2}
    assert count_predicted(custom_task("regression", ("a",), ()), np.array([0.5])) == {}
