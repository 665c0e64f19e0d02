"""Intervals against their textbook limits, sums of squares from a linear model, and coverage in simulated studies."""

import math
from dataclasses import replace

import numpy as np
import pytest
from results.coverage import TEN, THREE, cover, satterthwaite
from scipy import stats

from tfmt.errors import RequestError
from tfmt.metrics import score
from tfmt.results import intervals
from tfmt.results.intervals import compare, difference_interval, mean_interval
from tfmt.tasks import find_task

RNG = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def _the_same_numbers_in_any_order():
    RNG.bit_generator.state = np.random.default_rng(11).bit_generator.state


def crossed(seeds, examples, seed=1.0, example=1.0, rest=1.0, mean=0.3):
    """Values with these standard deviations of the two components and of what remains."""
    of_seeds, of_examples = seed * RNG.normal(size=(seeds, 1)), example * RNG.normal(size=examples)
    return mean + of_seeds + of_examples + rest * RNG.normal(size=(seeds, examples))


def sums_of_squares(values):
    """Of seeds, of examples and of the rest: how much a least-squares fit worsens without each."""
    seeds, examples = values.shape
    one = np.ones((values.size, 1))
    of_seeds, of_examples = (
        np.kron(np.eye(seeds), np.ones((examples, 1))),
        np.kron(np.ones((seeds, 1)), np.eye(examples)),
    )

    def left_over(*parts):
        design = np.hstack([one, *parts])
        fit = design @ np.linalg.lstsq(design, values.ravel(), rcond=None)[0]
        return ((values.ravel() - fit) ** 2).sum()

    whole = left_over(of_seeds, of_examples)
    return left_over(of_examples) - whole, left_over(of_seeds) - whole, whole


def ends(interval):
    return interval.low, interval.high


@pytest.mark.parametrize(("seeds", "examples"), [(3, 8), (5, 20), (2, 12), (7, 4)])
def test_variance_and_degrees_of_freedom_are_those_of_a_linear_model(seeds, examples):
    values = crossed(seeds, examples)
    squares = sums_of_squares(values)
    freedoms = seeds - 1, examples - 1, (seeds - 1) * (examples - 1)
    of_seeds, of_examples, rest = (square / df for square, df in zip(squares, freedoms, strict=True))
    total = of_seeds + of_examples - rest
    df = total**2 / sum(each**2 / df for each, df in zip((of_seeds, of_examples, rest), freedoms, strict=True))
    found = [(of_seeds, freedoms[0]), (of_examples, freedoms[1])]
    found += [(total, df)] if total > max(of_seeds, of_examples) else []
    widest = max((stats.t.ppf(0.975, freedom) * math.sqrt(square / values.size), freedom) for square, freedom in found)
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.high - interval.mean, interval.df) == pytest.approx(widest)
    assert interval.mean - interval.low == pytest.approx(widest[0])
    assert interval.seed_variance == pytest.approx(max(of_seeds - rest, 0) / values.size)
    assert interval.example_variance == pytest.approx(max(of_examples - rest, 0) / values.size)


def test_components_are_unbiased():
    """Over many matrices the parts of the variance are on average what they were drawn with, and so is their sum."""
    drawn = [crossed(4, 15, seed=0.6, example=1.5, rest=1.0) for _ in range(2000)]
    seed, example, df, mean = np.array(
        [(found.seed_variance, found.example_variance, found.df, found.mean) for found in map(mean_interval, drawn)]
    ).T
    assert seed.mean() == pytest.approx(0.6**2 / 4, rel=0.05)
    assert example.mean() == pytest.approx(1.5**2 / 15, rel=0.05)
    assert mean.var() == pytest.approx(0.6**2 / 4 + 1.5**2 / 15 + 1 / 60, rel=0.1)
    assert (df > 0).all()


def test_where_both_vary_it_is_satterthwaites():
    values = crossed(6, 30, seed=0.4)
    interval = mean_interval(values)
    assert interval.method == intervals.BOTH
    assert ends(interval) == pytest.approx(satterthwaite(values))


