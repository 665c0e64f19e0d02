"""Loading: the numbers of transformers' own models, and clear words for what cannot be loaded."""

import json
import math
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
import transformers
from safetensors.numpy import load_file, save_file

import tfmt
from tfmt.bert.base_weights import BaseWeights, model_digest
from tfmt.bert.configs import ACTIVATIONS, demo_folder, find_model, read_config
from tfmt.bert.forward import run_block
from tfmt.bert.tokenizer import load_tokenizer
from tfmt.errors import RequestError

TEXTS = (["a warm , funny film", "dull", "the plot never quite comes together and the jokes fall flat"],
         ["i liked it", "so it was not good at all", "no"])  # fmt: skip


@pytest.fixture(scope="module")
def minilm():
    return tfmt.load_bert("demo", num_labels=2, seed=0)


@pytest.fixture(scope="module")
def batch():
    return dict(load_tokenizer(demo_folder())(*TEXTS, padding=True, return_tensors="np"))


@pytest.fixture(scope="module")
def theirs(minilm):
    model = transformers.TFBertForSequenceClassification.from_pretrained(demo_folder())
    model.classifier.kernel.assign(minilm.classifier.kernel)
    return model


def test_minilm_logits_are_those_of_transformers(minilm, theirs, batch):
    np.testing.assert_allclose(minilm(batch).logits, theirs(batch).logits, atol=1e-6)


def test_gradients_are_those_of_transformers(minilm, theirs, batch):
    def gradients(model):
        with tf.GradientTape() as tape:
            logits = model(batch, training=False).logits
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 0], logits))
        found = tape.gradient(loss, model.trainable_variables)
        return {
            v.name.split("/", 1)[1]: tf.convert_to_tensor(g)
            for v, g in zip(model.trainable_variables, found, strict=True)
        }

    ours, expected = gradients(minilm), gradients(theirs)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(tf.reduce_max(tf.abs(gradient))) + 1e-3  # keys have biases without effect
        np.testing.assert_allclose(ours[name], gradient, atol=2e-4 * scale, err_msg=name)


def test_first_position_alone_is_the_first_of_all_under_dropout_and_padding(minilm):
    generator = np.random.default_rng(0)
    drawn = tf.constant(generator.random((3, 12, 9, 9)) > 0.2)

    class Dropped:
        """Drops given attention weights, and nothing else."""

        def mask(self, shape, rate):
            return drawn[:, :, : shape[2]]

        def __call__(self, x, rate):
            return x

    layer, config = minilm.bert.encoder.layer[-1], minilm.config
    x = tf.constant(generator.normal(size=(3, 9, config.hidden_size)), tf.float32)
    padding = tf.constant(np.where(np.arange(9) < [[9], [4], [7]], 0, -1e4)[:, None, None], tf.float32)
    variables = [layer.attention.self_attention.key.kernel, layer.attention.self_attention.value.bias, x]
    found = []
    for first_only in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            first = run_block(layer, x, padding, config, Dropped(), first_only)[:, 0]
            target = tf.reduce_sum(first * tf.range(config.hidden_size, dtype=tf.float32))
        found.append([first, *tape.gradient(target, variables)])
    for whole, alone in zip(*found, strict=True):
        np.testing.assert_allclose(alone, whole, atol=1e-5 * float(tf.reduce_max(tf.abs(whole))))


