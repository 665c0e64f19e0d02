"""Expressions as text: read, written, and refused with a caret below the place."""

from decimal import Decimal

import pytest
from by_loops import HEADS, TOY
from hypothesis import given, settings
from hypothesis import strategies as st
from refusing import USUAL, call

from tfmt import expressions
from tfmt.errors import RequestError
from tfmt.expressions import (
    GRADIENT_SCORES,
    LONGEST,
    MOST,
    PER,
    SCORE_OPTIONS,
    Amount,
    Blocks,
    Call,
    ExpressionError,
    Name,
    Pair,
    Places,
    Scored,
    Shuffled,
    parse,
    split_label,
    write,
)
from tfmt.selection.plans import make_plan
from tfmt.spec import RunSpec

WORDS = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z")
RANGES = st.lists(st.from_regex(r"\A([0-9]{1,3}|last)(-([0-9]{1,3}|last))?\Z"), min_size=1, max_size=3).map(",".join)
RATES = st.one_of(st.floats(1e-9, 999_999), st.sampled_from([5e-5, 1e-4, 0.123456789012]))


def amounts(nodes):
    percents = st.decimals(Decimal("0.000001"), 100, places=6).filter(lambda number: number > 0)
    return st.one_of(
        st.integers(1, 10**12).map(lambda number: Amount(number=number)),
        st.builds(lambda percent, of: Amount(percent=percent, of=of), percents, st.one_of(st.none(), nodes)),
        st.just(Amount(budget=True)),
    )


@st.composite
def scored(draw, nodes):
    score = draw(st.sampled_from(sorted(SCORE_OPTIONS)))
    amount, unit = draw(amounts(nodes)), draw(st.sampled_from(["", *PER]))
    whole = bool(unit) and not amount.budget and amount.of is None and draw(st.booleans())
    options = {name: draw(RATES if kind is float else st.integers(1, 99) if kind is int else st.sampled_from(kind))
               for name, (kind, _) in SCORE_OPTIONS[score].items()}  # fmt: skip
    return Scored(
        draw(nodes), score, amount, score != "random" and draw(st.booleans()), "" if whole else unit,
        unit if whole else "", tuple(sorted(options.items())),
    )  # fmt: skip


