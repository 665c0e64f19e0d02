"""Every optimizer that a run may ask for: what one step does to the selected weights, clipping, decay, whole runs."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfmt.data.batches import plan_epoch
from tfmt.runs.runner import execute, finished, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.tensors import read_tensors
from tfmt.training import fine_tune

RATE, DECAY = 1e-2, 0.5
KINDS = {
    "adam": lambda **more: keras.optimizers.Adam(RATE, epsilon=1e-6, **more),
    "adamw": lambda **more: keras.optimizers.AdamW(RATE, epsilon=1e-6, **more),
    "sgd": lambda **more: keras.optimizers.SGD(RATE, momentum=0.9, **more),
    "lion": lambda **more: keras.optimizers.Lion(RATE, **more),
    "adafactor": lambda **more: keras.optimizers.Adafactor(RATE, **more),
}
MASKED = {"mode": "outliers_control", "mask_size": 3}
every_kind = pytest.mark.parametrize("kind", KINDS)


def ask(kind, **more):
    """Settings of a run by an optimizer; adam has no decay."""
    decay = {} if kind == "adam" else {"weight_decay": DECAY}
    return {"optimizer": kind, "learning_rate": RATE, **decay, **more}


@pytest.fixture(scope="module")
def settings(small):
    return small | {"mode": "layernorm"}


@pytest.fixture(scope="module")
def still(make_toy_bert, toy_glue, tmp_path_factory):
    """Settings of a run without dropout and warm-up, so that gradients can be taken outside of it."""
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = make_toy_bert(tmp_path_factory.mktemp("still") / "bert", **dropout)
    return {"model": str(model), "data_dir": str(toy_glue), "task": "mrpc", "max_length": 32, "epochs": 1,
            "batch_size": 8, "warmup_ratio": 0.0, "schedule": "constant"}  # fmt: skip


@pytest.fixture(scope="module")
def benches(still, tmp_path_factory):
    made = {}

    def find(**devices):
        key = tuple(devices.items())
        if key not in made:
            spec = RunSpec.make(**still | devices, mode="frozen")
            made[key] = make_bench(prepare(spec, tmp_path_factory.mktemp("bench")))
        return made[key]

    return find


def first_batches(bench, spec, count):
    train = bench.splits["train"]
    plan = plan_epoch(train.lengths, spec.batch_size, spec.batching, spec.seed, 0, spec.max_length)
    return list(bench.training_batches(plan))[:count]


def gradients_of(bench, batch):
    """{path: dense gradient} of the mean loss over a batch, by the model's own forward pass; 0 where there is none."""
    weights = {path: getattr(variable, "_primary", variable) for path, variable in bench.model.all_weights.items()}
    with tf.GradientTape() as tape:
        logits = bench.model({name: value for name, value in batch.items() if name != "labels"}).logits
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(batch["labels"], logits)
    found = tape.gradient(loss, weights)
    return {path: np.zeros(weights[path].shape, np.float32) if gradient is None
            else tf.convert_to_tensor(gradient).numpy() for path, gradient in found.items()}  # fmt: skip


def take(values, indices):
    return values if indices is None else values.reshape(-1)[indices]


@pytest.mark.parametrize("more", [MASKED, {"mode": "layernorm"}, {"mode": "full"}], ids=["masked", "whole", "full"])
@every_kind
def test_steps_are_kerass_own_on_the_selected_weights_alone(still, benches, kind, more):
    bench = benches()
    spec = RunSpec.make(**still | ask(kind, clip_norm=0.05) | more)
    bench.set_up(spec, 6)
    selected = bench.selected()
    frozen = {path: variable.numpy() for path, variable in bench.model.all_weights.items()}
    alone = {path: tf.Variable(values) for path, values in bench.read_selected().items()}
    optimizer = KINDS[kind](**({} if kind == "adam" else {"weight_decay": DECAY}))
    for batch in first_batches(bench, spec, 3):
        gradients = {path: take(values, selected[path])
                     for path, values in gradients_of(bench, batch).items() if path in selected}  # fmt: skip
        norm = np.sqrt(sum(np.square(values, dtype=np.float64).sum() for values in gradients.values()))
        assert norm > 0.05
        optimizer.apply_gradients(
            [(tf.constant(gradients[path] * np.float32(0.05 / norm)), alone[path]) for path in alone]
        )
        bench.train_step(batch)
    for path, values in bench.read_selected().items():
        if kind == "sgd" or not path.endswith("key/bias"):  # whose gradient is rounding alone, which the others enlarge
            np.testing.assert_allclose(values, alone[path].numpy(), rtol=0, atol=2e-5, err_msg=path)
    for path, before in frozen.items():
        now = bench.model.all_weights[path].numpy()
        if path not in selected:
            assert now.tobytes() == before.tobytes(), path
        elif selected[path] is not None:
            kept = (np.delete(values.reshape(-1), selected[path]).tobytes() for values in (now, before))
            assert next(kept) == next(kept), path


