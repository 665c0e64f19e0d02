"""Sets of single weights of a model, and what the names, blocks, heads and places of an expression mean on one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tfmt.bert.vocabulary import BLOCK_SUBLAYERS, SUBLAYERS, Weight
from tfmt.expressions import suggest

# Sublayers with layers of their own names; a LayerNorm or the pooler is one layer.
_LAYERED = ("attention", "feedforward", "embeddings")
_GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(name for name in SUBLAYERS if name != "classifier"),
    "blocks": BLOCK_SUBLAYERS,
    "layernorm": ("attention_layernorm", "feedforward_layernorm"),
}
# Whose outputs are places of the hidden vector; those of the other layers are heads' or the feed-forward's own.
_HIDDEN = ("attention.output", "output")


def layer_of(weight: Weight) -> str:
    """The layer's name within its sublayer, `query`; empty for a sublayer that is one layer."""
    return weight.component.split(".")[-2] if weight.sublayer in _LAYERED else ""


def name_of(weight: Weight) -> str:
    """A variable's name in expressions, without its block: `attention.query.kernel`."""
    return ".".join(filter(None, (weight.sublayer, layer_of(weight), weight.part)))


@dataclass(frozen=True, eq=False)
class Table:
    """The weights that may be selected on a model: all but the classifier's, in the model's order.

    Attributes:
      weights: one a variable.
      heads: attention heads of a block.
    """

    weights: tuple[Weight, ...]
    heads: int

    @classmethod
    def of(cls, weights: Iterable[Weight], heads: int) -> Table:
        """Of a model's whole table."""
        return cls(tuple(weight for weight in weights if weight.sublayer != "classifier"), heads)

    @functools.cached_property
    def by_path(self) -> dict[str, Weight]:
        """The weights by path."""
        return {weight.path: weight for weight in self.weights}

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """A path's place in the model's order."""
        return {weight.path: place for place, weight in enumerate(self.weights)}

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return 1 + max((weight.block for weight in self.weights if weight.block is not None), default=-1)

    @functools.cached_property
    def hidden(self) -> int:
        """Places of the hidden vector."""
        return self.by_path["bert/embeddings/LayerNorm/gamma"].size

    @functools.cached_property
    def everything(self) -> WeightSet:
        """All weights of the table."""
        return self.take(self.weights)

    def take(self, weights: Iterable[Weight]) -> WeightSet:
        """Whole variables as a set."""
        return WeightSet(self, {weight.path: None for weight in weights})

    def named(self, words: Sequence[str]) -> WeightSet:
        """The weights that a path of names means.

        Raises:
          ValueError: the model has no such part; the text says what it has.
        """
        known = [*_GROUPS, *(name for name in SUBLAYERS if name != "classifier")]
        first, *rest = words
        if first not in known:
            raise ValueError(f"select knows no part {first!r} of BERT: {suggest(first, [*known, 'none'])}")
        sublayers = _GROUPS.get(first, (first,))
        found = [weight for weight in self.weights if weight.sublayer in sublayers]
        if not found:
            raise ValueError(f"this model has no {first}")
        so_far = first
        layers = list(dict.fromkeys(layer_of(weight) for weight in found)) if first in _LAYERED else []
        if rest and rest[0] in layers:
            found = [weight for weight in found if layer_of(weight) == rest[0]]
            so_far, layers = f"{so_far}.{rest[0]}", []
            rest = rest[1:]
        parts = list(dict.fromkeys(weight.part for weight in found))
        if rest and rest[0] in parts:
            found = [weight for weight in found if weight.part == rest[0]]
            so_far, layers, parts = f"{so_far}.{rest[0]}", [], []
            rest = rest[1:]
        if rest:
            has = suggest(rest[0], [*layers, *parts]) if layers or parts else "nothing comes after it"
            raise ValueError(f"{so_far} has no {rest[0]!r}: {has}")
        return self.take(found)


