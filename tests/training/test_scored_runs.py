"""Runs whose selection is an expression: scores against loops of their own, ids, what is shared and what is kept."""

import json
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from tfmt.bert.models import load_bert, weights_of
from tfmt.errors import RequestError, RunError
from tfmt.runs import runner
from tfmt.runs.records import read_record
from tfmt.runs.runner import execute
from tfmt.selection.stored import read_given
from tfmt.spec import RunSpec
from tfmt.training import fine_tune, scoring
from tfmt.training.fisher import draw_examples

EXAMPLES = 12


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "custom", "select": "layernorm", "epochs": 1, "fisher_examples": EXAMPLES, "keep": "scores"}


@pytest.fixture
def train(bench):
    return lambda request: execute(request, bench, started=time.perf_counter(), quiet=True)


def selected(request):
    """{path: indices or None} as the run's folder says, read as another run would."""
    weights = request.plan.table.weights
    return read_given("run", str(request.folder), weights, request.digests["model"])


@pytest.fixture(scope="module")
def gradients(toy_bert, bench, settings):
    """Each example's gradient of each variable but the head's, example by example, with the head of seed 0."""
    model = load_bert(str(toy_bert), 2, seed=0, name="alone")
    split = bench.splits["train"]
    drawn = draw_examples(len(split), EXAMPLES, 0)
    paths = [weight.path for weight in weights_of(model) if weight.sublayer != "classifier"]
    variables = [model.all_weights[path] for path in paths]
    found = {path: [] for path in paths}
    for index in drawn:
        first, last = split.offsets[index], split.offsets[index + 1]
        ids = split.ids[first:last][None]
        kinds = (np.arange(last - first) >= split.first_lengths[index]).astype(np.int32)[None]
        with tf.GradientTape() as tape:
            logits = model({"input_ids": tf.constant(ids), "attention_mask": tf.ones_like(ids),
                            "token_type_ids": tf.constant(kinds)}, training=False).logits  # fmt: skip
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(split.labels[index : index + 1], logits)
        for path, gradient in zip(paths, tape.gradient(loss, variables), strict=True):
            found[path].append(tf.convert_to_tensor(gradient).numpy().astype(np.float64))
    values = {path: variable.numpy() for path, variable in zip(paths, variables, strict=True)}
    return {path: np.stack(each) for path, each in found.items()}, values


def expected_scores(name, gradients, values):
    mean = {path: each.mean(axis=0) for path, each in gradients.items()}
    if name == "fisher":
        return {path: np.square(each).mean(axis=0) for path, each in gradients.items()}
    if name == "gradient":
        return {path: np.abs(each) for path, each in mean.items()}
    return {path: np.abs(values[path] * each) for path, each in mean.items()}


@pytest.mark.parametrize("score", ["fisher", "gradient", "sensitivity"])
def test_scores_are_those_of_a_loop_over_examples(prepared, train, gradients, score):
    request = prepared("runs", select=f"all:{score}(200)")
    record = train(request)
    found = expected_scores(score, *gradients)
    flat = np.concatenate([found[weight.path].ravel() for weight in request.plan.table.weights])
    chosen = selected(request)
    inside = np.concatenate(
        [np.isin(np.arange(w.size), chosen.get(w.path, [])) for w in request.plan.table.weights]
    )  # fmt: skip
    assert inside.sum() == 200 == record.parameters.tuned
    # Which of two scores is higher is not asked of those that rounding may turn.
    assert flat[inside].min() >= flat[~inside].max() * (1 - 1e-4)
    assert record.proof.frozen_changed == 0
    assert record.selection.cost.examples == EXAMPLES
    assert record.selection.cost.backward_passes == (EXAMPLES if score == "fisher" else 1)
    assert record.selection.normal_form == f"(all):{score}(200, head='random', highest)"


