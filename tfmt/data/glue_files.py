"""GLUE's own files: tab-separated without quoting, one folder a task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tfmt.data.examples import Examples, check_learnable
from tfmt.data.lines import read_lines
from tfmt.errors import RequestError
from tfmt.tasks import GlueFiles, Task
from tfmt.words import counted

_MAX_SCORE = 5.0  # STS-B's scale.


def split_path(task: Task, data_dir: str, split: str) -> Path:
    """The file of a split: `validation_matched` of MNLI is `dev_matched.tsv`.

    Args:
      task: a GLUE task.
      data_dir: the folder that holds the task's folder, or that folder itself.
      split: "train", a validation split or a test split of the task.

    Raises:
      RequestError: there is no such folder.
    """
    files = _layout(task)
    folder = Path(data_dir).expanduser()
    if (folder / files.folder).is_dir():
        folder = folder / files.folder
    elif not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder; --data_dir is the folder that holds {files.folder}/")
    return folder / (split.replace("validation", "dev") + ".tsv")


def read_glue_split(task: Task, data_dir: str, split: str) -> tuple[Examples, int]:
    """Reads one labelled split.

    Args:
      task: a GLUE task.
      data_dir: the folder that holds the task's folder, or that folder itself.
      split: "train" or a validation split.

    Returns:
      The examples, and how many corrupt rows were dropped (always 0 but for QQP).

    Raises:
      RequestError: a missing file or column, a row with more or fewer fields than the header, a bad label, bytes that
        are not UTF-8, no row at all, or a training split with one label or without texts.
    """
    files = _layout(task)
    path = split_path(task, data_dir, split)
    columns = (*files.text_columns, files.label_column)
    texts: tuple[list[str], ...] = tuple([] for _ in files.text_columns)
    labels: list[float] = []
    dropped = 0
    for number, row in _rows(path, columns, files.columns_without_header):
        label, problem = (-1, row) if isinstance(row, str) else _parse_label(row[-1], files.labels)
        if problem:
            if not files.drops_corrupt_rows:
                raise RequestError(f"{path}:{number}: {problem}; repair or remove this line")
            dropped += 1
            continue
        for column, text in zip(texts, row, strict=False):
            column.append(text)
        labels.append(label)
    if not labels:
        raise RequestError(
            f"{path}: holds no example ({counted(dropped, 'corrupt row')}); get {task.title}'s files again"
        )
    examples = Examples(texts, np.array(labels, np.int32 if task.classes else np.float32))
    if split == "train":
        check_learnable(path, task, examples)
    return examples, dropped


def read_glue_test(task: Task, data_dir: str, split: str) -> Examples:
    """Reads a test split, which has no labels; row i is what GLUE's server calls index i.

    Args:
      task: a GLUE task.
      data_dir: the folder that holds the task's folder, or that folder itself.
      split: one of `task.test_splits`.

    Raises:
      RequestError: a missing file or column, a row with more or fewer fields than the header, bytes that are not UTF-8,
        or no row at all.
    """
    files = _layout(task)
    path = split_path(task, data_dir, split)
    texts: tuple[list[str], ...] = tuple([] for _ in files.text_columns)
    for number, row in _rows(path, files.text_columns, ()):  # Even CoLA's test file has a header.
        if isinstance(row, str):
            raise RequestError(f"{path}:{number}: {row}; repair this line")
        for column, text in zip(texts, row, strict=True):
            column.append(text)
    if not texts[0]:
        raise RequestError(f"{path}: holds no example; get {task.title}'s files again")
    return Examples(texts, None)


def _layout(task: Task) -> GlueFiles:
    if task.glue is None:
        raise RequestError(f"task {task.name} is not one of GLUE's")
    return task.glue


def _rows(
    path: Path, columns: Sequence[str], columns_without_header: Sequence[str]
) -> Iterator[tuple[int, list[str] | str]]:
    """The named columns of every row with the line's number, or what is wrong with the row.

    A row must have as many fields as the header: a text may hold a tab, which nothing quotes, and then nobody can say
    which field is which.
    """
    lines = read_lines(path)
    if columns_without_header:
        header: Sequence[str] = columns_without_header
    else:
        header = next(lines, (1, ""))[1].split("\t")
        missing = [column for column in columns if column not in header]
        if missing:
            raise RequestError(
                f"{path}:1: the header lacks the column {missing[0]!r} (it has: {', '.join(header)}); "
                f"is this the file of another task?"
            )
        twice = [column for column in columns if header.count(column) > 1]
        if twice:
            raise RequestError(f"{path}:1: the header has the column {twice[0]!r} twice; rename or remove one")
    places = [header.index(column) for column in columns]
    source = "the task has" if columns_without_header else "the header has"
    blank = 0
    for number, line in lines:
        if not line:
            blank = blank or number  # Blank lines are nothing at the end of a file, and corrupt before that.
            continue
        if blank:
            yield blank, "an empty line between rows"
            blank = 0
        fields = line.split("\t")
        if len(fields) == len(header):
            yield number, [fields[place] for place in places]
        else:
            count = f"{counted(len(fields), 'field')} where {source} {len(header)}"
            yield number, f"{count} ({', '.join(header)}); fields are separated by tabs"


def _parse_label(text: str, labels: Sequence[str]) -> tuple[float, str]:
    """A class's integer or a score, and what is wrong with it if anything."""
    text = text.strip()
    if labels:
        if text in labels:
            return labels.index(text), ""
        return -1, f"the label must be one of {', '.join(labels)}, not {text!r}"
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if 0 <= score <= _MAX_SCORE:
        return score, ""
    return -1, f"the score must be a number from 0 to {_MAX_SCORE:g}, not {text!r}"
