"""How sure the mean difference of two settings is, over other seeds and other examples together.

A score is the mean of its contributions (`tfmt.results.contributions`), so a difference of two settings is the mean of
a matrix of S seeds and N examples, `D[s, i]`: what the first setting's run with seed s gets from example i, less what
the second's gets. Seeds and examples are both samples, of the runs and of the texts that might have been, and each run
sees each text: they are crossed. With the mean squares of that layout,

    MS_seed    = N / (S-1) sum_s (D[s,.] - D[.,.])^2            S-1 degrees of freedom
    MS_example = S / (N-1) sum_i (D[.,i] - D[.,.])^2            N-1
    MS_rest    = 1 / ((S-1)(N-1)) sum_si (D[s,i] - D[s,.] - D[.,i] + D[.,.])^2
    variance of the mean = (MS_seed + MS_example - MS_rest) / (S N)

is an unbiased estimate whatever the distribution: what seeds and examples do together is in all three, and counts once.
The interval is Student's t with Satterthwaite's degrees of freedom,

    (MS_seed + MS_example - MS_rest)^2 / (MS_seed^2 / (S-1) + MS_example^2 / (N-1) + MS_rest^2 / ((S-1)(N-1)))

and never narrower than the t interval over seeds alone (variance MS_seed / (S N), S-1 degrees of freedom) or over
examples alone (MS_example / (S N), N-1). Where the seeds happen to lie close together, Satterthwaite's degrees of
freedom jump up, and his interval may be the narrower one, although it is to cover more: where nine tenths of the
variance are the seeds', it covers 92 % instead of 95 % with three of them, and 87 % with two. Where the component of
the seeds or of the examples is estimated as 0 or less, the wider of the intervals over one of them alone is left.

Settings that share no seeds have a matrix each, on the same examples. The term of the seeds is the sum of both sides'
(their interval alone is Welch's), that of the examples is of the difference of the two sides' means over seeds.

It is not to be trusted with two seeds, beyond the order of magnitude; where fewer than about ten examples tell the
settings apart; of metrics that are no means, with few examples or where a run nearly collapsed; where examples come in
clusters (several questions on one text) and so are fewer than they seem; and where a setting, its learning rate or its
epoch was chosen on the same examples, of which it does not know.

References:
  [Satterthwaite, 1946, "An approximate distribution of estimates of variance components", Biometrics Bulletin
  2:110-114]; [Sellam et al., 2022, "The MultiBERTs: BERT reproductions for robustness analysis"]
  (https://arxiv.org/abs/2106.16163), whose multi-bootstrap asks the same question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfmt.errors import RequestError
from tfmt.results.contributions import contributions
from tfmt.tasks import Task

CONFIDENCE = 0.95

# Values of `Interval.method`.
BOTH = "t over seeds and examples"
SEEDS = "t over seeds"
EXAMPLES = "t over examples"
EXAMPLES_OF_ONE_RUN = "t over examples of one run a setting; says nothing of other seeds"
SEEDS_ON_ONE_EXAMPLE = "t over seeds on one example; says nothing of other examples"
# Of scores without what the runs predicted.
SEEDS_ALONE = "t over seeds alone: no predictions"
NONE_ONE_NUMBER = "none: one run on one example"
NONE_OF_A_TASK = "none: a task has none"
NONE_NOTHING_VARIES = "none: the means of all seeds are equal, and so are those of all examples"

# Spread below which contributions are one number, relative to their size: rounding of the jackknife.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie for other seeds and other examples, in the unit of the values.

    Attributes:
      mean: the mean over seeds and examples.
      low: lower end; None where there is no interval, of which `method` says why.
      high: upper end.
      df: degrees of freedom of the t that made it.
      variance: the variance of the mean that made it, to which `df` belongs.
      seed_variance: the part of the mean's variance that more seeds would lessen; at least 0, None where there are no
        two seeds a side.
      example_variance: the part that more examples would lessen; at least 0, None for a single example. That of a
        single run holds what seeds and examples do together, too, which otherwise is in neither part.
      method: which t interval it is, the widest of those there are: `BOTH`, `SEEDS` or `EXAMPLES`, where one alone is
        no narrower; `EXAMPLES_OF_ONE_RUN` or `SEEDS_ON_ONE_EXAMPLE`, where there is no other; or why there is none.
    """

    mean: float
    low: float | None
    high: float | None
    df: float | None
    variance: float | None
    seed_variance: float | None
    example_variance: float | None
    method: str


@dataclass(frozen=True)
class _Term:
    """A part of the variance of the mean, as estimated, and the degrees of freedom of that estimate."""

    variance: float
    df: float


