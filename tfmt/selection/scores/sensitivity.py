"""`sensitivity`: how much the loss changes, to first order, when a weight is removed.

SNIP ([Lee et al., 2019](https://arxiv.org/abs/1810.02340)) prunes by it; as a rule for what to train it is others'
use. Weights that are exactly 0, as a beta may be, have the score 0. Costs one backward pass a batch.
"""

import numpy as np

from tfmt.selection.scores.pool import Pool

NEEDS = "gradient"


def score(pool: Pool, head: str) -> np.ndarray:
    """|w E[g]|."""
    assert pool.known.values is not None
    flat = pool.lay(pool.known.gradient[head])
    end = 0
    for path, part in pool.weights.parts.items():
        values = np.ravel(pool.known.values(path))
        values = values if part is None else values[part]
        flat[end : end + len(values)] *= values
        end += len(values)
    return np.abs(flat, out=flat)
