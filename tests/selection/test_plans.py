"""Scores by brute force, draws, and bounds that hold; see by_loops.py for the second evaluator."""

import itertools
import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from by_loops import (
    ENCODER,
    HEADS,
    ROWS,
    TOY,
    RefusedError,
    evaluate,
    keep_best,
    keep_units,
    named,
    same,
    share,
    to_array,
    write,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_weight_sets import STATIC

from tfmt.bert.configs import BertShape
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError
from tfmt.expressions import ExpressionError
from tfmt.selection.plans import choose, make_plan
from tfmt.selection.scores.pool import Known
from tfmt.selection.steps import Count, count_parts
from tfmt.spec import RunSpec
from tfmt.study.dry_run import describe

CHANGED = (5e-5, 5, "best")


def measured(seed, *, step=0.25):
    """Numbers with many ties and exact zeros, {kind: {path: array}}."""
    generator = np.random.default_rng(seed)
    kinds = {}
    for kind in ("values", "gradient", "squares", "tuned"):
        kinds[kind] = {}
        for weight in ENCODER:
            numbers = np.round(generator.normal(size=weight.shape) / step) * step
            numbers[generator.random(weight.shape) < 0.3] = 0
            kinds[kind][weight.path] = (numbers**2 if kind == "squares" else numbers).astype(np.float32)
        kinds[kind]["bert/pooler/dense/bias"][:] = 0  # a tensor of zeros alone
    return kinds


def known_of(kinds):
    return Known(
        values=kinds["values"].__getitem__, gradient={"random": kinds["gradient"].__getitem__},
        squares={"random": kinds["squares"].__getitem__}, tuned={CHANGED: kinds["tuned"].__getitem__},
    )  # fmt: skip


def laid(arrays):
    return np.concatenate([arrays[weight.path].ravel() for weight in ENCODER])


def scores_of(kinds):
    """{score: function of a pool's positions}, each from its definition."""
    values, gradient, squares, tuned = (laid(kinds[kind]) for kind in ("values", "gradient", "squares", "tuned"))
    ratios = np.zeros(len(ROWS))
    end = 0
    for weight in ENCODER:
        slope = math.sqrt(math.fsum(float(g) ** 2 for g in kinds["gradient"][weight.path].ravel()))
        size = math.sqrt(math.fsum(float(w) ** 2 for w in kinds["values"][weight.path].ravel()))
        ratios[end : end + weight.size] = slope / size if size else math.inf if slope else 0.0
        end += weight.size

    def far(pool):
        numbers = values[pool].astype(np.float64)
        return np.abs(numbers - numbers.mean())

    return {
        "magnitude": lambda pool: np.abs(values[pool]), "far": far, "fisher": lambda pool: squares[pool],
        "gradient": lambda pool: np.abs(gradient[pool]),
        "sensitivity": lambda pool: np.abs(values[pool] * gradient[pool]),
        "change": lambda pool: np.abs(tuned[pool] - values[pool]), "rgn": lambda pool: ratios[pool],
    }  # fmt: skip


KINDS = measured(0)
KNOWN, NUMBERS = known_of(KINDS), scores_of(KINDS)
every_score = pytest.mark.parametrize("score", sorted(NUMBERS))
both_ends = pytest.mark.parametrize("lowest", [False, True])


def chosen(expression, *, seed=0, known=KNOWN):
    return choose(make_plan(expression, TOY, HEADS), seed=seed, known=known).weights


def end_of(lowest):
    return ", lowest" if lowest else ""


@both_ends
@every_score
def test_a_score_keeps_what_a_stable_sort_puts_first(score, lowest):
    amounts = [("7", {"total": 7}), ("5%", {"percent": 5}), ("33.3%", {"percent": Fraction("33.3")}),
               ("5% of pooler", {"total": math.ceil(272 * 0.05)}), ("100%", {"percent": 100})]  # fmt: skip
    for text in ("all", "layernorm", "all.bias"):
        term = named(text)
        for amount, how in amounts:
            if how.get("total", 0) > term.sum():
                continue
            found = chosen(f"{text}:{score}({amount}{end_of(lowest)})")
            expected = keep_best(term, NUMBERS[score], **how, lowest=lowest)
            np.testing.assert_array_equal(to_array(found), expected, err_msg=f"{text} {amount}")


POOLS = [
    ("all", "tensor"), ("all", "module"), ("blocks", "block"), ("layernorm@0,2", "module"), ("blocks.kernel", "out"),
    ("attention[head=0-last]", "head"), ("attention.value", "head"), ("(all.kernel)[dim=0-4]", "out"),
]  # fmt: skip


def term_of(text):
    return to_array(make_plan(text, TOY, HEADS).step.support)


@both_ends
@every_score
@pytest.mark.parametrize(("text", "per"), POOLS)
def test_of_each_pool_by_itself(score, lowest, text, per):
    term = term_of(text)
    for amount, how in (("1", {"each": 1}), ("2", {"each": 2}), ("10%", {"percent": 10}),
                        ("60% of pooler", {"total": math.ceil(272 * 0.6)})):  # fmt: skip
        if how.get("total", 0) > term.sum():
            continue
        found = chosen(f"({text}):{score}({amount}{end_of(lowest)}, per={per})")
        expected = keep_best(term, NUMBERS[score], **how, per=per, lowest=lowest)
        np.testing.assert_array_equal(to_array(found), expected, err_msg=amount)


@both_ends
@every_score
@pytest.mark.parametrize(
    ("text", "unit"),
    [("blocks", "block"), ("all", "tensor"), ("all", "module"), ("attention[head=0-last]", "head"),
     ("attention.key.bias + attention.output.kernel[head=0]", "head")],
)  # fmt: skip
def test_of_whole_units_those_of_the_highest_mean(score, lowest, text, unit):
    term = term_of(text)
    for count in (1, 2):
        found = chosen(f"({text}):{score}({count}, whole={unit}{end_of(lowest)})")
        expected = keep_units(term, NUMBERS[score], count, unit, lowest=lowest)
        np.testing.assert_array_equal(to_array(found), expected)
        plan = make_plan(f"({text}):{score}({count}, whole={unit}{end_of(lowest)})", TOY, HEADS)
        assert plan.bounds[0] <= expected.sum() <= plan.bounds[1]


def test_percent_of_units_is_rounded_up():
    plan = make_plan("attention[head=0-last]:fisher(20%, whole=head)", TOY, HEADS)
    assert plan.tuned == 2 * (3 * (16 * 8 + 8) + 8 * 16)  # 0.2 of 6 heads


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=30), st.integers(0, 1000))
def test_a_total_is_shared_by_largest_remainder(sizes, share_of_1000):
    total = sum(sizes) * share_of_1000 // 1000
    assert Count(total=total).among(np.array(sizes)).tolist() == share(total, sizes)


