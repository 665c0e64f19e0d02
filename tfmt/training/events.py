"""TensorBoard's events of a run: curves within its epochs and over them, and by what its HParams tab compares runs."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from pydantic import BaseModel
from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.summary import experiment_pb, session_end_pb, session_start_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from tfmt.files import UnwritableError
from tfmt.metrics import headline
from tfmt.spec import CONDITIONAL_FIELDS, RunSpec, meaningful_fields
from tfmt.tasks import Task
from tfmt.training.epoch import Epoch

if TYPE_CHECKING:
    from tfmt.training.fine_tune import RunState

POINTS = 50  # the most points of an epoch's curve; a longer epoch has at least half as many
_FLUSH_SECONDS = 10.0  # after which TensorBoard sees a point that was written
_NUMBERS = itertools.count()  # of this process's files, two of which may begin in one second

# The parameters of the HParams tab. It shows the first five at once, the others when they are ticked.
_VARIED = ("task", "mode", "layers", "select", "budget", "learning_rate", "seed")
_FIXED = ("model", "mask_size", "mask_fraction", "batch_size", "max_length", "batching", "outlier_pool", "train_limit",
          "epochs", "schedule", "optimizer", "precision")  # fmt: skip
_TEXTS = frozenset({
    "task", "mode", "layers", "select", "budget", "model", "batching", "outlier_pool", "schedule", "optimizer",
    "precision",
})  # fmt: skip
_METRICS = {
    "score_best": "the task's score in the best epoch so far, a fraction",
    "tuned": "weights that train, without the classifier",
    "collapsed": "1 where that epoch predicts one class only, or a constant",
}


class Curve(BaseModel):
    """The training loss within epochs.

    Attributes:
      points: the steps taken, the mean loss since the point before, and when that was.
      losses: sum of the losses since the last point, and how many.
    """

    points: list[tuple[int, float, float]] = []
    losses: tuple[float, int] = (0.0, 0)

    def add(self, step: int, loss: float, per_epoch: int) -> None:
        """Takes the loss of a step of the run, counted from 1; makes a point where one is due."""
        total, count = self.losses[0] + loss, self.losses[1] + 1
        within = (step - 1) % per_epoch + 1
        if within % _spacing(per_epoch) and within != per_epoch:
            self.losses = total, count
            return
        self.points.append((step, total / count, time.time()))
        self.losses = 0.0, 0


class Mark(BaseModel):
    """The end of an epoch's training: tokens and seconds of training until then, and when that was."""

    epoch: int
    tokens: int
    train_seconds: float
    time: float


def _spacing(per_epoch: int) -> int:
    return math.ceil(per_epoch / POINTS)


def _point_steps(epochs: int, per_epoch: int) -> np.ndarray:
    """The steps of a run, counted from 1, that have a point."""
    within = np.array([*range(_spacing(per_epoch), per_epoch, _spacing(per_epoch)), per_epoch])
    return (np.arange(epochs)[:, None] * per_epoch + within).reshape(-1)


