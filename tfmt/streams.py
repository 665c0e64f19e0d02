"""Standard output and standard error that may be lost: a pipe whose reader ends, a terminal that is closed."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SLOW_SECONDS = 1.0  # after which a command that has said nothing yet says what it does
_UNREAD = {errno.EPIPE, errno.EIO, errno.EBADF}  # nobody is there to miss anything


class Tolerant:
    """A stream that drops what cannot be written, so that nothing that is only said can end what is being done.

    Args:
      stream: the stream; None, as Python has it where the file was closed from the start, takes nothing.

    Attributes:
      trouble: why something was dropped that its reader will miss, as on a full disk; None where all was well or
        nobody reads.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.trouble: OSError | None = None

    def write(self, text: str) -> int:
        """Writes, or drops what cannot be written."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written, or drops it."""
        self._try(lambda: self._stream.flush())

    def isatty(self) -> bool:
        """Whether a terminal is there now."""
        try:
            return bool(self._stream.isatty())
        except (AttributeError, OSError, ValueError):
            return False

    def settle(self) -> None:
        """Hands on what was written; what a lost stream still holds goes nowhere, lest Python complain at its end."""
        self.flush()
        try:
            self._stream.flush()
        except OSError:
            with suppress(AttributeError, OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
        except (AttributeError, ValueError):  # none, or closed
            return

    def _try(self, act: Callable[[], Any]) -> None:
        if self._stream is None or getattr(self._stream, "closed", False):
            return
        try:
            act()
        except OSError as error:
            if error.errno not in _UNREAD:
                self.trouble = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerated() -> Iterator[None]:
    """Inside, `sys.stdout` and `sys.stderr` drop what cannot be written, and so do print, tqdm and warnings."""
    before = sys.stdout, sys.stderr
    for name, stream in zip(("stdout", "stderr"), before, strict=True):
        if not isinstance(stream, Tolerant):
            setattr(sys, name, Tolerant(stream))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def settle() -> OSError | None:
    """Hands on what was said; why something that a reader will miss could not be, if so. For inside of `tolerated`."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Tolerant)]
    for stream in streams:
        stream.settle()
    return next((stream.trouble for stream in streams if stream.trouble), None)


def open_standard_files() -> None:
    """Opens what the caller has closed of the files 0 to 2, so that no file of data gets their numbers."""
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)


@contextmanager
def told_if_slow(line: str) -> Iterator[Callable[[], None]]:
    """Says on stderr what is being done once it has taken `SLOW_SECONDS`.

    Yields:
      What says it before, where the slow part is about to begin; it is said once.
    """
    lock, left = threading.Lock(), [line]

    def tell() -> None:
        with lock:
            while left:
                print(left.pop(), file=sys.stderr, flush=True)

    timer = threading.Timer(SLOW_SECONDS, tell)
    timer.daemon = True
    timer.start()
    try:
        yield tell
    finally:
        timer.cancel()
