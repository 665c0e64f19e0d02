"""A study's grid: comma lists of tasks, modes, layers, masks, rates and seeds become the runs they stand for.

A run that two combinations stand for (a mask size means nothing for `full`) is in the grid once. Runs that share
task, mode and mask shape lie next to each other, so that one process can go from run to run with the model, the
tokens and the traced step it already has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmt.errors import RequestError
from tfmt.expressions import split_label
from tfmt.selection.modes import head_of, list_full_runs, plan_on_shape
from tfmt.spec import MODES, TASK_NAMES, RunSpec, format_layers, parse_layers
from tfmt.words import counted

if TYPE_CHECKING:
    from tfmt.bert.configs import BertShape
    from tfmt.selection.plans import Plan

# The flags that take a comma list, in the order in which a grid runs through them: the first changes slowest.
AXES = ("task", "mode", "layers", "mask_size", "mask_fraction", "select", "budget", "learning_rate", "seed")
EACH = "each"
FISHER_UNIONS = ("none", "held_out")
Selected = tuple[str, str, str]  # `select`, `budget`, kind of head


@dataclass(frozen=True)
class HeldOutUnion:
    """P2's test of whether a mask carries over: tune, on one task, the weights that other tasks' masks chose.

    Its `RunSpec` names the folders of the runs whose masks it unites, so there is none before these have run.

    Attributes:
      own: the `fisher` run of the held-out task itself, whose every other setting the union run shares.
      sources: the `fisher` runs of the other tasks with the same fraction, layers and seed. A mask is drawn before
        tuning starts; of the grid's learning rates the lowest is taken, as it is the least likely to diverge.
    """

    own: RunSpec
    sources: tuple[RunSpec, ...]

    def spec(self, folder_of: Callable[[RunSpec], str | Path]) -> RunSpec:
        """The run, once the sources have run.

        Args:
          folder_of: gives the folder of a source's finished run.
        """
        folders = tuple(sorted(str(folder_of(source)) for source in self.sources))
        return RunSpec.make(**self.own.model_dump() | {"mask_fraction": None, "fisher_from": folders})


@dataclass(frozen=True)
class Grid:
    """The runs of a study, in order.

    Attributes:
      runs: runs that depend on no other.
      unions: runs that need the masks of some of `runs`.
      plans: what the selections of the `custom` runs are on the model, by `select`, `budget` and kind of head.
      needed: those of `runs` that others compare with, whatever a search makes of them.
    """

    runs: tuple[RunSpec, ...]
    unions: tuple[HeldOutUnion, ...] = ()
    plans: Mapping[Selected, Plan] = field(default_factory=dict, compare=False, repr=False)
    needed: frozenset[RunSpec] = frozenset()

    def __len__(self) -> int:
        return len(self.runs) + len(self.unions)


def parse_axes(texts: Mapping[str, str | Sequence[str]]) -> dict[str, tuple[Any, ...]]:
    """Reads the comma lists of tfmt-sweep's flags.

    Args:
      texts: flag name to text, for the flags in `AXES`; an empty text is a flag that was not given. In `layers` each
        entry is one run's choice: `all`, `5`, `0-3`, `0+5+11` (these three blocks together), or `each`. `select` has
        a list of expressions, as these have commas of their own.

    Returns:
      Flag name to values, without repeats and in the order given, for the flags that were given.

    Raises:
      RequestError: an entry that cannot be read; the message names the flag and the entry.

    Example:
      >>> parse_axes({"mode": "full,layernorm", "seed": "0,1", "mask_size": ""})
      {'mode': ('full', 'layernorm'), 'seed': (0, 1)}
    """
    axes = {}
    for name, text in texts.items():
        if name not in AXES:
            raise RequestError(f"--{name} takes no comma list; those that do are {', '.join(AXES)}")
        if not isinstance(text, str):
            axes[name] = tuple(dict.fromkeys(text))
        elif text.strip():
            axes[name] = tuple(dict.fromkeys(_parse_entry(name, entry.strip(), text) for entry in text.split(",")))
    return axes


def _parse_entry(name: str, entry: str, text: str) -> Any:
    """One value of a comma list."""
    choices = {"task": TASK_NAMES, "mode": MODES}.get(name)
    expected = "one of " + ", ".join(choices) if choices else _EXPECTED[name]
    try:
        if choices and entry in choices:
            return entry
        if name == "layers":
            return _parse_layers_entry(entry)
        if name == "budget":
            return entry
        if name in ("mask_size", "seed") and entry.isdecimal() and entry.isascii():
            return int(entry)
        if name in ("mask_fraction", "learning_rate"):
            return float(entry)
    except ValueError:
        pass
    raise RequestError(f"--{name}: each entry must be {expected}. Received: {entry!r} in --{name}={text}")


_EXPECTED = {
    "layers": "`all`, `each`, a block `5`, a range `0-3` or blocks together `0+5+11`",
    "mask_size": "a whole number",
    "budget": "a number of weights or percent",
    "mask_fraction": "a number above 0 and at most 1",
    "learning_rate": "a number above 0",
    "seed": "a whole number",
}


def _parse_layers_entry(entry: str) -> str:
    """A comma parts the entries of a list, so blocks that belong together are joined by `+`, as in run ids."""
    if entry == EACH:
        return EACH
    blocks = parse_layers(entry.replace("+", ","))
    return "all" if blocks is None else format_layers(blocks)


def expand_grid(
    axes: Mapping[str, Iterable[Any]],
    settings: Mapping[str, Any],
    *,
    shape: BertShape | None = None,
    fisher_union: str = "none",
) -> Grid:
    """Every combination of the axes' values as a run.

    Args:
      axes: values by flag name, as `parse_axes` gives them. `task` and `mode` are needed; an axis that is absent
        takes the default of `RunSpec`.
      settings: the `RunSpec` fields that all runs share, `model` among them.
      shape: the sizes of the model, which `layers=each` and `custom` need; when given, layers beyond it are an error.
      fisher_union: `held_out` adds for each `fisher` run of the grid one more on the same task, fraction, rate and
        seed, tuned on the union of the other tasks' masks. `none` adds nothing.

    Returns:
      The runs without repeats, in the order of `AXES`; the full fine-tunings that selections by `change` need first.

    Raises:
      RequestError: a combination that cannot be trained, layers or selections that the model does not have, two
        selections of one name or of the same weights, or a held-out union without `fisher` runs on at least two tasks.

    Example:
      >>> axes = {"task": ("mrpc",), "mode": ("full", "outliers"), "mask_size": (4, 16)}
      >>> len(expand_grid(axes, {"model": "demo"}))
      3
    """
    for name in axes:
        if name not in AXES or name in settings:
            raise RequestError(f"{name} is not an axis of a grid, or also among the settings that all runs share")
    for name in ("task", "mode"):
        if not tuple(axes.get(name, ())):
            raise RequestError(f"a sweep needs --{name}")
    values = {name: tuple(axes.get(name, ())) or (None,) for name in AXES}
    values["layers"] = _expand_layers(values["layers"], None if shape is None else shape.num_hidden_layers)
    for name in ("select", "budget"):
        if values[name] != (None,) and "custom" not in values["mode"]:
            raise RequestError(f"--{name} is for --mode=custom, which is not among the modes")
    if "custom" in values["mode"] and values["layers"] != (None,):
        raise RequestError(
            "--layers means nothing for --mode=custom: `@` in --select says which blocks; sweep other modes apart"
        )
    runs: dict[RunSpec, None] = {}
    for combination in itertools.product(*values.values()):
        chosen = {name: value for name, value in zip(AXES, combination, strict=True) if value is not None}
        runs[RunSpec.make(**settings, **chosen)] = None
    if values["budget"] != (None,) and not any(run.budget for run in runs):
        raise RequestError("--budget means nothing for a --select without `budget` in it; leave it out")
    plans = _plan_selections(runs, shape)
    _check_selections(plans, values["mode"])
    needed = _list_needed(runs, plans)
    theirs = [own.identity() for own in needed]  # none is made twice for its scores
    every = (*needed, *(run for run in runs if run.mode != "full" or run.identity() not in theirs))
    return Grid(every, _held_out_unions(every, fisher_union), plans, frozenset(needed))


def _selected(run: RunSpec) -> Selected:
    return run.select, run.budget, head_of(run)


def _plan_selections(runs: Iterable[RunSpec], shape: BertShape | None) -> dict[Selected, Plan]:
    """The plans of the `custom` runs, each selection and budget once for a kind of head."""
    plans: dict[Selected, Plan] = {}
    for run in runs:
        if run.mode == "custom" and _selected(run) not in plans:
            if shape is None:
                raise RequestError("--mode=custom needs the model's sizes")
            plans[_selected(run)] = plan_on_shape(run, shape)
    return plans


def _check_selections(plans: Mapping[Selected, Plan], modes: Iterable[str]) -> None:
    """Refuses two selections with one name, and two that are the same weights found in the same way."""
    names: dict[str, str] = {}
    for select in dict.fromkeys(select for select, _, _ in plans):
        name, expression = split_label(select)
        if name in modes:
            raise RequestError(f"--select={select!r}: {name} is a mode of this sweep; give it another name, or none")
        if name and names.setdefault(name, expression) != expression:
            raise RequestError(
                f"--select: two selections are named {name!r}, {names[name]} and {expression}; rename one"
            )
    found: dict[tuple[str, str], str] = {}
    for (select, budget, head), plan in plans.items():
        mine = f"{select!r}" + (f" with --budget={budget}" if budget else "")
        if (other := found.setdefault((head, plan.normal_form), mine)) != mine:
            raise RequestError(f"--select: {other} and {mine} are one selection on this model; leave one of them out")


def _list_needed(runs: Iterable[RunSpec], plans: Mapping[Selected, Plan]) -> tuple[RunSpec, ...]:
    """The full fine-tunings that `change` scores compare with, which come before all others."""
    custom = (run for run in runs if run.mode == "custom")
    return tuple(dict.fromkeys(own for run in custom for own in list_full_runs(run, plans[_selected(run)]).values()))


def _expand_layers(entries: tuple[str | None, ...], blocks: int | None) -> tuple[str | None, ...]:
    """`each` written out, and blocks checked against the model's."""
    expanded: list[str | None] = []
    for entry in entries:
        if entry == EACH:
            if blocks is None:
                raise RequestError("--layers=each needs the model's number of blocks")
            expanded += map(str, range(blocks))
            continue
        chosen = parse_layers(entry) if entry else None
        if chosen and blocks is not None and chosen[-1] >= blocks:
            raise RequestError(
                f"--layers: the model has {counted(blocks, 'block')}, 0 to {blocks - 1}. Received: {entry!r}"
            )
        expanded.append(entry)
    return tuple(expanded)


