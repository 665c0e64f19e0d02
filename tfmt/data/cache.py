"""Arrays that cost time to make, kept on disk under a key of everything that they depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfmt.errors import RequestError, RunError
from tfmt.files import cache_folder
from tfmt.tensors import read_tensors, write_tensors


def load_arrays(key: str) -> dict[str, np.ndarray] | None:
    """The arrays stored under a key; None where there are none, or the file is damaged (its digest tells)."""
    try:
        return read_tensors(_path(key))[0]
    except (RequestError, RunError):
        return None


def store_arrays(key: str, arrays: dict[str, np.ndarray]) -> None:
    """Stores arrays under a key, all or nothing; does nothing where the folder cannot be written.

    Processes that store the same key write the same content, each whole; the last one stays.
    """
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_tensors(_path(key), arrays, {})
    except (OSError, RunError):
        return


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.safetensors"
