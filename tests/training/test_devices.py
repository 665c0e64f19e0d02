"""Replicas, precisions, XLA and batchings change rounding and nothing else."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tfmt.errors import RequestError
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import fine_tune
from tfmt.training.strategy import unchanged_spans


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


RESIDENT = """
import re
from pathlib import Path
import numpy as np
import tensorflow as tf
from tfmt.training import strategy

def resident(kind):
    return int(re.search(rf"{kind}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

factor = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float32)
before, product = resident("RssFile"), tf.matmul(factor, factor).numpy()
own = resident("RssAnon")
strategy.make_strategy(1)
assert resident("RssFile") < before / 4, (before, resident("RssFile"))
assert abs(resident("RssAnon") - own) < 8192, "memory that no file holds is not touched"
np.testing.assert_array_equal(tf.matmul(factor, factor), product)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what a process maps, and takes it back")
def test_libraries_are_dropped_from_memory_and_come_back():
    on_cpu = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", RESIDENT], env=on_cpu, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SMAPS = """\
7f0000000000-7f0000001000 {} 00000000 08:01 42    {}
Size:                  4 kB
Anonymous:             {} kB
AnonHugePages:         0 kB
Swap:                  {} kB
SwapPss:               0 kB
7fff00000000-7fff00001000 r-xp 00000000 00:00 0    [vdso]
Anonymous:             0 kB
Swap:                  0 kB
"""


@pytest.mark.parametrize(
    ("rights", "name", "memory", "swapped", "dropped"),
    [
        ("r-xp", "/usr/lib/libtensorflow_cc.so.2", 0, 0, True),
        ("r--p", "/site packages/_api.cpython-311-x86_64-linux-gnu.so", 0, 0, True),
        ("r--p", "/usr/lib/libtensorflow_cc.so.2", 4, 0, False),  # addresses that the loader wrote
        ("r--p", "/usr/lib/libtensorflow_cc.so.2", 0, 4, False),  # the same, in the swap
        ("rw-p", "/usr/lib/libtensorflow_cc.so.2", 0, 0, False),
        ("r--p", "/home/me/model.safetensors", 0, 0, False),
        ("r--p", "", 0, 0, False),
    ],
)
def test_only_what_the_file_still_holds_is_dropped(rights, name, memory, swapped, dropped):
    spans = [(0x7F0000000000, 0x7F0000001000)] if dropped else []
    assert unchanged_spans(SMAPS.format(rights, name, memory, swapped)) == spans


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
