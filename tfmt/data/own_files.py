"""People's own data: `--task=custom`."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.conll import describe_sentences, number_tags, settle_tags, word_line, written_tag
from tfmt.data.entities import resemble_entities
from tfmt.data.examples import Dataset, Examples, check_learnable, test_is_optional
from tfmt.data.rows import FORMATS, Row, read_rows
from tfmt.errors import RequestError, RequestWarning
from tfmt.tasks import Kind, Task, custom_task
from tfmt.words import counted

_LARGEST = float(np.finfo(np.float32).max)
_NAMES = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


def read_own_data(
    data_dir: str,
    text_columns: tuple[str, ...],
    label_column: str,
    task_type: Kind,
    validation_fraction: float,
    encoding: str,
    split_seed: int | None,
) -> Dataset:
    """Reads a training and a validation file, or one file that is split; finds the classes in the training split.

    Token tasks take a list of words and one of tags a row (JSON Lines), both as text separated by blanks (TSV, CSV),
    or CoNLL files, whose columns are named by their place from 0 (CoNLL-U: `form`, `upos`, ...). Tags that mark
    entities are converted to IOB2, whatever their scheme; where tags only look like those of entities a
    `RequestWarning` says that accuracy is not entity F1.

    Args:
      data_dir: a file, or a folder with train.* and validation.* (or valid.*, dev.*).
      text_columns: the columns of the texts, one or two.
      label_column: the column of the label or the tags.
      task_type: "classification", "regression" or "tokens".
      validation_fraction: which part of a single file becomes the validation split, chosen by a hash of the text so
        that equal texts stay together; 0 where there is a validation file.
      encoding: how characters are written.
      split_seed: another choice of that part.

    Raises:
      RequestError: a missing file or column, a row that is not of its format, a label that is no number (regression)
        or that the training split lacks, fewer than two labels, an empty split, texts that are all blank,
        sentences that are all one word.
    """
    allowed = (1,) if task_type == "tokens" else (1, 2)
    if len(text_columns) not in allowed:
        raise RequestError(
            f"text_columns names {'1 column' if task_type == 'tokens' else '1 or 2 columns'} for {task_type}. "
            f"Received: text_columns={','.join(text_columns)}"
        )
    paths, rule = _choose_files(Path(data_dir).expanduser(), validation_fraction, split_seed)
    rows = {
        split: [_labelled(path, row, text_columns, label_column, task_type) for row in read_rows(path, encoding)]
        for split, path in paths.items()
    }
    settled = None
    if task_type == "tokens":
        _check_sentences(paths["train"], rows)
        settled = settle_tags({"all": rows["train"]} if rule else rows, "label")
        if settled is not None and "O" not in _labels(settled.rows["all" if rule else "train"], task_type):
            settled = None  # words between entities are what every scheme and every score starts from
        if settled is not None:
            rows = {"train": settled.rows["all"]} if rule else settled.rows
    if rule:
        paths["validation"] = paths["train"]
        rows = _split_rows(rows["train"], validation_fraction, split_seed or 0)
    for split in rows:
        if not rows[split]:
            raise RequestError(f"{paths[split]}: the {split} split holds no example; add some{rule and _RESPLIT}")
    classes = () if task_type == "regression" else _find_classes(paths, rows, task_type, bool(rule))
    task = custom_task(task_type, text_columns, classes)
    splits = {split: _examples(task, paths[split], rows[split]) for split in rows}
    if task_type != "tokens":
        check_learnable(paths["train"], task, splits["train"])
    notes: dict[str, Any] = {"source": f"own files ({FORMATS[paths['train'].suffix.lower()]})"}
    if rule:
        notes["split_rule"] = rule
    if task_type == "tokens":
        notes |= describe_sentences(splits)
        if settled is not None:
            notes["entity_tags"] = settled.notes
        elif resemble_entities(classes):
            _warn_of_accuracy(paths["train"], rows["train"], classes)
    test, place = None, Path(data_dir).expanduser()
    with test_is_optional():
        path = _find(place, "test") if place.is_dir() else None
        test = None if path is None else _read_test(path, task, label_column, encoding)
    return Dataset(task, splits, notes, test)


def _read_test(path: Path, task: Task, label_column: str, encoding: str) -> Examples | None:
    """A test file as examples; None where it has no labels.

    Raises:
      RequestError: it has labels and cannot be scored.
    """
    # One without labels may be larger than memory, as what `tfmt-predict` reads.
    if not any(label_column in row.fields for row in read_rows(path, encoding)):
        return None
    rows = [_labelled(path, row, task.text_fields, label_column, task.kind) for row in read_rows(path, encoding)]
    if task.entities:
        settled = settle_tags({"test": rows}, "label")
        if settled is None:
            raise RequestError(f"{path}: its tags do not mark entities as those of the other files do; repair them")
        rows = settled.rows["test"]
    if task.classes:
        _check_known(path, rows, task.kind, task.classes, "test", " to the training file")
    return _examples(task, path, rows)


def find_own_file(data_dir: str, split: str) -> Path:
    """The file of a split in a folder of own data.

    Raises:
      RequestError: there is none, or more than one.
    """
    folder = Path(data_dir).expanduser()
    found = _find(folder, split)
    if found is None:
        raise RequestError(f"{folder}: holds no {_NAMES[split][0]} file ({_endings()}); check --data_dir")
    return found


def list_own_files(data_dir: str) -> list[Path]:
    """The files that `read_own_data` reads."""
    place = Path(data_dir).expanduser()
    found = [_find(place, split) for split in _NAMES] if place.is_dir() else [place]
    return [path for path in found if path is not None]


def stream_unlabelled(
    path: Path, task: Task, columns: Sequence[str] = (), encoding: str = "utf-8", chunk: int = 4096
) -> Iterator[tuple[list[Row], Examples]]:
    """Reads texts to predict for, chunk by chunk, so that a file may be larger than memory.

    Args:
      path: a file that `read_rows` reads.
      task: the task; for token tasks a row is a sentence.
      columns: the columns of the texts, if not `task.text_fields`.
      encoding: how characters are written.
      chunk: how many rows to give at once.

    Yields:
      The rows with all their columns, and the texts in them as unlabelled examples.

    Raises:
      RequestError: as `read_rows`, or a missing column.

    Warns:
      RequestWarning: the sentences that are given first all hold one word.
    """
    names = tuple(columns) or task.text_fields
    rows = read_rows(path, encoding)
    first = True
    while taken := list(itertools.islice(rows, chunk)):
        if task.head == "tokens":
            sentences = [read_words(path, row, names[0]) for row in taken]
            if first and len(sentences) > 1 and max(map(len, sentences)) == 1:
                warnings.warn(f"{path}: {_ONE_WORD}", RequestWarning, stacklevel=2)
            first = False
            lengths = np.array([len(sentence) for sentence in sentences], np.int64)
            yield taken, Examples((list(itertools.chain.from_iterable(sentences)),), None, lengths)
        else:
            yield taken, Examples(tuple([_text(path, row, name) for row in taken] for name in names), None)


def is_held_out(texts: Sequence[str], fraction: float, seed: int) -> bool:
    """Whether an example of a file that `validation_fraction` splits is in the validation split.

    Args:
      texts: its texts in the order of their columns, or its words.
      fraction: the validation fraction.
      seed: the split's seed.
    """
    text = "\0".join([str(seed), *texts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 < fraction


_ONE_WORD = (
    "every sentence holds one word; a row is a whole sentence: its words separated by blanks (in JSON Lines a list), "
    "its tags as well; join the rows of each sentence, or write a .conll file: a word a line, blank lines between"
)
_RESPLIT = ", another --validation_fraction or another --split_seed"


def _choose_files(place: Path, fraction: float, seed: int | None) -> tuple[dict[str, Path], str]:
    """The file of each split, and the rule in words where one file is split."""
    if place.is_dir():
        train, validation = find_own_file(str(place), "train"), _find(place, "validation")
    elif place.exists():
        train, validation = place, None
    else:
        raise RequestError(f"{place}: there is no such file or folder; check --data_dir")
    if validation is not None and fraction:
        raise RequestError(f"{validation}: leave out --validation_fraction, or this file: both say what validation is")
    if validation is not None:
        return {"train": train, "validation": validation}, ""
    if not fraction:
        raise RequestError(f"{place}: no validation file; add one ({_endings('validation')}) or --validation_fraction")
    return {
        "train": train
    }, f"validation = about {fraction:g} of one file by a hash of the text, split_seed {seed or 0}"


def _find(folder: Path, split: str) -> Path | None:
    paths = [folder / (name + ending) for name in _NAMES[split] for ending in FORMATS]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise RequestError(f"{folder}: holds {found[0].name} and {found[1].name}; keep one {split} file")
    return found[0] if found else None


def _endings(name: str = "") -> str:
    return ", ".join(name + ending for ending in FORMATS)


def _labelled(path: Path, row: Row, text_columns: Sequence[str], label_column: str, kind: Kind) -> Row:
    """The row's texts and label alone, checked: `texts` is a tuple, or the list of words."""
    if kind != "tokens":
        texts = tuple(_text(path, row, column) for column in text_columns)
        return Row(row.line, {"texts": texts, "label": read_label(path, row, label_column, kind)})
    words, tags = read_words(path, row, text_columns[0]), read_words(path, row, label_column)
    if len(words) != len(tags):
        there = f"{counted(len(words), 'word')} and {counted(len(tags), 'tag')}"
        raise RequestError(f"{path}:{row.line}: {there}; repair or remove this line")
    if not words:
        raise RequestError(f"{path}:{row.line}: no words; remove this line")
    return Row(row.line, {"texts": words, "label": tags}, row.word_lines)