def test_amounts_spelled_in_two_ways_are_one_selection():
    for one, other in [
        ("layernorm:far(10%)", "layernorm:far(20)"), ("layernorm:far(20)", "layernorm : far( 20 )"),
        ("layernorm:fisher(9)", "layernorm:fisher(9, head=random)"), ("all:far(100% of layernorm)", "all:far(192)"),
        ("all:far(96)", "all:far(50% of layernorm)"),
        ("layernorm:far(3) + pooler", "pooler + layernorm:far(3)"), ("layernorm:far(3) + layernorm:far(3)",
                                                                     "layernorm:far(3)"),
        ("layernorm:far(9) + attention:far(3) + pooler", "attention:far(3) + (pooler + layernorm:far(9))"),
        ("layernorm + layernorm@0:far(3)", "layernorm"), ("(layernorm:far(30))@0", "layernorm:far(30) & blocks@0"),
        ("layernorm:far(30) - all.beta@0 - all.beta@1", "layernorm:far(30) - layernorm.beta@0-1"),
        ("layernorm:far(30) & layernorm:fisher(30)", "layernorm:fisher(30) & layernorm:far(30)"),
        ("all:change(9)", "all:change(9, checkpoint=best, epochs=5, rate=0.00005)"),
    ]:  # fmt: skip
        plans = [make_plan(text, TOY, HEADS) for text in (one, other)]
        assert plans[0].normal_form == plans[1].normal_form, one
        assert plans[0].sha256 == plans[1].sha256


def test_what_differs_has_another_normal_form():
    texts = ["far(20)", "far(20, lowest)", "far(21)", "fisher(20)", "fisher(20, head=trained)",
             "fisher(16, per=tensor)", "fisher(16, per=module)", "random(20)", "change(20)",
             "change(20, epochs=4)", "change(20, rate=1e-4)",
             "change(20, checkpoint=last)", "fisher(5%)", "fisher(5%, per=tensor)",
             "fisher(2, whole=module)"]  # fmt: skip
    forms = {make_plan(f"layernorm:{text}", TOY, HEADS).normal_form for text in texts}
    forms |= {make_plan(text, TOY, HEADS).normal_form for text in
              ("shuffled(layernorm:far(20))", "layernorm:far(20) + layernorm:random(20)", "layernorm",
               "layernorm@0:far(20)", "layernorm:far(20) - all.beta")}  # fmt: skip
    assert len(forms) == len(texts) + 5


