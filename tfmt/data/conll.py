"""CoNLL-2003's own files, and sentences with tags from wherever they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmt.data.entities import find_spelling, settle
from tfmt.data.examples import Examples
from tfmt.data.rows import Row, read_sentences
from tfmt.errors import RequestError
from tfmt.tasks import Task

_FILES = {
    "train": ("eng.train", "train.txt"),
    "validation": ("eng.testa", "valid.txt"),
    "test": ("eng.testb", "test.txt"),
}
# Word, part of speech, chunk, entity.
_COLUMNS = 4
# The field of a sentence that keeps the tags of its file beside the converted ones.
WRITTEN = "written"


def read_conll2003(task: Task, data_dir: str, split: str, encoding: str) -> tuple[Examples, dict[str, Any]]:
    """Reads a split; its tags, whatever their scheme, are converted to IOB2.

    Each file is judged by itself: they are often gathered from several places.

    Args:
      task: conll2003_ner.
      data_dir: the folder with eng.train, eng.testa and eng.testb, or train.txt, valid.txt and test.txt.
      split: "train", "validation" or "test".
      encoding: how characters are written.

    Returns:
      The examples, and notes on their tags for the record.

    Raises:
      RequestError: a missing file, a line without four columns, an unknown tag, or bytes of another encoding.
    """
    path = _find_file(Path(data_dir).expanduser(), split)
    rows = list(read_sentences(path, encoding, _COLUMNS))
    if not rows:
        raise RequestError(f"{path}: holds no sentence; get CoNLL-2003's files again")
    settled = settle_tags({split: rows}, "3")
    notes: dict[str, Any] = {}
    if settled is not None:  # else a tag is unknown, or there is none but O
        (rows,), (notes,) = settled.rows.values(), settled.notes.values()
    return number_tags(path, rows, "0", "3", task.classes), notes


class SettledRows(NamedTuple):
    """The sentences of files with their tags in IOB2.

    Attributes:
      rows: the sentences of each file; what the file itself says is in the field `WRITTEN`.
      notes: what the record says of each file's tags.
    """

    rows: dict[str, list[Row]]
    notes: dict[str, dict[str, Any]]


def settle_tags(files: dict[str, list[Row]], tag_column: str) -> SettledRows | None:
    """Converts the tags of a data set to IOB2, or gives None if they don't mark entities.

    How tags are spelled is judged by all files together, their scheme by each file.

    Args:
      files: the sentences of each file.
      tag_column: which field holds the tags.
    """
    spelling = find_spelling({tag for rows in files.values() for row in rows for tag in row.fields[tag_column]})
    if spelling is None:
        return None
    done = SettledRows({}, {})
    for name, rows in files.items():
        settled = settle([row.fields[tag_column] for row in rows], spelling)
        if settled is None:
            return None
        done.rows[name] = [
            row._replace(fields=row.fields | {tag_column: tags, WRITTEN: row.fields[tag_column]})
            for row, tags in zip(rows, settled.tags, strict=True)
        ]
        done.notes[name] = settled.notes
    return done


def number_tags(path: Path, rows: list[Row], word_column: str, tag_column: str, classes: tuple[str, ...]) -> Examples:
    """Examples of sentences with the class of each word.

    Args:
      path: the file, for errors.
      rows: the sentences.
      word_column: which field holds the words.
      tag_column: which field holds the tags.
      classes: the tags that there are, in the order of their integers.

    Raises:
      RequestError: a tag that is none of the classes; it is named as the file writes it.
    """
    number = {name: i for i, name in enumerate(classes)}
    tags: list[int] = []
    for row in rows:
        for word, tag in enumerate(row.fields[tag_column]):
            if tag not in number:
                raise RequestError(
                    f"{path}:{word_line(row, word)}: the tag {written_tag(row, tag_column, word)!r} is not one of "
                    f"{', '.join(classes)}; repair it"
                )
            tags.append(number[tag])
    return Examples(
        ([word for row in rows for word in row.fields[word_column]],),
        np.array(tags, np.int32),
        np.array([len(row.fields[tag_column]) for row in rows], np.int64),
    )


def written_tag(row: Row, tag_column: str, word: int) -> str:
    """The tag of a word as its file writes it."""
    return row.fields.get(WRITTEN, row.fields[tag_column])[word]


def word_line(row: Row, word: int) -> int:
    """The line of a word."""
    return row.line if row.word_lines is None else row.word_lines[word]


def describe_sentences(splits: dict[str, Examples]) -> dict[str, Any]:
    """The sentences and words of each split, for the record."""
    return {
        "sentences": {name: len(examples) for name, examples in splits.items()},
        "words": {name: len(examples.texts[0]) for name, examples in splits.items()},
    }


def has_conll2003(data_dir: str, split: str) -> bool:
    """Whether a folder holds the file of a split."""
    return _look_for(Path(data_dir).expanduser(), split) is not None


def list_conll2003(data_dir: str) -> list[Path]:
    """The files of the splits that a folder has."""
    found = [_look_for(Path(data_dir).expanduser(), split) for split in _FILES]
    return [path for path in found if path is not None]


def _look_for(folder: Path, split: str) -> Path | None:
    return next((folder / name for name in _FILES[split] if (folder / name).is_file()), None)


def _find_file(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder; --data_dir is the folder that holds eng.train")
    if found := _look_for(folder, split):
        return found
    raise RequestError(f"{folder}: holds neither {' nor '.join(_FILES[split])}; check --data_dir")
