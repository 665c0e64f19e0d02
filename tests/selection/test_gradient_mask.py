"""GradientMask against the inner optimizer run by itself on vectors of just the selected weights."""

import doctest
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmt.selection.gradient_mask
from tfmt.errors import RequestError
from tfmt.selection.gradient_mask import GradientMask

ROWS, WIDTH, HIDDEN = 30, 4, 5
# The words 0 to 9 occur in the batches below; a selected weight of row 25 never gets a gradient.
MASKS = {
    "words/embeddings": [1, 2, 13, 25 * WIDTH],
    "dense/kernel": np.random.default_rng(0).random((WIDTH, HIDDEN)) < 0.3,
    "dense/bias": [],
    "norm/gamma": [0, 4],
    "norm/beta": [2],
}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "momentum": lambda **kw: keras.optimizers.SGD(0.05, momentum=0.9, **kw),
    "adam": lambda **kw: keras.optimizers.Adam(0.01, **kw),
    "adamw": lambda **kw: keras.optimizers.AdamW(0.01, **{"weight_decay": 0.02, **kw}),
    "rmsprop": lambda **kw: keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True, **kw),
}
AXES: dict[str, list[Any]] = {
    "optimizer": list(OPTIMIZERS),
    "clipping": [{}, {"clipnorm": 0.02}, {"global_clipnorm": 0.03}, {"clipvalue": 0.005}],
    "decay": [{}, {"weight_decay": 0.1}],
    "policy": ["float32", "mixed_bfloat16", "mixed_float16"],
    "execution": ["eager", "function", "jit", "one replica", "two replicas"],
}


