"""What is measured in each epoch of a run: in its checkpoint and, once it ended, in its record."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Epoch(BaseModel):
    """One epoch: mean training loss, every metric of every development split, seconds of training and evaluation.

    `collapsed`: whether it predicted one class only, or a constant; None in records that were made before it was noted.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: int
    train_loss: float
    metrics: dict[str, dict[str, float | None]]
    seconds: float
    collapsed: bool | None = None