def test_token_head_and_special_requests(toy_bert):
    model = tfmt.load_bert(str(toy_bert), num_labels=5, head="tokens", seed=1)
    theirs = transformers.TFBertForTokenClassification.from_pretrained(toy_bert, num_labels=5)
    theirs.classifier.kernel.assign(model.classifier.kernel)
    ids = np.random.default_rng(0).integers(5, 19, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    np.testing.assert_allclose(model(inputs).logits[mask == 1], theirs(inputs).logits[mask == 1], atol=1e-5)
    # What only the library computes comes from the library.
    states = model(inputs, output_hidden_states=True).hidden_states
    assert len(states) == 3
    np.testing.assert_allclose(states[2], theirs(inputs, output_hidden_states=True).hidden_states[2], atol=1e-5)


def test_padding_changes_no_logit(minilm):
    tokenizer = load_tokenizer(demo_folder())
    alone = [minilm(dict(tokenizer(*pair, return_tensors="np"))).logits[0] for pair in zip(*TEXTS, strict=True)]
    for length in (24, 64, 128):
        padded = dict(tokenizer(*TEXTS, padding="max_length", max_length=length, return_tensors="np"))
        np.testing.assert_allclose(minilm(padded).logits, alone, atol=1e-5)


def test_head_depends_on_the_seed_alone(toy_bert):
    first, again, other = (
        tfmt.load_bert(str(toy_bert), 3, seed=seed, name=f"m{i}") for i, seed in enumerate((4, 4, 5))
    )
    assert np.array_equal(first.classifier.kernel, again.classifier.kernel)
    assert not np.array_equal(first.classifier.kernel, other.classifier.kernel)
    big = tfmt.load_bert("demo", 200, seed=0).classifier.kernel.numpy()
    assert np.abs(big).max() <= 0.04 + 1e-7  # two standard deviations of 0.02
    assert big.std() == pytest.approx(0.02 * 0.8796, rel=0.02)  # of a normal cut at two standard deviations


def test_gamma_beta_and_prefixed_names_load(toy_bert, tmp_path):
    other = tmp_path / "old-names"
    shutil.copytree(toy_bert, other)
    tensors = load_file(other / "model.safetensors")
    renamed = {
        name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta"): v
        for name, v in tensors.items()
    }
    save_file(renamed, other / "model.safetensors")
    one, two = BaseWeights(toy_bert, "sentence"), BaseWeights(other, "sentence")
    assert one.paths == two.paths
    assert all(np.array_equal(one.read(path), two.read(path)) for path in one.paths)


def test_plain_fit_draws_the_dropout_of_its_seed(toy_bert):
    ids = np.random.default_rng(0).integers(5, 19, (32, 8))
    labels = np.arange(32) % 2

    def fitted(seed):
        model = tfmt.load_bert(str(toy_bert), seed=0)
        from tfmt.bert.models import set_seed

        set_seed(model, seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss)
        model.fit({"input_ids": ids}, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model.classifier.kernel.numpy()

    assert np.array_equal(fitted(1), fitted(1))
    assert not np.array_equal(fitted(1), fitted(2))


def test_dropout_keeps_the_rate_and_the_mean():
    from tfmt.bert.forward import Dropout

    drop = Dropout(tf.constant(3), tf.constant(7))
    dropped = drop(tf.ones([400, 500]), 0.1).numpy()
    assert (dropped == 0).mean() == pytest.approx(0.1, abs=0.005)  # one mask's rate is 25 or 26 in 256
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1) * np.float32(1 / 0.9)}
    second = drop(tf.ones([400, 500]), 0.1).numpy()
    assert (dropped != second).mean() == pytest.approx(2 * 0.1 * 0.9, abs=0.005)  # another place, another mask


def break_folder(folder, case):
    if case == "no config":
        (folder / "config.json").unlink()
    elif case == "no weights":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif case == "no vocabulary":
        (folder / "vocab.txt").unlink()
    elif case == "broken weights":
        (folder / "model.safetensors").write_bytes(b"nonsense")
    elif case == "pickle inside":
        (folder / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    elif case == "vocabulary differs":
        (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "extra\n")
    elif case == "missing weight":
        tensors = load_file(folder / "model.safetensors")
        tensors.pop("bert.encoder.layer.1.output.LayerNorm.bias")
        save_file(tensors, folder / "model.safetensors")
    else:
        config = json.loads((folder / "config.json").read_text())
        config |= {"not a BERT": {"model_type": "roberta"}, "remote code": {"auto_map": {"AutoModel": "x.Y"}},
                   "embedding sizes differ": {"vocab_size": 44}, "no size": {"hidden_size": None}}[case]  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no config", r"config\.json: missing"), ("no weights", "a pickle can run code"),
        ("no vocabulary", r"vocab\.txt"),
        ("broken weights", "not a readable safetensors"), ("pickle inside", "not a readable safetensors"),
        ("vocabulary differs", "20 entries"), ("missing weight", r"layer\.1\.output\.LayerNorm\.bias"),
        ("not a BERT", "roberta"), ("remote code", "auto_map"), ("embedding sizes differ", r"shape \[19, 16\]"),
        ("no size", "hidden_size"),
    ],
)  # fmt: skip
def test_broken_model_folders_are_named(toy_bert, tmp_path, case, message):
    folder = tmp_path / "model"
    shutil.copytree(toy_bert, folder)
    break_folder(folder, case)

    def load():
        BaseWeights(folder, "sentence")
        load_tokenizer(folder)

    with pytest.raises(RequestError, match=message) as error:
        load()
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(RequestError, match="no such folder"):
        find_model(str(tmp_path / "nowhere"), download=True)


def test_digest_follows_the_content_not_the_place(toy_bert, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(toy_bert, copy)
    assert model_digest(copy) == model_digest(toy_bert)
    config = read_config(copy)
    (copy / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0}))
    assert model_digest(copy) != model_digest(toy_bert)


def test_models_of_another_kind_are_refused():
    with pytest.raises(RequestError, match=r"tfmt\.load_bert"):
        tfmt.select(keras.Sequential([keras.layers.Dense(1)]), mode="frozen")


