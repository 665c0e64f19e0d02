"""`far`: the distance from the mean of the pool, by which P1 finds outliers.

AkbarTajari et al. (2022, section 4) take, in each LayerNorm, the weights farthest from its mean: that is
`layernorm:far(n, per=module)`. The score depends on the pool, not on the weight alone. Costs nothing.
"""

import numpy as np

from tfmt.selection.scores.pool import Pool

NEEDS = "values"


def score(pool: Pool) -> np.ndarray:
    """|w - mean over the pool|, float64."""
    assert pool.known.values is not None
    flat = pool.lay(pool.known.values, np.float64)
    flat -= flat.mean()
    return np.abs(flat, out=flat)
