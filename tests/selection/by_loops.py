"""What expressions mean, a second time: boolean arrays over a toy BERT, written from the definitions. For the tests."""

from fractions import Fraction
from math import ceil

import numpy as np

from tfmt.bert.configs import BertShape
from tfmt.bert.vocabulary import list_weights

HIDDEN, BLOCKS, HEADS = 16, 3, 2
TOY = list_weights(BertShape(HIDDEN, BLOCKS, HEADS, 24, 50, 32, 2), "sentence", 2)
ENCODER = [weight for weight in TOY if weight.sublayer != "classifier"]
# Component without its part -> the name in expressions.
NAMES = {
    "query": "attention.query", "key": "attention.key", "value": "attention.value",
    "attention.output": "attention.output", "attention.output.LayerNorm": "attention_layernorm",
    "intermediate": "feedforward.intermediate", "output": "feedforward.output",
    "output.LayerNorm": "feedforward_layernorm", "embeddings.word": "embeddings.word",
    "embeddings.token_type": "embeddings.token_type", "embeddings.position": "embeddings.position",
    "embeddings.LayerNorm": "embeddings_layernorm", "pooler": "pooler",
}  # fmt: skip
GROUPS = {
    "all": set(NAMES.values()),
    "blocks": {n for n in NAMES.values() if not n.startswith(("embeddings", "pooler"))},
    "layernorm": {"attention_layernorm", "feedforward_layernorm"},
    **{word: {n for n in NAMES.values() if n.split(".")[0] == word} for word in (
        "attention", "feedforward", "embeddings", "attention_layernorm", "feedforward_layernorm",
        "embeddings_layernorm", "pooler")},
}  # fmt: skip


def same(one, other):
    """Whether two sets hold the same weights."""
    return len(one) == len(other) == len(one & other)


class RefusedError(Exception):
    """What must be an error."""


def _describe():
    """(path, index, name, part, block, head, dim, column, module) of every weight, in the model's order."""
    rows = []
    for weight in ENCODER:
        component, _, part = weight.component.rpartition(".")
        name = NAMES[component]
        for index in range(weight.size):
            row, column = divmod(index, weight.shape[-1]) if len(weight.shape) == 2 else (None, index)
            head = dim = None
            if name in ("attention.query", "attention.key", "attention.value"):
                head = column // (HIDDEN // HEADS)
            elif name == "attention.output" and part == "kernel":
                head = row // (HIDDEN // HEADS)
            if part in ("gamma", "beta", "table") or name in ("attention.output", "feedforward.output"):
                dim = column
            rows.append((weight.path, index, name, part, weight.block, head, dim, column))
    return rows


ROWS = _describe()
PLACES = {weight.path: place for place, weight in enumerate(ENCODER)}
EVERY_PATH = sorted(
    set(GROUPS)
    | {f"{word}.{row[3]}" for row in ROWS for word in GROUPS if row[2] in GROUPS[word]}
    | {name for name in NAMES.values() if "." in name}
    | {f"{row[2]}.{row[3]}" for row in ROWS}
)


def where(holds):
    return np.array([holds(row) for row in ROWS])


def named(text):
    """The weights of a path."""
    first, *rest = text.split(".")
    found = GROUPS[first]
    if rest and any(f"{first}.{rest[0]}" == name for name in found):
        found = {f"{first}.{rest.pop(0)}"}
    return where(lambda row: row[2] in found and (not rest or row[3] == rest[0]))


NAMED = {text: named(text) for text in EVERY_PATH}
AT = {
    "block": np.array([-1 if row[4] is None else row[4] for row in ROWS]),
    "head": np.array([-1 if row[5] is None else row[5] for row in ROWS]),
    "dim": np.array([-1 if row[6] is None else row[6] for row in ROWS]),
}


