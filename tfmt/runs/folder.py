"""A run's folder: whose it is, and whether the run in it has ended."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmt.bert.base_weights import tell_difference
from tfmt.errors import RequestError, RunError
from tfmt.files import UnreadableError, UnwritableError, exists, parse_json, write_whole
from tfmt.runs.lease import Lease, is_lease
from tfmt.runs.paused import PAUSED_FILE
from tfmt.runs.records import RECORD_FILE, SPEC_FILE, Record, read_record
from tfmt.runs.sealed import seal_json, unseal
from tfmt.selection.stored import TUNED_FILE
from tfmt.spec import RunSpec

if TYPE_CHECKING:
    from tfmt.runs.runner import Request


CHECKPOINT = "checkpoint"
# Temporary names; the third is safetensors' own, which writes beside the file it was given, the fourth of what comes
# from another machine, the last the lease's.
_HALF_WRITTEN = (".*.safetensors.[0-9]*", ".*.json.[0-9]*", ".tmp??????", ".tmp.[0-9]*", ".clock.[0-9]*")


class UnkeptError(RequestError):
    """Weights were asked for of a run that has ended and kept none."""


def open_folder(request: Request) -> None:
    """Makes a run's folder, or checks that the one that is there is this run's.

    Raises:
      RequestError: there can be no such folder, or it is another run's.
      UnwritableError: the disk is full, or nothing may be made in `--output_dir`.
      UnreadableError: whose it is cannot be read now.
    """
    folder = request.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        unwritable = UnwritableError.of(folder, error)
        met = unwritable.disk_full or folder.parent.is_dir()
        raise unwritable if met else RequestError(f"--output_dir: {unwritable}") from None
    _is_noted(request)


def note_spec(request: Request) -> None:
    """Writes a run's spec.json where it is missing; only who holds the folder's lease may do so.

    Raises:
      RequestError: the folder is another run's.
      UnwritableError: the disk is full, or the folder cannot be written.
      UnreadableError: whose it is cannot be read now.
    """
    if _is_noted(request):
        return
    model = {"commit": request.model.commit, "parts": request.model_parts}
    identity = request.spec.identity(**request.digests)
    content = {"identity": identity, "spec": request.spec.model_dump(mode="json"), "model": model}
    write_whole(request.folder / SPEC_FILE, seal_json(content).encode())


def _is_noted(request: Request) -> bool:
    """Whether the folder says that it is this run's; raises where it says something else."""
    stored = read_stored_spec(request.folder)
    if stored is not None and stored["identity"] != request.spec.identity(**request.digests):
        path = request.folder / SPEC_FILE
        raise RequestError(f"{path}: this folder holds another run; choose another --output_dir")
    return stored is not None


def read_stored_spec(folder: Path) -> dict[str, Any] | None:
    """What a run's spec.json holds; None where there is none.

    Raises:
      RequestError: it is damaged.
      UnreadableError: it is there and cannot be read now.
    """
    path = folder / SPEC_FILE
    try:
        stored = unseal(parse_json(path.read_bytes()))
        if not isinstance(stored, dict) or "identity" not in stored:
            raise ValueError("it is no run's")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    except ValueError as error:
        raise RequestError(f"{path}: broken ({error}); delete the file, which the next start writes anew") from None
    return stored


def tell_other_model(request: Request) -> str:
    """A line on a run beside this one's folder that differs from it in nothing but the base model; "" without one.

    So a branch of the hub that moved, or a file that was edited, does not give a study another name in silence.
    """
    mine = request.spec.identity(**request.digests)
    for path in sorted(request.folder.parent.glob(f"{glob.escape(request.spec.label())}-*/{SPEC_FILE}")):
        try:
            stored = read_stored_spec(path.parent) or {}
            theirs = stored["identity"]
            digests = theirs["digests"] | {"model": mine["digests"]["model"]}
        except (RequestError, UnreadableError, KeyError, TypeError):
            continue
        if theirs != mine and theirs | {"digests": digests} == mine:
            return f"{path.parent.name} has the same settings and data, and another base model" + _tell_how(
                stored.get("model"), request
            )
    return ""


