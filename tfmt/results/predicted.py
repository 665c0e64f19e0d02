"""What each example adds to the scores of runs, from what they predicted, which is read run by run when asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tfmt.errors import RequestError
from tfmt.files import UnreadableError
from tfmt.results.contributions import contributions
from tfmt.results.groups import Group
from tfmt.results.rows import Row
from tfmt.runs.records import RECORD_FILE, Record, Sources, find_predictions, list_sources
from tfmt.tasks import Task, custom_task, find_task
from tfmt.training.predictions import Predictions, read_predictions
from tfmt.words import without_folders

# Runs whose contributions are held at once, one number an example: 60 MB of QQP's 40,430 examples.
_HELD = 192
# How far a score may be from the record's: predictions of scores are kept in float32.
_ROUNDING = 1e-5


class NotPredictedError(LookupError):
    """What each example adds to a run's score is not known; the message says why, and of which run."""


def read_below(runs: Sources, records: Sequence[Record]) -> Callable[[Record], Predictions]:
    """What reads a run's predictions: from its folder when asked for, from a packed study all at once.

    Args:
      runs: as for `find_records`.
      records: of the runs that may be asked for.
    """
    sources = list_sources(runs)

    @functools.cache
    def packed() -> dict[str, Predictions]:
        packs = [source for source in sources if not source.is_dir()]
        return find_predictions(packs, records)[0] if packs else {}

    def read(record: Record) -> Predictions:
        for source in sources:
            for folder in (source, source / record.run_id):
                if folder.name == record.run_id and (folder / RECORD_FILE).exists():
                    return read_predictions(folder, sha256=record.predictions_sha256)
        if record.run_id in packed():
            return packed()[record.run_id]
        raise RequestError(f"{record.run_id}: its predictions are in none of --runs")

    return read


class Predicted:
    """What runs predicted, as contributions to their scores on the first development split."""

    def __init__(self, records: Iterable[Record], read: Callable[[Record], Predictions], epoch: str = "best") -> None:
        """Reads nothing yet.

        Args:
          records: of the runs.
          read: reads a run's predictions.
          epoch: whose: each run's `best` epoch's or its `last` one's.
        """
        self._records = {record.run_id: record for record in records}
        self._read = read
        self._epoch = epoch
        self._scored = functools.lru_cache(maxsize=_HELD)(self._score)

    def contributions(self, run_id: str) -> np.ndarray:
        """What each example adds to a run's score; floats of shape `(examples,)`, whose mean is the score.

        Raises:
          NotPredictedError: the run kept no predictions, not those of that epoch, or its file cannot be read; or they
            do not give the score of its record, or the score has no contributions.
        """
        return self._scored(run_id)[0]

    def of_cells(self, group: Group, column: str, seeds: Mapping[Row, Sequence[int]]) -> dict[Row, np.ndarray]:
        """The contributions of cells' runs at each cell's chosen rate: row to floats of shape `(seeds, examples)`.

        Args:
          group: the runs.
          column: the column of the cells.
          seeds: of each row the seeds, which its cell has.

        Raises:
          NotPredictedError: as in `contributions`, or the runs were scored on different examples.
        """
        run_ids = {row: _find_runs(group, row, column) for row in seeds}
        first = next(run_ids[row][seed] for row in seeds for seed in seeds[row])
        for row in seeds:
            for seed in seeds[row]:
                if not np.array_equal(self._scored(run_ids[row][seed])[1], self._scored(first)[1]):
                    raise NotPredictedError(f"{run_ids[row][seed]}: scored on other examples than {first}")
        return {row: np.stack([self.contributions(run_ids[row][seed]) for seed in seeds[row]]) for row in seeds}

    def _score(self, run_id: str) -> tuple[np.ndarray, np.ndarray]:
        """A run's contributions, and the labels that it was scored by."""
        record = self._records.get(run_id)
        result = record.result if record else None
        if record is None or result is None or record.predictions_sha256 is None:
            raise NotPredictedError(f"{run_id} kept no predictions")
        try:
            predictions = self._read(record)
        except (RequestError, UnreadableError) as error:
            raise NotPredictedError(without_folders(str(error), 2)) from None
        task = _task_of(record)
        split = task.validation_splits[0]
        epoch = result.best_epoch if self._epoch == "best" else len(result.epochs)
        told = predictions.by_epoch.get(split, {}).get(epoch or 0)
        if told is None:
            raise NotPredictedError(f"{run_id} kept no predictions of epoch {epoch}")
        truth = predictions.truth[split]
        try:
            values = contributions(task, truth.labels, told, truth.sentence_lengths)
        except ValueError as error:
            raise NotPredictedError(f"{run_id}: {error}") from None
        score = result.score_best if self._epoch == "best" else result.score_last
        if score is None or abs(values.mean() - score) > _ROUNDING:
            raise NotPredictedError(f"{run_id}: its predictions score {values.mean():.6f}, its record says {score}")
        return values, truth.labels


def _find_runs(group: Group, row: Row, column: str) -> dict[int, str]:
    """Seed to run id at a cell's chosen rate."""
    runs = group.runs
    near = runs[(runs["learning_rate"] == group.cells[row, column].learning_rate) & (runs["column"] == column)]
    found = zip(near["seed"], near["run_id"], near["row"], strict=True)
    return {int(seed): run_id for seed, run_id, of_row in found if of_row == row}


def _task_of(record: Record) -> Task:
    """The task of a run, whose classes its record has where they are of the user's own data."""
    task_type = record.spec.task_type
    if record.spec.task != "custom" or not task_type:
        return find_task(record.spec.task)
    counted = next(iter(record.result.predicted.values()), {}) if record.result else {}
    classes = tuple(name for name in counted if name != "(no prediction)")
    return custom_task(task_type, record.spec.text_columns, classes)
