"""Draws without replacement that are the same on every machine."""

from __future__ import annotations

import numpy as np

_MANY = 1_000_000  # numbers drawn


def draw_without_replacement(size: int, count: int, seed: int, stream: int = 0) -> np.ndarray:
    """`count` different numbers below `size`, every set of them equally likely.

    Only the generator's raw bits are used, which NumPy keeps the same in all its versions. Memory grows with `count`,
    and with `size` only where very many are drawn. A smaller draw of the same seed is the beginning of a larger one, up
    to half of `size`.

    Args:
      size: how many numbers to choose from.
      count: how many to choose.
      seed: the run's seed.
      stream: a number that makes draws of the same seed independent.

    Returns:
      int64 (count,), in the order drawn.
    """
    if not count:
        return np.zeros(0, np.int64)
    if 2 * count > size:  # Drawing what is left out keeps the number of repeats small.
        left_out = np.ones(size, bool)
        left_out[draw_without_replacement(size, size - count, seed, stream)] = False
        return np.flatnonzero(left_out).astype(np.int64)
    generator = np.random.Philox(np.random.SeedSequence([seed, 0x3A5C, stream]))
    # Raw numbers at or above the largest multiple of `size` would make low numbers more likely.
    limit = np.uint64(2**64 - 2**64 % size - 1)
    drawn: list[np.ndarray] = []
    seen = np.zeros(size, bool) if count > _MANY else None  # a byte a number is less than sorting all that were drawn
    left = count
    while left > 0:
        raw = generator.random_raw(left + 16)
        found = (raw[raw <= limit] % np.uint64(size)).astype(np.int64)
        if seen is not None:
            found = found[~seen[found]]
        elif drawn:
            found = found[~np.isin(found, np.concatenate(drawn))]
        _, first = np.unique(found, return_index=True)
        found = found[np.sort(first)][:left]
        if seen is not None:
            seen[found] = True
        drawn.append(found)
        left -= len(found)
    return np.concatenate(drawn)
