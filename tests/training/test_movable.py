"""Which rows of the embedding tables can move, against the gradients of padded batches and against whole runs."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from tfmt.bert.models import computing_in, load_bert, weights_of
from tfmt.data.batches import plan_epoch, training_batches
from tfmt.data.tokens import IGNORED, TokenizedSplit
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training.movable import count_movable, movable_rows
from tfmt.training.step import loss_sum

KINDS = {"classification": ("sentence", 3), "regression": ("sentence", 1), "tokens": ("tokens", 4)}
WORDS = "bert/embeddings/word_embeddings/weight"
TYPES = "bert/embeddings/token_type_embeddings/embeddings"
POSITIONS = "bert/embeddings/position_embeddings/embeddings"
PADDING = 18  # an ordinary row, of random numbers


def toy_split(kind, *, pairs=True, seed=0):
    """Twelve texts of 3 to 14 tokens; in token tasks the longest sentence has no label, and a word of its own."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 12, 12)
    lengths[5] = 14
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = int(lengths.sum())
    ids = generator.integers(5, 14, tokens).astype(np.int32)
    if kind == "tokens":
        labels = np.where(generator.random(tokens) < 0.4, generator.integers(0, 4, tokens), IGNORED).astype(np.int32)
        labels[offsets[:-1]] = 1
        labels[offsets[5] : offsets[6]] = IGNORED
    elif kind == "regression":
        labels = generator.normal(size=12).astype(np.float32)
    else:
        labels = generator.integers(0, 3, 12).astype(np.int32)
    ids[offsets[5]] = 15
    return TokenizedSplit(
        ids=ids, offsets=offsets, first_lengths=(lengths - 2 if pairs else lengths).astype(np.int32), labels=labels,
        pad_id=PADDING, word_positions=np.zeros(0, np.int32) if kind == "tokens" else None,
    )  # fmt: skip


def measure_rows(model, kind, split, batching):
    """{path: which rows have a gradient other than 0 in some batch of an epoch}, and the tokens of padding."""
    variables = {path: model.all_weights[path] for path in (WORDS, POSITIONS, TYPES)}
    plan = plan_epoch(split.lengths, 4, batching, 0, 0, 24)
    found = {path: np.zeros(variable.shape[0], bool) for path, variable in variables.items()}
    for batch in training_batches(split, plan):
        labels = batch.pop("labels")
        with tf.GradientTape() as tape:
            logits = model({name: tf.constant(array) for name, array in batch.items()}, training=True).logits
            loss = loss_sum(kind, tf.constant(labels), tf.cast(logits, tf.float32))
        for path, gradient in tape.gradient(loss, variables).items():
            found[path] |= tf.convert_to_tensor(gradient).numpy().any(axis=1)
    return found, plan.padded_tokens - plan.real_tokens


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_with_a_gradient_however_batches_are_padded(toy_bert, kind, pairs, precision):
    head, outputs = KINDS[kind]
    with computing_in(precision):
        model = load_bert(str(toy_bert), outputs, head=head, name=f"{kind}_{pairs}_{precision}")
    split = toy_split(kind, pairs=pairs)
    rows = movable_rows(weights_of(model), split)
    assert np.flatnonzero(rows[TYPES]).tolist() == ([0, 1] if pairs else [0])
    assert rows[WORDS][15] == rows[POSITIONS][13] == (kind != "tokens")
    assert not rows[WORDS][PADDING]
    for batching in ("grouped", "random", "fixed"):
        found, padding = measure_rows(model, kind, split, batching)
        assert padding > 0
        assert list(found) == [WORDS, POSITIONS, TYPES]
        for path, moved in found.items():
            np.testing.assert_array_equal(moved, rows[path], err_msg=f"{path} {batching}")


def test_padding_that_is_also_a_word_can_move(toy_bert):
    model = load_bert(str(toy_bert), 3, name="padding_as_word")
    split = dataclasses.replace(toy_split("classification"), pad_id=15)
    assert movable_rows(weights_of(model), split)[WORDS][15]
    assert measure_rows(model, "classification", split, "fixed")[0][WORDS][15]


def test_no_labelled_word_at_all(toy_bert):
    model = load_bert(str(toy_bert), 4, head="tokens", name="no_labels")
    split = toy_split("tokens")
    split.labels[:] = IGNORED
    assert not any(rows.any() for rows in movable_rows(weights_of(model), split).values())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lion", "adafactor"])
def test_a_run_moves_exactly_what_can_move(toy_bert, toy_glue, tmp_path, optimizer):
    settings = {
        "model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "mode": "full", "max_length": 16,
        "epochs": 1, "batch_size": 8, "train_limit": 16, "learning_rate": 1e-2, "keep_epoch": "last",
        "optimizer": optimizer,
    }  # fmt: skip
    request = prepare(RunSpec.make(**settings), tmp_path)
    bench = make_bench(request)
    execute(request, bench, started=0.0, quiet=True)
    tuned = load_file(request.folder / "tuned.safetensors")
    weights = weights_of(bench.model)
    rows = movable_rows(weights, bench.splits["train"])
    assert not all(moving.all() for moving in rows.values())
    names = {weight.path: weight.torch_name for weight in weights}
    changed = 0
    for path, moving in rows.items():
        base, after = bench.base_value(path), tuned[names[path]]
        np.testing.assert_array_equal((base != after).any(axis=1), moving, err_msg=path)
        changed += (base != after).sum()
    tables = dict.fromkeys(rows)
    assert changed == pytest.approx(count_movable(tables, weights, rows), rel=0.01)


def test_count_by_hand(toy_bert):
    model = load_bert(str(toy_bert), 3, name="counted")
    weights = weights_of(model)
    rows = movable_rows(weights, toy_split("classification"))
    hidden, bias = 16, "bert/pooler/dense/bias"
    assert count_movable({WORDS: None}, weights, rows) == hidden * rows[WORDS].sum()
    assert count_movable({POSITIONS: None, bias: None}, weights, rows) == 14 * hidden + hidden
    # Row 15 moves and row 18 does not, nor do their neighbours 14 and 16.
    some = np.array([15 * hidden - 1, 15 * hidden, 16 * hidden - 1, 16 * hidden, 18 * hidden + 3])
    assert count_movable({WORDS: some, bias: np.array([0, 3])}, weights, rows) == 2 + 2
    assert count_movable({}, weights, rows) == 0
    everything = {weight.path: None for weight in weights}
    still = sum(int((~moving).sum()) * hidden for moving in rows.values())
    assert count_movable(everything, weights, rows) == sum(weight.size for weight in weights) - still
