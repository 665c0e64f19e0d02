"""What a mask may look like, and whether it fits a variable or a checkpoint."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmt.errors import RequestError


def check_masks(
    masks: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...] | None]]:
    """Turns each mask into ascending indices, and remembers the shape of a boolean one for `check_fit`.

    Args:
      masks: {variable path: distinct indices into the flattened variable, or a boolean array of its shape}.

    Returns:
      {path: ascending int64 indices} and {path: shape of its boolean mask, else None}.

    Raises:
      RequestError: a malformed mask, or none that selects a weight.
    """
    selected: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...] | None] = {}
    for path, mask in masks.items():
        array = np.asarray(mask)
        shapes[path] = array.shape if array.dtype == bool else None
        if array.dtype == bool:
            array = np.flatnonzero(array)
        elif array.ndim != 1 or not (array.size == 0 or np.issubdtype(array.dtype, np.integer)):
            raise RequestError(
                "a mask is a 1-D sequence of indices into the flattened variable, or a boolean array of its shape. "
                f"Received: masks[{path!r}] of type {array.dtype} and shape {array.shape}."
            )
        indices = np.sort(array).astype(np.int64)
        twice = indices[1:][indices[1:] == indices[:-1]]
        if twice.size:
            raise RequestError(
                f"every index is selected once; remove duplicates. Received: {twice[0]} in masks[{path!r}]."
            )
        if indices.size and indices[0] < 0:
            raise RequestError(
                f"indices count from 0 in the flattened variable. Received: {indices[0]} in masks[{path!r}]."
            )
        selected[path] = indices
    if not any(indices.size for indices in selected.values()):
        raise RequestError(
            "the masks select no weight (selected = trains); select at least one, or use the optimizer without "
            f"GradientMask and freeze these variables. Received: masks of {len(selected)} variables."
        )
    return selected, shapes


def check_fit(path: str, variable: Any, indices: np.ndarray, mask_shape: tuple[int, ...] | None) -> None:
    """Refuses a mask that does not fit its variable.

    Args:
      path: the variable's name in the message.
      variable: the variable.
      indices: ascending indices that the mask selects.
      mask_shape: the boolean mask's shape, if it was one.

    Raises:
      RequestError: another shape, an index out of range, or a variable with a constraint.
    """
    shape = tuple(variable.shape)
    if mask_shape is not None and mask_shape != shape:
        raise RequestError(
            f"a boolean mask has its variable's shape, {shape}. Received: masks[{path!r}] of shape {mask_shape}."
        )
    if indices.size and indices[-1] >= math.prod(shape):
        raise RequestError(
            f"{path} has {math.prod(shape)} weights, indices 0 to {math.prod(shape) - 1}. Received: {indices[-1]}."
        )
    if getattr(variable, "constraint", None) is not None:
        raise RequestError(f"{path} has a constraint, which would move unselected weights; remove it or the mask.")


def unknown_path(path: str, known: Sequence[str]) -> str:
    """The line that says which of the `known` paths was perhaps meant."""
    close = difflib.get_close_matches(path, known, n=3) or list(known[:3])
    return (
        f"no trainable variable is called {path}; use its name without ':0' and without the BERT model's own name, and "
        f"see that it is trainable. Close to it: {', '.join(close) or 'none'}."
    )


class MaskDigest(tf.__internal__.tracking.Trackable):
    """Stores in a checkpoint which weights an optimizer's slots belong to, and refuses a checkpoint of other weights.

    Slots of another selection of the same size would load without a word.
    """

    def __init__(self, selected: Mapping[str, np.ndarray]) -> None:
        self._selected = selected

    def _serialize_to_tensors(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in sorted(self._selected):
            digest.update(f"{path}:{self._selected[path].size}:".encode())
            digest.update(self._selected[path].astype("<i8").tobytes())
        return {"sha256": tf.constant(digest.hexdigest())}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, Any]) -> None:
        if bytes(restored_tensors["sha256"].numpy()) != bytes(self._serialize_to_tensors()["sha256"].numpy()):
            raise RequestError(
                "the checkpoint is of a GradientMask with other masks; make the optimizer with the masks that it was "
                "saved with, or restore the model alone."
            )
