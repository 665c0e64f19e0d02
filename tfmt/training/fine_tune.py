"""Fine-tuning: the recipe of one run, from the first step or from its last checkpoint to its end."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import BaseModel, Field

from tfmt import signals
from tfmt.data.batches import plan_epoch
from tfmt.errors import RequestError, RequestWarning
from tfmt.expressions import split_label
from tfmt.files import UnreadableError, make_folder, set_aside
from tfmt.metrics import collapsed, count_predicted, headline, score
from tfmt.selection.plans import Chosen, Plan
from tfmt.selection.scores.pool import Known, Read
from tfmt.selection.stored import (
    SELECTION_FILE,
    FisherNotes,
    SelectionCost,
    SelectionFacts,
    read_selection,
    store_selection,
)
from tfmt.selection.weight_sets import WeightSet
from tfmt.spec import RunSpec
from tfmt.tensors import read_tensors, reason_of, write_tensors
from tfmt.training.devices import peak_rss_mb, threads_in_use
from tfmt.training.distribution import Distributions, measure_sublayers
from tfmt.training.epoch import Epoch, stops_early
from tfmt.training.events import Curve, Events, Mark
from tfmt.training.fisher import PARTS_FILE, draw_examples, prepare_fisher, store_fisher
from tfmt.training.movable import count_movable, movable_rows
from tfmt.training.predictions import TEST_SPLIT, compact, prune
from tfmt.training.progress import Progress, Standing
from tfmt.training.proof import digest_unselected, examine, join_digests, mean_change
from tfmt.training.scoring import Shared, count_passes, measure
from tfmt.training.workbench import Workbench
from tfmt.words import counted

STATE_FILE = "state.{epoch}-{step}.safetensors"
KEPT_FILE = "kept.{epoch}.safetensors"
CHECKPOINT_SECONDS = 300.0


class RunState(BaseModel):
    """Where a run stands; all of it is in its checkpoint."""

    epoch: int = 0  # epochs that ended
    step: int = 0  # steps taken of the current epoch
    losses: list[float] = []  # sum of the current epoch's losses in steps of float64, and how many
    curve: Curve = Field(default_factory=Curve)
    marks: list[Mark] = []
    epochs: list[Epoch] = []
    reasons: dict[str, str] = {}
    kept_epoch: int | None = None
    kept_score: float | None = None
    kept_predicted: dict[str, dict[str, int]] = {}
    kept_collapsed: bool | None = None
    kept_test: dict[str, float | None] = {}
    kept_change: dict[str, dict[str, float]] | None = None
    kept_distributions: Distributions | None = None
    frozen_sha256: str = ""
    steps: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    epoch_seconds: float = 0.0
    resumed: int = 0
    devices: list[str] = []  # on what each part of the run computed, from its start on
    notes: list[str] = []  # what was found damaged on the way


class Outcome(BaseModel):
    """How a run ended, or where it was to stop (`paused`)."""

    status: str
    error: str | None
    state: RunState
    selected_changed: int
    frozen_changed: int
    frozen_sha256_after: str
    peak_rss_mb: float
    peak_gpu_mb: float | None
    optimizer_bytes: int
    fisher: FisherNotes | None = None
    selection: SelectionFacts


class UnfitError(ValueError):
    """A file of a checkpoint cannot be gone on from."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


