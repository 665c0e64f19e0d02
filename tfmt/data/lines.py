"""Reading text files line by line, so that whatever is wrong is reported with its file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tfmt.errors import RequestError


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1; LF or CRLF, with or without a byte-order mark.

    Only a line feed ends a line: other characters that Python counts as line breaks stay part of the text.

    Args:
      path: the file.
      encoding: how its characters are written; any encoding that leaves ASCII as it is.

    Raises:
      RequestError: the file cannot be read, or has bytes that are not in this encoding,
        a NUL, or the line ends of old Macs.
    """
    check_encoding(encoding)
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode(encoding)
                except UnicodeDecodeError as error:
                    raise RequestError(
                        f"{path}:{number}: byte 0x{raw[error.start]:02x} is not {encoding}; "
                        f"convert the file to UTF-8{_encoding_hint(encoding)}"
                    ) from None
                if number == 1:
                    line = line.removeprefix("\ufeff")
                    _check_line_ends(path, line)
                if "\0" in line:
                    raise RequestError(
                        f"{path}:{number}: holds a NUL, which no text does; is the file damaged, or written in UTF-16?"
                    )
                yield number, line.removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise cannot_read(path, error) from None


def _check_line_ends(path: Path, first: str) -> None:
    """Refuses files of old Macs, which would be one long line."""
    if "\r" in first.removesuffix("\n").removesuffix("\r"):
        raise RequestError(f"{path}:1: lines end with a carriage return alone; convert them to line feeds")


def check_encoding(encoding: str) -> None:
    """Raises RequestError for an encoding that Python doesn't know or that doesn't contain ASCII as it is."""
    try:
        plain = "\r\n\t".encode(encoding) == b"\r\n\t"
    except (LookupError, ValueError):  # the second of a name that is none, with a NUL
        raise RequestError(f"encoding must be one that Python knows, such as latin-1. Received: {encoding=}") from None
    if not plain:
        raise RequestError(f"encoding {encoding} cannot be read line by line; convert the files to UTF-8")


def cannot_read(path: Path, error: OSError) -> RequestError:
    """The error for a file that is missing or cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return RequestError(f"{path}: there is no such file; check --data_dir")
    return RequestError(f"{path}: cannot be read ({error.strerror}); check --data_dir")


def _encoding_hint(encoding: str) -> str:
    return " or name its encoding with --encoding where the task takes one" if encoding == "utf-8" else ""
