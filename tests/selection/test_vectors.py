"""How selected weights are written back, by every way that a kind of device may ask for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from alone import MASKS, make_data, make_model, values_of

from tfmt.selection import vectors
from tfmt.selection.gradient_mask import GradientMask


def operations_of(graph: Any) -> set[str]:
    """Types of all operations of a graph and of the functions that it calls."""
    found = {operation.type for operation in graph.get_operations()}
    for function in graph.as_graph_def().library.function:
        found |= {node.op for node in function.node_def}
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 24])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("traced", [False, True])
def test_every_way_of_writing_sets_the_selected_weights_alone(dtype: str, count: int, traced: bool) -> None:
    generator = np.random.default_rng(count)
    start = generator.normal(size=(2, 3, 4)).astype(dtype)
    start[0, 0, 1], start[1, 1, 1] = np.nan, -0.0
    indices = np.sort(generator.choice(24, count, replace=False))
    values = generator.normal(size=count).astype(dtype)
    expected = start.copy()
    expected.reshape(-1)[indices] = values

    for write in (vectors._write, vectors._write_in_copy):
        variable = tf.Variable(start)
        read_before = variable.read_value()
        (tf.function(write) if traced else write)(variable, tf.constant(indices, tf.int64), tf.constant(values))
        assert variable.numpy().tobytes() == expected.tobytes()
        assert read_before.numpy().tobytes() == start.tobytes()  # what somebody has read is never written into


@pytest.mark.parametrize("traced", [False, True])
def test_writing_in_place_makes_later_reads_no_copies(traced: bool) -> None:
    variable = tf.Variable(tf.zeros([64, 64]))

    def write(variable: Any, values: Any) -> None:
        vectors._write(variable, tf.constant([1, 70], tf.int64), values)

    (tf.function(write) if traced else write)(variable, tf.ones([2]))
    first, second = variable.read_value(), variable.read_value()
    assert np.shares_memory(np.asarray(memoryview(first)), np.asarray(memoryview(second)))
    before = first.numpy().copy()
    (tf.function(write) if traced else write)(variable, 2 * tf.ones([2]))
    assert first.numpy().tobytes() == before.tobytes()
    assert variable.numpy().ravel()[[1, 70]].tolist() == [2, 2]


@pytest.mark.parametrize("traced", [False, True])
def test_a_run_that_writes_in_copies_is_the_same_bit_for_bit(monkeypatch: pytest.MonkeyPatch, traced: bool) -> None:
    def run() -> tuple[dict[str, np.ndarray], set[str]]:
        keras.utils.set_random_seed(0)
        model = make_model()
        optimizer = GradientMask(keras.optimizers.Adam(0.01), MASKS)
        optimizer.build(model.trainable_variables)
        words, targets = make_data()

        def step() -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(words, training=True) - targets) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            assert isinstance(gradients[0], tf.IndexedSlices)
            optimizer.apply_gradients(list(zip(gradients, model.trainable_variables, strict=True)))

        traced_step = tf.function(step)
        operations = operations_of(traced_step.get_concrete_function().graph)
        for _ in range(3):
            (traced_step if traced else step)()
        return values_of(model.trainable_variables), operations

    expected, operations = run()
    assert "ResourceScatterNdUpdate" in operations
    monkeypatch.setattr(vectors, "_scatters_by_host", lambda variable: True)
    found, operations = run()
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in expected.items()
    }
    # Under op determinism these are what TensorFlow takes through the host on GPUs.
    assert not [name for name in operations if "Scatter" in name]
    assert {"InplaceUpdate", "DeepCopy"} <= operations


def test_a_step_makes_no_map_of_unselected_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_scatters_by_host", lambda variable: True)
    table = tf.Variable(tf.zeros([500, 64]), name="table")
    kernel = tf.Variable(tf.zeros([300, 80]), name="kernel")
    optimizer = GradientMask(keras.optimizers.SGD(1.0, momentum=0.5), {"table": [5, 70], "kernel": [1, 900, 20_000]})
    optimizer.build([table, kernel])

    @tf.function
    def step() -> None:
        gradient = tf.IndexedSlices(tf.ones([2, 64]), tf.constant([0, 1]), tf.constant([500, 64]))
        optimizer.apply_gradients([(gradient, table), (tf.ones([300, 80]), kernel)])

    sizes = {
        tensor.name: tensor.shape.num_elements() or 0
        for operation in step.get_concrete_function().graph.get_operations()
        for tensor in operation.outputs
        if not tensor.dtype.is_floating
    }
    assert max(sizes.values()) <= 500  # one number for each row of the table; no mask, no positions of single weights
    step()
    assert np.flatnonzero(table.numpy()).tolist() == [5, 70]
    assert np.flatnonzero(kernel.numpy()).tolist() == [1, 900, 20_000]
    assert sum(variable.shape.num_elements() for variable in optimizer.variables) == 1 + 5


@pytest.mark.parametrize(
    ("device", "dtype", "compiled", "expected"),
    [
        ("/job:localhost/replica:0/task:0/device:GPU:1", tf.float32, False, True),
        ("/job:localhost/replica:0/task:0/device:GPU:0", tf.float32, True, False),
        ("/job:localhost/replica:0/task:0/device:GPU:0", tf.bfloat16, False, False),
        ("/job:localhost/replica:0/task:0/device:CPU:0", tf.float32, False, False),
    ],
)
def test_the_kind_of_device_decides(device: str, dtype: Any, compiled: bool, expected: bool) -> None:
    variable = SimpleNamespace(device=device, dtype=dtype, shape=tf.TensorShape([3, 4]))
    found = []

    def step() -> None:
        found.append(vectors._scatters_by_host(variable))

    step() if not compiled else tf.function(step, jit_compile=True)()
    assert found[0] is expected
