"""GradientMask against the inner optimizer run by itself on vectors of just the selected weights."""

import doctest
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from alone import MASKS, Alone, dense, make_data, make_model, mirrored, name_of, values_of
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmt.selection.gradient_mask
from tfmt.selection.gradient_mask import GradientMask

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
        # XLA rounds joined operations once: the last bit of a weight may differ.
        alone.check(start, dict(zip(start, values, strict=True)), atol=1.5e-7 if execution == "jit" else 1e-7)


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


def test_the_docstrings_example() -> None:
    result = doctest.testmod(tfmt.selection.gradient_mask)
    assert result.attempted > 0
    assert result.failed == 0
