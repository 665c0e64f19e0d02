"""Grid arithmetic: the papers' counts, repeats, order, held-out unions, and every study's flagfile."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from tfmt import protocol
from tfmt.bert.configs import PAPER_SHAPES
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError
from tfmt.expressions import split_label
from tfmt.selection.modes import plan_mode
from tfmt.selection.plans import make_plan
from tfmt.spec import RunSpec
from tfmt.study.grid import AXES, Grid, expand_grid, parse_axes

BASE = PAPER_SHAPES["bert-base-uncased"]
SMALL = dataclasses.replace(BASE, num_hidden_layers=6)
FLAGS = Path(__file__).parents[2] / "flags"
# Flags of tfmt-sweep that are neither an axis nor a field of a spec, with a value's type.
SWEEP_FLAGS = {"fisher_union": str}
COUNTS = {
    "table1": 1512,
    "table2": 378,
    "table3": 1008,
    "table4": 672,
    "figures": 12,
    "fisher": 1344,
    "demo_study": 16,
    "budget": 9720,
}


def read_flagfile(name: str) -> dict[str, Any]:
    lines = (FLAGS / f"{name}.flags").read_text(encoding="utf-8").splitlines()
    flags: dict[str, Any] = {}
    for line in lines:
        if line.startswith("#") or not line:
            continue
        assert line.startswith("--")
        flag, _, value = line[2:].partition("=")
        if flag == "select":  # expressions have commas, so that each is a flag
            flags.setdefault(flag, []).append(value)
            continue
        assert flag not in flags
        flags[flag] = value
    return flags


def typed(field: str, text: str) -> Any:
    kind = RunSpec.model_fields[field].annotation
    return kind(text) if kind in (int, float) else text


def grid_of(name: str) -> Grid:
    flags = read_flagfile(name)
    assert set(flags) <= set(RunSpec.model_fields) | set(SWEEP_FLAGS)
    axes = parse_axes({flag: text for flag, text in flags.items() if flag in AXES})
    settings = {flag: typed(flag, text) for flag, text in flags.items() if flag not in {*AXES, *SWEEP_FLAGS}}
    return expand_grid(axes, settings, shape=BASE, fisher_union=flags.get("fisher_union", "none"))


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_flagfile_counts(name: str, count: int) -> None:
    grid = grid_of(name)
    assert len(grid) == count
    assert len(set(grid.runs)) == len(grid.runs)


def test_the_four_tables_are_the_papers_3570_runs_without_overlap() -> None:
    runs = [run for table in ("table1", "table2", "table3", "table4") for run in grid_of(table).runs]
    assert len(runs) == len(set(runs)) == 3570


def test_figures_share_their_runs_with_table_1() -> None:
    assert set(grid_of("figures").runs) < set(grid_of("table1").runs)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4", "fisher"])
def test_flagfiles_repeat_the_protocol(name: str) -> None:
    axes = parse_axes({flag: text for flag, text in read_flagfile(name).items() if flag in AXES})
    assert axes["learning_rate"] == protocol.LEARNING_RATES
    assert axes["seed"] == protocol.SEEDS
    assert {"optimizer", "adam_epsilon", "early_stopping"} <= read_flagfile(name).keys()  # named, not by default
    for run in grid_of(name).runs:
        assert (run.optimizer, run.early_stopping) == ("adam", 0)
        assert (run.batch_size, run.max_length) == (protocol.BATCH_SIZE, protocol.MAX_LENGTH)
        assert (run.warmup_ratio, run.adam_epsilon) == (protocol.WARMUP_RATIO, protocol.ADAM_EPSILON)
        assert run.epochs == protocol.paper_epochs(run.task, run.mode)
        assert run.batching == "random"
    if name == "table4":
        assert axes["mask_size"] == protocol.MASK_SIZES
    if name == "fisher":
        assert axes["mask_fraction"] == protocol.MASK_FRACTIONS


def test_budgets_are_the_counts_of_what_they_stand_beside() -> None:
    """6,144, the LayerNorms, BitFit, 0.5 and 5 % of BERT-base; the rates are P1's and two above."""
    axes = parse_axes({flag: text for flag, text in read_flagfile("budget").items() if flag in AXES})
    weights = list_weights(PAPER_SHAPES["bert-base-uncased"], "sentence", 2)
    counts = [make_plan("all:random(budget)", weights, 12, budget=budget).tuned for budget in axes["budget"]]
    named = [plan_mode(weights, mode).tuned for mode in ("layernorm", "bitfit")]
    assert counts == [6144, *named, 547412, 5474112]
    assert named == [36864, 102912]
    assert axes["learning_rate"][:7] == protocol.LEARNING_RATES
    assert axes["learning_rate"][7:] == (5e-2, 1e-1)
    runs = grid_of("budget").runs
    methods = {split_label(run.select)[0] for run in runs if run.budget}
    assert len(methods) == 17
    assert {f"shuffled {name}" for name in methods if not name.startswith("shuffled") and name != "random"} < methods
    assert {run.select for run in runs if run.mode == "custom" and not run.budget} == {
        "value biases = attention.value.bias"
    }