# ---- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["all", "layernorm", "blocks.kernel"])
def test_a_smaller_draw_lies_inside_a_larger_one_of_its_seed(term):
    draws = [to_array(chosen(f"{term}:random({percent}%)", seed=3)) for percent in (0.1, 0.5, 5, 20, 50)]
    for smaller, larger in itertools.pairwise(draws):
        assert (smaller <= larger).all()
    # A fraction of a draw that is larger than a half is what is left out: nested among themselves.
    large = [to_array(chosen(f"{term}:random({percent}%)", seed=3)) for percent in (60, 80)]
    assert (large[0] <= large[1]).all()
    assert (to_array(chosen(f"{term}:random(5%)", seed=4)) != draws[2]).any()


def test_terms_of_equal_pools_draw_different_places():
    one, other = chosen("all:random(100)"), chosen("all:random(101)")
    both = to_array(chosen("all:random(100) + all:random(101)"))
    assert both.sum() > 190  # about 1.3 are in both by chance
    assert (to_array(one) <= to_array(other)).all()
    # So do pools of one term, and equal terms.
    biases = chosen("attention.query.bias + attention.key.bias:random(4)").parts
    assert len(biases) >= 3
    pools = chosen("layernorm.gamma:random(4, per=tensor)").parts
    assert len({tuple(part) for part in pools.values()}) > 1
    assert to_array(chosen("all:random(100) + all:random(100)")).sum() > 190


def test_a_draw_is_as_likely_in_every_tensor():
    counts = np.zeros(len(ENCODER))
    for seed in range(60):
        parts = chosen("all:random(500)", seed=seed).parts
        counts += [len(parts.get(weight.path, ())) for weight in ENCODER]
    expected = 60 * 500 * np.array([weight.size for weight in ENCODER]) / sum(weight.size for weight in ENCODER)
    assert ((counts - expected) ** 2 / expected).sum() < len(ENCODER) + 5 * math.sqrt(2 * len(ENCODER))


@pytest.mark.parametrize("inside", ["all:magnitude(5%)", "attention@1[head=1] + layernorm:far(9)", "all:random(9%)"])
def test_shuffled_takes_as_many_of_every_tensor(inside):
    taken, drawn = chosen(inside), chosen(f"shuffled({inside})")
    assert {path: taken.size(path) for path in taken.parts} == {path: drawn.size(path) for path in drawn.parts}
    assert not same(taken, drawn)
    assert not same(drawn, chosen(f"shuffled({inside})", seed=1))
    plan = make_plan(f"shuffled({inside})", TOY, HEADS)
    assert plan.bounds == make_plan(inside, TOY, HEADS).bounds


# ---- other runs ------------------------------------------------------------------------------------------------------


def test_what_a_run_selected_counts_by_its_indices():
    word = "bert/embeddings/word_embeddings/weight"
    given_parts = {"a": {word: np.array([1, 5])}, "b": {word: np.array([5])}, "c": {"bert/pooler/dense/bias": None}}

    def plan(text):
        return make_plan(text, TOY, HEADS, given=lambda kind, name: given_parts[name])

    assert plan('run("a")').tuned == 2
    assert plan('run("a") - run("b")').tuned == 1
    assert plan('run("a") + run("b")').normal_form == plan('mask("a")').normal_form != plan('run("b")').normal_form
    assert plan('run("c")').normal_form == "pooler.bias"
    assert plan('run("a") + pooler').tuned == 2 + 272
    # Without effect it warns, as no name in the expression is wrong.
    for text, words in [
        ('run("a") - run("c")', "changes nothing"), ('run("a") & all', "changes nothing"),
        ('pooler + shuffled(run("c"))', "whole tensors"),
    ]:  # fmt: skip
        found = choose(plan(text), seed=0, known=KNOWN)
        assert [words in line for line in found.warnings] == [True]
        assert len(found.weights)
    with pytest.raises(ExpressionError, match="nothing to train"):
        plan('run("b") - run("a")')


def test_what_scores_leave_without_effect_is_a_warning():
    # The farthest of the pool are known here: 1000 is in gamma.
    values = {weight.path: np.zeros(weight.shape, np.float32) for weight in ENCODER}
    values[ENCODER[3].path][2] = 1000
    assert ENCODER[3].part == "gamma"
    known = Known(values=values.__getitem__)
    for text, warns in [
        ("embeddings_layernorm:magnitude(1) - all.beta", 1), ("embeddings_layernorm:magnitude(1) & all.gamma", 1),
        ("embeddings_layernorm:magnitude(20) - all.beta", 0), ("embeddings_layernorm:magnitude(20) & all.gamma", 1),
    ]:  # fmt: skip
        assert len(choose(make_plan(text, TOY, HEADS), seed=0, known=known).warnings) == warns, text
    with pytest.raises(RequestError, match="leaves nothing to train"):
        choose(make_plan("embeddings_layernorm:magnitude(1) & all.beta", TOY, HEADS), seed=0, known=known)


