"""How predictions are laid out in a file: as GLUE's server takes them, word by word, or beside the input's columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfmt.data.examples import Examples
from tfmt.data.rows import Row
from tfmt.errors import RequestError
from tfmt.tasks import Task

if TYPE_CHECKING:
    from tfmt.training.predictor import Predictions

_MAX_SCORE = 5.0  # STS-B's scale, outside of which the server takes nothing.
_PARTS = {"matched": "-m", "mismatched": "-mm"}
# What CoNLL files write where there is nothing to say: the tag of a word without a prediction.
_NO_TAG = "_"


class Layout(Protocol):
    """Turns texts and their predictions into lines, part by part; a layout is for one file."""

    def lines(self, rows: list[Row] | None, examples: Examples, predictions: Predictions) -> Iterator[str]:
        """The lines of the next part of the file, without line ends."""


def make_layout(task: Task, place: str) -> Layout:
    """The layout of a task's predictions.

    Args:
      task: the task.
      place: names the source of the texts in messages.
    """
    if task.head == "tokens":
        return WordLayout(task)
    return ServerLayout(task) if task.glue is not None else TableLayout(task, place)


def file_name(task: Task, split: str) -> str:
    """The name of a split's file: `MNLI-mm.tsv` as GLUE's server asks for it; other splits are named in it."""
    if task.glue is None:
        return f"{task.name}.{split}.tsv"
    kind, _, part = split.partition("_")
    return f"{task.glue.folder}{_PARTS.get(part, '')}{'' if kind == 'test' else f'.{kind}'}.tsv"


@dataclass
class ServerLayout:
    """`index` and `prediction`, as https://gluebenchmark.com asks for them.

    Args:
      task: a GLUE task.
    """

    task: Task
    _index: int = -1

    def lines(self, rows: list[Row] | None, examples: Examples, predictions: Predictions) -> Iterator[str]:
        """The lines of the next part of the file, without line ends."""
        assert self.task.glue is not None
        if self._index < 0:
            self._index = 0
            yield "index\tprediction"
        for value in predictions.values:
            shown = self.task.glue.labels[value] if self.task.classes else f"{np.clip(value, 0, _MAX_SCORE):.6f}"
            yield f"{self._index}\t{shown}"
            self._index += 1


@dataclass
class WordLayout:
    """A word and its tag a line, and an empty line after each sentence.

    Args:
      task: a token task.
    """

    task: Task

    def lines(self, rows: list[Row] | None, examples: Examples, predictions: Predictions) -> Iterator[str]:
        """The lines of the next part of the file, without line ends."""
        assert examples.sentence_lengths is not None
        pairs = zip(examples.texts[0], predictions.values.tolist(), strict=True)
        for length in examples.sentence_lengths.tolist():
            for _ in range(length):
                word, tag = next(pairs)
                yield f"{_one_field(word)}\t{_NO_TAG if tag < 0 else _one_field(self.task.classes[tag])}"
            yield ""


@dataclass
class TableLayout:
    """The input's columns, then `prediction` and, for classes, the `probability` of the predicted one.

    Tabs and line breaks inside a field become blanks, as TSV has no quoting.

    Args:
      task: a task of sentences.
      place: names the source of the texts in messages.
    """

    task: Task
    place: str
    _columns: tuple[str, ...] = ()

    def lines(self, rows: list[Row] | None, examples: Examples, predictions: Predictions) -> Iterator[str]:
        """The lines of the next part of the file, without line ends."""
        if rows is None:
            texts = zip(*examples.texts, strict=True)
            rows = [Row(0, dict(zip(self.task.text_fields, row, strict=True))) for row in texts]
        if not self._columns:
            self._columns = tuple(rows[0].fields)
            taken = {"prediction", "probability"}.intersection(self._columns)
            if taken:
                raise RequestError(
                    f"{self.place}: has a column {min(taken)!r}, the name of one that is added; rename it"
                )
            added = ("prediction",) if self.task.kind == "regression" else ("prediction", "probability")
            yield "\t".join(_one_field(name) for name in (*self._columns, *added))
        for number, row in enumerate(rows):
            unknown = [name for name in row.fields if name not in self._columns]
            if unknown:
                raise RequestError(
                    f"{self.place}:{row.line}: column {unknown[0]!r} is not in the first row; give all rows the same"
                )
            fields = [_one_field(row.fields.get(name)) for name in self._columns]
            value = predictions.values[number]
            if predictions.probabilities is None:
                fields.append(f"{value:.6f}")
            else:
                fields += [_one_field(self.task.classes[value]), f"{predictions.probabilities[number]:.6f}"]
            yield "\t".join(fields)


def _one_field(value: Any) -> str:
    """A value as text that fits between two tabs."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\r\n", " ").translate({9: " ", 10: " ", 13: " "})


def output_path(output: str, name: str, *, several: bool) -> Path:
    """The file to write: `output` itself, or `name` in it where it is a folder.

    Args:
      output: the value of `--output`: a file if its name has an ending such as `.tsv`, else a folder.
      name: the file's name in a folder.
      several: whether other files are written, too.

    Raises:
      RequestError: one file was given for several.
    """
    path = Path(output).expanduser()
    if path.is_dir() or output.endswith("/") or not path.suffix:
        return path / name
    if several:
        raise RequestError(f"--output={output}: there is more than one file to write ({name}, ...); give a folder")
    return path
