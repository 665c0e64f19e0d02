"""The operations of BERT's forward pass that TensorFlow computes in many passes over memory, in fewer.

Each is a plain formula with a gradient written by hand; the tests compare the gradients with those that TensorFlow
derives from the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import tensorflow as tf

_PHILOX = 1  # TensorFlow's number for the generator
_COUNTER_BYTES = 16  # what Philox draws for one value of its counter


def mask_kept(shape: Any, rate: float, *, stream: tf.Tensor, step: tf.Tensor, first_row: tf.Tensor) -> tf.Tensor:
    """Draws which values dropout keeps, each dropped with probability `rate`.

    A row of the mask is decided by `stream`, `step` and its number in the global batch alone, so that devices which
    hold parts of a batch draw together what one device draws for all of it.

    Drawing is most of what dropout costs, so a value gets eight bits, and the rate of one mask is the multiple of 1/256
    below or above `rate`: which one is drawn too, for all rows of a step alike, with the odds that make the mean rate
    exact. For a rate of 0.1 a mask drops 9.8 or 10.2 %.

    Args:
      shape: of the mask, an integer tensor: (rows, ...).
      rate: between 0 and 1.
      stream: scalar int64, different for each seed and place in the network.
      step: scalar int64.
      first_row: scalar int64, the number of the mask's first row in the global batch.

    Returns:
      A boolean tensor.
    """
    rows, size = shape[0], tf.reduce_prod(shape[1:])
    counters = (size + _COUNTER_BYTES - 1) // _COUNTER_BYTES  # a row begins with a counter of its own
    start = first_row * tf.cast(counters, tf.int64)
    words = _draw_words(tf.stack([rows, counters * (_COUNTER_BYTES // 4)]), stream * 2, start, step)
    below, odds = divmod(rate * 256, 1)
    higher = _draw_words([1], stream * 2 + 1, tf.zeros([], tf.int64), step)[0] < tf.constant(
        int(odds * 2**32), tf.uint32
    )
    limit = tf.cast(tf.minimum(int(below) + tf.cast(higher, tf.int32), 255), tf.uint8)
    drawn = tf.reshape(tf.bitcast(words, tf.uint8), tf.stack([rows, counters * _COUNTER_BYTES]))
    return tf.reshape(drawn[:, :size] >= limit, shape)  # where a row fills its counters the slice is no copy


def _draw_words(shape: Any, key: tf.Tensor, start: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Random uint32 of Philox's stream `key`, from counter (start, step) on, four to a counter."""
    counter = tf.cast(tf.stack([start, step]), tf.uint64)
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=tf.cast(key, tf.uint64)[None], counter=counter, alg=_PHILOX, dtype=tf.uint32
    )


def apply_mask(x: tf.Tensor, kept: tf.Tensor, rate: float) -> tf.Tensor:
    """`x` where `kept`, divided by 1 - rate, and 0 elsewhere."""
    # Multiplying by a mask of numbers costs one pass forward and one backward; selecting costs two and three.
    return x * tf.where(kept, tf.constant(1 / (1 - rate), x.dtype), tf.zeros([], x.dtype))


def _by_hand(gradient: Callable[..., tuple[tf.Tensor, ...]]) -> Callable[..., tf.Tensor]:
    """Enters a gradient into TensorFlow's table, once for all graphs.

    `tf.custom_gradient` enters one for each use in a graph, under a new name that is never taken out, and with it the
    graph, the model's weights and the slots of its optimizer.

    Args:
      gradient: from the result's gradient, the inputs and what is kept to the gradients of the first inputs; the others
        have none.

    Returns:
      A function of (result, inputs, kept): the result, as a function of the inputs that has this gradient. What is kept
      is computed for the gradient alone, and not at all where none is taken.
    """
    name = f"tfmt{gradient.__name__}"

    @tf.RegisterGradient(name)
    def of_operation(operation: Any, upstream: tf.Tensor, *others: Any) -> list[tf.Tensor | None]:
        # Writing a SavedModel, TensorFlow asks for a gradient of this name without what is kept.
        if operation is None:
            return _refuse_gradient([upstream, *others])
        tensors = [*operation.inputs[1:], *getattr(operation, "tfmt_kept", ())]
        found = gradient(upstream, *tensors)
        return [None, *found, *[None] * (len(operation.inputs) - 1 - len(found))]

    def attach(result: tf.Tensor, inputs: Sequence[tf.Tensor], kept: Sequence[tf.Tensor]) -> tf.Tensor:
        eager = tf.executing_eagerly()
        graph = None if eager else tf.compat.v1.get_default_graph()
        # Two kinds of differentiation: of a graph, which looks at this operation, and by a tape, which is told.
        with nullcontext() if graph is None else graph.gradient_override_map({"IdentityN": name}):
            outputs = tf.identity_n([result, *inputs])
        if graph is not None:
            outputs[0].op.tfmt_kept = tuple(kept)
        tf.__internal__.record_gradient(name, [result, *inputs, *kept], [], outputs[:1])
        return outputs[0]

    return attach