def _tell_how(stored: dict[str, Any] | None, request: Request) -> str:
    """In what a model differs from the one that an earlier run noted."""
    if not stored:  # by an earlier version
        return ""
    told = f"; this one differs in {tell_difference(stored['parts'], request.model_parts)}"
    if stored["commit"] and request.model.commit and stored["commit"] != request.model.commit:
        told += f" (commit {request.model.commit[:10]} of the hub, there {stored['commit'][:10]})"
    return told


def clear_leftovers(folder: Path) -> None:
    """Removes what a process that was killed had begun to write; only who holds the folder's lease may do so."""
    for leftover in list_leftovers(folder):
        leftover.unlink(missing_ok=True)


def list_leftovers(folder: Path) -> list[Path]:
    """What a process that was killed had begun to write; of a folder that is held, what its owner is writing too."""
    inside = (folder, folder / CHECKPOINT)
    return [leftover for place in inside for pattern in _HALF_WRITTEN for leftover in sorted(place.glob(pattern))]


def list_checkpoint(folder: Path) -> list[Path]:
    """The files of a run's checkpoint."""
    return sorted((folder / CHECKPOINT).glob("*.safetensors"))


def tidy_finished(folder: Path, record: Record) -> None:
    """Removes what a process left that was killed between its record and its end, unless a living one has the folder.

    What tfmt does not write itself stays, and so does a failed run's checkpoint, with which it may be tried again.

    Args:
      folder: the run's folder.
      record: what lies there.
    """
    ended = record.status != "failed"
    with contextlib.suppress(RunError, OSError):  # somebody is at it, or it is a folder to look at only
        if any(_is_left(name) or (ended and name in (CHECKPOINT, PAUSED_FILE)) for name in os.listdir(folder)):
            with Lease(folder):  # who ends with a record there takes all leases along
                clear_leftovers(folder)
                if ended:
                    clear_ended(folder)


def _is_left(name: str) -> bool:
    return is_lease(name) or any(fnmatch.fnmatchcase(name, pattern) for pattern in _HALF_WRITTEN)


def clear_ended(folder: Path) -> None:
    """Removes what a run that has ended was to go on from; only who holds the folder's lease may do so."""
    (folder / PAUSED_FILE).unlink(missing_ok=True)
    clear_checkpoint(folder)


def drop_paused(folder: Path) -> bool:
    """Removes the checkpoint of a run that waits and is not gone on with, unless a living process has the folder.

    Returns:
      Whether there was one, and it is removed.
    """
    with contextlib.suppress(RunError, OSError):
        if (folder / PAUSED_FILE).exists() and (folder / CHECKPOINT).exists():
            with Lease(folder):
                clear_leftovers(folder)
                clear_checkpoint(folder)
            return True
    return False


def clear_checkpoint(folder: Path) -> None:
    """Removes a run's checkpoint; only who holds the folder's lease may do so."""
    for path in list_checkpoint(folder):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none, or it holds something of somebody else's
        (folder / CHECKPOINT).rmdir()


def finished(request: Request) -> Record | None:
    """The record of a run that ended; a failed run counts as not done.

    Raises:
      UnkeptError: weights were asked for, and the run kept none.
      RequestError: the record is broken.
      UnreadableError: whether there is one cannot be told now.
    """
    if not exists(request.folder / RECORD_FILE):
        return None
    record = read_record(request.folder)
    check_kept(request.spec, record, request.folder)
    return None if record.status == "failed" else record


def check_kept(spec: RunSpec, record: Record, folder: Path) -> None:
    """Checks that a run that ended keeps what a spec asks for. One that kept more than that serves as well.

    Raises:
      UnkeptError: `keep=tuned`, and the completed run kept its scores alone.
    """
    # Records without predictions are of earlier versions, which noted neither digest.
    told = record.tuned_sha256 is not None or record.predictions_sha256 is None
    kept = told and (folder / TUNED_FILE).exists()
    if spec.keep == "tuned" and record.status == "completed" and not kept:
        raise UnkeptError(
            f"--keep=tuned: {folder} holds this run already, without its weights; take --keep=scores or another "
            "--output_dir, or delete the folder to train it again"
        )
