"""How often 95 % intervals hold the true difference of two settings, in simulated studies.

    python tests/results/coverage.py [--repetitions 2000]

prints the table of docs/intervals.md. Each study has two settings with the same seeds on the same examples. Whether a
run is right on an example is drawn from a latent normal: the setting's mean by the example's class, what the run's seed
adds to it, how hard the example is for all and for this setting, and what is of this run and example alone. What a seed
adds is scaled so that the true differences of seeds have the standard deviation that the table names.

The methods compared:

- `seeds`: Student's t over the differences of the seeds' scores;
- `bootstrap`: percentiles of 1,000 resamples of seeds and of examples, both with replacement (the multi-bootstrap);
- `components`: t with Satterthwaite's degrees of freedom over seeds and examples;
- `tfmt`: that one, never narrower than over seeds or over examples alone.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from scipy.special import ndtr

from tfmt.results.contributions import contributions
from tfmt.results.intervals import difference_interval, mean_interval
from tfmt.tasks import find_task

TASKS = {"accuracy": "sst2", "f1": "mrpc", "matthews_correlation": "cola", "pearson": "stsb"}
# Means by class 0 and 1, left and right; deviations of what is hard for all, for one setting, for one run.
MEANS = np.array([[1.3, 2.2], [1.1, 2.0]])
HARD, SETTING, RUN = 1.2, 1.0, 0.8
TOTAL = np.sqrt(HARD**2 + SETTING**2 + RUN**2)
POSITIVE = 0.6
# Of regression: noise of a prediction whose seed adds nothing, left and right.
NOISE = np.array([0.45, 0.5])

METHODS = ("seeds", "bootstrap", "components", "tfmt")
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(61)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Study:
    """One kind of study: `points` is the standard deviation of the seeds' true differences, in percent."""

    seeds: int
    examples: int
    points: float
    metric: str = "accuracy"
    paired: bool = True

    @property
    def title(self) -> str:
        """As a table names it."""
        apart = "" if self.paired else ", seeds not shared"
        return f"{self.seeds} seeds x {self.examples:,} examples, {self.points:g} points{apart}"


