"""What GradientMask has to know of the optimizers of tf_keras: which it can wrap, and where they keep their state."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfmt.errors import RequestError

# These treat every weight alike, whatever variable it lies in, so many masked variables can share one vector: a step
# then costs a handful of operations instead of a handful for each variable. Any other class, also a subclass of these,
# gets a vector for each variable.
ELEMENTWISE = (
    keras.optimizers.Adadelta,
    keras.optimizers.Adagrad,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Adamax,
    keras.optimizers.Lion,
    keras.optimizers.RMSprop,
    keras.optimizers.SGD,
)


def check_optimizer(optimizer: Any) -> None:
    """Refuses what is not an optimizer of tf_keras 2.11 or newer.

    Args:
      optimizer: what the user passed; a `LossScaleOptimizer` is one, too.

    Raises:
      RequestError: for an optimizer of Keras 3, a `legacy` one, or anything else.
    """
    kind = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    expected = "expected a tf_keras optimizer, such as tf_keras.optimizers.Adam(1e-3)"
    if isinstance(optimizer, keras.optimizers.legacy.Optimizer):
        raise RequestError(f"{expected}, without `legacy`. Received: optimizer={kind}.")
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        remedy = "; `import tf_keras as keras` instead of Keras 3" if kind.startswith("keras.") else ""
        raise RequestError(f"{expected}{remedy}. Received: optimizer={kind}.")


def state_of(optimizer: Any) -> list[Any]:
    """All variables of an optimizer but its learning rate; some keep a few outside `variables`."""
    state = list(optimizer.variables)
    for name, value in sorted(vars(optimizer).items()):
        if isinstance(value, tf.Variable) and name != "_learning_rate" and not any(value is each for each in state):
            state.append(value)
    return state
