"""Selected weights as short vectors: reading them out of variables, joining, writing back; gradients alike.

What an optimizer does with the vectors is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Masked:
    """A masked variable of the model; `indices` is a variable, so that a traced step can be given another mask."""

    path: str
    variable: Any
    indices: Any


@dataclass(frozen=True)
class Vector:
    """The selected weights of some variables, one after the other.

    `values` is scratch space. It is filled from the model before each update and is in no checkpoint, because a second
    copy of a weight that outlives the step would overrule load_weights.
    """

    values: Any
    members: tuple[Masked, ...]


def make_vector(variables: Mapping[str, Any], selected: Mapping[str, np.ndarray]) -> Vector:
    """The vector of the selected weights of `variables`, both by path; the variables are of one type."""
    members = []
    for path, variable in variables.items():
        # An open shape lets another mask change how many weights each variable has in the vector.
        indices = tf.Variable(selected[path], shape=[None], dtype=tf.int64, trainable=False, name=f"{path}/selected")
        members.append(Masked(path, variable, indices))
    start = [tf.gather(tf.reshape(member.variable, [-1]), selected[member.path]) for member in members]
    only = members[0].variable if len(members) == 1 else None
    name = "selected_weights" if only is None else only.name.split(":")[0]
    return Vector(tf.Variable(tf.concat(start, 0), trainable=False, name=name), tuple(members))


def load_vectors(strategy: Any, vectors: Sequence[Vector], tables: frozenset[str]) -> None:
    """Fills the vectors from the model's variables.

    Args:
      strategy: the variables' strategy, in cross-replica context.
      vectors: what to fill.
      tables: paths of the variables that the model reads by rows, seen from their sparse gradients.
    """
    for vector in vectors:
        by_rows = [member.path in tables for member in vector.members]

        def fill(values: Any, variables: Any, indices: Any, by_rows: Sequence[bool] = by_rows) -> None:
            parts = [_read(*each) for each in zip(variables, indices, by_rows, strict=True)]
            values.assign(parts[0] if len(parts) == 1 else tf.concat(parts, 0))

        variables = [member.variable for member in vector.members]
        indices = [member.indices for member in vector.members]
        strategy.extended.update(vector.values, fill, args=(variables, indices), group=False)


def store_vectors(strategy: Any, vectors: Sequence[Vector], tables: frozenset[str], moved: Iterable[str]) -> None:
    """Writes the vectors back into those variables whose paths are in `moved`; else as `load_vectors`."""
    moved = frozenset(moved)
    for vector in vectors:
        start = tf.constant(0)
        for member in vector.members:
            # The variable comes first, and not the vector, because an update hands out one replica's part of its
            # first argument only, and the mirrored others cannot be written in place.
            def write(
                variable: Any, values: Any, indices: Any, start: Any, by_rows: bool = member.path in tables
            ) -> None:
                indices = tf.convert_to_tensor(indices)
                part = tf.slice(tf.convert_to_tensor(values), [start], tf.shape(indices))
                _write(variable, indices, part, by_rows)

            if member.path in moved:
                arguments = (vector.values, member.indices, start)
                strategy.extended.update(member.variable, write, args=arguments, group=False)
            start += tf.size(member.indices)


def join_gradients(vector: Vector, gradients: Mapping[str, Any]) -> Any:
    """The vector's gradient out of its members', by path; zeros for a member without one, None if none has one."""
    parts = []
    for member in vector.members:
        part = gradients.get(member.path)
        parts.append(tf.zeros(tf.shape(member.indices), vector.values.dtype) if part is None else part)
    if not any(member.path in gradients for member in vector.members):
        return None
    joined = parts[0] if len(parts) == 1 else tf.concat(parts, 0)
    return tf.ensure_shape(joined, vector.values.shape)


def select_gradient(gradient: Any, shape: Any, indices: Any) -> Any:
    """The gradient at the selected indices of the flattened variable.

    Gathering, not multiplying by 0 and 1, keeps NaN and inf of unselected weights out.

    Args:
      gradient: dense, or `tf.IndexedSlices`.
      shape: the variable's shape.
      indices: int64 (selected,).

    Returns:
      (selected,)
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.gather(tf.reshape(gradient, [-1]), indices)
    # Slices of the same row are summed where the first of them stands; rows without a slice point at a row of zeros
    # behind the last. Costs one integer for each row of the table, not the table.
    count = tf.shape(gradient.indices)[0]
    width = math.prod(shape[1:])
    first = tf.math.unsorted_segment_min(tf.range(count), gradient.indices, shape[0])
    first = tf.minimum(first, count)
    rows = tf.reshape(gradient.values, [count, width])
    rows = tf.math.unsorted_segment_sum(rows, tf.gather(first, gradient.indices), count + 1)
    columns = tf.cast(indices % width, first.dtype)
    return tf.gather_nd(rows, tf.stack([tf.gather(first, indices // width), columns], axis=-1))


def _read(variable: Any, indices: Any, by_rows: bool) -> Any:
    """The variable's selected weights."""
    indices = tf.convert_to_tensor(indices)
    if not by_rows:
        return tf.gather(tf.reshape(variable, [-1]), indices)
    width = math.prod(variable.shape[1:])
    rows = tf.reshape(tf.gather(variable, indices // width), [-1, width])  # reads these rows alone
    return tf.gather(rows, indices % width, batch_dims=1)


def _write(variable: Any, indices: Any, values: Any, by_rows: bool) -> None:
    """Sets the variable's selected weights.

    Writing in place makes TensorFlow copy the variable at every later whole read, also in evaluation. That is free for
    a table, which is only read by rows; for the others one copy at each step is cheaper.
    """
    if by_rows:
        position = []
        for size in reversed(variable.shape):
            position.append(indices % size)
            indices = indices // size
        variable.scatter_nd_update(tf.stack(position[::-1], axis=-1), values)
    else:
        flat = tf.tensor_scatter_nd_update(tf.reshape(variable, [-1]), indices[:, tf.newaxis], values)
        variable.assign(tf.reshape(flat, variable.shape))