def pairwise(axes: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    """Few combinations in which every two values of different axes meet."""

    def pairs(choice: tuple[int, ...]) -> set[tuple[Any, Any]]:
        return set(itertools.combinations(enumerate(choice), 2))

    choices = list(itertools.product(*(range(len(values)) for values in axes.values())))
    missing = set().union(*map(pairs, choices))
    chosen = []
    while missing:
        best = max(choices, key=lambda choice: len(pairs(choice) & missing))
        missing -= pairs(best)
        chosen.append(tuple(values[i] for values, i in zip(axes.values(), best, strict=True)))
    return chosen


@pytest.fixture(autouse=True)
def _float32_and_a_seed() -> Iterator[None]:
    keras.utils.set_random_seed(0)
    yield
    keras.mixed_precision.set_global_policy("float32")


def mirrored(replicas: int) -> tf.distribute.Strategy:
    """A strategy over logical CPU devices.

    TensorFlow's collectives mix up the exchanges of two strategies over the same devices in one process, also for plain
    Keras, and other tests make strategies, too. So these sum on one device.
    """
    devices = [f"CPU:{i}" for i in range(replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


def make_model() -> keras.Model:
    words = keras.Input([3], dtype=tf.int32)
    hidden = keras.layers.Embedding(ROWS, WIDTH, name="words")(words)
    hidden = keras.layers.Dense(HIDDEN, activation="tanh", name="dense")(hidden)
    hidden = keras.layers.LayerNormalization(name="norm")(hidden)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(words, keras.layers.Dense(2, name="head", dtype=tf.float32)(hidden))


def make_data(count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return generator.integers(10, size=(count, 3)), generator.normal(size=(count, 2)).astype(np.float32)


def indices_of(mask: Any) -> np.ndarray:
    mask = np.asarray(mask)
    return np.flatnonzero(mask) if mask.dtype == bool else mask.astype(int)


def name_of(variable: Any) -> str:
    return variable.name.split(":")[0]


def values_of(variables: list[Any]) -> dict[str, np.ndarray]:
    return {name_of(variable): variable.numpy() for variable in variables}


def dense(gradient: Any) -> np.ndarray:
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient.numpy()
    whole = np.zeros(gradient.dense_shape.numpy(), np.float32)
    np.add.at(whole, gradient.indices.numpy(), gradient.values.numpy())
    return whole


class Alone:
    """The inner optimizer on plain variables: one vector of the selected weights for each masked variable."""

    def __init__(self, optimizer: Any, start: dict[str, np.ndarray], masks: dict[str, Any]) -> None:
        self.optimizer = optimizer
        self.selected = {name: indices_of(masks[name]) if name in masks else None for name in start}
        self.variables = {name: tf.Variable(self.take(name, value)) for name, value in start.items()}

    def take(self, name: str, value: np.ndarray) -> np.ndarray:
        indices = self.selected[name]
        return value if indices is None else value.reshape(-1)[indices]

    def step(self, gradients: dict[str, np.ndarray]) -> None:
        pairs = [(self.take(name, gradient), self.variables[name]) for name, gradient in gradients.items()]
        self.optimizer.apply_gradients([(tf.constant(gradient), variable) for gradient, variable in pairs])

    def check(self, start: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> None:
        for name, value in now.items():
            np.testing.assert_allclose(self.take(name, value), self.variables[name].numpy(), rtol=0, atol=1e-7)
            if self.selected[name] is not None:
                kept = np.delete(value.reshape(-1), self.selected[name])
                assert kept.tobytes() == np.delete(start[name].reshape(-1), self.selected[name]).tobytes()


@pytest.mark.parametrize(("optimizer", "clipping", "decay", "policy", "execution"), pairwise(AXES))
def test_selected_weights_move_as_alone_and_no_others(
    optimizer: str, clipping: dict, decay: dict, policy: str, execution: str
) -> None:
    keras.mixed_precision.set_global_policy(policy)
    replicas = {"one replica": 1, "two replicas": 2}.get(execution, 0)
    strategy = mirrored(replicas) if replicas else tf.distribute.get_strategy()
    with strategy.scope():
        model = make_model()
        mask: Any = GradientMask(OPTIMIZERS[optimizer](**clipping, **decay), MASKS)
        if policy == "mixed_float16":
            mask = keras.mixed_precision.LossScaleOptimizer(mask, dynamic=True, initial_scale=64.0)
    variables = model.trainable_variables
    start = values_of(variables)
    alone = Alone(OPTIMIZERS[optimizer](**clipping, **decay), start, MASKS)

    def replica_step(words: tf.Tensor, targets: tf.Tensor) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(words, training=True) - targets) ** 2) / strategy.num_replicas_in_sync
            if policy == "mixed_float16":
                loss = mask.get_scaled_loss(loss)
        gradients = tape.gradient(loss, variables)
        if policy == "mixed_float16":
            gradients = mask.get_unscaled_gradients(gradients)
        mask.apply_gradients(zip(gradients, variables, strict=True))
        return gradients

    def step(words: Any, targets: Any) -> list[Any]:
        return strategy.run(replica_step, (words, targets))

    if execution != "eager":
        step = tf.function(step, jit_compile=execution == "jit")
    words, targets = make_data()
    for _ in range(5):
        shared = [
            strategy.experimental_distribute_values_from_function(
                lambda context, data=data: tf.split(data, context.num_replicas_in_sync)[
                    context.replica_id_in_sync_group
                ]
            )
            if replicas
            else data
            for data in (tf.constant(words, tf.int32), tf.constant(targets))
        ]
        gradients = step(*shared)
        sums = [sum(map(dense, strategy.experimental_local_results(gradient))) for gradient in gradients]
        alone.step({name_of(v): each for v, each in zip(variables, sums, strict=True)})
    assert mask.iterations.numpy() == 5
    for part in range(strategy.num_replicas_in_sync):  # every replica holds the same weights
        values = [strategy.experimental_local_results(variable)[part].numpy() for variable in variables]
        alone.check(start, dict(zip(start, values, strict=True)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Nadam(0.01),
        lambda: keras.optimizers.Ftrl(0.1),
        lambda: keras.optimizers.Adafactor(0.01),
        lambda: keras.optimizers.Lion(0.01),
        lambda: keras.optimizers.Adagrad(0.1),
        lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    ],
)
def test_other_optimizers(make: Callable[[], Any]) -> None:
    generator = np.random.default_rng(0)
    start = {"a": generator.normal(size=(3, 4)).astype(np.float32), "b": generator.normal(size=5).astype(np.float32)}
    masks = {"a": [0, 7, 11], "b": [1, 2]}
    variables = [tf.Variable(value, name=name) for name, value in start.items()]
    optimizer, alone = GradientMask(make(), masks), Alone(make(), start, masks)
    for _ in range(4):
        gradients = {name: generator.normal(size=value.shape).astype(np.float32) for name, value in start.items()}
        optimizer.apply_gradients([(tf.constant(g), v) for g, v in zip(gradients.values(), variables, strict=True)])
        alone.step(gradients)
    alone.check(start, values_of(variables))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple))
def test_any_shape_and_any_mask(data: st.DataObject, shape: tuple[int, ...]) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))))
    mask = mask.reshape(shape)
    start = {"a": np.random.default_rng(0).normal(size=shape).astype(np.float32), "b": np.ones(3, np.float32)}
    masks = {"a": mask, "b": [data.draw(st.integers(0, 2))]}
    variables = [tf.Variable(value, name=name) for name, value in start.items()]
    optimizer = GradientMask(OPTIMIZERS["adamw"](), masks)
    alone = Alone(OPTIMIZERS["adamw"](), start, masks)
    for i in range(2):
        gradients = {name: np.cos(np.arange(value.size) + i).reshape(value.shape) for name, value in start.items()}
        gradients = {name: gradient.astype(np.float32) for name, gradient in gradients.items()}
        optimizer.apply_gradients([(tf.constant(g), v) for g, v in zip(gradients.values(), variables, strict=True)])
        alone.step(gradients)
    alone.check(start, values_of(variables))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 6), max_size=9),
    selected=st.lists(st.integers(0, 7 * 2 * 3 - 1), min_size=1, unique=True),
)
def test_sparse_gradients_are_summed_over_duplicates(rows: list[int], selected: list[int]) -> None:
    table = tf.Variable(np.zeros((7, 2, 3), np.float32), name="table")
    values = np.arange(1, 6 * len(rows) + 1, dtype=np.float32).reshape(-1, 2, 3)
    gradient = tf.IndexedSlices(tf.constant(values), tf.constant(rows, tf.int32), tf.constant([7, 2, 3]))
    GradientMask(keras.optimizers.SGD(1.0), {"table": selected}).apply_gradients([(gradient, table)])
    expected = np.zeros((7, 2, 3), np.float32)
    np.add.at(expected, rows, values)
    expected.reshape(-1)[np.setdiff1d(np.arange(42), selected)] = 0
    np.testing.assert_array_equal(table.numpy(), -expected)