@pytest.mark.parametrize("name", COUNTS)
def test_flagfile_header_names_its_command_and_count(name: str) -> None:
    text = (FLAGS / f"{name}.flags").read_text(encoding="utf-8")
    assert f"tfmt-sweep --flagfile={name}.flags" in text
    assert f"\n# {COUNTS[name]:,} runs" in text
    assert all(line.startswith(("#", "--")) for line in text.splitlines())


def test_what_means_nothing_makes_no_second_run() -> None:
    axes = parse_axes({"task": "mrpc", "mode": "full,frozen,outliers", "mask_size": "4,16", "layers": "all,0"})
    runs = expand_grid(axes, {"model": "demo"}).runs
    assert [(run.mode, run.layers, run.mask_size) for run in runs] == [
        ("full", "all", None),
        ("full", "0", None),
        ("frozen", "all", None),
        ("outliers", "all", 4),
        ("outliers", "all", 16),
        ("outliers", "0", 4),
        ("outliers", "0", 16),
    ]


def test_runs_of_one_shape_are_neighbours() -> None:
    axes = parse_axes({"task": "mrpc,rte", "mode": "full,layernorm", "learning_rate": "1e-3,1e-4", "seed": "0,1"})
    shapes = [(run.task, run.mode) for run in expand_grid(axes, {"model": "demo"}).runs]
    assert len(shapes) == 16
    changes = sum(a != b for a, b in itertools.pairwise(shapes))
    assert changes == len(set(shapes)) - 1


def test_layers_each_and_together() -> None:
    axes = parse_axes({"task": "mrpc", "mode": "layernorm", "layers": "all,each,0+5+2,0-2"})
    grid = expand_grid(axes, {"model": "demo"}, shape=SMALL)
    assert [run.layers for run in grid.runs] == ["all", "0", "1", "2", "3", "4", "5", "0,2,5", "0-2"]


