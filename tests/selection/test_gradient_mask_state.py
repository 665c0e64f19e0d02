"""What a GradientMask keeps, saves, restores and resets."""

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from alone import HIDDEN, MASKS, indices_of, make_data, make_model, mirrored, values_of

from tfmt.errors import RequestError
from tfmt.selection.gradient_mask import GradientMask
from tfmt.selection.inner_optimizers import slots_of


def test_slots_exist_for_trained_weights_only() -> None:
    model = make_model()
    optimizer = GradientMask(keras.optimizers.Adam(), MASKS)
    optimizer.build(model.trainable_variables)
    selected = sum(indices_of(mask).size for mask in MASKS.values())
    head = HIDDEN * 2 + 2
    assert sum(v.shape.num_elements() for v in optimizer.variables) == 1 + 2 * (selected + head)


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


def test_slots_are_variables_whatever_else_an_optimizer_lists() -> None:
    vector = tf.Variable(tf.zeros(3))
    optimizer = keras.optimizers.AdamW(1e-3)
    optimizer.exclude_from_weight_decay(var_names=["bias"])  # a list that is as long as those of the slots
    optimizer.build([vector])
    assert [slot.ref() for slot in slots_of(optimizer, vector)] == [
        optimizer._momentums[0].ref(), optimizer._velocities[0].ref(),
    ]  # fmt: skip
