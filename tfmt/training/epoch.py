"""What is measured in each epoch of a run: in its checkpoint and, once it ended, in its record."""

from __future__ import annotations

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


def headline_of(epoch: Epoch, score_name: str) -> float | None:
    """The headline score of an epoch: a metric of the first split, or the mean of the two that its name joins."""
    metrics = next(iter(epoch.metrics.values()), {})
    names = [score_name] if score_name in metrics else [name for name in metrics if name in score_name.split("_")]
    values = [metrics[name] for name in names]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
