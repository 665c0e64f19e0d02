"""What runs left in their folders for a later selection: Fisher information and masks. No TensorFlow here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from tfmt.bert.vocabulary import Weight
from tfmt.errors import RequestError
from tfmt.tensors import read_tensors

FISHER_FILE = "fisher.safetensors"
TUNED_FILE = "tuned.safetensors"


class FisherNotes(BaseModel):
    """The Fisher information that a `fisher` run chose its mask by.

    `examples` it was estimated on, with a head trained as told. `totals` is its sum over the weights of each component
    in each block (`-` outside the blocks), {component: {block: sum}}, of which one has `weights` weights.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    examples: int
    head_epochs: int
    head_learning_rate: float
    head_train_loss: float
    totals: dict[str, dict[str, float]] = {}
    weights: dict[str, int] = {}


def read_fisher(folder: str | Path, weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """The Fisher information that a run stored: {path: float64 array of the variable's shape}.

    Args:
      folder: the run's folder.
      weights: the table of the model that it is read for.

    Raises:
      RequestError: there is none, the file is broken, or it is of a model of other sizes.
    """
    tensors, _ = read_tensors(Path(folder) / FISHER_FILE, "only a run with --mode=fisher and --mask_fraction leaves it")
    found = {weight.path: tensors[weight.torch_name] for weight in weights if weight.torch_name in tensors}
    for weight in weights:
        if weight.path in found and found[weight.path].shape != weight.shape:
            raise RequestError(f"{folder}: its Fisher information is of a model of other sizes; give a run on this one")
    return found


def unite_masks(
    folders: Sequence[str | Path], candidates: Sequence[Weight], model_sha256: str | None
) -> dict[str, np.ndarray]:
    """The weights that are in the mask of at least one of these runs.

    Args:
      folders: the runs' folders.
      candidates: the variables that a mask may lie in.
      model_sha256: digest of the base model that the runs must share; None leaves that unchecked.

    Returns:
      {path: int64 indices into the flattened variable, rising}, in the order of `candidates`.

    Raises:
      RequestError: a folder holds no masks, or masks of another model or of weights outside the candidates.
    """
    union: dict[str, np.ndarray] = {}
    for folder in folders:
        for path, indices in _read_masks(Path(folder), candidates, model_sha256).items():
            union[path] = np.union1d(union.get(path, np.zeros(0, np.int64)), indices).astype(np.int64)
    return {weight.path: union[weight.path] for weight in candidates if weight.path in union}


def digest_masks(masks: Mapping[str, np.ndarray]) -> str:
    """sha256 of which weights these masks select."""
    digest = hashlib.sha256()
    for path, indices in sorted(masks.items()):
        digest.update(f"{path} {len(indices)}\n".encode())
        digest.update(np.ascontiguousarray(indices, "<i8").tobytes())
    return digest.hexdigest()


def _read_masks(folder: Path, candidates: Sequence[Weight], model_sha256: str | None) -> dict[str, np.ndarray]:
    # A fisher run's own file holds its masks whatever --keep says; other masked runs have them beside their weights.
    path = folder / FISHER_FILE
    if not path.exists() and (folder / TUNED_FILE).exists():
        path = folder / TUNED_FILE
    tensors, about = read_tensors(path, "give the folder of a run with --mode=fisher that has chosen its mask")
    if model_sha256 is not None and about.get("model_sha256") != model_sha256:
        raise RequestError(f"--fisher_from: {folder} tuned another base model; give runs on the model of this one")
    names = {f"{weight.torch_name}.indices": weight for weight in candidates}
    masks = {}
    for name in sorted(tensors):
        if not name.endswith(".indices"):
            continue
        if name not in names:
            raise RequestError(
                f"--fisher_from: {folder} masks {name.removesuffix('.indices')}, which is outside the feed-forward "
                "LayerNorms of --layers; give fisher runs over the same layers"
            )
        weight, indices = names[name], tensors[name]
        inside = not len(indices) or 0 <= indices.min() <= indices.max() < weight.size
        if indices.ndim != 1 or indices.dtype != np.int64 or not inside:
            raise RequestError(f"--fisher_from: {path}: {name} does not fit this model; run it again")
        masks[weight.path] = indices
    if not masks:
        raise RequestError(f"--fisher_from: {folder} holds no masks of single weights; give runs with --mode=fisher")
    return masks
