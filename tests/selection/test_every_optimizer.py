"""Every optimizer of Keras inside GradientMask, eager and traced, against itself on vectors of the selected weights."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from alone import Alone, mirrored, values_of

from tfmt.errors import RequestError
from tfmt.selection.gradient_mask import GradientMask

STEPS = 5
# `a` is a table whose gradient is sparse, `c` has no mask.
SHAPES = {"a": (6, 3), "b": (4, 2), "c": (3,)}
MASKS = {"a": [0, 4, 5, 17], "b": [1, 6]}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "Adadelta": lambda **kw: keras.optimizers.Adadelta(**{"learning_rate": 1.0, **kw}),
    "Adafactor": lambda **kw: keras.optimizers.Adafactor(**{"learning_rate": 0.05, **kw}),
    "Adagrad": lambda **kw: keras.optimizers.Adagrad(**{"learning_rate": 0.1, **kw}),
    "Adam": lambda **kw: keras.optimizers.Adam(**{"learning_rate": 0.05, **kw}),
    "Adam, amsgrad": lambda **kw: keras.optimizers.Adam(**{"learning_rate": 0.05, "amsgrad": True, **kw}),
    "AdamW": lambda **kw: keras.optimizers.AdamW(**{"learning_rate": 0.05, "weight_decay": 0.01, **kw}),
    "Adamax": lambda **kw: keras.optimizers.Adamax(**{"learning_rate": 0.05, **kw}),
    "Ftrl": lambda **kw: keras.optimizers.Ftrl(
        **{"learning_rate": 0.1, "l1_regularization_strength": 0.01, "beta": 0.1, **kw}
    ),
    "Lion": lambda **kw: keras.optimizers.Lion(**{"learning_rate": 0.05, **kw}),
    "Nadam": lambda **kw: keras.optimizers.Nadam(**{"learning_rate": 0.05, **kw}),
    "RMSprop": lambda **kw: keras.optimizers.RMSprop(**{"learning_rate": 0.05, **kw}),
    "RMSprop, centered": lambda **kw: keras.optimizers.RMSprop(
        **{"learning_rate": 0.05, "momentum": 0.5, "centered": True, **kw}
    ),
    "SGD": lambda **kw: keras.optimizers.SGD(**{"learning_rate": 0.1, **kw}),
    "SGD, Nesterov": lambda **kw: keras.optimizers.SGD(
        **{"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, **kw}
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.3},
    "decay": {"weight_decay": 0.1},
    "ema": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)},
}
APART = {"Adafactor", "Ftrl", "Nadam"}  # a vector for each variable
SHARING = [name for name in OPTIMIZERS if name not in APART]


def start_values() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def gradients_of_steps(steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    """Dense gradients; those of `a` are zero outside the rows 0, 1 and 5."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(steps):
        found.append({name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()})
        found[-1]["a"][[2, 3, 4]] = 0
    return found


def slices(table: tf.Tensor) -> tf.IndexedSlices:
    """A gradient whose rows are 0, 1 and 5, the last in two halves."""
    rows = tf.constant([5, 0, 1, 5])
    values = tf.gather(table, rows) * tf.constant([[0.5], [1.0], [1.0], [0.5]])
    return tf.IndexedSlices(values, rows, tf.constant(SHAPES["a"]))


def run_masked(make: Callable[[], Any], sparse: bool, traced: bool) -> dict[str, np.ndarray]:
    """Where the masked optimizer brings the variables."""
    variables = [tf.Variable(value, name=name) for name, value in start_values().items()]
    optimizer = GradientMask(make(), MASKS)

    def step(gradients: dict[str, Any]) -> None:
        pairs = [slices(gradients["a"]) if sparse else gradients["a"], gradients["b"], gradients["c"]]
        optimizer.apply_gradients(list(zip(pairs, variables, strict=True)))

    run = tf.function(step) if traced else step
    for gradients in gradients_of_steps():
        run({name: tf.constant(gradient) for name, gradient in gradients.items()})
    return values_of(variables)


def test_no_optimizer_is_left_out() -> None:
    kinds = {
        name
        for name, kind in vars(keras.optimizers).items()
        if inspect.isclass(kind) and issubclass(kind, keras.optimizers.Optimizer)
    }
    assert kinds - {"Optimizer"} == {name.split(",")[0] for name in OPTIMIZERS}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_selected_weights_move_as_the_bare_optimizer_moves_them(optimizer: str, option: str) -> None:
    def make() -> Any:
        return OPTIMIZERS[optimizer](**OPTIONS[option])

    # Eager, because a traced Nadam of Keras depends on how many variables it has.
    start = start_values()
    alone = Alone(make(), start, MASKS)
    for gradients in gradients_of_steps():
        alone.step(gradients)
    # Eager and traced, dense and sparse; the two mixed ones would show nothing else.
    for sparse, traced in ((False, False), (True, True)) + (((False, True),) if option == "plain" else ()):
        alone.check(start, run_masked(make, sparse, traced), atol=2e-6)


