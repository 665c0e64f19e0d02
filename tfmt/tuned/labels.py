"""Labels that lie beside the texts of an input file, gathered while it is predicted for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.conll import settle_tags, word_line
from tfmt.data.own_files import read_label, read_words
from tfmt.data.rows import Row
from tfmt.errors import RequestError, RequestWarning
from tfmt.spec import RunSpec
from tfmt.tasks import Task
from tfmt.words import counted

# Where CoNLL-2003's files have the entity of a word.
_CONLL_ENTITY = "3"


class InputLabels:
    """What an input file says itself, for a score.

    Args:
      spec: the run, which names the label's column of people's own data.
      task: its task.
      path: the file, for warnings.
      fields: the columns of the file.
    """

    def __init__(self, spec: RunSpec, task: Task, path: Path, fields: Mapping[str, Any]) -> None:
        self._task, self._path = task, path
        if task.name == "custom":
            names: tuple[str, ...] = (spec.label_column,)
        elif task.glue is not None:
            names = (task.glue.label_column,)
        else:
            names = ("label", _CONLL_ENTITY) if task.entities else ("label",)
        self._column = next((name for name in names if name in fields), "")
        self._rows: list[Row] = []
        self._trouble = ""

    def take(self, rows: Sequence[Row], words: np.ndarray | None = None) -> None:
        """Notes the labels of some rows.

        Args:
          rows: the rows.
          words: in token tasks the number of words in each.
        """
        if not self._column or self._trouble:
            return
        try:
            for number, row in enumerate(rows):
                if self._task.head == "tokens":
                    label: Any = read_words(self._path, row, self._column)
                    if words is not None and len(label) != words[number]:
                        there = f"{counted(len(label), 'tag')} for {counted(int(words[number]), 'word')}"
                        raise RequestError(f"{self._path}:{row.line}: column {self._column} has {there}")
                else:
                    label = read_label(self._path, row, self._column, self._task.kind)
                self._rows.append(row._replace(fields={self._column: label}))
        except RequestError as error:
            self._trouble, self._rows = str(error), []

    def read(self, predictions: int) -> np.ndarray | None:
        """One label for each prediction, as `tfmt.metrics.score` takes them; None where they cannot be compared.

        Args:
          predictions: how many there must be.

        Warns:
          RequestWarning: a row has no label or one that is none of the run's, or other tags than words;
            nothing is scored then.
        """
        if not self._column:
            return None
        try:
            labels = [] if self._trouble else self._number_labels()
        except RequestError as error:
            labels, self._trouble = [], str(error)
        if not self._trouble and len(labels) != predictions:
            there = f"{counted(len(labels), 'tag')} for {counted(predictions, 'word')}"
            self._trouble = f"{self._path}: column {self._column} has {there}"
        if self._trouble:
            warnings.warn(f"not scored: {self._trouble}", RequestWarning, stacklevel=2)
            return None
        return np.array(labels, np.int32 if self._task.classes else np.float32)

    def _number_labels(self) -> list[float]:
        """Numbers of classes, or scores; of the first label that is none of the run's it notes where it stands."""
        rows = self._rows
        if self._task.entities and (settled := settle_tags({"": rows}, self._column)) is not None:
            rows = settled.rows[""]
        spelled = self._task.glue.labels if self._task.glue else ()
        numbers = {name: number for names in (spelled, self._task.classes) for number, name in enumerate(names)}
        labels: list[float] = []
        for row in rows:
            label = row.fields[self._column]
            for place, value in enumerate(label if isinstance(label, list) else [label]):
                if self._task.classes and value not in numbers:
                    line = word_line(row, place) if isinstance(label, list) else row.line
                    self._trouble = (
                        f"{self._path}:{line}: {value!r} in column {self._column} is no label of the run"
                        f" ({', '.join(self._task.classes)})"
                    )
                    return []
                labels.append(numbers[value] if self._task.classes else value)
        return labels
