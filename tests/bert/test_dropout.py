"""Dropout's masks: what decides them, and that any number of devices draws those of one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfmt
from tfmt.bert import kernels
from tfmt.bert.forward import Dropout, dropout_at
from tfmt.bert.models import set_seed


def mask(shape, rate=0.3, *, stream=5, step=7, first_row=0):
    stream, step, first_row = (tf.constant(value, tf.int64) for value in (stream, step, first_row))
    return kernels.mask_kept(tf.constant(shape), rate, stream=stream, step=step, first_row=first_row)


# Rows of whole counters of 16 values, and others.
SHAPES = [(12, 64), (12, 2, 24, 24), (12, 16), (12, 37), (12, 3, 5), (12, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("compiled", ["eager", "graph", "xla"])
def test_the_mask_of_a_part_is_that_of_its_rows(shape, compiled):
    function = {"eager": mask, "graph": tf.function(mask), "xla": tf.function(mask, jit_compile=True)}[compiled]
    whole = mask(shape).numpy()
    np.testing.assert_array_equal(function(shape), whole)
    for parts in (2, 3, 4, 12):
        rows = 12 // parts
        found = [function((rows, *shape[1:]), first_row=part * rows) for part in range(parts)]
        np.testing.assert_array_equal(np.concatenate(found), whole)


def test_philox_s_own_words_decide_the_mask():
    """NumPy's Philox is another one (4x64 bits), so the generator of Salmon et al. (2011) is written out: 4x32 bits."""

    def philox(counter, key):
        words, keys = list(counter), list(key)
        for _ in range(10):
            products = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
            words = [(products[1] >> 32) ^ words[1] ^ keys[0], products[1] & 0xFFFFFFFF,
                     (products[0] >> 32) ^ words[3] ^ keys[1], products[0] & 0xFFFFFFFF]  # fmt: skip
            keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return words

    stream, step, first_row, rate = 3 * 65536 + 2, 11, 5, 0.25  # a multiple of 1/256: nothing is rounded
    expected = []
    for row in range(first_row, first_row + 4):
        words = [word for part in range(2) for word in philox([2 * row + part, 0, step, 0], [2 * stream, 0])]
        expected.append(np.array(words, "<u4").view(np.uint8)[:20] >= 64)
    np.testing.assert_array_equal(mask((4, 20), rate, stream=stream, step=step, first_row=first_row), expected)


def test_masks_of_rows_steps_places_and_seeds_are_independent():
    drops = [Dropout(tf.constant(seed), tf.constant(step), first) for seed, step, first in
             [(3, 7, 0), (3, 8, 0), (4, 7, 0), (3, 7, 400)]]  # fmt: skip
    masks = [drop.mask(tf.constant([400, 512]), 0.3).numpy().astype(float) for drop in drops]
    one = masks[0]
    pairs = [(one, other) for other in (*masks[1:], drops[0].mask(tf.constant([400, 512]), 0.3).numpy().astype(float))]
    pairs += [(one[1:], one[:-1]), *((one[:, k:], one[:, :-k]) for k in (1, 2, 4, 8, 16, 32))]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_the_rate_of_a_step_is_one_for_all_its_rows():
    shape = (8, 40_000)
    for step in range(12):
        whole = mask(shape, 0.1, step=step).numpy()
        drawn = [1 - mask((2, 40_000), 0.1, step=step, first_row=first).numpy().mean() for first in (0, 2, 4, 6)]
        nearest = {round(share * 256) for share in (1 - whole.mean(), np.mean(drawn))}
        assert len(nearest) == 1
        assert nearest <= {25, 26}


# ---- users' own loops ------------------------------------------------------------------------------------------------

IDS = np.random.default_rng(0).integers(5, 19, (8, 8))


def passes(model, count=4, call=None):
    call = call or (lambda ids: model({"input_ids": ids}, training=True).logits)
    return [np.asarray(call(IDS)) for _ in range(count)]


def load(toy_bert, seed=3):
    model = tfmt.load_bert(str(toy_bert), seed=0)
    set_seed(model, seed)
    return model


