"""Plans and draws: the counts of the design and of the papers, and how single weights are chosen."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from tfmt.bert.configs import PAPER_SHAPES, BertShape
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError
from tfmt.selection.draws import draw_without_replacement
from tfmt.selection.modes import plan_mode
from tfmt.selection.plans import choose
from tfmt.selection.scores.pool import Known
from tfmt.selection.stored import digest_masks

BASE = list_weights(PAPER_SHAPES["bert-base-uncased"], "sentence", 2)
LARGE = list_weights(PAPER_SHAPES["bert-large-cased"], "sentence", 2)
TOY = list_weights(BertShape(16, 3, 2, 24, 50, 32, 2), "sentence", 2)


def choose_weights(plan, *, seed=0, values=None, importance=None):
    """Single weights by path, as indices."""
    known = Known(values=values, squares={} if importance is None else {"trained": importance.__getitem__})
    parts = choose(plan, seed=seed, known=known).weights.parts
    return {path: part for path, part in parts.items() if part is not None}


@pytest.mark.parametrize(
    ("mode", "options", "tuned"),
    [
        ("full", {}, 109_482_240), ("frozen", {}, 0), ("attention", {}, 28_348_416), ("feedforward", {}, 56_669_184),
        ("layernorm", {}, 36_864), ("layernorm_attention", {}, 18_432), ("layernorm_feedforward", {}, 18_432),
        ("bitfit", {}, 102_912), ("random", {}, 36_864),
        ("outliers", {"mask_size": 4}, 96), ("outliers", {"mask_size": 16}, 384),
        ("outliers", {"mask_size": 64}, 1_536), ("outliers_control", {"mask_size": 256}, 6_144),
        ("fisher", {"mask_fraction": 0.05}, 922), ("fisher", {"mask_fraction": 0.5}, 9_216),
        ("fisher_control", {"mask_fraction": 0.1}, 1_844),
        ("layernorm", {"layers": "5"}, 3_072), ("random", {"layers": "5"}, 3_072), ("full", {"layers": "3"}, 7_087_872),
        ("bitfit", {"layers": "0"}, 8_448), ("outliers", {"layers": "0,1", "mask_size": 4}, 16),
        ("attention", {"layers": "0-5"}, 14_174_208), ("frozen", {"layers": "2"}, 0),
    ],
)  # fmt: skip
def test_counts_on_bert_base(mode, options, tuned):
    assert plan_mode(BASE, mode, **options).tuned == tuned


def test_counts_of_p2_on_bert_large():
    head = 2 * 1024 + 2
    assert plan_mode(LARGE, "full").tuned + head == 333_581_314
    assert plan_mode(LARGE, "bitfit").tuned + head == 274_434
    assert plan_mode(LARGE, "layernorm_feedforward").tuned + head == 51_202


def test_layers_leave_embeddings_and_pooler_alone():
    for mode in ("full", "bitfit", "random"):
        plan = plan_mode(TOY, mode, layers="1")
        assert {plan.table.by_path[path].block for path in plan.step.support.parts} == {1}


@pytest.mark.parametrize(
    ("mode", "options", "culprit"),
    [
        ("layernorm", {"layers": "3"}, "layers must be within 0-2"), ("outliers", {}, "mask_size"),
        ("outliers", {"mask_size": 33}, "at most 32"),
        ("outliers", {"mask_size": 17, "outlier_pool": "beta"}, "at most 16"),
        ("fisher", {}, "mask_fraction"), ("lora", {}, "mode must be 'full'"), ("layernorm", {"layers": "x"}, "layers"),
    ],
)  # fmt: skip
def test_refuses(mode, options, culprit):
    with pytest.raises(RequestError, match=culprit):
        plan_mode(TOY, mode, **options)


def flat_of(chosen, weights):
    """Indices by variable as positions in the variables laid end to end."""
    starts = np.cumsum([0, *(weight.size for weight in weights)])
    return np.sort(np.concatenate([chosen[w.path] + starts[i] for i, w in enumerate(weights) if w.path in chosen]))


def test_random_is_a_draw_from_all_of_the_encoder():
    plan = plan_mode(BASE, "random")
    tracemalloc.start()
    chosen = choose_weights(plan, seed=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # not an array the size of the model
    positions = flat_of(chosen, plan.table.weights)
    assert len(np.unique(positions)) == 36_864
    assert len(plan.step.support) == 109_482_240
    # Uniform over the encoder: Kolmogorov-Smirnov against the uniform distribution.
    assert stats.kstest(positions / 109_482_240, "uniform").pvalue > 1e-3
    again = choose_weights(plan, seed=3)
    assert all(np.array_equal(chosen[path], again[path]) for path in chosen)
    other = choose_weights(plan, seed=4)
    assert any(not np.array_equal(chosen[path], other.get(path, ())) for path in chosen)


def test_draw_is_the_same_on_every_machine():
    assert draw_without_replacement(1000, 5, seed=0).tolist() == DRAWN_ONCE


# Drawn by the code and kept, so that a change of the draw cannot go unnoticed.
DRAWN_ONCE = [45, 259, 966, 271, 205]


@pytest.mark.parametrize(("size", "count"), [(1, 1), (5, 0), (5, 5), (10, 4), (10, 9), (1000, 3), (7, 6)])
def test_draws_have_no_repeats(size, count):
    drawn = draw_without_replacement(size, count, seed=1)
    assert len(set(drawn.tolist())) == count
    assert all(0 <= number < size for number in drawn)


def test_every_set_is_equally_likely():
    draws = [tuple(sorted(draw_without_replacement(6, 2, seed).tolist())) for seed in range(3000)]
    _, counts = np.unique(draws, axis=0, return_counts=True)
    assert len(counts) == 15
    assert stats.chisquare(counts).pvalue > 1e-3


def test_outliers_are_the_farthest_from_the_mean():
    generator = np.random.default_rng(0)
    values = {weight.path: generator.normal(size=weight.shape) for weight in TOY}
    chosen = choose_weights(plan_mode(TOY, "outliers", mask_size=5), values=values.__getitem__)
    for block in range(3):
        for norm in ("attention/output/LayerNorm", "output/LayerNorm"):
            stem = f"bert/encoder/layer_._{block}/{norm}"
            pooled = np.concatenate([values[f"{stem}/gamma"], values[f"{stem}/beta"]])
            expected = set(np.argsort(-np.abs(pooled - pooled.mean()))[:5].tolist())
            found = set(chosen.get(f"{stem}/gamma", np.array([], int)).tolist())
            found |= {16 + i for i in chosen.get(f"{stem}/beta", np.array([], int)).tolist()}
            assert found == expected


def test_outliers_of_one_vector_and_ties_by_index():
    values = {weight.path: np.zeros(weight.shape) for weight in TOY}
    plan = plan_mode(TOY, "outliers", mask_size=3, outlier_pool="beta", layers="1")
    chosen = choose_weights(plan, values=values.__getitem__)
    assert len(chosen) == 2
    assert all(path.endswith("/beta") and indices.tolist() == [0, 1, 2] for path, indices in chosen.items())


def test_fisher_takes_the_highest_and_its_control_as_many():
    plan = plan_mode(TOY, "fisher", mask_fraction=0.1)
    generator = np.random.default_rng(1)
    pool = [weight for weight in TOY if weight.sublayer == "feedforward_layernorm"]
    fisher = {weight.path: generator.random(weight.shape) for weight in pool}
    chosen = choose_weights(plan, importance=fisher)
    assert plan.tuned == 10  # 0.1 of 96, rounded up
    laid = np.concatenate([fisher[weight.path] for weight in pool])
    assert set(flat_of(chosen, pool)) == set(np.argsort(-laid)[:10])
    control = choose_weights(plan_mode(TOY, "fisher_control", mask_fraction=0.1), seed=1)
    assert sum(map(len, control.values())) == 10


@pytest.mark.parametrize(
    ("mode", "options", "toy", "base"),
    [
        ("random", {}, "6e7d42de0fdb9181", "b2433eeee4dd80aa"),
        ("random", {"layers": "1"}, "4dca057332979b50", "5da39897a57dd3ee"),
        ("outliers_control", {"mask_size": 5}, "4480b21f67b2af0e", "1c6be3e29ee5dcc3"),
        (
            "outliers_control",
            {"mask_size": 5, "outlier_pool": "gamma", "layers": "0,2"},
            "851bd395066d2d49",
            "b4cf3efa23191df9",
        ),
        ("fisher_control", {"mask_fraction": 0.1}, "aeac0018325908a8", "9c3e22415ddd17ba"),
    ],
)
def test_draws_are_those_that_runs_were_made_with(mode, options, toy, base):
    # Digests of draws as they were before the modes were expressions.
    for weights, expected in ((TOY, toy), (BASE, base)):
        assert digest_masks(choose_weights(plan_mode(weights, mode, **options), seed=3))[:16] == expected
