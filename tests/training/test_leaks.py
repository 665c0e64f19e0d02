"""A dropped workbench leaves nothing: no traced graph, and none of the memory that a graph holds on to."""

import gc
import re
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tfmt.bert import kernels
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec


def graphs():
    gc.collect()
    return sum(isinstance(thing, tf.Graph) for thing in gc.get_objects())


def anonymous_mb():
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def drop_benches(model, data, folder, count, **settings):
    """Graphs and memory after each of some workbenches that came and went."""
    alive, memory = [], []
    for seed in range(count):
        spec = RunSpec.make(model=str(model), data_dir=str(data), task="mrpc", mode="full", max_length=32, epochs=1,
                            train_limit=16, keep="scores", seed=seed, **settings)  # fmt: skip
        request = prepare(spec, folder)
        bench = make_bench(request)
        execute(request, bench, started=0.0, quiet=True)
        assert graphs() > max(alive, default=0)  # the bench's own are counted
        del bench
        alive.append(graphs())
        memory.append(anonymous_mb())
    return alive, memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what a process has allocated")
@pytest.mark.parametrize(("replicas", "count"), [(1, 10), (2, 5)])
def test_workbenches_leave_no_graph_and_no_memory(make_toy_bert, toy_glue, tmp_path, replicas, count):
    model = make_toy_bert(tmp_path / "bert", hidden=384)
    alive, memory = drop_benches(model, toy_glue, tmp_path / "runs", count, replicas=replicas)
    assert alive[2:] == [alive[1]] * (count - 2)
    # With its two slots and its gradients a model that stays is four.
    model_mb = (model / "model.safetensors").stat().st_size / 2**20
    assert (memory[-1] - memory[1]) / (count - 2) < model_mb / 2, memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what a process has allocated")
def test_compiled_by_xla_they_leave_no_graph(toy_bert, toy_glue, tmp_path):
    alive, _ = drop_benches(toy_bert, toy_glue, tmp_path / "runs", 3, jit_compile="on")  # XLA keeps its own programs
    assert alive[2] == alive[1]


def test_a_traced_kernel_leaves_no_graph():
    def step(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            heads = tf.reshape(kernels.layer_norm(kernels.gelu(x), x[0], x[1], 1e-12), [1, 2, 4, 4])
            result = kernels.attend(heads, heads, heads, tf.zeros([1, 1, 1, 4]), mask, 0.5)
        return tape.gradient(result, x)

    before = graphs()
    for _ in range(3):
        traced = tf.function(step)
        traced(tf.random.normal([4, 8]), tf.fill([1, 2, 4, 4], True))
        assert graphs() > before
        del traced
        assert graphs() == before
