"""`random`: no score at all, every set of weights of the count is equally likely.

The control of all others, and P1's: `all:random(100% of layernorm)` is its mode `random`. Draws are nested: with one
seed fewer weights of a pool lie among more of it, up to half the pool. Each pool of an expression is a stream of its
own. Costs nothing.
"""

import numpy as np

from tfmt.selection.draws import draw_without_replacement

NEEDS = "nothing"


def pick(size: int, count: int, seed: int, stream: int) -> np.ndarray:
    """`count` of `size` positions, int64 and rising."""
    return np.sort(draw_without_replacement(size, count, seed, stream))