def test_a_sparse_gradient_never_becomes_a_dense_table() -> None:
    table = tf.Variable(tf.zeros([30522, 64]), name="table")
    optimizer = GradientMask(keras.optimizers.Adam(), {"table": np.arange(0, 64 * 300, 64)})
    optimizer.build([table])

    @tf.function
    def step(tokens: tf.Tensor) -> None:
        optimizer.minimize(lambda: tf.reduce_sum(tf.gather(table, tokens)), [table])

    graph = step.get_concrete_function(tf.TensorSpec([128], tf.int32)).graph
    sizes = {
        tensor.name: tensor.shape.num_elements()
        for operation in graph.get_operations()
        for tensor in operation.outputs
        if tensor.dtype.is_floating
    }
    assert max(size or 0 for size in sizes.values()) < 30522 * 64 // 10
    assert not [name for name in sizes if name.endswith("ReadVariableOp:0") and sizes[name] == 30522 * 64]


def test_a_gradient_of_none_leaves_its_variable_alone() -> None:
    a, b, c = (tf.Variable(tf.ones(3), name=name) for name in "abc")
    optimizer = GradientMask(keras.optimizers.AdamW(0.1, weight_decay=0.5), {"a": [0], "b": [1]})
    for _ in range(2):
        optimizer.apply_gradients([(tf.ones(3), a), (None, b), (None, c)])
    assert a.numpy()[0] < 0.9
    assert b.numpy().tolist() == c.numpy().tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="No gradients"):
        optimizer.apply_gradients([(None, a), (None, b), (None, c)])


