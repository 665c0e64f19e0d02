"""From an expression to the weights that it selects on a model. No TensorFlow here.

`make_plan` reads an expression on a model's table of weights: what its names mean is known then, and what depends on
scores is left as steps, in one order and with all that decides them spelled out (`Plan.normal_form`). `choose` takes
the steps, once what the scores need is there.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tfmt import expressions
from tfmt.bert.vocabulary import Weight
from tfmt.errors import RequestError
from tfmt.expressions import Amount, Blocks, Call, ExpressionError, Name, Node, Pair, Places, Scored, Shuffled
from tfmt.selection.scores import SCORES
from tfmt.selection.scores.pool import Known
from tfmt.selection.steps import SLACK, Combined, Count, Drawn, Fixed, Step, Thinned, steps_of, take
from tfmt.selection.weight_sets import Table, WeightSet

Given = Callable[[str, str], Mapping[str, np.ndarray | None]]  # (`run` or `mask`, text) -> indices by path, None: all


class OverfullError(ExpressionError):
    """More weights are asked for than a pool holds.

    Attributes:
      holds: how many it holds.
    """

    def __init__(self, reason: str, text: str, span: tuple[int, int], holds: int) -> None:
        super().__init__(reason, text, span)
        self.holds = holds


@dataclass(frozen=True)
class Term:
    """A term of an expression and how many weights it selects: at least and at most."""

    text: str
    bounds: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Plan:
    """What an expression selects on a model, beside the classifier, which always trains.

    Attributes:
      expression: in its one way of writing.
      step: how the weights are found.
      terms: the expression's terms with their counts.
      warnings: on what has no effect beside what other runs or files select.
    """

    expression: str
    step: Step
    terms: tuple[Term, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The model's."""
        return self.step.support.table

    @property
    def bounds(self) -> tuple[int, int]:
        """At least and at most so many weights are selected."""
        return self.step.bounds

    @property
    def tuned(self) -> int | None:
        """Number of selected weights without the classifier; None where it is known only once the scores are."""
        low, high = self.bounds
        return low if low == high else None

    @property
    def normal_form(self) -> str:
        """What is selected, with all that decides it: equal for two spellings of one selection."""
        return self.step.text

    @property
    def sha256(self) -> str:
        """Of the normal form."""
        return hashlib.sha256(self.normal_form.encode()).hexdigest()

    @property
    def thinned(self) -> list[Thinned]:
        """The steps that score."""
        return [step for step in steps_of(self.step) if isinstance(step, Thinned)]

    @property
    def is_measured(self) -> bool:
        """Whether gradients or a full fine-tuning decide which weights are selected."""
        return any(self.needed(kind) for kind in ("gradient", "squares", "tuned"))

    @property
    def is_drawn(self) -> bool:
        """Whether the seed alone decides which weights are selected."""
        return all(step.node.score == "random" for step in self.thinned)

    @property
    def lowest_block(self) -> int:
        """The lowest block of which something may be selected: 0 for the embeddings too, all blocks where none is."""
        paths = self.step.support.parts
        blocks = [
            weight.block or 0 for weight in self.table.weights if weight.path in paths and weight.sublayer != "pooler"
        ]
        return min(blocks, default=self.table.blocks)

    def needed(self, kind: str) -> dict[Any, tuple[str, ...]]:
        """What scores need of a kind (`gradient`, `squares`, `tuned`): {its options: paths in the model's order}."""
        found: dict[Any, dict[str, None]] = {}
        for step in self.thinned:
            if kind != SCORES[step.node.score].NEEDS:
                continue
            options = dict(step.node.options)
            key = options["head"] if "head" in options else (options["rate"], options["epochs"], options["checkpoint"])
            found.setdefault(key, {}).update(dict.fromkeys(step.support.parts))
        return {key: tuple(sorted(paths, key=self.table.places.__getitem__)) for key, paths in found.items()}

    @property
    def open_paths(self) -> frozenset[str]:
        """Variables that have a mask whichever weights are chosen, so that runs of other seeds share a traced step.

        Those that are vectors, and those that are drawn from. A kernel that scores leave out costs a backward pass.
        """
        found: set[str] = set()
        for step in steps_of(self.step):
            if isinstance(step, Fixed):
                found.update(path for path, part in step.weights.parts.items() if part is not None)
            elif isinstance(step, Thinned) and not step.node.whole:
                drawn = step.node.score == "random"
                found.update(p for p in step.support.parts if drawn or len(self.table.by_path[p].shape) == 1)
        return frozenset(found) & frozenset(self.step.support.parts)


