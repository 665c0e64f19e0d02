"""The optimizer of a run: Keras's own by its name, P1's Adam in one operation a variable where these are whole."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

from tfmt.selection.inner_optimizers import ELEMENTWISE
from tfmt.spec import RunSpec
from tfmt.training.adam import FusedAdam

_KINDS: dict[str, Any] = {
    "adam": keras.optimizers.Adam,
    "adamw": keras.optimizers.AdamW,
    "sgd": keras.optimizers.SGD,
    "lion": keras.optimizers.Lion,
    "adafactor": keras.optimizers.Adafactor,
}
MOMENTUM = 0.9  # of sgd


def make_optimizer(spec: RunSpec, rate: Any, *, masked: bool) -> Any:
    """The optimizer that a spec asks for, without state.

    Weight decay takes `weight_decay` times the rate of each weight that trains, apart from its gradient. The norm that
    is clipped is that of all gradients that Keras is given together, after they are summed over replicas.

    Args:
      spec: gives `optimizer`, `adam_epsilon`, `weight_decay` and `clip_norm`.
      rate: the learning rate's schedule.
      masked: whether it goes into a GradientMask.
    """
    # On GPUs Keras would have XLA compile each variable's update apart.
    more: dict[str, Any] = {"global_clipnorm": spec.clip_norm or None, "jit_compile": False}
    if spec.optimizer in ("adam", "adamw"):
        more["epsilon"] = spec.adam_epsilon
    if spec.optimizer == "adam":
        # GradientMask joins Keras's own Adam over all masked variables, which is as quick for their few weights.
        return (keras.optimizers.Adam if masked else FusedAdam)(rate, **more)
    if spec.optimizer == "sgd":
        more["momentum"] = MOMENTUM
    if spec.weight_decay or spec.optimizer == "adamw":  # which has a decay of its own else
        more["weight_decay"] = spec.weight_decay
    return _KINDS[spec.optimizer](rate, **more)


def joins_masks(spec: RunSpec) -> bool:
    """Whether a GradientMask treats all masked weights of a run as one vector, whichever variables they lie in."""
    return _KINDS[spec.optimizer] in ELEMENTWISE
