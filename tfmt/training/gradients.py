"""Gradients of a model's loss at its weights as they are, over training examples, to choose weights by.

The loss of an example is -log p(y|x) with the label y of the data, as `fisher.log_likelihood` has it: in token tasks a
sentence's, summed over its labelled words; for regression (y - f)^2 / 2. Dropout is off.

Two means over examples: of the gradient itself, whose signs cancel, and of the square of each example's gradient (the
square of a batch's gradient is something else). The second is the diagonal empirical Fisher information, which FISH
Mask takes with the head as it is when training starts.

Only the variables that are asked for are watched, so that nothing below them is part of the backward pass. Sums are
float32 whatever the model computes in, and are added up batch by batch in one order: the same request gives the same
bits.

References:
  FISH Mask ([Sung et al., 2021](https://arxiv.org/abs/2111.09839)).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfmt import signals
from tfmt.bert.models import weights_of
from tfmt.data.batches import EVALUATION_TOKENS, evaluation_batches
from tfmt.data.tokens import TokenizedSplit
from tfmt.training.fisher import batch_signature, layernorm_fisher, log_likelihood, make_layernorm_step
from tfmt.training.step import compute_logits

# What a float16 loss is multiplied by before its gradient is taken, and the gradient divided by after: small gradients
# would be 0. Halved where a gradient overflows, and a power of 2, so that nothing else follows from it.
_FLOAT16_SCALE = 2.0**15


def mean_gradient(
    model: Any,
    kind: str,
    split: TokenizedSplit,
    indices: np.ndarray,
    paths: Sequence[str],
    *,
    tokens_per_batch: int = EVALUATION_TOKENS,
    quiet: bool = True,
    step: GradientSums | None = None,
) -> dict[str, np.ndarray]:
    """The mean over examples of the gradient of the loss, with its sign.

    Args:
      model: a TFBert model from `tfmt.load_bert`.
      kind: the task's kind: `classification`, `regression` or `tokens`.
      split: tokenised text with labels.
      indices: which examples.
      paths: of which variables.
      tokens_per_batch: tokens with padding of one batch; the result does not depend on it beyond rounding.
      quiet: show no progress.
      step: what `make_mean_step(model, kind, paths)` gave, to trace it once for many calls.

    Returns:
      {path: float32 array of the variable's shape}; what no example reaches, as the rows of words that do not occur,
      is exactly 0.

    Raises:
      FloatingPointError: a gradient is not finite.
      Stop: a signal asked for it.
    """
    return _measure(step or make_mean_step(model, kind, paths), split, indices, tokens_per_batch, quiet)


def squared_gradient(
    model: Any,
    kind: str,
    split: TokenizedSplit,
    indices: np.ndarray,
    paths: Sequence[str],
    *,
    quiet: bool = True,
    step: Any = None,
) -> dict[str, np.ndarray]:
    """The mean over examples of the square of each example's gradient: the diagonal empirical Fisher information.

    Of LayerNorm weights alone it comes from `layernorm_fisher`, in batches; else the backward pass is one example's.

    Args:
      model: a TFBert model from `tfmt.load_bert`.
      kind: the task's kind: `classification`, `regression` or `tokens`.
      split: tokenised text with labels.
      indices: which examples.
      paths: of which variables.
      quiet: show no progress.
      step: what `make_squared_step(model, kind, paths)` gave, to trace it once for many calls.

    Returns:
      {path: array of the variable's shape}, float32, of LayerNorm weights alone float64; exactly 0 as in
      `mean_gradient`.

    Raises:
      FloatingPointError: a gradient is not finite.
      Stop: a signal asked for it.
    """
    step = step or make_squared_step(model, kind, paths)
    if isinstance(step, GradientSums):
        return _measure(step, split, indices, 1, quiet)
    found = layernorm_fisher(model, kind, split, indices, step=step)
    _check_finite(found)
    return {path: found[path] for path in paths}


def make_mean_step(model: Any, kind: str, paths: Iterable[str]) -> GradientSums:
    """What `mean_gradient` computes with, traced; between two calls it holds no memory of the variables' size."""
    return GradientSums(model, kind, paths, squared=False)


def make_squared_step(model: Any, kind: str, paths: Iterable[str]) -> Any:
    """What `squared_gradient` computes with, traced; between two calls it holds no memory of the variables' size."""
    layernorms = {weight.path for weight in weights_of(model) if weight.part in ("gamma", "beta")}
    paths = tuple(paths)
    return make_layernorm_step(model, kind) if layernorms.issuperset(paths) else GradientSums(model, kind, paths, True)


class GradientSums:
    """Sums over batches of the gradients to some variables of a model, or of their squares.

    They lie beside the model on its device, where a variable's gradient is added as soon as the backward pass has it,
    and need not wait for the others. A table's gradient is the rows that a batch reads; these go to the host.

    Args:
      model: a TFBert model.
      kind: the task's kind.
      paths: of which variables.
      squared: whether batches are of one example, whose gradient is squared.
    """

    def __init__(self, model: Any, kind: str, paths: Iterable[str], squared: bool) -> None:
        weights = model.all_weights
        # Outside a replica a mirrored variable is read, and so watched, through the first replica's part of it.
        self._variables = {path: getattr(weights[path], "_primary", weights[path]) for path in paths}
        self._squared = squared
        self._largest_scale = _FLOAT16_SCALE if model.compute_dtype == "float16" else 1.0
        self._totals = {path: _empty_variable(variable.device) for path, variable in self._variables.items()}
        self._rows: dict[str, np.ndarray] = {}
        self._dense: list[str] = []  # which variables have their sum in `_totals`; the others' is in `_rows`
        self._step = self._trace(model, kind)

    def _trace(self, model: Any, kind: str) -> Any:
        scaled = self._largest_scale > 1

        @tf.function(
            input_signature=[batch_signature(model, kind, 1 if self._squared else None), tf.TensorSpec([], tf.float32)],
            autograph=False,
        )
        def step(batch: dict[str, tf.Tensor], scale: tf.Tensor) -> tuple[tf.Tensor, dict[str, Any]]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                for variable in self._variables.values():
                    tape.watch(variable)
                logs = log_likelihood(kind, batch["labels"], compute_logits(model, batch, 0, training=False))
                loss = -tf.reduce_sum(logs) * scale
            found = tape.gradient(loss, self._variables)
            found = {path: gradient for path, gradient in found.items() if gradient is not None}
            tables = {path: found.pop(path) for path in list(found) if isinstance(found[path], tf.IndexedSlices)}
            rows = {path: (table.indices, table.values / scale) for path, table in tables.items()}
            finite = tf.constant(True)
            if scaled:
                every = [*found.values(), *(table.values for table in tables.values())]
                finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in every])
                found = {path: tf.where(finite, gradient / scale, 0.0) for path, gradient in found.items()}
            for path, gradient in found.items():
                self._totals[path].assign_add(tf.square(gradient) if self._squared else gradient)
            self._dense = list(found)
            return finite, rows

        return step.get_concrete_function()

    def begin(self) -> None:
        """Sets all sums to 0."""
        self._scale = self._largest_scale
        for path, variable in self._variables.items():
            if path in self._dense:
                with tf.device(variable.device):
                    self._totals[path].assign(tf.zeros(variable.shape))
            else:
                self._rows[path] = np.zeros(variable.shape, np.float32)

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Adds the gradient of the sum of the losses of a batch, or its square.

        Raises:
          FloatingPointError: float16 does not hold it.
        """
        tensors = {name: tf.constant(array) for name, array in batch.items()}
        while True:
            finite, tables = self._step(tensors, tf.constant(self._scale))
            if finite:
                break
            if self._scale <= 1:
                raise _not_finite()
            self._scale /= 2
        for path, (indices, values) in tables.items():
            rows, places = np.unique(indices.numpy(), return_inverse=True)
            sums = np.zeros((len(rows), values.shape[1]), np.float32)
            np.add.at(sums, places, values.numpy())  # a text may read a row twice
            self._rows[path][rows] += np.square(sums) if self._squared else sums

    def take(self, examples: int) -> dict[str, np.ndarray]:
        """The sums divided by the number of examples, {path: float32 array}; their memory goes with them."""
        found = {}
        for path in self._variables:
            found[path] = self._totals[path].numpy() if path in self._dense else self._rows.pop(path)
            self._totals[path].assign(_nothing())
            found[path] /= np.float32(examples)
        return found

    def clear(self) -> None:
        """Gives the memory of the sums back."""
        self._rows.clear()
        for total in self._totals.values():
            total.assign(_nothing())


def _measure(
    sums: GradientSums, split: TokenizedSplit, indices: np.ndarray, tokens_per_batch: int, quiet: bool
) -> dict[str, np.ndarray]:
    try:
        sums.begin()
        with tqdm(total=len(indices), desc="gradients", unit="example", leave=False, disable=quiet or None) as bar:
            for batch in evaluation_batches(split, tokens_per_batch, examples=indices):
                signals.check()
                sums.add(batch.inputs)
                bar.update(len(batch.indices))
        found = sums.take(len(indices))
    finally:
        sums.clear()
    _check_finite(found)
    return found


def _nothing() -> tf.Tensor:
    return tf.zeros([0])


def _empty_variable(device: str) -> tf.Variable:
    """A variable that takes values of any shape, and has none yet."""
    with tf.device(device):
        return tf.Variable(_nothing(), shape=tf.TensorShape(None), trainable=False)


def _check_finite(found: Mapping[str, np.ndarray]) -> None:
    if not all(np.isfinite(values).all() for values in found.values()):
        raise _not_finite()


def _not_finite() -> FloatingPointError:
    return FloatingPointError("a gradient to choose weights by is not finite; use --precision=float32")
