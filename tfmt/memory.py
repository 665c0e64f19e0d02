"""How a command's process keeps its memory."""

from __future__ import annotations

import ctypes
import functools
import sys


@functools.cache
def keep_memory() -> None:
    """Has the C library keep freed memory for the next step, in one pool, instead of giving it back at once.

    glibc takes every large tensor from the system anew, whose pages are then cleared and mapped one by one: 63,000 of
    them in a step of 16 x 128 tokens, a tenth of its time. This is for processes that do nothing else: a command calls
    it, no library function does.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    trim_threshold, top_pad, mmap_threshold, arena_max = -1, -2, -3, -8
    mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)  # older versions take 32 MiB at most
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(top_pad, 64 << 20)
    mallopt(arena_max, 1)