def test_without_variance_of_examples_it_is_the_t_interval_of_seeds():
    values = np.repeat(RNG.normal(size=(4, 1)), 50, axis=1)
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    interval = mean_interval(values)
    assert ends(interval) == pytest.approx(tuple(expected))
    assert interval.df == pytest.approx(3)
    assert interval.example_variance == pytest.approx(0, abs=1e-12)


def test_without_variance_of_seeds_it_is_the_t_interval_of_examples():
    values = np.repeat(RNG.normal(size=(1, 40)), 3, axis=0)
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(0.9)
    interval = mean_interval(values, 0.9)
    assert ends(interval) == pytest.approx(tuple(expected))
    assert interval.df == pytest.approx(39)
    assert interval.seed_variance == pytest.approx(0, abs=1e-12)


def test_endless_examples_leave_the_seeds():
    values = crossed(5, 40_000)
    expected = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    assert ends(mean_interval(values)) == pytest.approx(tuple(expected), rel=1e-3)


def test_a_negative_component_leaves_the_other_alone():
    values = crossed(3, 10, example=0, rest=0.5)
    values -= values.mean(axis=0) - values.mean()  # examples of one mean: their component is below 0
    expected = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    interval = mean_interval(values)
    assert interval.method == intervals.SEEDS
    assert ends(interval) == pytest.approx(tuple(expected))
    assert interval.example_variance == 0.0
    values = crossed(3, 10, seed=0, rest=0.5)
    values -= values.mean(axis=1, keepdims=True) - values.mean()
    expected = stats.ttest_1samp(values.mean(axis=0), 0).confidence_interval(0.95)
    interval = mean_interval(values)
    assert interval.method == intervals.EXAMPLES
    assert ends(interval) == pytest.approx(tuple(expected))
    assert interval.seed_variance == 0.0


def test_it_is_never_narrower_than_over_seeds_or_over_examples_alone():
    narrower = 0
    for _ in range(200):
        values = crossed(2, 30, seed=0.3)
        low, high = ends(mean_interval(values))
        for axis in (0, 1):
            alone = stats.ttest_1samp(values.mean(axis=axis), 0).confidence_interval(0.95)
            assert high - low >= (alone.high - alone.low) * (1 - 1e-12)
        plain = satterthwaite(values)
        narrower += plain[1] - plain[0] < alone.high - alone.low
    assert narrower > 20  # what the rule is for


def test_one_run_a_setting_says_nothing_of_seeds():
    values = RNG.normal(size=(1, 25))
    interval = mean_interval(values)
    assert ends(interval) == pytest.approx(tuple(stats.ttest_1samp(values[0], 0).confidence_interval(0.95)))
    assert interval.method == intervals.EXAMPLES_OF_ONE_RUN
    assert interval.seed_variance is None
    left, right = RNG.normal(size=(1, 25)), RNG.normal(size=(4, 25))
    expected = stats.ttest_rel(left[0], right.mean(axis=0)).confidence_interval(0.95)
    interval = difference_interval(left, right)
    assert ends(interval) == pytest.approx(tuple(expected))
    assert interval.method == intervals.EXAMPLES_OF_ONE_RUN
    assert interval.seed_variance is None


def test_one_example_says_nothing_of_examples():
    values = RNG.normal(size=(4, 1))
    interval = mean_interval(values)
    assert ends(interval) == pytest.approx(tuple(stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)))
    assert interval.method == intervals.SEEDS_ON_ONE_EXAMPLE
    assert interval.example_variance is None


def test_one_run_on_one_example_has_no_interval():
    interval = mean_interval(np.array([[0.25]]))
    assert interval == intervals.Interval(0.25, None, None, None, None, None, None, intervals.NONE_ONE_NUMBER)


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_where_nothing_varies_there_is_no_interval(value):
    for interval in (
        mean_interval(np.full((3, 7), value)),
        difference_interval(np.full((3, 7), value), np.zeros((2, 7))),
    ):
        assert interval.mean == pytest.approx(value)
        assert ends(interval) == (None, None)
        assert (interval.seed_variance, interval.example_variance) == (0.0, 0.0)
        assert interval.method == intervals.NONE_NOTHING_VARIES
    run = RNG.normal(size=7)
    assert difference_interval(np.stack([run, run]), np.stack([run] * 3)).method == intervals.NONE_NOTHING_VARIES
    assert mean_interval(np.full((1, 7), value)).seed_variance is None


