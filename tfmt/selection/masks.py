"""What a mask may look like, and whether it fits a variable or a checkpoint."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmt.bert.vocabulary import Weight
from tfmt.errors import RequestError


def check_masks(
    masks: Mapping[str, Any], name: str = "masks"
) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...] | None]]:
    """Turns each mask into ascending indices, and remembers the shape of a boolean one for `check_fit`.

    Args:
      masks: {variable path: distinct indices into the flattened variable, or a boolean array of its shape}.
      name: the argument's name, for messages.

    Returns:
      {path: ascending int64 indices} and {path: shape of its boolean mask, else None}.

    Raises:
      RequestError: a malformed mask, or none that selects a weight.
    """
    if not isinstance(masks, Mapping):
        raise RequestError(f"{name} must be {{variable path: what trains in it}}. Received: {name}={masks!r}")
    selected: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...] | None] = {}
    for path, mask in masks.items():
        if not isinstance(path, str):
            raise RequestError(f"{name} go by the paths of variables, which are texts. Received: {path!r} in {name}")
        array = as_array(mask)
        shapes[path] = array.shape if array.dtype == bool else None
        if array.dtype == bool:
            array = np.flatnonzero(array)
        elif array.ndim != 1 or not (array.size == 0 or np.issubdtype(array.dtype, np.integer)):
            raise RequestError(
                "a mask is a 1-D sequence of indices into the flattened variable, or a boolean array of its shape. "
                f"Received: {name}[{path!r}] of type {array.dtype} and shape {array.shape}."
            )
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise RequestError(f"no variable has so many weights. Received: {array.max()} in {name}[{path!r}].")
        indices = np.sort(array).astype(np.int64)
        twice = indices[1:][indices[1:] == indices[:-1]]
        if twice.size:
            raise RequestError(
                f"every index is selected once; remove duplicates. Received: {twice[0]} in {name}[{path!r}]."
            )
        if indices.size and indices[0] < 0:
            raise RequestError(
                f"indices count from 0 in the flattened variable. Received: {indices[0]} in {name}[{path!r}]."
            )
        selected[path] = indices
    if not any(indices.size for indices in selected.values()):
        raise RequestError(
            f"masks of {len(selected)} variables select no weight (selected = trains); select at least one, or freeze "
            f"these variables and do without {name}."
        )
    return selected, shapes


def as_array(mask: Any) -> np.ndarray:
    """What NumPy makes of a value: of one that is no array, an array of objects."""
    try:
        return np.asarray(mask)
    except ValueError:  # rows of different lengths
        return np.asarray(mask, object)


def check_union(union: Mapping[str, Any], candidates: Sequence[Weight]) -> dict[str, np.ndarray]:
    """The masks of a `union` pool as rising indices, in the order of its variables.

    Args:
      union: {variable path: distinct indices, or a boolean array of the variable's shape}.
      candidates: the variables that `mode=fisher` chooses from.

    Raises:
      RequestError: as `check_masks`, an index out of range, or a variable that is no candidate.
    """
    selected, shapes = check_masks(union, "union")
    known = {weight.path: weight for weight in candidates}
    for path, indices in selected.items():
        if path not in known:
            raise RequestError(
                f"union selects weights of {path}, which mode=fisher does not choose from. Close to it: "
                f"{', '.join(_close(path, list(known))) or 'none'}"
            )
        check_fit(path, known[path], indices, shapes[path], "union")
    return {path: selected[path] for path in known if path in selected}


def check_fit(
    path: str, variable: Any, indices: np.ndarray, mask_shape: tuple[int, ...] | None, name: str = "masks"
) -> None:
    """Refuses a mask that does not fit its variable.

    Args:
      path: the variable's name in the message.
      variable: the variable, or its row of the table of weights.
      indices: ascending indices that the mask selects.
      mask_shape: the boolean mask's shape, if it was one.
      name: the argument's name in the message.

    Raises:
      RequestError: another shape, an index out of range, or a variable with a constraint.
    """
    shape = tuple(variable.shape)
    if mask_shape is not None and mask_shape != shape:
        raise RequestError(
            f"a boolean mask has its variable's shape, {shape}. Received: {name}[{path!r}] of shape {mask_shape}."
        )
    if indices.size and indices[-1] >= math.prod(shape):
        raise RequestError(
            f"{path} has {math.prod(shape)} weights, indices 0 to {math.prod(shape) - 1}. Received: {indices[-1]}."
        )
    if getattr(variable, "constraint", None) is not None:
        raise RequestError(f"{path} has a constraint, which would move unselected weights; remove it or the mask.")


def unknown_path(path: str, known: Sequence[str]) -> str:
    """The line that says which of the `known` paths was perhaps meant."""
    return (
        f"no trainable variable is called {path}; use its name without ':0' and without the BERT model's own name, and "
        f"see that it is trainable. Close to it: {', '.join(_close(path, known)) or 'none'}."
    )


def _close(path: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(path, known, n=3) or list(known[:3])


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