def make_plan(
    expression: str | Node, weights: Iterable[Weight], heads: int, *, budget: str = "", given: Given | None = None
) -> Plan:
    """What an expression selects on a model.

    Args:
      expression: a text, or the tree of one.
      weights: the model's table.
      heads: attention heads of a block.
      budget: what `budget` in the expression is: a number of weights, or percent of the encoder.
      given: reads the weights of `run("...")` and `mask("...")`.

    Raises:
      ExpressionError: it reads as none, names what the model has not, selects nothing, or has a part without effect.
      RequestError: what another run or a file selects cannot be had.

    Example:
      >>> from tfmt.bert.configs import find_shape
      >>> from tfmt.bert.vocabulary import list_weights
      >>> shape = find_shape("bert-base-uncased")
      >>> make_plan("attention@0[head=3]", list_weights(shape, "sentence", 2), 12).tuned
      196800
    """
    node = expressions.parse(expression) if isinstance(expression, str) else expression
    text = expression if isinstance(expression, str) else expressions.write(node)
    planner = _Planner(text, Table.of(weights, heads), budget, given)
    step = planner.step(node)
    if not isinstance(node, Name) and step.bounds[1] == 0:
        raise ExpressionError("select leaves nothing to train; `none` says that", text, (0, len(text)))
    return Plan(expressions.write(node), _number(step), tuple(planner.terms(node)), tuple(planner.warnings))


