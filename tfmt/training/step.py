"""One traced optimizer step, with all that its trace holds on to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfmt.bert.forward import dropout_at
from tfmt.bert.vocabulary import variable_path
from tfmt.selection.gradient_mask import GradientMask
from tfmt.spec import RunSpec
from tfmt.tasks import Task
from tfmt.training.adam import FusedAdam
from tfmt.training.optimizers import make_optimizer
from tfmt.training.schedule import WarmupSchedule


@dataclass(frozen=True)
class Step:
    """A training step that runs of one signature share.

    Attributes:
      optimizer: the outermost optimizer.
      mask: the GradientMask in it; None where whole variables train.
      schedule: its learning rate.
      fresh: values of `state` before the first step; None stands for zeros, of which there are gigabytes.
      function: takes a batch and gives the mean loss over it.
      start: blocks whose cached output the batch holds in place of the text.
    """

    optimizer: Any
    mask: GradientMask | None
    schedule: WarmupSchedule
    fresh: tuple[np.ndarray | None, ...]
    function: Any
    start: int

    @property
    def state(self) -> list[Any]:
        """All variables of the optimizer, the loss scale included."""
        return _state_of(self.optimizer)

    def renew(self, schedule: Mapping[str, Any], masks: Mapping[str, np.ndarray]) -> None:
        """Puts the step into the state in which a run of this schedule and these masks starts."""
        self.schedule.assign(**schedule)
        if self.mask is not None:
            self.mask.assign_masks(masks)
        for variable, value in zip(self.state, self.fresh, strict=True):
            variable.assign(np.zeros(variable.shape, variable.dtype.as_numpy_dtype) if value is None else value)


def _state_of(optimizer: Any) -> list[Any]:
    variables = list(optimizer.variables)
    if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        variables += [optimizer._loss_scale.current_loss_scale, optimizer._loss_scale.counter]
    return variables


def _value_or_zeros(variable: Any) -> np.ndarray | None:
    value = variable.numpy()
    return value if np.any(value) else None


def trace_step(
    model: Any,
    task: Task,
    strategy: Any,
    variables: Sequence[Any],
    masks: Mapping[str, np.ndarray],
    spec: RunSpec,
    schedule: Mapping[str, Any],
    *,
    start: int = 0,
    jit: bool = False,
) -> Step:
    """Makes optimizer and step for some variables of a model.

    Args:
      model: a TFBert model of tfmt.
      task: what the labels mean.
      strategy: the MirroredStrategy that the model lies in.
      variables: those that train, whole or in part.
      masks: {path: indices} of those of which single weights train; empty where all train whole.
      spec: gives the optimizer, the precision and the batch size.
      schedule: arguments of `WarmupSchedule`.
      start: see `Step`.
      jit: whether XLA compiles the step.
    """
    with strategy.scope():
        rate = WarmupSchedule(**schedule)
        optimizer = make_optimizer(spec, rate, masked=bool(masks))
        # A row of a table that a batch reads twice is twice in the gradient. GradientMask adds up those of masked
        # variables and FusedAdam all; Keras does so after it has clipped, by an operation that XLA does not know.
        adds_up = isinstance(optimizer, FusedAdam) and not spec.clip_norm
        summed = [not adds_up and variable_path(variable) not in masks for variable in variables]
        mask = optimizer = GradientMask(optimizer, masks) if masks else optimizer
        if spec.precision == "float16":
            optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
        optimizer.build(list(variables))
    function = _trace(model, task, strategy, variables, summed, optimizer, spec.batch_size, start, jit)
    fresh = tuple(map(_value_or_zeros, _state_of(optimizer)))
    return Step(optimizer, mask if masks else None, rate, fresh, function, start)


def _trace(
    model: Any, task: Task, strategy: Any, variables: Sequence[Any], summed: Sequence[bool], optimizer: Any,
    batch_size: int, start: int, jit: bool,
) -> Any:  # fmt: skip
    replicas = strategy.num_replicas_in_sync
    share = batch_size // replicas
    scaled = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)

    def replica_step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        labels = batch["labels"]
        # The mean over the global batch: the sum over all replicas of these parts; 0 where no word has a label.
        labelled = tf.reduce_sum(tf.cast(labels >= 0, tf.int32)) if labels.shape.rank == 2 else batch_size
        count = tf.cast(tf.maximum(labelled, 1), tf.float32)
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * share
        part = {name: tensor[first : first + share] for name, tensor in batch.items()}
        # Watching the selection alone keeps everything below it out of the backward pass.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable)
            with dropout_at(optimizer.iterations, first):
                logits = compute_logits(model, part, start, training=True)
            loss = loss_sum(task.kind, part["labels"], logits) / count
            target = optimizer.get_scaled_loss(loss) if scaled else loss
        gradients = [
            tf.convert_to_tensor(gradient) if dense and gradient is not None else gradient
            for gradient, dense in zip(tape.gradient(target, variables), summed, strict=True)
        ]
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
        return loss

    # Compiled as a whole: a strategy keeps what runs in it for ever, if that is a tf.function itself.
    @tf.function(
        input_signature=[input_signature(model, task, start)], autograph=False, jit_compile=True if jit else None
    )
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        parts = strategy.experimental_local_results(strategy.run(replica_step, args=(batch,)))
        # On a device: `strategy.reduce` brings it to the host, and waits for it, each time; a replica's `all_reduce`
        # leaves its gradient in TensorFlow's table, and with it this graph.
        with tf.device(strategy.extended.worker_devices[0]):
            return tf.add_n(parts)

    step.get_concrete_function()  # tracing is set-up, not training
    return step


def input_signature(model: Any, task: Task, start: int, *, labels: bool = True) -> dict[str, tf.TensorSpec]:
    """What a step takes; above `start` cached blocks their output takes the place of the text."""
    whole = tf.TensorSpec([None, None], tf.int32)
    if start:
        states = tf.TensorSpec([None, None, model.config.hidden_size], model.compute_dtype)
        inputs = {"states": states, "attention_mask": whole}
    else:
        inputs = {"input_ids": whole, "attention_mask": whole, "token_type_ids": whole}
    if labels:
        inputs["labels"] = tf.TensorSpec([None, None] if task.head == "tokens" else [None],
                                         tf.float32 if task.kind == "regression" else tf.int32)  # fmt: skip
    return inputs


def compute_logits(model: Any, part: Mapping[str, tf.Tensor], start: int, *, training: bool) -> tf.Tensor:
    """Logits of a replica's part of a batch, in float32."""
    inputs = {name: tensor for name, tensor in part.items() if name != "labels"}
    if start:
        logits = model.run_suffix(inputs["states"], inputs["attention_mask"], start, training)
    else:
        logits = model(inputs, training=training).logits
    return tf.cast(logits, tf.float32)


def loss_sum(kind: str, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Sum over a batch of the cross-entropy, or of the squared error for regression; labels below 0 do not count."""
    if kind == "regression":
        return tf.reduce_sum(tf.math.squared_difference(logits[:, 0], labels))
    counted = labels >= 0
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counted, labels, 0), logits)
    return tf.reduce_sum(tf.where(counted, losses, 0.0))
