"""BERT's forward pass over the variables of a Hugging Face TFBert model, computed with fewer operations.

The sublayers stay Hugging Face's; only how they are computed differs. Two things are not what the library does:

* In sentence tasks the head reads the first position alone, so the last block computes that position only, and no
  keys and values at all. The logits are the same.
* A dropout mask is a pure function of (seed, step, place in the network, row of the global batch, position in the
  padded batch). Nothing about it has to be saved, so a resumed run draws the masks that an uninterrupted one draws,
  and any number of devices draws those of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tensorflow as tf
from transformers.activations_tf import get_tf_activation

from tfmt.bert.kernels import apply_mask, attend, gelu, layer_norm, mask_kept

# What Hugging Face's TFBert adds to the scores of padded positions.
_PADDING_SCORE = -10000.0


# Step and first row of the forward pass that is being computed; None where nobody says it.
_MOMENT: ContextVar[tuple[Any, Any] | None] = ContextVar("moment", default=None)


@contextmanager
def dropout_at(step: Any, first_row: Any) -> Iterator[None]:
    """Says for which step and rows forward passes draw their dropout; without it a model counts its own passes.

    Args:
      step: scalar integer tensor or variable.
      first_row: scalar integer, where in the global batch the rows begin that this replica computes.
    """
    token = _MOMENT.set((step, first_row))
    try:
        yield
    finally:
        _MOMENT.reset(token)


class Dropout:
    """Dropout masks that depend on (seed, step, place, row of the global batch, position) alone.

    Args:
      seed: scalar int64 tensor or variable, the run's seed.
      step: scalar integer tensor or variable.
      first_row: scalar integer, where in the global batch these rows begin.

    The masks of one forward pass are numbered in the order in which they are traced.
    """

    def __init__(self, seed: Any, step: Any, first_row: Any = 0) -> None:
        self._seed, self._step, self._first_row = (tf.cast(value, tf.int64) for value in (seed, step, first_row))
        self._place = 0

    @classmethod
    def of_pass(cls, seed: Any, passes: Any, rows: tf.Tensor) -> Dropout:
        """The dropout of a forward pass in training.

        In a loop of a user's own the first row is reckoned as if every replica had as many rows; where a last batch is
        shared unevenly its masks are others than one device would draw.

        Args:
          seed: scalar int64 tensor or variable.
          passes: the variable that counts the model's own passes, where `dropout_at` does not say the step.
          rows: how many rows this replica computes.
        """
        moment = _MOMENT.get()
        if moment is None:
            context = tf.distribute.get_replica_context()
            moment = passes.assign_add(1), (context.replica_id_in_sync_group if context else 0) * rows
        return cls(seed, *moment)

    def mask(self, shape: tf.Tensor, rate: float) -> tf.Tensor | None:
        """Which values of a tensor of this shape, (rows, ...), are kept; None for all."""
        if not rate:
            return None
        stream = self._seed * 65536 + self._place
        self._place += 1
        return mask_kept(shape, rate, stream=stream, step=self._step, first_row=self._first_row)

    def __call__(self, x: tf.Tensor, rate: float) -> tf.Tensor:
        """`x`, (rows, ...), with a share `rate` of its values set to 0 and the others divided by 1 - rate."""
        kept = self.mask(tf.shape(x), rate)
        return x if kept is None else apply_mask(x, kept, rate)


class _KeepAll:
    """Dropout outside training: none."""

    def mask(self, shape: tf.Tensor, rate: float) -> None:
        """All values are kept."""
        return None  # AutoGraph reads no function that is a docstring alone

    def __call__(self, x: tf.Tensor, rate: float) -> tf.Tensor:
        """`x`."""
        return x


keep_all = _KeepAll()


# {id of a LayerNorm: its gamma and beta for each example}; empty except where gradients of each example are wanted.
_PER_EXAMPLE: ContextVar[Mapping[int, tuple[tf.Tensor, tf.Tensor]]] = ContextVar("per_example", default={})  # noqa: B039


@contextmanager
def per_example_layernorms(affine: Mapping[int, tuple[tf.Tensor, tf.Tensor]]) -> Iterator[None]:
    """Lets LayerNorms take gamma and beta from these tensors, a row for each example, and not from their variables.

    The gradient to such a row is the example's own: a sum over its positions.

    Args:
      affine: {id of a LayerNorm: (gamma, beta)}, each (batch, 1, hidden).
    """
    token = _PER_EXAMPLE.set(affine)
    try:
        yield
    finally:
        _PER_EXAMPLE.reset(token)


def _normalise(x: tf.Tensor, layer: Any) -> tf.Tensor:
    """LayerNorm over the last axis, in float32."""
    wide = tf.cast(x, tf.float32)
    own = _PER_EXAMPLE.get().get(id(layer))
    if own is not None:
        mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
        normal = tf.nn.batch_normalization(wide, mean, variance, None, None, layer.epsilon)
        by_example = tf.reshape(normal, [tf.shape(own[0])[0], -1, normal.shape[-1]])
        return tf.cast(tf.reshape(by_example * own[0] + own[1], tf.shape(x)), x.dtype)
    gamma, beta = tf.cast(layer.gamma, tf.float32), tf.cast(layer.beta, tf.float32)
    return tf.cast(layer_norm(wide, gamma, beta, layer.epsilon), x.dtype)


def _dense(x: tf.Tensor, layer: Any) -> tf.Tensor:
    """(n, in) -> (n, out)."""
    return tf.nn.bias_add(tf.matmul(x, layer.kernel), layer.bias)


def embed(embeddings: Any, input_ids: tf.Tensor, token_type_ids: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Sum of the three embeddings and its LayerNorm: (batch, length) -> (batch, length, hidden)."""
    length = tf.shape(input_ids)[1]
    words = tf.gather(embeddings.weight, input_ids)
    kinds = tf.gather(embeddings.token_type_embeddings, token_type_ids)
    positions = embeddings.position_embeddings[:length]
    return _normalise(tf.cast(words + kinds + positions, dtype), embeddings.LayerNorm)