NODES = st.recursive(
    st.one_of(
        st.lists(WORDS, min_size=1, max_size=3).map(lambda words: Name(tuple(words))),
        st.builds(Call, st.sampled_from(["run", "mask", "var"]), st.text(
            st.characters(exclude_characters='"', exclude_categories=["Cs"]), max_size=10)),
    ),
    lambda nodes: st.one_of(
        st.builds(Shuffled, nodes), st.builds(Blocks, nodes, st.one_of(st.sampled_from(["even", "odd"]), RANGES)),
        st.builds(Places, nodes, st.sampled_from(["head", "dim"]), RANGES), scored(nodes),
        st.builds(Pair, st.sampled_from("+-&"), nodes, nodes),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(NODES)
def test_what_is_written_reads_back_as_the_same(node):
    text = write(node)
    assert parse(text) == node
    assert write(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("attention@6-last+layernorm:far( 16,per=module )", "attention@6-last + layernorm:far(16, per=module)"),
        ("  all -\n\tembeddings . word ", "all - embeddings.word"), ("((all))", "all"), ("(a+b)-c", "a + b - c"),
        ("a-(b+c)", "a - (b + c)"), ("a+(b&c)", "a + (b & c)"), ("(a&b)+c", "(a & b) + c"), ("a&b&c", "a & b & c"),
        ("a:fisher(5.50 %,head=random)", "a:fisher(5.5%)"), ("a:fisher(0.010%, lowest)", "a:fisher(0.01%, lowest)"),
        ("a:change(7,rate=5e-5,epochs=3)", "a:change(7, epochs=3)"), ("a:change(7,rate=0.001)",
                                                                      "a:change(7, rate=0.001)"),
        ("a:random( 100% of (b + c) )", "a:random(100% of (b + c))"), ("(a:far(9))@0", "(a:far(9))@0"),
        ("(a@0-1)@1", "(a@0-1)@1"), ("a@0[head=1]:far(3)", "a@0[head=1]:far(3)"), ("(a[head=1])@0", "(a[head=1])@0"),
        ("shuffled( run( 'x' ) )".replace("'", '"'), 'shuffled(run("x"))'), ('mask("a b.safetensors")',) * 2,
        ("a:magnitude(3,whole=block)", "a:magnitude(3, whole=block)"), ("a@2-layernorm", "a@2 - layernorm"),
        ("a@2-last", "a@2-last"), ("a:fisher(budget)", "a:fisher(budget)"),
    ],
)  # fmt: skip
def test_an_expression_has_one_way_of_writing(text, written):
    assert write(parse(text)) == written
    assert parse(written) == parse(text)


def test_a_name_before_an_equals_sign():
    assert split_label("upper half = attention@6-last") == ("upper half", "attention@6-last")
    assert split_label("a:fisher(5%, per=tensor)") == ("", "a:fisher(5%, per=tensor)")
    assert split_label("attention[head=3]") == ("", "attention[head=3]")
    assert split_label("x = a:fisher(5%, per=tensor)") == ("x", "a:fisher(5%, per=tensor)")
    assert split_label('run("a=b")') == ("", 'run("a=b")')
    assert split_label(" all ") == ("", "all")


# The part that the carets point at stands between { and }; then a word of the reason.
REFUSED = [
    # what does not read as an expression
    ("attention +{ }", "expected `(` or a name"), ("{ }", "ends too early"), ("(all{ }", "`)`"), ("all{)}", "')'"),
    ("all {a}ll", "'a'"), ("all{/}pooler", "'/'"), ("{*}", "'*'"), ("all.{.}bias", "a name"),
    ("all@{x}", "blocks"), ("all@{-}1", "blocks"), ("all@0{,}", "','"), ("all[{0}]", "a name"),
    ("all[dim{]}", "`=`"), ("all[dim={e}ven]", "places"), ("all[dim=1]{@}0", "'@'"), ("all:far(1){:}far(1)", "':'"),
    ("all:far(1){@}0", "'@'"), ("all:far{ }", "`(`"), ("all:far({)}", "a whole number"), ("all:far({-}1)", "'-'"),
    ("all:random(5% {o}fattention)", "`of`"), ('run({"}a)', "text"), ("run({'}a')", "text"),
    ("all & layernorm {+} pooler", "parentheses"), ("all - layernorm {&} pooler", "parentheses"),
    ("all@0-1 & layernorm {-} pooler", "parentheses"),
    # what the language has not
    ("all:{foo}(3)", "no score 'foo'"), ("all:{fischer}(3)", "did you mean fisher"), ("{fisher}(all)", "TERM:fisher"),
    ("{grab}(all)", "shuffled"), ("{shuffled(\"a\")}", "shuffled(SELECTION)"), ("{run(all)}", 'run("...")'),
    ("all[{heads}=1]", "did you mean head"), ("all:far({0})", "at least 1"), ("all:far({0%})", "above 0"),
    ("all:far({most})", "`budget`"), ("all:far(3, {per})", "needs a value"),
    ("all:far(3, {per=row})", "no 'row'"), ("all:far(3, {head=trained})", "no option 'head'"),
    ("all:fisher(3, {head=none})", "random"), ("all:change(3, {epochs=1.5})", "whole number"),
    ("all:change(3, {rate=0})", "above 0"), ("all:far(3, lowest, {lowest})", "twice"),
    ("all:{random(3, lowest)}", "no lowest"), ("all:{far(3, per=tensor, whole=block)}", "not both"),
    ("blocks:far({budget}, whole=block)", "whole units"), ("blocks:far({5% of all}, whole=block)", "whole units"),
    # what the model has not
    ("{attn}", "did you mean attention"), ("{classifier}", "no part 'classifier'"), ("{attention.qeury}", "query"),
    ("{attention.gamma}", "has no 'gamma'"), ("{layernorm.kernel}", "gamma"), ("{all.query}", "has no 'query'"),
    ("{attention.query.kernel.bias}", "nothing comes after it"), ("{attention.bias.query}", "nothing comes after it"),
    ("{pooler.dense}", "kernel"), ("{var(\"bert/pooler\")}", "no variable"), ("attention@{3}", "blocks 0 to 2"),
    ("attention@{0-99}", "Received: 0-99"), ("attention@{2-1}", "backwards"), ("attention@{4-last}", "backwards"),
    ("attention[head={2}]", "heads 0 to 1"), ("layernorm[dim={16}]", "places 0 to 15"),
    ("layernorm[head={0}]", "belongs to a head"), ("attention.query[dim={0}]", "belongs to a dim"),
    ("embeddings@{0}", "outside the blocks"), ("(attention + pooler)@{0}", "pooler has nothing"),
    # what has no effect, or leaves nothing
    ("attention - {pooler}", "changes nothing"), ("attention - {all}", "nothing is left"),
    ("attention & {pooler}", "nothing is left"), ("attention & {all}", "changes nothing"),
    ("attention - {none}", "changes nothing"), ("attention & {none}", "nothing is left"),
    ("all - blocks - {attention}", "changes nothing"), ("layernorm:far(3) - {pooler}", "changes nothing"),
    ("layernorm:far(3) - {layernorm}", "nothing is left"), ("layernorm:far(3) & {all}", "changes nothing"),
    ("layernorm:far(3) & {attention}", "nothing is left"), ("layernorm:far(3) - {layernorm:far(3)}", "nothing is left"),
    ("layernorm:far(3) & {layernorm:far(3)}", "changes nothing"), ("{shuffled(layernorm)}", "whole tensors"),
    # how many
    ("layernorm:far({193})", "192"), ("layernorm:far({33}, per=module)", "32 weights"),
    ("layernorm:random({101%})", "192 weights"), ("blocks:far({4}, whole=block)", "3 units (block)"),
    ("layernorm:far({100% of attention})", "192 weights"), ("layernorm:far({5% of none})", "none has no weight"),
    ("all:far({5% of (layernorm:far(9) + layernorm:fisher(9))})", "depends on scores"),
    ("{all:far(3, per=block)}", "lies in no block"), ("{attention:far(3, per=head)}", "attention[head=0-last]"),
    ("{blocks:far(3, per=out)}", "per=out is for kernels"), ("all:far({budget})", "--budget"),
    ("{none}:far(3)", "nothing to choose from"), ("{run(\"runs/a\")}", "cannot be read here"),
]  # fmt: skip


@pytest.mark.parametrize(("marked", "word"), REFUSED)
def test_refused_with_carets_below_the_place(marked, word):
    start, end = marked.index("{"), marked.index("}") - 1
    text = marked.replace("{", "").replace("}", "")
    if marked.endswith("{ }"):  # behind the end
        text = text[:-1]
    with pytest.raises(ExpressionError) as caught:
        make_plan(text, TOY, HEADS)
    reason, shown, carets = str(caught.value).split("\n")
    assert word in reason
    assert shown == f"  {text}"
    assert carets == "  " + " " * start + "^" * (end - start)


def test_of_a_long_expression_the_part_around_the_place_is_shown():
    text = " + ".join(["attention.query.bias"] * 20 + ["attention.qeury.bias"] + ["pooler"] * 20)
    with pytest.raises(ExpressionError) as caught:
        make_plan(text, TOY, HEADS)
    _, shown, carets = str(caught.value).split("\n")
    assert len(shown) == 102
    assert shown[carets.index("^") : len(carets)] == "attention.qeury.bias"


def test_a_line_break_does_not_break_the_three_lines():
    with pytest.raises(ExpressionError) as caught:
        make_plan("attention +\n\tfoo", TOY, HEADS)
    assert str(caught.value).split("\n")[1:] == ["  attention +  foo", "               ^^^"]


def test_what_is_too_long_or_too_deep_is_refused_in_a_line():
    for text in ("+".join(["all"] * (MOST + 1)), "(" * MOST + "all" + ")" * MOST, "(" * 1500 + "all" + ")" * 1500,
                 "a" * (LONGEST + 1)):  # fmt: skip
        with pytest.raises(RequestError, match="select: ") as caught:
            make_plan(text, TOY, HEADS)
        assert "\n" not in str(caught.value)
    # What is just not too long is no trouble.
    assert make_plan("+".join(["all"] * MOST), TOY, HEADS).tuned == sum(w.size for w in TOY) - 34
    deep = "(" * (MOST - 1) + "all" + ")" * (MOST - 1)
    assert make_plan(deep, TOY, HEADS).expression == "all"


def test_a_spec_points_at_the_place_too():
    for settings_ in ({"select": "x = attention +"}, {"select": "attention:foo(3)"}):
        with pytest.raises(ExpressionError) as caught:
            RunSpec.make(model="demo", task="mrpc", mode="custom", **settings_)
        assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize(
    ("select", "lines"),
    [
        ("attention.qeury.bias@0", ["attention has no 'qeury': did you mean query", "  attention.qeury.bias@0",
                                    "  ^^^^^^^^^^^^^^^^^^^^"]),
        ("half = attention@0-7", ["this model has the blocks 0 to 1. Received: 0-7", "  attention@0-7",
                                  "            ^^^"]),
        ("attention:fischer(5%)", ["no score 'fischer': did you mean fisher", "  attention:fischer(5%)",
                                   "            ^^^^^^^"]),
    ],
)  # fmt: skip
def test_a_command_ends_with_three_lines(select, lines, toy_bert, toy_glue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*USUAL, f"--model={toy_bert}", f"--data_dir={toy_glue}", "--mode=custom", f"--select={select}"]
    for command in ("train", "sweep"):
        extra = [] if command == "train" else ["--workers=0"]
        status, out, err = call(command, [*arguments, *extra])
        assert (status, out) == (2, "")
        shown = err.splitlines()
        assert shown[0].startswith(f"tfmt-{command}: select")
        assert lines[0] in shown[0]
        assert shown[1:] == lines[1:]
    assert not list(tmp_path.iterdir())


def test_every_score_and_option_is_there():
    from tfmt.selection.scores import SCORES as MODULES

    assert set(MODULES) == set(SCORE_OPTIONS)
    assert {name for name, module in MODULES.items() if module.NEEDS in ("gradient", "squares")} == set(GRADIENT_SCORES)
    for name, module in MODULES.items():
        if name == "random":
            continue
        assert set(SCORE_OPTIONS[name]) == set(module.score.__annotations__) - {"pool", "return"}


def test_suggestions_name_what_is_close_first():
    assert expressions.suggest("fischer", SCORE_OPTIONS).startswith("did you mean fisher?")
    assert expressions.suggest("xyz", ["head", "dim"]) == "there are head, dim"
