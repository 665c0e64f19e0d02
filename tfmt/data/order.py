"""Random orders that stay the same from version to version."""

from __future__ import annotations

import numpy as np


def permutation(count: int, *seeds: int) -> np.ndarray:
    """A random order of `count` things, a pure function of the seeds (integers, not negative).

    It is made from the raw numbers of a bit generator, whose sequence NumPy promises to keep from version to version;
    it promises no such thing for `Generator.permutation`.
    """
    keys = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(count)
    return np.argsort(keys, kind="stable")
