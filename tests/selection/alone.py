"""A small model, masks of it, and the inner optimizer alone on vectors of just the selected weights."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

ROWS, WIDTH, HIDDEN = 30, 4, 5
# The words 0 to 9 occur in the batches below; a selected weight of row 25 never gets a gradient.
MASKS = {
    "words/embeddings": [1, 2, 13, 25 * WIDTH],
    "dense/kernel": np.random.default_rng(0).random((WIDTH, HIDDEN)) < 0.3,
    "dense/bias": [],
    "norm/gamma": [0, 4],
    "norm/beta": [2],
}


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """A strategy over logical CPU devices.

    TensorFlow's collectives mix up the exchanges of two strategies over the same devices in one process, also for plain
    Keras, and other tests make strategies, too. So these sum on one device.
    """
    devices = [f"CPU:{i}" for i in range(replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


def make_model() -> keras.Model:
    words = keras.Input([3], dtype=tf.int32)
    hidden = keras.layers.Embedding(ROWS, WIDTH, name="words")(words)
    hidden = keras.layers.Dense(HIDDEN, activation="tanh", name="dense")(hidden)
    hidden = keras.layers.LayerNormalization(name="norm")(hidden)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(words, keras.layers.Dense(2, name="head", dtype=tf.float32)(hidden))


def make_data(count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.integers(10, size=(count, 3)), generator.normal(size=(count, 2)).astype(np.float32)


def indices_of(mask: Any) -> np.ndarray:
    mask = np.asarray(mask)
    return np.flatnonzero(mask) if mask.dtype == bool else mask.astype(int)


def name_of(variable: Any) -> str:
    return variable.name.split(":")[0]


def values_of(variables: list[Any]) -> dict[str, np.ndarray]:
    return {name_of(variable): variable.numpy() for variable in variables}


def dense(gradient: Any) -> np.ndarray:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient.numpy()
    whole = np.zeros(gradient.dense_shape.numpy(), np.float32)
    np.add.at(whole, gradient.indices.numpy(), gradient.values.numpy())
    return whole


class Alone:
    """The inner optimizer on plain variables: one vector of the selected weights for each masked variable."""

    def __init__(self, optimizer: Any, start: dict[str, np.ndarray], masks: dict[str, Any]) -> None:
        self.optimizer = optimizer
        self.selected = {name: indices_of(masks[name]) if name in masks else None for name in start}
        self.variables = {name: tf.Variable(self.take(name, value)) for name, value in start.items()}

    def take(self, name: str, value: np.ndarray) -> np.ndarray:
        indices = self.selected[name]
        return value if indices is None else value.reshape(-1)[indices]

    def step(self, gradients: dict[str, np.ndarray]) -> None:
        pairs = [(self.take(name, gradient), self.variables[name]) for name, gradient in gradients.items()]
        self.optimizer.apply_gradients([(tf.constant(gradient), variable) for gradient, variable in pairs])

    def check(self, start: dict[str, np.ndarray], now: dict[str, np.ndarray], atol: float = 1e-7) -> None:
        for name, value in now.items():
            np.testing.assert_allclose(self.take(name, value), self.variables[name].numpy(), rtol=0, atol=atol)
            if self.selected[name] is not None:
                kept = np.delete(value.reshape(-1), self.selected[name])
                assert kept.tobytes() == np.delete(start[name].reshape(-1), self.selected[name]).tobytes()
