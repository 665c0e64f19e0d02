"""Two runs side by side: their numbers epoch by epoch, their predictions one by one, and what they were made on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tfmt.runs.records import Record
from tfmt.training.epoch import Epoch
from tfmt.training.predictions import Predictions

LOSS = "training loss"


class Number(NamedTuple):
    """One number of an epoch in two runs.

    Attributes:
      epoch: from 1.
      what: `training loss`, or split and metric.
      one: of the first run; None where it is not defined, or the run has no such epoch.
      other: of the second.
    """

    epoch: int
    what: str
    one: float | None
    other: float | None

    @property
    def difference(self) -> float:
        """The second less the first; infinite where one of them alone is there."""
        if self.one is None or self.other is None:
            return 0.0 if self.one is self.other else math.inf
        return self.other - self.one

    @property
    def relative(self) -> float:
        """The size of the difference as a part of the larger of the two."""
        if not self.difference:
            return 0.0
        if self.one is None or self.other is None:
            return math.inf
        return abs(self.difference) / max(abs(self.one), abs(self.other))


class Answers(NamedTuple):
    """What an epoch predicted for a split in two runs.

    Attributes:
      epoch: from 1.
      split: the split.
      differing: how many predictions differ.
      total: of how many.
      largest: the largest difference of two scores, as a part of the largest score; None where classes are predicted.
    """

    epoch: int
    split: str
    differing: int
    total: int
    largest: float | None


def compare_epochs(one: Record, other: Record, *, halves: bool = False) -> Iterator[Number]:
    """Every number of every epoch that either run ended.

    Args:
      one: a run.
      other: another.
      halves: also the metrics on both halves of each split, where both runs noted them.
    """
    mine, theirs = (record.result.epochs if record.result else [] for record in (one, other))
    for number, (first, second) in enumerate(itertools.zip_longest(mine, theirs), 1):
        told, against = _numbers(first), _numbers(second)
        if halves and first and second and first.halves and second.halves:
            told, against = told | _halves(first), against | _halves(second)
        for what in told | against:
            yield Number(number, what, told.get(what), against.get(what))


def _numbers(epoch: Epoch | None) -> dict[str, float | None]:
    if epoch is None:
        return {}
    metrics = {f"{split} {name}": value for split, told in epoch.metrics.items() for name, value in told.items()}
    return {LOSS: epoch.train_loss, **metrics}


def _halves(epoch: Epoch) -> dict[str, float | None]:
    return {
        f"{split} {name}, half {half}": value
        for split, halves in epoch.halves.items()
        for half, told in enumerate(halves)
        for name, value in told.items()
    }


def compare_predictions(one: Predictions, other: Predictions) -> Iterator[Answers]:
    """How many predictions differ, for the splits on which both are compared with the same labels."""
    for split, truth in one.truth.items():
        theirs = other.truth.get(split)
        if theirs is None or not np.array_equal(truth.labels, theirs.labels):
            continue
        for epoch in sorted(one.by_epoch[split].keys() & other.by_epoch[split].keys()):
            first, second = one.by_epoch[split][epoch], other.by_epoch[split][epoch]
            scores = first.dtype.kind == "f"
            size = max(float(np.abs(first).max(initial=0.0)), float(np.finfo(np.float32).tiny))
            largest = float(np.abs(first - second).max(initial=0.0)) / size if scores else None
            yield Answers(epoch, split, int((first != second).sum()), len(first), largest)


def compare_facts(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, first, second) of what differs."""
    return [(name, one.get(name), other.get(name)) for name in one | other if one.get(name) != other.get(name)]


def versions_of(record: Record) -> dict[str, Any]:
    """Versions of what computed a run."""
    origin = record.origin
    code = {"tfmt": origin.tfmt, "arithmetic": origin.arithmetic, "commit": origin.git_commit}
    return code | {"changed since the commit": origin.git_dirty, "python": origin.python} | origin.packages


# Of the versions those that can change a number's last bits.
_COMPUTING = ("arithmetic", "tensorflow", "numpy")


def machine_of(record: Record) -> dict[str, Any]:
    """What a run computed on, as far as last bits depend on it."""
    cost = record.cost
    if cost is None:
        return {}
    return {
        "processor": cost.processor, "oneDNN": cost.onednn, "threads": cost.threads, "replicas": cost.replicas,
        "devices": ", ".join(cost.devices), "XLA": cost.jit_compile,
        "computed on, in turn": "; ".join(cost.computed_on) or None,
    }  # fmt: skip


def surroundings_of(record: Record) -> dict[str, Any]:
    """All on which the last bits of a run depend, beside its settings: machine and versions."""
    versions = versions_of(record)
    return machine_of(record) | {name: versions.get(name) for name in _COMPUTING}