@pytest.mark.parametrize("clipping", [{}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1.0}])
def test_an_infinite_unselected_gradient_harms_nothing(clipping: dict) -> None:
    weights = tf.Variable([1.0, 2.0, 3.0, 4.0], name="w")
    optimizer = GradientMask(keras.optimizers.Adam(0.5, **clipping), {"w": [0, 2]})
    optimizer.apply_gradients([(tf.constant([1.0, np.inf, 1.0, np.nan]), weights)], skip_gradients_aggregation=True)
    np.testing.assert_allclose(weights.numpy(), [0.5, 2, 2.5, 4], atol=1e-5)


@pytest.mark.parametrize("traced", [False, True])
def test_loss_scaling_skips_a_step_for_a_selected_infinity_alone(traced: bool) -> None:
    weights = tf.Variable([1.0, 2.0, 3.0, 4.0], name="w")
    optimizer = keras.mixed_precision.LossScaleOptimizer(GradientMask(keras.optimizers.SGD(1.0), {"w": [0, 2]}))

    def step(gradient: tf.Tensor) -> None:
        scaled = optimizer.get_unscaled_gradients([gradient * optimizer.get_scaled_loss(tf.ones([]))])
        optimizer.apply_gradients([(scaled[0], weights)])

    run = tf.function(step) if traced else step
    scale = float(optimizer.loss_scale)
    run(tf.constant([1.0, np.inf, 0.5, np.nan]))
    assert weights.numpy().tolist() == [0, 2, 2.5, 4]
    assert float(optimizer.loss_scale) == scale
    run(tf.constant([np.inf, 1.0, 1.0, 1.0]))
    assert weights.numpy().tolist() == [0, 2, 2.5, 4]
    assert float(optimizer.loss_scale) == scale / 2


def test_slots_exist_for_trained_weights_only() -> None:
    model = make_model()
    optimizer = GradientMask(keras.optimizers.Adam(), MASKS)
    optimizer.build(model.trainable_variables)
    selected = sum(indices_of(mask).size for mask in MASKS.values())
    head = HIDDEN * 2 + 2
    assert sum(v.shape.num_elements() for v in optimizer.variables) == 1 + 2 * (selected + head)


def test_replicas_exchange_selected_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = mirrored(2)
    with strategy.scope():
        weights = tf.Variable(tf.zeros(100), name="w")
        inner = keras.optimizers.SGD(1.0)
        optimizer = GradientMask(inner, {"w": [3, 50]})
    exchanged = []
    original = inner.aggregate_gradients

    def spy(pairs: list[tuple[Any, Any]]) -> Any:
        exchanged.extend(gradient.shape.num_elements() for gradient, _ in pairs)
        return original(pairs)

    monkeypatch.setattr(inner, "aggregate_gradients", spy)
    tf.function(lambda: strategy.run(lambda: optimizer.apply_gradients([(tf.ones(100), weights)])))()
    assert exchanged
    assert set(exchanged) == {2}  # and not None: collectives cannot exchange tensors whose size may change
    assert np.flatnonzero(weights.numpy()).tolist() == [3, 50]
    assert weights.numpy()[3] == -2


def test_the_model_is_the_only_truth(tmp_path: Any) -> None:
    model = make_model()
    optimizer = GradientMask(keras.optimizers.SGD(0.0), MASKS)
    model.compile(optimizer, "mse")
    model.save_weights(tmp_path / "start")
    start = values_of(model.trainable_variables)
    model.fit(*make_data(), verbose=0)
    for variable in model.trainable_variables:
        variable.assign(variable + 1)
    model.fit(*make_data(), verbose=0)
    for name, value in values_of(model.trainable_variables).items():
        np.testing.assert_array_equal(value, start[name] + 1)
    model.load_weights(tmp_path / "start")
    model.fit(*make_data(), verbose=0)
    for name, value in values_of(model.trainable_variables).items():
        np.testing.assert_array_equal(value, start[name])


