"""Runs that a search stopped before their end: they have no score, so tables only say that they are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfmt.errors import RequestError
from tfmt.results.where import narrow
from tfmt.runs.paused import find_paused
from tfmt.training.epoch import headline_of
from tfmt.words import counted


class Stopped(NamedTuple):
    """A run that waits after an epoch, or is not gone on with; `score` is that epoch's, a fraction."""

    run_id: str
    epoch: int
    epochs: int
    score_name: str
    score: float | None


def find_stopped(runs: str | Path | Sequence[str | Path], where: str = "") -> tuple[list[Stopped], list[str]]:
    """The runs that a search stopped, for `attrs["stopped"]` of the DataFrame of those that ended.

    Args:
      runs: the `--output_dir` of the runs, or several.
      where: conditions, as `narrow` reads them; one that no stopped run fulfils leaves none.

    Returns:
      What is said of each, and a message for each that cannot be read.
    """
    import pandas as pd

    found, broken = find_paused(runs)
    rows: list[dict[str, Any]] = [
        {"run_id": paused.run_id, "status": "stopped", "arithmetic": paused.arithmetic} | paused.spec.model_dump()
        for paused in found
    ]
    try:
        kept = set(narrow(pd.DataFrame(rows), where)["run_id"]) if rows else set()
    except RequestError:  # no run of these has such a value
        kept = set()
    stopped = [
        Stopped(p.run_id, p.epoch, p.spec.epochs, p.score_name, headline_of(p.epochs[-1], p.score_name)) for p in found
    ]
    return [each for each in stopped if each.run_id in kept], broken


def tell_stopped(stopped: Sequence[Stopped]) -> tuple[str, ...]:
    """A caption line that counts them, if there are any."""
    if not stopped:
        return ()
    places = Counter((each.epoch, each.epochs) for each in stopped)
    told = ", ".join(f"{number:,} at epoch {epoch} of {epochs}" for (epoch, epochs), number in sorted(places.items()))
    return (f"Stopped by a search before their end, and in no number here: {counted(len(stopped), 'run')} ({told}).",)


def list_stopped(stopped: Sequence[Stopped]) -> tuple[tuple[str, ...], ...]:
    """A row each: the run, where it stopped, and its score there."""
    return tuple(
        (
            each.run_id,
            f"stopped at epoch {each.epoch} of {each.epochs}",
            each.score_name,
            "-" if each.score is None else f"{100 * each.score:.1f}",
        )
        for each in stopped
    )
