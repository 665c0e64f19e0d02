"""CoNLL-2003's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.entities import OrphanTagError, to_iob2
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


def read_conll2003(task: Task, data_dir: str, split: str, encoding: str) -> Examples:
    """Reads a split; IOB1 tags are converted to IOB2.

    Args:
      task: conll2003_ner.
      data_dir: the folder with eng.train, eng.testa and eng.testb, or train.txt, valid.txt and test.txt.
      split: "train", "validation" or "test".
      encoding: how characters are written.

    Raises:
      RequestError: a missing file, a line without four columns, an unknown tag, an I- tag without its entity, or
        bytes of another encoding.
    """
    path = _find_file(Path(data_dir).expanduser(), split)
    rows = list(read_sentences(path, encoding, _COLUMNS))
    if not rows:
        raise RequestError(f"{path}: holds no sentence; get CoNLL-2003's files again")
    return number_tags(path, settle_tags(path, rows, "3"), "0", "3", task.classes)


def settle_tags(path: Path, rows: list[Row], tag_column: str) -> list[Row]:
    """The sentences of a file with their tags as IOB2.

    Args:
      path: the file, for errors.
      rows: the sentences.
      tag_column: which field holds the tags.

    Raises:
      RequestError: the tags are IOB2, and an I- continues no entity of its type.
    """
    try:
        settled = to_iob2([row.fields[tag_column] for row in rows])
    except OrphanTagError as error:
        line = _word_line(rows[error.sentence], error.word)
        raise RequestError(f"{path}:{line}: {error}; repair this tag") from None
    return [row._replace(fields=row.fields | {tag_column: tags}) for row, tags in zip(rows, settled, strict=True)]


def number_tags(path: Path, rows: list[Row], word_column: str, tag_column: str, classes: tuple[str, ...]) -> Examples:
    """Examples of sentences with the class of each word.

    Args:
      path: the file, for errors.
      rows: the sentences.
      word_column: which field holds the words.
      tag_column: which field holds the tags.
      classes: the tags that there are, in the order of their integers.

    Raises:
      RequestError: a tag that is none of the classes.
    """
    number = {name: i for i, name in enumerate(classes)}
    tags: list[int] = []
    for row in rows:
        for word, tag in enumerate(row.fields[tag_column]):
            if tag not in number:
                raise RequestError(
                    f"{path}:{_word_line(row, word)}: the tag {tag!r} is not one of {', '.join(classes)}; repair it"
                )
            tags.append(number[tag])
    return Examples(
        ([word for row in rows for word in row.fields[word_column]],),
        np.array(tags, np.int32),
        np.array([len(row.fields[tag_column]) for row in rows], np.int64),
    )


def describe_sentences(splits: dict[str, Examples]) -> dict[str, Any]:
    """The sentences and words of each split, for the record."""
    return {
        "sentences": {name: len(examples) for name, examples in splits.items()},
        "words": {name: len(examples.texts[0]) for name, examples in splits.items()},
    }


def _find_file(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder; --data_dir is the folder that holds eng.train")
    for name in _FILES[split]:
        if (folder / name).is_file():
            return folder / name
    raise RequestError(f"{folder}: holds neither {' nor '.join(_FILES[split])}; check --data_dir")


def _word_line(row: Row, word: int) -> int:
    return row.line if row.word_lines is None else row.word_lines[word]