class WeightSet:
    """A set of single weights, immutable.

    Args:
      table: the model's.
      parts: {path: rising int64 indices into the flattened variable, or None for all of it}; empty ones are dropped.
    """

    def __init__(self, table: Table, parts: Mapping[str, np.ndarray | None]) -> None:
        self.table = table
        kept = {path: part for path, part in parts.items() if part is None or len(part)}
        self.parts = dict(sorted(kept.items(), key=lambda item: table.places[item[0]]))
        self._measured: dict[str, tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]] = {}

    def size(self, path: str) -> int:
        """How many weights of a variable are in it."""
        if path not in self.parts:
            return 0
        part = self.parts[path]
        return self.table.by_path[path].size if part is None else len(part)

    @functools.cached_property
    def _count(self) -> int:
        return sum(map(self.size, self.parts))

    def __len__(self) -> int:
        return self._count

    def __or__(self, other: WeightSet) -> WeightSet:
        parts = dict(self.parts)
        for path, part in other.parts.items():
            own = parts.get(path, _EMPTY)
            parts[path] = None if own is None or part is None else _joined(own, part, self._size_of(path))
        return WeightSet(self.table, parts)

    def __and__(self, other: WeightSet) -> WeightSet:
        parts: dict[str, np.ndarray | None] = {}
        for path in self.parts.keys() & other.parts.keys():
            own, part = self.parts[path], other.parts[path]
            parts[path] = part if own is None else own if part is None else _within(own, part, self._size_of(path))
        return WeightSet(self.table, parts)

    def __sub__(self, other: WeightSet) -> WeightSet:
        parts = dict(self.parts)
        for path in self.parts.keys() & other.parts.keys():
            part = other.parts[path]
            parts[path] = _EMPTY if part is None else _without(parts[path], part, self._size_of(path))
        return WeightSet(self.table, parts)

    def _size_of(self, path: str) -> int:
        return self.table.by_path[path].size

    def canonical(self) -> WeightSet:
        """The same set with None for every variable that is in it as a whole."""
        return WeightSet(
            self.table,
            {path: None if self.size(path) == self._size_of(path) else part for path, part in self.parts.items()},
        )

    def indices(self, path: str) -> np.ndarray:
        """The indices of a variable's weights, rising."""
        part = self.parts.get(path, _EMPTY)
        return np.arange(self._size_of(path)) if part is None else part

    # ---- what an expression narrows a set to ------------------------------------------------------------------------

    def in_blocks(self, blocks: Iterable[int]) -> WeightSet:
        """Those within some blocks; what lies outside the blocks goes."""
        chosen = set(blocks)
        return WeightSet(
            self.table, {path: part for path, part in self.parts.items() if self.table.by_path[path].block in chosen}
        )

    def at(self, axis: str, places: Sequence[int]) -> WeightSet:
        """Those of some heads, or at some places of the hidden vector; what belongs to no head or place goes."""
        find = _head_indices if axis == "head" else _dim_indices
        parts: dict[str, np.ndarray | None] = {}
        for path in self.parts:
            found = find(self.table.by_path[path], self.table, np.asarray(places, np.int64))
            if found is not None:
                parts[path] = found
        return self & WeightSet(self.table, parts)

    def split(self, unit: str) -> Iterator[WeightSet]:
        """Its parts by `tensor`, `module` (a layer of a block), `block`, `head` or `out` (a column of a kernel).

        Raises:
          ValueError: a weight belongs to no such unit.
        """
        self._check_unit(unit)
        if unit == "head":
            yield from self._split_heads()
        elif unit == "out":
            yield from self._split_columns()
        else:
            key = _UNITS[unit]
            groups: dict[str, dict[str, np.ndarray | None]] = {}
            for path, part in self.parts.items():
                groups.setdefault(key(self.table.by_path[path]), {})[path] = part
            yield from (WeightSet(self.table, parts) for parts in groups.values())

    def _check_unit(self, unit: str) -> None:
        for weight in map(self.table.by_path.__getitem__, self.parts):
            if unit == "block" and weight.block is None:
                raise ValueError(f"{name_of(weight)} lies in no block: name the blocks' weights alone")
            if unit == "head" and _places_of(weight, self.table, "head", _EMPTY) is None:
                raise ValueError(
                    f"{name_of(weight)} belongs to no head: name the heads' weights alone, attention[head=0-last]"
                )
            if unit == "out" and weight.part != "kernel":
                raise ValueError(f"{name_of(weight)} has no outputs: per=out is for kernels")

    def measure(self, unit: str) -> tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """How large the parts are that `split` gives, without making them.

        Returns:
          How many they are, and {path: (numbers of the parts that a variable has weights in, how many in each)}.

        Raises:
          ValueError: a weight belongs to no such unit.
        """
        if unit not in self._measured:
            self._measured[unit] = self._measure(unit)
        return self._measured[unit]

    def _measure(self, unit: str) -> tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
        self._check_unit(unit)
        numbers: dict[str, int] = {}
        keys: dict[str, np.ndarray] = {}
        counts: dict[str, np.ndarray] = {}
        columns = 0
        for path, part in self.parts.items():
            weight = self.table.by_path[path]
            if unit not in ("head", "out"):
                keys[path] = np.array([numbers.setdefault(_UNITS[unit](weight), len(numbers))])
                counts[path] = np.array([self.size(path)])
                continue
            units = self.table.heads if unit == "head" else weight.shape[1]
            first = (weight.block or 0) * units if unit == "head" else columns
            columns += units
            if part is None:
                found, counts[path] = np.arange(units), np.full(units, weight.size // units)
            else:
                own = part % units if unit == "out" else _places_of(weight, self.table, "head", part)
                assert own is not None
                found, counts[path] = np.unique(own, return_counts=True)
            keys[path] = first + found
        known = np.unique(np.concatenate([_EMPTY, *keys.values()]))
        return len(known), {path: (np.searchsorted(known, keys[path]), counts[path]) for path in self.parts}

    def sizes(self, unit: str) -> np.ndarray:
        """How many weights each part has that `split` gives: int64 (parts,)."""
        number, measured = self.measure(unit)
        sizes = np.zeros(number, np.int64)
        for where, counts in measured.values():
            sizes[where] += counts
        return sizes

    def _split_heads(self) -> Iterator[WeightSet]:
        for block in dict.fromkeys(self.table.by_path[path].block for path in self.parts):
            assert block is not None
            inside = self.in_blocks([block])
            for head in range(self.table.heads):
                if found := inside.at("head", [head]):
                    yield found

    def _split_columns(self) -> Iterator[WeightSet]:
        for path, part in self.parts.items():
            rows, columns = self.table.by_path[path].shape
            if part is None:
                for column in range(columns):
                    yield WeightSet(self.table, {path: np.arange(column, rows * columns, columns, dtype=np.int64)})
                continue
            order = np.argsort(part % columns, kind="stable")
            ends = np.flatnonzero(np.diff(part[order] % columns)) + 1
            yield from (WeightSet(self.table, {path: each}) for each in np.split(part[order], ends))

    # ---- one way of writing ----------------------------------------------------------------------------------------

    def describe(self) -> str:
        """The set in the names of expressions, the largest first; two equal sets are written alike.

        What no names mean is told by its number of weights and the sha256 of its indices.
        """
        left = self.canonical()
        found = []
        for words in _names(self.table):
            if not left.parts:
                break
            named = self.table.named(words)
            blocks = [b for b in range(self.table.blocks) if _covers(left, named.in_blocks([b]))]
            if _covers(left, named):
                where, taken = "", named
            elif blocks:
                where, taken = f"@{_ranges(blocks)}", named.in_blocks(blocks)
            else:
                continue
            found.append(".".join(words) + where)
            left = left - taken
        found += [_describe_part(left, path) for path in left.parts]
        return " + ".join(found) or "none"


_EMPTY = np.zeros(0, np.int64)
_UNITS: dict[str, Callable[[Weight], str]] = {
    "tensor": lambda weight: weight.path,
    "module": lambda weight: weight.path.rpartition("/")[0],
    "block": lambda weight: str(weight.block),
}


def _joined(part: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    if not len(part) or not len(other):
        return part if len(part) else other
    keep = np.zeros(size, bool)
    keep[part] = keep[other] = True
    return np.flatnonzero(keep)


def _without(part: np.ndarray | None, other: np.ndarray, size: int) -> np.ndarray:
    keep = np.ones(size, bool)
    keep[other] = False
    return np.flatnonzero(keep) if part is None else part[keep[part]]


def _within(part: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    keep = np.zeros(size, bool)
    keep[other] = True
    return part[keep[part]]


def _grid(rows: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
    return (rows[:, None] * width + columns).ravel()


def _head_indices(weight: Weight, table: Table, heads: np.ndarray) -> np.ndarray | None:
    """Head h: columns h d to (h+1) d of query, key and value, the same of their biases, and the rows of the output."""
    if weight.sublayer != "attention":
        return None
    depth = table.hidden // table.heads
    own = (heads[:, None] * depth + np.arange(depth)).ravel()
    if layer_of(weight) == "output":
        return None if weight.part == "bias" else _grid(own, np.arange(weight.shape[1]), weight.shape[1])
    return own if weight.part == "bias" else _grid(np.arange(weight.shape[0]), own, weight.shape[1])


def _dim_indices(weight: Weight, table: Table, dims: np.ndarray) -> np.ndarray | None:
    """Places of the hidden vector: in LayerNorms, tables, and the layers whose output it is."""
    layer = weight.component.rpartition(".")[0]
    if weight.part in ("gamma", "beta") or (layer in _HIDDEN and weight.part == "bias"):
        return dims
    if weight.part == "table" or layer in _HIDDEN:
        return _grid(np.arange(weight.shape[0]), dims, weight.shape[1])
    return None


def _places_of(weight: Weight, table: Table, axis: str, indices: np.ndarray) -> np.ndarray | None:
    """The head, or the place of the hidden vector, that each of a variable's indices belongs to; None: to none."""
    find = _head_indices if axis == "head" else _dim_indices
    if find(weight, table, _EMPTY) is None:
        return None
    columns = weight.shape[-1]
    if axis == "dim":
        return indices % columns
    return (indices // columns if layer_of(weight) == "output" else indices % columns) // (table.hidden // table.heads)


def _covers(whole: WeightSet, part: WeightSet) -> bool:
    """Whether `whole` holds all variables of a set of whole variables, as a whole each."""
    return bool(part.parts) and all(path in whole.parts and whole.parts[path] is None for path in part.parts)


def _names(table: Table) -> Iterator[tuple[str, ...]]:
    """All names of an expression that mean something on a model, larger ones first."""
    yield from (("all",), ("blocks",))
    for name in SUBLAYERS:
        members = [weight for weight in table.weights if weight.sublayer == name]
        if members:
            yield (name,)
    for name in SUBLAYERS:
        members = [weight for weight in table.weights if weight.sublayer == name]
        layers = list(dict.fromkeys(map(layer_of, members)))
        if layers != [""]:
            yield from ((name, layer) for layer in layers)
        for weight in {name_of(weight): weight for weight in members}.values():
            yield tuple(name_of(weight).split("."))


def _describe_part(weights: WeightSet, path: str) -> str:
    """A variable of which single weights are selected."""
    weight, part = weights.table.by_path[path], weights.parts[path]
    assert part is not None
    where = "" if weight.block is None else f"@{weight.block}"
    for axis, count in (("head", weights.table.heads), ("dim", weights.table.hidden)):
        own = _places_of(weight, weights.table, axis, part)
        places = _EMPTY if own is None else np.unique(own)
        if len(places) * weight.size == len(part) * count:  # all of each of them
            return f"{name_of(weight)}{where}[{axis}={_ranges(places.tolist())}]"
    digest = hashlib.sha256(np.ascontiguousarray(part, "<i8").tobytes()).hexdigest()
    return f"{name_of(weight)}{where}[{len(part)} weights, sha256 {digest}]"


def _ranges(numbers: Sequence[int]) -> str:
    from tfmt.spec import format_layers

    return format_layers(tuple(numbers))
