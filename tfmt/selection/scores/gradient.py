"""`gradient`: the absolute value of the mean gradient.

The best of the static scores in SPEFT ([Liu et al., 2025](https://arxiv.org/abs/2412.13488)). The mean keeps its
sign, so that what examples disagree on cancels, other than in `fisher`. `gradient(1, per=out)` is the rule of GPS
([Zhang et al., 2024](https://arxiv.org/abs/2312.10136)): one input of every neuron. Costs one backward pass a batch.
"""

import numpy as np

from tfmt.selection.scores.pool import Pool

NEEDS = "gradient"


def score(pool: Pool, head: str) -> np.ndarray:
    """|E[g]|."""
    flat = pool.lay(pool.known.gradient[head])
    return np.abs(flat, out=flat)
