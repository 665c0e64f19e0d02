"""How the weights of a part of BERT are distributed: exact sums, and a histogram whose bins fit every weight.

The bins are the same for every part, model and run, so that histograms can be added and compared. They are even in
asinh(w / `SCALE`): 0.0008 wide around 0, where the weights of dense layers lie, and 1.6 % of the weight far out, where
LayerNorms have outliers of many times the usual magnitude. Up to `LIMIT` no weight falls outside; what lies beyond
counts in the last bin.

Their edges are rounded to numbers whose first 19 bits as a float32 say all of them, so that these bits of a weight tell
its bin: a model is measured after every epoch that is kept, and computing asinh would take five times as long.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from tfmt.bert.vocabulary import BLOCK_SUBLAYERS, Weight

SCALE = 0.05
LIMIT = 100.0
BINS = 1024
# 25 standard deviations of BERT's initial weights (0.02): no dense layer starts with a weight beyond it.
MAGNITUDE = 0.5
_STEP = float(2 * np.arcsinh(LIMIT / SCALE) / BINS)
_CUT = 13  # the bits of a float32 that do not tell its bin
_CHUNK = 1 << 15  # weights at a time, so that they stay in the processor's cache


def bin_edges() -> np.ndarray:
    """The edges of the bins, (BINS + 1,)."""
    upper = (SCALE * np.sinh(_STEP * np.arange(1, BINS // 2 + 1))).astype(np.float32)
    upper = ((upper.view(np.uint32) >> _CUT) << _CUT).view(np.float32).astype(np.float64)
    return np.concatenate([-upper[::-1], [0.0], upper])


@functools.cache
def _bin_of_bits() -> np.ndarray:
    """The bin of every pattern of first bits."""
    bits = np.arange(1 << (31 - _CUT), dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        sizes = (bits << _CUT).view(np.float32).astype(np.float64)
    up = np.clip(np.searchsorted(bin_edges(), sizes, side="right") - 1, BINS // 2, BINS - 1)
    return np.concatenate([up, BINS - 1 - up])


class Distribution(BaseModel):
    """The distribution of some weights.

    Attributes:
      count: how many weights.
      sums: of the weights, their squares, cubes and fourth powers; they give mean, deviation, skewness and kurtosis.
      lowest: the lowest weight.
      highest: the highest.
      beyond: how many are larger than `MAGNITUDE`, up or down.
      first: the first bin that is not empty.
      counts: weights in this bin and the next ones, up to the last that is not empty.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)

    count: int
    sums: tuple[float, float, float, float]
    lowest: float
    highest: float
    beyond: int
    first: int
    counts: tuple[int, ...]

    @property
    def histogram(self) -> np.ndarray:
        """Weights in each of all bins, (BINS,)."""
        whole = np.zeros(BINS, np.int64)
        whole[self.first : self.first + len(self.counts)] = self.counts
        return whole

    @property
    def mean(self) -> float:
        """Mean of the weights."""
        return self.sums[0] / self.count

    @property
    def moments(self) -> tuple[float, float, float]:
        """The second, third and fourth moment about the mean."""
        m = self.mean
        second, third, fourth = (part / self.count for part in self.sums[1:])
        return second - m**2, third - 3 * m * second + 2 * m**3, fourth - 4 * m * third + 6 * m**2 * second - 3 * m**4


# {sublayer: {part: distribution}}: kernel and bias, gamma and beta.
Distributions = dict[str, dict[str, Distribution]]


def measure(arrays: Iterable[np.ndarray]) -> Distribution:
    """The distribution of the weights in some arrays; the result does not depend on how they are cut, but for rounding.

    Raises:
      FloatingPointError: a weight is not finite.
    """
    count = beyond = 0
    sums = np.zeros(4)
    lowest, highest = np.inf, -np.inf
    patterns = np.zeros(1 << (32 - _CUT), np.int64)
    for array in arrays:
        flat = np.asarray(array, np.float32).ravel()
        if not np.isfinite(flat).all():
            raise FloatingPointError("a weight is not finite")
        count += flat.size
        lowest, highest = min(lowest, float(flat.min())), max(highest, float(flat.max()))
        beyond += int(np.count_nonzero(flat > MAGNITUDE) + np.count_nonzero(flat < -MAGNITUDE))
        # Adding 0 makes -0 a 0.
        patterns += np.bincount((flat + np.float32(0)).view(np.uint32) >> _CUT, minlength=len(patterns))
        for start in range(0, flat.size, _CHUNK):
            values = flat[start : start + _CHUNK].astype(np.float64)
            squares = values * values
            sums += [values.sum(), squares.sum(), (squares * values).sum(), (squares * squares).sum()]
    histogram = np.bincount(_bin_of_bits(), weights=patterns, minlength=BINS).astype(np.int64)
    filled = np.flatnonzero(histogram)
    first, last = (int(filled[0]), int(filled[-1])) if count else (0, -1)
    return Distribution(
        count=count, sums=tuple(sums.tolist()), lowest=lowest, highest=highest, beyond=beyond, first=first,
        counts=tuple(histogram[first : last + 1].tolist()),
    )  # fmt: skip


def join(distributions: Iterable[Distribution]) -> Distribution:
    """The distribution of all their weights together."""
    parts = list(distributions)
    histogram = sum((part.histogram for part in parts), np.zeros(BINS, np.int64))
    filled = np.flatnonzero(histogram)
    sums = np.sum([part.sums for part in parts], axis=0)
    return Distribution(
        count=sum(part.count for part in parts), sums=tuple(sums.tolist()), lowest=min(part.lowest for part in parts),
        highest=max(part.highest for part in parts), beyond=sum(part.beyond for part in parts), first=int(filled[0]),
        counts=tuple(histogram[filled[0] : filled[-1] + 1].tolist()),
    )  # fmt: skip


def measure_sublayers(weights: Iterable[Weight], read: Callable[[str], np.ndarray]) -> Distributions:
    """The distributions of the four sublayers of the blocks over all blocks (P1, figures 1 and 2), parts apart.

    Args:
      weights: the model's table.
      read: gives a variable's values by path.
    """
    paths: dict[tuple[str, str], list[str]] = {}
    for weight in weights:
        if weight.sublayer in BLOCK_SUBLAYERS:
            paths.setdefault((weight.sublayer, weight.part), []).append(weight.path)
    found: Distributions = {}
    for (sublayer, part), mine in paths.items():
        found.setdefault(sublayer, {})[part] = measure(read(path) for path in mine)
    return found
