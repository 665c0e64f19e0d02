"""The language of selections: a text becomes a tree, and a tree its one way of writing. No model is known here.

The grammar is `expressions.lark`; what each name means on a model is `tfmt.selection.plans`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from importlib import resources
from pathlib import PurePath
from typing import Any

from tfmt.errors import RequestError, one_line

_SHOWN = 100  # characters of a long expression around the place that is wrong
_LONGEST_NUMBER = 400  # digits
_MOST_PERCENT = 10_000_000
LONGEST = 10_000  # characters of an expression
MOST = 200  # terms of an expression, so that none nests too deeply to be read
_LABEL = re.compile(r"\s*([^\s=\[\]()\"@:][^=\[\]()\"@:]*?)\s*=(?!=)(.*)", re.DOTALL)

# Score -> its own options, {name: (kind, default)}; beside them every score takes `lowest`, `per` and `whole`.
_HEADS = ("random", "trained")
_MEASURED: dict[str, tuple[Any, Any]] = {"head": (_HEADS, "random")}
SCORE_OPTIONS: dict[str, dict[str, tuple[Any, Any]]] = {
    "random": {},
    "magnitude": {},
    "far": {},
    "fisher": _MEASURED,
    "gradient": _MEASURED,
    "sensitivity": _MEASURED,
    "change": {"rate": (float, 5e-5), "epochs": (int, 5), "checkpoint": (("best", "last"), "best")},
    "rgn": _MEASURED,
}
GRADIENT_SCORES = ("fisher", "gradient", "sensitivity", "rgn")
PER = ("tensor", "module", "block", "head", "out")
AXES = ("head", "dim")
CALLS = ("shuffled", "run", "mask", "var")


class ExpressionError(RequestError):
    """A selection that cannot be: its text does not read as one, or the model has not what it names.

    Attributes:
      reason: what is wrong, in one line.
      text: the expression.
      span: first character and end of the part that is wrong.
    """

    def __init__(self, reason: str, text: str, span: tuple[int, int]) -> None:
        super().__init__(reason)
        self.reason, self.text, self.span = reason, text, span

    def __str__(self) -> str:
        told = self.reason if self.reason.startswith("select ") else f"select: {self.reason}"
        return f"{one_line(told)}\n{self._point()}"

    def _point(self) -> str:
        """The expression, or the part of a long one around the place, and carets below it."""
        start, end = self.span
        first = max(0, min(start - _SHOWN // 2, len(self.text) - _SHOWN))
        shown = "".join(c if c.isprintable() else " " for c in self.text[first : first + _SHOWN])
        carets = max(1, min(end, first + len(shown)) - start)
        return f"  {shown}\n  {' ' * (start - first)}{'^' * carets}"


@dataclass(frozen=True)
class Amount:
    """How many weights a score keeps.

    Attributes:
      number: that many; out of each pool, where `per` parts the term.
      percent: percent of the term, or of `of`.
      of: the term that `percent` is of.
      budget: the value of `--budget` is meant.
    """

    number: int | None = None
    percent: Decimal | None = None
    of: Node | None = None
    budget: bool = False
    span: tuple[int, int] = field(default=(0, 0), compare=False)


@dataclass(frozen=True)
class Node:
    """A part of an expression; `span` says where it stands in the text."""

    span: tuple[int, int] = field(kw_only=True, compare=False, default=(0, 0))


@dataclass(frozen=True)
class Name(Node):
    """A part of BERT: a sublayer, perhaps a layer of it, perhaps a part of that."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Call(Node):
    """`run`, `mask` or `var` of a text."""

    name: str
    text: str


@dataclass(frozen=True)
class Shuffled(Node):
    """As many random weights in every tensor as a selection takes there."""

    inside: Node


@dataclass(frozen=True)
class Blocks(Node):
    """A term within some blocks: `even`, `odd` or ranges."""

    inside: Node
    blocks: str


@dataclass(frozen=True)
class Places(Node):
    """A term within some heads, or within some places of the hidden vector."""

    inside: Node
    axis: str
    places: str


@dataclass(frozen=True)
class Scored(Node):
    """A term thinned by a score."""

    inside: Node
    score: str
    amount: Amount
    lowest: bool
    per: str
    whole: str
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Pair(Node):
    """Two selections joined (`+`), the second taken from the first (`-`), or what both have (`&`)."""

    sign: str
    first: Node
    second: Node


