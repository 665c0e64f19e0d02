"""The largest scores, against a stable sort of all of them."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmt.selection import largest as module
from tfmt.selection.largest import largest

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, np.nan, -np.nan, np.inf, -np.inf, 1e-40, -1e-40])
DTYPES = [np.float32, np.float64]


def by_sorting(scores, count, lowest):
    return np.sort(np.argsort(scores if lowest else -scores, kind="stable")[:count])


@st.composite
def requests(draw):
    dtype = draw(st.sampled_from(DTYPES))
    values = st.one_of(FEW, st.floats(width=8 * np.dtype(dtype).itemsize)) if draw(st.booleans()) else FEW
    scores = np.array(draw(st.lists(values, max_size=60)), dtype)
    return scores, draw(st.integers(0, len(scores)))


@given(requests(), st.booleans(), st.integers(1, 70))
def test_the_positions_are_those_of_a_stable_sort(request, lowest, chunk):
    scores, count = request
    before = scores.tobytes()
    with mock.patch.object(module, "_CHUNK", chunk):
        found = largest(scores, count, lowest=lowest)
    assert found.dtype == np.int64
    assert found.tolist() == by_sorting(scores, count, lowest).tolist()
    assert scores.tobytes() == before


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_of_many_scores_and_many_ties_too(zeros, dtype, lowest):
    generator = np.random.default_rng(0)
    scores = generator.standard_normal(600_000, dtype=dtype)
    scores[generator.random(len(scores)) < zeros] = 0
    for count in (1, 30_000, 300_000, len(scores) - 1):
        np.testing.assert_array_equal(largest(scores, count, lowest=lowest), by_sorting(scores, count, lowest))


def test_every_other_score_of_an_array_that_may_not_be_written():
    scores = np.arange(12, dtype=np.float32)[::-2]
    scores.flags.writeable = False
    assert largest(scores, 2).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_does_not_grow_with_the_scores(dtype):
    scores = np.random.default_rng(0).normal(size=8_000_000).astype(dtype)
    tracemalloc.start()
    largest(scores, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12_000_000  # the scores take 32 or 64 MB