def test_unpaired_without_variance_of_examples_it_is_welchs():
    left, right = RNG.normal(size=4), 2 * RNG.normal(size=6)
    expected = stats.ttest_ind(left, right, equal_var=False)
    interval = difference_interval(np.repeat(left[:, None], 30, axis=1), np.repeat(right[:, None], 30, axis=1))
    assert ends(interval) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert interval.df == pytest.approx(expected.df)
    assert interval.mean == pytest.approx(left.mean() - right.mean())


def test_unpaired_what_examples_do_to_both_sides_cancels():
    hard = 5 * RNG.normal(size=60)
    left, right = (hard + crossed(4, 60, seed=0.5, example=0.1) for _ in range(2))
    paired = mean_interval(left - right)
    interval = difference_interval(left, right)
    # Another number of rows in the same means: components by hand from each side's own table.
    of_sides = [sums_of_squares(side) for side in (left, right)]
    of_seeds = sum(seed / 3 / 240 for seed, _, _ in of_sides)
    rest = sum(rest / (3 * 59) / 240 for _, _, rest in of_sides)
    of_examples = (left.mean(axis=0) - right.mean(axis=0)).var(ddof=1) / 60
    assert interval.seed_variance == pytest.approx(max(of_seeds - rest, 0))
    assert interval.example_variance == pytest.approx(max(of_examples - rest, 0))
    assert interval.mean == pytest.approx(paired.mean)
    assert interval.high - interval.low < 5 * (paired.high - paired.low)
    assert ends(difference_interval(right, left)) == pytest.approx((-interval.high, -interval.low))


