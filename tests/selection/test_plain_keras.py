"""A model with a selection in plain Keras: what is refused, and that files are those of transformers' own TFBert."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import transformers

import tfmt
from tfmt.errors import RequestError
from tfmt.selection.gradient_mask import GradientMask

IDS = np.random.default_rng(0).integers(5, 19, (8, 6)).astype(np.int32)
INPUTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "token_type_ids": np.zeros_like(IDS)}
LABELS = np.arange(8) % 2


@pytest.fixture(scope="module")
def small_bert(make_toy_bert, tmp_path_factory):
    return str(make_toy_bert(tmp_path_factory.mktemp("small") / "bert", blocks=1))


@pytest.fixture
def model(small_bert):
    return tfmt.load_bert(small_bert, seed=0)


def compiled(model, optimizer):
    model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def fit(model, **settings):
    return model.fit(INPUTS, LABELS, batch_size=4, verbose=0, **settings)


def plain_bert(folder):
    plain = transformers.TFBertForSequenceClassification(transformers.BertConfig.from_pretrained(folder))
    plain.build_in_name_scope()
    return plain


def paths(model):
    return [variable.name.partition("/")[2] for variable in model.weights]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_forgotten_masks_are_refused_before_a_weight_moves(model):
    compiled(model, keras.optimizers.Adam(0.1))  # before the selection, which a plain optimizer fits
    selection = tfmt.select(model, mode="outliers", mask_size=3)
    before = model.get_weights()
    told = r"mode=outliers.*selection\.optimizer\(\.\.\.\).*Adam"
    with pytest.raises(RequestError, match=told):
        fit(model)
    with pytest.raises(RequestError, match=told):
        model.train_on_batch(INPUTS, LABELS)
    for step in (model.train_step, tf.function(model.train_step)):
        with pytest.raises(RequestError, match=told):
            step((INPUTS, LABELS))
    scaled = keras.mixed_precision.LossScaleOptimizer
    for optimizer in (keras.optimizers.Adam(), scaled(keras.optimizers.Adam())):
        with pytest.raises(RequestError, match=told):
            compiled(model, optimizer)
    compiled(model, "adam")  # for a model that is only evaluated
    model.evaluate(INPUTS, LABELS, verbose=0)
    with pytest.raises(RequestError, match=told):
        fit(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        assert old.tobytes() == new.tobytes()
    # By value, also inside a LossScaleOptimizer.
    compiled(model, scaled(GradientMask(keras.optimizers.Adam(0.1), selection.masks)))
    fit(model)


def test_a_second_selection_after_fit_asks_for_its_own_optimizer(model):
    few = {"mode": "outliers", "mask_size": 3}
    for first, later in [
        (few, [(few | {"mode": "outliers_control"}, "selects other weights"),
               ({"mode": "layernorm"}, "selects other weights")]),
        ({"mode": "layernorm"}, [(few, "selects single weights"), ({"mode": "attention"}, "no state for bert/enc")]),
    ]:  # fmt: skip
        compiled(model, tfmt.select(model, **first).optimizer(keras.optimizers.Adam()))
        fit(model)
        for settings, words in later:
            tfmt.select(model, **settings)
            with pytest.raises(RequestError, match=words):
                fit(model)


def flags(model):
    return {
        "query": model.bert.encoder.layer[0].attention.self_attention.query,
        "block": model.bert.encoder.layer[0], "bert": model.bert, "embeddings": model.bert.embeddings,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "layer", "flag", "words"),
    [
        ("attention", "query", False, r"^bert/encoder/layer_\._0/attention/self/query\.trainable was set to False"),
        ("attention", "block", False, r"^bert/encoder/layer_\._0\.trainable was set to False"),
        ("full", "embeddings", False, r"^bert/embeddings\.trainable was set to False"),
        ("layernorm", "query", True, r"^bert/encoder/layer_\._0/attention/self/query\.trainable was set to True"),
        ("layernorm", "embeddings", False, None), ("frozen", "bert", False, None),  # these train nothing else
    ],
)  # fmt: skip
def test_flags_that_are_changed_after_the_selection_are_refused(model, mode, layer, flag, words):
    selection = tfmt.select(model, mode=mode)
    compiled(model, selection.optimizer(keras.optimizers.Adam()))
    flags(model)[layer].trainable = flag
    for train in (lambda: compiled(model, keras.optimizers.Adam()), lambda: fit(model)):
        if words is None:
            train()
        else:
            with pytest.raises(RequestError, match=words + r".*tfmt\.select\(\.\.\.\) again"):
                train()
    tfmt.select(model, mode=mode)  # the remedy
    compiled(model, keras.optimizers.Adam())


def test_the_whole_model_can_be_switched_off_and_on(model):
    tfmt.select(model, mode="layernorm")
    selected = [variable.name for variable in model.trainable_weights]
    flags = [layer.trainable for layer in model._flatten_layers()]
    model.trainable = False
    compiled(model, keras.optimizers.Adam())
    assert model.trainable_weights == []
    model.trainable = True
    compiled(model, keras.optimizers.Adam())
    assert [variable.name for variable in model.trainable_weights] == selected
    assert [layer.trainable for layer in model._flatten_layers()] == flags


def test_a_selection_shows_itself(model):
    selection = tfmt.select(model, mode="outliers", mask_size=3)
    assert repr(selection) == "<tfmt.Selection outliers: 6 weights = 0.1543 % of the encoder, head 34>"
    shown = selection._repr_html_()
    assert shown.count("<tr>") == 1 + 1 + 4  # names, a block, what lies outside the blocks
    assert shown.count(">3 of 32</td>") == 2
    assert '34 of 34 weights" style="background: rgba(31, 119, 180, 0.9); color: white">34</td>' in shown


def test_loops_of_ones_own_draw_the_dropout_of_the_models_seed(model, small_bert):
    start = model.get_weights()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def trained(seed, inputs, traced=False):
        own = tfmt.load_bert(small_bert, seed=seed)
        own.set_weights(start)  # the head, too: what is left of the seed is dropout
        optimizer = tfmt.select(own, mode="layernorm").optimizer(keras.optimizers.SGD(0.1))

        def step():
            with tf.GradientTape() as tape:
                value = loss(LABELS, own(inputs, training=True).logits)
            variables = own.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))

        step = tf.function(step) if traced else step
        step(), step()
        return np.concatenate([variable.numpy().ravel() for variable in own.trainable_variables])

    first = trained(1, INPUTS)
    np.testing.assert_array_equal(trained(1, list(map(tf.constant, INPUTS.values()))), first)
    np.testing.assert_allclose(trained(1, INPUTS, traced=True), first, atol=1e-6)
    assert np.abs(trained(2, INPUTS) - first).max() > 1e-4


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["layernorm", "bitfit"])
def test_the_order_of_weights_is_that_of_plain_tfbert(model, small_bert, tmp_path, mode):
    plain = plain_bert(small_bert)
    tfmt.select(model, mode=mode)
    assert paths(model) == paths(plain)
    assert [value.shape for value in model.get_weights()] == [value.shape for value in plain.get_weights()]
    for source, target in ((model, plain), (plain, model), (model, tfmt.load_bert(small_bert, seed=3))):
        source.save_weights(tmp_path / "weights.h5")
        source_weights = source.get_weights()
        target.set_weights([np.zeros_like(value) for value in source_weights])
        target.load_weights(tmp_path / "weights.h5")
        assert all(map(np.array_equal, target.get_weights(), source_weights))


@pytest.mark.filterwarnings("ignore:`seed_generator` is deprecated")  # by transformers, of itself
def test_saved_models_are_hugging_faces(model, small_bert, tmp_path):
    compiled(model, tfmt.select(model, mode="outliers", mask_size=3).optimizer(keras.optimizers.Adam(0.1)))
    fit(model, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "checkpoint"))])  # the whole model
    plain = plain_bert(small_bert)
    plain.set_weights(model.get_weights())
    expected = plain(INPUTS).logits
    loaded = keras.models.load_model(tmp_path / "checkpoint")
    np.testing.assert_allclose(loaded(INPUTS)["logits"], expected, atol=1e-6)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(loaded(INPUTS, training=True)["logits"])
    assert all(gradient is not None for gradient in tape.gradient(total, loaded.trainable_variables))
    model.save(tmp_path / "model.keras")
    again = tfmt.load_bert(small_bert, seed=5)
    again.load_weights(tmp_path / "model.keras")
    np.testing.assert_allclose(again(INPUTS).logits, expected, atol=1e-5)
    fit(model)  # what was written does not change how the model goes on


@pytest.mark.filterwarnings("ignore:`seed_generator` is deprecated")  # by transformers, of itself
def test_save_pretrained_writes_a_saved_model(model, small_bert, tmp_path):
    tfmt.select(model, mode="layernorm")
    model.save_pretrained(tmp_path, saved_model=True)
    plain = plain_bert(small_bert)
    plain.set_weights(model.get_weights())
    signature = tf.saved_model.load(str(tmp_path / "saved_model" / "1")).signatures["serving_default"]
    found = signature(**{name: tf.constant(value) for name, value in INPUTS.items()})["logits"]
    np.testing.assert_allclose(found, plain(INPUTS).logits, atol=1e-6)
