"""Replicas, precisions, XLA and batchings change rounding and nothing else."""

import json
import mmap
import os
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from tfmt import quiet, sweep, train
from tfmt.errors import RequestError, RunError
from tfmt.runs.records import find_records, read_record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import devices as devices_room
from tfmt.training import fine_tune
from tfmt.training.devices import Devices, make_devices, peak_rss_mb


@pytest.fixture(scope="module")
def still(toy_bert, tmp_path_factory):
    """The toy BERT without dropout, whose draws depend on the shape of a batch and on the replica."""
    folder = tmp_path_factory.mktemp("still") / "bert"
    shutil.copytree(toy_bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def trained(still, toy_glue, tmp_path):
    def train(name, **changes):
        settings = {"model": str(still), "data_dir": str(toy_glue), "task": "mrpc", "mode": "layernorm",
                    "max_length": 32, "epochs": 1, "learning_rate": 1e-2, "keep_epoch": "last"} | changes  # fmt: skip
        request = prepare(RunSpec.make(**settings), tmp_path / name)
        record = execute(request, make_bench(request), started=0.0, quiet=True)
        assert record.proof.frozen_changed == 0
        return record, load_file(request.folder / "tuned.safetensors")

    return train


def assert_close(one, two, atol):
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, atol=atol, err_msg=name)


@pytest.mark.parametrize(("mode", "more"), [("layernorm", {}), ("random", {}), ("fisher", {"mask_fraction": 0.2})])
def test_two_replicas_compute_what_one_does(trained, mode, more):
    one, weights = trained("one", mode=mode, **more)
    two, others = trained("two", mode=mode, replicas=2, **more)
    assert one.run_id == two.run_id
    assert (one.cost.replicas, two.cost.replicas) == (1, 2)
    assert two.result.epochs[0].train_loss == pytest.approx(one.result.epochs[0].train_loss, abs=4e-5)
    assert two.result.examples == one.result.examples
    assert_close(weights, others, 4e-5)
    if mode == "fisher":
        assert one.fisher.totals.keys() == two.fisher.totals.keys()
        for component, sums in one.fisher.totals.items():
            assert two.fisher.totals[component] == pytest.approx(sums, rel=1e-3, abs=1e-9), component


def test_fixed_equals_random_up_to_rounding(trained):
    one, weights = trained("random", batching="random")
    two, others = trained("fixed", batching="fixed")
    assert one.cost.tokens == two.cost.tokens
    assert one.cost.padded_tokens < two.cost.padded_tokens == 3 * 16 * 32
    assert_close(weights, others, 4e-5)


def test_xla_compiles_the_same(trained):
    one, weights = trained("plain", mode="outliers", mask_size=3)
    two, others = trained("xla", mode="outliers", mask_size=3, jit_compile="on")
    assert (one.cost.jit_compile, two.cost.jit_compile) == (False, True)
    assert one.run_id == two.run_id
    assert_close(weights, others, 4e-5)


def test_xla_over_two_cpu_replicas_is_refused(trained):
    with pytest.raises(RequestError, match="--replicas=1"):
        trained("refused", jit_compile="on", replicas=2)


