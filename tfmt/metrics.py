"""What is measured: whole-split metrics from scikit-learn, SciPy and seqeval.

Every metric is computed over the predictions of a whole split at once, never averaged over batches.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfmt.tasks import Task

# Outputs that differ by less than this (relative to their size, at least 1) are one constant: rounding that depends
# on the padding of a batch must not pass for a correlation.
CONSTANT = 1e-6

# What `count_predicted` calls words that were not predicted for.
NO_PREDICTION = "(no prediction)"

# Stands behind every number that a collapsed run is part of.
COLLAPSED_MARK = "†"


@dataclasses.dataclass(frozen=True)
class Scores:
    """The metrics of one split.

    Attributes:
      values: value of every metric of the task, as fractions; None where a metric is not defined.
      undefined: the reason for every None.
    """

    values: dict[str, float | None]
    undefined: dict[str, str] = dataclasses.field(default_factory=dict)


class _UndefinedError(ValueError):
    """A metric has no value for these labels and predictions."""


def score(
    task: Task, labels: np.ndarray, predictions: np.ndarray, sentence_lengths: np.ndarray | None = None
) -> Scores:
    """Measures the predictions for a whole split.

    Args:
      task: the task.
      labels: integers of shape `(examples,)`, floats for regression; for token tasks `(words,)`, all words of the
        split.
      predictions: the same shape; classes, or the score itself. A word without a prediction of its own
        carries `task.fill_class`.
      sentence_lengths: words of each sentence, integers of shape `(sentences,)`; entities need it.

    Returns:
      A `Scores` with every name of `task.metrics`.

    Raises:
      ValueError: the shapes differ, or the sentences don't add up to the words.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(
            f"expected one prediction a label. Received: labels of shape {labels.shape}, "
            f"predictions of shape {predictions.shape}"
        )
    scores = Scores({}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What is not defined is said in `undefined`, not on the terminal.
        if task.entities:
            measured = _entity_scores(task, labels, predictions, sentence_lengths)
            scores.values.update(zip(task.metrics, measured, strict=True))
            return scores
        for name in task.metrics:
            try:
                scores.values[name] = float(_METRICS[name](labels, predictions))
            except _UndefinedError as reason:
                scores.values[name] = None
                scores.undefined[name] = str(reason)
    return scores


def headline(task: Task, metrics_by_split: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """The score that tables show: `task.headline` on the first validation split, the mean where it names two.

    Args:
      task: the task.
      metrics_by_split: `Scores.values` of each validation split.

    Returns:
      A fraction, or None where a metric it needs is not defined.
    """
    metrics = metrics_by_split[task.validation_splits[0]]
    values = [metrics[name] for name in task.headline]
    defined = [value for value in values if value is not None]
    return sum(defined) / len(values) if len(defined) == len(values) else None


def collapsed(task: Task, predictions: np.ndarray) -> bool:
    """Whether the predictions of a split are all one class, or a constant score.

    A split of one example does not collapse.

    Args:
      task: the task.
      predictions: as in `score`; of words only those that were predicted for, as others carry `task.fill_class`.
    """
    predictions = np.asarray(predictions)
    if predictions.size < 2:
        return False
    if task.kind == "regression":
        return bool(np.isfinite(predictions).all()) and _constant(predictions)
    return np.unique(predictions).size < 2


def count_predicted(task: Task, predictions: np.ndarray) -> dict[str, int]:
    """How often each class was predicted; `NO_PREDICTION` counts words that have none."""
    if task.kind == "regression":
        return {}
    predictions = np.asarray(predictions)
    counts = np.bincount(predictions[predictions >= 0], minlength=len(task.classes))
    counted = {name: int(count) for name, count in zip(task.classes, counts, strict=True)}
    unanswered = int((predictions < 0).sum())
    return counted | ({NO_PREDICTION: unanswered} if unanswered else {})


def _constant(values: np.ndarray) -> bool:
    return float(np.ptp(values)) <= CONSTANT * max(1.0, float(np.abs(values).max()))


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return accuracy_score(labels, predictions)


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    if not (labels == 1).any() and not (predictions == 1).any():
        raise _UndefinedError("neither the labels nor the predictions hold the positive class")
    return f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0)


def _matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    # 0 by convention where only one class is predicted: runs that collapse are shown as 0, as the papers do.
    return matthews_corrcoef(labels, predictions)


def _check_correlation(labels: np.ndarray, predictions: np.ndarray) -> None:
    if labels.size < 2:
        raise _UndefinedError("a correlation needs at least two examples")
    if not np.isfinite(predictions).all():
        raise _UndefinedError("a prediction is not finite")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if _constant(values):
            raise _UndefinedError(f"the {name} are constant")


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import pearsonr

    _check_correlation(labels, predictions)
    return pearsonr(labels.astype(np.float64), predictions.astype(np.float64)).statistic


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import spearmanr

    _check_correlation(labels, predictions)
    return spearmanr(labels, predictions).statistic


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


def _entity_scores(
    task: Task, labels: np.ndarray, predictions: np.ndarray, sentence_lengths: np.ndarray | None
) -> tuple[float, float, float, float]:
    """Precision, recall and F1 over entities as conlleval counts them, and strict F1.

    An entity is right only if both its borders and its type are. conlleval lets any tag that continues nothing begin
    an entity; strictly, in IOB2, only B- does.
    """
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as by_conlleval
    from seqeval.metrics.v1 import precision_recall_fscore_support as strictly
    from seqeval.scheme import IOB2

    if sentence_lengths is None or int(np.sum(sentence_lengths)) != labels.size:
        raise ValueError(f"entities need sentence_lengths that add up to {labels.size} words")
    ends = np.cumsum(sentence_lengths)[:-1]
    names = np.array(task.classes)
    truth, predicted = ([part.tolist() for part in np.split(names[classes], ends)] for classes in (labels, predictions))
    precision, recall, f1, _ = by_conlleval(truth, predicted, average="micro", zero_division=0)
    strict_f1 = strictly(truth, predicted, scheme=IOB2, average="micro", zero_division=0)[2]
    return float(precision), float(recall), float(f1), float(strict_f1)
