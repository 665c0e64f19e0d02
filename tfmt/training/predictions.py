"""What a run predicted for every example of its development splits, and of a labelled test split. No TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfmt.errors import RequestError
from tfmt.metrics import Scores, score
from tfmt.tasks import Task
from tfmt.tensors import digest_tensors, read_tensors, write_tensors

PREDICTIONS_FILE = "predictions.safetensors"
TEST_SPLIT = "test"  # scored with the weights that are kept, which chose nothing by it
# Of a split with more examples the kept epoch's and the last epoch's predictions alone are kept.
EVERY_EPOCH = 10_000


@dataclass(frozen=True)
class SplitTruth:
    """What the predictions for a split are compared with.

    Attributes:
      labels: of shape `(examples,)`, or `(words,)` for token tasks.
      halves: 0 or 1 for each example, uint8 of shape `(examples,)`; see `Examples.halves`.
      sentence_lengths: words of each sentence; None for other tasks.
    """

    labels: np.ndarray
    halves: np.ndarray
    sentence_lengths: np.ndarray | None = None

    def in_half(self, half: int) -> np.ndarray:
        """Which labels are of a half's examples, bool of the labels' shape."""
        chosen = self.halves == half
        return chosen if self.sentence_lengths is None else np.repeat(chosen, self.sentence_lengths)

    def score_half(self, task: Task, predictions: np.ndarray, half: int) -> dict[str, float | None]:
        """Every metric on one half; None where it is not defined there."""
        chosen = self.in_half(half)
        if not chosen.any():
            return dict.fromkeys(task.metrics)
        lengths = None if self.sentence_lengths is None else self.sentence_lengths[self.halves == half]
        return score(task, self.labels[chosen], predictions[chosen], lengths).values


@dataclass(frozen=True)
class Predictions:
    """What a run's file of predictions holds.

    Attributes:
      run_id: the run.
      truth: {split: what its predictions are compared with}.
      by_epoch: {split: {epoch from 1: predictions}}: classes as integers (-1 for words without a prediction), scores as
        float32, in the order of the labels.
    """

    run_id: str
    truth: Mapping[str, SplitTruth]
    by_epoch: Mapping[str, dict[int, np.ndarray]]

    def score(self, task: Task, split: str, epoch: int) -> Scores:
        """The metrics of an epoch, made again from what it predicted."""
        truth = self.truth[split]
        return score(task, truth.labels, self.by_epoch[split][epoch], truth.sentence_lengths)

    @property
    def sha256(self) -> str:
        """The digest of the content, which `write` returns and the record has."""
        return digest_tensors(*self._stored())

    def write(self, folder: Path) -> str:
        """Writes the file into the run's folder; the digest of its content."""
        return write_tensors(folder / PREDICTIONS_FILE, *self._stored())

    def _stored(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """The arrays of the file, and what stands beside them."""
        tensors = {}
        for split, truth in self.truth.items():
            tensors[f"{split}/labels"] = compact(truth.labels)
            tensors[f"{split}/halves"] = truth.halves
            if truth.sentence_lengths is not None:
                tensors[f"{split}/sentence_lengths"] = truth.sentence_lengths
            for epoch, predictions in self.by_epoch.get(split, {}).items():
                tensors[f"{split}/epoch.{epoch}"] = predictions
        return tensors, {"run_id": self.run_id}


def compact(values: np.ndarray) -> np.ndarray:
    """Classes in the smallest integers that hold them, scores as float32."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    for dtype in (np.int8, np.int16):
        if not len(values) or np.iinfo(dtype).min <= values.min() <= values.max() <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values.astype(np.int32)


def read_predictions(folder: str | Path, *, sha256: str | None = None) -> Predictions:
    """What a run predicted in each of its epochs.

    Args:
      folder: the run's folder.
      sha256: the record's `predictions_sha256`, which the file is checked by.

    Raises:
      RequestError: the run kept none (it is of an earlier version), or the file is broken.
    """
    path = Path(folder) / PREDICTIONS_FILE
    remedy = "delete the run's folder and run it again"
    tensors, about = read_tensors(path, remedy, sha256=sha256)
    truth: dict[str, SplitTruth] = {}
    by_epoch: dict[str, dict[int, np.ndarray]] = {}
    try:
        for name in tensors:
            split, _, what = name.partition("/")
            if what == "labels":
                lengths = tensors.get(f"{split}/sentence_lengths")
                truth[split] = SplitTruth(tensors[name], tensors[f"{split}/halves"], lengths)
            elif what.startswith("epoch."):
                by_epoch.setdefault(split, {})[int(what.removeprefix("epoch."))] = tensors[name]
        return Predictions(
            about["run_id"], truth, {split: dict(sorted(by_epoch.get(split, {}).items())) for split in truth}
        )
    except (KeyError, ValueError) as error:
        raise RequestError(f"{path}: not a run's predictions ({error}); {remedy}") from None


def prune(by_epoch: Mapping[str, dict[int, np.ndarray]], truth: Mapping[str, SplitTruth], kept: int | None) -> None:
    """Drops what a split of many examples does not keep: all but the kept epoch's and the last one's."""
    for split, epochs in by_epoch.items():
        if len(truth[split].halves) > EVERY_EPOCH:
            for epoch in [epoch for epoch in epochs if epoch not in (kept, max(epochs))]:
                del epochs[epoch]