def _value(path: Path, row: Row, column: str) -> Any:
    if column not in row.fields:
        raise RequestError(
            f"{path}:{row.line}: no column {column!r} (there are: {', '.join(row.fields)}); "
            f"check --text_columns and --label_column"
        )
    return row.fields[column]


def _text(path: Path, row: Row, column: str) -> str:
    value = _value(path, row, column)
    if not isinstance(value, str):
        raise RequestError(f"{path}:{row.line}: {column} must be a text, not {type(value).__name__}; repair this line")
    _check_characters(path, row, value)
    return value


def read_words(path: Path, row: Row, column: str) -> list[str]:
    """The words, or the tags, in a column of a row: a list, or a text parted by blanks.

    Raises:
      RequestError: there is no such column, or it holds something else.
    """
    value = _value(path, row, column)
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise RequestError(
            f"{path}:{row.line}: {column} must be words separated by blanks, or a list of texts; repair this line"
        )
    _check_characters(path, row, "".join(words))
    return words


def _check_characters(path: Path, row: Row, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can write halves of characters.
        raise RequestError(f"{path}:{row.line}: a text holds half a surrogate pair; repair this line") from None


def read_label(path: Path, row: Row, column: str, kind: Kind) -> str | float:
    """A class as text, however JSON writes it, or a number.

    Raises:
      RequestError: there is no such column, or it holds no label.
    """
    value = _value(path, row, column)
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, (int, float)):
        value = str(value) if math.isfinite(value) else ""  # JSON's NaN is no class
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{path}:{row.line}: {column} is not a label: {value!r}; repair or remove this line")
    _check_characters(path, row, value)
    if kind == "classification":
        return value.strip()
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{path}:{row.line}: {column} must be a number, not {value!r}; repair or remove this line")
    if abs(number) > _LARGEST:
        raise RequestError(f"{path}:{row.line}: {column} is {value}, more than float32 holds; scale the scores")
    return number


