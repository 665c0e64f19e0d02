"""Fisher information against independent computations; runs that choose their mask by it; unions of masks."""

import dataclasses
import time

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import transformers
from labelled_split import KINDS, toy_split
from safetensors.numpy import load_file

import tfmt
from tfmt.bert.models import build_bert, load_bert, weights_of
from tfmt.data.batches import assemble
from tfmt.data.tokens import IGNORED
from tfmt.errors import RequestError
from tfmt.runs.records import read_record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.selection.stored import unite_masks
from tfmt.spec import RunSpec
from tfmt.study.dry_run import describe
from tfmt.training.fisher import component_fisher, draw_examples, layernorm_fisher


@pytest.fixture(scope="module", params=KINDS)
def case(request, toy_bert):
    """A model with its split, and every weight's Fisher information through Hugging Face's own forward pass."""
    head, outputs = KINDS[request.param]
    model = load_bert(str(toy_bert), outputs, seed=1, head=head, name=f"mine_{request.param}")
    kernel = model.all_weights["classifier/kernel"]
    kernel.assign(np.random.default_rng(3).normal(size=kernel.shape))
    split = toy_split(request.param, 7)
    library = getattr(transformers, type(model).__name__)(model.config, name=f"library_{request.param}")
    library.build_in_name_scope()
    library.set_weights(model.get_weights())
    expected = {}
    for index in range(len(split)):
        batch = assemble(split, np.array([index]), int(split.lengths[index]))
        labels = batch.pop("labels")
        with tf.GradientTape() as tape:
            logits = library({k: tf.constant(v) for k, v in batch.items()}, training=False).logits
            if request.param == "regression":
                log = -0.5 * (labels[0] - logits[0, 0]) ** 2
            elif request.param == "classification":
                log = tf.math.log(tf.nn.softmax(logits[0])[labels[0]])
            else:
                logs = tf.math.log(tf.nn.softmax(logits[0]))
                log = tf.add_n([logs[place, label] for place, label in enumerate(labels[0]) if label != IGNORED])
        gradients = tape.gradient(log, library.trainable_variables)
        for mine, gradient in zip(model.trainable_variables, gradients, strict=True):
            path = next(path for path, variable in model.all_weights.items() if variable is mine)
            squares = np.square(tf.convert_to_tensor(gradient).numpy().astype(np.float64))
            expected[path] = expected.get(path, 0) + squares / len(split)
    return request.param, model, split, expected


@pytest.mark.parametrize("tokens", [1, 48, 4096])
def test_layernorms_against_the_library_whatever_the_batch_size(case, tokens):
    kind, model, split, expected = case
    indices = np.arange(len(split))
    found = layernorm_fisher(model, kind, split, indices, tokens_per_batch=tokens)
    assert set(found) == {w.path for w in weights_of(model) if w.part in ("gamma", "beta")}
    for path, values in found.items():
        np.testing.assert_allclose(values, expected[path], rtol=2e-4, atol=1e-5 * expected[path].max(), err_msg=path)


def test_components_against_the_library(case):
    kind, model, split, expected = case
    frame = pd.DataFrame(component_fisher(model, kind, split, np.arange(len(split))))
    assert frame.columns.tolist() == ["component", "block", "total", "weights", "mean"]
    assert frame.weights.sum() == sum(weight.size for weight in weights_of(model))
    for weight, row in zip(weights_of(model), frame.itertuples(), strict=True):
        assert (row.component, row.block) == (weight.component, "-" if weight.block is None else str(weight.block))
        # A key's bias moves no softmax, so its gradient is rounding alone.
        absolute = 1e-9 if weight.component == "key.bias" else 0
        assert row.total == pytest.approx(expected[weight.path].sum(), rel=1e-3, abs=absolute), weight.path


def test_classifier_bias_by_hand(toy_bert):
    # With a head of zeros all classes are equally likely: the gradient of log p to the bias is 1[label] - 1/2.
    model = load_bert(str(toy_bert), 2, head="sentence", name="by_hand")
    model.all_weights["classifier/kernel"].assign(np.zeros((16, 2)))
    split = dataclasses.replace(toy_split("classification", 7), labels=np.array([0, 1, 1, 0, 1, 0, 0], np.int32))
    rows = {row.component: row for row in component_fisher(model, "classification", split, np.arange(7))}
    assert rows["classifier.bias"].total == pytest.approx(2 * 0.25)
    assert rows["classifier.bias"].mean == pytest.approx(0.25)
    assert rows["output.LayerNorm.gamma"].total == 0  # nothing reaches the encoder through such a head