def test_whole_blocks_by_relative_gradient_norm(prepared, train, gradients):
    request = prepared("runs", select="blocks.kernel:rgn(1, whole=block)")
    record = train(request)
    each, values = gradients
    sums = np.zeros((request.plan.table.blocks, 2))
    for weight in request.plan.table.weights:
        if weight.block is not None and weight.part == "kernel":
            ratio = np.linalg.norm(each[weight.path].mean(axis=0)) / np.linalg.norm(values[weight.path])
            sums[weight.block] += ratio * weight.size, weight.size
    chosen = selected(request)
    assert all(part is None for part in chosen.values())
    assert {request.plan.table.by_path[path].block for path in chosen} == {np.argmax(sums[:, 0] / sums[:, 1])}
    assert record.parameters.tuned == sums[0, 1]


def test_change_is_a_full_fine_tuning_that_all_share(prepared, train, bench, tmp_path):
    first = prepared("runs", select="all:change(50, rate=1e-3, epochs=2)")
    record = train(first)
    ((_, full),) = first.full_runs.items()
    made = read_record(full.folder)
    assert (made.spec.mode, made.spec.learning_rate, made.spec.epochs, made.spec.keep) == ("full", 1e-3, 2, "tuned")
    assert record.selection.cost.full_run == full.run_id

    by_hand = prepared("by hand", mode="full", select="", learning_rate=1e-3, epochs=2, keep="tuned")
    train(by_hand)
    assert by_hand.run_id == full.run_id
    tuned = load_file(by_hand.folder / "tuned.safetensors")
    distances = []
    for weight in first.plan.table.weights:
        value = tuned[weight.torch_name]
        base = bench.base.read(weight.path)
        distances.append(np.abs((value.T if weight.transposed else value) - base).ravel())
    order = np.argsort(-np.concatenate(distances), kind="stable")[:50]
    starts = np.cumsum([0, *(w.size for w in first.plan.table.weights)])
    found = [starts[i] + selected(first).get(w.path, np.zeros(0, int)) for i, w in enumerate(first.plan.table.weights)]
    assert sorted(np.concatenate(found)) == sorted(order)

    before = (full.folder / "record.json").stat().st_mtime_ns
    train(prepared("runs", select="layernorm:change(5, rate=1e-3, epochs=2, lowest)"))
    assert (full.folder / "record.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_after_the_full_run_all_starts_anew(prepared, train, checkpoint):
    request = prepared("change", select=f"all:change(50, epochs=2, rate=1e-3, checkpoint={checkpoint})", keep="tuned")
    record = train(request)
    assert read_record(next(iter(request.full_runs.values())).folder).spec.keep_epoch == checkpoint
    # The same weights from a file, in a folder where there was no full run, give the same bits.
    alone = prepared("alone", select=f'mask("{request.folder}/selection.safetensors")', keep="tuned")
    other = train(alone)
    assert alone.run_id != request.run_id
    for one, two in zip(record.result.epochs, other.result.epochs, strict=True):
        assert (one.train_loss, one.metrics) == (two.train_loss, two.metrics)
    stored = [load_file(each.folder / "tuned.safetensors") for each in (request, alone)]
    assert stored[0].keys() == stored[1].keys()
    assert all(np.array_equal(stored[0][name], stored[1][name]) for name in stored[0])


def test_fisher_information_with_a_trained_head_is_that_of_the_mode(prepared, train):
    mode = prepared("mode", mode="fisher", select="", mask_fraction=0.05)
    own = prepared("own", select="feedforward_layernorm:fisher(5%, head=trained)")
    train(mode)
    train(own)
    expected, found = selected(mode), selected(own)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(expected[path], found[path]) for path in expected)


def test_a_full_fine_tuning_that_diverges_is_the_run_s_failure(prepared, train):
    request = prepared("runs", select="all:change(50, rate=2e-3, epochs=1)")
    ((_, full),) = request.full_runs.items()
    diverged = train(full).model_copy(update={"status": "diverged", "error": "the loss was nan"})
    (full.folder / "record.json").write_text(diverged.to_json())
    with pytest.raises(RunError, match="the full fine-tuning that it compares with diverged"):
        train(request)
    assert read_record(request.folder).status == "failed"


