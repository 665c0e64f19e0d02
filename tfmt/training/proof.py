"""The proof that nothing outside a selection moved, and how far the selected weights went."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tfmt.bert.vocabulary import Weight

Reader = Callable[[str], np.ndarray]
IndicesOf = Callable[[str], np.ndarray]


def digest_unselected(weights: Iterable[Weight], selected: Mapping[str, np.ndarray | None], read: Reader) -> str:
    """sha256 over the bytes of everything outside the selection, in the order of the table.

    Args:
      weights: the model's table.
      selected: {path: indices, or None where the whole variable is selected}.
      read: gives a variable's values by path.
    """
    digest = hashlib.sha256()
    for weight in weights:
        if weight.path in selected and selected[weight.path] is None:
            continue
        digest.update(weight.path.encode())
        values = np.ascontiguousarray(read(weight.path), np.float32).reshape(-1)
        indices = selected.get(weight.path)
        if indices is not None:
            values = np.delete(values, indices)
        digest.update(values.data)
    return digest.hexdigest()


def count_changed(
    weights: Iterable[Weight], selected: Mapping[str, np.ndarray | None], before: Reader, after: Reader
) -> tuple[int, int]:
    """How many weights differ in any bit: (inside the selection, outside it)."""
    inside = outside = 0
    for weight in weights:
        old = np.ascontiguousarray(before(weight.path), np.float32).reshape(-1).view(np.uint32)
        new = np.ascontiguousarray(after(weight.path), np.float32).reshape(-1).view(np.uint32)
        changed = old != new
        count = int(np.count_nonzero(changed))
        if weight.path not in selected:
            outside += count
            continue
        indices = selected[weight.path]
        chosen = count if indices is None else int(np.count_nonzero(changed[indices]))
        inside += chosen
        outside += count - chosen
    return inside, outside


def mean_change(weights: Iterable[Weight], before: Reader, after: Reader) -> dict[str, dict[str, float]]:
    """Mean absolute change of each component of the encoder in each block (P2, section on component change).

    Returns:
      {component: {block: mean |after - before|}}; outside the blocks the block is `-`.
    """
    change: dict[str, dict[str, float]] = {}
    for weight in weights:
        if weight.sublayer == "classifier":
            continue
        difference = np.abs(np.asarray(after(weight.path), np.float64) - before(weight.path))
        block = "-" if weight.block is None else str(weight.block)
        change.setdefault(weight.component, {})[block] = float(difference.mean())
    return change