def test_matrices_that_are_none_are_refused():
    for values in (np.zeros(3), np.zeros((0, 3)), np.zeros((2, 0)), np.zeros((1, 2, 3))):
        with pytest.raises(ValueError, match="expected finite values of shape"):
            mean_interval(values)
    with pytest.raises(ValueError, match="not all of them finite"):
        mean_interval(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match=r"the same examples\. Received: 3 and 4"):
        difference_interval(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval(np.eye(2), 95)


# ---- settings and seeds --------------------------------------------------------------------------------------------


def some_runs(task, labels, seeds):
    runs = {}
    for setting, share in (("full", 0.9), ("layernorm", 0.8)):
        for seed in seeds[setting]:
            wrong = RNG.random(labels.size) > share
            runs[setting, seed] = np.where(wrong, (labels + 1) % task.num_labels, labels)
    return runs


@pytest.mark.parametrize("name", ["sst2", "mrpc", "cola"])
def test_settings_are_compared_over_the_seeds_they_share(name):
    task = find_task(name)
    labels = RNG.integers(0, 2, 300)
    runs = some_runs(task, labels, {"full": [2, 0, 1, 7], "layernorm": [0, 5, 1, 2]})
    scores = {run: score(task, labels, found).values[task.headline[0]] for run, found in runs.items()}
    expected = np.mean([scores["full", seed] - scores["layernorm", seed] for seed in (0, 1, 2)])
    interval = compare(task, labels, runs, "full", "layernorm")
    assert interval.mean == pytest.approx(expected)
    assert interval.low < interval.mean < interval.high
    reverse = compare(task, labels, runs, "layernorm", "full")
    assert ends(reverse) == pytest.approx((-interval.high, -interval.low))
    with_more = compare(task, labels, runs | {("frozen", 0): labels}, "full", "layernorm")
    assert with_more == interval


def test_settings_that_share_no_seed_are_compared_over_all():
    task = find_task("sst2")
    labels = RNG.integers(0, 2, 300)
    runs = some_runs(task, labels, {"full": [0, 1, 2], "layernorm": [3, 4]})
    right = {setting: [runs[setting, seed] == labels for name, seed in runs if name == setting]
             for setting in ("full", "layernorm")}  # fmt: skip
    expected = difference_interval(np.array(right["full"]), np.array(right["layernorm"]))
    assert ends(compare(task, labels, runs, "full", "layernorm")) == pytest.approx(ends(expected))


def test_sentences_are_the_examples_of_token_tasks():
    task = find_task("conll2003_ner")
    lengths = RNG.integers(1, 12, 80)
    labels = RNG.integers(0, task.num_labels, lengths.sum())
    runs = some_runs(task, labels, {"full": [0, 1, 2], "layernorm": [0, 1, 2]})
    scores = {run: score(task, labels, found, lengths).values["f1"] for run, found in runs.items()}
    interval = compare(task, labels, runs, "full", "layernorm", sentence_lengths=lengths)
    assert interval.mean == pytest.approx(np.mean([scores["full", s] - scores["layernorm", s] for s in range(3)]))
    assert interval.low < interval.mean < interval.high


def test_a_setting_compared_with_itself_has_no_interval():
    task = find_task("mrpc")
    labels = RNG.integers(0, 2, 50)
    runs = some_runs(task, labels, {"full": [0, 1], "layernorm": [0, 1]})
    interval = compare(task, labels, runs, "full", "full")
    assert (interval.mean, interval.method) == (0.0, intervals.NONE_NOTHING_VARIES)


def test_what_cannot_be_compared_names_the_run():
    task = find_task("mrpc")
    labels = np.array([0, 1, 0, 0])
    runs = {("full", 0): labels, ("frozen", 0): labels[:3]}
    with pytest.raises(RequestError, match="no predictions of random; there are those of frozen, full"):
        compare(task, labels, runs, "full", "random")
    with pytest.raises(RequestError, match="full, seed 0: f1 is not defined without example 1"):
        compare(task, labels, runs, "full", "frozen")
    with pytest.raises(RequestError, match="frozen, seed 0: expected one prediction a label"):
        compare(task, labels, runs, "full", "frozen", metric="accuracy")


# ---- coverage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("study", [THREE, TEN], ids=lambda study: study.title)
def test_intervals_hold_the_true_difference_as_often_as_they_say(study, metric):
    share, _ = cover(replace(study, metric=metric), 1000, ("tfmt",))["tfmt"]
    assert 0.93 < share < 0.98


def test_settings_without_shared_seeds_are_covered():
    share, _ = cover(replace(THREE, paired=False), 1000, ("tfmt",))["tfmt"]
    assert 0.93 < share < 0.98


def test_the_usual_intervals_hold_it_less_often():
    """The studies can tell: seeds alone miss what examples do, and the others are too narrow with three seeds."""
    assert cover(TEN, 300, ("seeds",))["seeds"][0] < 0.85
    assert cover(THREE, 150, ("bootstrap",))["bootstrap"][0] < 0.91
    assert cover(THREE, 1000, ("components",))["components"][0] < 0.94


def test_the_mean_over_tasks_is_welchs_where_seeds_alone_vary():
    generator = np.random.default_rng(4)
    one, other = generator.normal(1.0, 1.0, 4), generator.normal(0.2, 3.0, 6)
    parts = [intervals.mean_interval(values[:, None]) for values in (one, -other)]
    mean = intervals.mean_over_tasks(parts)
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (2 * mean.low, 2 * mean.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert mean.method == intervals.SEEDS_ON_ONE_EXAMPLE
    assert mean.seed_variance == pytest.approx(sum(part.seed_variance for part in parts) / 4)
    assert mean.example_variance is None


def test_the_mean_over_tasks_of_one_is_its_own():
    interval = intervals.mean_interval(crossed(3, 50))
    mean = intervals.mean_over_tasks([interval])
    assert ends(mean) == pytest.approx(ends(interval))
    assert mean.df == pytest.approx(interval.df)


def test_a_task_without_interval_leaves_the_mean_without():
    known, unknown = intervals.mean_interval(crossed(3, 50)), intervals.mean_interval(np.full((3, 50), 0.5))
    mean = intervals.mean_over_tasks([known, unknown])
    assert (mean.low, mean.high, mean.method) == (None, None, intervals.NONE_OF_A_TASK)
    assert mean.mean == pytest.approx((known.mean + 0.5) / 2)
    with pytest.raises(ValueError, match="none"):
        intervals.mean_over_tasks([])
