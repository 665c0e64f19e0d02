"""Where a run computes: GPUs, one CPU, or logical CPU devices, always under MirroredStrategy."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmt.errors import RequestError


def set_threads(threads: int) -> None:
    """Sets how many threads one operation may use; 0 leaves TensorFlow's choice, every core of this process.

    Results differ in their last bits between numbers of threads, so a record states it.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)


def threads_in_use() -> int:
    """Threads that one operation may use."""
    return tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))


@functools.cache
def keep_memory() -> None:
    """Has the C library keep freed memory for the next step, in one pool, instead of giving it back at once.

    glibc takes every large tensor from the system anew, whose pages are then cleared and mapped one by one: 63,000 of
    them in a step of 16 x 128 tokens, a tenth of its time.
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


@functools.cache
def drop_library_pages() -> None:
    """Gives back the pages of loaded libraries that only their start-up read.

    TensorFlow registers its operations from all over its libraries, and Linux maps the surroundings of what is read:
    390 MB of the 650 that a process holds after the imports. What is needed later is mapped again, from the system's
    cache of the file.
    """
    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:  # only Linux tells
        return
    madvise, dont_need = ctypes.CDLL(None).madvise, 4
    for start, end in unchanged_spans(smaps):
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), dont_need)


def unchanged_spans(smaps: str) -> list[tuple[int, int]]:
    """First address and end of every part of a library in memory that holds nothing but what its file does.

    The loader writes addresses into some parts before it makes them read-only; dropping such a page, be it in memory
    or in the swap, would end the process.

    Args:
      smaps: the text of Linux's /proc/self/smaps.
    """
    spans = []
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", smaps, flags=re.MULTILINE):
        library = re.match(r"([0-9a-f]+)-([0-9a-f]+) r-[x-]p .*\.so(\.\d+)*\n", entry)
        own = re.findall(r"^(?:Anonymous|Swap): +(\d+) kB$", entry, re.MULTILINE)
        if library and own == ["0", "0"]:
            spans.append((int(library[1], 16), int(library[2], 16)))
    return spans


def make_strategy(replicas: int) -> Any:
    """A MirroredStrategy over every GPU (memory growth on), else over CPU devices.

    Args:
      replicas: 0 for every GPU or else one CPU; k for k GPUs, or k logical CPU devices where there is no GPU.

    Raises:
      RequestError: fewer GPUs than asked for, or TensorFlow already runs with another number of CPU devices.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        count = replicas or len(gpus)
        if count > len(gpus):
            raise RequestError(f"--replicas={replicas}: this machine has {len(gpus)} GPU(s)")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        return _mirrored(tuple(f"/gpu:{index}" for index in range(count)))
    keep_memory()
    drop_library_pages()
    count = replicas or 1
    cpu = tf.config.list_physical_devices("CPU")[0]
    have = tf.config.get_logical_device_configuration(cpu)
    if count > (len(have) if have else 1):
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
        except RuntimeError:
            raise RequestError(
                f"--replicas={replicas}: TensorFlow already runs with fewer CPU devices; start a new process"
            ) from None
    return _mirrored(tuple(f"/cpu:{index}" for index in range(count)))


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> Any:
    """One strategy for one set of devices.

    On CPUs sums go through one device: TensorFlow's collectives take strategies of one process over the same CPU
    devices, or over one and two of them, for each other and fail.
    """
    on_cpu = devices[0].startswith("/cpu")
    return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice() if on_cpu else None)


def device_names(strategy: Any) -> list[str]:
    """The devices of a strategy by kind, a GPU with its model's name."""
    names = []
    for device in strategy.extended.worker_devices:
        kind, number = device.split("device:")[-1].split(":")
        if kind == "GPU":
            physical = tf.config.list_physical_devices("GPU")[int(number)]
            details = tf.config.experimental.get_device_details(physical)
            names.append(f"GPU:{number} {details.get('device_name', '')}".strip())
        else:
            names.append(f"{kind}:{number}")
    return names
