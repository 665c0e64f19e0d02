"""Seeds that choose the learning rate and seeds that are reported, against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from tfmt.claims.claims import evaluate_claims, tabulate_claims
from tfmt.errors import RequestError
from tfmt.results.cells import ALL_SEEDS, Seeds, part_seeds
from tfmt.results.formats import Table
from tfmt.results.optimism import build_optimism
from tfmt.results.tables import build_tables

AddRun = Callable[..., Any]
Runs = Callable[[], pd.DataFrame]
ROLES = Seeds((0, 1), (2, 3))
# Rate to the seeds' scores. Seeds 0 and 1 choose 1e-3 (0.80 against 0.75), all four together 1e-4 (0.75 against 0.70).
SCORES = {1e-4: (0.74, 0.76, 0.70, 0.80), 1e-3: (0.80, 0.80, 0.58, 0.62)}


def add(add_run: AddRun, scores: dict[float, tuple[Any, ...]] = SCORES, **spec: Any) -> None:
    for rate, by_seed in scores.items():
        for seed, score in enumerate(by_seed):
            run = spec | {"learning_rate": rate, "seed": seed}
            if isinstance(score, str):
                add_run(None, status=score, **run)
            elif score is not None:
                add_run(score, **run)


def told(table: Table, row: str = "Full-FT") -> list[str]:
    """The score, and the rate."""
    return [line[-1] for block in table.blocks for line in block.rows if line[0] == row]


def test_the_rate_of_some_seeds_is_reported_on_others(add_run: AddRun, runs: Runs) -> None:
    add(add_run)
    (table,) = build_tables(runs(), "1")
    assert told(table) == ["75.0 ± 4.2 [75.0]", "1e-4"]
    (table,) = build_tables(runs(), "1", roles=ROLES, every_seed=True)
    assert told(table) == ["60.0 ± 2.8", "58.0", "62.0", "1e-3"]
    assert table.caption[0].endswith("over seeds 2, 3, at the learning rate with the best mean over seeds 0, 1.")
    (numbers,) = table.numbers
    assert (numbers["choose_on"], numbers["report_on"], numbers["seeds_asked"]) == ((0, 1), (2, 3), 2)
    (table,) = build_optimism(runs(), roles=ROLES)
    assert "over seeds 2, 3, at the learning rate with the best mean over seeds 0, 1" in table.caption[0]
    assert told(table)[0] == "0.0 ± 0.0"


@pytest.mark.parametrize(
    ("scores", "text", "rate"),
    [
        # What a reported seed does has no say in the choice: its loss leaves the cell without a score.
        ({1e-4: (0.7, 0.7, 0.7, 0.7), 1e-3: (0.8, 0.8, 0.8, "diverged")}, "- (1/2, 1 diverged)", "-"),
        ({1e-4: (0.7, 0.7, 0.7, 0.7), 1e-3: (0.8, "diverged", 0.8, 0.8)}, "70.0 ± 0.0", "1e-4 (1 diverged)"),
        # A rate at which no seed ran that chooses is not chosen.
        ({1e-4: (0.7, 0.7, 0.7, 0.7), 1e-3: (None, None, 0.9, 0.9)}, "70.0 ± 0.0", "1e-4"),
        ({1e-4: (0.7, 0.7, None, None)}, "- (0/2)", "-"),
        ({1e-3: (None, None, 0.9, 0.9)}, "-", "-"),
    ],
)
def test_lost_seeds(add_run: AddRun, runs: Runs, scores: dict[float, tuple[Any, ...]], text: str, rate: str) -> None:
    add(add_run, {1e-4: (0.5, 0.5, 0.5, 0.5)}, mode="frozen")
    add(add_run, scores)
    (table,) = build_tables(runs(), "1", roles=ROLES)
    assert told(table) == [text, rate]


def test_a_seed_that_chose_alone_is_marked(add_run: AddRun, runs: Runs) -> None:
    add(add_run, {1e-4: (0.7, None, None), 1e-3: (0.8, 0.7, 0.6)})
    add(add_run, {1e-4: (0.7, 0.7, 0.7), 1e-3: (0.8, 0.8, 0.8)}, mode="layernorm")
    add(add_run, {1e-4: (0.7, 0.7, 0.7)}, mode="frozen")
    add(add_run, {1e-4: (0.7, 0.7, 0.6), 1e-3: (0.75, 0.6, None)}, mode="bitfit")
    # Here the seed's own choice would be another: the rate with the most seeds was taken.
    add(add_run, {1e-4: (0.9, None, None), 1e-3: (0.8, 0.7, 0.6)}, mode="random")
    (table,) = build_tables(runs(), "1")
    assert told(table) == ["70.0 ± 10.0 [70.0] (seed 0 chose)", "1e-3"]
    assert told(table, "LayerNorms") == ["80.0 ± 0.0 [80.0]", "1e-3"]
    assert told(table, "Frozen") == ["70.0 ± 0.0 [70.0]", "1e-4"]
    assert told(table, "BitFit") == ["66.7 ± 5.8 [70.0] (seeds 0, 1 chose)", "1e-4"]
    assert told(table, "Random") == ["70.0 ± 10.0 [70.0]", "1e-3"]
    assert sum(line.startswith("(seed 0 chose): the other seeds ran at no other rate") for line in table.caption) == 1
    assert sum("among different numbers of rates, 1 to 2 a cell" in line for line in table.caption) == 1
    (table,) = build_tables(runs(), "1", roles=Seeds((0,), (1, 2)))
    assert told(table) == ["65.0 ± 7.1", "1e-3"]
    assert not any("chose)" in line for line in table.caption)


def test_both_halves_and_seeds(add_run: AddRun, runs: Runs) -> None:
    """Each half of seed 0 chooses a rate, and the other half of seed 1 is reported at it."""
    for rate, seed, half in [
        (1e-4, 0, (0.9, 0.1)),
        (1e-3, 0, (0.1, 0.9)),
        (1e-4, 1, (0.3, 0.5)),
        (1e-3, 1, (0.6, 0.8)),
    ]:
        add_run(0.5, learning_rate=rate, seed=seed, halves=[half])
    (table,) = build_tables(runs(), "1", protocol="crossfit", roles=Seeds((0,), (1,)))
    assert told(table) == ["55.0", "1e-4, 1e-3"]  # the second half at 1e-4, 0.5, and the first at 1e-3, 0.6


def test_claims_are_judged_on_the_reported_seeds(add_run: AddRun, runs: Runs) -> None:
    add(add_run)
    add(add_run, {1e-4: (0.7, 0.7, 0.61, 0.61)}, mode="layernorm")
    c2 = {roles: next(each for each in evaluate_claims(runs(), roles=roles) if each.rule.name == "C2")
          for roles in (ALL_SEEDS, ROLES)}  # fmt: skip
    (all_seeds,), (others,) = (c2[roles].comparisons for roles in (ALL_SEEDS, ROLES))
    assert (all_seeds.value, all_seeds.seeds) == (pytest.approx(65.5 - 75), 4)
    assert (others.value, others.seeds) == (pytest.approx(61 - 60), 2)
    assert (c2[ALL_SEEDS].outcome, c2[ROLES].outcome) == ("fails", "holds")
    caption = tabulate_claims((c2[ROLES],), roles=ROLES).caption
    assert "the best mean over seeds 0, 1, on the development split that chose it. Judged on seeds 2, 3." in caption[0]


def test_change_is_read_of_the_reported_seeds(add_run: AddRun, runs: Runs) -> None:
    change = []
    for seed in range(4):
        record = add_run(0.8, seed=seed)
        moved = 2.0 if seed > 1 else 0.5
        change += [(record.run_id, name, "0", value) for name, value in
                   (("output.LayerNorm.gamma", moved), ("attention.self.query.kernel", 1.0))]  # fmt: skip
    frame = pd.DataFrame(change, columns=["run_id", "component", "block", "change"])
    f1 = next(each for each in evaluate_claims(runs(), change=frame, roles=ROLES) if each.rule.name == "F1")
    assert [(each.value, each.seeds) for each in f1.comparisons] == [(pytest.approx(2.0), 2)]


def test_parts(add_run: AddRun, runs: Runs) -> None:
    for seed in (0, 1, 2):
        add_run(0.5, seed=seed)
    frame = runs()
    assert part_seeds(frame, [], []) is ALL_SEEDS
    assert part_seeds(frame, ["0", " 1"], []) == Seeds((0, 1), (2,))
    assert part_seeds(frame, [], ["2"]) == Seeds((0, 1), (2,))
    assert part_seeds(frame, ["1", "1"], ["0"]) == Seeds((1,), (0,))
    for choose_on, report_on, words in [
        (["a"], [], r"--choose_on: expected seeds, as 0,1\. Received: 'a'"),
        (["-1"], [], r"--choose_on: expected seeds, as 0,1\. Received: '-1'"),
        ([], ["9" * 5000], r"--report_on: expected seeds, as 0,1\. Received: '9{20}'$"),
        (["0"], ["7"], r"--report_on: no run has seed 7; there is 0, 1, 2$"),
        (["0", "1"], ["1", "2"], r"share seed 1: a seed that chooses is not reported"),
        (["0", "1", "2"], [], r"--choose_on: there is 0, 1, 2, so no seed is left to report"),
        ([], ["0", "1", "2"], r"--report_on: there is 0, 1, 2, so no seed is left to choose"),
    ]:  # fmt: skip
        with pytest.raises(RequestError, match=words):
            part_seeds(frame, choose_on, report_on)
