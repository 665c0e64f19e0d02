"""Full fine-tunings that the score `change` compares with: ordinary runs, of which others need the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfmt.bert.configs import read_config, shape_of
from tfmt.bert.torch_names import from_torch_names
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError, SurroundingsError
from tfmt.files import UnreadableError, exists
from tfmt.runs.folder import UnkeptError, finished
from tfmt.runs.records import RECORD_FILE, Record, read_record
from tfmt.selection.scores.pool import Read
from tfmt.selection.stored import TUNED_FILE
from tfmt.tensors import read_tensors, reason_of

if TYPE_CHECKING:
    from tfmt.runs.runner import Request


def check_full(full: Request) -> None:
    """Refuses a full fine-tuning to compare with that has ended and kept its scores alone.

    Raises:
      RequestError: so it is.
    """
    try:
        finished(full)
    except UnkeptError:
        raise RequestError(
            f"--select: `change` compares with {full.folder}, which kept its scores alone; delete that folder to make "
            "it again, or take another --output_dir"
        ) from None
    except (RequestError, SurroundingsError):
        pass  # told of when it is needed


def read_full(full: Request) -> Record | None:
    """The record of a full fine-tuning that another run needs, also of one that failed; None where there is none.

    Raises:
      UnreadableError: its record is damaged, or cannot be read now.
    """
    if not exists(full.folder / RECORD_FILE):
        return None
    try:
        return read_record(full.folder)
    except RequestError as error:
        raise UnreadableError(f"{error} (another run compares with it)") from None


def read_tuned(full: Request) -> Read:
    """The values of a full fine-tuning's variables by path."""
    weights = list_weights(
        shape_of(read_config(full.model_folder), full.model_folder / "config.json"), full.task.head,
        full.task.num_labels,
    )  # fmt: skip
    record = read_full(full)
    path = full.folder / TUNED_FILE
    try:
        tensors, _ = read_tensors(path, sha256=record.tuned_sha256 if record else None)
        return from_torch_names(weights, tensors)[0].__getitem__
    except RequestError as error:  # nothing of the run that compares with it is wrong
        told = (
            f"{path}: {reason_of(path, error)}; delete {full.folder}, which another run compares with, to make it again"
        )
        raise UnreadableError(told) from None