class _Planner:
    """Reads one expression on one model."""

    def __init__(self, text: str, table: Table, budget: str, given: Given | None) -> None:
        self.text, self.table, self.budget, self.given = text, table, budget, given
        self.warnings: list[str] = []
        self._known: dict[int, Step] = {}

    def fail(self, reason: str, span: tuple[int, int]) -> ExpressionError:
        return ExpressionError(reason, self.text, span)

    def terms(self, node: Node, depth: int = 0, sign: str = "") -> Iterator[Term]:
        """The terms of a chain of `+`, `-` and `&`; those in parentheses below their sum, further to the right."""
        if isinstance(node, Pair) and not sign:
            yield from self.terms(node.first, depth)
            yield from self.terms(node.second, depth, f"{node.sign} ")
            return
        inside = isinstance(node, Pair)
        shown = f"({expressions.write(node)})" if inside else expressions.write(node)
        yield Term(f"{'  ' * depth}{sign}{shown}", self._known[id(node)].bounds)
        if inside:
            yield from self.terms(node, depth + 1)
            return
        match node:
            case Shuffled() | Blocks() | Places() | Scored():
                if any(isinstance(each, Pair | Scored) for each in expressions.walk(node.inside)):
                    yield from self.terms(node.inside, depth + 1)
        if isinstance(node, Scored) and node.amount.of is not None:
            yield from self.terms(node.amount.of, depth + 1, "of ")

    def step(self, node: Node) -> Step:
        if id(node) not in self._known:
            self._known[id(node)] = self._step(node)
        return self._known[id(node)]

    def _step(self, node: Node) -> Step:
        match node:
            case Name(("none",)):
                return Fixed(WeightSet(self.table, {}))
            case Name(words):
                return Fixed(self._ask(node, lambda: self.table.named(words)))
            case Call():
                return self._call(node)
            case Shuffled(inside):
                return self._shuffle(node, self.step(inside))
            case Blocks():
                return self._narrow(node, self.step(node.inside), self._blocks(node))
            case Places():
                return self._narrow(node, self.step(node.inside), self._places(node))
            case Scored():
                return self._thin(node, self.step(node.inside))
            case Pair():
                return self._pair(node)
        raise AssertionError(node)

    def _ask(self, node: Node, find: Callable[[], Any]) -> Any:
        """What `find` gives; its ValueError as an error that points at the node."""
        try:
            return find()
        except ExpressionError:
            raise
        except ValueError as error:
            if isinstance(error, RequestError) and not isinstance(node, Call):
                raise
            raise self.fail(str(error), node.span) from None

    def _call(self, node: Call) -> Step:
        if node.name == "var":
            weight = self.table.by_path.get(node.text)
            if weight is None:
                known = expressions.suggest(node.text, self.table.by_path, most=3)
                raise self.fail(f"this model has no variable {node.text!r}: {known}", node.span)
            return Fixed(self.table.take([weight]))
        if self.given is None:
            raise self.fail(f"{node.name}(...) cannot be read here", node.span)
        read = self.given
        parts = self._ask(node, lambda: read(node.name, node.text))
        for path, part in parts.items():
            weight = self.table.by_path.get(path)
            if weight is None or (part is not None and len(part) and not 0 <= part[0] <= part[-1] < weight.size):
                raise self.fail(f"{node.text} selects weights of {path} that this model has not", node.span)
        return Fixed(WeightSet(self.table, parts), given=True)

    def _blocks(self, node: Blocks) -> Callable[[WeightSet], WeightSet]:
        last = self.table.blocks - 1
        chosen = self._ask(node, lambda: expressions.parse_places(node.blocks, last))
        if chosen and chosen[-1] > last:
            raise self.fail(f"this model has the blocks 0 to {last}. Received: {node.blocks}", node.span)
        return lambda weights: weights.in_blocks(chosen)

    def _places(self, node: Places) -> Callable[[WeightSet], WeightSet]:
        last = (self.table.heads if node.axis == "head" else self.table.hidden) - 1
        chosen = self._ask(node, lambda: expressions.parse_places(node.places, last))
        if chosen[-1] > last:
            has = f"the heads 0 to {last}" if node.axis == "head" else f"the places 0 to {last} of the hidden vector"
            raise self.fail(f"this model has {has}. Received: {node.places}", node.span)
        return lambda weights: weights.at(node.axis, chosen)

    def _narrow(self, node: Blocks | Places, inside: Step, narrow: Callable[[WeightSet], WeightSet]) -> Step:
        """Restricting a set of scored weights is what it has in common with what its support is restricted to."""
        self._check_terms(node, node.inside, narrow)
        left = narrow(inside.support)
        if isinstance(inside, Fixed):
            return Fixed(left.canonical(), inside.given)
        return _common([Fixed(left.canonical()), *_flat("&", inside)])

    def _check_terms(self, node: Blocks | Places, inside: Node, narrow: Callable[[WeightSet], WeightSet]) -> None:
        """Refuses a term of a sum in parentheses of which nothing is left."""
        if isinstance(inside, Pair) and inside.sign == "+":
            self._check_terms(node, inside.first, narrow)
            self._check_terms(node, inside.second, narrow)
        elif not narrow(self.step(inside).support):
            what = "in blocks" if isinstance(node, Blocks) else f"that belongs to a {node.axis}"
            shown = expressions.write(inside)
            raise self.fail(f"{shown} has nothing {what} there: {_tell_narrow(node)}", node.span)

    def _shuffle(self, node: Shuffled, inside: Step) -> Step:
        """Random weights, where that makes a difference."""
        if not isinstance(inside, Fixed) or any(part is not None for part in inside.weights.parts.values()):
            return Drawn(inside)
        shown = expressions.write(node.inside)
        self.warn_or_fail(inside, f"shuffled({shown}) changes nothing: {shown} takes whole tensors", node.span)
        return inside

    def warn_or_fail(self, step: Step, reason: str, span: tuple[int, int]) -> None:
        """What has no effect is an error, unless another run or a file decides it."""
        if not any(isinstance(each, Fixed) and each.given for each in steps_of(step)):
            raise self.fail(reason, span)
        self.warnings.append(reason)

    # ---- scores ----------------------------------------------------------------------------------------------------

    def _thin(self, node: Scored, pool: Step) -> Step:
        if not pool.support:
            raise self.fail("there is nothing to choose from", node.inside.span)
        unit = node.per or node.whole
        if unit:
            self._ask(node, lambda: pool.support.sizes(unit))
        thinned = Thinned(pool, node, self._count(node, pool))
        if node.whole:
            units = len(pool.support.sizes(node.whole))
            wanted, most = thinned.count.of(units), units
        else:
            least = int(thinned.sizes().min()) if thinned.count.each is not None and node.per else pool.bounds[1]
            wanted, most = thinned.count.of(least), least
        if wanted > most:
            what = f"units ({node.whole})" if node.whole else "weights"
            told = f"there are {most:,} {what} to choose from. Received: {wanted:,}"
            raise OverfullError(told, self.text, node.amount.span, most)
        return self._settle(thinned) if thinned.is_known else thinned

    def _settle(self, thinned: Thinned) -> Thinned:
        """The count in its one way of writing, where it is known what is chosen from."""
        node, count = thinned.node, thinned.count
        if node.whole:
            return replace(thinned, count=Count(total=count.of(len(thinned.support.sizes(node.whole)))))
        counts = count.among(thinned.sizes())
        if node.per and len(counts) == 1:
            return replace(thinned, node=replace(node, per=""), count=Count(total=int(counts[0])))
        if node.per and (counts == counts[0]).all():
            return replace(thinned, count=Count(each=int(counts[0])))
        return thinned

    def _count(self, node: Scored, pool: Step) -> Count:
        amount = node.amount
        if amount.budget:
            return Count(total=self._budget(amount))
        if amount.number is not None:
            return Count(each=amount.number) if node.per else Count(total=amount.number)
        assert amount.percent is not None
        share = Fraction(amount.percent) / 100
        if amount.of is None:
            low, high = pool.bounds
            if node.whole or low != high:
                return Count(share=share)
            return Count(total=max(1, math.ceil(share * low - SLACK)))
        low, high = self.step(amount.of).bounds
        if low != high:
            raise self.fail(
                f"how many weights {expressions.write(amount.of)} has depends on scores; write a number", amount.span
            )
        if not low:
            raise self.fail(f"{expressions.write(amount.of)} has no weight", amount.span)
        return Count(total=max(1, math.ceil(share * low - SLACK)))

    def _budget(self, amount: Amount) -> int:
        if not self.budget:
            raise self.fail("`budget` is the value of --budget, and there is none", amount.span)
        if not self.budget.endswith("%"):
            return int(self.budget)
        return max(1, math.ceil(Fraction(self.budget.rstrip("%")) / 100 * len(self.table.everything) - SLACK))

    # ---- + - & -----------------------------------------------------------------------------------------------------

    def _pair(self, node: Pair) -> Step:
        first, second = self.step(node.first), self.step(node.second)
        if node.sign == "+":
            return _join([*_flat("+", first), *_flat("+", second)])
        self._check_effect(node, first, second)
        if node.sign == "-":
            return _take_away(first, second)
        return _common([*_flat("&", first), *_flat("&", second)])

    def _check_effect(self, node: Pair, first: Step, second: Step) -> None:
        """Refuses a `-` or `&` that changes nothing or leaves nothing, where that is known without scores."""
        shown, both = expressions.write(node.second), Combined("+", (first, second))
        left = first.support & second.support
        same = not _is_drawn(both) and second.text in {step.text for step in _flat("&", first)}
        if node.sign == "-":
            gone = _flat("+", first.steps[1]) if isinstance(first, Combined) and first.sign == "-" else []
            if not _is_drawn(second) and second.text in {step.text for step in gone}:
                self.warn_or_fail(both, f"taking {shown} away changes nothing: it is gone already", node.span)
            elif not left:
                self.warn_or_fail(both, f"taking {shown} away changes nothing: none of it is there", node.span)
            elif same or (isinstance(second, Fixed) and not len(first.support - second.weights)):
                self.warn_or_fail(both, f"nothing is left once {shown} is taken away; `none` says that", node.span)
        elif not left:
            told = f"nothing is left: {shown} has no weight in common with what stands before it"
            self.warn_or_fail(both, told, node.span)
        elif same or any(
            isinstance(narrow, Fixed) and not len(other.support - narrow.weights)
            for narrow, other in ((second, first), (first, second))
        ):
            told = f"`& {shown}` changes nothing: one side holds all of the other"
            self.warn_or_fail(both, told, node.span)