def evaluate(node):
    """A tree as a boolean array: ("path", text), ("narrow", tree, axis, text, places) or (sign, tree, tree).

    Raises:
      RefusedError: something has no effect, or nothing is left.
    """
    if node[0] == "path":
        return NAMED[node[1]]
    if node[0] == "narrow":
        _, inside, axis, _, places = node
        keep = np.isin(AT[axis], sorted(places))
        _check_sum(inside, keep)
        return evaluate(inside) & keep
    sign, first, second = node[0], evaluate(node[1]), evaluate(node[2])
    if sign == "+":
        return first | second
    result = first & second if sign == "&" else first & ~second
    effect = (result != first).any() and (sign == "-" or (result != second).any())
    if not effect or not result.any():
        raise RefusedError
    return result


def _check_sum(node, keep):
    """Every part of a sum keeps something."""
    if node[0] == "+":
        _check_sum(node[1], keep)
        _check_sum(node[2], keep)
    elif not (evaluate(node) & keep).any():
        raise RefusedError


def write(node):
    """The text of a tree."""
    if node[0] == "path":
        return node[1]
    if node[0] == "narrow":
        _, inside, axis, text, _ = node
        shown = write(inside) if inside[0] == "path" or (inside[0] == "narrow" and inside[2] == "block" != axis) else (
            f"({write(inside)})"
        )  # fmt: skip
        return f"{shown}@{text}" if axis == "block" else f"{shown}[{axis}={text}]"
    sign, first, second = node
    mixed = first[0] in "+-&" and (sign == "&") != (first[0] == "&")
    left = f"({write(first)})" if mixed else write(first)
    return f"{left} {sign} {f'({write(second)})' if second[0] in '+-&' else write(second)}"


def to_array(weights):
    """A `WeightSet` as a boolean array."""
    parts = []
    for weight in ENCODER:
        part = np.zeros(weight.size, bool)
        part[weights.indices(weight.path)] = True
        parts.append(part)
    return np.concatenate(parts)


# ---- scores ----------------------------------------------------------------------------------------------------------


def unit_of(row, unit):
    """What pool a weight falls into, in an order."""
    path, _, _, _, block, head, _, column = row
    module = path.rpartition("/")[0]
    first = min(place for other, place in PLACES.items() if other.rpartition("/")[0] == module)
    return {"tensor": PLACES[path], "module": first, "block": block, "head": (block, head),
            "out": (PLACES[path], column), "": 0}[unit]  # fmt: skip


UNITS = {unit: [unit_of(row, unit) for row in ROWS] for unit in ("", "tensor", "module", "block", "head", "out")}


def pools_of(term, unit):
    """Positions of each pool of a term."""
    pools = {}
    for position in np.flatnonzero(term):
        pools.setdefault(UNITS[unit][position], []).append(position)
    return [np.array(pools[key]) for key in sorted(pools)]


def share(total, sizes):
    """By largest remainder."""
    exact = [Fraction(total * size, sum(sizes)) for size in sizes]
    counts = [int(each) for each in exact]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def keep_best(term, numbers, *, each=None, total=None, percent=None, per="", lowest=False):
    """The highest or lowest of a term; `numbers` gives a pool's scores."""
    pools = pools_of(term, per)
    if percent is not None:
        total = ceil(Fraction(percent) / 100 * int(term.sum()))
    counts = [each] * len(pools) if each is not None else share(total, [len(pool) for pool in pools])
    found = np.zeros(len(ROWS), bool)
    for pool, count in zip(pools, counts, strict=True):
        scores = numbers(pool)
        found[pool[np.argsort(scores if lowest else -scores, kind="stable")[:count]]] = True
    return found


def keep_units(term, numbers, count, unit, *, lowest=False):
    """Whole units by mean score."""
    pools = pools_of(term, unit)
    means = np.array([np.mean(numbers(pool), dtype=np.float64) for pool in pools])
    found = np.zeros(len(ROWS), bool)
    for place in np.argsort(means if lowest else -means, kind="stable")[:count]:
        found[pools[place]] = True
    return found