def test_learning_rate_and_iterations() -> None:
    weights = tf.Variable([0.0, 0.0], name="w")
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], [1.0, 0.5, 0.25])
    optimizer = GradientMask(keras.optimizers.SGD(schedule), {"w": [1]})
    for expected in (-1.0, -1.5, -1.75):
        optimizer.apply_gradients([(tf.ones(2), weights)])
        assert weights.numpy().tolist() == [0, expected]
    assert int(optimizer.iterations) == 3
    assert float(optimizer.learning_rate) == 0.25

    fixed = GradientMask(keras.optimizers.SGD(1.0), {"w": [1]})
    fixed.learning_rate = 0.5
    assert float(fixed.lr) == float(fixed.inner_optimizer.learning_rate) == 0.5
    fixed.iterations = tf.Variable(7, dtype=tf.int64)
    fixed.apply_gradients([(tf.ones(2), weights)])
    assert int(fixed.inner_optimizer.iterations) == 8


def test_config_round_trip() -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizer = GradientMask(keras.optimizers.AdamW(schedule, epsilon=1e-6, clipnorm=1.0), MASKS)
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(config)
    assert isinstance(again, GradientMask)
    assert type(again.inner_optimizer) is keras.optimizers.AdamW
    assert again.get_config() == optimizer.get_config()
    for path, mask in MASKS.items():
        assert again.masks[path].tolist() == sorted(indices_of(mask).tolist())
    direct = GradientMask.from_config(optimizer.get_config())
    assert direct.get_config() == optimizer.get_config()


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("before_build", [False, True])
def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Any, policy: str, before_build: bool) -> None:
    keras.mixed_precision.set_global_policy(policy)

    def make() -> tuple[keras.Model, tf.train.Checkpoint]:
        model = make_model()
        model.compile(GradientMask(keras.optimizers.Adam(0.01), MASKS), "mse")
        return model, tf.train.Checkpoint(model=model, optimizer=model.optimizer)

    def fit(model: keras.Model) -> None:
        model.fit(*make_data(), batch_size=4, epochs=2, shuffle=False, verbose=0)

    model, checkpoint = make()
    fit(model)
    path = checkpoint.save(str(tmp_path / "run"))
    saved = [name for name, _ in tf.train.list_variables(path)]
    assert not [name for name in saved if "_vectors" in name or "selected_weights" in name]
    fit(model)

    again, checkpoint = make()
    if not before_build:
        again.optimizer.build(again.trainable_variables)
    checkpoint.restore(path)
    fit(again)
    for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    assert [v.numpy().tobytes() for v in model.variables] == [v.numpy().tobytes() for v in again.variables]


def test_a_checkpoint_of_other_masks_is_refused(tmp_path: Any) -> None:
    path = tf.train.Checkpoint(o=GradientMask(keras.optimizers.Adam(), {"w": [1]})).save(str(tmp_path / "run"))
    with pytest.raises(RequestError, match="other masks"):
        tf.train.Checkpoint(o=GradientMask(keras.optimizers.Adam(), {"w": [2]})).restore(path)


def test_variables_are_all_there_is_to_save() -> None:
    weights = tf.Variable(tf.ones(6), name="w")
    optimizer = GradientMask(keras.optimizers.Adam(0.1), {"w": [0, 3]})

    def steps(count: int) -> bytes:
        for _ in range(count):
            optimizer.apply_gradients([(tf.sin(tf.range(6.0)) + weights, weights)])
        return weights.numpy().tobytes()

    steps(2)
    saved, kept = [v.numpy() for v in optimizer.variables], weights.numpy()
    on = steps(3)
    optimizer.set_weights(saved)
    weights.assign(kept)
    assert steps(3) == on


