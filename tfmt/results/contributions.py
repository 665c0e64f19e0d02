"""What each example adds to a score: numbers whose mean is the score, also where the score is no mean.

The pseudo-values of the delete-one jackknife, moved so that their mean is the score itself: with `s` the score of all N
examples and `s_i` the score without example i,

    contribution of i = s + (N - 1) (mean of all s_j - s_i)

For accuracy this is 1 where the example is right and 0 where it is wrong. For F1, Matthews' and Pearson's or Spearman's
correlation it is, up to terms that vanish with N, the influence of the example on the score, and the variance of the
contributions over N is the jackknife's estimate of the score's variance. An example is what was drawn as one: a text,
or a whole sentence where words are tagged.

References:
  [Tukey, 1958, "Bias and confidence in not quite large samples", The Annals of Mathematical Statistics 29:614], on
  pseudo-values; [Efron & Stein, 1981, "The jackknife estimate of variance", The Annals of Statistics 9:586-596].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfmt.metrics import CONSTANT, score
from tfmt.tasks import Task

_Measure = Callable[[np.ndarray], np.ndarray]  # sums over examples, (..., statistics), to scores, (...)
# Examples whose pairs with all others are held at once.
_CHUNK = 256


def contributions(
    task: Task,
    labels: np.ndarray,
    predictions: np.ndarray,
    sentence_lengths: np.ndarray | None = None,
    metric: str | None = None,
) -> np.ndarray:
    """What each example adds to a score of a split.

    Args:
      task: the task.
      labels: as for `tfmt.metrics.score`: `(examples,)`, for token tasks `(words,)`.
      predictions: the same shape.
      sentence_lengths: words of each sentence, `(sentences,)`; token tasks need it, as their examples are sentences.
      metric: one of `task.metrics`; None for the headline, which may be the mean of two.

    Returns:
      Floats of shape `(examples,)`; their mean is what `tfmt.metrics.score` measures. Without the only example there
      is no score, so that of a single example is its contribution.

    Raises:
      ValueError: the shapes differ, the task has no such metric, or the metric is not defined, be it for all examples
        or without one of them; it says which.

    Example:
      >>> import numpy as np
      >>> from tfmt.tasks import find_task
      >>> labels, predictions = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])
      >>> of_f1 = contributions(find_task("mrpc"), labels, predictions)
      >>> of_f1.round(2), f"{of_f1.mean():.2f}"
      (array([1.15, 1.15, 0.15, 0.75]), '0.80')
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"expected one prediction a label, and a label at least. Received: labels of shape {labels.shape}, "
            f"predictions of shape {predictions.shape}"
        )
    if task.kind == "tokens" and (sentence_lengths is None or int(np.sum(sentence_lengths)) != labels.size):
        raise ValueError(f"the sentences of a token task need sentence_lengths that add up to {labels.size} words")
    if metric is not None and metric not in task.metrics:
        raise ValueError(f"{task.name} has the metrics {', '.join(task.metrics)}. Received: metric={metric!r}")
    names = task.headline if metric is None else (metric,)
    return np.mean([_of_metric(task, name, labels, predictions, sentence_lengths) for name in names], axis=0)


def _of_metric(
    task: Task, name: str, labels: np.ndarray, predictions: np.ndarray, sentence_lengths: np.ndarray | None
) -> np.ndarray:
    if task.kind == "regression":
        return _of_correlation(task, name, labels, predictions, sentence_lengths)
    counts, measure = _count(task, name, labels, predictions, sentence_lengths)
    totals = counts.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not defined becomes NaN, and is told below
        return _pseudo_values(name, float(measure(totals)), measure(totals - counts))


def _pseudo_values(name: str, whole: float, without: np.ndarray) -> np.ndarray:
    """The contributions from the score and the scores without each example."""
    if not np.isfinite(whole):
        raise ValueError(f"{name} is not defined for these labels and predictions")
    if without.size == 1:
        return np.array([whole])
    if not np.isfinite(without).all():
        raise ValueError(f"{name} is not defined without example {int(np.isfinite(without).argmin())}")
    return whole + (without.size - 1) * (without.mean() - without)


# ---- scores that follow from sums over examples --------------------------------------------------------------------


def _count(
    task: Task, name: str, labels: np.ndarray, predictions: np.ndarray, sentence_lengths: np.ndarray | None
) -> tuple[np.ndarray, _Measure]:
    """What is counted of each example, `(examples, statistics)`, and the score as a function of its sums."""
    if task.entities:
        assert sentence_lengths is not None
        return _count_entities(task, name, labels, predictions, sentence_lengths), _ENTITY_MEASURES[name]
    if name == "f1":
        right, found, there = (labels == 1) & (predictions == 1), predictions == 1, labels == 1
        return np.stack([right, found, there], axis=1).astype(float), _f1
    if name == "matthews_correlation":
        classes = task.num_labels
        return np.eye(classes**2)[labels * classes + predictions], _matthews
    right = (labels == predictions).astype(float)
    if task.kind == "tokens":
        assert sentence_lengths is not None
        sentences = np.repeat(np.arange(len(sentence_lengths)), sentence_lengths)
        right = np.bincount(sentences, right, minlength=len(sentence_lengths))
        return np.stack([right, sentence_lengths], axis=1).astype(float), _share
    return np.stack([right, np.ones_like(right)], axis=1), _share


