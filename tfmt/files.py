"""Writing files so that a reader sees all of one or none of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfmt.errors import RunError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to; the file gets its own name once its content is on the disk.

    Args:
      path: where the file shall lie; what lies there stays until the new content is whole.

    Raises:
      RunError: the disk is full, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        reason = "the disk is full; free some space" if error.errno == errno.ENOSPC else f"cannot be written ({error.strerror})"
        raise RunError(f"{path}: {reason} and run the same command again") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
