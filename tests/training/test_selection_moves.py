"""After three steps at a huge rate nothing outside a selection has moved, and inside it all that had a gradient has."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfmt
from tfmt.training.devices import make_devices

OPTIONS = {
    "full": {}, "frozen": {}, "attention": {}, "feedforward": {}, "layernorm": {}, "layernorm_attention": {},
    "layernorm_feedforward": {}, "bitfit": {}, "random": {}, "outliers": {"mask_size": 3},
    "outliers_control": {"mask_size": 3}, "fisher": {"mask_fraction": 0.3}, "fisher_control": {"mask_fraction": 0.3},
}  # fmt: skip


@pytest.fixture(scope="module")
def text():
    generator = np.random.default_rng(0)
    return {"input_ids": generator.integers(5, 19, (24, 10)).astype(np.int32)}, np.arange(24) % 2


@pytest.mark.parametrize(("mode", "layers", "scope"), [
    *((mode, "all", False) for mode in OPTIONS), ("full", "1", False), ("layernorm", "0", True), ("bitfit", "1", False),
    ("random", "0", True), ("attention", "1", True), ("outliers", "all", True),
])  # fmt: skip
def test_exactly_the_selection_moves(toy_bert, text, mode, layers, scope):
    strategy = make_devices(1).strategy if scope else tf.distribute.get_strategy()
    with strategy.scope():
        model = tfmt.load_bert(str(toy_bert), seed=0)
        options = dict(OPTIONS[mode])
        if mode == "fisher":
            paths = [weight for weight in model.all_weights if "output/LayerNorm" in weight]
            options["fisher"] = {path: np.random.default_rng(1).random(16) for path in paths}
        selection = tfmt.select(model, mode=mode, layers=layers, seed=0, **options)
        optimizer = selection.optimizer(keras.optimizers.Adam(0.5))
        model.compile(optimizer=optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert {v.name for v in model.trainable_variables} == {model.all_weights[path].name for path in selection.paths}
    assert sum(len(selection.indices(path)) for path in selection.paths) == selection.tuned + selection.head
    before = {path: variable.numpy().copy() for path, variable in model.all_weights.items()}
    model.fit(*text, batch_size=8, epochs=1, verbose=0)
    for path, variable in model.all_weights.items():
        old, new = before[path].ravel().view(np.uint32), variable.numpy().ravel().view(np.uint32)
        changed = np.flatnonzero(old != new)
        chosen = selection.indices(path)
        assert np.isin(changed, chosen).all(), path
        # Words, positions and kinds that the text does not hold have no gradient, and a key's bias has none by nature.
        if "embeddings/" not in path.replace("embeddings/LayerNorm", "") and "key/bias" not in path:
            assert len(changed) == len(chosen), path


def test_selecting_again_replaces_the_selection(toy_bert):
    model = tfmt.load_bert(str(toy_bert))
    assert tfmt.select(model, mode="layernorm", layers="1").tuned == 64
    assert tfmt.select(model, mode="full").tuned == sum(
        int(tf.size(v)) for path, v in model.all_weights.items() if "classifier" not in path
    )
    assert len(model.trainable_variables) == len(model.weights)
    tfmt.select(model, mode="frozen")
    assert len(model.trainable_variables) == 2
    assert len(model.non_trainable_variables) == len(model.weights) - 2


def test_summary_and_percent(toy_bert):
    selection = tfmt.select(tfmt.load_bert(str(toy_bert)), mode="layernorm")
    assert selection.percent == pytest.approx(100 * 128 / 6112)
    lines = [line.split() for line in selection.summary().splitlines()]
    assert ["attention_layernorm", "64", "64"] in lines
    assert ["pooler", "272", "frozen"] in lines
    assert lines[-1][:3] == ["tuned", "128", "weights"]
    with pytest.raises(KeyError, match="nothing"):
        selection.indices("nothing")


def test_saved_model_loads_as_hugging_faces(toy_bert, tmp_path):
    import transformers

    model = tfmt.load_bert(str(toy_bert), num_labels=3, seed=2)
    tfmt.select(model, mode="layernorm")
    model.save_pretrained(tmp_path)
    again = transformers.TFBertForSequenceClassification.from_pretrained(tmp_path)
    inputs = {"input_ids": np.arange(5, 17).reshape(2, 6)}
    np.testing.assert_allclose(again(inputs).logits, model(inputs).logits, atol=1e-6)


def test_hugging_faces_own_model_can_be_selected(toy_bert, text):
    import transformers

    model = transformers.TFBertForSequenceClassification.from_pretrained(toy_bert)
    expected = model(text[0]).logits.numpy()
    selection = tfmt.select(model, mode="layernorm_feedforward")
    assert selection.tuned == 64
    np.testing.assert_allclose(model(text[0]).logits, expected, atol=1e-6)
    assert type(model).__name__ == "TFBertForSequenceClassification"