class FineTuning:
    """One run on a workbench.

    Args:
      bench: model, data and compiled steps.
      spec: what to do.
      folder: where checkpoints and events go; what an interrupted run left there is taken up.
      quiet: show no progress.
      before_write: called before each checkpoint, may raise to end the run.
      plan: what the run selects; None reads it from the spec.
      model_sha256: digest of the base model, noted beside the selection.
      tuned: values after full fine-tuning, for the score `change`.
      shared: gives the arrays that scores are made of where another run has measured them.
      tell: is told now and then where the run stands.
      until_epoch: stop after so many epochs of the run, its checkpoint written; None for the run's end. What comes
        after that goes on as after an interruption.
    """

    def __init__(
        self, bench: Workbench, spec: RunSpec, folder: Path, *, quiet: bool = False, before_write: Any = None,
        plan: Plan | None = None, model_sha256: str = "", tuned: Mapping[tuple[Any, ...], Read] | None = None,
        shared: Shared | None = None,
        tell: Callable[[Standing], None] | None = None, until_epoch: int | None = None,
    ) -> None:  # fmt: skip
        self.bench, self.spec, self.folder, self.quiet = bench, spec, folder, quiet
        self.before_write = before_write or (lambda: None)
        self.plan, self.model_sha256, self.tell = plan, model_sha256, tell
        self.tuned, self.shared = tuned or {}, shared
        self.selection_cost = SelectionCost()
        self.until_epoch = spec.epochs if until_epoch is None else min(until_epoch, spec.epochs)
        self.fisher_notes: FisherNotes | None = None
        self.checkpoint = folder / "checkpoint"
        self.train = bench.splits["train"]
        self.per_epoch = len(self.train) // spec.batch_size  # the remainder is dropped
        self.state = RunState()
        self.ready = 0.0  # when the first step could be taken
        self.predicted: dict[str, dict[int, np.ndarray]] = {}  # {split: {epoch: predictions}}
        self._saved = ""  # where the last checkpoint of this process stands
        self._discarded: list[str] = []  # what was found damaged
        self._checkpoints: list[tuple[Path, Path]] = []  # the last two: state, and the kept weights that it names

    def run(self) -> Outcome:
        """Trains to the end, or to the epoch after which it shall stop.

        Raises:
          RunError: the disk is full, or a weight outside the selection moved.
          Stop: a signal asked for it, and a checkpoint is written.
        """
        spec = self.spec
        try:
            with signals.at_once():
                self._start()
        except signals.Stop as stop:
            stop.kept = stop.kept or self._tell_kept()
            raise
        error = None
        total = spec.epochs * self.per_epoch
        with self._open_events() as self.events:
            with Progress(
                total, self.state.steps, spec.batch_size, spec.epochs, quiet=self.quiet, tell=self.tell
            ) as progress:
                self.events.catch_up(self.state)
                while self.state.epoch < self.until_epoch and not self._ends() and error is None:
                    signals.check(self._tell_kept())
                    error = self._train_epoch(progress) or self._find_lost_weight()
                    if error is None:
                        self._end_epoch(progress)
            outcome = self._prove(error)
            if outcome.status == "paused":
                self.events.flush()
            else:
                self.events.end(self.state, completed=outcome.status == "completed")
        return outcome

    def _start(self) -> None:
        """All that comes before the first step."""
        bench, spec = self.bench, self.spec
        bench.devices.forget_peaks()
        self._set_up(spec.epochs * self.per_epoch)
        bench.fill_prefix(spec.cache_limit_gb, quiet=self.quiet)
        # The order of a resume: selection, weights and optimizer state, place in the data, then events.
        self._frozen = digest_unselected(
            bench.selection.weights, bench.selected(), bench.base_value, bench.base_digests
        )
        self.state.frozen_sha256 = join_digests(self._frozen)
        self._resume()
        self.ready = time.perf_counter()

    def _open_events(self) -> Events:
        self.before_write()  # the events empty the files of earlier processes
        store_selection(self.folder, self.bench.selection, self.selection_cost, self.model_sha256)
        return Events(
            self.folder, self.spec, self.bench.task, tuned=self.bench.selection.tuned, per_epoch=self.per_epoch,
            rates=lambda steps: self.bench.step.schedule(steps).numpy(),
        )  # fmt: skip

    def _set_up(self, steps: int) -> None:
        """The state in which the run starts; a selection by scores needs them first."""
        bench, spec = self.bench, self.spec
        plan = self.plan or bench.plan(spec)
        if spec.mode == "fisher" and not spec.fisher_from:
            started = time.perf_counter()
            values, self.fisher_notes = prepare_fisher(bench, spec, self.folder, self.before_write, self._discard)
            drawn = draw_examples(len(self.train), spec.fisher_examples, spec.seed)
            passes = count_passes(bench, "squares", plan.needed("squares")["trained"], drawn)
            self.selection_cost = SelectionCost(
                examples=len(drawn), backward_passes=passes, seconds=time.perf_counter() - started
            )
            bench.set_up(spec, steps, plan, Known(squares={"trained": values.__getitem__}))
            store_fisher(self.folder, bench.selection, values, self.fisher_notes, self.model_sha256, self.before_write)
            self.before_write()
            (self.folder / PARTS_FILE).unlink(missing_ok=True)
        else:
            known, chosen = None, self._read_chosen(plan)
            if chosen is None:
                known, self.selection_cost = measure(
                    bench, spec, plan, tuned=self.tuned, shared=self.shared, quiet=self.quiet
                )
            bench.set_up(spec, steps, plan, known, chosen)
            self.tuned = {}  # its memory goes
        for told in bench.selection.warnings:
            warnings.warn(f"--select={spec.select}: {told}", RequestWarning, stacklevel=2)

    def _read_chosen(self, plan: Plan) -> Chosen | None:
        """What an earlier start of this run chose by scores; None where it has still to be chosen.

        So a run goes on with the same weights on a machine that rounds otherwise, and without the scores.
        """
        path = self.folder / SELECTION_FILE
        if not plan.is_measured or not path.exists():
            return None
        try:
            parts, self.selection_cost, told = read_selection(self.folder, plan.table.weights, self.model_sha256)
        except RequestError as error:
            self._discard(path, reason_of(path, error))
            return None
        return Chosen(WeightSet(plan.table, parts), told)

    def _train_epoch(self, progress: Progress) -> str | None:
        """The rest of an epoch's steps; what went wrong with the loss, if anything."""
        state, spec = self.state, self.spec
        started = saved = time.perf_counter()
        waiting: list[Any] = []
        plan = plan_epoch(self.train.lengths, spec.batch_size, spec.batching, spec.seed, state.epoch, spec.max_length)
        for batch in self.bench.training_batches(plan, state.step):
            waiting.append(self.bench.train_step(batch))
            state.step += 1
            state.steps += 1
            state.tokens += int(batch["attention_mask"].sum())
            state.padded_tokens += batch["attention_mask"].size
            asked = signals.asked()
            if len(waiting) < self.bench.devices.losses_ahead and not asked:
                continue
            error = self._read_losses(waiting)
            if error:
                return error
            progress.step(state.epoch + 1, state.steps, state.losses[0] / state.losses[1])
            if asked or (time.perf_counter() - saved > CHECKPOINT_SECONDS and state.step < self.per_epoch):
                now = time.perf_counter()
                state.train_seconds += now - started
                state.epoch_seconds += now - started
                started = saved = now
                self._save()
                if asked:
                    raise signals.Stop(asked, self._tell_kept())
        error = self._read_losses(waiting)
        elapsed = time.perf_counter() - started
        state.train_seconds += elapsed
        state.epoch_seconds += elapsed
        return error

    def _find_lost_weight(self) -> str | None:
        """What is wrong with a selected weight that the last step's update, whose loss was finite, made infinite."""
        variables = self.bench.model.all_weights
        for path, indices in self.bench.selected().items():
            if bool(tf.reduce_all(tf.math.is_finite(variables[path]))):
                continue
            values = variables[path].numpy().reshape(-1)
            if not np.isfinite(values if indices is None else values[indices]).all():
                return f"{path} is not finite at the end of epoch {self.state.epoch + 1}"
        return None

    def _read_losses(self, waiting: list[Any]) -> str | None:
        """Adds the losses, in the order of the steps and so the same in every run; the first that is not finite."""
        state = self.state
        total, count = state.losses or (0.0, 0.0)
        first = state.steps - len(waiting)
        for index, loss in enumerate(waiting):
            value = float(loss)
            if not math.isfinite(value):
                return f"the loss was {value} at step {first + index + 1} (epoch {state.epoch + 1})"
            total, count = total + value, count + 1
            state.curve.add(first + index + 1, value, self.per_epoch)
        waiting.clear()
        state.losses = [total, count]
        self.events.catch_up(state)
        return None

    def _end_epoch(self, progress: Progress) -> None:
        state, spec, bench, task = self.state, self.spec, self.bench, self.bench.task
        started = time.perf_counter()
        metrics: dict[str, dict[str, float | None]] = {}
        predicted: dict[str, dict[str, int]] = {}
        halves: dict[str, list[dict[str, float | None]]] = {}
        flat = False
        for name in task.validation_splits:
            predictions = self._predict(name)
            truth = bench.truths[name]
            scores = score(task, truth.labels, predictions, truth.sentence_lengths)
            metrics[name] = scores.values
            halves[name] = [truth.score_half(task, predictions, half) for half in (0, 1)]
            self.predicted.setdefault(name, {})[state.epoch + 1] = compact(predictions)
            state.reasons |= {f"{name}.{metric}": reason for metric, reason in scores.undefined.items()}
            predicted[name] = count_predicted(task, predictions)
            answered = bench.splits[name].answered
            flat = flat or collapsed(task, predictions if answered is None else predictions[answered])
        value = headline(task, metrics)
        better = value is not None and (state.kept_score is None or value > state.kept_score)
        keeps = spec.keep_epoch == "last" or better or state.kept_epoch is None
        ends = self._ends(value)
        if keeps and TEST_SPLIT in bench.truths and (spec.keep_epoch == "best" or ends):
            self._score_test()
        seconds = time.perf_counter() - started
        state.eval_seconds += seconds
        loss = state.losses[0] / state.losses[1]
        state.epoch_seconds += seconds
        state.epoch += 1
        state.epochs.append(
            Epoch(
                epoch=state.epoch,
                train_loss=loss,
                metrics=metrics,
                seconds=state.epoch_seconds,
                collapsed=flat,
                halves=halves,
            )
        )
        epoch_seconds = state.epoch_seconds
        state.marks.append(
            Mark(epoch=state.epoch, tokens=state.tokens, train_seconds=state.train_seconds, time=time.time())
        )
        state.step, state.losses, state.epoch_seconds = 0, [], 0.0
        if keeps:
            state.kept_epoch, state.kept_score = state.epoch, value
            state.kept_predicted, state.kept_collapsed = predicted, flat
            self._keep_weights()
        prune(self.predicted, bench.truths, state.kept_epoch)
        self.events.catch_up(state)
        self.events.flush()
        if not ends:
            self._save()
        progress.epoch(state.epoch, loss, task.headline_name, value, epoch_seconds)  # now that it is not lost any more

    def _ends(self, *more: float | None) -> bool:
        """Whether no epoch is left behind those that ended, and behind one of this score: as planned, or early."""
        planned = self.state.epoch + len(more) == self.spec.epochs
        if planned or not self.spec.early_stopping:
            return planned
        scores = [headline(self.bench.task, epoch.metrics) for epoch in self.state.epochs]
        return stops_early([*scores, *more], self.spec.early_stopping)

    def _score_test(self) -> None:
        """Scores the test split with the weights of the epoch that ends, which are to be kept."""
        predictions, truth = self._predict(TEST_SPLIT), self.bench.truths[TEST_SPLIT]
        scores = score(self.bench.task, truth.labels, predictions, truth.sentence_lengths)
        self.state.kept_test = scores.values
        self.state.reasons = {
            name: why for name, why in self.state.reasons.items() if not name.startswith(f"{TEST_SPLIT}.")
        } | {f"{TEST_SPLIT}.{metric}": why for metric, why in scores.undefined.items()}
        self.predicted[TEST_SPLIT] = {self.state.epoch + 1: compact(predictions)}

    def _predict(self, name: str) -> np.ndarray:
        """The predictions for a split; a signal lets the evaluation be done again from a checkpoint before it."""
        try:
            return self.bench.predict(name)
        except signals.Stop as stop:
            self._save()
            stop.kept = self._tell_kept()
            raise

    def _keep_weights(self) -> None:
        """Notes what the record needs of this epoch's weights, and stores them where the run keeps what it tuned."""
        bench = self.bench
        if self.spec.mode == "full":
            variables, weights = bench.model.all_weights, bench.selection.weights
            self.state.kept_distributions = measure_sublayers(weights, lambda path: variables[path].numpy())
            self.state.kept_change = mean_change(weights, bench.base_value, lambda path: variables[path].numpy())
        if self._stores_weights():
            self.before_write()
            self._store_kept()

    def _stores_weights(self) -> bool:
        """Whether the weights of the kept epoch are to be stored; where that is the last one no earlier ones are."""
        return self.spec.keep == "tuned" and (self.spec.keep_epoch == "best" or self._ends())

    def _store_kept(self) -> None:
        """Stores the selected weights beside those of the epoch that was kept so far: a checkpoint may name either."""
        make_folder(self.checkpoint)
        write_tensors(self._kept_file, self.bench.read_selected(), {"epoch": self.state.kept_epoch})

    @property
    def _kept_file(self) -> Path:
        return self.checkpoint / KEPT_FILE.format(epoch=self.state.kept_epoch)

    def kept_values(self) -> dict[str, np.ndarray]:
        """The selected values at the kept epoch.

        Raises:
          UnreadableError: their file is missing or broken; another start of the run goes back to where it can.
        """
        try:
            return self._read_kept()
        except UnfitError as error:
            raise UnreadableError(f"{error.path}: {error}; run the same command again") from None

    def _read_kept(self) -> dict[str, np.ndarray]:
        if not self._kept_file.exists():  # also where the run was asked for its scores alone until now
            raise UnfitError(self._kept_file, f"the weights of epoch {self.state.kept_epoch} are not there")
        try:
            tensors, about = read_tensors(self._kept_file)
        except RequestError as error:
            raise UnfitError(self._kept_file, reason_of(self._kept_file, error)) from None
        if about.get("epoch") != self.state.kept_epoch or _kinds(tensors) != self._selected_kinds():
            raise UnfitError(self._kept_file, f"not the weights of epoch {self.state.kept_epoch}")
        return tensors

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Everything that the rest of the run depends on, in one file; the checkpoint before it stays as well."""
        self.before_write()
        make_folder(self.checkpoint)
        state = self.state
        path = self.checkpoint / STATE_FILE.format(epoch=state.epoch, step=state.step)
        before = [saved for saved in self._checkpoints if saved[0] != path][-1:]
        if not path.exists():  # else a run stops twice at one place, and the one before it stays as it is
            self._clear(before, path)  # first, so that a full disk need not hold a third
        tensors = {f"selected/{name}": values for name, values in self.bench.read_selected().items()}
        for index, variable in enumerate(self.bench.optimizer_variables):
            tensors[f"optimizer/{index}"] = variable.numpy()
        for split, epochs in self.predicted.items():
            tensors |= {f"predicted/{split}/{epoch}": predictions for epoch, predictions in epochs.items()}
        write_tensors(path, tensors, state.model_dump(mode="json") | {"run_id": self.folder.name})
        self._checkpoints = [*before, (path, self._kept_file)]
        self._saved = f"step {state.step} of {self.per_epoch} in epoch {state.epoch + 1}" if state.step else ""
        self._saved = self._saved or f"the end of epoch {state.epoch}"

    def _clear(self, before: list[tuple[Path, Path]], path: Path) -> None:
        """Removes what neither the last checkpoint nor the one that is about to be written needs."""
        needed = {path, self._kept_file, *(file for saved in before for file in saved)}
        for pattern in (STATE_FILE.format(epoch="*", step="*"), KEPT_FILE.format(epoch="*")):
            for found in self.checkpoint.glob(pattern):
                if found not in needed:
                    found.unlink()

    def _tell_kept(self) -> str:
        """What a process that ends now leaves."""
        if self._saved:
            return f"checkpoint written at {self._saved}"
        if (self.folder / PARTS_FILE).exists():
            return "what is done of the Fisher information is kept"
        return "its checkpoint stays" if self._states() else "no step was taken yet"

    def _states(self) -> list[Path]:
        """The states that are stored, the furthest first."""
        places = {}
        for path in self.checkpoint.glob(STATE_FILE.format(epoch="*", step="*")):
            if place := re.fullmatch(r"state\.(\d+)-(\d+)\.safetensors", path.name):
                places[path] = int(place[1]), int(place[2])
        return sorted(places, key=lambda path: places[path], reverse=True)

    def _selected_kinds(self) -> dict[str, tuple[Any, ...]]:
        """What `_kinds` says of `read_selected`, without reading the values."""
        variables = self.bench.model.all_weights
        shapes = {path: variables[path].shape if at is None else at.shape for path, at in self.bench.selected().items()}
        return {path: (tuple(shape), np.dtype(np.float32)) for path, shape in shapes.items()}

    def _resume(self) -> None:
        """Goes on from the furthest checkpoint that fits, if there is one; notes on what this part computes.

        What does not fit is set aside in the run's folder, and the record tells of it.
        """
        fresh = self.state
        for path in self._states():
            try:
                self._take_up(path)
                break
            except UnfitError as error:
                self.state = fresh
                self._discard(error.path, str(error))
        state = self.state
        place = f"step {state.step} of epoch {state.epoch + 1}" if state.steps else "its start"
        for note in self._discarded:
            warnings.warn(f"{self.folder}/{note}; the run goes on from {place}", RequestWarning, stacklevel=2)
        state.notes += [f"{note}; went on from {place}" for note in self._discarded]
        compiled = "; XLA" if self.bench.jit else ""
        devices = ", ".join(self.bench.devices.names)
        self.state.devices.append(f"{devices}; {threads_in_use()} threads{compiled}")

    def _discard(self, path: Path, reason: str) -> None:
        """Sets aside a file that cannot be gone on from, if it is there, and notes it."""
        note = f"{path.relative_to(self.folder)}: {reason}"
        if path.exists():
            self.before_write()
            note += f"; set aside as {set_aside(path, self.folder).name}"
        if note not in self._discarded:  # two checkpoints may name one file
            self._discarded.append(note)

    def _take_up(self, path: Path) -> None:
        """Puts the run into a checkpoint's state; whatever does not fit is found before any weight is changed.

        Raises:
          UnfitError: the state, or the kept weights that it names, are damaged or another run's.
        """
        try:
            tensors, saved = read_tensors(path)
            state = RunState.model_validate(saved)
        except ValueError as error:  # a RequestError of the file, a ValidationError of the state
            raise UnfitError(path, reason_of(path, error)) from None
        if saved.get("run_id", self.folder.name) != self.folder.name:
            raise UnfitError(path, "it is another run's")
        if state.frozen_sha256 != self.state.frozen_sha256:
            raise UnfitError(path, "it was made from another base model or selection")
        bench = self.bench
        wanted = {f"selected/{name}": kind for name, kind in self._selected_kinds().items()}
        for index, variable in enumerate(bench.optimizer_variables):
            wanted[f"optimizer/{index}"] = tuple(variable.shape), np.dtype(variable.dtype.as_numpy_dtype)
        predicted = {name: tensors.pop(name) for name in list(tensors) if name.startswith("predicted/")}
        splits = bench.task.validation_splits
        needed = {f"predicted/{split}/{state.epoch}" for split in splits} if state.epoch else set()
        if state.kept_test:
            needed.add(f"predicted/{TEST_SPLIT}/{state.kept_epoch}")
        if not needed <= predicted.keys():
            raise UnfitError(path, "it lacks what was predicted")
        if _kinds(tensors) != wanted:
            raise UnfitError(path, "it holds other weights, or another optimizer's state")
        self.state = state
        # Then the state's own weights are the kept ones, and their file can be made again.
        just_kept = state.kept_epoch == state.epoch and state.step == 0
        if state.kept_epoch is not None and self._stores_weights() and not just_kept:
            self._read_kept()
        bench.write_selected(
            {name.removeprefix("selected/"): v for name, v in tensors.items() if name.startswith("selected/")}
        )
        for index, variable in enumerate(bench.optimizer_variables):
            variable.assign(tensors[f"optimizer/{index}"])
        if just_kept and self._stores_weights():
            self.before_write()
            self._store_kept()
        self.predicted = {split: {} for split in splits}
        for name, predictions in predicted.items():
            _, split, epoch = name.split("/")
            self.predicted.setdefault(split, {})[int(epoch)] = predictions
        self._checkpoints = [(path, self._kept_file)]
        state.resumed += 1

    # ---- the end ---------------------------------------------------------------------------------------------------

    def _prove(self, error: str | None) -> Outcome:
        """Compares every weight on every device with the base model's file."""
        bench = self.bench
        found = examine(
            bench.selection.weights, bench.selected(), bench.base_value, self._frozen, bench.copies()
        )  # fmt: skip
        ended = "diverged" if error is not None else "completed" if self._ends() else "paused"
        if found.frozen_changed:
            bench.spoiled = f"{counted(found.frozen_changed, 'weight')} outside the selection changed"
        elif found.disagreeing:
            bench.spoiled = f"the devices hold different values of {found.disagreeing}"
        if bench.spoiled:
            ended, error = "failed", bench.spoiled
        return Outcome(
            status=ended,
            error=error,
            state=self.state,
            selected_changed=found.selected_changed,
            frozen_changed=found.frozen_changed,
            frozen_sha256_after=found.frozen_sha256,
            peak_rss_mb=peak_rss_mb(),
            peak_gpu_mb=bench.devices.peak_gpu_mb(),
            fisher=self.fisher_notes,
            selection=self._tell_selection(),
            optimizer_bytes=sum(math.prod(v.shape) * v.dtype.size for v in bench.optimizer_variables),
        )

    def _tell_selection(self) -> SelectionFacts:
        """What the record says of the selection."""
        selection = self.bench.selection
        encoder = {path: at for path, at in self.bench.selected().items() if path in selection.plan.table.by_path}
        movable = count_movable(encoder, selection.weights, movable_rows(selection.weights, self.train))
        return SelectionFacts(
            name=split_label(self.spec.select)[0], expression=selection.plan.expression,
            normal_form=selection.plan.normal_form, movable=movable, cost=self.selection_cost,
        )  # fmt: skip


def _kinds(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    """Shape and type of each array: what must agree before arrays of a file can take the place of variables."""
    return {name: (array.shape, array.dtype) for name, array in tensors.items()}