def nadam_by_hand(start: np.ndarray, gradients: list[np.ndarray], rate: float) -> np.ndarray:
    """Dozat's Nadam with the schedule of its momentum, in float64."""
    weights, m, v, product = start.astype(np.float64), 0.0, 0.0, 1.0
    for step, gradient in enumerate(gradients, 1):
        now, then = (0.9 * (1 - 0.5 * 0.96**t) for t in (step, step + 1))
        product *= now
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * np.square(gradient, dtype=np.float64)
        ahead = then * m / (1 - product * then) + (1 - now) * gradient / (1 - product)
        weights = weights - rate * ahead / (np.sqrt(v / (1 - 0.999**step)) + 1e-7)
    return weights


@pytest.mark.parametrize("execution", ["eager", "traced", "two replicas"])
def test_nadam_is_nadam_however_it_is_run(execution: str) -> None:
    strategy = mirrored(2) if execution == "two replicas" else tf.distribute.get_strategy()
    with strategy.scope():
        variables = [tf.Variable(value, name=name) for name, value in start_values().items()]
        optimizer = GradientMask(keras.optimizers.Nadam(0.05), MASKS)

    def step(gradients: list[Any]) -> None:
        gradients = [gradient / strategy.num_replicas_in_sync for gradient in gradients]
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))

    def run(gradients: list[Any]) -> None:
        strategy.run(step, (gradients,))

    run = run if execution == "eager" else tf.function(run)
    gradients = gradients_of_steps(7)
    for each in gradients:
        run([tf.constant(gradient) for gradient in each.values()])
    for name, value in values_of(variables).items():
        moved = MASKS.get(name, list(range(value.size)))
        flat = [each[name].ravel()[moved] for each in gradients]
        expected = nadam_by_hand(start_values()[name].ravel()[moved], flat, 0.05)
        np.testing.assert_allclose(value.ravel()[moved], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("traced", [False, True])
def test_nadam_goes_on_from_its_variables(traced: bool) -> None:
    gradients = [[tf.constant(gradient) for gradient in each.values()] for each in gradients_of_steps(6)]

    def make() -> tuple[list[tf.Variable], GradientMask, Callable[[list[Any]], None]]:
        variables = [tf.Variable(value, name=name) for name, value in start_values().items()]
        optimizer = GradientMask(keras.optimizers.Nadam(0.05), MASKS)

        def step(gradients: list[Any]) -> None:
            optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))

        return variables, optimizer, tf.function(step) if traced else step

    variables, optimizer, step = make()
    for each in gradients[:3]:
        step(each)
    again, other, on = make()
    other.build(again)
    other.set_weights([variable.numpy() for variable in optimizer.variables])
    for variable, value in zip(again, variables, strict=True):
        variable.assign(value)
    for each in gradients[3:]:
        step(each)
        on(each)
    for name, value in values_of(variables).items():
        np.testing.assert_array_equal(values_of(again)[name], value)


@pytest.mark.parametrize(
    ("optimizer", "execution"),
    [(name, execution) for name in SHARING for execution in ("eager", "traced")]
    + [("Adam, amsgrad", "two replicas"), ("SGD, Nesterov", "two replicas")],
)
def test_a_variable_without_a_gradient_keeps_its_weights_and_slots(optimizer: str, execution: str) -> None:
    start, steps = start_values(), gradients_of_steps(4)
    # Members of one vector: `b` has no gradient in the second step, `a` none in the third.
    present = [("a", "b", "c"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    alone = Alone(OPTIMIZERS[optimizer](), start, MASKS)
    for gradients, names in zip(steps, present, strict=True):
        alone.step({name: gradients[name] for name in names})

    strategy = mirrored(2) if execution == "two replicas" else tf.distribute.get_strategy()
    with strategy.scope():
        variables = [tf.Variable(value, name=name) for name, value in start.items()]
        mask = GradientMask(OPTIMIZERS[optimizer](), MASKS)

    def step(gradients: list[Any]) -> None:
        gradients = [None if each is None else each / strategy.num_replicas_in_sync for each in gradients]
        mask.apply_gradients(list(zip(gradients, variables, strict=True)))

    for gradients, names in zip(steps, present, strict=True):
        each = [tf.constant(gradients[name]) if name in names else None for name in start]

        def run(each: list[Any] = each) -> None:
            strategy.run(step, (each,))

        (run if execution == "eager" else tf.function(run))()
    alone.check(start, values_of(variables), atol=2e-6)


class Counting(keras.optimizers.SGD):
    """Takes every second step only, and counts them in Python."""

    seen = 0

    def update_step(self, gradient: Any, variable: Any) -> None:
        self.seen += 1
        if self.seen % 2:
            super().update_step(gradient, variable)


def test_an_optimizer_that_counts_in_python_is_refused_in_a_traced_step_alone() -> None:
    weights = tf.Variable(tf.zeros(3), name="w")

    def make() -> Callable[[], Any]:
        optimizer = GradientMask(Counting(1.0), {"w": [1]})
        return lambda: optimizer.apply_gradients([(tf.ones(3), weights)])

    step = make()
    step(), step(), step()
    assert weights.numpy().tolist() == [0, -2, 0]
    with pytest.raises(RequestError, match=r"Counting counts in Python \(seen\).*run_eagerly") as caught:
        tf.function(make())()
    assert "\n" not in str(caught.value)
