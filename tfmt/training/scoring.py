"""What the scores of a selection are made of, measured on a run's training data before it starts.

Examples are drawn by the run's seed, dropout is off, and the model is the base model. Its head is as it is before
training (`head=random`), or was trained alone for an epoch (`head=trained`, see `tfmt.training.fisher`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfmt.data.batches import EVALUATION_TOKENS, evaluation_batches
from tfmt.selection.plans import Plan
from tfmt.selection.scores.pool import Known, Read
from tfmt.selection.stored import SelectionCost
from tfmt.spec import RunSpec
from tfmt.training.fisher import FISHER_TOKENS, HEAD_SETTINGS, draw_examples, train_head
from tfmt.training.gradients import make_mean_step, make_squared_step, mean_gradient, squared_gradient
from tfmt.training.workbench import Workbench

# Gives the arrays of a key, measured by the call unless another run that shares it has done so.
Shared = Callable[[Mapping[str, Any], Callable[[], dict[str, np.ndarray]]], dict[str, np.ndarray]]


def measure(
    bench: Workbench,
    spec: RunSpec,
    plan: Plan,
    *,
    tuned: Mapping[tuple[Any, ...], Read],
    shared: Shared | None = None,
    quiet: bool = True,
) -> tuple[Known, SelectionCost]:
    """All that a plan's scores need, and what it cost.

    Args:
      bench: the run's workbench; has to be set up for the run afterwards.
      spec: the run.
      plan: what it selects.
      tuned: values after full fine-tuning, for `change`.
      shared: see `Shared`; None measures anew.
      quiet: show no progress.

    Raises:
      FloatingPointError: a gradient is not finite.
      Stop: a signal asked for it.
    """
    started = time.perf_counter()
    if plan.is_measured:
        bench.drop_steps()  # an optimizer's state is as large as the model, or twice
    drawn = draw_examples(len(bench.splits["train"]), spec.fisher_examples, spec.seed)
    found: dict[str, dict[Any, Read]] = {"gradient": {}, "squares": {}}
    passes = 0
    for kind, known in found.items():
        for head, paths in plan.needed(kind).items():

            def take(kind: str = kind, head: str = head, paths: tuple[str, ...] = paths) -> dict[str, np.ndarray]:
                bench.restore(spec.seed)
                if head == "trained":
                    train_head(bench, spec, {}, None)
                return _measure(bench, kind, paths, drawn, quiet)

            key = _key(spec, kind, head, paths, drawn)
            arrays = take() if shared is None else shared(key, take)
            known[head] = arrays.__getitem__
            passes += count_passes(bench, kind, paths, drawn)
    cost = SelectionCost(
        examples=len(drawn) if passes else 0, backward_passes=passes, seconds=time.perf_counter() - started
    )
    return Known(gradient=found["gradient"], squares=found["squares"], tuned=tuned), cost


def _measure(
    bench: Workbench, kind: str, paths: tuple[str, ...], drawn: np.ndarray, quiet: bool
) -> dict[str, np.ndarray]:
    """One kind of gradients with the head that the model has now; the traced function stays for the next seed."""
    make = make_mean_step if kind == "gradient" else make_squared_step
    if bench.gradient_step is None or bench.gradient_step[0] != (kind, paths):
        bench.gradient_step = (kind, paths), make(bench.model, bench.task.kind, paths)
    find = mean_gradient if kind == "gradient" else squared_gradient
    return find(bench.model, bench.task.kind, bench.splits["train"], drawn, paths, quiet=quiet,
                step=bench.gradient_step[1])  # fmt: skip


def count_passes(bench: Workbench, kind: str, paths: Sequence[str], drawn: np.ndarray) -> int:
    """Backward passes that gradients take: one a batch; of squares one an example, unless of LayerNorms alone."""
    if kind == "squares" and not all(path.endswith(("/gamma", "/beta")) for path in paths):
        return len(drawn)
    tokens = FISHER_TOKENS if kind == "squares" else EVALUATION_TOKENS
    return sum(1 for _ in evaluation_batches(bench.splits["train"], tokens, examples=drawn))


def _key(spec: RunSpec, kind: str, head: str, paths: tuple[str, ...], drawn: np.ndarray) -> dict[str, Any]:
    """What decides these arrays beside the model and the data, which whoever shares them adds."""
    names = ["task", "seed", "max_length", "precision", "train_limit", "encoding", "split_seed"]
    names += HEAD_SETTINGS if head == "trained" else []
    settings = {name: getattr(spec, name) for name in names}
    return {"kind": kind, "head": head, "paths": paths, "examples": len(drawn), **settings}
