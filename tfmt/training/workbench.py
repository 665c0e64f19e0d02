"""A model, its text and its compiled steps, ready for one run or for many that share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tqdm import tqdm

from tfmt.bert.base_weights import BaseWeights
from tfmt.bert.configs import find_model
from tfmt.bert.models import assign_weights, load_bert, new_head, set_precision, set_seed
from tfmt.data.batches import (
    Batch,
    EpochPlan,
    EvaluationBatch,
    SplitPredictions,
    compute_outputs,
    evaluation_batches,
    training_batches,
)
from tfmt.data.tokens import TokenizedSplit
from tfmt.errors import RequestError
from tfmt.selection.gradient_mask import GradientMask
from tfmt.selection.selection import select
from tfmt.spec import RunSpec
from tfmt.tasks import Task
from tfmt.training.adam import FusedAdam
from tfmt.training.prefix import PrefixStates, count_prefix_blocks
from tfmt.training.schedule import WarmupSchedule


class Workbench:
    """What runs of one model, task and precision share: strategy, variables, data, traced functions.

    Args:
      spec: a run's spec; other runs on the same bench differ in mode, layers, masks, rate, seed, epochs or schedule.
      task: the task, its classes known.
      splits: tokenised splits by name.
      labels: what predictions of each split are compared with.
      strategy: from `make_strategy`.
    """

    def __init__(
        self, spec: RunSpec, task: Task, splits: Mapping[str, TokenizedSplit], labels: Mapping[str, np.ndarray],
        strategy: Any,
    ) -> None:  # fmt: skip
        on_cpu = not tf.config.list_physical_devices("GPU")
        if spec.jit_compile == "on" and strategy.num_replicas_in_sync > 1 and on_cpu:
            raise RequestError("--jit_compile=on: XLA cannot compile steps over several CPU replicas; use --replicas=1")
        if spec.batch_size % strategy.num_replicas_in_sync:
            raise RequestError(
                f"--batch_size={spec.batch_size} is global and must be divisible by the "
                f"{strategy.num_replicas_in_sync} replicas"
            )
        self.task, self.splits, self.labels, self.strategy = task, splits, labels, strategy
        self.jit = spec.jit_compile == "on"
        set_precision(spec.precision)
        try:
            with strategy.scope():
                self.model = load_bert(spec.model, task.num_labels, spec.seed, head=task.head, classes=task.classes)
        finally:
            set_precision("float32")  # a policy left behind would change models made by others
        folder = find_model(spec.model, download=False)
        assert folder is not None
        self.base = BaseWeights(folder, task.head)
        self.base_digests: dict[str, bytes] = {}  # of the base model's variables, for the proofs of all runs
        self._predicts: dict[int, Any] = {0: self._make_predict(0)}  # by the number of cached blocks
        self._start = 0  # blocks whose output is cached, from block 0
        self._prefix: tuple[int, PrefixStates] | None = None
        self._train: Any = None
        self._shape: Any = None
        self._traced_paths: tuple[str, ...] = ()
        self._head_shape: Any = None
        self._head_step: Any = None
        self._moved: set[str] = set()
        self.fisher_step: Any = None  # traced by the first run that needs Fisher information
        self.component_step: Any = None
        self.component_sums: dict[Any, Any] = {}  # what runs with the same head share
        self.selection: Any = None  # the Selection of the run that was set up last
        self.optimizer: Any = None

    # ---- setting up a run ------------------------------------------------------------------------------------------

    def set_up(self, spec: RunSpec, steps: int, fisher: Mapping[str, np.ndarray] | None = None,
               union: Mapping[str, np.ndarray] | None = None) -> None:  # fmt: skip
        """Puts weights, head, selection, optimizer and dropout into the state in which this run starts.

        Args:
          spec: the run.
          steps: optimizer steps of the whole run.
          fisher: Fisher information by path, for `fisher`.
          union: for `fisher` with `fisher_from`, the selected indices by path.
        """
        variables = self.model.all_weights
        for path in self._moved.intersection(self.base.paths):
            variables[path].assign(self.base.read(path))
        set_seed(self.model, spec.seed)
        self.selection = select(
            self.model,
            spec.mode,
            layers=spec.layers,
            mask_size=spec.mask_size,
            mask_fraction=spec.mask_fraction,
            outlier_pool=spec.outlier_pool,
            fisher=fisher,
            union=union,
            seed=spec.seed,
        )
        self._moved = set(self.selection.paths)
        self._base_head = new_head(
            self.model.config.hidden_size, self.task.num_labels, self.model.config.initializer_range, spec.seed
        )
        assign_weights(self.model, self._base_head)
        schedule: dict[str, Any] = {
            "peak": spec.learning_rate, "steps": steps, "warmup_ratio": spec.warmup_ratio, "schedule": spec.schedule
        }  # fmt: skip
        masks = self.selection.open_masks
        # Adam treats all selected weights as one vector, so a mask may spread its number over its variables otherwise.
        size = sum(map(len, masks.values()))
        cached = spec.frozen_prefix == "cached"
        blocks = self.model.config.num_hidden_layers
        self._start = count_prefix_blocks(self.selection.weights, {*self._moved, *masks}, blocks) if cached else 0
        if self._start not in self._predicts:
            self._predicts[self._start] = self._make_predict(self._start)
        table = [weight.path for weight in self.selection.weights]
        self._traced_paths = tuple(path for path in table if path in self._moved or path in masks)
        shape = (self._traced_paths, frozenset(masks), size, self._start, spec.adam_epsilon, spec.precision,
                 spec.batch_size)  # fmt: skip
        if spec.mode == "frozen" and shape == self._head_shape:
            self._take_head_step()
        if shape == self._shape:
            self._schedule.assign(**schedule)
            if masks:
                self._mask.assign_masks(masks)
            for variable, value in zip(self.optimizer_variables, self._fresh, strict=True):
                variable.assign(value)
        else:
            self._make_optimizer(spec, schedule)
            self._train = self._make_train(spec.batch_size)
            self._train.get_concrete_function()  # tracing is set-up, not training
            self._shape = shape
            if spec.mode == "frozen":
                # Every fisher run starts with this step, so it outlives the runs in between; its state is small.
                self._head_shape = shape
                self._head_step = (self.optimizer, self._mask, self._schedule, self._fresh, self._train)

    def _take_head_step(self) -> None:
        """Makes the step of the head alone the current one."""
        self.optimizer, self._mask, self._schedule, self._fresh, self._train = self._head_step
        self.model.optimizer = self.optimizer
        self._shape = self._head_shape

    def _make_optimizer(self, spec: RunSpec, schedule: dict[str, Any]) -> None:
        with self.strategy.scope():
            self._schedule = WarmupSchedule(**schedule)
            # GradientMask joins Keras's own Adam over all masked variables, which is as quick for their few weights.
            kind = keras.optimizers.Adam if self.selection.masks else FusedAdam
            adam = kind(self._schedule, epsilon=spec.adam_epsilon)
            self._mask = GradientMask(adam, self.selection.open_masks) if self.selection.masks else adam
            optimizer = self._mask
            if spec.precision == "float16":
                optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
            optimizer.build(self._traced_variables())
        self.optimizer = self.model.optimizer = optimizer
        self._fresh = [variable.numpy() for variable in self.optimizer_variables]

    def _traced_variables(self) -> list[Any]:
        """The variables of the traced step: the selection's, and those in which another seed may select weights."""
        variables = self.model.all_weights
        return [variables[path] for path in self._traced_paths]

    @property
    def optimizer_variables(self) -> list[Any]:
        """All state of the optimizer, the loss scale included."""
        variables = list(self.optimizer.variables)
        if isinstance(self.optimizer, keras.mixed_precision.LossScaleOptimizer):
            state = self.optimizer._loss_scale
            variables += [state.current_loss_scale, state.counter]
        return variables

    def base_value(self, path: str) -> np.ndarray:
        """What a variable held before training."""
        return self._base_head[path] if path in self._base_head else self.base.read(path)

    # ---- selected values -------------------------------------------------------------------------------------------

    def selected(self) -> dict[str, np.ndarray | None]:
        """{path: selected indices, or None where the whole variable is selected}."""
        return {path: self.selection.masks.get(path) for path in self.selection.paths}

    def read_selected(self) -> dict[str, np.ndarray]:
        """{path: the variable's values, of a masked one the selected values alone}."""
        variables = self.model.all_weights
        return {
            path: variables[path].numpy() if indices is None else variables[path].numpy().reshape(-1)[indices]
            for path, indices in self.selected().items()
        }

    def write_selected(self, values: Mapping[str, np.ndarray]) -> None:
        """The inverse of `read_selected`."""
        variables = self.model.all_weights
        for path, indices in self.selected().items():
            whole = values[path]
            if indices is not None:
                whole = variables[path].numpy()
                whole.reshape(-1)[indices] = values[path]
            variables[path].assign(whole)

    # ---- compiled steps --------------------------------------------------------------------------------------------

    def _signature(self, start: int) -> dict[str, tf.TensorSpec]:
        """What a step takes; above cached blocks their output takes the place of the text."""
        whole = tf.TensorSpec([None, None], tf.int32)
        labels = tf.TensorSpec([None, None] if self.task.head == "tokens" else [None],
                               tf.float32 if self.task.kind == "regression" else tf.int32)  # fmt: skip
        if start:
            states = tf.TensorSpec([None, None, self.model.config.hidden_size], self.model.compute_dtype)
            return {"states": states, "attention_mask": whole, "labels": labels}
        return {"input_ids": whole, "attention_mask": whole, "token_type_ids": whole, "labels": labels}

    def _logits(self, part: dict[str, tf.Tensor], start: int, training: bool) -> tf.Tensor:
        """Logits of a replica's part of a batch, in float32."""
        inputs = {name: tensor for name, tensor in part.items() if name != "labels"}
        if start:
            logits = self.model.run_suffix(inputs["states"], inputs["attention_mask"], start, training)
        else:
            logits = self.model(inputs, training=training).logits
        return tf.cast(logits, tf.float32)

    def _make_train(self, batch_size: int) -> Any:
        optimizer, strategy, start = self.optimizer, self.strategy, self._start
        variables = self._traced_variables()
        replicas = strategy.num_replicas_in_sync
        share = batch_size // replicas
        scaled = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)

        def replica_step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            labels = batch["labels"]
            # The mean over the global batch: the sum over all replicas of these parts.
            labelled = tf.reduce_sum(tf.cast(labels >= 0, tf.int32)) if labels.shape.rank == 2 else batch_size
            count = tf.cast(labelled, tf.float32)
            first = tf.distribute.get_replica_context().replica_id_in_sync_group * share
            part = {name: tensor[first : first + share] for name, tensor in batch.items()}
            # Watching the selection alone keeps everything below it out of the backward pass.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                for variable in variables:
                    tape.watch(variable)
                loss = loss_sum(self.task.kind, part["labels"], self._logits(part, start, True)) / count
                target = optimizer.get_scaled_loss(loss) if scaled else loss
            gradients = tape.gradient(target, variables)
            if scaled:
                gradients = optimizer.get_unscaled_gradients(gradients)
            optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
            return loss

        run = tf.function(replica_step, jit_compile=True, autograph=False) if self.jit else replica_step

        @tf.function(input_signature=[self._signature(start)], autograph=False)  # nothing in it is a Python loop
        def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(run, args=(batch,)), axis=None)

        return step

    def training_batches(self, plan: EpochPlan, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch for `train_step`, from step `first` on."""
        for indices, batch in zip(
            plan.indices[first:], training_batches(self.splits["train"], plan, first), strict=True
        ):
            yield self._with_states("train", indices, batch)

    def train_step(self, batch: Mapping[str, np.ndarray]) -> tf.Tensor:
        """One optimizer step on a global batch; the mean loss over it as a scalar that may still be computing."""
        return self._train({name: tf.constant(batch[name]) for name in self._signature(self._start)})

    def _make_predict(self, start: int) -> Any:
        return self._over_replicas(start, lambda part: self._logits(part, start, False))

    def _over_replicas(self, start: int, compute: Callable[[dict[str, tf.Tensor]], tf.Tensor]) -> Any:
        """`compute` of a batch without labels, each replica its rows."""
        strategy = self.strategy
        replicas = strategy.num_replicas_in_sync
        signature = {name: spec for name, spec in self._signature(start).items() if name != "labels"}

        def replica_compute(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            share = tf.shape(batch["attention_mask"])[0] // replicas
            first = tf.distribute.get_replica_context().replica_id_in_sync_group * share
            return compute({name: tensor[first : first + share] for name, tensor in batch.items()})

        @tf.function(input_signature=[signature], autograph=False)
        def whole(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            parts = strategy.experimental_local_results(strategy.run(replica_compute, args=(batch,)))
            return tf.concat(parts, axis=0)

        return whole.get_concrete_function()  # traced before threads call it

    def predict(self, name: str) -> np.ndarray:
        """Predictions for every label of a split, in the split's order: classes, or scores for regression."""
        predictions = SplitPredictions(self.task, self.splits[name])

        def compute(batch: EvaluationBatch) -> np.ndarray:
            inputs = self._with_states(name, batch.indices, batch.inputs)
            return self._run(self._predicts[self._start], inputs, self._start)

        for batch, outputs in compute_outputs(self._evaluation_batches(name), compute):
            predictions.add(batch.indices, outputs)
        return predictions.values()

    def _run(self, compiled: Any, inputs: Batch, start: int) -> np.ndarray:
        """What a function of `_over_replicas` makes of a batch."""
        names = [name for name in self._signature(start) if name != "labels"]
        return compiled({name: tf.constant(inputs[name]) for name in names}).numpy()

    def _evaluation_batches(self, name: str) -> Iterator[EvaluationBatch]:
        replicas = self.strategy.num_replicas_in_sync
        return evaluation_batches(self.splits[name], multiple_of=replicas)

    # ---- frozen blocks computed once -------------------------------------------------------------------------------

    def fill_prefix(self, limit_gb: float, *, quiet: bool) -> None:
        """Computes what the cached blocks give for all splits, unless the last run has left just that.

        Their weights are the base model's in every run on this bench, so runs share it.

        Args:
          limit_gb: memory for it, in GB.
          quiet: show no progress.

        Raises:
          RunError: the disk is full, or a number is not finite.
        """
        if not self._start or (self._prefix is not None and self._prefix[0] == self._start):
            return
        self._prefix = None  # its memory goes first
        config, start = self.model.config, self._start
        run = self._over_replicas(0, lambda part: self.model.run_prefix(part, start))
        dtype = np.dtype(tf.as_dtype(self.model.compute_dtype).as_numpy_dtype)
        first_only = start == config.num_hidden_layers and self.task.head == "sentence"
        states = PrefixStates(
            self.splits, first_only=first_only, hidden=config.hidden_size, dtype=dtype, limit=limit_gb * 1e9
        )

        def compute(batch: EvaluationBatch) -> np.ndarray:
            return self._run(run, batch.inputs, 0)

        examples = sum(map(len, self.splits.values()))
        with tqdm(total=examples, desc="frozen blocks", unit="example", leave=False, disable=quiet or None) as bar:
            for name in self.splits:
                for batch, outputs in compute_outputs(self._evaluation_batches(name), compute):
                    states.put(name, batch.indices, outputs)
                    bar.update(int((batch.indices >= 0).sum()))
        self._prefix = start, states

    def _with_states(self, name: str, indices: np.ndarray, batch: Batch) -> Batch:
        if not self._start:
            return batch
        assert self._prefix is not None
        return batch | {"states": self._prefix[1].take(name, indices, batch["attention_mask"].shape[1])}


def loss_sum(kind: str, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Sum over a batch of the cross-entropy, or of the squared error for regression; labels below 0 do not count."""
    if kind == "regression":
        return tf.reduce_sum(tf.math.squared_difference(logits[:, 0], labels))
    counted = labels >= 0
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counted, labels, 0), logits)
    return tf.reduce_sum(tf.where(counted, losses, 0.0))
