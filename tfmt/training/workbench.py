"""A model, its text and its compiled steps, ready for one run or for many that share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfmt import signals
from tfmt.bert.base_weights import BaseWeights
from tfmt.bert.configs import find_model
from tfmt.bert.models import assign_weights, computing_in, load_bert, new_head, set_seed, weights_of
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
from tfmt.errors import RequestError, RunError
from tfmt.selection.modes import plan_spec
from tfmt.selection.plans import Chosen, Plan
from tfmt.selection.scores.pool import Known
from tfmt.selection.selection import apply_plan
from tfmt.spec import RunSpec
from tfmt.tasks import Task
from tfmt.training.devices import Devices, set_tensor_float
from tfmt.training.optimizers import joins_masks
from tfmt.training.predictions import SplitTruth
from tfmt.training.prefix import PrefixStates, count_prefix_blocks
from tfmt.training.step import Step, compute_logits, input_signature, trace_step


class Workbench:
    """What runs of one model, task and precision share: strategy, variables, data, traced functions.

    Args:
      spec: a run's spec; other runs on the same bench differ in mode, layers, masks, rate, seed, epochs or schedule.
      task: the task, its classes known.
      splits: tokenised splits by name.
      truths: what predictions of each split with labels, but the training split, are compared with.
      devices: from `make_devices`.
      folder: where the base model lies; None looks for it by the spec.
    """

    def __init__(
        self, spec: RunSpec, task: Task, splits: Mapping[str, TokenizedSplit], truths: Mapping[str, SplitTruth],
        devices: Devices, folder: Path | None = None,
    ) -> None:  # fmt: skip
        if spec.batch_size % devices.replicas:
            raise RequestError(
                f"--batch_size={spec.batch_size} is global and must be divisible by the {devices.replicas} replicas"
            )
        self.task, self.splits, self.truths = task, splits, truths
        self.devices, self.strategy = devices, devices.strategy
        self.jit = devices.check_jit(spec.jit_compile)
        folder = folder or find_model(spec.model, download=True, revision=spec.revision)
        assert folder is not None
        with computing_in(spec.precision), self.strategy.scope():
            self.model = load_bert(str(folder), task.num_labels, spec.seed, head=task.head, classes=task.classes)
        self.base = BaseWeights(folder, task.head)
        self.base_digests: dict[str, bytes] = {}  # of the base model's variables, for the proofs of all runs
        self._predicts: dict[int, Any] = {0: self._trace_predict(0)}  # by the number of cached blocks
        self._prefix: tuple[int, PrefixStates] | None = None
        self._steps: dict[Any, Step] = {}  # by signature, the latest last
        self._moved: set[str] = set()
        self.gradient_step: Any = None  # (of what, traced) for the scores of a selection
        self.fisher_step: Any = None  # traced by the first run that needs Fisher information
        self.component_step: Any = None
        self.component_sums: dict[Any, Any] = {}  # what runs with the same head share
        self.selection: Any = None  # the Selection of the run that was set up last
        self.spoiled = ""  # why no further run may start here

    # ---- setting up a run ------------------------------------------------------------------------------------------

    def set_up(self, spec: RunSpec, steps: int, plan: Plan | None = None, known: Known | None = None,
               chosen: Chosen | None = None) -> None:  # fmt: skip
        """Puts weights, head, selection, optimizer and dropout into the state in which this run starts.

        Args:
          spec: the run.
          steps: optimizer steps of the whole run.
          plan: what it selects; None reads it from the spec.
          known: what the plan's scores need, but the base model's values.
          chosen: what the plan selects, where that is known.
        """
        if self.spoiled:
            raise RunError(f"no run may start on this workbench: {self.spoiled}; make a new one")
        set_tensor_float(spec.precision)
        self.restore(spec.seed)
        self.selection = apply_plan(
            self.model, spec.mode, plan or self.plan(spec), seed=spec.seed, known=known or Known(), chosen=chosen
        )
        self._moved = set(self.selection.paths)
        masks = self.selection.open_masks
        table = [weight.path for weight in self.selection.weights]
        paths = tuple(path for path in table if path in self._moved or path in masks)
        blocks = self.model.config.num_hidden_layers
        cached = spec.frozen_prefix == "cached"
        start = count_prefix_blocks(self.selection.weights, set(paths), blocks) if cached else 0
        if start not in self._predicts:
            self._predicts[start] = self._trace_predict(start)
        self._take_step(spec, steps, paths, masks, start)

    def plan(self, spec: RunSpec) -> Plan:
        """What a run selects, read from its spec."""
        return plan_spec(spec, weights_of(self.model), self.model.config.num_attention_heads, None)

    def restore(self, seed: int) -> None:
        """Puts the base model's weights back, with the new head and the dropout of a seed."""
        variables = self.model.all_weights
        for path in self._moved.intersection(self.base.paths):
            variables[path].assign(self.base.read(path))
        self._moved -= set(self.base.paths)
        set_seed(self.model, seed)
        self._base_head = new_head(
            self.model.config.hidden_size, self.task.num_labels, self.model.config.initializer_range, seed
        )
        assign_weights(self.model, self._base_head)

    def _take_step(
        self, spec: RunSpec, steps: int, paths: tuple[str, ...], masks: Mapping[str, np.ndarray], start: int
    ) -> None:
        """Makes the traced step of these variables the current one, as it is before its first batch."""
        # Where an optimizer treats all selected weights as one vector a mask may spread its number over its variables
        # otherwise.
        sizes = {path: len(indices) for path, indices in masks.items()}
        size = sum(sizes.values()) if joins_masks(spec) else tuple(sorted(sizes.items()))
        optimizer = spec.optimizer, spec.adam_epsilon, spec.weight_decay, spec.clip_norm
        signature = (paths, frozenset(masks), size, start, optimizer, spec.batch_size)
        schedule = {
            "peak": spec.learning_rate, "steps": steps, "warmup_ratio": spec.warmup_ratio, "schedule": spec.schedule
        }  # fmt: skip
        step = self._steps.pop(signature, None)
        if step is not None:
            step.renew(schedule, masks)
        else:
            # The last step goes before the new one comes, with its optimizer's state. The head's alone stays beside
            # the current one, as every fisher run starts with it; its state is small.
            self.drop_steps()
            while len(self._steps) > 1:
                self._steps.pop(next(iter(self._steps)))
            variables = self.model.all_weights
            step = trace_step(
                self.model, self.task, self.strategy, [variables[path] for path in paths], masks, spec, schedule,
                start=start, jit=self.jit,
            )  # fmt: skip
        self._steps[signature] = step

    def drop_steps(self) -> None:
        """Gives the memory of traced steps and their optimizers back, but for the one that trains the head alone."""
        self._steps = {known: step for known, step in self._steps.items() if _trains_head_alone(known)}

    @property
    def step(self) -> Step:
        """The step of the run that was set up last."""
        return next(reversed(self._steps.values()))

    @property
    def optimizer_variables(self) -> list[Any]:
        """All state of the optimizer, the loss scale included."""
        return self.step.state

    def base_value(self, path: str) -> np.ndarray:
        """What a variable held before training."""
        return self._base_head[path] if path in self._base_head else self.base.read(path)

    def copies(self) -> list[Callable[[str], np.ndarray]]:
        """For each device what reads its copy of a variable by path."""
        variables, parts = self.model.all_weights, self.strategy.experimental_local_results

        def reader(device: int) -> Callable[[str], np.ndarray]:
            return lambda path: parts(variables[path])[device].numpy()

        return [reader(device) for device in range(self.devices.replicas)]

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

    def training_batches(self, plan: EpochPlan, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch for `train_step`, from step `first` on."""
        for indices, batch in zip(
            plan.indices[first:], training_batches(self.splits["train"], plan, first), strict=True
        ):
            yield self._with_states("train", indices, batch)

    def train_step(self, batch: Mapping[str, np.ndarray]) -> tf.Tensor:
        """One optimizer step on a global batch; the mean loss over it as a scalar that may still be computing."""
        step = self.step
        names = input_signature(self.model, self.task, step.start)
        return step.function({name: tf.constant(batch[name]) for name in names})

    def _trace_predict(self, start: int) -> Any:
        return self._over_replicas(start, lambda part: compute_logits(self.model, part, start, training=False))

    def _over_replicas(self, start: int, compute: Callable[[dict[str, tf.Tensor]], tf.Tensor]) -> Any:
        """`compute` of a batch without labels, each replica its rows."""
        strategy = self.strategy
        replicas = strategy.num_replicas_in_sync

        def replica_compute(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            share = tf.shape(batch["attention_mask"])[0] // replicas
            first = tf.distribute.get_replica_context().replica_id_in_sync_group * share
            return compute({name: tensor[first : first + share] for name, tensor in batch.items()})

        @tf.function(input_signature=[input_signature(self.model, self.task, start, labels=False)], autograph=False)
        def whole(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            parts = strategy.experimental_local_results(strategy.run(replica_compute, args=(batch,)))
            return tf.concat(parts, axis=0)

        return whole.get_concrete_function()  # traced before threads call it

    def predict(self, name: str) -> np.ndarray:
        """Predictions for every label of a split, in the split's order: classes, or scores for regression.

        Raises:
          Stop: a signal asked for it.
        """
        predictions = SplitPredictions(self.task, self.splits[name])
        start = self.step.start

        def compute(batch: EvaluationBatch) -> np.ndarray:
            inputs = self._with_states(name, batch.indices, batch.inputs)
            return self._run(self._predicts[start], inputs, start)

        for batch, outputs in compute_outputs(self._evaluation_batches(name), compute):
            signals.check()
            predictions.add(batch.indices, outputs)
        return predictions.values()

    def _run(self, compiled: Any, inputs: Batch, start: int) -> np.ndarray:
        """What a function of `_over_replicas` makes of a batch."""
        names = input_signature(self.model, self.task, start, labels=False)
        return compiled({name: tf.constant(inputs[name]) for name in names}).numpy()

    def _evaluation_batches(self, name: str) -> Iterator[EvaluationBatch]:
        return evaluation_batches(self.splits[name], self.devices.evaluation_tokens, self.devices.replicas)

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
        config, start = self.model.config, self.step.start
        if not start or (self._prefix is not None and self._prefix[0] == start):
            return
        self._prefix = None  # its memory goes first
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
        if not self.step.start:
            return batch
        assert self._prefix is not None
        return batch | {"states": self._prefix[1].take(name, indices, batch["attention_mask"].shape[1])}


def _trains_head_alone(signature: tuple[Any, ...]) -> bool:
    return all(path.startswith("classifier/") for path in signature[0])
