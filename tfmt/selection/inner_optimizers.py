"""What GradientMask has to know of the optimizers of tf_keras: which it can wrap, and where they keep their state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


def check_inner(optimizer: Any, wrapper: type) -> None:
    """Refuses what `wrapper`, a GradientMask, cannot wrap.

    Raises:
      RequestError: for another wrapper, a LossScaleOptimizer, an optimizer that has state, or one of another kind.
    """
    if isinstance(optimizer, wrapper):
        raise RequestError("GradientMask cannot wrap another one; put all masks into one.")
    if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        raise RequestError("GradientMask goes inside: LossScaleOptimizer(GradientMask(optimizer, masks)).")
    check_optimizer(optimizer)
    if getattr(optimizer, "_built", False):
        raise RequestError("GradientMask expects an optimizer that has not been built; pass a new one.")


def first_unknown(optimizer: Any, variables: Iterable[Any]) -> Any:
    """The first variable that an optimizer which has begun has no state for; None where it can take them all."""
    if not getattr(optimizer, "_built", False) or not hasattr(optimizer, "_index_dict"):
        return None
    return next((each for each in variables if optimizer._var_key(each) not in optimizer._index_dict), None)


def state_of(optimizer: Any) -> list[Any]:
    """All variables of an optimizer but its learning rate; Nadam keeps one outside `variables`."""
    return _with_others(optimizer, ("_learning_rate",))


def variables_of(optimizer: Any) -> list[Any]:
    """What `variables` should be: all that has to be saved. The last learning rate of a schedule follows from it."""
    return _with_others(optimizer, ("_learning_rate", "_current_learning_rate"))


def _with_others(optimizer: Any, without: tuple[str, ...]) -> list[Any]:
    variables = list(optimizer._variables)
    for name, value in sorted(vars(optimizer).items()):
        if isinstance(value, tf.Variable) and name not in without and not any(value is each for each in variables):
            variables.append(value)
    return variables


def slots_of(optimizer: Any, variable: Any) -> list[Any]:
    """The slots that a built optimizer of ELEMENTWISE keeps for a variable."""
    index = optimizer._index_dict[optimizer._var_key(variable)]
    lists = [value for _, value in sorted(vars(optimizer).items()) if isinstance(value, list)]
    found = [slots[index] for slots in lists if len(slots) == len(optimizer._index_dict)]
    # Lists of other things, such as names that weight decay leaves out, may be as long.
    return [slot for slot in found if isinstance(slot, tf.Variable) and slot.shape == variable.shape]


class _Known:
    """Stands for Nadam's count of the steps whose product it has computed: the product of this step is known.

    The count is a number of Python. A traced step sees for ever what it was while tracing, and so multiplies the
    product once for each variable, or never.
    """

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, step: object) -> Any:
        return tf.constant(True)

    def __iadd__(self, one: int) -> _Known:
        return self


def count_in_graph(optimizer: Any) -> None:
    """Makes a built Nadam's steps the same traced as eager; `advance` has to be called before each."""
    if isinstance(optimizer, keras.optimizers.Nadam):
        optimizer._u_product_counter = _Known()


def advance(strategy: Any, optimizer: Any) -> None:
    """Computes what Nadam computes once a step, the product of its momentum schedule; in cross-replica context."""
    if not isinstance(optimizer, keras.optimizers.Nadam):
        return

    def multiply(product: Any) -> None:
        step = tf.cast(optimizer.iterations + 1, product.dtype)
        factor = optimizer.beta_1 * (1.0 - 0.5 * tf.pow(tf.constant(0.96, product.dtype), step))
        product.assign(product * factor)

    strategy.extended.update(optimizer._u_product, multiply, group=False)


def within_loss_scale(optimizer: Any) -> Any:
    """The optimizer itself, or the one inside a `LossScaleOptimizer`."""
    while isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


@contextmanager
def refuse_python_state(optimizer: Any) -> Iterator[None]:
    """Refuses an optimizer that counts in Python, while a step of it is being traced.

    Raises:
      RequestError: one of its attributes is another number afterwards.
    """
    before = {} if tf.executing_eagerly() else _numbers(optimizer)
    yield
    after = _numbers(optimizer)
    changed = [name for name, value in before.items() if after.get(name) != value]
    if changed:
        error = RequestError(
            f"{type(optimizer).__name__} counts in Python ({changed[0]}), which a traced step does not repeat; take "
            "another optimizer, or run its steps eagerly, as model.compile(run_eagerly=True) does."
        )
        error.ag_pass_through = True  # type: ignore[attr-defined]  # or AutoGraph makes a StagingError of it
        raise error


def _numbers(optimizer: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(optimizer).items() if isinstance(value, int | float)}