def _check_sentences(path: Path, files: dict[str, list[Row]]) -> None:
    """Raises RequestError where a table holds a word a row, as if each were a sentence."""
    lengths = [len(row.fields["texts"]) for rows in files.values() for row in rows]
    if len(lengths) > 1 and max(lengths) == 1:
        raise RequestError(f"{path}: {_ONE_WORD}")


def _warn_of_accuracy(path: Path, rows: list[Row], classes: tuple[str, ...]) -> None:
    """Says that tags which look like those of entities are not scored as entities, and which of them are the reason."""
    plain = re.compile(r"O|[BI]-.+", re.DOTALL)
    odd = [tag for tag in classes if not plain.fullmatch(tag)]
    place = str(path)
    if odd:
        row, word = next((row, tags.index(odd[0])) for row in rows if odd[0] in (tags := row.fields["label"]))
        place = f"{path}:{word_line(row, word)}"
        named = ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")
        reason = f"{named} fit{'s' if len(odd) == 1 else ''} none of IOB1, IOB2, IOE1, IOE2, IOBES and BILOU"
    else:
        reason = "there is no O"
    warnings.warn(
        f"{place}: the tags look like those of entities, but {reason}; words are scored by "
        "accuracy, which is not entity F1: write B-TYPE, I-TYPE and O where entities are meant",
        RequestWarning,
        stacklevel=3,
    )


