"""Shares of a grid: what each of several sweeps on one folder does first, from the grid alone.

So every process finds the same shares, whatever is done already, and nobody has to hand them out. They are a
preference: whoever has done its own helps the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tfmt.errors import RequestError
from tfmt.runs.runner import bench_key
from tfmt.spec import RunSpec
from tfmt.study.grid import Grid
from tfmt.study.search import Slot
from tfmt.study.times import Times


@dataclass(frozen=True)
class Shard:
    """One of the shares of a grid.

    Attributes:
      index: which, from 0 on.
      count: how many there are.
    """

    index: int = 0
    count: int = 1


def parse_shard(text: str) -> Shard:
    """Reads `i/n`; nothing is the whole grid.

    Raises:
      RequestError: it says something else.

    Example:
      >>> parse_shard("0/4")
      Shard(index=0, count=4)
    """
    if not text:
        return Shard()
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        raise RequestError(f"--shard={text}: must be i/n, as 0/4, which is the first of four shares")
    index, count = map(int, found.groups())
    if index >= count:
        shares = f"the shares of {count} are 0 to {count - 1}, as --array=0-{count - 1} counts" if count else "n is 0"
        raise RequestError(f"--shard={text}: there is no such share; {shares}")
    return Shard(index, count)


def shape_key(spec: RunSpec) -> tuple[Any, ...]:
    """Equal for runs on one workbench that can share the traced step."""
    return (spec.mode, spec.layers, spec.mask_size, spec.mask_fraction, spec.outlier_pool, spec.select, spec.budget,
            spec.fisher_from, spec.optimizer, spec.adam_epsilon, spec.weight_decay, spec.clip_norm,
            spec.frozen_prefix)  # fmt: skip


def share_slots(grid: Grid, count: int) -> dict[Slot, int]:
    """The share of each run of a grid, in an order that keeps runs of one workbench together, and in it those of one
    shape.

    Shares are stretches of that order with as much work each: epochs times training examples, or epochs alone where
    the published size of some task is not known. A union goes with the run on its own task's mask.

    Args:
      grid: the runs.
      count: of the shares.
    """
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[RunSpec]]] = {}
    for run in grid.runs:
        groups.setdefault(bench_key(run), {}).setdefault(shape_key(run), []).append(run)
    together: dict[RunSpec, list[Slot]] = {run: [run] for run in grid.runs}
    for union in grid.unions:
        together[union.own].append(union)
    ordered = [run for shapes in groups.values() for runs in shapes.values() for run in runs]
    times = Times()
    examples = [times.count_examples(run) or 0 for run in ordered]
    works = [
        len(together[run]) * run.epochs * (size if all(examples) else 1)
        for run, size in zip(ordered, examples, strict=True)
    ]
    whole, before = sum(works), 0
    shares: dict[Slot, int] = {}
    for run, work in zip(ordered, works, strict=True):
        share = (2 * before + work) * count // (2 * whole)  # where the middle of its work lies
        shares |= dict.fromkeys(together[run], share)
        before += work
    return shares
