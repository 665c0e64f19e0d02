"""`rgn`: the relative gradient norm of a tensor, |gradient| / |weights|, the same for each of its weights.

Lee et al. ([2023](https://arxiv.org/abs/2210.11466)) scale the learning rate of a tensor by it, and choose the one
block that they tune by held-out score. Choosing units by it, as in `blocks:rgn(3, whole=block)`, is tfmt's own. Costs
one backward pass a batch.
"""

import numpy as np

from tfmt.selection.scores.pool import Pool

NEEDS = "gradient"


def score(pool: Pool, head: str) -> np.ndarray:
    """The norm of E[g] over the norm of w of the whole tensor, float32; infinite where all its weights are 0."""
    assert pool.known.values is not None
    norms: dict[str, float] = {}
    for path in pool.weights.parts:
        slope, size = (np.linalg.norm(np.ravel(read(path)).astype(np.float64))
                       for read in (pool.known.gradient[head], pool.known.values))  # fmt: skip
        norms[path] = float(slope / size) if size else np.inf if slope else 0.0
    return pool.spread(norms)