@pytest.mark.parametrize(("precision", "mode", "close"), [("bfloat16", "layernorm", 0.06), ("float16", "random", 0.02)])
def test_half_precision_trains_and_resumes(trained, still, toy_glue, tmp_path, monkeypatch, precision, mode, close):
    exact, _ = trained("exact", mode=mode, epochs=2)
    record, weights = trained("half", mode=mode, precision=precision, epochs=2)
    assert record.result.epochs[0].train_loss == pytest.approx(exact.result.epochs[0].train_loss, abs=close)
    assert all(values.dtype in (np.float32, np.int64) for values in weights.values())
    # Resumed after its first step, the loss scale included.
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    request = prepare(record.spec, tmp_path / "resumed")
    bench = make_bench(request)
    calls = iter(range(100))

    def before_write():
        if next(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(request, bench, started=0.0, quiet=True, before_write=before_write)
    resumed = execute(request, bench, started=0.0, quiet=True)
    assert resumed.cost.resumed == 1
    assert [epoch.train_loss for epoch in resumed.result.epochs] == [epoch.train_loss for epoch in record.result.epochs]
    again = load_file(request.folder / "tuned.safetensors")
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def off_by_a_half(bench, path, device):
    """Moves one weight of one device's copy of a variable."""
    part = bench.strategy.experimental_local_results(bench.model.all_weights[path])[device]
    value = part.numpy()
    value.reshape(-1)[0] += 0.5
    part.assign(value)


@pytest.mark.parametrize(("path", "told"), [
    ("bert/encoder/layer_._1/intermediate/dense/kernel", "1 weight outside the selection changed"),
    ("bert/encoder/layer_._0/output/LayerNorm/gamma", "the devices hold different values of bert/encoder/layer_._0"),
])  # fmt: skip
def test_the_proof_reads_every_device(still, toy_glue, tmp_path, path, told):
    settings = {"model": str(still), "data_dir": str(toy_glue), "task": "mrpc", "mode": "layernorm", "max_length": 32,
                "epochs": 1, "learning_rate": 1e-2, "replicas": 2}  # fmt: skip
    request = prepare(RunSpec.make(**settings), tmp_path)
    bench = make_bench(request)
    predict = bench.predict

    def predict_and_break(name):
        off_by_a_half(bench, path, device=1)
        return predict(name)

    bench.predict = predict_and_break
    with pytest.raises(RunError, match=told):
        execute(request, bench, started=0.0, quiet=True)
    record = read_record(request.folder)
    assert record.status == "failed"
    frozen = "intermediate" in path
    assert record.proof.frozen_changed == frozen
    assert (record.proof.frozen_sha256_after != record.proof.frozen_sha256_before) == frozen
    assert not (request.folder / "tuned.safetensors").exists()
    with pytest.raises(RunError, match="make a new one"):  # another run would start from what was left there
        execute(prepare(RunSpec.make(**settings, seed=1), tmp_path), bench, started=0.0, quiet=True)


@pytest.mark.parametrize("mode", ["layernorm", "outliers", "full"])
def test_a_weight_that_is_lost_after_the_last_step_is_no_completed_run(still, toy_glue, tmp_path, mode):
    settings = {"model": str(still), "data_dir": str(toy_glue), "task": "mrpc", "mode": mode, "max_length": 32,
                "epochs": 1, "mask_size": 3 if mode == "outliers" else None}  # fmt: skip
    request = prepare(RunSpec.make(**settings), tmp_path)
    bench = make_bench(request)
    train_step, left = bench.train_step, iter(range(2, -1, -1))

    def train_and_lose(batch):
        loss = train_step(batch)
        if not next(left):  # the update of the last step, whose loss was finite
            path, indices = list(bench.selected().items())[-3]
            value = bench.model.all_weights[path].numpy()
            value.reshape(-1)[0 if indices is None else indices[0]] = np.nan
            bench.model.all_weights[path].assign(value)
        return loss

    bench.train_step = train_and_lose
    record = execute(request, bench, started=0.0, quiet=True)
    assert record.status == "diverged"
    assert "is not finite at the end of epoch 1" in record.error
    assert record.result.epochs == []


def test_each_run_has_its_own_peak_of_memory():
    devices = make_devices(1)
    devices.forget_peaks()
    before = peak_rss_mb()
    # Of the system itself: the C library may keep what is freed, where a command was run in this process before.
    with mmap.mmap(-1, 200 << 20) as block:
        for _ in range(200):
            block.write(bytes(1 << 20))
        assert peak_rss_mb() > before + 150
    devices.forget_peaks()
    assert peak_rss_mb() < before + 100
    assert devices.peak_gpu_mb() is None


class Gpus:
    """Stands for a machine with GPUs, as far as choosing devices goes."""

    def __init__(self, monkeypatch, count, started):
        gpus = [f"gpu {index}" for index in range(count)]
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus if kind == "GPU" else [])

        def set_memory_growth(gpu, on):
            if started:
                raise RuntimeError("Physical devices cannot be modified after being initialized")

        monkeypatch.setattr(tf.config.experimental, "set_memory_growth", set_memory_growth)
        monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices, *sums: (devices, *sums))
        devices_room._mirrored.cache_clear()
        monkeypatch.setattr(devices_room, "_COLLECTIVE", [])