def numpy_activation(name, x):
    tanh_form = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    erf_form = 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    sigmoid = 1 / (1 + np.exp(-x))
    return {
        "gelu": erf_form, "gelu_python": erf_form, "gelu_10": np.clip(erf_form, -10, 10), "gelu_new": tanh_form,
        "gelu_pytorch_tanh": tanh_form, "gelu_fast": tanh_form, "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "relu": np.maximum(x, 0), "sigmoid": sigmoid, "silu": x * sigmoid, "swish": x * sigmoid, "tanh": np.tanh(x),
        "mish": x * np.tanh(np.log1p(np.exp(x))),
    }[name]  # fmt: skip


def numpy_logits(model, batch, activation):
    """A BERT's logits in float64, straight from its definition."""
    weights = {path: variable.numpy().astype(np.float64) for path, variable in model.all_weights.items()}
    config = model.config

    def dense(x, path):
        return x @ weights[f"{path}/kernel"] + weights[f"{path}/bias"]

    def normalise(x, path):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_eps)
        return x * weights[f"{path}/gamma"] + weights[f"{path}/beta"]

    def heads(x):
        return x.reshape(*x.shape[:2], config.num_attention_heads, -1).transpose(0, 2, 1, 3)

    ids, kinds = batch["input_ids"], batch["token_type_ids"]
    table = "bert/embeddings"
    x = weights[f"{table}/word_embeddings/weight"][ids]
    x = x + weights[f"{table}/token_type_embeddings/embeddings"][kinds]
    x = x + weights[f"{table}/position_embeddings/embeddings"][: ids.shape[1]]
    x = normalise(x, f"{table}/LayerNorm")
    for block in range(config.num_hidden_layers):
        here = f"bert/encoder/layer_._{block}"
        query, key, value = (heads(dense(x, f"{here}/attention/self/{name}")) for name in ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1])
        scores = scores + (batch["attention_mask"][:, None, None] - 1) * 10000.0
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        context = (shares / shares.sum(-1, keepdims=True)) @ value
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        x = normalise(dense(context, f"{here}/attention/output/dense") + x, f"{here}/attention/output/LayerNorm")
        middle = numpy_activation(activation, dense(x, f"{here}/intermediate/dense"))
        x = normalise(dense(middle, f"{here}/output/dense") + x, f"{here}/output/LayerNorm")
    return dense(np.tanh(dense(x[:, 0], "bert/pooler/dense")), "classifier")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("training", [False, True])
def test_every_activation_that_a_config_may_name(make_toy_bert, tmp_path, name, training):
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = make_toy_bert(tmp_path / "bert", hidden_act=name, return_dict=False, torchscript=True, **rates)
    model = tfmt.load_bert(str(folder), seed=3)
    generator = np.random.default_rng(0)
    batch = {"input_ids": generator.integers(5, 19, (3, 9)), "attention_mask": np.ones((3, 9), np.int64),
             "token_type_ids": np.zeros((3, 9), np.int64)}  # fmt: skip
    batch["attention_mask"][1, 6:] = 0
    ours = model({key: tf.constant(value) for key, value in batch.items()}, training=training).logits.numpy()
    np.testing.assert_allclose(ours, numpy_logits(model, batch, name), atol=1e-6)


@pytest.mark.parametrize("act", ["relu2", "glu", 3, None, ["gelu"]])
def test_unknown_activations_are_refused_before_anything_is_read(make_toy_bert, tmp_path, act):
    folder = make_toy_bert(tmp_path / "bert", hidden_act=act)
    with pytest.raises(RequestError, match=r"config\.json: hidden_act must be one of gelu, .* Received: "):
        read_config(folder)


@pytest.mark.parametrize(("saved", "loaded"), [("layernorm", ""), ("", "layernorm"), ("attention", "bitfit")])
def test_hdf5_files_have_one_order_whatever_is_selected(toy_bert, tmp_path, saved, loaded):
    one, other = tfmt.load_bert(str(toy_bert), seed=0), tfmt.load_bert(str(toy_bert), seed=1)
    for model, mode in ((one, saved), (other, loaded)):
        if mode:
            tfmt.select(model, mode=mode)
    trained = [variable.name for variable in other.trainable_variables]
    for number, variable in enumerate(one.weights):
        variable.assign(tf.fill(variable.shape, float(number)))
    one.save_weights(str(tmp_path / "w.h5"))
    other.load_weights(str(tmp_path / "w.h5"))
    for path, variable in one.all_weights.items():
        np.testing.assert_array_equal(other.all_weights[path], variable, err_msg=path)
    assert [variable.name for variable in other.trainable_variables] == trained
