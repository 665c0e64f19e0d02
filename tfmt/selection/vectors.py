"""Selected weights as short vectors: reading them out of variables, joining, writing back; gradients alike.

What an optimizer does with the vectors is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util


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


def make_vectors(
    variables: Mapping[str, Any], selected: Mapping[str, np.ndarray], groups: Mapping[str, Any]
) -> list[Vector]:
    """Vectors of the selected weights of variables of the same group and type.

    Args:
      variables: {path: variable}.
      selected: {path: int64 indices into the flattened variable}.
      groups: {path: what is equal for variables that may share a vector}.
    """
    together: dict[Any, list[str]] = {}
    for path, variable in variables.items():
        together.setdefault((_dtype(variable), groups[path]), []).append(path)
    return [_make_vector({path: variables[path] for path in paths}, selected) for paths in together.values()]


def _dtype(variable: Any) -> Any:
    # Under mixed precision a variable reports the type it is cast to; it is stored and updated in its true one.
    return getattr(variable, "true_dtype", variable.dtype)


def _make_vector(variables: Mapping[str, Any], selected: Mapping[str, np.ndarray]) -> Vector:
    members = []
    for path, variable in variables.items():
        # An open shape lets another mask change how many weights each variable has in the vector.
        indices = tf.Variable(selected[path], shape=[None], dtype=tf.int64, trainable=False, name=f"{path}/selected")
        members.append(Masked(path, variable, indices))
    start = [tf.gather(tf.reshape(member.variable, [-1]), selected[member.path]) for member in members]
    only = members[0].variable if len(members) == 1 else None
    name = "selected_weights" if only is None else only.name.split(":")[0]
    return Vector(tf.Variable(tf.concat(start, 0), trainable=False, name=name), tuple(members))


def load_vectors(strategy: Any, vectors: Sequence[Vector]) -> None:
    """Fills the vectors from the model's variables.

    Args:
      strategy: the variables' strategy, in cross-replica context.
      vectors: what to fill.
    """
    for vector in vectors:

        def fill(values: Any, variables: Any, indices: Any) -> None:
            parts = [_read(*each) for each in zip(variables, indices, strict=True)]
            values.assign(parts[0] if len(parts) == 1 else tf.concat(parts, 0))

        variables = [member.variable for member in vector.members]
        indices = [member.indices for member in vector.members]
        strategy.extended.update(vector.values, fill, args=(variables, indices), group=False)


def store_vectors(strategy: Any, vectors: Sequence[Vector], moved: Iterable[str]) -> None:
    """Writes the vectors back into those variables whose paths are in `moved`; else as `load_vectors`."""
    moved = frozenset(moved)
    for vector in vectors:
        start = tf.constant(0)
        for member in vector.members:
            # The variable comes first, and not the vector, because an update hands out one replica's part of its
            # first argument only, and the mirrored others cannot be written in place.
            def write(variable: Any, values: Any, indices: Any, start: Any) -> None:
                indices = tf.convert_to_tensor(indices)
                part = tf.slice(tf.convert_to_tensor(values), [start], tf.shape(indices))
                _write(variable, indices, part)

            if member.path in moved:
                arguments = (vector.values, member.indices, start)
                strategy.extended.update(member.variable, write, args=arguments, group=False)
            start += tf.size(member.indices)


def read_slots(strategy: Any, slots: Sequence[Any]) -> dict[Any, Any]:
    """What `keep_members` needs to know before the update: each replica's slot and its value; cross-replica context."""
    before = {}

    def read(slot: Any) -> None:
        before[slot.ref()] = tf.identity(slot)

    for slot in slots:
        strategy.extended.update(slot, read, group=False)
    return before


def keep_members(
    strategy: Any, vector: Vector, moved: Collection[str], slots: Sequence[Any], before: Mapping[Any, Any]
) -> None:
    """Sets the parts of slots that belong to members outside `moved` back to what they were before the update.

    Args:
      strategy: the slots' strategy, in cross-replica context.
      vector: the vector that the slots belong to.
      moved: paths of the members that had a gradient.
      slots: variables of the vector's shape.
      before: from `read_slots`.
    """

    def keep(slot: Any, indices: Any) -> None:
        parts = [tf.fill(tf.shape(each), path in moved) for each, path in zip(indices, paths, strict=True)]
        slot.assign(tf.where(tf.concat(parts, 0), slot, before[slot.ref()]))

    paths = [member.path for member in vector.members]
    indices = [member.indices for member in vector.members]
    for slot in slots:
        strategy.extended.update(slot, keep, args=(indices,), group=False)


