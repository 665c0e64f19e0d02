"""The learning rate: linear warm-up, then linear decay or none (P1, section 2, names the warm-up alone)."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tf_keras as keras


class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Warms up from 0 over the first steps, then decays linearly to 0, or stays.

    Step t (0-based) of T, with w steps of warm-up, has the rate peak * t / w below w and peak * (T - t) / (T - w) from
    there on, as in transformers. The numbers are variables, so that one traced step serves runs of other rates.

    Args:
      peak: the highest rate.
      steps: optimizer steps of the run.
      warmup_ratio: share of the steps that warm up.
      schedule: `linear` or `constant`.
    """

    def __init__(self, peak: float, steps: int, warmup_ratio: float, schedule: str = "linear") -> None:
        self._config: dict[str, Any] = {
            "peak": peak, "steps": steps, "warmup_ratio": warmup_ratio, "schedule": schedule
        }  # fmt: skip
        self._numbers = tf.Variable(self._pack(), trainable=False, dtype=tf.float32, name="learning_rate_schedule")

    def _pack(self) -> list[float]:
        config = self._config
        warmup = math.ceil(config["warmup_ratio"] * config["steps"])
        return [config["peak"], float(config["steps"]), float(warmup), float(config["schedule"] == "linear")]

    def assign(self, peak: float, steps: int, warmup_ratio: float, schedule: str) -> None:
        """Takes other numbers without tracing anew."""
        self._config = {"peak": peak, "steps": steps, "warmup_ratio": warmup_ratio, "schedule": schedule}
        self._numbers.assign(self._pack())

    def __call__(self, step: Any) -> tf.Tensor:
        """The rate of a 0-based step."""
        peak, steps, warmup, linear = tf.unstack(tf.convert_to_tensor(self._numbers))
        step = tf.cast(step, tf.float32)
        rising = step / tf.maximum(warmup, 1.0)
        falling = tf.maximum(0.0, (steps - step) / tf.maximum(steps - warmup, 1.0))
        return peak * tf.where(step < warmup, rising, tf.where(linear > 0, falling, 1.0))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return dict(self._config)
