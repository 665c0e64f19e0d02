"""Arrays that cost time to make, kept on disk under a key of everything that they depend on."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.errors import RunError
from tfmt.files import cache_folder, whole_file


def load_arrays(key: str) -> dict[str, np.ndarray] | None:
    """The arrays stored under a key; None where there are none, or the file is damaged (its checksums tell)."""
    try:
        with np.load(_path(key), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def store_arrays(key: str, arrays: dict[str, Any]) -> None:
    """Stores arrays under a key, all or nothing; does nothing where the folder cannot be written.

    Processes that store the same key write the same content, each whole; the last one stays.
    """
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(_path(key)) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except (OSError, RunError):
        return


def _path(key: str) -> Path:
    return cache_folder() / f"{key}.npz"