def _tell_narrow(node: Blocks | Places) -> str:
    if isinstance(node, Blocks):
        return "embeddings and pooler lie outside the blocks"
    if node.axis == "head":
        return "heads are of attention.query, .key and .value, and of the kernel of attention.output"
    return "places of the hidden vector are in LayerNorms, tables, attention.output and feedforward.output"


def _flat(sign: str, step: Step) -> list[Step]:
    return list(step.steps) if isinstance(step, Combined) and step.sign == sign else [step]


def _is_drawn(step: Step) -> bool:
    """Whether chance has a part in it: equal draws in one expression are of different weights."""
    return any(
        isinstance(each, Drawn) or (isinstance(each, Thinned) and each.node.score == "random")
        for each in steps_of(step)
    )


def _order(steps: Sequence[Step]) -> tuple[Step, ...]:
    """In one order, and what is twice the same but once."""
    ordered = sorted(steps, key=lambda step: (step.order, step.bounds, step.text))
    return tuple(
        step
        for place, step in enumerate(ordered)
        if not place or ordered[place - 1].text != step.text or _is_drawn(step)
    )


def _part(steps: Sequence[Step], join: Callable[[WeightSet, WeightSet], WeightSet]) -> tuple[Fixed | None, list[Step]]:
    """What is known of a sum or of what all have, as one step, and the others."""
    fixed = [step for step in steps if isinstance(step, Fixed)]
    rest: list[Step] = [step for step in steps if not isinstance(step, Fixed)]
    if not fixed:
        return None, rest
    weights = functools.reduce(join, (step.weights for step in fixed))
    return Fixed(weights.canonical(), any(step.given for step in fixed)), rest


