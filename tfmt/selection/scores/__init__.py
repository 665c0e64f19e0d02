"""The scores by which an expression thins a term; one module a score.

Each gives, for a `Pool` and its own options, a number a weight; the highest are kept, or the lowest. `NEEDS` says what
the numbers are made of: `values`, `gradient` or `squares` on training data, or `tuned` values of a full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from tfmt.selection.scores import change, far, fisher, gradient, magnitude, rgn, sensitivity

# `random` has no numbers: `tfmt.selection.draws` draws it.
SCORES: Mapping[str, ModuleType] = {
    "magnitude": magnitude,
    "far": far,
    "fisher": fisher,
    "gradient": gradient,
    "sensitivity": sensitivity,
    "change": change,
    "rgn": rgn,
}
