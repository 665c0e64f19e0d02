"""Labels that lie beside the texts of an input file, gathered while it is predicted for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.conll import settle_tags, word_line
from tfmt.data.own_files import read_words
from tfmt.data.rows import Row
from tfmt.errors import RequestWarning
from tfmt.spec import RunSpec
from tfmt.tasks import Task

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
        names = [spec.label_column, task.glue.label_column if task.glue else "label"]
        names += [_CONLL_ENTITY] if task.entities else []
        self._column = next((name for name in names if name and name in fields), "")
        self._rows: list[Row] = []

    def take(self, rows: Sequence[Row]) -> None:
        """Notes the labels of some rows."""
        for row in rows if self._column else ():
            value = row.fields[self._column]
            tags = read_words(self._path, row, self._column) if self._task.head == "tokens" else value
            self._rows.append(row._replace(fields={self._column: tags}))

    def read(self, predictions: int) -> np.ndarray | None:
        """One label for each prediction, as `tfmt.metrics.score` takes them; None where they cannot be compared.

        Args:
          predictions: how many there must be.

        Warns:
          RequestWarning: a label is none of the run's, or words and tags are not as many; nothing is scored then.
        """
        if not self._column:
            return None
        rows = self._rows
        if self._task.entities and (settled := settle_tags({"": rows}, self._column)) is not None:
            rows = settled.rows[""]
        labels: list[float] = []
        for row in rows:
            value = row.fields[self._column]
            for place, text in enumerate(value if isinstance(value, list) else [value]):
                label = self._number(text)
                if label is None:
                    line = word_line(row, place) if isinstance(value, list) else row.line
                    known = ", ".join(self._task.classes) or "a number"
                    warnings.warn(
                        f"{self._path}:{line}: not scored, as {text!r} in column {self._column} is no label of the run "
                        f"({known})",
                        RequestWarning,
                        stacklevel=2,
                    )
                    return None
                labels.append(label)
        if len(labels) != predictions:
            told = (
                f"{self._path}: not scored, as column {self._column} has {len(labels):,} tags for {predictions:,} words"
            )
            warnings.warn(told, RequestWarning, stacklevel=2)
            return None
        return np.array(labels, np.int32 if self._task.classes else np.float32)

    def _number(self, text: Any) -> float | None:
        """A class' number, or a score; None for neither."""
        if self._task.kind == "regression":
            try:
                score = float(text)
            except (TypeError, ValueError):
                return None
            return score if math.isfinite(score) else None
        spelled = self._task.glue.labels if self._task.glue else ()
        numbers = {name: number for names in (spelled, self._task.classes) for number, name in enumerate(names)}
        return numbers.get(str(text))
