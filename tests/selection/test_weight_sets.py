"""What names, blocks, heads, places and signs mean, against a second evaluator on boolean arrays; counts."""

import numpy as np
import pytest
from by_loops import BLOCKS, EVERY_PATH, HEADS, HIDDEN, TOY, RefusedError, evaluate, pools_of, same, to_array, write
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tfmt.bert.configs import PAPER_SHAPES
from tfmt.bert.vocabulary import list_weights
from tfmt.expressions import ExpressionError
from tfmt.selection.plans import make_plan
from tfmt.selection.weight_sets import Table, WeightSet, name_of

BASE = list_weights(PAPER_SHAPES["bert-base-uncased"], "sentence", 2)
LARGE = list_weights(PAPER_SHAPES["bert-large-cased"], "sentence", 2)
TABLE = Table.of(TOY, HEADS)


def some_places(last):
    """A text and the places that it means, up to `last`."""
    number = st.integers(0, last)
    one = st.tuples(number, number).map(sorted).flatmap(
        lambda ends: st.tuples(
            st.just(str(ends[0])) if ends[0] == ends[1] else st.sampled_from(
                [f"{ends[0]}-{ends[1]}", f"{ends[0]}-last"] if ends[1] == last else [f"{ends[0]}-{ends[1]}"]),
            st.just(set(range(ends[0], ends[1] + 1)))))  # fmt: skip
    listed = st.lists(one, min_size=1, max_size=3).map(
        lambda parts: (",".join(text for text, _ in parts), set().union(*(places for _, places in parts)))
    )
    return st.one_of(listed, st.just(("last", {last})))


BLOCK_PLACES = st.one_of(
    some_places(BLOCKS - 1),
    st.just(("even", set(range(0, BLOCKS, 2)))),
    st.just(("odd", set(range(1, BLOCKS, 2)))),
)
PLACES = st.one_of(
    BLOCK_PLACES.map(lambda found: ("block", *found)),
    some_places(HEADS - 1).map(lambda found: ("head", *found)),
    some_places(HIDDEN - 1).map(lambda found: ("dim", *found)),
)
STATIC = st.recursive(
    st.sampled_from(EVERY_PATH).map(lambda text: ("path", text)),
    lambda inner: st.one_of(
        st.tuples(inner, PLACES).map(lambda pair: ("narrow", pair[0], *pair[1])),
        st.tuples(st.sampled_from("++--&"), inner, inner),
    ),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(STATIC)
def test_an_expression_selects_what_its_definition_says(tree):
    text = write(tree)
    try:
        expected = evaluate(tree)
    except RefusedError:
        with pytest.raises(ExpressionError):
            make_plan(text, TOY, HEADS)
        return
    plan = make_plan(text, TOY, HEADS)
    np.testing.assert_array_equal(to_array(plan.step.support), expected)
    assert plan.tuned == expected.sum()
    if "sha256" not in plan.normal_form:
        again = make_plan(plan.normal_form, TOY, HEADS)
        np.testing.assert_array_equal(to_array(again.step.support), expected)


def accepted(tree):
    try:
        return evaluate(tree)
    except RefusedError:
        assume(False)


@settings(deadline=None, max_examples=200)
@given(STATIC, STATIC)
def test_sets_have_one_normal_form_if_and_only_if_they_are_equal(first, second):
    one, other = accepted(first), accepted(second)
    forms = [make_plan(write(tree), TOY, HEADS).normal_form for tree in (first, second)]
    assert (forms[0] == forms[1]) == bool((one == other).all())
    joined = [make_plan(write(("+", *pair)), TOY, HEADS).normal_form for pair in ((first, second), (second, first))]
    assert joined[0] == joined[1]
    assert (joined[0] == forms[0]) == bool((other <= one).all())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("all", "blocks + embeddings + embeddings_layernorm + pooler"),
        ("all - embeddings", "all - embeddings.word - embeddings.position - embeddings.token_type"),
        ("layernorm", "attention_layernorm+feedforward_layernorm"), ("all@0-last", "blocks"),
        ("attention@even + attention@odd", "attention"), ("attention@2,0", "attention@even"),
        ("attention[head=0-last]", "attention - attention.output.bias"), ("layernorm[dim=0-15]", "layernorm@0-2"),
        ("all.bias", "attention.bias + feedforward.bias + pooler.bias"), ("layernorm + none", "layernorm"),
        ('var("bert/pooler/dense/bias")', "pooler.bias"), ("(attention & all.bias)@1", "attention.bias@1"),
        ("(blocks.kernel[head=1])[dim=2]", "attention.output.kernel[dim=2] & attention.output.kernel[head=1]"),
        ("attention.output.kernel[head=1] & attention.output.kernel[dim=2]",
         "attention.output.kernel[dim=2] & attention.output.kernel[head=1]"),
    ],
)  # fmt: skip
def test_two_spellings_are_one_selection(first, second):
    one, other = make_plan(first, TOY, HEADS), make_plan(second, TOY, HEADS)
    assert one.normal_form == other.normal_form
    assert one.sha256 == other.sha256
    assert same(one.step.support, other.step.support)