def test_layers_need_blocks_that_are_there() -> None:
    axes = {"task": ("mrpc",), "mode": ("layernorm",)}
    with pytest.raises(RequestError, match="number of blocks"):
        expand_grid(axes | {"layers": ("each",)}, {"model": "demo"})
    with pytest.raises(RequestError, match=r"6 blocks, 0 to 5\. Received: '4-7'"):
        expand_grid(axes | {"layers": ("4-7",)}, {"model": "demo"}, shape=SMALL)


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("task", "mrpc,mprc", "--task: each entry must be one of cola, .*Received: 'mprc'"),
        ("mode", "full,", "--mode: .*Received: ''"),
        ("learning_rate", "1e-5,abc", "--learning_rate: each entry must be a number above 0. Received: 'abc'"),
        ("mask_size", "4,1.5", "--mask_size: each entry must be a whole number. Received: '1.5'"),
        ("mask_size", "٤", "--mask_size"),
        ("seed", "-1", "--seed: each entry must be a whole number. Received: '-1'"),
        ("mask_fraction", "half", "--mask_fraction"),
        ("layers", "3-1", "--layers: each entry must be `all`, `each`"),
        ("model", "a,b", "--model takes no comma list"),
    ],
)
def test_bad_lists(flag: str, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_axes({flag: text})


def test_bad_grids() -> None:
    with pytest.raises(RequestError, match="needs --mode"):
        expand_grid({"task": ("mrpc",)}, {"model": "demo"})
    with pytest.raises(RequestError, match="needs mask_size"):
        expand_grid({"task": ("mrpc",), "mode": ("outliers",)}, {"model": "demo"})
    with pytest.raises(RequestError, match="learning_rate must be a positive number"):
        expand_grid({"task": ("mrpc",), "mode": ("full",), "learning_rate": (-1.0,)}, {"model": "demo"})
    with pytest.raises(RequestError, match="seed is not an axis"):
        expand_grid({"task": ("mrpc",), "mode": ("full",), "seed": (1,)}, {"model": "demo", "seed": 1})


def test_repeats_in_a_list_count_once() -> None:
    assert parse_axes({"learning_rate": "1e-3,0.001", "mask_size": " "}) == {"learning_rate": (1e-3,)}


def test_held_out_unions() -> None:
    grid = grid_of("fisher")
    assert (len(grid.runs), len(grid.unions)) == (1008, 336)
    union = next(
        union
        for union in grid.unions
        if (union.own.task, union.own.mask_fraction, union.own.learning_rate, union.own.seed) == ("rte", 0.1, 1e-3, 2)
    )
    assert [source.task for source in union.sources] == ["sst2", "mrpc", "stsb"]
    assert all(source in grid.runs for source in union.sources)
    assert {(run.mask_fraction, run.seed, run.learning_rate) for run in union.sources} == {(0.1, 2, 1e-5)}
    spec = union.spec(lambda source: Path("runs") / source.run_id())
    assert (spec.task, spec.mode, spec.mask_fraction, spec.learning_rate, spec.seed) == ("rte", "fisher", None, 1e-3, 2)
    assert spec.fisher_from == tuple(sorted(f"runs/{source.run_id()}" for source in union.sources))


def test_held_out_unions_need_other_tasks() -> None:
    axes = {"task": ("rte",), "mode": ("fisher",), "mask_fraction": (0.1,)}
    with pytest.raises(RequestError, match="two or more tasks"):
        expand_grid(axes, {"model": "demo"}, fisher_union="held_out")
    with pytest.raises(RequestError, match="--fisher_union must be one of none, held_out"):
        expand_grid(axes, {"model": "demo"}, fisher_union="all")


def selections(*select: str, modes: tuple[str, ...] = ("custom",), **axes: Any) -> Grid:
    return expand_grid({"task": ("mrpc",), "mode": modes, "select": select, **axes}, {"model": "demo"}, shape=SMALL)


@pytest.mark.parametrize(
    ("select", "axes", "message"),
    [
        (("layernorm",), {"budget": ("5",)}, "--budget means nothing"),
        (("layernorm",), {"modes": ("custom", "full"), "layers": ("0",)}, "--layers means nothing for --mode=custom"),
        (("a = layernorm", "a = pooler"), {}, "two selections are named 'a', layernorm and pooler"),
        (("layernorm", "x = layernorm@0-last"), {}, "'layernorm' and 'x = layernorm@0-last' are one selection"),
        (("all:far(budget)",), {"budget": ("50%", "33477504")}, "--budget=50% and .* with --budget=33477504 are one"),
        (("fisher = all:fisher(5)",), {"modes": ("custom", "frozen", "random", "fisher")}, "mask_fraction"),
        (("random = all:random(5)",), {"modes": ("custom", "random")}, "random is a mode of this sweep"),
        (("attention@99",), {}, "blocks 0 to 5"),
        (("layernorm:far(99999999)",), {}, "there are 18,432 weights"),
        (("nonsense",), {}, "nonsense"),
    ],
)
def test_selections_that_cannot_be(select: tuple[str, ...], axes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        selections(*select, **axes)


def test_full_runs_are_those_that_the_selections_need() -> None:
    for covered in ("layernorm:far(10% of layernorm:change(16))", "layernorm + layernorm:change(5)"):
        assert [run.mode for run in selections(covered).runs] == ["custom"]
    grid = selections("all:change(5, rate=1e-4)", "pooler:change(5, rate=1e-4) + attention", "all:change(5)")
    assert [(run.mode, run.learning_rate) for run in grid.runs][:2] == [("full", 1e-4), ("full", 5e-5)]
    assert [run.mode for run in grid.runs][2:] == 3 * ["custom"]
