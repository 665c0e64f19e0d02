"""Where the largest of very many scores stand, without a sort or a second copy of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Scores looked at together; what is made on the way grows with this number and not with the number of scores.
_CHUNK = 1 << 18
_FEW = 1 << 14  # scores that are sorted more quickly than counted
_DIGIT = 16  # bits of a key that one pass over the scores settles


def largest(scores: np.ndarray, count: int, *, lowest: bool = False) -> np.ndarray:
    """Positions of the `count` largest scores: those that a stable sort of all would put first.

    Among equal scores the lower position comes first, and -0.0 equals 0.0. NaN comes last, also with `lowest`.

    Args:
      scores: float32 or float64 (size,), is left as it is.
      count: how many positions, 0 to size.
      lowest: the lowest scores instead.

    Returns:
      int64 (count,), rising.
    """
    assert 0 <= count <= len(scores)
    if len(scores) <= _FEW:
        return np.sort(np.argsort(scores if lowest else -scores, kind="stable")[:count])
    found = np.empty(count, np.int64)
    if not count:
        return found
    threshold, ties = _find_threshold(scores, count, lowest)
    end = 0
    for start, keys in _each_chunk(scores, lowest):
        taken = keys > threshold
        if ties:
            equal = np.flatnonzero(keys == threshold)[:ties]
            taken[equal] = True
            ties -= len(equal)
        places = np.flatnonzero(taken)
        found[end : end + len(places)] = places + start
        end += len(places)
    return found


def _find_threshold(scores: np.ndarray, count: int, lowest: bool) -> tuple[int, int]:
    """The key of the last score that is taken, and how many scores of this key are.

    A digit at a time, the highest first: how often each of its values occurs tells in which the last score lies, and
    the next digit is asked of the scores with that value alone.
    """
    bits = 8 * scores.dtype.itemsize
    known = 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(1 << _DIGIT, np.int64)
        for _, keys in _each_chunk(scores, lowest):
            if shift + _DIGIT < bits:
                keys = keys[keys >> (shift + _DIGIT) == known]
            counts += np.bincount((keys >> shift).astype(np.uint16), minlength=len(counts))
        from_above = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_above, count))
        count -= int(from_above[place - 1]) if place else 0
        known = known << _DIGIT | (len(counts) - 1 - place)
    return known, count


def _each_chunk(scores: np.ndarray, lowest: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each chunk's first position and its scores as unsigned integers in the same order, NaN as 0."""
    bits = 8 * scores.dtype.itemsize
    signed, unsigned = np.dtype(f"i{bits // 8}"), np.dtype(f"u{bits // 8}")
    top = unsigned.type(1 << (bits - 1))
    for start in range(0, len(scores), _CHUNK):
        # A difference from, or a sum with, 0.0 is never -0.0 where it is zero.
        part = scores[start : start + _CHUNK]
        part = 0 - part if lowest else part + 0
        unknown = np.isnan(part)
        # Read as integers, floats of the same sign stand in the order of their sizes; what is below zero is turned.
        keys = part.view(unsigned)
        keys ^= (keys.view(signed) >> (bits - 1)).view(unsigned) | top
        keys[unknown] = 0
        yield start, keys
