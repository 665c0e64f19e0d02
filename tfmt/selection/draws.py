"""Draws without replacement that are the same on every machine."""

from __future__ import annotations

import numpy as np


def draw_without_replacement(size: int, count: int, seed: int, stream: int = 0) -> np.ndarray:
    """`count` different numbers below `size`, every set of them equally likely.

    Only the generator's raw bits are used, which NumPy keeps the same in all its versions; memory grows with `count`,
    not with `size`.

    Args:
      size: how many numbers to choose from.
      count: how many to choose.
      seed: the run's seed.
      stream: a number that makes draws of the same seed independent.

    Returns:
      int64 (count,), in the order drawn.
    """
    if 2 * count > size:  # Drawing what is left out keeps the number of repeats small.
        left_out = np.ones(size, bool)
        left_out[draw_without_replacement(size, size - count, seed, stream)] = False
        return np.flatnonzero(left_out).astype(np.int64)
    generator = np.random.Philox(np.random.SeedSequence([seed, 0x3A5C, stream]))
    # Raw numbers at or above the largest multiple of `size` would make low numbers more likely.
    limit = np.uint64(2**64 - 2**64 % size - 1)
    drawn = np.zeros(0, np.int64)
    while len(drawn) < count:
        raw = generator.random_raw(count - len(drawn) + 16)
        drawn = np.concatenate([drawn, (raw[raw <= limit] % np.uint64(size)).astype(np.int64)])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
    return drawn[:count]