def test_a_plain_script_fits_saves_loads_and_goes_on(tmp_path: Any) -> None:
    model = make_model()
    model.compile(GradientMask(keras.optimizers.Adam(0.01), MASKS), "mse", metrics=["mae"])
    start = values_of(model.trainable_variables)
    data = make_data(16)
    reduce = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    model.fit(*data, batch_size=4, epochs=2, verbose=0, shuffle=False, callbacks=[reduce])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0025)
    for name, value in values_of(model.trainable_variables).items():
        moved = np.flatnonzero(value.reshape(-1) != start[name].reshape(-1))
        allowed = indices_of(MASKS[name]) if name in MASKS else np.arange(value.size)
        assert set(moved) <= set(allowed)
        assert len(moved) or not len(allowed)
    for file in ("model.keras", "model.h5"):
        model.save(tmp_path / file)
        again = keras.models.load_model(tmp_path / file)
        assert isinstance(again.optimizer, GradientMask)
        assert int(again.optimizer.iterations) == int(model.optimizer.iterations)
        for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    model.fit(*data, batch_size=4, verbose=0, shuffle=False)
    again.fit(*data, batch_size=4, verbose=0, shuffle=False)
    for one, other in zip(model.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    model.save(tmp_path / "saved_model", save_format="tf")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "saved_model").predict(data[0], verbose=0),
                                  model.predict(data[0], verbose=0))  # fmt: skip


@pytest.mark.parametrize("replicas", [0, 2])
def test_other_masks_and_a_reset_run_like_a_new_optimizer_without_tracing_again(replicas: int) -> None:
    strategy = mirrored(replicas) if replicas else tf.distribute.get_strategy()
    # As many weights in all, but not in each variable.
    others = {"a": [0, 1, 2], "b": []}

    def make(masks: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
        with strategy.scope():
            a, b = tf.Variable(tf.ones([2, 3]), name="a"), tf.Variable(tf.ones(4), name="b")
            schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
            optimizer = GradientMask(keras.optimizers.Adagrad(schedule, weight_decay=0.1), masks)

        def replica_step() -> None:
            optimizer.apply_gradients([(tf.ones([2, 3]) / strategy.num_replicas_in_sync, a), (b, b)])

        return a, b, optimizer, tf.function(lambda: strategy.run(replica_step))

    a, b, optimizer, step = make({"a": [4], "b": [1, 3]})
    step(), step()
    optimizer.assign_masks(others)
    assert optimizer.iterations.numpy() == 0
    assert optimizer.learning_rate.numpy() == pytest.approx(0.1)
    assert optimizer.masks["b"].size == 0
    a.assign(tf.ones([2, 3]))
    b.assign(tf.ones(4))
    traces = step.experimental_get_tracing_count()
    step(), step()
    assert step.experimental_get_tracing_count() == traces

    new_a, new_b, new, new_step = make(others)
    new_step(), new_step()
    assert a.numpy().tobytes() == new_a.numpy().tobytes()
    assert b.numpy().tobytes() == new_b.numpy().tobytes()
    for one, other in zip(optimizer.variables, new.variables, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()
    with pytest.raises(RequestError, match="new GradientMask"):
        optimizer.assign_masks({"a": [0, 1], "b": []})
    with pytest.raises(RequestError, match="new GradientMask"):
        optimizer.assign_masks({"a": [0, 1, 2]})
    assert optimizer.masks["a"].tolist() == [0, 1, 2]


def test_moving_averages() -> None:
    masks = {"a": [1, 4], "b": [0]}

    def make() -> Any:
        return keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.8)

    start = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.ones(2, np.float32),
        "c": np.ones(2, np.float32),
    }
    variables = [tf.Variable(value, name=name) for name, value in start.items()]
    optimizer, alone = GradientMask(make(), masks), Alone(make(), start, masks)
    for i in range(3):
        gradients = {name: np.full(value.shape, i + 1, np.float32) for name, value in start.items()}
        optimizer.apply_gradients([(tf.constant(g), v) for g, v in zip(gradients.values(), variables, strict=True)])
        alone.step(gradients)
    optimizer.finalize_variable_values(variables)
    alone.optimizer.finalize_variable_values(list(alone.variables.values()))
    alone.check(start, values_of(variables))