def test_scores_are_measured_once_for_all_runs_that_share_them(prepared, train, same, monkeypatch):
    alone = prepared("alone", select="all:gradient(1%)", learning_rate=3e-3)
    expected = train(alone)
    train(prepared("runs", select="all:sensitivity(1%)"))  # of the same gradient
    monkeypatch.setattr(scoring, "mean_gradient", None)
    shared = prepared("runs", select="all:gradient(1%)", learning_rate=3e-3)
    assert shared.run_id == alone.run_id
    assert same(shared, train(shared)) == same(alone, expected)
    for select, changes in [
        ("all:gradient(1%)", {"seed": 1}), ("all:gradient(1%)", {"fisher_examples": 3}),
        ("all:gradient(1%, head=trained)", {}), ("blocks:gradient(1%)", {}), ("all:fisher(1%)", {}),
    ]:  # fmt: skip  # of their own gradients
        monkeypatch.setattr(scoring, "squared_gradient", None)
        with pytest.raises(runner.UnexpectedError, match="not callable"):
            train(prepared("runs", select=select, **changes))


def test_what_gradients_depend_on_is_in_their_key(small):
    def key(**changes):
        spec = RunSpec.make(**small | {"mode": "custom", "select": "all:gradient(1%)"} | changes)
        head = changes.pop("head", "trained")
        return scoring._key(spec, "gradient", head, ("a", "b"), np.arange(12))

    for changes in ({"max_length": 16}, {"train_limit": 40}, {"precision": "bfloat16"}, {"seed": 1}, {"batch_size": 8},
                    {"schedule": "constant"}, {"task": "rte"}):  # fmt: skip
        assert key(**changes) != key()
    for changes in ({"learning_rate": 0.5}, {"epochs": 1}, {"keep": "scores"}, {"optimizer": "sgd"},
                    {"validation_limit": 7}):  # fmt: skip
        assert key(**changes) == key()


@pytest.mark.parametrize("writes", [1, 2, 4])
def test_killed_and_resumed_is_identical(prepared, train, bench, same, die_before_write, monkeypatch, writes):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    select = "all:fisher(1%) + shuffled(layernorm:far(3, per=module)) - embeddings"
    whole, broken = (prepared(name, select=select, epochs=2, keep="tuned") for name in ("whole", "broken"))
    expected = train(whole)
    die_before_write(broken, bench, writes)
    assert same(broken, train(broken)) == same(whole, expected)
    told = read_record(whole.folder).selection
    assert told.expression == select
    assert read_record(broken.folder).selection.model_copy(update={"cost": told.cost}) == told


def test_a_run_goes_on_with_the_weights_that_it_chose(
    prepared, train, bench, same, die_before_write, monkeypatch, tmp_path
):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    whole, broken = (prepared(name, select="all:gradient(1%)", epochs=2, keep="tuned") for name in ("whole", "broken"))
    expected = train(whole)
    die_before_write(broken, bench, 3)
    shutil.rmtree(tmp_path / "broken" / "scores")
    monkeypatch.setattr(scoring, "mean_gradient", None)  # nothing is measured again
    record = train(broken)
    assert same(broken, record) == same(whole, expected)
    assert record.selection.cost.backward_passes == expected.selection.cost.backward_passes
    monkeypatch.undo()

    damaged = prepared("damaged", select="all:gradient(1%)", epochs=2, keep="tuned")
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    die_before_write(damaged, bench, 3)
    path = damaged.folder / "selection.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="selection.safetensors"):
        record = train(damaged)
    assert same(damaged, record) == same(whole, expected)
    assert any("selection.safetensors" in told for told in record.warnings)


