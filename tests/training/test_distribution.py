"""Distributions of weights against NumPy, and two modes against SciPy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.mixture import GaussianMixture

from tfmt.bert.configs import BertShape
from tfmt.bert.vocabulary import list_weights
from tfmt.results.bimodality import (
    ashman_d,
    bimodality_coefficient,
    coefficient_of_all,
    fit_two_normals,
    magnitude_ratio,
)
from tfmt.training.distribution import BINS, LIMIT, MAGNITUDE, Distribution, bin_edges, join, measure, measure_sublayers


def draw(*parts, seed=0):
    """(mean, deviation, count) ... -> the weights of a mixture."""
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.normal(mean, deviation, count) for mean, deviation, count in parts])


@pytest.mark.parametrize(
    "values",
    [draw((0, 0.04, 5000)), draw((0.9, 0.1, 500), (0, 0.05, 500)), np.array([0.3]), draw((0, 20.0, 1000))],
    ids=["dense", "two", "one", "wide"],
)
def test_measured_as_numpy_does(values):
    values = values.astype(np.float32)
    found = measure([values[:7], values[7:].reshape(1, -1)] if len(values) > 7 else [values])
    values = values.astype(np.float64)
    assert (found.count, found.lowest, found.highest) == (len(values), values.min(), values.max())
    assert found.beyond == np.sum(np.abs(values) > MAGNITUDE)
    np.testing.assert_allclose(found.mean, values.mean(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.moments, [stats.moment(values, k) for k in (2, 3, 4)], rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(found.histogram, np.histogram(values, bin_edges())[0])
    assert Distribution.model_validate_json(found.model_dump_json()) == found


def test_bins_hold_every_weight():
    edges = bin_edges()
    assert len(edges) == BINS + 1
    assert (edges[0], edges[BINS // 2], edges[-1]) == (pytest.approx(-LIMIT, rel=1e-3), 0, -edges[0])
    widths = np.diff(edges)
    assert widths[BINS // 2] == pytest.approx(8e-4, rel=0.1)
    assert widths[-1] / edges[-1] == pytest.approx(0.016, rel=0.1)
    far = measure([np.array([-1e6, 0.0, 1e6])])
    assert far.histogram[[0, BINS // 2, -1]].tolist() == [1, 1, 1]
    assert far.histogram.sum() == far.count == 3
    with pytest.raises(FloatingPointError):
        measure([np.array([1.0, np.nan])])


def test_joined_is_measured_together():
    one, other = draw((0, 0.1, 300)), draw((2, 0.1, 200), seed=1)
    together, joined = measure([one, other]), join([measure([one]), measure([other])])
    np.testing.assert_allclose(joined.sums, together.sums)
    assert joined.model_dump(exclude={"sums"}) == together.model_dump(exclude={"sums"})


def test_sublayers_and_parts_are_told_apart():
    weights = list_weights(BertShape(8, 3, 2, 16, 20, 10, 2), "sentence", 2)
    number = {weight.path: float(index) for index, weight in enumerate(weights)}
    shapes = {weight.path: weight.shape for weight in weights}
    found = measure_sublayers(weights, lambda path: np.full(shapes[path], number[path]))
    assert {name: sorted(parts) for name, parts in found.items()} == {
        "attention": ["bias", "kernel"], "attention_layernorm": ["beta", "gamma"],
        "feedforward": ["bias", "kernel"], "feedforward_layernorm": ["beta", "gamma"],
    }  # fmt: skip
    assert found["attention"]["kernel"].count == 3 * 4 * 8 * 8
    gammas = [number[f"bert/encoder/layer_._{block}/output/LayerNorm/gamma"] for block in range(3)]
    assert found["feedforward_layernorm"]["gamma"].count == 3 * 8
    assert found["feedforward_layernorm"]["gamma"].mean == pytest.approx(np.mean(gammas))


def sarle(values):
    n = len(values)
    skewness, excess = stats.skew(values, bias=False), stats.kurtosis(values, bias=False)
    return (skewness**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))


@pytest.mark.parametrize(
    "values",
    [draw((0, 1, 50)), draw((0, 0.1, 400), (1, 0.1, 400)), np.random.default_rng(0).exponential(1, 5000)],
    ids=["normal", "two", "skewed"],
)
def test_sarles_coefficient_as_scipy_has_its_parts(values):
    assert coefficient_of_all(measure([values])) == pytest.approx(sarle(values), rel=1e-6)
    if len(values) > 100:  # of the middle, up to the width of a bin
        low, high = np.quantile(values, [0.01, 0.99])
        middle = values[(values >= low) & (values <= high)]
        assert bimodality_coefficient(measure([values])) == pytest.approx(sarle(middle), rel=0.01)


def test_sarles_coefficient_of_known_distributions():
    generator = np.random.default_rng(0)
    normal, even = measure([generator.normal(0, 0.04, 200_000)]), measure([generator.random(200_000)])
    points, one = measure([np.repeat([0.0, 1.0], 1000)]), measure([np.full(10, 0.7)])
    assert coefficient_of_all(normal) == pytest.approx(1 / 3, abs=0.01)
    assert bimodality_coefficient(normal) < 0.45
    for whole, expected in ((even, 5 / 9), (points, 1), (one, 0)):
        assert coefficient_of_all(whole) == pytest.approx(expected, abs=0.01)
        assert bimodality_coefficient(whole) == pytest.approx(expected, abs=0.01)


def test_a_few_outliers_hide_no_modes_and_make_none():
    two = draw((0, 0.05, 5000), (0.6, 0.1, 5000))
    far = draw((2.5, 0.5, 40), (-2.5, 0.5, 40), seed=1)
    hidden = measure([two, far])
    assert coefficient_of_all(hidden) < 5 / 9 < bimodality_coefficient(hidden)
    assert magnitude_ratio(fit_two_normals(hidden)) == pytest.approx(
        magnitude_ratio(fit_two_normals(measure([two]))), rel=0.1
    )
    single = measure([draw((0.6, 0.1, 10_000)), draw((3, 0.1, 60), seed=1)])
    assert bimodality_coefficient(single) < 5 / 9
    assert math.isnan(magnitude_ratio(fit_two_normals(single)))


def test_two_normals_as_scikit_learn_finds_them():
    values = draw((0.02, 0.08, 3000), (0.9, 0.12, 2000))
    found = fit_two_normals(measure([values]))
    values = values[(values >= np.quantile(values, 0.01)) & (values <= np.quantile(values, 0.99))]
    expected = GaussianMixture(2, random_state=0, tol=1e-8, max_iter=1000).fit(values[:, None])
    order = np.argsort(expected.means_.ravel())
    np.testing.assert_allclose([mode.mean for mode in found], expected.means_.ravel()[order], atol=2e-3)
    np.testing.assert_allclose([mode.share for mode in found], expected.weights_[order], atol=2e-3)
    np.testing.assert_allclose(
        [mode.deviation for mode in found], expected.covariances_.ravel()[order] ** 0.5, rtol=2e-2
    )
    assert ashman_d(found) == pytest.approx(math.sqrt(2) * 0.88 / math.hypot(0.08, 0.12), rel=0.1)
    labels = expected.predict(values[:, None])
    magnitudes = [np.abs(values[labels == label]).mean() for label in order]
    assert magnitude_ratio(found) == pytest.approx(magnitudes[1] / magnitudes[0], rel=0.02)


@pytest.mark.parametrize(
    "values",
    [
        draw((0, 0.04, 20_000)),
        draw((0, 0.03, 20_000), (0, 0.1, 5000)),
        np.random.default_rng(0).standard_t(4, 20_000) * 0.05,
    ],
    ids=["one", "heavy tails", "Student"],
)
def test_one_centre_is_one_mode(values):
    whole = measure([values])
    assert bimodality_coefficient(whole) < 5 / 9
    assert ashman_d(fit_two_normals(whole)) < 2
    assert math.isnan(magnitude_ratio(fit_two_normals(whole)))


def test_degenerate_weights_have_no_two_modes():
    assert fit_two_normals(measure([np.full(10, 0.7)])) is None
    assert ashman_d(None) == 0
    assert math.isnan(magnitude_ratio(None))
    points = fit_two_normals(measure([np.repeat([0.1, 1.0], 10)]))
    assert magnitude_ratio(points) == pytest.approx(10, rel=0.02)
