"""The proof that nothing outside a selection moved, and how far the selected weights went."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfmt.bert.vocabulary import Weight

Reader = Callable[[str], np.ndarray]
Selected = Mapping[str, np.ndarray | None]


def digest_unselected(
    weights: Iterable[Weight], selected: Selected, read: Reader, known: dict[str, bytes] | None = None
) -> dict[str, bytes]:
    """sha256 of what each variable holds outside the selection.

    Args:
      weights: the model's table.
      selected: {path: indices, or None where the whole variable is selected}.
      read: gives a variable's values by path.
      known: digests of whole variables that `read` would give again; those that were missing are added.

    Returns:
      {path: digest}, without the variables that are selected whole.
    """
    known = {} if known is None else known
    digests = {}
    for weight in weights:
        path = weight.path
        if path not in selected:
            if path not in known:
                known[path] = _digest(read(path))
            digests[path] = known[path]
        elif (indices := selected[path]) is not None:
            digests[path] = _digest(np.delete(_flat(read(path)), indices))
    return digests


def join_digests(digests: Mapping[str, bytes]) -> str:
    """One sha256 over those of all variables and their paths, in hexadecimal."""
    whole = hashlib.sha256()
    for path, digest in digests.items():
        whole.update(path.encode() + b"\0" + digest)
    return whole.hexdigest()


def count_changed(
    selected: Selected, before: Reader, after: Reader, digests_before: Mapping[str, bytes],
    digests_after: Mapping[str, bytes],
) -> tuple[int, int]:  # fmt: skip
    """How many weights differ in any bit: (inside the selection, outside it).

    Args:
      selected: as in `digest_unselected`.
      before, after: give a variable's values by path.
      digests_before, digests_after: from `digest_unselected`; what has one digest is not compared weight by weight.
    """
    inside = outside = 0
    for path, indices in selected.items():
        changed = _differ(before(path), after(path)) if indices is None else (
            _differ(_flat(before(path))[indices], _flat(after(path))[indices])
        )  # fmt: skip
        inside += int(np.count_nonzero(changed))
    for path, digest in digests_before.items():
        if digest != digests_after[path]:
            changed = _differ(before(path), after(path))
            chosen = selected.get(path)
            outside += int(np.count_nonzero(changed if chosen is None else np.delete(changed, chosen)))
    return inside, outside


class Evidence(NamedTuple):
    """What the weights of a run say at its end.

    Attributes:
      selected_changed: selected weights that differ from before in any bit.
      frozen_changed: weights outside the selection that do, on any device.
      frozen_sha256: of what lies outside the selection; of a device that changed it, if one did.
      disagreeing: a variable of which the devices hold different values; empty if there is none.
    """

    selected_changed: int
    frozen_changed: int
    frozen_sha256: str
    disagreeing: str


def examine(
    weights: Sequence[Weight], selected: Selected, before: Reader, digests_before: Mapping[str, bytes],
    copies: Sequence[Reader],
) -> Evidence:  # fmt: skip
    """Compares every weight on every device with what it was.

    Args:
      weights: the model's table.
      selected: as in `digest_unselected`.
      before: gives the values before training by path.
      digests_before: from `digest_unselected`.
      copies: a reader for each device's copy of the model, from which the next run would start there.
    """
    frozen, disagreeing, sha256 = 0, "", ""
    inside = 0
    for number, read in enumerate(copies):
        digests = digest_unselected(weights, selected, read)
        changed, leaked = count_changed(selected, before, read, digests_before, digests)
        if number == 0:
            inside, sha256 = changed, join_digests(digests)
        elif not disagreeing:
            disagreeing = next((path for path in selected if _differ(copies[0](path), read(path)).any()), "")
        if leaked and not frozen:
            sha256 = join_digests(digests)
        frozen += leaked
    return Evidence(inside, frozen, sha256, disagreeing)


def _flat(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32).reshape(-1)


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(_flat(values).data).digest()


def _differ(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    return _flat(old).view(np.uint32) != _flat(new).view(np.uint32)


def mean_change(weights: Iterable[Weight], before: Reader, after: Reader) -> dict[str, dict[str, float]]:
    """Mean absolute change of each component of the encoder in each block (P2, section on component change).

    Returns:
      {component: {block: mean |after - before|}}; outside the blocks the block is `-`.
    """
    change: dict[str, dict[str, float]] = {}
    for weight in weights:
        if weight.sublayer == "classifier":
            continue
        difference = np.abs(np.asarray(after(weight.path), np.float64) - before(weight.path))
        block = "-" if weight.block is None else str(weight.block)
        change.setdefault(weight.component, {})[block] = float(difference.mean())
    return change