# ---- bounds ----------------------------------------------------------------------------------------------------------

OPTIONS = st.tuples(
    st.sampled_from(["random", "magnitude", "far", "fisher", "change", "rgn"]),
    st.sampled_from(["1", "3", "40", "10%", "70%", "30% of pooler"]), st.sampled_from(["", "", "lowest"]),
    st.sampled_from(["", "", "per=tensor", "per=module", "per=block", "per=head", "per=out", "whole=block",
                     "whole=tensor", "whole=head"]),
)  # fmt: skip


def thin(pair):
    text, (score, amount, end, unit) = pair
    end = "" if score == "random" else end
    unit = "" if unit.startswith("whole") and " of " in amount else unit
    return f"({text}):{score}({', '.join(filter(None, [amount, end, unit]))})"


SOME_SCORED = st.recursive(
    st.one_of(STATIC.map(write), st.sampled_from(["all", "blocks", "layernorm", "attention[head=0-last]"])),
    lambda inner: st.one_of(
        st.tuples(inner, OPTIONS).map(thin), st.tuples(inner, OPTIONS).map(thin),
        st.tuples(inner, st.sampled_from("++-&"), inner).map(lambda parts: "({}) {} ({})".format(*parts)),
        inner.map(lambda text: f"shuffled({text})"),
        st.tuples(inner, st.sampled_from(["@0-1", "@last", "[head=1]", "[dim=0-7]"])).map(
            lambda parts: f"({parts[0]}){parts[1]}"),
    ),
    max_leaves=4,
)  # fmt: skip
SUBLAYER = {name: frozenset(w.path for w in ENCODER if w.sublayer == name) for name in {w.sublayer for w in ENCODER}}


@settings(deadline=None, max_examples=150)
@given(SOME_SCORED, st.integers(0, 5))
def test_what_is_selected_lies_within_the_bounds(text, seed):
    try:
        plan = make_plan(text, TOY, HEADS)
        found = choose(plan, seed=seed, known=KNOWN).weights
    except RequestError:
        assume(False)
    low, high = plan.bounds
    assert low <= len(found) <= high
    assert plan.tuned is None or plan.tuned == len(found)
    assert not len(found - plan.step.support)
    for name, paths in SUBLAYER.items():
        low, high = count_parts(plan.step, paths)
        assert low <= sum(found.size(path) for path in paths) <= high, name
    assert make_plan(plan.expression, TOY, HEADS).normal_form == plan.normal_form


@settings(deadline=None, max_examples=100)
@given(STATIC, STATIC, OPTIONS)
def test_counts_are_exact_where_no_scored_terms_overlap(first, second, options):
    try:
        one, other = evaluate(first), evaluate(second)
        plan = make_plan(f"{thin((write(first), options))} + ({write(second)})", TOY, HEADS)
        found = choose(plan, seed=0, known=KNOWN)
    except (RefusedError, RequestError):
        assume(False)
    if not (one & other).any() and not options[3].startswith("whole"):
        assert plan.tuned == len(found.weights)
    assert not found.warnings


@pytest.mark.parametrize("score", ["fisher", "gradient", "sensitivity", "rgn", "magnitude"])
def test_choosing_makes_one_copy_of_what_it_chooses_from(score):
    weights = list_weights(BertShape(128, 4, 2, 512, 4000, 128, 2), "sentence", 2)
    values = {w.path: np.random.default_rng(0).normal(size=w.shape).astype(np.float32) for w in weights}
    given = {"random": values.__getitem__}
    known = Known(values=values.__getitem__, gradient=given, squares=given)
    plan = make_plan(f"all:{score}(0.5%)", weights, 2)
    tracemalloc.start()
    choose(plan, seed=0, known=known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest_variable = max(weight.size for weight in weights)
    assert peak < 4 * (len(plan.step.support) + 3 * largest_variable) + 20e6  # float32, and what passes by; chunks


def test_a_dry_run_names_layers_and_says_where_counts_are_bounds(toy_bert, toy_glue, tmp_path):
    spec = RunSpec.make(model=str(toy_bert), task="mrpc", data_dir=str(toy_glue), mode="custom",
                        select="attention.query:magnitude(9) + attention:magnitude(9)", max_length=32)  # fmt: skip
    told = describe(spec, str(tmp_path), by_layer=True)
    names = [line.split()[0] for line in told.splitlines()[1:]]
    assert {"attention.query.kernel", "attention.query.bias", "embeddings.word.table"} <= set(names)
    assert "tuned     9 to 18 weights" in told
    assert "how many is known once the scores are" in told
    assert "attention.query.kernel" not in describe(spec, str(tmp_path))
