"""Signs of life: long work says that it goes on, to whoever watches this process from outside.

The loops over batches and texts give one each time round (`sign`). They go to whoever `watched` names, which in a
worker is its sweep; elsewhere nobody listens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGN_SECONDS = 5.0  # between two signs that are passed on


class _Watch:
    listener: Callable[[], None] | None = None
    given = 0.0


def sign() -> None:
    """Says that this process gets on with its work; cheap enough for every batch."""
    if _Watch.listener is not None and time.monotonic() - _Watch.given >= SIGN_SECONDS:
        _Watch.given = time.monotonic()
        _Watch.listener()


@contextmanager
def watched(listener: Callable[[], None]) -> Iterator[None]:
    """Inside, `listener` is called when work goes on, now and then."""
    before, _Watch.listener, _Watch.given = _Watch.listener, listener, 0.0
    try:
        yield
    finally:
        _Watch.listener = before