def _combine(sign: str, steps: Sequence[Step]) -> Step:
    ordered = _order(steps)
    return ordered[0] if len(ordered) == 1 else Combined(sign, ordered)


def _join(steps: Sequence[Step]) -> Step:
    known, rest = _part(steps, operator.or_)
    if known is None:
        return _combine("+", rest)
    # What is wholly there anyway need not be scored.
    rest = [step for step in rest if len(step.support - known.weights)]
    return _combine("+", [known, *rest] if known.weights or not rest else rest)


def _take_away(first: Step, second: Step) -> Step:
    """`a - b - c` is `a - (b + c)`; what is known is taken from what is known at once."""
    if isinstance(first, Combined) and first.sign == "-":
        second = _join([*_flat("+", first.steps[1]), *_flat("+", second)])
        first = first.steps[0]
    known, rest = _part(_flat("+", second), operator.or_)
    if known is not None and isinstance(first, Fixed):
        first = Fixed((first.weights - known.weights).canonical(), first.given or known.given)
    elif known is not None and (there := known.weights & first.support):
        rest = [Fixed(there.canonical(), known.given), *rest]
    return Combined("-", (first, _join(rest))) if rest else first


def _common(steps: Sequence[Step]) -> Step:
    known, rest = _part(steps, operator.and_)
    if known is not None:
        before = functools.reduce(operator.and_, (step.support for step in rest)) if rest else known.weights
        weights = known.weights & before
        if not rest or len(weights) < len(before):  # else it takes nothing away
            rest = [Fixed(weights.canonical(), known.given), *rest]
    return _combine("&", rest)


def _number(step: Step) -> Step:
    """Numbers the draws of a plan on, in its one order, so that equal pools draw different places."""
    taken = 0

    def visit(step: Step) -> Step:
        nonlocal taken
        match step:
            case Thinned():
                step = replace(step, pool=visit(step.pool), stream=taken)
                taken += step.streams
            case Drawn():
                step = replace(step, inside=visit(step.inside), stream=taken)
                taken += step.streams
            case Combined():
                step = replace(step, steps=tuple(visit(each) for each in step.steps))
        return step

    return visit(step)


@dataclass
class Chosen:
    """What a plan selects.

    Attributes:
      weights: the weights.
      warnings: on parts of the expression that had no effect.
    """

    weights: WeightSet
    warnings: list[str] = field(default_factory=list)


def choose(plan: Plan, *, seed: int, known: Known | None = None) -> Chosen:
    """The weights that a plan selects.

    Args:
      plan: from `make_plan`.
      seed: of the draws.
      known: what its scores are made of; see `Plan.needed`.

    Raises:
      RequestError: a pool holds fewer weights than are to be chosen from it, or nothing is left.
    """
    chosen = Chosen(WeightSet(plan.table, {}), list(plan.warnings))
    chosen.weights = take(plan.step, seed, (known or Known()).remembering(), chosen.warnings)
    if not chosen.weights and plan.bounds[1]:
        raise RequestError(f"select={plan.expression} leaves nothing to train")
    return chosen
