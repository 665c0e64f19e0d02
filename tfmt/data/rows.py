"""Rows of tables in TSV, CSV, JSON Lines and CoNLL files, one at a time, with their line numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tfmt.data.comments import WordLines, split_lines
from tfmt.data.lines import read_lines
from tfmt.errors import RequestError
from tfmt.words import counted

FORMATS = {
    ".tsv": "TSV",
    ".csv": "CSV",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
    ".conll": "CoNLL",
    ".conllu": "CoNLL-U",
    ".txt": "CoNLL",
}
# The columns of CoNLL-U have names; those of other CoNLL files are known by their place, from 0.
_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


class Row(NamedTuple):
    """One row of a table; for CoNLL files one sentence.

    Attributes:
      line: the number of its first line, from 1.
      fields: the values by column: texts, JSON values, or for CoNLL files one list of texts a column.
      word_lines: the line of each word of a CoNLL sentence; None for other formats.
    """

    line: int
    fields: dict[str, Any]
    word_lines: list[int] | None = None


def read_rows(path: Path, encoding: str = "utf-8") -> Iterator[Row]:
    """Reads a table row by row, in memory that does not grow with the file. Blank lines are skipped.

    Args:
      path: `.tsv` (a header, no quoting), `.csv` (a header, quoting of RFC 4180), `.jsonl` or `.ndjson` (an object a
        line), `.conll`, `.txt` or `.conllu` (a word a line, blank lines between sentences).
      encoding: how characters are written.

    Raises:
      RequestError: an ending of another kind, a file that cannot be read, a row that is not of its format.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    if kind in ("CoNLL", "CoNLL-U"):
        return read_sentences(path, encoding)
    return {"TSV": _read_tsv, "CSV": _read_csv, "JSON Lines": _read_json_lines}[kind](path, encoding)


def read_sentences(path: Path, encoding: str = "utf-8", columns: int = 0) -> Iterator[Row]:
    """The sentences of a CoNLL file: columns split by blanks or tabs, blank lines between sentences.

    Lines that begin with -DOCSTART- end a sentence and are skipped, and so are comments (see `tfmt.data.comments`),
    for which the file is read twice. In CoNLL-U comments, ranges of a word's parts (`1-2`) and empty nodes (`1.1`) are
    skipped.

    Args:
      path: the file.
      encoding: how characters are written.
      columns: how many columns each line must have; 0: as many as most have.

    Raises:
      RequestError: a line with another number of columns or that may be a word or a comment, or a file that cannot be
        read.
    """
    conllu = path.suffix.lower() == ".conllu"
    words: list[list[str]] = []
    numbers: list[int] = []
    for number, fields in _conllu_lines(path, encoding) if conllu else _conll_lines(path, encoding, columns):
        if fields:
            words.append(fields)
            numbers.append(number)
        elif words:
            yield _sentence(words, numbers, conllu)
            words, numbers = [], []
    if words:
        yield _sentence(words, numbers, conllu)


def _conll_lines(path: Path, encoding: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """The line number and fields of each word; no fields where a sentence ends."""
    layout = WordLines(path, encoding, columns)
    begun = False
    for number, fields in split_lines(path, encoding):
        if not begun and fields and fields[0].startswith("#") and layout.is_comment(number, fields):
            continue
        begun = bool(fields)
        yield number, _checked(path, number, fields, layout.columns) if fields else []


def _conllu_lines(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The line number and fields of each word; no fields where a sentence ends."""
    for number, line in read_lines(path, encoding):
        fields = line.split("\t")
        if not line.strip(" \t"):
            yield number, []
        elif not line.startswith("#") and fields[0].isdecimal():
            yield number, _checked(path, number, fields, len(_CONLLU))


def _sentence(words: list[list[str]], numbers: list[int], conllu: bool) -> Row:
    columns = zip(*words, strict=True)
    names = _CONLLU if conllu else [str(place) for place in range(len(words[0]))]
    return Row(numbers[0], {name: list(column) for name, column in zip(names, columns, strict=True)}, numbers)


def _checked(path: Path, number: int, fields: list[str], columns: int) -> list[str]:
    if len(fields) != columns:
        raise RequestError(
            f"{path}:{number}: {counted(len(fields), 'column')} where {columns} are expected; repair this line"
        )
    return fields


def _read_tsv(path: Path, encoding: str) -> Iterator[Row]:
    header: list[str] = []
    for number, line in read_lines(path, encoding):
        if not line:
            continue
        fields = line.split("\t")
        if header:
            yield Row(number, _named(path, number, header, fields, "tabs"))
        else:
            header = _checked_header(path, number, fields)


def _read_csv(path: Path, encoding: str) -> Iterator[Row]:
    header: list[str] = []
    reader = csv.reader((line + "\n" for _, line in read_lines(path, encoding)), strict=True)
    number = 1
    try:
        for fields in reader:
            if header and fields:
                yield Row(number, _named(path, number, header, fields, "commas"))
            elif fields:
                header = _checked_header(path, number, fields)
            number = reader.line_num + 1  # A quoted field may span lines; a row is known by its first.
    except csv.Error as error:
        if "field larger than" in str(error):
            raise RequestError(
                f"{path}:{number}: a field of over {csv.field_size_limit():,} characters begins near here; is a quote "
                "left open? JSON Lines takes texts of any length"
            ) from None
        raise RequestError(f"{path}:{number}: not a row of CSV ({error}); repair the quotes of this row") from None


def _read_json_lines(path: Path, encoding: str) -> Iterator[Row]:
    for number, line in read_lines(path, encoding):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, object_pairs_hook=_without_repeats)
        except _RepeatedKeyError as error:
            raise RequestError(f"{path}:{number}: the key {error} is there twice; rename or remove one") from None
        except RecursionError:
            raise RequestError(f"{path}:{number}: nested too deeply; write one flat object a line") from None
        except ValueError as error:
            raise RequestError(f"{path}:{number}: not JSON ({error}); write one object a line") from None
        if not isinstance(fields, dict):
            raise RequestError(f"{path}:{number}: not a JSON object; write one object a line")
        yield Row(number, fields)


class _RepeatedKeyError(Exception):
    """A JSON object with a key twice, of which Python would take the last."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise _RepeatedKeyError(repr(next(name for name in names if names.count(name) > 1)))
    return dict(pairs)


def _checked_header(path: Path, number: int, names: list[str]) -> list[str]:
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise RequestError(f"{path}:{number}: the header has the column {min(repeated)!r} twice; rename one")
    return names


def _named(path: Path, number: int, header: list[str], fields: list[str], separators: str) -> dict[str, Any]:
    if len(fields) != len(header):
        raise RequestError(
            f"{path}:{number}: {counted(len(fields), 'field')} where the header has {len(header)}; "
            f"fields are separated by {separators}; repair this line"
        )
    return dict(zip(header, fields, strict=True))
