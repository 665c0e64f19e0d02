"""Mean gradients and mean squared gradients against a loop over examples through Hugging Face's own forward pass."""

import signal

import numpy as np
import pytest
import tensorflow as tf
import transformers
from labelled_split import KINDS, toy_split

from tfmt import signals
from tfmt.bert.models import computing_in, load_bert, weights_of
from tfmt.data.batches import assemble
from tfmt.data.tokens import IGNORED
from tfmt.training import gradients
from tfmt.training.fisher import layernorm_fisher
from tfmt.training.gradients import make_mean_step, make_squared_step, mean_gradient, squared_gradient

USED = range(5, 14)  # so that a text reads rows twice, and words 14 to 18 do not occur
WORDS = "bert/embeddings/word_embeddings/weight"
TYPES = "bert/embeddings/token_type_embeddings/embeddings"
POSITIONS = "bert/embeddings/position_embeddings/embeddings"


def load_toy(folder, kind, name):
    head, outputs = KINDS[kind]
    model = load_bert(str(folder), outputs, seed=1, head=head, name=name)
    kernel = model.all_weights["classifier/kernel"]
    kernel.assign(np.random.default_rng(3).normal(size=kernel.shape))
    return model


@pytest.fixture(scope="module", params=KINDS)
def case(request, toy_bert):
    """Kind, model, split, and {path: (examples, ...) float64, the gradient of each example's loss}."""
    kind = request.param
    model, split = load_toy(toy_bert, kind, f"mine_{kind}"), toy_split(kind, 9, words=USED)
    library = getattr(transformers, type(model).__name__)(model.config, name=f"library_{kind}")
    library.build_in_name_scope()
    library.set_weights(model.get_weights())
    names = {id(variable): path for path, variable in model.all_weights.items()}
    paths = [names[id(variable)] for variable in model.trainable_variables]
    found = {path: [] for path in paths}
    for index in range(len(split)):
        batch = assemble(split, np.array([index]), int(split.lengths[index]))
        labels = batch.pop("labels")
        with tf.GradientTape() as tape:
            logits = library({name: tf.constant(array) for name, array in batch.items()}, training=False).logits
            if kind == "regression":
                loss = 0.5 * (labels[0] - logits[0, 0]) ** 2
            elif kind == "classification":
                loss = -tf.math.log(tf.nn.softmax(logits[0])[labels[0]])
            else:
                logs = tf.math.log(tf.nn.softmax(logits[0]))
                loss = -tf.add_n([logs[place, label] for place, label in enumerate(labels[0]) if label != IGNORED])
        for path, gradient in zip(paths, tape.gradient(loss, library.trainable_variables), strict=True):
            found[path].append(tf.convert_to_tensor(gradient).numpy().astype(np.float64))
    return kind, model, split, {path: np.stack(values) for path, values in found.items()}


def assert_close(found, expected, rtol=2e-4):
    assert list(found) == list(expected)
    for path, values in found.items():
        assert values.dtype == np.float32
        # A key's bias moves no softmax, so its gradient is rounding alone.
        scale = 1e-5 * np.abs(expected[path]).max() + (1e-6 if path.endswith("key/bias") else 0)
        np.testing.assert_allclose(values, expected[path], rtol=rtol, atol=scale, err_msg=path)


@pytest.mark.parametrize("tokens", [1, 48, 4096])
def test_mean_gradient_of_every_weight(case, tokens):
    kind, model, split, each = case
    paths = [weight.path for weight in weights_of(model)]
    found = mean_gradient(model, kind, split, np.arange(len(split)), paths, tokens_per_batch=tokens)
    assert_close(found, {path: each[path].mean(axis=0) for path in paths})


def test_squared_gradient_of_every_weight(case):
    kind, model, split, each = case
    paths = [weight.path for weight in weights_of(model)]
    indices = np.array([1, 2, 5, 8])
    found = squared_gradient(model, kind, split, indices, paths)
    assert_close(found, {path: np.square(each[path][indices]).mean(axis=0) for path in paths}, rtol=1e-3)
    # Squares of a mean are something else.
    assert (found[WORDS] > 1.5 * np.square(each[WORDS][indices].mean(axis=0))).any()


def test_what_no_text_reads_is_exactly_0(case):
    kind, model, split, _ = case
    everything = np.arange(len(split))
    for found in (
        mean_gradient(model, kind, split, everything, [WORDS, POSITIONS, TYPES]),
        squared_gradient(model, kind, split, everything, [WORDS, POSITIONS, TYPES]),
    ):
        moved = {path: np.flatnonzero(values.any(axis=1)).tolist() for path, values in found.items()}
        assert moved == {
            WORDS: sorted(set(split.ids.tolist())), POSITIONS: list(range(int(split.lengths.max()))), TYPES: [0, 1],
        }  # fmt: skip


def test_same_request_gives_the_same_bits_and_a_kept_step_too(case):
    kind, model, split, _ = case
    paths = [WORDS, "bert/encoder/layer_._1/output/dense/kernel", "classifier/bias"]
    for make, measure in ((make_mean_step, mean_gradient), (make_squared_step, squared_gradient)):
        step = make(model, kind, paths)
        first = measure(model, kind, split, np.arange(6), paths, step=step)
        between = measure(model, kind, split, np.arange(2, 9), paths, step=step)
        again = [measure(model, kind, split, np.arange(6), paths, step=own) for own in (step, None)]
        for path in paths:
            assert first[path].tobytes() == again[0][path].tobytes() == again[1][path].tobytes()
            assert (first[path] != between[path]).any()


