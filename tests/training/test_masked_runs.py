"""Runs that train single weights: the proof, exact resumption, and a bench that is used for one run after another."""

import itertools
import time

import pytest

from tfmt.runs.runner import execute, finished, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training import fine_tune, fisher

MODES = {
    "random": {}, "outliers": {"mask_size": 3}, "outliers_control": {"mask_size": 3}, "fisher": {"mask_fraction": 0.2},
    "fisher_control": {"mask_fraction": 0.2},
}  # fmt: skip
TUNED = {"random": 128, "outliers": 12, "outliers_control": 12, "fisher": 13, "fisher_control": 13}


@pytest.fixture(scope="module")
def bench(small, tmp_path_factory):
    return make_bench(prepare(RunSpec.make(**small, mode="frozen"), tmp_path_factory.mktemp("bench")))


def prepared(small, folder, mode, seed=0):
    return prepare(RunSpec.make(**small, **MODES[mode], mode=mode, seed=seed), folder)


def train(request, bench):
    return execute(request, bench, started=time.perf_counter(), quiet=True)


@pytest.mark.parametrize(("mode", "writes"), [
    ("random", 1), ("outliers", 2), ("outliers_control", 4), ("fisher", 3), ("fisher", 7), ("fisher_control", 3),
])  # fmt: skip
def test_interrupted_and_resumed_is_identical(
    bench, small, tmp_path, monkeypatch, same, die_before_write, mode, writes
):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    whole, broken = (prepared(small, tmp_path / name, mode) for name in ("whole", "broken"))
    expected = train(whole, bench)
    assert expected.parameters.tuned == TUNED[mode]
    assert expected.proof.frozen_changed == 0
    assert 0 < expected.proof.selected_changed <= expected.parameters.trainable
    die_before_write(broken, bench, writes)
    assert finished(broken) is None
    if mode == "fisher":  # the stored information is used: the head is not trained for it again
        monkeypatch.setattr(fisher, "train_head", None)
    resumed = train(broken, bench)
    assert same(broken, resumed) == same(whole, expected)


@pytest.mark.parametrize("mode", ["random", "outliers_control", "fisher"])
def test_warm_bench_equals_a_fresh_one(bench, small, tmp_path, same, mode):
    # Seed 1 and seed 2 mask other weights, with `random` also other variables; the bench was used before, too.
    for seed in (1, 2):
        train(prepared(small, tmp_path / "warm", mode, seed), bench)
    warm = prepared(small, tmp_path / "warm", mode, 2)
    fresh = prepared(small, tmp_path / "fresh", mode, 2)
    expected = train(fresh, make_bench(fresh))
    assert same(warm, finished(warm)) == same(fresh, expected)
    if mode == "fisher":
        assert (warm.folder / "fisher.safetensors").read_bytes() == (fresh.folder / "fisher.safetensors").read_bytes()


def test_a_mask_that_spreads_otherwise_needs_no_new_step(bench, small, tmp_path):
    seen = {}
    for seed in range(8):
        bench.set_up(prepared(small, tmp_path, "fisher_control", seed).spec, 6)
        sizes = tuple(len(indices) for indices in bench.selection.masks.values())
        seen.setdefault(bench.selection.paths, []).append((sizes, bench.step.function))
    spread = max(seen.values(), key=len)
    assert len({sizes for sizes, _ in spread}) > 1
    assert any(before is after and first != second for (first, before), (second, after) in itertools.pairwise(spread))
