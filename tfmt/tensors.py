"""Arrays with a JSON object beside them, in one safetensors file."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tfmt.errors import RequestError
from tfmt.files import UnwritableError, whole_file


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Writes arrays and a JSON object beside them, whole or not at all.

    Raises:
      UnwritableError: the disk is full, or the file cannot be written.
    """
    with whole_file(path) as temporary:
        try:
            save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, temporary,
                      metadata={"tfmt": json.dumps(metadata)})  # fmt: skip
        except SafetensorError as error:  # It hides the errno of a full disk in its text.
            number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
            raise UnwritableError.of(path, OSError(number, str(error))) from None


def read_tensors(path: Path, remedy: str = "run it again") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the JSON object that `write_tensors` wrote.

    Args:
      path: the file.
      remedy: what to do where it is missing, for the message.

    Raises:
      RequestError: the file is missing, broken, or not tfmt's.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = json.loads((file.metadata() or {})["tfmt"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise RequestError(f"{path}: missing; {remedy}") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RequestError(
            f"{path}: not a file that tfmt wrote, or broken ({error}); delete the run's folder and run it again"
        ) from None
