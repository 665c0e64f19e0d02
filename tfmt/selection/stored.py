"""What runs left in their folders for a later selection: Fisher information and masks. No TensorFlow here."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from tfmt.bert.torch_names import from_torch_indices, to_torch_indices
from tfmt.bert.vocabulary import Weight
from tfmt.errors import RequestError
from tfmt.files import check_path, here
from tfmt.tensors import read_tensors, reason_of, write_tensors

if TYPE_CHECKING:
    from tfmt.selection.selection import Selection

FISHER_FILE = "fisher.safetensors"
SELECTION_FILE = "selection.safetensors"
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


class SelectionCost(BaseModel):
    """What the scores of a selection cost: none of it is training.

    `examples` they were measured on, `backward_passes` through the model (of one example each, or of a batch), and
    `seconds`, those of a head's training included; a run that finds them measured has the seconds of reading alone.
    `full_run` is the run of the full fine-tuning that `change` compares with.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    examples: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    full_run: str | None = None


class SelectionFacts(BaseModel):
    """What a run selected: the expression that its mode or `select` is, and its normal form.

    `movable` counts the selected weights that the training data can move at all: rows of words that it never shows
    get no gradient.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = ""
    expression: str
    normal_form: str
    movable: int | None = None
    cost: SelectionCost = SelectionCost()


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


def write_selection(
    path: Path, weights: Sequence[Weight], masks: Mapping[str, np.ndarray], whole: Collection[str],
    about: Mapping[str, Any],
) -> str:  # fmt: skip
    """Writes which weights are selected, the classifier left out; `Selection.save` says how.

    Args:
      path: the file.
      weights: the model's table.
      masks: {path: rising indices} of the variables of which single weights are selected.
      whole: paths of the others.
      about: what else the metadata tell.

    Returns:
      sha256 of the content.
    """
    encoder = [weight for weight in weights if weight.sublayer != "classifier"]
    indices = {f"{w.torch_name}.indices": to_torch_indices(masks[w.path], w) for w in encoder if w.path in masks}
    names = [weight.torch_name for weight in encoder if weight.path in whole]
    return write_tensors(path, indices, {"whole": names, **about})


def store_selection(folder: Path, selection: Selection, cost: SelectionCost, model_sha256: str) -> None:
    """Writes what a run selects, and what that cost, into its folder, whatever else it keeps."""
    about = {"run_id": folder.name, "model_sha256": model_sha256, "cost": cost.model_dump(),
             "warnings": list(selection.warnings)}  # fmt: skip
    whole = [
        weight.path for weight in selection.weights if selection.count(weight) and weight.path not in selection.masks
    ]
    write_selection(folder / SELECTION_FILE, selection.weights, selection.masks, whole, about)


def read_selection(
    folder: Path, weights: Sequence[Weight], model_sha256: str
) -> tuple[dict[str, np.ndarray | None], SelectionCost, list[str]]:
    """What a run chose when it began: {path: indices, None for all}, what it cost, and its warnings.

    Raises:
      RequestError: there is no such file, it is damaged, or another run's.
    """
    path = folder / SELECTION_FILE
    tensors, about = read_tensors(path)
    if about.get("run_id") != folder.name or about.get("model_sha256") != model_sha256:
        raise RequestError(f"{path}: it is another run's; run it again")
    parts = _to_parts(path, tensors, about, weights)
    try:
        return parts, SelectionCost.model_validate(about["cost"]), [str(each) for each in about["warnings"]]
    except (KeyError, TypeError, ValueError):
        raise RequestError(f"{path}: it does not tell what choosing cost; run it again") from None


def read_given(
    kind: str, text: str, weights: Sequence[Weight], model_sha256: str | None
) -> dict[str, np.ndarray | None]:
    """What `run("...")` or `mask("...")` in an expression selects.

    Args:
      kind: `run` or `mask`.
      text: a run's folder, or a file that `Selection.save` wrote.
      weights: the table of the model that it is read for.
      model_sha256: digest of the base model that a run must share; None leaves that unchecked.

    Returns:
      {path: rising int64 indices into the flattened variable, None for all of it}

    Raises:
      RequestError: there is no selection, or it does not fit the model.
    """
    place = check_path(here(text), kind).expanduser()
    if kind == "run" and not place.is_dir():
        raise RequestError(f"{place}: no folder of a run; run(...) takes the folder of a run that has begun to train")
    path = place / SELECTION_FILE if kind == "run" else place
    remedy = "selection.save(file) writes such a file"
    if kind == "run":
        ended = (place / TUNED_FILE).exists() or (place / FISHER_FILE).exists()
        remedy = "an earlier version made the run; delete its folder to make it again" if ended else (
            "the run has not come to its selection yet")  # fmt: skip
    try:
        tensors, about = read_tensors(path, remedy)
    except RequestError as error:
        if kind == "run" or not path.exists():
            raise
        # It is nobody's run, and not to be deleted.
        raise RequestError(f"{path}: {reason_of(path, error)}; {remedy}") from None
    if kind == "run" and model_sha256 is not None and about.get("model_sha256") != model_sha256:
        raise RequestError(f"{place} selected weights of another base model; give a run on the model of this one")
    return _to_parts(path, tensors, about, weights)


def _to_parts(
    path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, Any], weights: Sequence[Weight]
) -> dict[str, np.ndarray | None]:
    """What a file of `write_selection` selects on a model."""
    by_name = {weight.torch_name: weight for weight in weights if weight.sublayer != "classifier"}
    found: dict[str, np.ndarray | None] = {}
    whole = about.get("whole")
    if not isinstance(whole, list):
        raise RequestError(f"{path}: no selection is stored in it; selection.save(file) writes such a file")
    for name in [*map(str, whole), *(name.removesuffix(".indices") for name in tensors)]:
        if name not in by_name:
            raise RequestError(f"{path}: selects weights of {name}, which this model has not")
        weight, indices = by_name[name], tensors.get(f"{name}.indices")
        if indices is not None and not _fits(indices, weight):
            raise RequestError(f"{path}: {name} does not fit this model")
        found[weight.path] = None if indices is None else from_torch_indices(indices, weight)
    return found


def _fits(indices: np.ndarray, weight: Weight) -> bool:
    """Whether these are rising indices into a variable."""
    if indices.ndim != 1 or indices.dtype != np.int64:
        return False
    return not len(indices) or bool(0 <= indices[0] <= indices[-1] < weight.size and (np.diff(indices) > 0).all())


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
        for path, indices in read_masks(folder, candidates, model_sha256).items():
            union[path] = np.union1d(union.get(path, np.zeros(0, np.int64)), indices).astype(np.int64)
    return {weight.path: union[weight.path] for weight in candidates if weight.path in union}


def digest_masks(masks: Mapping[str, np.ndarray]) -> str:
    """sha256 of which weights these masks select."""
    digest = hashlib.sha256()
    for path, indices in sorted(masks.items()):
        digest.update(f"{path} {len(indices)}\n".encode())
        digest.update(np.ascontiguousarray(indices, "<i8").tobytes())
    return digest.hexdigest()


def read_masks(folder: str | Path, candidates: Sequence[Weight], model_sha256: str | None) -> dict[str, np.ndarray]:
    """The single weights that a run selected; see `unite_masks`."""
    folder = Path(here(str(folder)))
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
