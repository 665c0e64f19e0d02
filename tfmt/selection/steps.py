"""How the weights of a selection are found: steps, each of which takes weights out of what it is made of.

What a step may select, how many, and its one way of writing are known before any score is; `take` gives the weights.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tfmt.errors import RequestError
from tfmt.expressions import Scored
from tfmt.selection.draws import draw_without_replacement
from tfmt.selection.largest import largest
from tfmt.selection.scores import BY_POOL, SCORES, random
from tfmt.selection.scores.pool import Known, Pool
from tfmt.selection.weight_sets import WeightSet

# A percentage that is a hair above a whole number of weights means that number.
SLACK = Fraction(1, 10**9)


@dataclass(frozen=True, eq=False)
class Fixed:
    """Weights that are known; `given` by another run or a file, else by names alone."""

    weights: WeightSet
    given: bool = False

    @property
    def support(self) -> WeightSet:
        """All that may be selected."""
        return self.weights

    @functools.cached_property
    def text(self) -> str:
        """What is selected, with all that decides it."""
        return self.weights.describe()

    @property
    def order(self) -> str:
        """Sorts the steps of a sum."""
        return self.text

    @property
    def bounds(self) -> tuple[int, int]:
        """At least and at most so many weights are selected."""
        return len(self.weights), len(self.weights)


@dataclass(frozen=True, eq=False)
class Count:
    """How many weights, or whole units, a score keeps: `each` out of each pool, or `total`, or a `share` of them."""

    each: int | None = None
    total: int | None = None
    share: Fraction | None = None

    def of(self, size: int) -> int:
        """Out of one pool, or in all."""
        if self.share is not None:
            return max(math.ceil(self.share * size - SLACK), min(size, 1))
        number = self.total if self.each is None else self.each
        assert number is not None
        return number

    def among(self, sizes: np.ndarray) -> np.ndarray:
        """Of pools of these sizes: what is meant in all is shared by largest remainder, in proportion to size."""
        if self.each is not None:
            return np.full(len(sizes), self.each)
        whole = int(sizes.sum())
        total = self.of(whole)
        counts, remainders = np.divmod(total * sizes, max(whole, 1))  # both below the number of weights: no overflow
        counts[np.argsort(-remainders, kind="stable")[: total - int(counts.sum())]] += 1
        return counts


@dataclass(frozen=True, eq=False)
class Thinned:
    """The highest- or lowest-scored weights of a pool."""

    pool: Step
    node: Scored
    count: Count
    stream: int = 0  # of `random`: the number of its first pool's draw

    @property
    def support(self) -> WeightSet:
        """All that may be selected."""
        return self.pool.support

    @functools.cached_property
    def bounds(self) -> tuple[int, int]:
        """At least and at most so many weights are selected."""
        node, (low, high) = self.node, self.pool.bounds
        if node.whole:
            sizes = np.sort(self.support.sizes(node.whole))
            count = min(self.count.of(len(sizes)), len(sizes))
            return (int(sizes[:count].sum()), int(sizes[len(sizes) - count :].sum())) if self.is_known else (0, high)
        if self.count.each is not None:
            most = self.count.each * len(self.sizes())
            return (most, most) if self.is_known else (0, min(most, high))
        return self.count.of(low), self.count.of(high)

    @property
    def is_known(self) -> bool:
        """Whether it is known which weights are chosen from: all that may be."""
        return self.pool.bounds[0] == len(self.support)

    def sizes(self) -> np.ndarray:
        """Of the pools, as far as the support tells."""
        return self.support.sizes(self.node.per) if self.node.per else np.array([len(self.support)])

    @property
    def streams(self) -> int:
        """How many draws it may need."""
        return (len(self.sizes()) if self.node.per else 1) if self.node.score == "random" else 0

    @functools.cached_property
    def text(self) -> str:
        """What is selected, with all that decides it."""
        count = self.count
        shown = f"{count.each} each" if count.each is not None else (
            f"{count.total}" if count.share is None else f"{count.share} of them"
        )  # fmt: skip
        drawn = [f"stream={self.stream}"] if self.node.score == "random" else []
        return f"({self.pool.text}):{self.node.score}({', '.join([shown, *self._options, *drawn])})"

    @functools.cached_property
    def order(self) -> str:
        """Sorts the steps of a sum, whatever their counts: so a draw keeps its stream where a budget grows."""
        return f"({self.pool.order}):{self.node.score}({', '.join(self._options)})"

    @property
    def _options(self) -> list[str]:
        node = self.node
        options = [f"{name}={value!r}" for name, value in node.options]
        options += [] if node.score == "random" else ["lowest" if node.lowest else "highest"]
        return options + ([f"per={node.per}"] if node.per else [f"whole={node.whole}"] if node.whole else [])


@dataclass(frozen=True, eq=False)
class Drawn:
    """As many random weights in every tensor as another step takes there."""

    inside: Step
    stream: int = 0

    @functools.cached_property
    def support(self) -> WeightSet:
        """All that may be selected."""
        table = self.inside.support.table
        return table.take(table.by_path[path] for path in self.inside.support.parts)

    @property
    def bounds(self) -> tuple[int, int]:
        """At least and at most so many weights are selected."""
        return self.inside.bounds

    @property
    def streams(self) -> int:
        """How many draws it may need."""
        return len(self.support.parts)

    @functools.cached_property
    def text(self) -> str:
        """What is selected, with all that decides it."""
        return f"shuffled({self.inside.text}, stream={self.stream})"

    @functools.cached_property
    def order(self) -> str:
        """Sorts the steps of a sum."""
        return f"shuffled({self.inside.order})"


@dataclass(frozen=True, eq=False)
class Combined:
    """Steps joined (`+`), the second taken from the first (`-`), or what all have (`&`)."""

    sign: str
    steps: tuple[Step, ...]

    @functools.cached_property
    def support(self) -> WeightSet:
        """All that may be selected."""
        support = self.steps[0].support
        if self.sign != "-":
            for step in self.steps[1:]:
                support = support | step.support if self.sign == "+" else support & step.support
        elif isinstance(self.steps[1], Fixed):
            support = support - self.steps[1].weights
        return support

    @functools.cached_property
    def bounds(self) -> tuple[int, int]:
        """At least and at most so many weights are selected."""
        bounds = [step.bounds for step in self.steps]
        lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
        limit = len(self.support)
        if self.sign == "+":
            if sum(len(step.support) for step in self.steps) == limit:  # they share nothing
                return sum(lows), sum(highs)
            return max(lows), min(sum(highs), limit)
        if self.sign == "-":
            first, second = (step.support for step in self.steps)
            shared = len(first & second)
            outside = len(second) - shared if lows[0] == len(first) else highs[1]  # of the second, none of which counts
            return max(0, lows[0] - min(highs[1], shared)), min(highs[0] - max(0, lows[1] - outside), limit)
        fixed, *rest = self.steps
        if isinstance(fixed, Fixed) and len(rest) == 1:
            paths = frozenset(path for path in rest[0].support.parts if path in fixed.weights.parts)
            if all(fixed.weights.size(path) == rest[0].support.size(path) for path in paths):  # whole variables
                return count_parts(rest[0], paths)
        return 0, min(*highs, limit)

    @functools.cached_property
    def text(self) -> str:
        """What is selected, with all that decides it."""
        return f" {self.sign} ".join(f"({step.text})" for step in self.steps)

    @functools.cached_property
    def order(self) -> str:
        """Sorts the steps of a sum."""
        return f" {self.sign} ".join(f"({step.order})" for step in self.steps)


Step = Fixed | Thinned | Drawn | Combined


def steps_of(step: Step) -> Iterator[Step]:
    """A step and all that it is made of."""
    yield step
    match step:
        case Thinned():
            yield from steps_of(step.pool)
        case Drawn():
            yield from steps_of(step.inside)
        case Combined():
            for each in step.steps:
                yield from steps_of(each)


def count_parts(step: Step, paths: frozenset[str]) -> tuple[int, int]:
    """How many weights a step selects of some variables: at least and at most."""
    match step:
        case Fixed(weights):
            number = sum(weights.size(path) for path in paths)
            return number, number
        case Drawn(inside):
            return count_parts(inside, paths)
        case Thinned():
            return _count_thinned(step, paths)
    within = [count_parts(each, paths) for each in step.steps]
    lows, highs = [low for low, _ in within], [high for _, high in within]
    limit = sum(step.support.size(path) for path in paths)
    if step.sign == "+":
        apart = sum(sum(each.support.size(path) for path in paths) for each in step.steps) == limit
        return (sum(lows), sum(highs)) if apart else (max(lows), min(sum(highs), limit))
    if step.sign == "-":
        both = step.steps[0].support & step.steps[1].support
        shared = sum(both.size(path) for path in paths)
        return max(0, lows[0] - min(highs[1], shared)), min(highs[0], limit)
    return 0, min(*highs, limit)


def _count_thinned(step: Thinned, paths: frozenset[str]) -> tuple[int, int]:
    """Of each pool as many as must be, and as can be, in these variables."""
    support = step.support
    if not step.node.per or not step.is_known:
        (low, high), inside = step.bounds, sum(support.size(path) for path in paths)
        return max(0, low - (len(support) - inside)), min(high, inside)
    sizes = step.sizes()
    there, counts = np.zeros_like(sizes), step.count.among(sizes)
    for path, (pools, numbers) in support.measure(step.node.per)[1].items():
        there[pools] += numbers * (path in paths)
    return int(np.maximum(0, counts - (sizes - there)).sum()), int(np.minimum(counts, there).sum())


# ---- taking the steps ------------------------------------------------------------------------------------------------


def take(step: Step, seed: int, known: Known, warnings: list[str]) -> WeightSet:
    """The weights that a step selects.

    Args:
      step: the step.
      seed: of its draws.
      known: what its scores are made of.
      warnings: is given a line on each part that had no effect.

    Raises:
      RequestError: a pool holds fewer weights than are to be chosen from it.
    """
    match step:
        case Fixed(weights):
            return weights
        case Drawn():
            return _shuffle(step, take(step.inside, seed, known, warnings), seed)
        case Thinned():
            pool = take(step.pool, seed, known, warnings)
            if not pool:
                warnings.append(f"there was nothing to choose from: {step.text}")
                return pool
            return _thin_pool(step, pool, seed, known)
    steps = step.steps
    if step.sign == "-" and isinstance(steps[1], Combined) and steps[1].sign == "+":  # one after the other, as written
        steps = (steps[0], *steps[1].steps)
    taken = [take(each, seed, known, warnings) for each in steps]
    join = {"+": operator.or_, "-": operator.sub, "&": operator.and_}[step.sign]
    found: WeightSet = functools.reduce(join, taken)
    # Which steps had no effect does not depend on their order.
    for place in {"+": (), "-": range(1, len(taken)), "&": range(len(taken))}[step.sign]:
        rest = functools.reduce(join, taken[:place] + taken[place + 1 :])
        if len(rest) == len(found):
            warnings.append(f"`{step.sign}` took nothing away: {steps[place].text}")
    return found


def _shuffle(step: Drawn, inside: WeightSet, seed: int) -> WeightSet:
    """Draws in every tensor as many as there are; streams are numbered by the tensors that it may have."""
    parts: dict[str, np.ndarray | None] = {}
    for place, path in enumerate(step.support.parts):
        count, size = inside.size(path), inside.table.by_path[path].size
        parts[path] = (
            None if count == size else np.sort(draw_without_replacement(size, count, seed, step.stream + place))
        )
    return WeightSet(inside.table, parts)


def _thin_pool(step: Thinned, pool: WeightSet, seed: int, known: Known) -> WeightSet:
    node = step.node
    if node.whole:
        return _thin_units(step, pool, seed, known)
    if step.count.each is None and step.count.of(len(pool)) > len(pool):
        raise RequestError(f"select: {node.score} is to choose {step.count.of(len(pool)):,} weights of {len(pool):,}")
    pools: Iterable[WeightSet] = pool.split(node.per) if node.per else (pool,)
    counts = step.count.among(pool.sizes(node.per) if node.per else np.array([len(pool)])).tolist()
    whole = all(part is None for part in pool.parts.values())
    if whole and node.per == "out" and node.score not in ("random", *BY_POOL):
        return _thin_columns(node, pool, counts, known)
    found: dict[str, list[np.ndarray]] = {}
    for number, (each, count) in enumerate(zip(pools, counts, strict=True)):
        if count > len(each):
            raise RequestError(f"select: {node.score} is to choose {count:,} weights of {len(each):,}")
        if node.score == "random":
            picked = random.pick(len(each), count, seed, step.stream + number)
        else:
            picked = largest(_score(node, Pool(each, known)), count, lowest=node.lowest)
        for path, part in _unlay(picked, each):
            found.setdefault(path, []).append(part)
    joined = {path: parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts)) for path, parts in found.items()}
    return WeightSet(pool.table, joined)


def _thin_columns(node: Scored, pool: WeightSet, counts: list[int], known: Known) -> WeightSet:
    """As `_thin_pool` for the columns of whole kernels, a kernel at a time: a model has very many of them."""
    found: dict[str, np.ndarray | None] = {}
    for path in pool.parts:
        rows, columns = pool.table.by_path[path].shape
        own, counts = np.array(counts[:columns]), counts[columns:]
        scores = _score(node, Pool(WeightSet(pool.table, {path: None}), known)).reshape(rows, columns).T
        order = np.argsort(scores if node.lowest else -scores, axis=1, kind="stable")
        places = order * columns + np.arange(columns)[:, None]
        found[path] = np.sort(places[np.arange(rows) < own[:, None]]).astype(np.int64)
    return WeightSet(pool.table, found)


def _thin_units(step: Thinned, pool: WeightSet, seed: int, known: Known) -> WeightSet:
    """Whole units by their mean score."""
    node = step.node
    units = list(pool.split(node.whole))
    count = step.count.of(len(units))
    if count > len(units):
        raise RequestError(f"select: {node.score} is to choose {count:,} of {len(units):,} units ({node.whole})")
    if node.score == "random":
        picked = random.pick(len(units), count, seed, step.stream)
    else:
        means = np.array([np.mean(_score(node, Pool(unit, known)), dtype=np.float64) for unit in units])
        picked = largest(means, count, lowest=node.lowest)
    found: dict[str, list[np.ndarray | None]] = {}
    for place in picked:
        for path, part in units[place].parts.items():
            found.setdefault(path, []).append(part)
    # A variable that is in a unit as a whole is in no other.
    return WeightSet(pool.table, {path: _join(parts) for path, parts in found.items()})


def _join(parts: list[np.ndarray | None]) -> np.ndarray | None:
    inside = [part for part in parts if part is not None]
    return np.sort(np.concatenate(inside)) if inside else None


def _score(node: Scored, pool: Pool) -> np.ndarray:
    numbers: np.ndarray = SCORES[node.score].score(pool, **dict(node.options))
    return numbers


def _unlay(picked: np.ndarray, pool: WeightSet) -> Iterator[tuple[str, np.ndarray]]:
    """Sorted positions in variables laid end to end -> (path, indices)."""
    end = 0
    for path, part in pool.parts.items():
        size = pool.size(path)
        first, last = np.searchsorted(picked, [end, end + size])
        if last > first:
            inside = (picked[first:last] - end).astype(np.int64)
            yield path, inside if part is None else part[inside]
        end += size