def join_gradients(vector: Vector, gradients: Mapping[str, Any]) -> Any:
    """The vector's gradient out of its members', by path; zeros for a member without one, None if none has one.

    A member without a gradient is not written back, and `keep_members` keeps its slots.
    """
    parts = []
    for member in vector.members:
        part = gradients.get(member.path)
        parts.append(tf.zeros(tf.shape(member.indices), vector.values.dtype) if part is None else part)
    if not any(member.path in gradients for member in vector.members):
        return None
    joined = parts[0] if len(parts) == 1 else tf.concat(parts, 0)
    return tf.ensure_shape(joined, vector.values.shape)


def split_gradient(vector: Vector, total: Any) -> dict[str, Any]:
    """{path: its member's part} of a gradient of the whole vector, which may be None."""
    sizes = [tf.size(member.indices) for member in vector.members]
    parts = [None] * len(sizes) if total is None else tf.split(total, tf.stack(sizes), num=len(sizes))
    return {member.path: part for member, part in zip(vector.members, parts, strict=True)}


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
        return _gather(gradient, indices)
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


def _read(variable: Any, indices: Any) -> Any:
    """The variable's selected weights."""
    indices = tf.convert_to_tensor(indices)
    if not variable.shape.rank or _in_xla():  # XLA has no kernel for what follows
        return _gather(variable, indices)
    return tf.gather_nd(variable, _positions(indices, variable.shape))  # reads a plain variable in place


def _gather(array: Any, indices: Any) -> Any:
    """The array's elements at flat indices; `tf.gather`, made for rows, takes longer for single elements."""
    return tf.gather_nd(tf.reshape(array, [-1]), indices[:, tf.newaxis])


def _positions(indices: Any, shape: Any) -> Any:
    """Flat indices as places in an array of this shape: (selected,) -> (selected, rank)."""
    places = []
    for size in reversed(shape[1:]):
        rest = indices // size
        places.append(indices - rest * size)
        indices = rest
    return tf.stack([indices, *reversed(places)], axis=-1)


def _write(variable: Any, indices: Any, values: Any) -> None:
    """Sets the variable's selected weights, which are distinct, so that the order of writing decides nothing."""
    if _scatters_by_host(variable):
        _write_in_copy(variable, indices, values)
    elif not variable.shape.rank:  # has no places to write in
        variable.assign(tf.concat([values, tf.reshape(variable, [1])], 0)[0])
    else:
        variable.scatter_nd_update(_positions(indices, variable.shape), values)
        # From a first write in place on TensorFlow copies the variable at every whole read, also in evaluation, unless
        # it is told not to. What somebody has read stays all the same: the next write finds it shared, and copies.
        if not _in_xla():
            tf.raw_ops.DisableCopyOnRead(resource=variable.handle)


def _scatters_by_host(variable: Any) -> bool:
    """Whether TensorFlow's scatter kernels would take the variable through the host.

    On GPUs they do under op determinism: whole variable there and back, whether or not indices repeat. XLA compiles a
    scatter for the device, and has no kernel for what `_write_in_copy` does.
    """
    return (
        "GPU" in variable.device.upper()
        and variable.dtype in (tf.float16, tf.float32, tf.float64)  # the types that InplaceUpdate has on GPUs
        and variable.shape.num_elements() < 2**31  # it takes int32 indices
        and not _in_xla()
    )


def _in_xla() -> bool:
    """Whether XLA compiles what is being traced."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))


def _write_in_copy(variable: Any, indices: Any, values: Any) -> None:
    """Sets the selected weights in a copy on the variable's own device, which then becomes the variable.

    The copy lives until the old buffer is given back, as that of `tensor_scatter_nd_update` does; beside it memory
    grows with the selected weights alone. InplaceUpdate writes into its argument's buffer, hence the copy: the buffer
    of the variable may be what somebody else has read. Read in TensorFlow's kernels, tried on CPUs, untried on a GPU.
    """
    copy = tf.raw_ops.DeepCopy(x=tf.reshape(variable, [-1]))
    flat = tf.raw_ops.InplaceUpdate(x=copy, i=tf.cast(indices, tf.int32), v=values)
    variable.assign(tf.reshape(flat, variable.shape))
