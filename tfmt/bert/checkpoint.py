"""The tensors in a model folder, whichever files hold them, read without TensorFlow and without pickle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - it makes bfloat16 known to NumPy, and so to safetensors
import numpy as np
from safetensors import SafetensorError, safe_open

from tfmt.bert.digests import file_digest
from tfmt.errors import RequestError
from tfmt.files import parse_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
KERAS_FILE = "tf_model.h5"
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file holds it.

    Attributes:
      name: its name in the file.
      shape: its shape in the file.
      kind: the file's word for its type; `is_float` says whether a weight can have it.
      read: gives its values.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    read: Callable[[], np.ndarray]

    @property
    def is_float(self) -> bool:
        """Whether these are plain numbers, neither integers nor a quantised code."""
        return self.kind in _FLOATS or self.kind.startswith("float")


def find_weights(folder: Path) -> Path:
    """The file that says where a folder's weights are: safetensors, the index of their shards, or Keras's HDF5.

    Raises:
      RequestError: there is none of them; it says what to do with what lies there.
    """
    for name in (WEIGHTS_FILE, INDEX_FILE, KERAS_FILE):
        if (folder / name).is_file():
            return folder / name
    path = folder / WEIGHTS_FILE
    pickled = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).exists()]
    if pickled:
        raise RequestError(
            f"{path}: missing; tfmt reads no {pickled[0]} (a pickle can run code). Where PyTorch is installed, "
            f'transformers.AutoModel.from_pretrained("{folder}").save_pretrained("{folder}") writes safetensors'
        )
    if (folder / f"{KERAS_FILE}.index.json").exists():
        raise RequestError(
            f"{path}: missing; tfmt reads no {KERAS_FILE} in parts. Where TensorFlow is installed, transformers."
            f'TFAutoModel.from_pretrained("{folder}").save_pretrained("{folder}", safe_serialization=True) joins them'
        )
    raise RequestError(f"{path}: missing; a model folder needs config.json, {WEIGHTS_FILE} and vocab.txt")


def digest_weights(folder: Path) -> str | dict[str, Any]:
    """The sha256 of a folder's weights: of its one file, or of each shard beside the index that says what is where."""
    source = find_weights(folder)
    if source.name != INDEX_FILE:
        return file_digest(source)
    places = _read_index(source)
    return {"index": places, "shards": {name: file_digest(folder / name) for name in sorted(set(places.values()))}}


def list_weights_files(folder: Path) -> list[str]:
    """The names of the files that hold a folder's weights, and of the index where there is one.

    Raises:
      RequestError: as `open_tensors`.
    """
    source = find_weights(folder)
    return [source.name, *(sorted(set(_read_index(source).values())) if source.name == INDEX_FILE else [])]


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """{name: tensor} of all that a folder's weights hold; values are read when asked for.

    Raises:
      RequestError: a file is missing or broken, or the index leads elsewhere.
    """
    source = find_weights(folder)
    if source.name == KERAS_FILE:
        return {tensor.name: tensor for tensor in _read_keras(source)}
    if source.name == WEIGHTS_FILE:
        return {tensor.name: tensor for tensor in _read_safetensors(source)}
    places = _read_index(source)
    shards = {
        name: {tensor.name: tensor for tensor in _read_safetensors(folder / name)} for name in set(places.values())
    }
    for name, shard in places.items():
        if name not in shards[shard]:
            raise RequestError(f"{source}: names {name} in {shard}, which does not hold it; fetch the model again")
    return {name: shards[shard][name] for name, shard in places.items()}


def _read_index(path: Path) -> dict[str, str]:
    """{tensor: file beside the index}."""
    try:
        places = parse_json(path.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise RequestError(f"{path}: not a readable index of shards ({error}); fetch the model again") from None
    if not isinstance(places, dict) or not places:
        raise RequestError(f"{path}: its weight_map names no tensor; fetch the model again")
    for shard in places.values():
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or not shard.endswith(
            ".safetensors"
        ):  # fmt: skip
            raise RequestError(f"{path}: a shard must be a safetensors file beside it. Received: {shard!r}")
    missing = sorted({shard for shard in places.values() if not (path.parent / shard).is_file()})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"{path.parent / missing[0]}{more}: missing; {path.name} names it, fetch the whole model")
    return places


def _read_safetensors(path: Path) -> Iterator[StoredTensor]:
    try:
        file = safe_open(path, framework="np")
        for name in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(name)
            yield StoredTensor(
                name, tuple(part.get_shape()), part.get_dtype(), functools.partial(file.get_tensor, name)
            )
    except (SafetensorError, OSError) as error:
        raise RequestError(f"{path}: not a readable safetensors file: {error}") from None


def _read_keras(path: Path) -> Iterator[StoredTensor]:
    """The variables in a file that Keras's `save_weights` wrote, each under its whole path in the file."""
    import h5py

    try:
        file = h5py.File(path, "r")
        found: dict[str, Any] = {}
        # It follows no link out of the file.
        file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        for name, dataset in found.items():
            if dataset.external or dataset.is_virtual:
                raise RequestError(f"{path}: {name} lies in another file; tfmt reads this one alone")
            yield StoredTensor(name, dataset.shape, dataset.dtype.name, functools.partial(dataset.__getitem__, ()))
    except OSError as error:
        raise RequestError(f"{path}: not a readable HDF5 file: {error}") from None
