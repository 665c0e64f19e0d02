"""The predictions of a tuned model, computed as the evaluation during training computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfmt.bert.models import computing_in
from tfmt.data.batches import EvaluationBatch, SplitPredictions, compute_outputs, evaluation_batches
from tfmt.data.tokens import TokenizedSplit
from tfmt.tasks import Task
from tfmt.training.devices import make_devices


@dataclass(frozen=True)
class Predictions:
    """What a model says of some texts, in their order.

    Attributes:
      values: classes or scores, `(examples,)`; for token tasks classes `(words,)`.
      probabilities: the probability of each predicted class, `(examples,)`; None for scores and token tasks.
    """

    values: np.ndarray
    probabilities: np.ndarray | None


class Predictor:
    """A model on one GPU, or else on the CPU.

    Args:
      task: the task it was tuned for.
      build: makes the model; called in the strategy's scope.
      precision: the type to compute in, as in training.
    """

    def __init__(self, task: Task, build: Callable[[], Any], precision: str) -> None:
        self._task = task
        self._devices = make_devices(1, precision)
        strategy = self._devices.strategy
        with computing_in(precision), strategy.scope():
            model = build()
        whole = tf.TensorSpec([None, None], tf.int32)

        def logits(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            return tf.cast(model(batch, training=False).logits, tf.float32)

        @tf.function(
            input_signature=[{"input_ids": whole, "attention_mask": whole, "token_type_ids": whole}], autograph=False
        )
        def predict(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            return strategy.experimental_local_results(strategy.run(logits, args=(batch,)))[0]

        self._predict = predict.get_concrete_function()

    def predict(self, split: TokenizedSplit, advance: Callable[[int], Any] = lambda count: None) -> Predictions:
        """The predictions for a tokenised split.

        Args:
          split: the texts.
          advance: told after each batch how many texts it held.
        """
        predictions = SplitPredictions(self._task, split)
        probabilities = np.zeros(len(split)) if self._task.kind == "classification" else None

        def compute(batch: EvaluationBatch) -> np.ndarray:
            return self._predict(
                {name: tf.constant(array) for name, array in batch.inputs.items() if name != "labels"}
            ).numpy()

        for batch, outputs in compute_outputs(evaluation_batches(split, self._devices.evaluation_tokens), compute):
            predictions.add(batch.indices, outputs)
            if probabilities is not None:
                spread = outputs.astype(np.float64) - outputs.max(axis=-1, keepdims=True)
                probabilities[batch.indices] = 1 / np.exp(spread).sum(axis=-1)
            advance(len(batch.indices))
        return Predictions(predictions.values(), probabilities)
