"""`fisher`: the diagonal of the empirical Fisher information.

The mean over training examples of the squared gradient of one example's loss, its true label given, dropout off.
`head=random` is FISH Mask's estimator ([Sung et al., 2021](https://arxiv.org/abs/2111.09839)): the head is as it is
before training. `head=trained` trains the head alone for an epoch first, as P2's `--mode=fisher` does. Costs one
backward pass an example; in LayerNorms alone, whole batches at a time.
"""

import numpy as np

from tfmt.selection.scores.pool import Pool

NEEDS = "squares"


def score(pool: Pool, head: str) -> np.ndarray:
    """E[g^2]."""
    return pool.lay(pool.known.squares[head])
