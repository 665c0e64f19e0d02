"""What a run tuned, as safetensors under Hugging Face's PyTorch names and orientation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from tfmt.bert.vocabulary import Weight
from tfmt.errors import RequestError


def to_torch_names(
    weights: Iterable[Weight], values: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Selected values under PyTorch's names; of a masked variable `<name>.indices` and `<name>.values`.

    Indices count in the flattened tensor as PyTorch stores it.

    Args:
      weights: the model's table.
      values: {path: the whole variable, or the selected values of a masked one}.
      masks: {path: selected indices into TensorFlow's flattened variable}.
    """
    tensors: dict[str, np.ndarray] = {}
    for weight in weights:
        if weight.path not in values:
            continue
        value = values[weight.path]
        if weight.path in masks:
            indices = _flip_indices(masks[weight.path], weight.shape) if weight.transposed else masks[weight.path]
            order = np.argsort(indices)
            tensors[f"{weight.torch_name}.indices"] = indices[order]
            tensors[f"{weight.torch_name}.values"] = value[order]
        else:
            tensors[weight.torch_name] = value.T if weight.transposed else value
    return tensors


def from_torch_names(
    weights: Iterable[Weight], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The inverse of `to_torch_names`: (values by path, masks by path).

    Raises:
      RequestError: a tensor of no known name, or of another shape.
    """
    values: dict[str, np.ndarray] = {}
    masks: dict[str, np.ndarray] = {}
    left = set(tensors)
    for weight in weights:
        name = weight.torch_name
        stored = weight.shape[::-1] if weight.transposed else weight.shape
        if name in tensors:
            if tensors[name].shape != stored:
                raise RequestError(f"{name} has shape {list(tensors[name].shape)}, the model asks for {list(stored)}")
            values[weight.path] = tensors[name].T if weight.transposed else tensors[name]
        elif f"{name}.indices" in tensors:
            indices, selected = tensors[f"{name}.indices"], tensors[f"{name}.values"]
            if len(indices) != len(selected) or (
                len(indices) and not 0 <= indices.min() <= indices.max() < weight.size
            ):
                raise RequestError(f"{name}.indices do not fit the model")
            indices = _flip_indices(indices, stored) if weight.transposed else indices
            order = np.argsort(indices)
            masks[weight.path], values[weight.path] = indices[order], selected[order]
        left -= {name, f"{name}.indices", f"{name}.values"}
    if left:
        raise RequestError(f"holds {sorted(left)[0]}, which this model has not")
    return values, masks


def to_torch_indices(indices: np.ndarray, weight: Weight) -> np.ndarray:
    """Rising indices into TensorFlow's flattened variable as rising ones into PyTorch's flattened tensor."""
    return np.sort(_flip_indices(indices, weight.shape)) if weight.transposed else indices


def from_torch_indices(indices: np.ndarray, weight: Weight) -> np.ndarray:
    """The inverse of `to_torch_indices`."""
    return np.sort(_flip_indices(indices, weight.shape[::-1])) if weight.transposed else indices


def _flip_indices(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Flat indices into a matrix -> flat indices of the same elements in its transpose."""
    rows, columns = np.unravel_index(indices, shape)
    return np.ravel_multi_index((columns, rows), shape[::-1]).astype(np.int64)
