"""What each example adds to the scores of runs, from what they predicted: read once, only of the runs that count."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfmt.results.contributions import contributions
from tfmt.results.crossfit import cross_fit
from tfmt.results.groups import Group
from tfmt.results.rows import Row
from tfmt.runs.records import Record, Sources, stream_predictions
from tfmt.training.predictions import Predictions, SplitTruth
from tfmt.words import without_folders

if TYPE_CHECKING:
    import pandas as pd

# Runs whose contributions are held at once, one number an example: 60 MB of QQP's 40,430 examples.
_HELD = 192
# How far a score may be from the record's: predictions of scores are kept in float32.
_ROUNDING = 1e-5

_Index = Mapping[tuple[Row, str, float], Mapping[int, str]]  # (row, column, rate) to seed to run id


class NotPredictedError(LookupError):
    """What each example adds to a run's score is not known; the message says why, and of which run."""


@dataclass(frozen=True)
class _Kept:
    """A run's predictions for the first development split, of the epochs whose scores may count."""

    truth: SplitTruth
    by_epoch: Mapping[int, np.ndarray]


class Predicted:
    """What runs predicted, as contributions to their scores on the first development split."""

    def __init__(self, runs: Sources, records: Iterable[Record], epoch: str = "best") -> None:
        """Reads nothing yet.

        Args:
          runs: where they lie, as for `find_records`.
          records: of the runs.
          epoch: whose predictions: each run's `best` epoch's or its `last` one's.
        """
        self._runs = runs
        self._records = {record.run_id: record for record in records}
        self._epoch = epoch
        self._kept: dict[str, _Kept | str] = {}  # run id to what it predicted, or to why that is not known
        self._indexes: dict[int, tuple[pd.DataFrame, _Index]] = {}
        self._contributions = functools.lru_cache(maxsize=_HELD)(self._compute)

    def load(self, cells: Iterable[tuple[Group, Row, str]]) -> None:
        """Reads what the runs of cells predicted, at the rates that the cells chose; what was read is not read again.

        Args:
          cells: group, row and column of each; `of_cells` knows no others.
        """
        wanted: set[str] = set()
        for group, row, column in cells:
            cell = group.cells[row, column]
            for rate in cell.rates:
                wanted.update(self._index(group)[row, column, rate][seed] for seed in cell.scores)
        known = self._records.keys() - self._kept.keys()
        records = [self._records[run_id] for run_id in sorted(wanted & known)]
        for run_id, found in stream_predictions(self._runs, records) if records else ():
            kept = without_folders(found, 2) if isinstance(found, str) else self._select(self._records[run_id], found)
            self._kept[run_id] = kept

    def of_cells(self, group: Group, column: str, seeds: Mapping[Row, Sequence[int]]) -> dict[Row, np.ndarray]:
        """The contributions to the scores of cells: row to floats of shape `(seeds, examples)`.

        The mean of each line is the score that the cell has for the seed. Cross-fitted, each example is scored by the
        epoch and the rate that the other half chose. As both halves count alike, whatever their sizes, a half's
        contributions are moved to the mean of both, and their spread is scaled so that the variance of their mean is
        that of a mean of two halves' means.

        Args:
          group: the runs; its cells are the papers' or cross-fitted (`Group.under`).
          column: the column of the cells.
          seeds: of each row the seeds, which its cell has scores of.

        Raises:
          NotPredictedError: a run kept no predictions, not those of the epoch that counts, or its file cannot be read;
            its predictions do not give its score, or that has no contributions; or runs have other examples.
        """
        found = {row: [self._of_seed(group, row, column, seed) for seed in chosen] for row, chosen in seeds.items()}
        known = [labels for lines in found.values() for _, labels in lines]
        if not all(np.array_equal(labels, known[0]) for labels in known):
            raise NotPredictedError("the runs were scored on different examples")
        return {row: np.stack([values for values, _ in lines]) for row, lines in found.items()}

    def _of_seed(self, group: Group, row: Row, column: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The contributions to a cell's score for a seed, and the labels of these examples."""
        cell = group.cells[row, column]
        run_ids = [self._index(group)[row, column, rate][seed] for rate in cell.rates]
        if len(run_ids) == 1:
            values = self._contributions(run_ids[0], None)
        else:
            parts = [self._contributions(run_id, 1 - fold) for fold, run_id in enumerate(run_ids)]
            mean = float(np.mean([part.mean() for part in parts]))
            values = np.empty(sum(map(len, parts)))
            for fold, part in enumerate(parts):
                values[self._truth(run_ids[fold]).halves == 1 - fold] = mean + (part - part.mean()) * len(
                    values
                ) / 2 / len(part)
        if abs(values.mean() - cell.scores[seed]) > _ROUNDING:
            raise NotPredictedError(
                f"{run_ids[0]}: its predictions score {values.mean():.6f}, its record says {cell.scores[seed]:.6f}"
            )
        return values, self._truth(run_ids[0]).labels

    def _find(self, run_id: str) -> _Kept:
        kept = self._kept.get(run_id, f"{run_id} kept no predictions")
        if isinstance(kept, str):
            raise NotPredictedError(kept)
        return kept

    def _truth(self, run_id: str) -> SplitTruth:
        return self._find(run_id).truth

    def _compute(self, run_id: str, half: int | None) -> np.ndarray:
        """What each example adds to a run's score: of the split, or of the half that reports."""
        kept, record = self._find(run_id), self._records[run_id]
        epoch = self._epochs(record)[None if half is None else 1 - half]
        if epoch not in kept.by_epoch:
            raise NotPredictedError(f"{run_id} kept no predictions of epoch {epoch}")
        labels, lengths, told = kept.truth.labels, kept.truth.sentence_lengths, kept.by_epoch[epoch]
        if half is not None:
            chosen = kept.truth.in_half(half)
            labels, told = labels[chosen], told[chosen]
            lengths = None if lengths is None else lengths[kept.truth.halves == half]
        try:
            return contributions(record.task, labels, told, lengths)
        except ValueError as error:
            raise NotPredictedError(f"{run_id}: {error}") from None

    def _epochs(self, record: Record) -> dict[int | None, int]:
        """The epochs (from 1) whose scores count: under None the papers', under 0 and 1 those that a half chose."""
        result = record.result
        if result is None or not result.epochs:
            return {}
        epochs: dict[int | None, int] = {
            None: (result.best_epoch or 1) if self._epoch == "best" else len(result.epochs)
        }
        if record.half_scores is None:
            return epochs
        folds = cross_fit(record.half_scores, [epoch.collapsed for epoch in result.epochs], self._epoch)
        return epochs | {half: fold.epoch for half, fold in enumerate(folds)}

    def _select(self, record: Record, predictions: Predictions) -> _Kept | str:
        """What may count of a run's predictions."""
        split = record.task.validation_splits[0]
        if split not in predictions.truth:
            return f"{record.run_id} kept no predictions of the {split} split"
        epochs = set(self._epochs(record).values())
        told = predictions.by_epoch[split]
        return _Kept(predictions.truth[split], {epoch: told[epoch] for epoch in epochs if epoch in told})

    def _index(self, group: Group) -> _Index:
        """Where the runs of a group are; made once of a group's runs, whatever its cells."""
        runs = group.runs
        if id(runs) not in self._indexes:
            index: dict[tuple[Row, str, float], dict[int, str]] = {}
            columns = ("row", "column", "learning_rate", "seed", "run_id")
            for row, column, rate, seed, run_id in zip(*(runs[name] for name in columns), strict=True):
                index.setdefault((row, column, float(rate)), {})[int(seed)] = run_id
            self._indexes[id(runs)] = (runs, index)  # with the runs, so that no others get their id
        return self._indexes[id(runs)][1]