def test_two_spellings_are_one_run(prepared):
    def same_id(first, second, **changes):
        return prepared("runs", select=first, **changes).run_id == prepared("runs", select=second, **changes).run_id

    assert same_id("attention.query + attention.key@0 + attention.key@last", "x = attention.key+attention.query")
    assert same_id("all:magnitude(budget)", "all:magnitude(10)", budget="10")
    assert same_id("all:random(5) + layernorm:far(3)", "layernorm:far(3) + all:random(5)")
    assert same_id("all:fisher(5)", "all:fisher(5, head=random)")
    # What is not measured needs no examples, nor a full run; and no rate depends on the spelling.
    assert same_id("layernorm + layernorm:fisher(5)", "layernorm")
    assert same_id("attention - attention.bias", "attention.kernel", learning_rate=None)
    few, many = (prepared("runs", select="all:fisher(5)", fisher_examples=examples) for examples in (3, 4))
    assert few.run_id != many.run_id
    assert not prepared("runs", select="layernorm + layernorm:change(5)").full_runs
    assert not same_id("all:fisher(5)", "all:fisher(5, head=trained)")
    assert not same_id("all:fisher(5)", "all:fisher(5, lowest)")
    assert not same_id("all:change(5)", "all:change(5, rate=1e-4)")
    assert not same_id("all:random(5)", "all:random(6)")


def test_runs_and_files_give_their_selection(prepared, train, bench, tmp_path):
    source = prepared("runs", select="all:random(30) + attention.query.bias")
    train(source)
    again = prepared("runs", select=f'run("{source.folder}")')
    record = train(again)
    taken, given = selected(again), selected(source)
    assert taken.keys() == given.keys()
    assert all(np.array_equal(taken[path], given[path]) for path in given)
    assert record.parameters.tuned == 30 + 2 * 16 - sum(
        np.sum(part is not None and path.endswith("query/bias")) for path, part in given.items()
    )
    bench.set_up(again.spec, 4, again.plan)
    bench.selection.save(tmp_path / "mask.safetensors")
    from_file = prepared("runs", select=f'mask("{tmp_path / "mask.safetensors"}")')
    assert from_file.run_id == again.run_id
    less = prepared("runs", select=f'run("{source.folder}") - attention')
    assert len(less.plan.step.support) < record.parameters.tuned
    with pytest.raises(RequestError, match=r"no folder of a run(.|\n)*\^"):
        prepared("runs", select=f'run("{tmp_path / "nothing"}")')
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(RequestError, match=r"broken(.|\n)*\^"):
        prepared("runs", select=f'mask("{tmp_path / "broken"}")')


def test_what_takes_nothing_away_is_told(prepared, train):
    source = prepared("runs", select="layernorm@0")
    train(source)
    request = prepared("runs", select=f'attention.query.bias:random(3) - run("{source.folder}")')
    with pytest.warns(UserWarning, match="select") as warned:
        record = train(request)
    for told in ([str(each.message) for each in warned], record.warnings):
        assert any("changes nothing" in line or "took nothing away" in line for line in told)


def test_what_can_move_is_told(prepared, train, bench):
    record = train(prepared("runs", select="embeddings.word"))
    occurring = len(np.unique(bench.splits["train"].ids))
    assert record.selection.movable == occurring * 16
    assert record.parameters.tuned > record.selection.movable
    moved = record.proof.selected_changed - record.parameters.head
    assert moved <= record.selection.movable


def test_every_run_keeps_its_selection(prepared, train):
    for mode, more in (("layernorm", {}), ("random", {}), ("outliers", {"mask_size": 2})):
        request = prepared("runs", mode=mode, select="", **more)
        record = train(request)
        sizes = {w.path: w.size for w in request.plan.table.weights}
        counted = sum(sizes[path] if part is None else len(part) for path, part in selected(request).items())
        assert counted == record.parameters.tuned
        assert record.selection.expression == request.plan.expression
        stored = json.loads((request.folder / "record.json").read_text())
        assert "selection" in stored.get("record", stored)
