"""The kernels' values and hand-written gradients, against the plain formulas and TensorFlow's own gradients."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import erf

from tfmt.bert import forward, kernels

TOLERANCE = {tf.float64: 1e-12, tf.float32: 2e-6, tf.bfloat16: 5e-2, tf.float16: 5e-3}


def drawn(shape, seed, dtype=tf.float64, scale=1.0):
    return tf.constant(np.random.default_rng(seed).normal(0, scale, shape), dtype)


def with_gradients(function, *inputs):
    """Outputs and gradients of a weighted sum of them, in float64; eager, traced, and with the function traced apart.

    The last two differ in how TensorFlow differentiates: a tape sees each operation, or one function whose graph it
    differentiates.
    """

    def differentiate(function, *inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(*inputs)
            total = tf.reduce_sum(tf.cast(outputs, tf.float64) * drawn(outputs.shape, 9))
        return outputs, *tape.gradient(total, inputs)

    def traced(*inputs):
        return differentiate(function, *inputs)

    ways = [traced(*inputs), tf.function(traced)(*inputs), differentiate(tf.function(function), *inputs)]
    eager, *others = ([np.asarray(tf.cast(tensor, tf.float64)) for tensor in way] for way in ways)
    for other in others:
        for one, same in zip(eager, other, strict=True):
            np.testing.assert_allclose(same, one, atol=TOLERANCE[inputs[0].dtype] * max(np.abs(one).max(), 1))
    return eager


def assert_same(ours, plain, dtype):
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=TOLERANCE[dtype] * max(np.abs(other).max(), 1))


def widened(dtype, *inputs):
    """The inputs in the type, and the same numbers in float64."""
    narrow = [tf.cast(value, dtype) for value in inputs]
    return narrow, [tf.cast(value, tf.float64) for value in narrow]


@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.bfloat16, tf.float16], ids=lambda d: d.name)
def test_gelu(dtype):
    narrow, wide = widened(dtype, drawn([7, 40], 0, scale=3.0))

    def plain(x):
        return 0.5 * x * (1 + tf.math.erf(x / np.sqrt(2)))

    assert_same(with_gradients(kernels.gelu, *narrow), with_gradients(plain, *wide), dtype)
    x = wide[0].numpy()
    np.testing.assert_allclose(kernels.gelu(wide[0]), x * (1 + erf(x / np.sqrt(2))) / 2, atol=1e-14)


def test_gelu_far_from_zero():
    x = tf.constant([-1e4, -30.0, -0.0, 30.0, 1e4])
    value, slope = with_gradients(kernels.gelu, x)
    np.testing.assert_array_equal(value, [0, 0, 0, 30, 1e4])
    np.testing.assert_allclose(slope / drawn([5], 9).numpy(), [0, 0, 0.5, 1, 1], atol=1e-6)


def plain_layer_norm(x, gamma, beta):
    mean = tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), -1, keepdims=True)
    return (x - mean) / tf.sqrt(variance + 1e-12) * gamma + beta


@pytest.mark.parametrize("shape", [[33, 24], [3, 5, 24]])
@pytest.mark.parametrize("dtype", [tf.float64, tf.float32], ids=lambda d: d.name)
def test_layer_norm(dtype, shape):
    narrow, wide = widened(dtype, drawn(shape, 0) + 3.0, drawn([24], 1), drawn([24], 2))
    ours = with_gradients(lambda x, g, b: kernels.layer_norm(x, g, b, 1e-12), *narrow)
    assert_same(ours, with_gradients(plain_layer_norm, *wide), dtype)


@pytest.mark.parametrize("asked", [6, 1])
@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [tf.float64, tf.float32, tf.bfloat16, tf.float16], ids=lambda d: d.name)
def test_attend(dtype, rate, asked):
    narrow, wide = widened(
        dtype, drawn([2, 3, asked, 4], 0), drawn([2, 3, 6, 4], 1), drawn([2, 3, 6, 4], 2)
    )  # fmt: skip
    padding = np.zeros([2, 1, 1, 6])
    padding[1, ..., 4:] = -10000
    kept = tf.constant(np.random.default_rng(3).random([2, 3, asked, 6]) >= rate) if rate else None

    def plain(query, key, value):
        weights = tf.nn.softmax(tf.einsum("bhqd,bhkd->bhqk", query, key) + padding)
        if rate:
            weights = tf.where(kept, weights / (1 - rate), 0)
        return tf.einsum("bhqk,bhkd->bhqd", weights, value)

    def ours(query, key, value):
        return kernels.attend(query, key, value, tf.constant(padding, dtype), kept, rate)

    assert_same(with_gradients(ours, *narrow), with_gradients(plain, *wide), dtype)


def test_apply_mask():
    x, kept = drawn([4, 50], 0), tf.constant(np.random.default_rng(1).random([4, 50]) >= 0.3)
    plain = with_gradients(lambda x: tf.where(kept, x / 0.7, tf.zeros_like(x)), x)
    assert_same(with_gradients(lambda x: kernels.apply_mask(x, kept, 0.3), x), plain, tf.float64)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.003])
def test_dropout_keeps_the_rate(rate):
    masks = 200
    drop = forward.Dropout(tf.constant(3), tf.constant(7))
    dropped = np.array([1 - drop.mask(tf.constant([100, 200]), rate).numpy().mean() for _ in range(masks)])
    # Values draw 8 bits, and a mask one of the two rates around `rate`.
    spread = np.sqrt(rate * (1 - rate) / 20_000 + (rate * 256 % 1) * (1 - rate * 256 % 1) / 256**2)
    assert dropped.mean() == pytest.approx(rate, abs=4 * spread / np.sqrt(masks))
    assert dropped.std() == pytest.approx(spread, rel=0.25)


def test_a_saved_function_runs_and_says_why_it_has_no_gradient(tmp_path):
    module = tf.Module()
    module.norm = tf.function(
        lambda x: kernels.layer_norm(x, tf.ones([8]), tf.zeros([8]), 1e-12), input_signature=[tf.TensorSpec([None, 8])]
    )
    x = drawn([3, 8], 0, tf.float32)
    expected = module.norm(x)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.norm(x), expected)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(loaded.norm(x))
    with pytest.raises(tf.errors.InvalidArgumentError, match="SavedModel holds no gradients"):
        tape.gradient(total, x)
