"""Hand-made records of a study that compares ways of choosing weights at equal counts."""

from __future__ import annotations

from collections.abc import Callable

from tfmt.runs.records import Record

Add = Callable[..., Record]
FISHER = {"mode": "custom", "select": "fisher = all:fisher(budget)"}
RANDOM = {"mode": "custom", "select": "all:random(budget)"}
CHANGE = {"mode": "custom", "select": "moved = all:change(budget)"}
COSTS = {
    "fisher": {"name": "fisher", "movable": 6000, "cost": {"backward_passes": 1024, "seconds": 30.0}},
    "random": {"movable": 6144},
    "moved": {"name": "moved", "movable": 6144, "cost": {"full_run": "mrpc-full-lr5e-05-s0-0123456789"}},
}


def add_study(add: Add, tasks: tuple[str, ...] = ("mrpc", "rte"), counts: tuple[int, ...] = (6144, 547412)) -> None:
    """Two methods at two budgets and three rates, full, frozen and a structural selection; three seeds each."""
    for task in tasks:
        for count in counts:
            for rate in (1e-3, 1e-2, 1e-1):
                for seed in range(3):
                    run = {"task": task, "learning_rate": rate, "seed": seed, "tuned": count, "budget": str(count)}
                    # Fisher is best at the highest rate, random in the middle of the grid.
                    add(0.80 + 0.02 * (rate == 1e-1) + 0.001 * seed, selection=COSTS["fisher"], **run | FISHER)
                    add(0.70 + 0.02 * (rate == 1e-2) + 0.002 * seed, selection=COSTS["random"], **run | RANDOM)
        for seed in range(3):
            run = {"task": task, "seed": seed}
            add(0.9 + 0.001 * seed, mode="full", tuned=109482240, **run)
            add(0.5, mode="frozen", tuned=0, **run)
            add(0.75, mode="custom", select="value biases = attention.value.bias", tuned=9216, **run)