def test_a_model_counts_its_own_passes(toy_bert):
    model = load(toy_bert)
    before = [variable.name for variable in model.weights]
    first = passes(model)
    assert len({logits.tobytes() for logits in first}) == 4  # two passes in one step, or none: each has its own masks
    np.testing.assert_array_equal(passes(load(toy_bert)), first)
    assert not np.array_equal(passes(load(toy_bert, seed=4)), first)
    set_seed(model, 3)
    np.testing.assert_array_equal(passes(model), first)
    model({"input_ids": IDS}, training=False)  # draws nothing, and is not counted
    assert not np.array_equal(passes(model, 1)[0], first[0])
    assert [variable.name for variable in model.weights] == before
    assert not any("dropout" in name for name in dict(tf.train.list_variables(checkpoint(model))))


def checkpoint(model):
    folder = os.environ["TFMT_CACHE"]
    return tf.train.Checkpoint(model=model).write(f"{folder}/dropout-checkpoint")


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_compiled_passes_are_those_of_eager_ones(toy_bert, compiled):
    model = load(toy_bert)
    eager = passes(model)
    set_seed(model, 3)
    call = tf.function(lambda ids: model({"input_ids": ids}, training=True).logits, jit_compile=compiled)
    np.testing.assert_allclose(passes(model, call=call), eager, atol=1e-5)


def test_two_passes_in_one_traced_step_have_two_masks(toy_bert):
    model = load(toy_bert)
    model.compile(optimizer=keras.optimizers.Adam(), loss="mse")  # whose steps say nothing of a loop of one's own
    one, two = tf.function(lambda ids: [model({"input_ids": ids}, training=True).logits for _ in range(2)])(IDS)
    assert not np.array_equal(one, two)
    np.testing.assert_allclose([one, two], passes(load(toy_bert), 2), atol=1e-5)


def test_the_step_is_what_the_caller_says(toy_bert):
    model = load(toy_bert)

    def at(step, first=0, rows=8):
        with dropout_at(tf.constant(step), first):
            return model({"input_ids": IDS[first : first + rows]}, training=True).logits.numpy()

    np.testing.assert_array_equal(at(2), at(2))
    assert not np.array_equal(at(2), at(3))
    np.testing.assert_allclose(np.concatenate([at(2, 0, 3), at(2, 3, 5)]), at(2), atol=1e-6)
    np.testing.assert_array_equal(passes(model, 2), passes(load(toy_bert), 2))  # none of these was the model's own


def test_replicas_of_users_own_loops_draw_what_one_device_draws(toy_bert):
    tf.config.experimental.enable_op_determinism()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        model = load(toy_bert)

    def replica(ids):
        context = tf.distribute.get_replica_context()
        share = ids.shape[0] // 2
        first = context.replica_id_in_sync_group * share
        return model({"input_ids": ids[first : first + share]}, training=True).logits

    @tf.function
    def whole(ids):
        return tf.concat(strategy.experimental_local_results(strategy.run(replica, args=(ids,))), axis=0)

    ids = tf.constant(IDS)
    expected = passes(load(toy_bert))
    np.testing.assert_allclose(passes(model, call=lambda _: whole(ids)), expected, atol=1e-6)
    set_seed(model, 3)
    np.testing.assert_allclose(passes(model, call=lambda _: whole(ids)), expected, atol=1e-6)


def fitted(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss)
    ids = np.random.default_rng(1).integers(5, 19, (32, 8))
    data = tf.data.Dataset.from_tensor_slices(({"input_ids": ids}, np.arange(32) % 2)).batch(8)
    return model.fit(data, epochs=2, verbose=0).history["loss"]


def test_fit_on_two_devices_is_fit_on_one(toy_bert):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        two = load(toy_bert)
    np.testing.assert_allclose(fitted(two), fitted(load(toy_bert)), atol=1e-5)


UNCOMPILED = """
import sys
import numpy as np
import tensorflow as tf
import tfmt

model = tfmt.load_bert(sys.argv[1], seed=3)
ids = np.random.default_rng(0).integers(5, 19, (8, 8))
tf.config.experimental.enable_op_determinism()  # as a run in the same process leaves it
for _ in range(2):
    print(repr(model({"input_ids": ids}, training=True).logits.numpy().tobytes()))
"""


def test_an_uncompiled_model_trains_with_deterministic_operations_and_everywhere_the_same(toy_bert):
    shown = [
        subprocess.run(
            [sys.executable, "-c", UNCOMPILED, str(toy_bert)], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True, check=True,
        ).stdout for _ in range(2)
    ]  # fmt: skip
    assert shown[0] == shown[1]
    assert len(set(shown[0].split("\n"))) == 3
