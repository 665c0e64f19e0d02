"""`change`: how far full fine-tuning moves a weight.

The first phase of LT-SFT ([Ansell et al., 2022](https://arxiv.org/abs/2110.07560)): fine-tune everything, see what
moved most, go back to the pre-trained weights, the head and the optimizer included, and train these alone. Costs a
whole full fine-tuning, which all runs of a task and seed share.
"""

import numpy as np

from tfmt.selection.scores.pool import Pool

NEEDS = "tuned"


def score(pool: Pool, checkpoint: str, epochs: int, rate: float) -> np.ndarray:
    """|w after full fine-tuning - w before|, float32."""
    assert pool.known.values is not None
    values, tuned = pool.known.values, pool.known.tuned[rate, epochs, checkpoint]
    flat = pool.lay(lambda path: tuned(path) - values(path))
    return np.abs(flat, out=flat)
