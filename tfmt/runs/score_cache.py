"""Scores that runs choose their weights by, measured once for all runs that share what they follow from.

In a folder of the sweep each measurement has a folder of its own, named by the digest of its key; there the lease lies
beside the file, so that of processes that want the same scores one measures them and the others wait. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmt import liveness, signals
from tfmt.errors import RequestError, RequestWarning
from tfmt.files import make_folder, set_aside
from tfmt.runs.folder import clear_leftovers
from tfmt.runs.lease import Lease, TakenError
from tfmt.tensors import read_tensors, reason_of, write_tensors

SCORES_FILE = "scores.safetensors"
_POLL_SECONDS = 0.5  # between two looks at what another process is measuring


def read_or_measure(
    folder: Path, key: Mapping[str, Any], measure: Callable[[], dict[str, np.ndarray]], *, quiet: bool = True
) -> dict[str, np.ndarray]:
    """The scores of a key: from the disk if they are there, else measured, and stored for whoever comes next.

    Args:
      folder: where they are kept, for many keys; made where there is none. The folder that it lies in exists.
      key: everything that they follow from, in values that JSON has.
      measure: measures them, {path: array}; called by one process at a time.
      quiet: do not say that another process is waited for.

    Returns:
      {path: array}, the same bits for all that ask with this key.

    Raises:
      UnwritableError: the disk is full, or nothing can be written there.
      UnreadableError: the scores are there and cannot be read now.
      Stop: a signal asked for it.
    """
    told = json.dumps(key, sort_keys=True)
    place = folder / hashlib.sha256(told.encode()).hexdigest()[:40]
    make_folder(folder)
    make_folder(place)
    while True:
        if (found := _read(place, told)) is not None:
            return found
        with contextlib.ExitStack() as stack:
            try:
                lease = stack.enter_context(Lease(place))
            except TakenError:
                if not quiet:
                    print("waiting for another process, which measures the same scores", file=sys.stderr, flush=True)
                    quiet = True
                signals.check()
                liveness.sign()
                time.sleep(_POLL_SECONDS)
                continue
            clear_leftovers(place)
            # They may have come between the look and the lease.
            if (found := _read(place, told, discard=True)) is None:
                found = measure()
                try:
                    lease.check()
                except TakenError:  # this process slept for so long that another measures them now
                    continue
                write_tensors(place / SCORES_FILE, found, {"key": told})
            return found


def _read(place: Path, told: str, *, discard: bool = False) -> dict[str, np.ndarray] | None:
    """The scores that lie there; None where there are none, or none that are whole and of this key.

    Args:
      place: the key's folder.
      told: the key.
      discard: set a file that is of no use aside; for the owner of the lease alone.
    """
    path = place / SCORES_FILE
    try:
        found, about = read_tensors(path)
        if about == {"key": told}:
            return found
        reason = "it is of another key"
    except RequestError as error:
        reason = reason_of(path, error)
    if discard and path.exists():
        aside = set_aside(path, place).name
        warnings.warn(f"{path}: {reason}; set aside as {aside}, and measured again", RequestWarning, stacklevel=3)
    return None
