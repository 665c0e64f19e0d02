"""What GradientMask refuses, in one line that names the remedy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from alone import make_data, make_model

from tfmt.errors import RequestError
from tfmt.selection.gradient_mask import GradientMask


class KerasThree:
    """Stands for an optimizer of Keras 3, which cannot be imported beside tf_keras cheaply."""


KerasThree.__module__ = "keras.src.optimizers.adam"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": []}), "select no weight"),
        (lambda: GradientMask(keras.optimizers.Adam(), {}), "select no weight"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": np.zeros(6, bool)}), "select no weight"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [1, 1]}), "remove duplicates"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [-1, 1]}), "count from 0"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [0.5]}), "1-D sequence of indices"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [[1, 2]]}), "1-D sequence of indices"),
        (lambda: GradientMask(KerasThree(), {"w": [1]}), "import tf_keras as keras"),
        (lambda: GradientMask("adam", {"w": [1]}), "expected a tf_keras optimizer"),
        (lambda: GradientMask(keras.optimizers.legacy.Adam(), {"w": [1]}), "without `legacy`"),
        (
            lambda: GradientMask(keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam()), {"w": [1]}),
            "goes inside",
        ),
        (lambda: GradientMask(GradientMask(keras.optimizers.Adam(), {"w": [1]}), {"w": [1]}), "all masks into one"),
    ],
)
def test_a_wrong_request_is_refused_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": [6]}, "6 weights, indices 0 to 5"),
        ({"w": np.ones(6, bool)}, r"shape, \(2, 3\)"),
        ({"ww": [0]}, "no trainable variable is called ww.*: w"),
        ({"bound": [0]}, "constraint"),
        ({"twin": [0]}, "two variables"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_at_the_first_step(masks: dict[str, Any], message: str) -> None:
    variables = [
        tf.Variable(tf.ones([2, 3]), name="w"),
        tf.Variable(tf.ones(2), name="bound", constraint=lambda value: value),
        tf.Variable(tf.ones(2), name="twin"),
        tf.Variable(tf.ones(2), name="twin"),
    ]
    with pytest.raises(RequestError, match=message):
        GradientMask(keras.optimizers.SGD(), masks).apply_gradients([(tf.ones_like(v), v) for v in variables])


def test_fit_names_a_mask_that_does_not_fit() -> None:
    model = make_model()
    model.compile(GradientMask(keras.optimizers.SGD(), {"dense/kernal": [0]}), "mse")
    with pytest.raises(RequestError, match="Close to it: dense/kernel") as caught:
        model.fit(*make_data(), verbose=0)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_has_state_is_refused() -> None:
    optimizer = keras.optimizers.Adam()
    optimizer.build([tf.Variable(1.0)])
    with pytest.raises(RequestError, match="pass a new one"):
        GradientMask(optimizer, {"w": [0]})