def test_examples_are_drawn_by_seed_alone():
    first, again, other = (draw_examples(100, 30, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    assert len(set(first.tolist())) == 30
    assert draw_examples(20, 1024, 0).tolist() == list(range(20))


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(toy_bert, toy_glue):
    return {
        "model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "mode": "fisher", "max_length": 32,
        "epochs": 2, "learning_rate": 1e-2, "mask_fraction": 0.2, "fisher_examples": 24,
    }  # fmt: skip


@pytest.fixture(scope="module")
def bench(settings, tmp_path_factory):
    return make_bench(prepare(RunSpec.make(**settings), tmp_path_factory.mktemp("bench")))


def run(bench, settings, folder, **changes):
    request = prepare(RunSpec.make(**(settings | changes)), folder)
    return request, execute(request, bench, started=time.perf_counter(), quiet=True)


@pytest.fixture(scope="module")
def sources(bench, settings, tmp_path_factory):
    """Two fisher runs, one of which keeps scores alone."""
    folder = tmp_path_factory.mktemp("sources")
    return [run(bench, settings, folder, seed=seed, keep=keep)[0] for seed, keep in ((0, "tuned"), (1, "scores"))]


def test_run_stores_what_its_mask_came_from(bench, settings, sources, toy_bert):
    record = read_record(sources[0].folder)
    assert record.fisher.examples == 24
    assert (record.fisher.head_epochs, record.fisher.head_learning_rate) == (1, 5e-3)
    assert 0.3 < record.fisher.head_train_loss < 2
    assert record.fisher.totals.keys() == record.fisher.weights.keys()
    assert (
        sum(size * len(record.fisher.totals[name]) for name, size in record.fisher.weights.items())
        == record.parameters.total
    )
    assert record.parameters.tuned == int(np.ceil(0.2 * 64))
    assert record.proof.frozen_changed == 0
    stored = load_file(sources[0].folder / "fisher.safetensors")
    tuned = load_file(sources[0].folder / "tuned.safetensors")
    assert sum("LayerNorm" in name and not name.endswith(".indices") for name in stored) == 2 * 5
    # One example at a time gives the sums that batches of examples with LayerNorms of their own give.
    total = record.fisher.totals["output.LayerNorm.beta"]["1"]
    assert total == pytest.approx(stored["bert.encoder.layer.1.output.LayerNorm.bias"].sum(), rel=1e-4)
    other = read_record(sources[1].folder).fisher
    assert other.totals["output.LayerNorm.beta"]["1"] != total
    masked = {name for name in stored if name.endswith(".indices")}
    assert masked == {name for name in tuned if name.endswith(".indices")}
    chosen = [stored[name.removesuffix(".indices")][stored[name]] for name in masked]
    rest = [
        np.delete(stored[name], stored.get(f"{name}.indices", []))
        for name in stored if ".output.LayerNorm" in name and "attention" not in name and not name.endswith(".indices")
    ]  # fmt: skip
    assert np.concatenate(chosen).min() >= np.concatenate(rest).max()
    for name in masked:
        np.testing.assert_array_equal(stored[name], tuned[name])
    # The run starts with the head's initial values, not with those that the Fisher information was estimated with.
    bench.set_up(RunSpec.make(**settings | {"mode": "layernorm"}), 6)
    fresh = load_bert(str(toy_bert), 2, seed=0, name="fresh").all_weights["classifier/kernel"].numpy()
    np.testing.assert_array_equal(bench.base_value("classifier/kernel"), fresh)
    # The same selection in Python, from the run's folder.
    model = load_bert(str(toy_bert), 2, name="selected")
    selection = tfmt.select(model, mode="fisher", mask_fraction=0.2, fisher=sources[0].folder)
    names = {weight.path: weight.torch_name for weight in selection.weights}
    assert {f"{names[path]}.indices" for path in selection.masks} == masked


def test_union_of_masks(bench, settings, sources, tmp_path):
    folders = tuple(str(source.folder) for source in sources)
    changes = {"fisher_from": folders, "mask_fraction": None}
    request, record = run(bench, settings, tmp_path / "a", **changes)
    masks = [load_file(source.folder / "fisher.safetensors") for source in sources]
    names = {name for mask in masks for name in mask if name.endswith(".indices")}
    expected = {name: set().union(*(mask[name].tolist() for mask in masks if name in mask)) for name in names}
    tuned = load_file(request.folder / "tuned.safetensors")
    assert {name: set(tuned[name].tolist()) for name in tuned if name.endswith(".indices")} == expected
    assert record.parameters.tuned == sum(map(len, expected.values())) > 13
    assert record.proof.frozen_changed == 0
    assert record.fisher is None
    text = describe(request.spec, str(tmp_path / "a"))
    assert f"tuned     {record.parameters.tuned} weights" in text
    assert str(request.folder) in text
    # The id follows the masks, not where they lie.
    moved = tmp_path / "moved"
    sources[0].folder.rename(moved)
    try:
        again = prepare(RunSpec.make(**settings | changes | {"fisher_from": (folders[1], str(moved))}), tmp_path)
        assert again.run_id == request.run_id
        alone = prepare(RunSpec.make(**settings | changes | {"fisher_from": (str(moved),)}), tmp_path)
        assert alone.run_id != request.run_id
    finally:
        moved.rename(sources[0].folder)


def test_union_errors_name_the_folder_and_the_remedy(bench, settings, sources, tmp_path):
    spec = settings | {"mask_fraction": None}

    def fails(words, folder, **changes):
        with pytest.raises(RequestError, match=words) as error:
            prepare(RunSpec.make(**spec | {"fisher_from": (str(folder),)} | changes), tmp_path)
        assert "\n" not in str(error.value)
        assert str(folder) in str(error.value)

    fails("missing; give the folder of a run", tmp_path / "nowhere")
    fails("masks bert.encoder.layer.1.* outside .*--layers", sources[0].folder, layers="0")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "fisher.safetensors").write_bytes(b"nothing")
    fails("broken .*run it again", broken)
    whole, _ = run(bench, settings, tmp_path, mode="layernorm", mask_fraction=None)
    fails("holds no masks of single weights", whole.folder)
    candidates = prepare(RunSpec.make(**settings), tmp_path).task and [
        weight for weight in weights_of(bench.model) if weight.sublayer == "feedforward_layernorm"
    ]
    with pytest.raises(RequestError, match="another base model"):
        unite_masks([sources[0].folder], candidates, "0" * 64)
    model = build_bert(transformers.BertConfig(**bench.model.config.to_dict()), name="other")
    with pytest.raises(RequestError, match="missing; only a run with --mode=fisher"):
        tfmt.select(model, mode="fisher", mask_fraction=0.1, fisher=whole.folder)
