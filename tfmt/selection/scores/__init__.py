"""The scores by which an expression thins a term; one module a score.

Each gives, for a `Pool` and its own options, a number a weight; the highest are kept, or the lowest. `random` picks
without numbers. `NEEDS` says what they are made of: `nothing`, `values`, `gradient` or `squares` on training data, or
`tuned` values of a full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from tfmt.selection.scores import change, far, fisher, gradient, magnitude, random, rgn, sensitivity

SCORES: Mapping[str, ModuleType] = {
    "random": random,
    "magnitude": magnitude,
    "far": far,
    "fisher": fisher,
    "gradient": gradient,
    "sensitivity": sensitivity,
    "change": change,
    "rgn": rgn,
}
BY_POOL = ("far",)  # whose numbers depend on what else is in the pool
