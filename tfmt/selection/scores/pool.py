"""What a score is given: the weights to choose from, and what is known of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfmt.selection.weight_sets import WeightSet

Read = Callable[[str], np.ndarray]  # gives an array of a variable's shape by its path


@dataclass(frozen=True)
class Known:
    """What scores are made of; a part that no score of a plan needs may be missing.

    Attributes:
      values: pre-trained values by path.
      gradient: {how the head was made: mean signed gradient of the loss by path}.
      squares: {how the head was made: mean squared gradient of single examples by path}.
      tuned: {(rate, epochs, checkpoint): values after full fine-tuning by path}.
    """

    values: Read | None = None
    gradient: Mapping[str, Read] = field(default_factory=dict)
    squares: Mapping[str, Read] = field(default_factory=dict)
    tuned: Mapping[tuple[Any, ...], Read] = field(default_factory=dict)

    def remembering(self) -> Known:
        """The same, the last variables that were read at hand: pools of one variable follow each other."""
        groups = (self.gradient, self.squares, self.tuned)
        kept: list[dict[Any, Read]] = [{key: _remember(read) for key, read in group.items()} for group in groups]
        return Known(self.values and _remember(self.values), *kept)


def _remember(read: Read) -> Read:
    return functools.lru_cache(maxsize=2)(read)


@dataclass(frozen=True)
class Pool:
    """Weights laid end to end, in the model's order, out of which a score chooses.

    Attributes:
      weights: which.
      known: what scores are made of.
    """

    weights: WeightSet
    known: Known

    def lay(self, read: Read, dtype: Any = None) -> np.ndarray:
        """An array of each variable, its selected places, laid end to end: (weights,), a copy."""
        flat = np.zeros(0, dtype or np.float32)
        end = 0
        for path, part in self.weights.parts.items():
            values = np.ravel(read(path))
            if not end:  # into one array at once: a list of all parts would be a second copy of a model
                flat = np.empty(len(self.weights), dtype or values.dtype)
            size = self.weights.size(path)
            flat[end : end + size] = values if part is None else values[part]
            end += size
        return flat

    def spread(self, numbers: Mapping[str, float]) -> np.ndarray:
        """One number a variable, for each of its weights in the pool: float32 (weights,)."""
        sizes = [self.weights.size(path) for path in self.weights.parts]
        return np.repeat(np.array([numbers[path] for path in self.weights.parts], np.float32), sizes)
