"""What a search leaves: runs that it stopped before their end, and cells whose rates not every seed has tried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from tfmt.errors import RequestError
from tfmt.results.rows import Row, find_rows
from tfmt.results.where import narrow
from tfmt.runs.paused import find_paused
from tfmt.training.epoch import headline_of
from tfmt.words import counted

if TYPE_CHECKING:
    import pandas as pd


_MOST_LISTED = 80  # cells in a caption; P1's table 1 has 72


class Stopped(NamedTuple):
    """A run that waits after an epoch, or is not gone on with; `score` is that epoch's, a fraction."""

    run_id: str
    row: Row
    task: str
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
    if not found:
        return [], broken
    runs_of = pd.DataFrame(
        {"run_id": paused.run_id, "status": "stopped", "arithmetic": paused.arithmetic} | paused.spec.model_dump()
        for paused in found
    )
    try:
        kept = set(narrow(runs_of, where)["run_id"])
    except RequestError:  # no run of these has such a value
        kept = set()
    stopped = [
        Stopped(
            paused.run_id, row, paused.spec.task, paused.epoch, paused.spec.epochs, paused.score_name,
            headline_of(paused.epochs[-1], paused.score_name),
        )
        for paused, row in zip(found, find_rows(runs_of), strict=True)
    ]  # fmt: skip
    return [each for each in stopped if each.run_id in kept], broken


def tell_stopped(stopped: Sequence[Stopped]) -> tuple[str, ...]:
    """A caption line that counts them, if there are any."""
    if not stopped:
        return ()
    places = Counter((each.epoch, each.epochs) for each in stopped)
    told = ", ".join(f"{number:,} at epoch {epoch} of {epochs}" for (epoch, epochs), number in sorted(places.items()))
    return (f"Stopped by a search before their end, and in no number here: {counted(len(stopped), 'run')} ({told}).",)


def tell_searched(runs: pd.DataFrame, *, halves: bool) -> list[str]:
    """A caption line on the cells whose learning rate a search found, by `tfmt-sweep --search` or by hand.

    That is seen from the runs: some were stopped, or not every seed has tried every rate. Whoever chose which to run
    had seen scores on the whole split.

    Args:
      runs: with the columns of `annotate`, and what `find_stopped` gives in `attrs["stopped"]`.
      halves: whether cross-fitted scores are shown, into whose halves that leaks.
    """
    stopped = {(each.row, each.task) for each in runs.attrs.get("stopped", ())}
    places: dict[str, list[str]] = {}
    for place, cell in runs.groupby(["row", "task"], sort=False):
        row, task = cast("tuple[Row, str]", place)
        tried = cell.groupby("seed")["learning_rate"].agg(frozenset)
        if (row, task) in stopped:
            places.setdefault("by stopping some rates early", []).append(f"{row.title} on {task}")
        elif tried.nunique() > 1:
            places.setdefault("with some of the seeds", []).append(f"{row.title} on {task}")
    if not places:
        return []
    line = "Learning rates were searched " + "; ".join(f"{how}{_tell_cells(told)}" for how, told in places.items())
    leak = " A search looks at the whole split, so what it chose leaks into both halves." if halves else ""
    return [f"{line}.{leak}"]


def _tell_cells(told: Sequence[str]) -> str:
    return f": {', '.join(told)}" if len(told) <= _MOST_LISTED else f", in {len(told):,} cells"


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
