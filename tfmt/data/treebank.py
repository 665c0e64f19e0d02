"""The Wall Street Journal sample of the Penn Treebank that NLTK distributes."""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.examples import Examples
from tfmt.data.lines import cannot_read
from tfmt.data.order import permutation
from tfmt.errors import RequestError
from tfmt.tasks import Task

FILES = 199
# P1 names no split: the first 159 files train, the next 20 are validation, the last 20 test.
_ENDS = {"train": 159, "validation": 179, "test": FILES}
_IN_ARCHIVE = ":treebank/combined"
_TRACE = "-NONE-"
_PART = re.compile(r"[()]|[^\s()]+")
_REMEDY = "--data_dir is NLTK's treebank folder or treebank.zip (nltk.download('treebank'))"

Sentence = list[tuple[str, int]]


def read_treebank(task: Task, data_dir: str, split_seed: int | None) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Reads the bracketed trees of all 199 files and splits them by file.

    Words are taken as the trees write them (`-LRB-` is a bracket); traces are dropped.

    Args:
      task: ptb_pos.
      data_dir: the folder `treebank`, the folder `combined` in it, a folder that holds treebank or treebank.zip, or
        treebank.zip itself; empty: where the installed nltk looks for its data.
      split_seed: None for files 1-159, 160-179 and 180-199, else the seed of a random split of the same sizes.

    Returns:
      The splits "train", "validation" and "test", and notes for the record.

    Raises:
      RequestError: a missing file, brackets that do not match, or an unknown tag.
    """
    place, read = _find_trees(data_dir)
    number = {name: i for i, name in enumerate(task.classes)}
    files = []
    for i in range(1, FILES + 1):
        path = f"{place}/wsj_{i:04}.mrg"
        files.append(_read_trees(path, read(f"wsj_{i:04}.mrg"), number))
    if split_seed is None:
        order = list(range(FILES))
        rule = "by file: 1-159 train, 160-179 validation, 180-199 test"
    else:
        order = permutation(FILES, split_seed).tolist()
        rule = f"159, 20 and 20 files at random, split_seed {split_seed}"
    splits, start = {}, 0
    for split, end in _ENDS.items():
        splits[split] = _join([sentence for i in sorted(order[start:end]) for sentence in files[i]])
        if not len(splits[split]):
            raise RequestError(f"{place}: the files of the {split} split hold no sentence; {_REMEDY}")
        start = end
    return splits, {"source": "Penn Treebank sample of NLTK", "split_rule": rule}


def _find_trees(data_dir: str) -> tuple[str, Callable[[str], str]]:
    """Where the files are, and what reads one of them by name."""
    roots = [Path(data_dir).expanduser()] if data_dir else _nltk_places()
    for root in roots:
        for folder in (root / "combined", root / "treebank" / "combined", root):
            if (folder / "wsj_0001.mrg").is_file():
                return str(folder), functools.partial(_read_file, folder)
        for archive in (root, root / "treebank.zip"):
            if archive.suffix == ".zip" and archive.is_file():
                return f"{archive}{_IN_ARCHIVE}", functools.partial(_read_member, archive)
    searched = f"{roots[0]}: holds no combined/wsj_0001.mrg" if data_dir else "task=ptb_pos: no Penn Treebank found"
    raise RequestError(f"{searched}; {_REMEDY}")


def list_tree_files(data_dir: str) -> list[Path]:
    """The files that `read_treebank` reads: the trees, or the archive that holds them.

    Raises:
      RequestError: there are none.
    """
    place = Path(_find_trees(data_dir)[0].removesuffix(_IN_ARCHIVE))
    return [place / f"wsj_{number:04}.mrg" for number in range(1, FILES + 1)] if place.is_dir() else [place]


def _nltk_places() -> list[Path]:
    try:
        import nltk.data
    except ImportError:
        return []
    return [Path(place) / "corpora" for place in nltk.data.path]


def _read_file(folder: Path, name: str) -> str:
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise cannot_read(folder / name, error) from None
    return _decode(str(folder / name), content)


def _read_member(archive: Path, name: str) -> str:
    try:
        with zipfile.ZipFile(archive) as files:
            content = files.read(f"treebank/combined/{name}")
    except KeyError:
        raise RequestError(f"{archive}: lacks treebank/combined/{name}; {_REMEDY}") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise RequestError(f"{archive}: cannot be read ({error}); {_REMEDY}") from None
    return _decode(f"{archive}:{name}", content)


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{name}:{line}: byte 0x{content[error.start]:02x} is not ASCII; {_REMEDY}") from None


def _read_trees(path: str, text: str, number: Mapping[str, int]) -> list[Sentence]:
    """The sentences of a file: words and tags of each top-level tree, without traces and empty sentences."""
    sentences: list[Sentence] = []
    words: Sentence = []
    depth = 0
    before: list[str] = []  # What was read since the last bracket: a tag and a word, or a phrase's label.
    opened = False  # Whether that bracket opened.
    for line_number, line in enumerate(text.split("\n"), 1):
        for part in _PART.findall(line):
            if part not in "()":
                before.append(part)
                continue
            if part == ")" and opened and len(before) == 2:
                tag, word = before
                if tag != _TRACE:
                    if tag not in number:
                        raise RequestError(f"{path}:{line_number}: {tag!r} is not a Penn Treebank tag; {_REMEDY}")
                    words.append((word, number[tag]))
            elif len(before) > 1 or (before and not opened) or (part == ")" and opened):
                raise RequestError(f"{path}:{line_number}: {' '.join(before)!r} is not a (tag word) pair; {_REMEDY}")
            depth += 1 if part == "(" else -1
            if depth < 0:
                raise RequestError(f"{path}:{line_number}: a bracket closes that was never opened; {_REMEDY}")
            if depth == 0 and words:
                sentences.append(words)
                words = []
            opened, before = part == "(", []
    if depth or before:
        raise RequestError(f"{path}: ends inside a tree; {_REMEDY}")
    return sentences


def _join(sentences: list[Sentence]) -> Examples:
    pairs = [pair for sentence in sentences for pair in sentence]
    return Examples(
        ([word for word, _ in pairs],),
        np.array([tag for _, tag in pairs], np.int32),
        np.array([len(sentence) for sentence in sentences], np.int64),
    )