def _split_rows(rows: list[Row], fraction: float, seed: int) -> dict[str, list[Row]]:
    splits: dict[str, list[Row]] = {"train": [], "validation": []}
    for row in rows:
        splits["validation" if is_held_out(row.fields["texts"], fraction, seed) else "train"].append(row)
    return splits


def _labels(rows: list[Row], kind: Kind) -> set[str]:
    if kind == "tokens":
        return set(itertools.chain.from_iterable(row.fields["label"] for row in rows))
    return {row.fields["label"] for row in rows}


def _find_classes(paths: dict[str, Path], rows: dict[str, list[Row]], kind: Kind, resplit: bool) -> tuple[str, ...]:
    """The labels of the training split, sorted; the validation split must hold no others."""
    classes = _labels(rows["train"], kind)
    if len(classes) < 2:
        raise RequestError(f"{paths['train']}: only one class ({min(classes)}); training needs at least two")
    _check_known(paths["validation"], rows["validation"], kind, classes, "validation",
                 _RESPLIT if resplit else " to the training file")  # fmt: skip
    return tuple(sorted(classes))


def _check_known(path: Path, rows: list[Row], kind: Kind, classes: Collection[str], split: str, remedy: str) -> None:
    """Raises RequestError where a split holds labels that the training split lacks."""
    unseen = sorted(_labels(rows, kind).difference(classes))
    if unseen:
        first = next(row for row in rows if unseen[0] in _labels([row], kind))
        line, written = first.line, ""
        if kind == "tokens":
            word = first.fields["label"].index(unseen[0])
            line, tag = word_line(first, word), written_tag(first, "label", word)
            written = "" if tag == unseen[0] else f" (the file writes {tag})"
        raise RequestError(
            f"{path}:{line}: labels in the {split} split that the training split lacks: "
            f"{', '.join(unseen)}{written}; add examples of them{remedy}"
        )


def _examples(task: Task, path: Path, rows: list[Row]) -> Examples:
    if task.kind == "tokens":
        return number_tags(path, rows, "texts", "label", task.classes)
    texts = tuple([row.fields["texts"][i] for row in rows] for i in range(len(task.text_fields)))
    labels = [row.fields["label"] for row in rows]
    if task.kind == "regression":
        return Examples(texts, np.array(labels, np.float32))
    number = {name: i for i, name in enumerate(task.classes)}
    return Examples(texts, np.array([number[label] for label in labels], np.int32))
