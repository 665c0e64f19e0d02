import warnings

import numpy as np
import pytest
from scipy import stats
from seqeval.metrics import classification_report, f1_score
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


def test_words_without_a_prediction_are_wrong_tags():
    task = find_task("ptb_pos")
    predictions = np.array([4, 5, -1, -1])
    assert score(task, np.array([4, 6, 4, 5]), predictions).values == {"accuracy": 0.25}
    assert count_predicted(task, predictions)["(no prediction)"] == 2
    assert not collapsed(task, predictions)


def conlleval(truth, predicted):
    """Counts as CoNLL-2000's evaluation script does, word by word: (right, predicted, true) entities.

    An entity is right when it begins at the same word and ends at the same word in both, with one type throughout.
    """

    def ends(before, tag):
        return before[0] != "O" and (tag[0] in "BO" or before[2:] != tag[2:])

    def begins(before, tag):
        return tag[0] != "O" and (tag[0] == "B" or before[0] == "O" or before[2:] != tag[2:])

    right = found = there = 0
    for true_tags, guessed_tags in zip(truth, predicted, strict=True):
        inside = False
        last_true = last_guessed = "O"
        for true, guessed in zip([*true_tags, "O"], [*guessed_tags, "O"], strict=True):
            true_ends, guessed_ends = ends(last_true, true), ends(last_guessed, guessed)
            if inside and (true_ends or guessed_ends):
                right += true_ends and guessed_ends
                inside = False
            true_begins, guessed_begins = begins(last_true, true), begins(last_guessed, guessed)
            if true_begins and guessed_begins and true[2:] == guessed[2:]:
                inside = True
            there += true_begins
            found += guessed_begins
            last_true, last_guessed = true, guessed
    return right, found, there


def score_entities(truth, predicted):
    """`score` of sentences of tag names under CoNLL-2003's classes."""
    number = {name: i for i, name in enumerate(find_task("conll2003_ner").classes)}
    labels, predictions = (np.array([number[tag] for tags in part for tag in tags]) for part in (truth, predicted))
    lengths = np.array([len(tags) for tags in truth])
    return score(find_task("conll2003_ner"), labels, predictions, lengths).values


def test_the_headline_of_entities_is_conllevals_and_the_strict_one_stands_beside_it():
    truth = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-ORG", "I-ORG"], ["O"]]
    # A right person that begins with I-; a right place; an organisation with a wrong border; one of nothing.
    predicted = [["I-PER", "I-PER", "O"], ["B-LOC", "O", "B-ORG", "O"], ["I-MISC"]]
    assert conlleval(truth, predicted) == (2, 4, 3)
    assert score_entities(truth, predicted) == {
        "precision": pytest.approx(2 / 4),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(4 / 7),
        "strict_f1": pytest.approx(2 * 1 / (2 + 3)),  # B- alone begins an entity: one right of two
    }
    only = score_entities([["B-PER", "I-PER"]], [["I-PER", "I-PER"]])
    assert (only["f1"], only["strict_f1"]) == (1.0, 0.0)
    assert find_task("conll2003_ner").headline == ("f1",)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5, 1.0])
def test_entities_agree_with_conlleval_and_seqeval_and_respect_sentences(noise):
    task = find_task("conll2003_ner")
    generator = np.random.default_rng(int(10 * noise))
    lengths = generator.integers(1, 12, 200)
    truth, predicted = [], []
    for length in lengths:
        tags = generator.choice(task.classes, length, p=[0.4, *[0.075] * 8]).tolist()
        guessed = np.where(generator.random(length) < noise, generator.choice(task.classes, length), tags).tolist()
        truth.append(tags)
        predicted.append(guessed)
    right, found, there = conlleval(truth, predicted)
    measured = score_entities(truth, predicted)
    assert measured["precision"] == pytest.approx(right / found)
    assert measured["recall"] == pytest.approx(right / there)
    assert measured["f1"] == pytest.approx(2 * right / (found + there))
    assert measured["f1"] == pytest.approx(f1_score(truth, predicted))
    strict = classification_report(
        truth, predicted, mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )["micro avg"]  # fmt: skip
    assert measured["strict_f1"] == pytest.approx(strict["f1-score"])
    assert (measured["f1"] != measured["strict_f1"]) == (noise > 0)


def test_entities_without_types_are_scored():
    task = custom_task("tokens", ("w",), ("B", "I", "O"))
    assert task.entities
    labels, predictions = np.array([0, 1, 2, 0]), np.array([1, 1, 2, 2])
    assert score(task, labels, predictions, np.array([3, 1])).values == {
        "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "strict_f1": 0.0,
    }  # fmt: skip


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
