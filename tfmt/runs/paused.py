"""`paused.json`: how far a run came that a search stopped after an epoch, and what it scored until there.

It lies beside the checkpoint of a run that waits for what other runs show, and stays where the run is not gone on with;
then its checkpoint is gone. It goes when the run has a record, which says more. A run that was killed on its way on
still has it, so that what a search decided by it is decided the same way again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from tfmt.errors import RequestError
from tfmt.files import UnreadableError, exists
from tfmt.runs.pack import read_packed_paused
from tfmt.runs.records import RECORD_FILE, ModelFacts, Sources, list_sources
from tfmt.runs.sealed import Sealed, reason_of
from tfmt.spec import RunSpec
from tfmt.training.epoch import Count, Epoch

PAUSED_FILE = "paused.json"


class Paused(Sealed):
    """A run that was stopped after an epoch, to go on later or never.

    Attributes:
      run_id: the run.
      spec: the whole run, whose schedule it follows: what it did is the beginning of that.
      rung: the epoch after which it was to stop; a run that had come further already stopped there.
      score_name: of the score that tables show.
      epochs: what a record would say of the epochs that ended.
      examples: N of each split.
      model: the base model.
      arithmetic: the number of tfmt's arithmetic.
      data_sha256: digest of the data.
    """

    schema_: Literal[1]
    run_id: str
    spec: RunSpec
    rung: Annotated[int, Field(ge=1)]
    score_name: str
    epochs: Annotated[list[Epoch], Field(min_length=1)]
    examples: dict[str, Count]
    model: ModelFacts
    arithmetic: int
    data_sha256: str

    @property
    def epoch(self) -> int:
        """How many epochs have ended."""
        return len(self.epochs)


def read_paused(folder: str | Path) -> Paused | None:
    """How far a run came that a search stopped; None where there is no such file.

    Args:
      folder: the run's.

    Raises:
      RequestError: the file is damaged.
      UnreadableError: it is there and cannot be read now.
    """
    path = Path(folder) / PAUSED_FILE
    try:
        return Paused.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    except ValidationError as error:
        raise RequestError(f"{path}: broken: {reason_of(error)}; delete it, and the next sweep makes it anew") from None


def find_paused(runs: Sources) -> tuple[list[Paused], list[str]]:
    """The runs that a search stopped and that have no record.

    Args:
      runs: as for `find_records`, which has read packed studies before.

    Returns:
      What each left, in the order of their ids, and a message for each that cannot be read.
    """
    found: dict[str, Paused] = {}
    broken = []
    for source in list_sources(runs):
        if not source.is_dir():
            told = [Paused.model_validate_json(content) for content in read_packed_paused(source)]
            found |= {paused.run_id: paused for paused in told}
            continue
        for path in (*source.glob(PAUSED_FILE), *source.glob(f"*/{PAUSED_FILE}")):
            try:
                if not exists(path.parent / RECORD_FILE) and (paused := read_paused(path.parent)) is not None:
                    found[paused.run_id] = paused
            except (RequestError, UnreadableError) as error:
                broken.append(str(error))
    return [found[run_id] for run_id in sorted(found)], sorted(broken)