class Events:
    """The file of events in a run's folder; empty ones of earlier processes lie beside it until the run ends.

    All that it says follows from the run's state, and a resumed run writes it anew: no point is in it twice, nor one
    of steps that were taken again.

    Args:
      folder: the run's.
      spec: what is done.
      task: gives the score.
      tuned: weights that train, without the classifier.
      per_epoch: steps of an epoch.
      rates: gives the learning rates of steps, counted from 0.

    Raises (as do its methods):
      UnwritableError: the disk is full, or the file cannot be written.
    """

    def __init__(
        self, folder: Path, spec: RunSpec, task: Task, *, tuned: int, per_epoch: int,
        rates: Callable[[np.ndarray], Sequence[float]],
    ) -> None:  # fmt: skip
        self._spec, self._task, self._per_epoch = spec, task, per_epoch
        steps = _point_steps(spec.epochs, per_epoch)
        self._rates = dict(zip(steps.tolist(), map(float, rates(steps - 1)), strict=True))
        self._points = self._epochs = 0  # that are written
        self._best: tuple[float, bool] | None = None
        # A TensorBoard that reads one of them waits in it for ever if it goes, and goes on to the new one from its end.
        self._old = list(folder.glob("events.out.tfevents.*"))
        for old in self._old:
            try:
                os.truncate(old, 0)
            except OSError as error:
                raise UnwritableError.of(old, error) from None
        made = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._path = folder / f"events.out.tfevents.{made}"
        try:
            self._file = self._path.open("wb")
        except OSError as error:
            raise UnwritableError.of(self._path, error) from None
        self._records = RecordWriter(self._file)
        self._flushed = time.monotonic()
        self._write(Event(file_version="brain.Event:2", source_metadata=SourceMetadata(writer="tfmt")))
        # A TensorBoard that has read the file of before forgets what it read.
        self._write(Event(session_log=SessionLog(status=SessionLog.START)))
        self._write_summary(experiment_pb(_parameters(), _metrics()))
        self._write_summary(session_start_pb(shown_settings(spec), group_name=folder.name))
        self._write_scalars(0, {"tuned": tuned})
        self.flush()

    def catch_up(self, state: RunState) -> None:
        """Writes what the run's state says and the file does not yet."""
        for step, loss, at in state.curve.points[self._points :]:
            # A checkpoint of an earlier version may have other points, or none.
            self._write_scalars(step, {"steps/loss": loss, "steps/learning_rate": self._rates.get(step)}, at)
        self._points = len(state.curve.points)
        marks = {mark.epoch: mark for mark in state.marks}
        for result in state.epochs[self._epochs :]:
            self._write_epoch(result, marks)
        self._epochs = len(state.epochs)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _write_epoch(self, result: Epoch, marks: dict[int, Mark]) -> None:
        scalars: dict[str, float | None] = {"loss/train": result.train_loss}
        for split, metrics in result.metrics.items():
            scalars |= {f"{split}/{name}": value for name, value in metrics.items()}
        score = headline(self._task, result.metrics)
        if score is not None and (self._best is None or score > self._best[0]):
            self._best = score, bool(result.collapsed)
        if self._best is not None:
            scalars |= {"score_best": self._best[0], "collapsed": self._best[1]}
        mark, before = marks.get(result.epoch), marks.get(result.epoch - 1)
        if mark is not None and (before is not None or result.epoch == 1):
            seconds = max(mark.train_seconds - (before.train_seconds if before else 0.0), 1e-9)
            tokens = mark.tokens - (before.tokens if before else 0)
            examples = self._per_epoch * self._spec.batch_size
            scalars["throughput/tokens_per_second"] = tokens / seconds
            scalars["throughput/examples_per_second"] = examples / seconds
        self._write_scalars(result.epoch, scalars, mark.time if mark else None)

    def end(self, state: RunState, *, completed: bool) -> None:
        """Writes what is left, and how the run ended."""
        self.catch_up(state)
        self._write_summary(session_end_pb(STATUS_SUCCESS if completed else STATUS_FAILURE), state.epoch)
        self.flush()
        for old in self._old:
            with contextlib.suppress(OSError):  # empty, and no harm
                old.unlink(missing_ok=True)

    def flush(self) -> None:
        """Lets TensorBoard see what was written."""
        self._guard(self._file.flush)
        self._flushed = time.monotonic()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(OSError):  # `end` has flushed, or the run did not come to it
            self._file.close()

    def _write_scalars(self, step: int, scalars: dict[str, Any], at: float | None = None) -> None:
        """One event with all values; those that are not defined have none."""
        event = Event(step=step, wall_time=at or 0.0)
        for tag, value in scalars.items():
            if value is not None:
                event.summary.MergeFrom(scalar_pb(tag, value))
        self._write(event)

    def _write_summary(self, summary: Any, step: int = 0) -> None:
        event = Event(step=step)
        event.summary.ParseFromString(summary.SerializeToString())  # TensorFlow's message, and TensorBoard's own
        self._write(event)

    def _write(self, event: Event) -> None:
        event.wall_time = event.wall_time or time.time()
        self._guard(lambda: self._records.write(event.SerializeToString()))

    def _guard(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise UnwritableError.of(self._path, error) from None


def shown_settings(spec: RunSpec) -> dict[str, str | float]:
    """The parameters of the HParams tab that mean something for a run."""
    meaningless = CONDITIONAL_FIELDS - meaningful_fields(spec.mode, spec.task, spec.select) - {"layers"}
    values = {name: getattr(spec, name) for name in (*_VARIED, *_FIXED) if name not in meaningless}
    return {name: value for name, value in values.items() if value is not None}


def _parameters() -> Iterable[HParamInfo]:
    for name in (*_VARIED, *_FIXED):
        kind = DATA_TYPE_STRING if name in _TEXTS else DATA_TYPE_FLOAT64
        info = HParamInfo(name=name, type=kind, differs=name in _VARIED)
        if name in _TEXTS and (values := get_args(RunSpec.model_fields[name].annotation)):
            info.domain_discrete.extend(values)  # the tab has boxes or a pattern to filter by
        yield info


def _metrics() -> Iterable[MetricInfo]:
    for tag, description in _METRICS.items():
        yield MetricInfo(name=MetricName(tag=tag), display_name=tag, description=description)
