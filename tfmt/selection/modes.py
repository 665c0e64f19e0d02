"""The modes: which weights each row of the papers' tables trains. Selected = trains. No TensorFlow here.

A mode is a `Plan`: variables that train whole, and pools of variables out of which single weights are chosen. The plan
gives every count and says by what each pool's weights are chosen; `choose_weights` then says which they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tfmt.bert.vocabulary import Weight
from tfmt.errors import RequestError
from tfmt.spec import check_mode, check_settings, parse_layers

_LAYERNORMS = ("attention_layernorm", "feedforward_layernorm")
# Modes of P1, table 1, that train whole sublayers.
_SUBLAYERS_OF: dict[str, tuple[str, ...]] = {
    "frozen": (),
    "attention": ("attention",),
    "feedforward": ("feedforward",),
    "layernorm": _LAYERNORMS,
    "layernorm_attention": ("attention_layernorm",),
    "layernorm_feedforward": ("feedforward_layernorm",),
}


@dataclass(frozen=True)
class Pool:
    """`count` single weights, to be chosen out of these variables laid end to end.

    Attributes:
      weights: the variables.
      count: how many weights are chosen.
      by: `random` draws them; `far` takes those farthest from the pool's mean, `fisher` those with the highest Fisher
        information, of equal ones the first; `union` takes those that are given.
      stream: the number of a random pool's draw, so that pools of one plan are drawn independently.
    """

    weights: tuple[Weight, ...]
    count: int
    by: Literal["random", "far", "fisher", "union"]
    stream: int = 0

    @property
    def size(self) -> int:
        """Number of weights to choose from."""
        return sum(weight.size for weight in self.weights)


@dataclass(frozen=True)
class Plan:
    """What a mode trains beside the classifier, which always trains.

    Attributes:
      whole: variables that train whole.
      pools: groups of variables out of which single weights train.
    """

    whole: tuple[Weight, ...]
    pools: tuple[Pool, ...] = ()

    @property
    def tuned(self) -> int:
        """Number of trained weights without the classifier."""
        return sum(weight.size for weight in self.whole) + sum(pool.count for pool in self.pools)


def plan_mode(
    weights: Sequence[Weight],
    mode: str,
    *,
    layers: str = "all",
    mask_size: int | None = None,
    mask_fraction: float | None = None,
    outlier_pool: str = "layernorm",
    union_size: int | None = None,
) -> Plan:
    """The plan of a mode on a model.

    Args:
      weights: the model's table of weights.
      mode: one of `tfmt.spec.MODES`.
      layers: `all`, or 0-based blocks as in `tfmt.spec.parse_layers`.
      mask_size: weights per LayerNorm for `outliers` and `outliers_control`.
      mask_fraction: part of the feed-forward LayerNorms' weights for `fisher` and `fisher_control`.
      outlier_pool: `layernorm` pools gamma and beta of one LayerNorm; `gamma` or `beta` takes that vector alone.
      union_size: for `fisher` with the masks of other runs, how many weights their union has.

    Raises:
      RequestError: a value that no `RunSpec` takes, a mode without what it needs, a block that the model does not have,
        or more weights than a pool holds.

    Example:
      >>> from tfmt.bert.configs import find_shape
      >>> from tfmt.bert.vocabulary import list_weights
      >>> plan_mode(list_weights(find_shape("bert-base-uncased"), "sentence", 2), "layernorm").tuned
      36864

    References:
      P1 tables 1, 3 and 4 (AkbarTajari et al., 2022); P2 (ValizadehAslani & Liang, 2024) for `fisher`;
      [Ben Zaken et al., 2022](https://arxiv.org/abs/2106.10199) for `bitfit`.
    """
    check_settings(
        mode=mode, layers=layers, mask_size=mask_size, mask_fraction=mask_fraction, outlier_pool=outlier_pool
    )
    check_mode(mode, mask_size, mask_fraction, union=union_size is not None)
    chosen = _chosen_blocks(weights, layers)
    encoder = [weight for weight in weights if weight.sublayer != "classifier"]
    # Outside the blocks (embeddings, pooler) a mode reaches only when it is asked for all of the model.
    within = encoder if chosen is None else [weight for weight in encoder if weight.block in chosen]

    def of(*sublayers: str) -> tuple[Weight, ...]:
        return tuple(weight for weight in within if weight.sublayer in sublayers)

    if mode == "full":
        return Plan(tuple(within))
    if mode in _SUBLAYERS_OF:
        return Plan(of(*_SUBLAYERS_OF[mode]))
    if mode == "bitfit":
        return Plan(tuple(weight for weight in within if weight.part in ("bias", "beta")))
    if mode == "random":
        return Plan((), (Pool(tuple(within), sum(weight.size for weight in of(*_LAYERNORMS)), "random"),))
    if mode in ("outliers", "outliers_control"):
        assert mask_size is not None
        parts = ("gamma", "beta") if outlier_pool == "layernorm" else (outlier_pool,)
        layernorms = [weight for weight in of(*_LAYERNORMS) if weight.part in parts]
        pairs = [tuple(layernorms[i : i + len(parts)]) for i in range(0, len(layernorms), len(parts))]
        pools = [Pool(pair, mask_size, "far" if mode == "outliers" else "random", i) for i, pair in enumerate(pairs)]
        least = min((pool.size for pool in pools), default=mask_size)
        if mask_size > least:
            raise RequestError(
                f"mask_size must be at most {least}, the weights to choose from. Received: mask_size={mask_size}"
            )
        return Plan((), tuple(pools))
    candidates = of("feedforward_layernorm")
    if union_size is not None:
        return Plan((), (Pool(candidates, union_size, "union"),))
    assert mask_fraction is not None
    count = math.ceil(mask_fraction * sum(weight.size for weight in candidates) - 1e-9)
    return Plan((), (Pool(candidates, count, "fisher" if mode == "fisher" else "random"),))


def _chosen_blocks(weights: Sequence[Weight], layers: str) -> frozenset[int] | None:
    """The blocks that `layers` names, or None for all."""
    chosen = parse_layers(layers)
    blocks = 1 + max((weight.block for weight in weights if weight.block is not None), default=-1)
    if chosen is not None and chosen[-1] >= blocks:
        raise RequestError(f"layers must be within 0-{blocks - 1}, the blocks of this model. Received: layers={layers}")
    return None if chosen is None else frozenset(chosen)


def choose_weights(
    plan: Plan,
    *,
    seed: int = 0,
    values: Callable[[str], np.ndarray] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    union: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Which single weights of a plan's pools train.

    Args:
      plan: from `plan_mode`.
      seed: decides the drawn weights of `random` pools, on every machine alike.
      values: gives a variable's pre-trained values by path, for `far` pools.
      importance: for `fisher` pools, an array of the variable's shape by path, its Fisher information.
      union: for a `union` pool, its int64 indices by path, rising.

    Returns:
      {path: int64 indices into the flattened variable, rising} for every variable with a selected weight.

    Raises:
      RequestError: `fisher` without the Fisher information of its variables, `union` with weights outside the pool.
    """
    chosen: dict[str, np.ndarray] = {}
    for pool in plan.pools:
        if pool.by == "union":
            assert union is not None
            outside = union.keys() - {weight.path for weight in pool.weights}
            if outside:
                raise RequestError(f"union selects weights of {min(outside)}, which mode=fisher does not choose from")
            chosen |= union
            continue
        if pool.by == "random":
            picked = draw_without_replacement(pool.size, pool.count, seed, pool.stream)
        elif pool.by == "far":
            assert values is not None
            flat = _lay(values, pool.weights)
            flat -= flat.mean()
            picked = _largest(np.abs(flat, out=flat), pool.count)
        else:
            missing = [weight.path for weight in pool.weights if weight.path not in (importance or {})]
            if missing:
                raise RequestError(f"mode=fisher needs the Fisher information of {missing[0]}: give fisher=... with it")
            assert importance is not None
            picked = _largest(_lay(importance.__getitem__, pool.weights), pool.count)
        chosen |= _split(np.sort(picked), pool.weights)
    return chosen


def _lay(values: Callable[[str], np.ndarray], weights: Sequence[Weight]) -> np.ndarray:
    """The variables' values laid end to end, float64, a copy."""
    flat = np.empty(sum(weight.size for weight in weights))
    end = 0
    for weight in weights:
        flat[end : end + weight.size] = np.ravel(values(weight.path))
        end += weight.size
    return flat


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest scores; among equal ones the lower position comes first, NaN last.

    A sort of all positions would take three times the memory, and most of what it finds is not asked for.
    """
    if not count:
        return np.zeros(0, np.int64)
    scores[np.isnan(scores)] = -np.inf
    smallest = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > smallest)
    return np.concatenate([above, np.flatnonzero(scores == smallest)[: count - len(above)]])


def _split(picked: np.ndarray, weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Sorted positions in variables laid end to end -> indices by variable."""
    ends = np.cumsum([weight.size for weight in weights])
    owners = np.searchsorted(ends, picked, side="right")
    found = {}
    for owner in np.unique(owners):
        weight = weights[owner]
        found[weight.path] = (picked[owners == owner] - (ends[owner] - weight.size)).astype(np.int64)
    return found


def draw_without_replacement(size: int, count: int, seed: int, stream: int = 0) -> np.ndarray:
    """`count` different numbers below `size`, every set of them equally likely.

    Only the generator's raw bits are used, which NumPy keeps the same in all its versions; memory grows with `count`,
    not with `size`.

    Args:
      size: how many numbers to choose from.
      count: how many to choose.
      seed: the run's seed.
      stream: a number that makes draws of the same seed independent.

    Returns:
      int64 (count,), in the order drawn.
    """
    if 2 * count > size:  # Drawing what is left out keeps the number of repeats small.
        left_out = np.ones(size, bool)
        left_out[draw_without_replacement(size, size - count, seed, stream)] = False
        return np.flatnonzero(left_out).astype(np.int64)
    generator = np.random.Philox(np.random.SeedSequence([seed, 0x3A5C, stream]))
    # Raw numbers at or above the largest multiple of `size` would make low numbers more likely.
    limit = np.uint64(2**64 - 2**64 % size - 1)
    drawn = np.zeros(0, np.int64)
    while len(drawn) < count:
        raw = generator.random_raw(count - len(drawn) + 16)
        drawn = np.concatenate([drawn, (raw[raw <= limit] % np.uint64(size)).astype(np.int64)])
        _, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.sort(first)]
    return drawn[:count]