@pytest.mark.parametrize("started", [False, True])
def test_gpus_are_taken_also_when_tensorflow_has_used_them(monkeypatch, started):
    Gpus(monkeypatch, 2, started)
    assert make_devices(0) == Devices((("/gpu:0", "/gpu:1"),), "GPU")
    strategy = make_devices(1).strategy
    assert strategy[0] == ("/gpu:0",)
    assert isinstance(
        strategy[1], tf.distribute.ReductionToOneDevice
    )  # no collectives, which two strategies would share
    with pytest.raises(RequestError, match=r"has 2 GPUs"):
        make_devices(3)
    devices_room._mirrored.cache_clear()


def test_a_process_has_one_set_of_several_gpus(monkeypatch):
    Gpus(monkeypatch, 4, started=False)
    make_devices(2)
    make_devices(2)
    with pytest.raises(RequestError, match="new process"):
        make_devices(4)
    devices_room._mirrored.cache_clear()


def test_float32_is_float32(trained):
    tf.config.experimental.enable_tensor_float_32_execution(True)  # TensorFlow's default
    exact, _ = trained("exact")
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
    rounded, _ = trained("rounded", precision="tf32")
    assert tf.config.experimental.tensor_float_32_execution_enabled()
    assert exact.run_id != rounded.run_id
    if not tf.config.list_physical_devices("GPU"):  # a CPU computes the same
        assert rounded.result.epochs[0].train_loss == exact.result.epochs[0].train_loss
    trained("exact again", seed=1)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize(("asked", "found", "said"), [
    (None, 0, ""), ("", 0, ""), ("-1", 0, ""), ("0", 1, ""), ("1,0", 3, ""), ("-1,0", 0, ""),
    ("0", 0, "CUDA_VISIBLE_DEVICES=0 names 1 GPU, and TensorFlow finds none: is the driver there"),
    ("GPU-8932f937", 0, "CUDA_VISIBLE_DEVICES=GPU-8932f937 names 1 GPU, and TensorFlow finds none"),
    ("2, 3", 1, "CUDA_VISIBLE_DEVICES=2, 3 names 2 GPUs, and TensorFlow finds 1"),
])  # fmt: skip
def test_gpus_that_were_asked_for_and_are_not_there(monkeypatch, asked, found, said):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"] * found)
    if asked is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    missing = devices_room.find_missing_gpus()
    assert missing.startswith(said)
    assert bool(missing) == bool(said)
    if said or not found:
        with pytest.raises(RequestError, match=r"^--require_gpu: "):
            devices_room.require_gpu()
    else:
        devices_room.require_gpu()


def test_run_on_a_cpu_in_place_of_a_gpu_says_so_and_is_refused_where_one_is_required(
    toy_bert, toy_glue, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    flags = [f"--model={toy_bert}", f"--data_dir={toy_glue}", "--task=mrpc", "--mode=frozen", "--max_length=32",
             "--epochs=1", f"--output_dir={tmp_path / 'runs'}"]  # fmt: skip
    for command in (train, sweep):
        assert command.main([*flags, "--require_gpu"]) == 2
        assert "--require_gpu: CUDA_VISIBLE_DEVICES=0 names 1 GPU" in capsys.readouterr().err
        assert not (tmp_path / "runs").exists()
    assert train.main([*flags, "--replicas=2"]) == 0
    said = capsys.readouterr().err
    assert "tfmt-train: warning: CUDA_VISIBLE_DEVICES=0 names 1 GPU, and TensorFlow finds none" in said
    assert f"trains on 2 CPU devices, {devices_room.threads_in_use()} threads\n" in said
    (record,) = find_records(tmp_path / "runs")[0]
    assert [warning.partition(":")[0] for warning in record.warnings] == [
        "CUDA_VISIBLE_DEVICES=0 names 1 GPU, and TensorFlow finds none"
    ]


@pytest.mark.parametrize(("users", "left"), [(None, "3"), ("2", "2"), ("0", "0")])
def test_log_level_that_the_user_set_stays(monkeypatch, users, left):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if users:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", users)
    with warnings.catch_warnings():
        quiet.set_verbosity(0)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == left
