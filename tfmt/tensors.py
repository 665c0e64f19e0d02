"""Arrays with a JSON object beside them, in one safetensors file."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tfmt.errors import RequestError
from tfmt.files import UnreadableError, UnwritableError, parse_json, whole_file


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> str:
    """Writes arrays and a JSON object beside them, whole or not at all, with a digest that `read_tensors` checks.

    Returns:
      sha256 of the content.

    Raises:
      UnwritableError: the disk is full, or the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    told = json.dumps(metadata)
    digest = _digest(arrays, told)
    with whole_file(path) as temporary:
        try:
            save_file(arrays, temporary, metadata={"tfmt": f"{digest} {told}"})
        except SafetensorError as error:  # It hides the errno of a full disk in its text.
            number = errno.ENOSPC if "No space left" in str(error) else errno.EIO
            raise UnwritableError.of(path, OSError(number, str(error))) from None
    return digest


def digest_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> str:
    """sha256 of names, types, shapes and bytes, and of what stands beside them: what `write_tensors` returns."""
    return _digest({name: np.asarray(array, order="C") for name, array in tensors.items()}, json.dumps(metadata))


def _digest(arrays: Mapping[str, np.ndarray], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\0{name} {array.dtype} {array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_tensors(
    path: Path, missing: str = "run it again", *, sha256: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:  # fmt: skip
    """The arrays and the JSON object that `write_tensors` wrote.

    Args:
      path: the file.
      missing: what to do where there is none, for the message.
      sha256: what `write_tensors` returned, where that is known; None checks what the file says of itself alone.

    Raises:
      RequestError: the file is missing, broken, or not tfmt's, or its content is not what was written.
      UnreadableError: it is there and cannot be read now.
    """
    try:
        path.open("rb").close()  # safetensors says "not found" of whatever it cannot open
    except FileNotFoundError:
        raise RequestError(f"{path}: missing; {missing}") from None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    try:
        with safe_open(path, framework="np") as file:
            told = (file.metadata() or {})["tfmt"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = ""
        if not told.startswith("{"):  # as files were before they had a digest
            # Under one key: safetensors writes several in no fixed order, and equal content shall be equal bytes.
            written, _, told = told.partition(" ")
            if written != _digest(arrays, told):
                raise ValueError("its content has changed since it was written")
        if sha256 is not None and written != sha256:
            raise ValueError("it is not the file that the run's record tells of")
        return arrays, parse_json(told.encode())
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RequestError(
            f"{path}: not a file that tfmt wrote, or broken ({error}); delete the run's folder and run it again"
        ) from None


def reason_of(path: Path, error: ValueError) -> str:
    """What an error of `read_tensors` says beside the file's name and its remedy, where the remedy is another."""
    return str(error).splitlines()[0].removeprefix(f"{path}: ").partition(";")[0]
