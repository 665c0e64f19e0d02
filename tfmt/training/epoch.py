"""What is measured in each epoch of a run: in its checkpoint and, once it ended, in its record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

# A metric, as a fraction; correlations go below 0. What lies outside was not computed here.
Score = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class Epoch(BaseModel):
    """One epoch: mean training loss, every metric of every development split, seconds of training and evaluation.

    `halves`: every metric on both halves of each split, see `Examples.halves`. `collapsed`: whether it predicted one
    class only, or a constant. Records that were made before these were noted have none.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: Annotated[int, Field(ge=1)]
    train_loss: float
    metrics: dict[str, dict[str, Score | None]]
    seconds: Seconds
    collapsed: bool | None = None
    halves: dict[str, list[dict[str, Score | None]]] = {}


def stops_early(scores: Sequence[float | None], patience: int) -> bool:
    """Whether a run of these scores, one an epoch, has had no better one for so many epochs; 0 epochs never stop it.

    A score that is not defined is no better one.
    """
    best, since = float("-inf"), 0
    for score in scores:
        since = 0 if score is not None and score > best else since + 1
        best = max(best, best if score is None else score)
    return 0 < patience <= since


def headline_of(epoch: Epoch, score_name: str) -> float | None:
    """The headline score of an epoch: a metric of the first split, or the mean of the two that its name joins."""
    metrics = next(iter(epoch.metrics.values()), {})
    names = [score_name] if score_name in metrics else [name for name in metrics if name in score_name.split("_")]
    values = [metrics[name] for name in names]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