def mean_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of a matrix: of paired differences, or of one setting's contributions.

    Args:
      values: floats of shape `(seeds, examples)`.
      confidence: the probability with which such intervals hold the true mean, below 1.

    Returns:
      The interval. Of one row it is over examples alone, of one column over seeds alone. There is none where the means
      of all seeds are equal, and those of all examples: as of two settings whose runs always predict the same. That
      nothing was seen to vary on these examples does not show that nothing does, so an interval of no width would
      promise too much.

    Raises:
      ValueError: another shape, nothing in it, or values that are not finite.

    Example:
      >>> import numpy as np
      >>> right = np.array([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
      >>> interval = mean_interval(right)
      >>> f"{interval.mean:.2f}, {interval.low:.2f} to {interval.high:.2f}, {interval.method}"
      '0.46, -0.01 to 0.93, t over seeds and examples'
    """
    return _interval([_matrix(values)], confidence)


def difference_interval(left: np.ndarray, right: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The interval of the difference of two means, of settings whose runs share examples but no seeds.

    Args:
      left: contributions of the first setting's runs, `(seeds, examples)`.
      right: those of the second's, `(other seeds, examples)`.
      confidence: as in `mean_interval`.

    Returns:
      The interval of the mean of `left` minus that of `right`. With one run on a side it is over examples alone.

    Raises:
      ValueError: as in `mean_interval`, or the examples are not as many.
    """
    left, right = _matrix(left), _matrix(right)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"expected the same examples. Received: {left.shape[1]} and {right.shape[1]}")
    return _interval([left, -right], confidence)


def compare(
    task: Task,
    labels: np.ndarray,
    predictions: Mapping[tuple[str, int], np.ndarray],
    left: str,
    right: str,
    *,
    sentence_lengths: np.ndarray | None = None,
    metric: str | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The interval of the difference of two settings' mean scores on one split.

    Args:
      task: the task.
      labels: as for `tfmt.metrics.score`: `(examples,)`, for token tasks `(words,)`.
      predictions: (setting, seed) to predictions of the same shape. Other settings may be among them.
      left: the first setting.
      right: the second, which is subtracted.
      sentence_lengths: words of each sentence, `(sentences,)`; token tasks need it.
      metric: one of `task.metrics`; None for the headline.
      confidence: as in `mean_interval`.

    Returns:
      The interval, as a fraction. Where the settings share seeds, it is of the shared ones, run against run; otherwise
      of all.

    Raises:
      RequestError: a setting without predictions, or predictions of which the metric cannot be computed; it names the
        run.

    Example:
      >>> import numpy as np
      >>> from tfmt.tasks import find_task
      >>> labels = np.array([1, 0, 1, 1, 0, 1])
      >>> runs = {("full", 0): labels, ("full", 1): np.array([1, 0, 1, 1, 0, 0]),
      ...         ("frozen", 0): np.ones(6, int), ("frozen", 1): np.array([1, 0, 0, 1, 1, 1])}
      >>> interval = compare(find_task("sst2"), labels, runs, "full", "frozen")
      >>> f"{interval.mean:.2f}, {interval.low:.2f} to {interval.high:.2f}"
      '0.25, -0.81 to 1.31'
    """
    seeds = {name: sorted(seed for setting, seed in predictions if setting == name) for name in (left, right)}
    for name in (left, right):
        if not seeds[name]:
            settings = ", ".join(sorted({setting for setting, _ in predictions})) or "none"
            raise RequestError(f"no predictions of {name}; there are those of {settings}")

    def read(setting: str, chosen: Sequence[int]) -> np.ndarray:
        rows = []
        for seed in chosen:
            try:
                rows.append(contributions(task, labels, predictions[setting, seed], sentence_lengths, metric))
            except ValueError as error:
                raise RequestError(f"{setting}, seed {seed}: {error}") from None
        return np.stack(rows)

    shared = [seed for seed in seeds[left] if seed in seeds[right]]
    if shared:
        return mean_interval(read(left, shared) - read(right, shared), confidence)
    return difference_interval(read(left, seeds[left]), read(right, seeds[right]), confidence)


def mean_over_tasks(intervals: Sequence[Interval], confidence: float = CONFIDENCE) -> Interval:
    """The interval of the mean of independent means, as of one difference on several tasks.

    The tasks are those that were chosen, not a sample of tasks: what varies is what seeds and examples do on each. So
    the variance of the mean is the sum of the tasks' variances over the square of their number, and its degrees of
    freedom are Satterthwaite's, `(sum of variances)^2 / sum of (variance^2 / df)`. Each task's variance is the one
    that made its interval, the widest.

    Args:
      intervals: one a task, all of this confidence.
      confidence: as in `mean_interval`.

    Returns:
      The interval; `method` has the tasks' methods. There is none where a task has none.

    Raises:
      ValueError: no interval.
    """
    if not intervals:
        raise ValueError("expected an interval at least. Received: none")
    terms = [_Term(each.variance, each.df) for each in intervals if each.variance is not None and each.df is not None]
    mean = sum(each.mean for each in intervals) / len(intervals)
    by_seed = _variance_of_mean(each.seed_variance for each in intervals)
    by_example = _variance_of_mean(each.example_variance for each in intervals)
    if len(terms) < len(intervals):
        return Interval(mean, None, None, None, None, by_seed, by_example, NONE_OF_A_TASK)
    total = _join(terms, [])
    term = _Term(total.variance / len(terms) ** 2, total.df)
    reach = _reach(term, confidence)
    methods = "; ".join(dict.fromkeys(each.method for each in intervals))
    return Interval(mean, mean - reach, mean + reach, term.df, term.variance, by_seed, by_example, methods)


def _variance_of_mean(variances: Iterable[float | None]) -> float | None:
    """The variance of the mean of independent numbers; None where one of them is not known."""
    variances = list(variances)
    known = [variance for variance in variances if variance is not None]
    return sum(known) / len(known) ** 2 if len(known) == len(variances) else None


def _matrix(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        finite = "" if np.isfinite(values).all() else ", not all of them finite"
        raise ValueError(f"expected finite values of shape (seeds, examples). Received: shape {values.shape}{finite}")
    return values


def _interval(sides: Sequence[np.ndarray], confidence: float) -> Interval:
    """The interval of the sum of the sides' means; each side has rows of its own, columns are the same examples."""
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1. Received: {confidence}")
    examples = sides[0].shape[1]
    of_examples = sum(side.mean(axis=0) for side in sides)
    mean = float(of_examples.mean())
    several = all(len(side) > 1 for side in sides)
    by_seed = [_Term(_variance(side.mean(axis=1)), len(side) - 1) for side in sides] if several else []
    by_example = [_Term(_variance(of_examples), examples - 1)] if examples > 1 else []
    rest = [_rest(side) for side in sides] if several and examples > 1 else []
    least = (_ROUNDING * max(1.0, *(float(np.abs(side).max()) for side in sides))) ** 2
    seed_variance = _less(by_seed, rest, least) if by_seed else None
    example_variance = _less(by_example, rest, least) if by_example else None
    if all(term.variance <= least for term in (*by_seed, *by_example)):
        method = NONE_NOTHING_VARIES if by_seed or by_example else NONE_ONE_NUMBER
        return Interval(mean, None, None, None, None, seed_variance, example_variance, method)
    candidates = []
    if by_example:
        candidates.append((EXAMPLES if several else EXAMPLES_OF_ONE_RUN, _join(by_example, [])))
    if by_seed:
        candidates.append((SEEDS if examples > 1 else SEEDS_ON_ONE_EXAMPLE, _join(by_seed, [])))
    if seed_variance and example_variance:
        candidates.append((BOTH, _join([*by_seed, *by_example], rest)))
    method, term = max(candidates, key=lambda each: (_reach(each[1], confidence), each[1].df, each[0]))
    reach = _reach(term, confidence)
    return Interval(mean, mean - reach, mean + reach, term.df, term.variance, seed_variance, example_variance, method)


def _less(terms: Sequence[_Term], rest: Sequence[_Term], least: float) -> float:
    """A sum of variances without what belongs to seeds and examples together; 0 where no more is left than rounding."""
    left = sum(term.variance for term in terms) - sum(term.variance for term in rest)
    return left if left > least else 0.0


def _variance(means: np.ndarray) -> float:
    """The variance of the mean of these."""
    return float(means.var(ddof=1)) / means.size


def _rest(values: np.ndarray) -> _Term:
    """What seeds and examples do together, in the variance of the mean."""
    seeds, examples = values.shape
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    df = (seeds - 1) * (examples - 1)
    return _Term(float((rest**2).sum()) / df / values.size, df)


def _join(added: Sequence[_Term], taken: Sequence[_Term]) -> _Term:
    """Satterthwaite's approximation of a sum of terms, some of them subtracted."""
    variance = sum(term.variance for term in added) - sum(term.variance for term in taken)
    spread = sum(term.variance**2 / term.df for term in (*added, *taken))
    return _Term(max(variance, 0.0), variance**2 / spread if spread > 0 else math.inf)


def _reach(term: _Term, confidence: float) -> float:
    """Half the width of Student's t interval."""
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, without that package's long import

    return float(stdtrit(term.df, (1 + confidence) / 2)) * math.sqrt(term.variance)
