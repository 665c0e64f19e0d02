"""Each mode as an expression: the weights that it selected before there were expressions, draws included."""

import numpy as np
import pytest

from tfmt import expressions
from tfmt.bert.configs import PAPER_SHAPES, BertShape
from tfmt.bert.vocabulary import list_weights
from tfmt.selection.modes import EXPRESSIONS, plan_mode, write_mode
from tfmt.selection.plans import choose
from tfmt.selection.scores.pool import Known
from tfmt.selection.stored import digest_masks
from tfmt.spec import MODES

TOY = list_weights(BertShape(16, 3, 2, 24, 50, 32, 2), "sentence", 2)
BASE = list_weights(PAPER_SHAPES["bert-base-uncased"], "sentence", 2)
NOTHING = "e3b0c44298fc1c14"  # of no masks

# (mode, settings, expression, whole variables, digest of the masks of seeds 0 and 3), as the code printed it in which
# every mode had a branch of its own.
KNOWN = [
    ("full", {}, "all", 55, NOTHING, NOTHING),
    ("full", {"layers": "1-2"}, "all@1-2", 32, NOTHING, NOTHING),
    ("frozen", {}, "none", 0, NOTHING, NOTHING),
    ("attention", {}, "attention", 24, NOTHING, NOTHING),
    ("feedforward", {"layers": "0,2"}, "feedforward@0,2", 8, NOTHING, NOTHING),
    ("layernorm", {}, "layernorm", 12, NOTHING, NOTHING),
    ("layernorm_attention", {}, "attention_layernorm", 6, NOTHING, NOTHING),
    ("layernorm_feedforward", {"layers": "1"}, "feedforward_layernorm@1", 2, NOTHING, NOTHING),
    ("bitfit", {}, "all.bias + all.beta", 26, NOTHING, NOTHING),
    ("bitfit", {"layers": "2"}, "all.bias@2 + all.beta@2", 8, NOTHING, NOTHING),
    ("random", {}, "all:random(100% of layernorm)", 0, "c821c45d27e98f6a", "6e7d42de0fdb9181"),
    ("random", {"layers": "0,2"}, "all@0,2:random(100% of layernorm@0,2)", 0, "35fd8bcd97bc5574", "0a06e8a1828c22f7"),
    ("outliers", {"mask_size": 5}, "layernorm:far(5, per=module)", 0, "0cdf87716cc7a4ab", "0cdf87716cc7a4ab"),
    ("outliers", {"mask_size": 32}, "layernorm:far(32, per=module)", 0, "e0dff05cc14bf374", "e0dff05cc14bf374"),
    ("outliers", {"mask_size": 4, "outlier_pool": "gamma", "layers": "1-2"},
     "layernorm.gamma@1-2:far(4, per=module)", 0, "5614d0030b8918d1", "5614d0030b8918d1"),
    ("outliers", {"mask_size": 3, "outlier_pool": "beta"}, "layernorm.beta:far(3, per=module)", 0, "a5225fd3513ec496",
     "a5225fd3513ec496"),
    ("outliers_control", {"mask_size": 5}, "layernorm:random(5, per=module)", 0, "778960bd49009808",
     "4480b21f67b2af0e"),
    ("outliers_control", {"mask_size": 4, "outlier_pool": "gamma", "layers": "2"},
     "layernorm.gamma@2:random(4, per=module)", 0, "b899d88cc91a912e", "0ba275d8c6827d1c"),
    ("fisher", {"mask_fraction": 0.3}, "feedforward_layernorm:fisher(30%, head=trained)", 0, "f34a80012da85718",
     "f34a80012da85718"),
    ("fisher", {"mask_fraction": 0.07, "layers": "0-1"}, "feedforward_layernorm@0-1:fisher(7%, head=trained)", 0,
     "e7440a7084fbf645", "e7440a7084fbf645"),
    ("fisher_control", {"mask_fraction": 0.3}, "feedforward_layernorm:random(30%)", 0, "9d66e5e938065d78",
     "f7d6eb7e935b1795"),
    ("fisher_control", {"mask_fraction": 0.6, "layers": "1"}, "feedforward_layernorm@1:random(60%)", 0,
     "e7093992ad5e3b1a", "df610538b6aa1699"),
]  # fmt: skip
KNOWN_OF_BASE = [
    ("random", {}, "730496be46693c77", "b2433eeee4dd80aa"),
    ("outliers", {"mask_size": 16}, "20cb0a2156b38eac", "20cb0a2156b38eac"),
    ("outliers_control", {"mask_size": 64}, "4436d813d23dcdb4", "d61bd9ad454f3b99"),
    ("fisher_control", {"mask_fraction": 0.1}, "6cf8adc8e05981a4", "9c3e22415ddd17ba"),
    ("fisher", {"mask_fraction": 0.05}, "b35fac5a1c70fa59", "b35fac5a1c70fa59"),
]


def known_of(weights):
    """Values and Fisher information with many ties, drawn once."""
    generator = np.random.default_rng(7)
    values, fisher = {}, {}
    for weight in weights:
        if weight.sublayer != "classifier" and not (len(weight.shape) > 1 and weight.size > 1e6):
            values[weight.path] = np.round(generator.normal(size=weight.shape), 1).astype(np.float32)
            fisher[weight.path] = np.round(generator.random(weight.shape), 2)
    return Known(values=values.__getitem__, squares={"trained": fisher.__getitem__})


def digest(plan, seed, known):
    parts = choose(plan, seed=seed, known=known).weights.parts
    masks = {path: part for path, part in parts.items() if part is not None}
    return len(parts) - len(masks), digest_masks(masks)[:16]


@pytest.mark.parametrize(("mode", "settings", "expression", "whole", "first", "fourth"), KNOWN)
def test_a_mode_selects_what_it_did(mode, settings, expression, whole, first, fourth):
    plan = plan_mode(TOY, mode, **settings)
    assert plan.expression == expression
    known = known_of(TOY)
    assert digest(plan, 0, known) == (whole, first)
    assert digest(plan, 3, known) == (whole, fourth)


@pytest.mark.parametrize(("mode", "settings", "first", "fourth"), KNOWN_OF_BASE)
def test_a_mode_selects_what_it_did_of_bert_base(mode, settings, first, fourth):
    plan, known = plan_mode(BASE, mode, **settings), known_of(BASE)
    assert digest(plan, 0, known)[1] == first
    assert digest(plan, 3, known)[1] == fourth


def test_every_mode_is_an_expression():
    assert set(EXPRESSIONS) == set(MODES) - {"custom"}
    assert {mode for mode, *_ in KNOWN} == set(EXPRESSIONS)
    for mode, settings, *_ in KNOWN:
        text = write_mode(mode, **settings)
        as_custom = plan_mode(TOY, "custom", select=text, heads=2)
        assert as_custom.normal_form == plan_mode(TOY, mode, **settings).normal_form
        assert expressions.parse(text) == expressions.parse(as_custom.expression)
