"""`magnitude`: the absolute pre-trained value.

PaFi ([Liao et al., 2023](https://arxiv.org/abs/2305.16742)) trains the lowest, most others the highest; both ends are
worth trying. Costs nothing: no data is read, and all tasks share the selection.
"""

import numpy as np

from tfmt.selection.scores.pool import Pool

NEEDS = "values"


def score(pool: Pool) -> np.ndarray:
    """|w|, float32."""
    assert pool.known.values is not None
    flat = pool.lay(pool.known.values)
    return np.abs(flat, out=flat)