def _refuse_gradient(upstream: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """In a SavedModel of a function that calls a model: the function runs, and a gradient of it is an error."""
    why = "a SavedModel holds no gradients of tfmt's forward pass: save the model itself, model.save(...), to train it"
    with tf.control_dependencies([tf.debugging.Assert(False, [why])]):
        return [tf.identity(each) for each in upstream]


@_by_hand
def _gelu_gradient(upstream: tf.Tensor, x: tf.Tensor, slope: tf.Tensor) -> tuple[tf.Tensor]:
    return (upstream * slope,)


def gelu(x: tf.Tensor) -> tf.Tensor:
    """x times the normal distribution function of x, exactly (by erf), in the type of `x`."""
    x = tf.convert_to_tensor(x)
    scaled = x * math.sqrt(0.5)
    share = tf.math.erf(scaled) * 0.5 + 0.5
    # Computed here and not in the gradient, so that one tensor is kept for it and not two; without a gradient
    # TensorFlow prunes it.
    slope = share + scaled * tf.exp(-tf.square(scaled)) * math.sqrt(1 / math.pi)
    return _gelu_gradient(x * share, [x], [slope])


@_by_hand
def _layer_norm_gradient(
    upstream: tf.Tensor, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, normal: tf.Tensor, scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    rows = list(range(len(x.shape) - 1))
    by_normal = upstream * normal
    weighted = upstream * gamma
    mean = tf.reduce_mean(weighted, -1, keepdims=True)
    slope = tf.tensordot(by_normal, gamma / gamma.shape[0], 1)[..., None]
    inner = (weighted - mean - normal * slope) * scale
    return inner, tf.reduce_sum(by_normal, rows), tf.reduce_sum(upstream, rows)


def layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """LayerNorm over the last axis.

    Args:
      x: (..., hidden), float32 or float64.
      gamma, beta: (hidden,).
      epsilon: added to the variance.
    """
    x, gamma, beta = (tf.convert_to_tensor(value) for value in (x, gamma, beta))
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    normal = centred * scale
    return _layer_norm_gradient(normal * gamma + beta, [x, gamma, beta], [normal, scale])


def _used(weights: tf.Tensor, kept: Sequence[tf.Tensor]) -> tf.Tensor:
    """Attention weights, 0 where dropout drops them; `kept` holds the mask, or nothing."""
    return weights * tf.cast(kept[0], weights.dtype) if kept else weights


@_by_hand
def _attend_gradient(
    upstream: tf.Tensor, query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, weights: tf.Tensor, context: tf.Tensor,
    *kept: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:  # fmt: skip
    # Computed again, as they are the largest of what a long text would keep until here. Without the wait TensorFlow
    # sees that the two are the same, and keeps the first.
    with tf.control_dependencies([upstream]):
        used = _used(weights, kept)
    # A row's sum of used * gradient is the product of its context and the context's gradient, which is short.
    mean = tf.reduce_sum(upstream * context, -1, keepdims=True)
    scores = used * tf.matmul(upstream, value, transpose_b=True) - weights * mean
    return (
        tf.matmul(scores, key),
        tf.matmul(scores, query, transpose_a=True),
        tf.matmul(used, upstream, transpose_a=True),
    )


def attend(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, padding: tf.Tensor, kept: tf.Tensor | None,
           rate: float) -> tf.Tensor:  # fmt: skip
    """Attention of every head, with dropout of its weights.

    Args:
      query: (batch, heads, asked, width), scaled.
      key, value: (batch, heads, length, width).
      padding: (batch, 1, 1, length), added to the scores; gets no gradient.
      kept: which weights dropout keeps, (batch, heads, asked, length), or None for all.
      rate: dropout's rate.

    Returns:
      (batch, heads, asked, width).
    """
    mask = [] if kept is None else [kept]
    # Dividing the values by 1 - rate is the same as dividing the weights, of which there are more.
    value = value if kept is None else value * (1 / (1 - rate))
    weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True) + padding)
    context = tf.matmul(_used(weights, mask), value)
    return _attend_gradient(context, [query, key, value], [weights, context, *mask])