def _attend_from_all(x: tf.Tensor, attention: Any, padding: tf.Tensor, config: Any, drop: Any) -> tf.Tensor:
    """Self-attention of every position: (batch, length, hidden) -> (batch * length, hidden)."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = hidden // heads
    batch, length = tf.shape(x)[0], tf.shape(x)[1]
    rows = tf.reshape(x, [-1, hidden])

    def split_heads(outputs: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.reshape(outputs, [batch, length, heads, width]), [0, 2, 1, 3])

    # Scaling the kernel in place of its product is the same, on fewer numbers.
    scale = tf.cast(width**-0.5, x.dtype)
    asking = attention.query
    query = split_heads(tf.nn.bias_add(tf.matmul(rows, asking.kernel * scale), asking.bias * scale))
    key = split_heads(_dense(rows, attention.key))
    value = split_heads(_dense(rows, attention.value))
    rate = config.attention_probs_dropout_prob
    kept = drop.mask(tf.stack([batch, heads, length, length]), rate)
    context = attend(query, key, value, padding, kept, rate)
    return tf.reshape(tf.transpose(context, [0, 2, 1, 3]), [-1, hidden])


def _attend_from_first(x: tf.Tensor, attention: Any, padding: tf.Tensor, config: Any, drop: Any) -> tf.Tensor:
    """Self-attention of the first position: (batch, length, hidden) -> (batch, hidden).

    A query meets W x at every position; carried through W once, it meets x itself, and no position needs a key. So
    with values: their weighted mean is W times the weighted mean of x.
    """
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = hidden // heads
    batch, length = tf.shape(x)[0], tf.shape(x)[1]

    def by_head(dense: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.reshape(dense.kernel, [hidden, heads, width]), tf.reshape(dense.bias, [heads, width])

    query = tf.reshape(_dense(x[:, 0], attention.query), [batch, heads, width]) * tf.cast(width**-0.5, x.dtype)
    kernel, bias = by_head(attention.key)
    # The bias adds the same to all positions, and so nothing; it stays because its gradient is part of the model's.
    constant = tf.reduce_sum(query * bias, -1, keepdims=True)
    scores = tf.matmul(tf.einsum("bhw,dhw->bhd", query, kernel), x, transpose_b=True) + constant + padding
    weights = tf.nn.softmax(scores)
    rate = config.attention_probs_dropout_prob
    kept = drop.mask(tf.stack([batch, heads, 1, length]), rate)
    if kept is not None:
        weights = apply_mask(weights, kept[:, :, 0], rate)
    kernel, bias = by_head(attention.value)
    mean = tf.einsum("bhd,dhw->bhw", tf.matmul(weights, x), kernel)
    return tf.reshape(mean + tf.reduce_sum(weights, -1, keepdims=True) * bias, [batch, hidden])


def run_block(layer: Any, x: tf.Tensor, padding: tf.Tensor, config: Any, drop: Any, first_only: bool) -> tf.Tensor:
    """One block.

    Args:
      layer: a TFBertLayer, whose variables are read.
      x: (batch, length, hidden).
      padding: (batch, 1, 1, length), 0 for tokens and a large negative number for padding.
      config: the model's BertConfig.
      drop: dropout as a function of (tensor, rate).
      first_only: compute the first position's output alone.

    Returns:
      (batch, length or 1, hidden).
    """
    batch, length = tf.shape(x)[0], tf.shape(x)[1]
    attention = layer.attention.self_attention
    if first_only:
        asking, asked = x[:, :1], 1
        context = _attend_from_first(x, attention, padding[:, 0], config, drop)
    else:
        asking, asked = x, length
        context = _attend_from_all(x, attention, padding, config, drop)

    def dense_dropped(rows: tf.Tensor, dense: Any) -> tf.Tensor:
        by_example = tf.reshape(_dense(rows, dense), [batch, asked, config.hidden_size])
        return tf.reshape(drop(by_example, config.hidden_dropout_prob), [-1, config.hidden_size])

    asking = tf.reshape(asking, [-1, config.hidden_size])
    output = layer.attention.dense_output
    attended = _normalise(dense_dropped(context, output.dense) + asking, output.LayerNorm)
    # Without dropout this is no training step, and TensorFlow joins its own GELU to the product before it.
    by_hand = config.hidden_act == "gelu" and drop is not keep_all
    activation = gelu if by_hand else get_tf_activation(config.hidden_act)
    middle = activation(_dense(attended, layer.intermediate.dense))
    output = layer.bert_output
    result = _normalise(dense_dropped(middle, output.dense) + attended, output.LayerNorm)
    return tf.reshape(result, [batch, asked, config.hidden_size])


def run_embeddings(main: Any, input_ids: tf.Tensor, token_type_ids: tf.Tensor, *, drop: Any, dtype: Any) -> tf.Tensor:
    """What enters block 0 of a TFBertMainLayer.

    Args:
      main: the TFBertMainLayer.
      input_ids, token_type_ids: (batch, length), whole numbers.
      drop: dropout as a function of (tensor, rate).
      dtype: type to compute in.

    Returns:
      (batch, length, hidden).
    """
    return drop(embed(main.embeddings, input_ids, token_type_ids, dtype), main.config.hidden_dropout_prob)


def run_blocks(
    main: Any, x: tf.Tensor, attention_mask: tf.Tensor, blocks: range, *, drop: Any, first_only: bool
) -> tf.Tensor:
    """Some blocks of a TFBertMainLayer, one after the other.

    Args:
      main: the TFBertMainLayer.
      x: (batch, length, hidden), what enters the first of them.
      attention_mask: (batch, length), 1 for tokens and 0 for padding.
      blocks: which blocks.
      drop: dropout as a function of (tensor, rate).
      first_only: compute the model's last block for the first position alone.

    Returns:
      (batch, length, hidden), or (batch, 1, hidden) after the last block with `first_only`.
    """
    padding = (1.0 - tf.cast(attention_mask[:, None, None, :], x.dtype)) * tf.cast(_PADDING_SCORE, x.dtype)
    last = len(main.encoder.layer) - 1
    for index in blocks:
        x = run_block(main.encoder.layer[index], x, padding, main.config, drop, first_only and index == last)
    return x
