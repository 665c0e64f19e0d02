"""Numbers with what they count, and texts for other eyes than those at this machine."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

# Folders of an absolute path, or of one from here or from home: no slash within a word, no URL, no division.
_FOLDERS = r"""(?<![\w./~:-])(?:~|\.\.?)?/(?:[^\s/,;:'"()]+/)*(?=(?:[^\s/]+/){%d}[^\s/])"""


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 epoch`, `2 epochs`, `1,512 runs`.

    Args:
      number: how many.
      noun: what, in the singular.
      plural: where it is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_bytes(size: float) -> str:
    """`0 bytes`, `1.2 kB`, `430.0 MB`, `1,512.3 TB`."""
    if size < 1000:
        return counted(int(size), "byte")
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95 or unit == "TB":
            break
    return f"{size:,.1f} {unit}"


def comma_list(entries: Iterable[Any]) -> str:
    """A comma list as a flag reads it, whose entries may hold commas and quotes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(entries)
    return text.getvalue()


def without_folders(text: str, kept: int = 1) -> str:
    """A text with each path cut down to its last parts.

    Args:
      text: a message; of a path with blanks in it all behind the first blank stays.
      kept: how many parts: with 1 `/home/me/runs/a/record.json` becomes `record.json`, with 2 `a/record.json`.
    """
    return re.sub(_FOLDERS % (kept - 1), "", text)