H, INNER, V = 768, 3072, 30_522


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("attention@0[head=3]", 3 * (H * 64 + 64) + 64 * H), ("attention@0[head=3]", 196_800),
        ("attention[head=0-last]", 12 * 12 * 196_800), ("attention.query@0[head=0,1]", 2 * (H * 64 + 64)),
        ("attention.value.bias", 12 * H),
        ("attention.value.bias", 9_216), ("attention.query.bias@6-last", 6 * H), ("attention.output", 12 * (H * H + H)),
        ("feedforward.intermediate", 12 * (H * INNER + INNER)), ("feedforward.output.bias", 12 * H),
        ("embeddings.word", V * H), ("embeddings", (V + 512 + 2) * H), ("embeddings_layernorm", 2 * H),
        ("embeddings.position.table", 512 * H), ("pooler", H * H + H), ("all", 109_482_240),
        ("blocks", 85_054_464), ("blocks@0", 7_087_872), ("all@0", 7_087_872), ("all@even", 6 * 7_087_872),
        ("blocks@odd", 6 * 7_087_872), ("blocks@last", 7_087_872), ("blocks@0,2-4,last", 5 * 7_087_872),
        ("layernorm", 36_864), ("layernorm.gamma@even", 2 * 6 * H), ("all.bias + all.beta", 102_912),
        ("all - blocks", 109_482_240 - 85_054_464), ("all - embeddings.word", 109_482_240 - V * H),
        ("all.kernel", 12 * (4 * H * H + 2 * H * INNER) + H * H), ("all.table", (V + 512 + 2) * H),
        ("all.gamma", 25 * H), ("blocks.bias & attention", 12 * 4 * H),
        # Places of the hidden vector: 25 LayerNorms, the tables, and the two layers of a block that write to it.
        ("layernorm[dim=308,381]", 2 * 24 * 2), ("embeddings.word[dim=308]", V),
        ("all[dim=308,381]", 2 * (2 * 25 + V + 512 + 2 + 12 * (H + 1 + INNER + 1))),
        ("attention[dim=0]", 12 * (H + 1)), ("feedforward[dim=0]", 12 * (INNER + 1)),
        ("blocks.kernel:gradient(1, per=out)", 82_944), ("blocks.kernel:gradient(1, per=out)", 12 * (5 * H + INNER)),
        ("all:random(0.5%)", 547_412), ("all:random(5%)", 5_474_112), ("all:random(100% of layernorm)", 36_864),
        ("blocks:rgn(3, whole=block)", 3 * 7_087_872), ("attention[head=0-last]:fisher(5%, whole=head)", 8 * 196_800),
        ("layernorm:far(16, per=module)", 24 * 16), ("layernorm:far(16, per=tensor)", 48 * 16),
        ("blocks:magnitude(0.5% of all, lowest)", 547_412), ("none", 0),
    ],
)  # fmt: skip
def test_counts_on_bert_base_are_arithmetic(expression, count):
    assert make_plan(expression, BASE, 12).tuned == count


def test_tokens_have_no_pooler():
    weights = list_weights(PAPER_SHAPES["bert-base-uncased"], "tokens", 9)
    assert make_plan("all", weights, 12).tuned == 109_482_240 - H * H - H
    with pytest.raises(ExpressionError, match="this model has no pooler"):
        make_plan("pooler", weights, 12)


def test_budget_is_a_number_or_percent_of_the_encoder():
    assert make_plan("layernorm:fisher(budget)", BASE, 12, budget="6144").tuned == 6_144
    assert make_plan("blocks:fisher(budget)", BASE, 12, budget="0.5%").tuned == 547_412
    with pytest.raises(ExpressionError, match="there is none"):
        make_plan("blocks:fisher(budget)", BASE, 12)


SOME = st.tuples(st.sampled_from(["all", "blocks.kernel", "attention", "layernorm", "blocks"]), st.integers(0, 99))


@settings(deadline=None, max_examples=60)
@given(SOME, st.sampled_from(["tensor", "module", "block", "head", "out"]), st.booleans())
def test_a_set_is_split_into_units_whose_sizes_are_known_without_splitting(some, unit, whole):
    text, seed = some
    weights = make_plan(text, TOY, HEADS).step.support
    if not whole:
        generator = np.random.default_rng(seed)
        weights = WeightSet(TABLE, {path: np.flatnonzero(generator.random(len(weights.indices(path))) < 0.1)
                                    for path in weights.parts})  # fmt: skip
    try:
        parts = list(weights.split(unit))
    except ValueError as error:
        assert unit in ("block", "head", "out")
        with pytest.raises(ValueError, match=str(error).split(":")[0]):
            weights.measure(unit)
        return
    expected = pools_of(to_array(weights), unit)
    assert [np.flatnonzero(to_array(part)).tolist() for part in parts] == [sorted(pool) for pool in expected]
    assert weights.sizes(unit).tolist() == list(map(len, expected))
    number, measured = weights.measure(unit)
    assert number == len(parts)
    for path, (pools, counts) in measured.items():
        assert {pool: int(count) for pool, count in zip(pools, counts, strict=True)} == {
            place: part.size(path) for place, part in enumerate(parts) if part.size(path)
        }


def test_names_are_those_of_expressions():
    for weight in BASE:
        if weight.sublayer != "classifier":
            where = "" if weight.block is None else f"@{weight.block}"
            plan = make_plan(f"{name_of(weight)}{where}", BASE, 12)
            assert list(plan.step.support.parts) == [weight.path]
            assert plan.normal_form.startswith(f"{weight.sublayer}")


def test_of_bert_large_too():
    assert make_plan("attention@23[head=15]", LARGE, 16).tuned == 3 * (1024 * 64 + 64) + 64 * 1024
    assert make_plan("all", LARGE, 16).tuned == 333_579_264
