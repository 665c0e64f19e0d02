"""Whether a distribution of weights has two modes, and how far apart they are.

Two numbers answer, because each alone is easily fooled. Both look at the middle 98 % of the weights:

- Sarle's bimodality coefficient, (skewness^2 + 1) / kurtosis with the corrections for n, is 1/3 for a normal, 5/9 for a
  uniform distribution and 1 for two points; above 5/9 it points to two modes. Skew alone can raise it above 5/9 (an
  exponential lies at 5/9).
- A mixture of two normals, fitted to the histogram by expectation and maximisation, says where the modes are. They
  count as two only if Ashman's D is above 2: two normals around one centre, as heavy tails give, have a D near 0.

The middle, because outliers rule a fourth power: gammas around 0.6 and betas around 0 with a gap between them get a
coefficient of 0.87, and of 0.38 where 0.7 % of the betas lie far out, as in a pre-trained MiniLM. LayerNorms do have
such outliers (P1, table 4); what holds at most a hundredth of the weights is no mode. The coefficient of all weights is
told beside.

References:
  SAS Institute, 1990, SAS/STAT User's Guide, on the bimodality coefficient; Pfister et al., 2013, "Good things peak in
  pairs", Frontiers in Psychology 4:700, on its weaknesses; Ashman, Bird & Zepf, 1994, "Detecting bimodality in
  astronomical datasets", The Astronomical Journal 108:2348, on D; Otsu, 1979, for the split that the fit starts from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tfmt.training.distribution import Distribution, bin_edges

SARLE_THRESHOLD = 5 / 9
ASHMAN_THRESHOLD = 2.0
TRIM = 0.01  # of the weights on either side


def bimodality_coefficient(distribution: Distribution) -> float:
    """Sarle's coefficient of the middle of the weights; 0 for fewer than four weights or where one bin holds them."""
    counts, centres = _middle(distribution)
    shares = counts / counts.sum()
    away = centres - shares @ centres
    return _sarle(counts.sum(), *(float(shares @ away**power) for power in (2, 3, 4)))


def coefficient_of_all(distribution: Distribution) -> float:
    """Sarle's coefficient of all weights, outliers included, from their exact moments."""
    if distribution.lowest == distribution.highest:
        return 0.0
    return _sarle(distribution.count, *distribution.moments)


def _sarle(n: float, second: float, third: float, fourth: float) -> float:
    """The coefficient from the moments about the mean."""
    if n < 4 or second <= 0:
        return 0.0
    skewness = math.sqrt(n * (n - 1)) / (n - 2) * third / second**1.5
    excess = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * (fourth / second**2 - 3) + 6)
    return (skewness**2 + 1) / (excess + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))


def _middle(distribution: Distribution) -> tuple[np.ndarray, np.ndarray]:
    """How many of the middle weights lie in each bin that holds some, and the bins' centres."""
    edges = bin_edges()
    below = np.concatenate([[0.0], np.cumsum(distribution.histogram)])
    kept = np.diff(np.clip(below, TRIM * distribution.count, (1 - TRIM) * distribution.count))
    filled = np.flatnonzero(kept > 0)
    return kept[filled], (edges[filled] + edges[filled + 1]) / 2


@dataclass(frozen=True)
class Mode:
    """One of two normals: its share of the weights, mean, deviation, and the mean magnitude |w| of its weights."""

    share: float
    mean: float
    deviation: float
    magnitude: float


def fit_two_normals(distribution: Distribution, steps: int = 1000) -> tuple[Mode, Mode] | None:
    """The mixture of two normals that fits the middle of the weights, the lower mean first; None for a single bin."""
    counts, centres = _middle(distribution)
    if len(counts) < 2:
        return None
    counts = counts / counts.sum()
    # No narrower than a bin near 0: its weights might all be one number.
    least = np.diff(bin_edges()).min() ** 2 / 12
    belongs = np.zeros((2, len(counts)))
    belongs[(np.arange(len(counts)) > _split(counts, centres)).astype(int), np.arange(len(counts))] = 1.0
    before = -np.inf
    for _ in range(steps):
        masses = belongs * counts
        shares = masses.sum(axis=1)
        means = masses @ centres / shares
        variances = np.maximum((masses * (centres - means[:, None]) ** 2).sum(axis=1) / shares, least)
        logs = np.log(shares)[:, None] - 0.5 * np.log(2 * np.pi * variances)[:, None]
        logs = logs - 0.5 * (centres - means[:, None]) ** 2 / variances[:, None]
        top = logs.max(axis=0)
        likelihood = top + np.log(np.exp(logs - top).sum(axis=0))
        belongs = np.exp(logs - likelihood)
        now = float(counts @ likelihood)
        if now - before < 1e-10 or (belongs @ counts).min() < 1e-12:
            break
        before = now
    magnitudes = masses @ np.abs(centres) / shares
    modes = [
        Mode(float(share), float(mean), float(variance) ** 0.5, float(magnitude))
        for share, mean, variance, magnitude in zip(shares, means, variances, magnitudes, strict=True)
    ]
    low, high = sorted(modes, key=lambda mode: mode.mean)
    return low, high


def _split(counts: np.ndarray, centres: np.ndarray) -> int:
    """The last bin of the lower part where two parts differ most (Otsu, 1979)."""
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    total = float(counts @ centres)
    return int(np.argmax((total * below - sums) ** 2 / (below * (1 - below))))


def ashman_d(modes: tuple[Mode, Mode] | None) -> float:
    """How far two normals lie apart in units of their widths; 0 where there are none."""
    if modes is None:
        return 0.0
    low, high = modes
    return math.sqrt(2) * (high.mean - low.mean) / math.hypot(low.deviation, high.deviation)


def magnitude_ratio(modes: tuple[Mode, Mode] | None) -> float:
    """How many times the magnitude of the smaller mode the larger one has; NaN unless D says that there are two."""
    if modes is None or ashman_d(modes) <= ASHMAN_THRESHOLD:
        return math.nan
    small, large = sorted(mode.magnitude for mode in modes)
    return large / small if small > 0 else math.inf