def split_label(text: str) -> tuple[str, str]:
    """Parts `NAME = EXPRESSION`; the name is empty where there is none.

    Example:
      >>> split_label("upper half = attention@6-last")
      ('upper half', 'attention@6-last')
    """
    match = _LABEL.fullmatch(text.strip()) if "=" in text and len(text) <= LONGEST else None
    return (match[1], match[2].strip()) if match else ("", text.strip())


@functools.lru_cache(maxsize=1024)  # a study has thousands of runs of a few expressions, and each reads it again
def parse(text: str) -> Node:
    """Reads an expression, without a label.

    Raises:
      ExpressionError: it does not follow the grammar, or names no score, option, unit or axis that there is.

    Example:
      >>> write(parse("attention@6-last+layernorm:far( 16,per=module )"))
      'attention@6-last + layernorm:far(16, per=module)'
    """
    if len(text) > LONGEST:
        raise RequestError(f"select: an expression has at most {LONGEST:,} characters. Received: {len(text):,}")
    from lark.exceptions import UnexpectedCharacters, UnexpectedInput

    try:
        tree = _parser().parse(text)
    except UnexpectedCharacters as error:
        at = int(error.pos_in_stream or 0)
        raise ExpressionError(_tell_expected(text, at, error.allowed or ()), text, (at, at + 1)) from None
    except UnexpectedInput as error:
        expected = getattr(error, "expected", ())
        end = len(text.rstrip())
        raise ExpressionError(f"select ends too early: {_tell_names(expected)}", text, (end, end + 1)) from None
    except RecursionError:
        raise RequestError("select: the expression is nested too deeply; write it with fewer parentheses") from None
    terms = sum(1 for _ in tree.find_data("term"))
    if terms > MOST:
        raise RequestError(f"select: an expression has at most {MOST} terms, parentheses counted. Received: {terms:,}")
    return _Reader(text).selection(tree.children[0])


@functools.cache
def _parser() -> Any:
    from lark import Lark

    grammar = resources.files("tfmt").joinpath("expressions.lark").read_text()
    return Lark(grammar, parser="earley", lexer="dynamic", propagate_positions=True, maybe_placeholders=True)


# What a terminal of the grammar is to a reader.
_TERMINALS = {
    "LPAR": "`(`", "RPAR": "`)`", "LSQB": "`[`", "RSQB": "`]`", "AT": "`@`", "COLON": "`:`", "COMMA": "`,`",
    "EQUAL": "`=`", "DOT": "`.`", "SIGN": "`+` or `-`", "AMPERSAND": "`&`", "NAME": "a name", "STRING": 'a text in ""',
    "INTEGER": "a whole number", "NUMBER": "a number", "PERCENT": "a percentage", "BLOCKS": "blocks (0,2-5,last)",
    "PLACES": "places (0,2-5,last)", "_OF": "`of`",
}  # fmt: skip


def _tell_names(terminals: Iterable[Any]) -> str:
    names = {str(getattr(terminal, "name", terminal)) for terminal in terminals}
    shown = [text for name, text in _TERMINALS.items() if name in names]
    return f"expected {', '.join(shown[:-1])}{' or ' if shown[1:] else ''}{shown[-1]}" if shown else "more is expected"


def _tell_expected(text: str, at: int, allowed: Iterable[Any]) -> str:
    signs = set(re.findall(r"[+&-]", re.sub(r'"[^"]*"|\([^()]*\)|@[\w,-]+|=[\w,-]+', "", text[: at + 1])))
    doubled = text[:at].rstrip()[-1:] in ("&", "+", "-")
    if text[at : at + 1] in tuple("&+-") and "&" in signs and len(signs) > 1 and not doubled:
        return "select mixes `&` with `+` or `-`: put parentheses around what belongs together"
    if re.match(r",\s+(\d|last)", text[at:]):
        return "select has a blank in a list of blocks or places: write them without, as in @0,2-5"
    return f"select cannot go on with {text[at : at + 1]!r} here: {_tell_names(allowed)}"


def suggest(word: str, known: Iterable[str], *, most: int = 30) -> str:
    """What there is instead of a word that is not known, close matches first, at most so many of the rest."""
    known = list(known)
    close = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.5)
    rest = [each for each in known if each not in close]
    shown = ", ".join(rest[:most]) + (", ..." if len(rest) > most else "")
    if not close:
        return f"there are {shown}"
    return f"did you mean {' or '.join(close)}?" + (f" There are also {shown}" if rest else "")


