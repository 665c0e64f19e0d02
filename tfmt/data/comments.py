"""Which lines of a CoNLL file are words and which are comments, where both may begin with `#`.

Corpora put lines with an identifier, a domain, an address or a date before a sentence; corpora of tweets are full of
words that begin with `#`. A comment stands before the first word of a sentence, and its fields are not those of a word:
the columns after the word hold few values (tags), which the rest of the file shows. So a file is read once for what
its words look like, before it is read for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tfmt.data.lines import read_lines
from tfmt.errors import RequestError
from tfmt.words import counted

# A column with more values than this does not hold tags.
_MOST_TAGS = 1000
_REMEDY = "remove this line if it is a comment; if it is a word, give the data as JSON Lines, which has no comments"


def split_lines(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each line, parted by blanks or tabs, with its number; none where a sentence ends.

    A blank line ends a sentence, and so does one that begins with -DOCSTART-.
    """
    for number, line in read_lines(path, encoding):
        fields = re.split("[ \t]+", line.strip(" \t"))
        yield number, [] if fields == [""] or fields[0].startswith("-DOCSTART-") else fields


class WordLines:
    """What the lines of words in a CoNLL file look like, learnt from the lines that can be nothing else.

    Args:
      path: the file.
      encoding: how its characters are written.
      columns: how many columns a word has; 0: as many as most words.

    Attributes:
      columns: how many columns a word has.

    Raises:
      RequestError: the file cannot be read.
    """

    def __init__(self, path: Path, encoding: str, columns: int = 0):
        self._path = path
        sure, doubtful = Counter[int](), Counter[int]()
        values: dict[int, list[set[str]]] = {}
        begun = False
        for _, fields in split_lines(path, encoding):
            begun = bool(fields) and (begun or not fields[0].startswith("#"))
            if not begun:
                doubtful[len(fields)] += bool(fields)
                continue
            sure[len(fields)] += 1
            for column, value in zip(
                values.setdefault(len(fields), [set() for _ in fields[1:]]), fields[1:], strict=True
            ):
                if len(column) <= _MOST_TAGS:
                    column.add(value)
        counted = sure or doubtful
        self.columns = columns or max(counted, key=lambda width: counted[width], default=0)
        tags = values.get(self.columns, [])
        # By their place among a word's fields; columns of too many values say nothing.
        self._tags = {place: column for place, column in enumerate(tags, 1) if len(column) <= _MOST_TAGS}
        self._shapes = {place: {_shape(value) for value in column} for place, column in self._tags.items()}

    def is_comment(self, number: int, fields: Sequence[str]) -> bool:
        """Whether a line that begins with `#` before the first word of a sentence is a comment.

        Args:
          number: the line's number.
          fields: its fields.

        Raises:
          RequestError: it may be either.
        """
        apart = fields[0] == "#"  # as in `# id = 12`; `#word` is one field
        if len(fields) != self.columns:
            known = [any(value in column for column in self._tags.values()) for value in fields[1:]]
            if self.columns > 1 and known and not (all(known) if apart else any(known)):
                return True
            if self.columns == 1 and apart:
                return True
            raise self._doubt(
                number, fields, f"it has {counted(len(fields), 'column')} where words have {self.columns}"
            )
        if self.columns == 1 or self._matches(fields, exactly=True):
            return False
        # A tag that no other word has may still be made as tags are.
        like_a_word = not self._tags or self._matches(fields, exactly=False)
        if apart == like_a_word:
            raise self._doubt(number, fields, "no other line has its tags")
        return apart

    def _matches(self, fields: Sequence[str], exactly: bool) -> bool:
        """Whether half of a line's tags or more are tags of other words, or are made as those are."""
        found = [
            fields[place] in column
            or fields[place] == "#"  # what many tag sets call the word itself
            or (not exactly and _shape(fields[place]) in self._shapes[place])
            for place, column in self._tags.items()
        ]
        return bool(found) and 2 * sum(found) >= len(found)

    def _doubt(self, number: int, fields: Iterable[str], reason: str) -> RequestError:
        text = " ".join(fields)
        text = text if len(text) <= 40 else text[:37] + "..."
        return RequestError(f"{self._path}:{number}: {text!r} may be a comment or a word: {reason}; {_REMEDY}")


def _shape(value: str) -> str:
    """The kind of a text: `B-PER` is `A-A`, `2014-01-02` is `0-0-0`."""
    return re.sub(r"[a-z]+", "a", re.sub(r"[A-Z]+", "A", re.sub(r"[0-9]+", "0", value)))