def measure(metric: str, sums: np.ndarray) -> np.ndarray:
    """The score from sums over examples, (..., statistics)."""
    if metric == "pearson":
        count, x, y, xx, xy, yy = np.moveaxis(sums, -1, 0)
        return (count * xy - x * y) / np.sqrt((count * xx - x**2) * (count * yy - y**2))
    tn, fp, fn, tp = np.moveaxis(sums, -1, 0)
    if metric == "f1":
        return 2 * tp / (2 * tp + fp + fn)
    if metric == "accuracy":
        return (tp + tn) / (tp + tn + fp + fn)
    return (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def statistics(metric: str, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """What `measure` sums, of each example: (..., examples, statistics)."""
    x, y = np.broadcast_arrays(labels, predictions)
    if metric == "pearson":
        return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    return np.eye(4)[2 * x + y]


def true_scores(metric: str, side: int, added: np.ndarray) -> np.ndarray:
    """The score on endlessly many examples of runs whose seeds add so much."""
    if metric == "pearson":
        return 1 / np.sqrt(1 + (NOISE[side] * np.exp(added) * TOTAL) ** 2)
    wrong_0, right_1 = ndtr(-(MEANS[side, 0] + added) / TOTAL), ndtr((MEANS[side, 1] + added) / TOTAL)
    cells = [
        (1 - POSITIVE) * (1 - wrong_0),
        (1 - POSITIVE) * wrong_0,
        POSITIVE * (1 - right_1),
        POSITIVE * right_1,
    ]
    return measure(metric, np.stack(cells, axis=-1))


def calibrate(study: Study) -> tuple[float, float]:
    """The deviation of what seeds add, and the true mean difference."""

    def moments(deviation: float) -> tuple[float, float]:
        left, right = (true_scores(study.metric, side, deviation * NODES) for side in (0, 1))
        means = WEIGHTS @ left, WEIGHTS @ right
        variance = WEIGHTS @ (left - means[0]) ** 2 + WEIGHTS @ (right - means[1]) ** 2
        return float(np.sqrt(variance)), float(means[0] - means[1])

    deviation = optimize.brentq(lambda tried: moments(tried)[0] - study.points / 100, 1e-6, 1.5)
    return deviation, moments(deviation)[1]


def draw(study: Study, repetitions: int, generator: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels (examples,) and predictions (2, seeds, examples) of each repetition."""
    deviation, _ = calibrate(study)
    normal = generator.standard_normal
    for _ in range(repetitions):
        added = deviation * normal((2, study.seeds, 1))
        latent = HARD * normal(study.examples) + SETTING * normal((2, 1, study.examples))
        latent = latent + RUN * normal((2, study.seeds, study.examples))
        if study.metric == "pearson":
            labels = normal(study.examples)
            yield labels, labels + NOISE[:, None, None] * np.exp(added) * latent
            continue
        labels = (generator.random(study.examples) < POSITIVE).astype(int)
        right = MEANS[:, None, labels] + added + latent > 0
        yield labels, np.where(right, labels, 1 - labels)


def satterthwaite(values: np.ndarray) -> tuple[float, float]:
    """The t interval with two components alone, written down from the formula."""
    seeds, examples = values.shape
    rows, columns, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    ms_seed = examples * ((rows - mean) ** 2).sum() / (seeds - 1)
    ms_example = seeds * ((columns - mean) ** 2).sum() / (examples - 1)
    ms_rest = ((values - rows[:, None] - columns + mean) ** 2).sum() / (seeds - 1) / (examples - 1)
    total = max(ms_seed + ms_example - ms_rest, 1e-300)
    df = total**2 / (
        ms_seed**2 / (seeds - 1) + ms_example**2 / (examples - 1) + ms_rest**2 / (seeds - 1) / (examples - 1)
    )
    reach = stats.t.ppf(0.975, df) * np.sqrt(total / values.size)
    return mean - reach, mean + reach


def over_seeds(left: np.ndarray, right: np.ndarray, paired: bool) -> tuple[float, float]:
    """The t interval of the scores of seeds."""
    test = stats.ttest_rel(left, right) if paired else stats.ttest_ind(left, right, equal_var=False)
    return tuple(test.confidence_interval(0.95))


def bootstrap(
    study: Study, labels: np.ndarray, predictions: np.ndarray, generator: np.random.Generator, resamples: int = 1000
) -> tuple[float, float]:
    """Percentiles over resamples of seeds and examples."""
    drawn = generator.integers(0, study.examples, (resamples, study.examples))
    drawn += study.examples * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
    of_examples = statistics(study.metric, labels, predictions)
    flat = np.moveaxis(of_examples, 2, 0).reshape(study.examples, -1)
    sums = (counts.astype(np.float32) @ flat.astype(np.float32)).reshape(resamples, 2, study.seeds, -1)
    scores = measure(study.metric, sums)
    seeds = generator.integers(0, study.seeds, (resamples, 1 if study.paired else 2, study.seeds))
    scores = np.take_along_axis(scores, np.broadcast_to(seeds, scores.shape), axis=2).mean(axis=2)
    low, high = np.percentile(scores[:, 0] - scores[:, 1], [2.5, 97.5])
    return float(low), float(high)


def cover(
    study: Study, repetitions: int, methods: tuple[str, ...] = METHODS, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Each method's share of intervals that hold the true difference, and their mean width in points."""
    generator = np.random.default_rng(seed)
    _, truth = calibrate(study)
    task = find_task(TASKS[study.metric])
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for labels, predictions in draw(study, repetitions, generator):
        left, right = (
            np.stack([contributions(task, labels, run, metric=study.metric) for run in side]) for side in predictions
        )
        for name in methods:
            if name == "seeds":
                found[name].append(over_seeds(left.mean(axis=1), right.mean(axis=1), study.paired))
            elif name == "bootstrap":
                found[name].append(bootstrap(study, labels, predictions, generator))
            elif name == "components":
                found[name].append(satterthwaite(left - right) if study.paired else (np.nan, np.nan))
            else:
                found[name].append(ends(left, right, study.paired))
    shares = {}
    for name, intervals in found.items():
        low, high = np.array(intervals).T
        shares[name] = float(np.mean((low <= truth) & (truth <= high))), 100 * float(np.mean(high - low))
    return shares


def ends(left: np.ndarray, right: np.ndarray, paired: bool) -> tuple[float, float]:
    """tfmt's interval."""
    interval = mean_interval(left - right) if paired else difference_interval(left, right)
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


THREE, TEN = Study(3, 1000, 4.0), Study(10, 400, 2.0)
STUDIES = [
    *(Study(3, 1000, 4.0, metric) for metric in TASKS),
    *(Study(10, 400, 2.0, metric) for metric in TASKS),
    Study(3, 400, 0.5),
    Study(2, 1000, 4.0),
    Study(5, 277, 2.0),
    Study(3, 1000, 4.0, paired=False),
]


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args(arguments).repetitions
    # Seeds that happen to have equal scores.
    warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
    print("| study | metric |" + "".join(f" {name} |" for name in METHODS))
    print("|---|---|" + "---|" * len(METHODS))
    for study in STUDIES:
        shares = cover(study, repetitions)
        cells = [f"{share:.3f} ({width:.1f})" if width == width else "-" for share, width in shares.values()]
        print(f"| {study.title} | {study.metric} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