def _held_out_unions(runs: tuple[RunSpec, ...], fisher_union: str) -> tuple[HeldOutUnion, ...]:
    """The union runs that the `fisher` runs of a grid make possible."""
    if fisher_union not in FISHER_UNIONS:
        raise RequestError(f"--fisher_union must be one of {', '.join(FISHER_UNIONS)}. Received: {fisher_union!r}")
    if fisher_union == "none":
        return ()
    fisher = [run for run in runs if run.mode == "fisher" and not run.fisher_from]
    if len({run.task for run in fisher}) < 2:
        raise RequestError(
            "--fisher_union=held_out needs --mode=fisher on two or more tasks: it unites other tasks' masks"
        )
    lowest: dict[tuple[Any, ...], RunSpec] = {}
    for run in sorted(fisher, key=lambda run: run.learning_rate or 0.0, reverse=True):
        lowest[_mask_shape(run), run.task] = run
    unions = []
    for own in fisher:
        others = (run for (shape, task), run in lowest.items() if shape == _mask_shape(own) and task != own.task)
        unions.append(HeldOutUnion(own, tuple(sorted(others, key=lambda run: TASK_NAMES.index(run.task)))))
    return tuple(unions)


def _mask_shape(run: RunSpec) -> tuple[Any, ...]:
    """What masks must share to be united."""
    return run.layers, run.mask_fraction, run.seed