def _share(sums: np.ndarray) -> np.ndarray:
    """Accuracy from (right, all)."""
    return sums[..., 0] / sums[..., 1]


def _f1(sums: np.ndarray) -> np.ndarray:
    """F1 from (right, found, there)."""
    return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2])


def _matthews(sums: np.ndarray) -> np.ndarray:
    """Matthews' correlation from a flattened confusion matrix; 0 where the labels or predictions are of one class."""
    classes = round(sums.shape[-1] ** 0.5)
    matrix = sums.reshape(*sums.shape[:-1], classes, classes)
    there, found = matrix.sum(axis=-1), matrix.sum(axis=-2)
    count = there.sum(axis=-1)
    covariance = count * np.trace(matrix, axis1=-2, axis2=-1) - (there * found).sum(axis=-1)
    variances = (count**2 - (there**2).sum(axis=-1)) * (count**2 - (found**2).sum(axis=-1))
    return np.where(variances > 0, covariance / np.sqrt(variances), 0.0)


# As seqeval has it, a share of nothing is 0.
_ENTITY_MEASURES: dict[str, _Measure] = {
    "precision": lambda sums: np.nan_to_num(sums[..., 0] / sums[..., 1]),
    "recall": lambda sums: np.nan_to_num(sums[..., 0] / sums[..., 2]),
    "f1": lambda sums: np.nan_to_num(_f1(sums)),
    "strict_f1": lambda sums: np.nan_to_num(_f1(sums)),
}


def _count_entities(
    task: Task, name: str, labels: np.ndarray, predictions: np.ndarray, sentence_lengths: np.ndarray
) -> np.ndarray:
    """(right, found, there) entities of each sentence, found as the metric of this name finds them."""
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOB2, Entities

    names = np.array(task.classes)
    ends = np.cumsum(sentence_lengths)[:-1]
    there, found = ([part.tolist() for part in np.split(names[classes], ends)] for classes in (labels, predictions))
    if name == "strict_f1":
        there, found = Entities(there, IOB2).entities, Entities(found, IOB2).entities
    else:
        there, found = ([get_entities(tags) for tags in sentences] for sentences in (there, found))
    sets = [(set(one), set(other)) for one, other in zip(there, found, strict=True)]
    return np.array([(len(one & other), len(other), len(one)) for one, other in sets], float)


# ---- correlations --------------------------------------------------------------------------------------------------


def _of_correlation(
    task: Task, name: str, labels: np.ndarray, predictions: np.ndarray, sentence_lengths: np.ndarray | None
) -> np.ndarray:
    scores = score(task, labels, predictions, sentence_lengths)
    whole = scores.values[name]
    if whole is None:
        raise ValueError(f"{name} is not defined: {scores.undefined[name]}")
    x, y = labels.astype(np.float64), predictions.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        without = (_spearman if name == "spearman" else _pearson)(x, y)
    constant = _constant_without(x) | _constant_without(y)
    return _pseudo_values(name, whole, np.where(constant, np.nan, without))


def _constant_without(values: np.ndarray) -> np.ndarray:
    """Whether the others are one constant, as `tfmt.metrics` has it, without each example."""
    order = np.argsort(values)
    low, high = (np.full(values.size, values[order[end]]) for end in (0, -1))
    low[order[0]], high[order[-1]] = values[order[1]], values[order[-2]]
    return high - low <= CONSTANT * np.maximum(1.0, np.maximum(np.abs(low), np.abs(high)))


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation without each example."""
    x, y = x - x.mean(), y - y.mean()
    # What an example at x adds to the sum of squares around the mean of all, and of the others.
    grown = x.size / (x.size - 1)
    squares_x, squares_y = x @ x - grown * x**2, y @ y - grown * y**2
    return (x @ y - grown * x * y) / np.sqrt(squares_x * squares_y)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation without each example, exactly, in a time that grows with the square of their number.

    Without an example at x_i the rank of one at x_j is less by 1 where x_j > x_i, by 1/2 where they are tied.
    """
    from scipy.stats import rankdata

    others = x.size - 1
    ranks_x, ranks_y = rankdata(x), rankdata(y)
    products = np.empty(x.size)
    for start in range(0, x.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        left_x = ranks_x - (np.sign(ranks_x - ranks_x[chunk, None]) + 1) / 2
        left_y = ranks_y - (np.sign(ranks_y - ranks_y[chunk, None]) + 1) / 2
        own = (ranks_x[chunk] - 0.5) * (ranks_y[chunk] - 0.5)
        products[chunk] = (left_x * left_y).sum(axis=1) - own
    mean = (others + 1) / 2
    return (products - others * mean**2) / np.sqrt(_squares(ranks_x) * _squares(ranks_y))


def _squares(ranks: np.ndarray) -> np.ndarray:
    """The sum of squares of the ranks around their mean, without each example."""
    _, group, sizes = np.unique(ranks, return_inverse=True, return_counts=True)
    tied = (sizes**3 - sizes).sum()
    own = sizes[group].astype(np.float64)
    tied_without = tied - (own**3 - own) + ((own - 1) ** 3 - (own - 1))
    others = ranks.size - 1.0
    return (others**3 - others - tied_without) / 12