@pytest.mark.parametrize("on_wrapper", [False, True])
def test_weight_decay_exclusions(on_wrapper: bool) -> None:
    variables = [tf.Variable(tf.ones(2), name=name) for name in ("kernel", "bias", "gamma", "weights")]
    inner = keras.optimizers.SGD(1.0, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["selected"])  # no variable's name, so it excludes nothing
    if not on_wrapper:
        inner.exclude_from_weight_decay(var_list=[variables[2]], var_names=["bias"])
    optimizer = GradientMask(inner, {"kernel": [0], "bias": [0], "gamma": [0]})
    if on_wrapper:
        optimizer.exclude_from_weight_decay(var_list=[variables[2]], var_names=["bias"])
    optimizer.apply_gradients([(tf.zeros(2), variable) for variable in variables])
    assert [v.numpy().tolist() for v in variables] == [[0.5, 1], [1, 1], [1, 1], [0.5, 0.5]]


def test_bert_paths_leave_out_the_models_name() -> None:
    path = "bert/encoder/layer_._0/output/LayerNorm/gamma"
    gamma = tf.Variable(tf.ones(4), name=f"my_bert_1/{path}")
    GradientMask(keras.optimizers.SGD(1.0), {path: [3]}).apply_gradients([(tf.ones(4), gamma)])
    assert gamma.numpy().tolist() == [1, 1, 1, 0]


class KerasThree:
    """Stands for an optimizer of Keras 3, which cannot be imported beside tf_keras cheaply."""


KerasThree.__module__ = "keras.src.optimizers.adam"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": []}), "select no weight"),
        (lambda: GradientMask(keras.optimizers.Adam(), {}), "select no weight"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": np.zeros(6, bool)}), "select no weight"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [1, 1]}), "remove duplicates"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [-1, 1]}), "count from 0"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [0.5]}), "1-D sequence of indices"),
        (lambda: GradientMask(keras.optimizers.Adam(), {"w": [[1, 2]]}), "1-D sequence of indices"),
        (lambda: GradientMask(KerasThree(), {"w": [1]}), "import tf_keras as keras"),
        (lambda: GradientMask("adam", {"w": [1]}), "expected a tf_keras optimizer"),
        (lambda: GradientMask(keras.optimizers.legacy.Adam(), {"w": [1]}), "without `legacy`"),
        (
            lambda: GradientMask(keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam()), {"w": [1]}),
            "goes inside",
        ),
        (lambda: GradientMask(GradientMask(keras.optimizers.Adam(), {"w": [1]}), {"w": [1]}), "all masks into one"),
    ],
)
def test_a_wrong_request_is_refused_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"w": [6]}, "6 weights, indices 0 to 5"),
        ({"w": np.ones(6, bool)}, r"shape, \(2, 3\)"),
        ({"ww": [0]}, "no trainable variable is called ww.*: w"),
        ({"bound": [0]}, "constraint"),
        ({"twin": [0]}, "two variables"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_at_the_first_step(masks: dict[str, Any], message: str) -> None:
    variables = [
        tf.Variable(tf.ones([2, 3]), name="w"),
        tf.Variable(tf.ones(2), name="bound", constraint=lambda value: value),
        tf.Variable(tf.ones(2), name="twin"),
        tf.Variable(tf.ones(2), name="twin"),
    ]
    with pytest.raises(RequestError, match=message):
        GradientMask(keras.optimizers.SGD(), masks).apply_gradients([(tf.ones_like(v), v) for v in variables])


def test_fit_names_a_mask_that_does_not_fit() -> None:
    model = make_model()
    model.compile(GradientMask(keras.optimizers.SGD(), {"dense/kernal": [0]}), "mse")
    with pytest.raises(RequestError, match="Close to it: dense/kernel") as caught:
        model.fit(*make_data(), verbose=0)
    assert "\n" not in str(caught.value)


def test_an_optimizer_that_has_state_is_refused() -> None:
    optimizer = keras.optimizers.Adam()
    optimizer.build([tf.Variable(1.0)])
    with pytest.raises(RequestError, match="pass a new one"):
        GradientMask(optimizer, {"w": [0]})


def test_the_docstrings_example() -> None:
    result = doctest.testmod(tfmt.selection.gradient_mask)
    assert result.attempted > 0
    assert result.failed == 0