class _Reader:
    """Lark's tree of a text as nodes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def fail(self, reason: str, at: Any) -> ExpressionError:
        return ExpressionError(reason, self.text, self.span(at))

    def span(self, at: Any) -> tuple[int, int]:
        place = getattr(at, "meta", at)
        return (place.start_pos, place.end_pos)

    def selection(self, tree: Any) -> Node:
        first, *rest = tree.children
        node = self.term(first)
        signed = len(rest) > 0 and not hasattr(rest[0], "data")
        pairs = zip(rest[::2], rest[1::2], strict=True) if signed else (("&", term) for term in rest)
        for sign, term in pairs:
            node = Pair(str(sign), node, self.term(term), span=self.span(term))
        return node

    def term(self, tree: Any) -> Node:
        base, blocks, axis, places, score = tree.children
        span = self.span(tree)
        node = self.base(base)
        if blocks is not None:
            node = Blocks(node, str(blocks), span=self.span(blocks))
        if axis is not None:
            if str(axis) not in AXES:
                raise self.fail(f"select knows no axis {str(axis)!r}: {suggest(str(axis), AXES)}", axis)
            node = Places(node, str(axis), str(places), span=self.span(places))
        return node if score is None else self.score(node, score, span)

    def base(self, tree: Any) -> Node:
        first, *rest = tree.children
        span = self.span(tree)
        if hasattr(first, "data"):
            return self.selection(first)
        if not rest or getattr(rest[0], "type", "") == "NAME":
            return Name(tuple(map(str, tree.children)), span=span)
        name, inside = str(first), rest[0]
        if name not in CALLS:
            if name in SCORE_OPTIONS and hasattr(inside, "data"):
                raise self.fail(f"a score follows the term that it thins: `TERM:{name}(AMOUNT)`", first)
            raise self.fail(f"select knows no {name!r}: {suggest(name, CALLS)}", first)
        if (name == "shuffled") != hasattr(inside, "data"):
            shown = "shuffled(SELECTION)" if name == "shuffled" else f'{name}("...")'
            raise self.fail(f"write {shown}", tree)
        return Shuffled(self.selection(inside), span=span) if name == "shuffled" else Call(
            name, str(inside)[1:-1], span=span
        )  # fmt: skip

    def score(self, inside: Node, tree: Any, span: tuple[int, int]) -> Node:
        name, amount, *options = tree.children
        score = str(name)
        if score not in SCORE_OPTIONS:
            raise self.fail(f"select knows no score {score!r}: {suggest(score, SCORE_OPTIONS)}", name)
        found: dict[str, Any] = {}
        for option in options:
            key, value = self.option(score, option)
            if key in found:
                raise self.fail(f"{key} is given twice", option)
            found[key] = value
        own = {key: found.pop(key, default) for key, (_, default) in SCORE_OPTIONS[score].items()}
        lowest = bool(found.pop("lowest", False))
        per, whole = found.pop("per", ""), found.pop("whole", "")
        if lowest and score == "random":
            raise self.fail("random has no lowest: every weight is as likely", tree)
        if per and whole:
            raise self.fail("a score takes per= or whole=, not both", tree)
        read = self.amount(amount)
        if whole and (read.budget or read.of is not None):
            raise self.fail(f"whole={whole} counts whole units: give a number of them, or percent of them", amount)
        return Scored(inside, score, read, lowest, per, whole, tuple(sorted(own.items())), span=span)

    def amount(self, tree: Any) -> Amount:
        first, *of = tree.children
        span, text = self.span(tree), str(first)
        if first.type == "INTEGER":
            if len(text) > _LONGEST_NUMBER or int(text) == 0:
                raise self.fail("a score keeps at least 1 weight, and no more than there are", tree)
            return Amount(number=int(text), span=span)
        if first.type == "PERCENT":
            percent = Decimal(text.rstrip("% "))
            if not 0 < percent <= _MOST_PERCENT or len(text) > _LONGEST_NUMBER:
                raise self.fail(f"a percentage is above 0 and at most {_MOST_PERCENT:,}. Received: {text}", first)
            return Amount(percent=percent, of=self.term(of[0]) if of and of[0] is not None else None, span=span)
        if text != "budget":
            raise self.fail(f"an amount is a number, a percentage or `budget`. Received: {text}", tree)
        return Amount(budget=True, span=span)

    def option(self, score: str, tree: Any) -> tuple[str, Any]:
        key, *value = map(str, tree.children)
        known: dict[str, tuple[Any, Any]] = {"per": (PER, ""), "whole": (PER, ""), **SCORE_OPTIONS[score]}
        if key == "lowest" and not value:
            return key, True
        if key == "lowest":
            raise self.fail("lowest takes no value", tree)
        if key not in known:
            raise self.fail(f"{score} has no option {key!r}: {suggest(key, ['lowest', *known])}", tree)
        kind = known[key][0]
        if not value:
            raise self.fail(f"{key} needs a value: {key}=...", tree)
        if isinstance(kind, tuple):
            if value[0] not in kind:
                raise self.fail(f"{key} knows no {value[0]!r}: {suggest(value[0], kind)}", tree)
            return key, value[0]
        try:
            number = kind(value[0])
        except ValueError:
            number = 0
        if not 0 < number < 1_000_000:
            what = f"a {'whole ' if kind is int else ''}number above 0 and below 1,000,000"
            raise self.fail(f"{key} is {what}. Received: {value[0]}", tree)
        return key, number


def write(node: Node) -> str:
    """An expression in its one way of writing: `parse` reads it back as the same tree.

    What an option is by default is left out.
    """
    match node:
        case Name(words):
            return ".".join(words)
        case Call(name, text):
            return f'{name}("{text}")'
        case Shuffled(inside):
            return f"shuffled({write(inside)})"
        case Blocks(inside, blocks):
            return f"{_base(inside, Blocks)}@{blocks}"
        case Places(inside, axis, places):
            return f"{_base(inside, Places)}[{axis}={places}]"
        case Scored():
            return f"{_base(node.inside, Scored)}:{node.score}({', '.join(_arguments(node))})"
        case Pair(sign, first, second):
            mixed = isinstance(first, Pair) and (sign == "&") != (first.sign == "&")
            left = f"({write(first)})" if mixed else write(first)
            return f"{left} {sign} {f'({write(second)})' if isinstance(second, Pair) else write(second)}"
    raise AssertionError(node)


def shorten(text: str, folders: int = 0) -> str:
    """An expression, labelled or not, with of each run's or file's place only the name and so many folders above it."""

    def cut(found: re.Match[str]) -> str:
        return f'{found[1]}("{PurePath(*PurePath(found[2]).parts[-1 - folders :])}")'

    return re.sub(r'\b(run|mask)\("([^"]*)"\)', cut, text)


def _base(node: Node, outer: type) -> str:
    """A term before what restricts or thins it; a term has blocks, places and a score in this order, each once."""
    order = (Blocks, Places, Scored)
    inner = order.index(type(node)) if type(node) in order else -1
    fits = not isinstance(node, Pair) and inner < order.index(outer)
    return write(node) if fits else f"({write(node)})"


def _arguments(node: Scored) -> Iterator[str]:
    amount = node.amount
    if amount.percent is None:
        yield "budget" if amount.budget else str(amount.number)
    else:
        of = f" of {f'({write(amount.of)})' if isinstance(amount.of, Pair) else write(amount.of)}" if amount.of else ""
        yield f"{_plain(amount.percent)}%{of}"
    if node.lowest:
        yield "lowest"
    for name, value in (("per", node.per), ("whole", node.whole)):
        if value:
            yield f"{name}={value}"
    for name, value in node.options:
        if value != SCORE_OPTIONS[node.score][name][1]:
            yield f"{name}={value}"


def _plain(percent: Decimal) -> str:
    text = f"{percent:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def walk(node: Node) -> Iterator[Node]:
    """A node and all nodes in it, amounts' terms included."""
    yield node
    match node:
        case Pair():
            yield from walk(node.first)
            yield from walk(node.second)
        case Scored():
            yield from walk(node.inside)
            if node.amount.of is not None:
                yield from walk(node.amount.of)
        case Shuffled() | Blocks() | Places():
            yield from walk(node.inside)


def parse_places(text: str, last: int) -> tuple[int, ...]:
    """`even`, `odd`, or ranges such as `0,2-5,last`, as sorted numbers; `last + 1` is among them if any lie beyond.

    Raises:
      ValueError: a range runs backwards.
    """
    if text in ("even", "odd"):
        return tuple(range(text == "odd", last + 1, 2))
    found: set[int] = set()
    for part in text.split(","):
        # Of digits without end the first few say as much: there is no such place.
        bounds = [last if bound == "last" else int(bound[:_LONGEST_NUMBER]) for bound in part.split("-")]
        if bounds[-1] < bounds[0]:
            raise ValueError(f"the range {part} runs backwards")
        found.update(range(min(bounds[0], last + 1), min(bounds[-1], last + 1) + 1))
    return tuple(sorted(found))