def test_sums_take_no_memory_between_calls(case):
    kind, model, split, _ = case
    step = make_mean_step(model, kind, [WORDS, "classifier/kernel"])
    mean_gradient(model, kind, split, np.arange(3), [], step=step)
    assert [total.numpy().size for total in step._totals.values()] == [0, 0]
    assert not step._rows


def test_layernorms_alone_are_the_fisher_runs_own(case):
    kind, model, split, _ = case
    paths = [weight.path for weight in weights_of(model) if weight.part == "gamma"]
    found = squared_gradient(model, kind, split, np.arange(7), paths)
    expected = layernorm_fisher(model, kind, split, np.arange(7))
    assert list(found) == paths
    for path in paths:
        np.testing.assert_array_equal(found[path], expected[path])


def test_weights_stay_and_dropout_is_off(case):
    kind, model, split, _ = case
    before = model.get_weights()
    squared_gradient(model, kind, split, np.arange(3), [WORDS, "classifier/bias"])
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(variable.trainable for variable in model.trainable_variables)


def test_nothing_below_the_variables_is_differentiated(toy_bert):
    model = load_toy(toy_bert, "classification", "shallow")
    for make in (make_mean_step, make_squared_step):
        counts = [
            len(make(model, "classification", [path])._step.graph.get_operations())
            for path in ("classifier/bias", "bert/encoder/layer_._0/attention/self/query/bias", WORDS)
        ]
        assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("kind", KINDS)
def test_two_replicas_give_what_one_device_gives(toy_bert, kind):
    split = toy_split(kind, 9, words=USED)
    found = []
    for devices in (["CPU:0"], ["CPU:1", "CPU:2"]):
        strategy = tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice())
        with strategy.scope():
            model = load_toy(toy_bert, kind, f"{kind}_on_{len(devices)}")
        paths = [weight.path for weight in weights_of(model)]
        indices = np.arange(len(split))
        found.append(
            (mean_gradient(model, kind, split, indices, paths), squared_gradient(model, kind, split, indices, paths))
        )
    for one, two in zip(*found, strict=True):
        for path, values in one.items():
            np.testing.assert_array_equal(values, two[path], err_msg=path)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_keeps_small_gradients(toy_bert, precision):
    """Losses of almost 0 have gradients of 1e-7, and squares of 1e-14, of which float16 has none."""
    split = toy_split("classification", 9, words=USED)
    split.labels[:] = 0
    models = []
    for each in ("float32", precision):
        with computing_in(each):
            models.append(load_toy(toy_bert, "classification", f"half_{each}_{precision}"))
        models[-1].all_weights["classifier/bias"].assign([15.0, 0.0, 0.0])
    paths = [weight.path for weight in weights_of(models[0]) if not weight.path.endswith("key/bias")]
    indices = np.arange(len(split))
    for measure in (mean_gradient, squared_gradient):
        expected, found = (measure(model, "classification", split, indices, paths) for model in models)
        for path in paths:
            assert found[path].dtype == np.float32
            assert 0 < np.abs(expected[path]).max() < 1e-4
            error = np.linalg.norm(found[path] - expected[path]) / np.linalg.norm(expected[path])
            assert error < (0.1 if precision == "bfloat16" else 0.02), path


def test_float16_gradients_that_overflow_are_taken_again(toy_bert, monkeypatch):
    with computing_in("float16"):
        model = load_toy(toy_bert, "classification", "overflowing")
    split, paths = toy_split("classification", 9, words=USED), [WORDS, "classifier/kernel", "bert/pooler/dense/kernel"]
    for measure in (mean_gradient, squared_gradient):
        found = []
        for scale in (2.0**10, 2.0**40):  # the second overflows at first, of each example
            monkeypatch.setattr(gradients, "_FLOAT16_SCALE", scale)
            found.append(measure(model, "classification", split, np.arange(5), paths))
        for path in paths:
            np.testing.assert_allclose(found[1][path], found[0][path], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_that_are_not_finite_are_an_error(toy_bert, precision):
    with computing_in(precision):
        model = load_toy(toy_bert, "classification", f"broken_{precision}")
    model.all_weights["classifier/bias"].assign([np.nan, 0, 0])
    for paths in ([WORDS], ["bert/embeddings/LayerNorm/gamma"]):
        for measure in (mean_gradient, squared_gradient):
            with pytest.raises(FloatingPointError, match="--precision=float32"):
                measure(model, "classification", toy_split("classification", 9, words=USED), np.arange(3), paths)


def test_a_signal_ends_it_between_two_batches(toy_bert):
    model, split = load_toy(toy_bert, "classification", "stopped"), toy_split("classification", 9, words=USED)
    step = make_squared_step(model, "classification", [WORDS])
    seen, add = [], step.add

    def add_and_count(batch):
        seen.append(batch)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGTERM)
        add(batch)

    step.add = add_and_count
    with signals.heeded(), signals.held(), pytest.raises(signals.Stop):
        squared_gradient(model, "classification", split, np.arange(9), [WORDS], step=step)
    assert len(seen) == 3
    assert not step._rows