@pytest.mark.parametrize("devices", [{}, {"replicas": 2}, {"precision": "float16"}],
                         ids=["one", "two replicas", "float16"])  # fmt: skip
@pytest.mark.parametrize("more", [MASKED, {"mode": "random"}, {"mode": "full"}], ids=["masked", "random", "full"])
def test_clipped_is_the_norm_over_all_that_trains(still, benches, devices, more):
    bench = benches(**devices)
    spec = RunSpec.make(**still | devices | {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": 0.05} | more)
    bench.set_up(spec, 6)
    before = bench.read_selected()
    bench.train_step(first_batches(bench, spec, 1)[0])
    # The first step of SGD is the rate times the gradient, whatever that is.
    moved = sum(np.square(values.astype(np.float64) - before[path]).sum()
                for path, values in bench.read_selected().items())  # fmt: skip
    assert np.sqrt(moved) == pytest.approx(0.05, rel=1e-4)


def test_a_norm_that_is_long_enough_changes_nothing(still, benches):
    bench, moved = benches(), []
    for clip in (0.0, 1e6):
        spec = RunSpec.make(**still | ask("sgd", clip_norm=clip) | MASKED)
        bench.set_up(spec, 6)
        bench.train_step(first_batches(bench, spec, 1)[0])
        moved.append(b"".join(values.tobytes() for values in bench.read_selected().values()))
    assert moved[0] == moved[1]


@pytest.mark.parametrize("more", [MASKED, {"mode": "full"}], ids=["masked", "full"])
@every_kind
def test_interrupted_and_resumed_is_identical(bench, prepared, monkeypatch, same, die_before_write, kind, more):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    asked = ask(kind, clip_norm=0.1) | more
    whole, broken = prepared("whole", **asked), prepared("broken", **asked)
    expected = execute(whole, bench, started=0.0, quiet=True)
    assert (expected.status, expected.proof.frozen_changed) == ("completed", 0)
    assert 0 < expected.proof.selected_changed <= expected.parameters.trainable
    die_before_write(broken, bench, 3)
    assert finished(broken) is None
    resumed = execute(broken, bench, started=0.0, quiet=True)
    assert resumed.cost.resumed == 1
    assert same(broken, resumed) == same(whole, expected)


def test_a_warm_bench_equals_a_fresh_one(bench, prepared, same):
    # After another mask of the same optimizer, and after another optimizer with the same mask.
    for kind, seed in (("adafactor", 1), ("lion", 2), ("adafactor", 2)):
        execute(prepared("warm", **ask(kind), **MASKED, seed=seed), bench, started=0.0, quiet=True)
    warm, fresh = (prepared(name, **ask("adafactor"), **MASKED, seed=2) for name in ("warm", "fresh"))
    expected = execute(fresh, make_bench(fresh), started=0.0, quiet=True)
    assert same(warm, finished(warm)) == same(fresh, expected)


@pytest.mark.parametrize(("kind", "slots"), [("adam", 2), ("adamw", 2), ("sgd", 1), ("lion", 1), ("adafactor", 1)])
def test_state_is_of_the_selected_weights_alone(bench, prepared, kind, slots):
    spec = prepared("runs", **ask(kind), **MASKED).spec
    bench.set_up(spec, 6)
    sizes = [int(np.prod(variable.shape)) for variable in bench.optimizer_variables]
    kernel = 16 * 2  # of the head: Adafactor's rows and columns lie beside it
    whole = 12 + kernel + 2
    assert sum(sizes) == 1 + slots * whole + (16 + 2 if kind == "adafactor" else 0)


def test_fisher_information_is_the_same_under_every_optimizer(bench, prepared):
    found = []
    for kind in ("adam", "sgd", "adafactor"):
        request = prepared("runs", **ask(kind, clip_norm=1e-3), mode="fisher", mask_fraction=0.2, fisher_examples=8)
        record = execute(request, bench, started=0.0, quiet=True)
        assert record.proof.frozen_changed == 0
        tensors = read_tensors(request.folder / "fisher.safetensors")[0]
        found.append((record.fisher, {name: tensor.tobytes() for name, tensor in tensors.items()}))
    assert found[0] == found[1] == found[2]
