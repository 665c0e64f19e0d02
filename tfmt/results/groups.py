"""Which runs may be compared.

Two runs are averaged only if nothing but the seed differs. What may differ between the rows and columns of one table
(mode, layers, mask, task) names them; whatever else differs (model, arithmetic, batching, precision, epochs, ...) parts
the runs into groups, each with a table of its own. A field that is added to `RunSpec` parts them, too, until it is
named here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tfmt.errors import RequestError
from tfmt.protocol import paper_epochs
from tfmt.results.cells import ALL_SEEDS, Cell, Seeds, make_cell
from tfmt.results.rows import ROW_FIELDS, TASK_TITLES, Row, none_if_missing
from tfmt.results.stopped import tell_stopped
from tfmt.spec import ARITHMETIC, CONDITIONAL_FIELDS, TASK_NAMES, RunSpec
from tfmt.words import counted, without_folders

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.results.predicted import Predicted

PAPER_EPOCHS = "by P1's rule"
TASK_FIELDS = CONDITIONAL_FIELDS.difference(ROW_FIELDS) | {"data_sha256"}
# Where a run computed, where its files lie and what it kept do not change its score beyond rounding. The model is told
# by its digest, not by the name it was loaded under.
_SAME_SCORE = frozenset(
    {"model", "revision", "data_dir", "replicas", "jit_compile", "keep", "keep_epoch", "cache_limit_gb"}
)
SETTINGS = (
    "model_sha256",
    "arithmetic",
    *(
        name
        for name in RunSpec.model_fields
        if name not in TASK_FIELDS.union(ROW_FIELDS, _SAME_SCORE, {"task", "learning_rate", "seed", "epochs"})
    ),
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but what rows, columns, learning rates and seeds stand for.

    Attributes:
      settings: what they share: every one of `SETTINGS`, and `epochs`.
      runs: the runs, as `annotate` leaves them, with `column`: the task, told apart from itself by its data if need be.
      cells: (row, column) to cell.
      seeds: the seeds of these runs.
      roles: which of them choose the learning rate, and which are reported.
      predicted: what the runs predicted, where that was read.
    """

    settings: Mapping[str, Any]
    runs: pd.DataFrame = field(repr=False)
    cells: Mapping[tuple[Row, str], Cell]
    seeds: tuple[int, ...]
    roles: Seeds = ALL_SEEDS
    predicted: Predicted | None = field(default=None, repr=False, compare=False)

    @property
    def reported(self) -> tuple[int, ...]:
        """The seeds that are reported."""
        return tuple(seed for seed in self.seeds if self.roles.report(seed))

    def under(self, protocol: str) -> Group:
        """The same runs with the cells of a protocol, `paper` or `crossfit`."""
        return self._crossfit if protocol == "crossfit" else self

    @functools.cached_property
    def _crossfit(self) -> Group:
        return replace(self, cells=_make_cells(self.runs, self.seeds, self.roles, "crossfit"))

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that have runs, in the papers' order."""
        return tuple(sorted({row for row, _ in self.cells}, key=lambda row: row.order))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have runs, in the order of the task table."""
        return tuple(sorted({column for _, column in self.cells}, key=_column_order))


def _column_order(column: str) -> tuple[int, str]:
    return TASK_NAMES.index(column.partition(" ")[0]), column


def column_title(column: str) -> str:
    """A column's name in a table: the task's, with what tells it from itself behind."""
    task, space, told = column.partition(" ")
    return TASK_TITLES.get(task, task) + space + told


def group_runs(runs: pd.DataFrame, roles: Seeds = ALL_SEEDS) -> list[Group]:
    """Parts runs into groups that may share a table.

    Args:
      runs: what `annotate` returns, or some rows of it.
      roles: which seeds choose the learning rate, and which are reported.

    Returns:
      The groups, the largest first, of equal ones that of the later arithmetic. Epochs part them, too, but P1's own
      rule gives modes different numbers: so one group holds the runs that follow the rule, and one each the runs with
      a number that breaks it. A run may be in both; a group that another contains is left out.

    Raises:
      RequestError: two runs of one cell and seed that differ in more than their seed, in a way no table shows.
    """
    groups = []
    for values, part in runs.groupby(list(SETTINGS), dropna=False, sort=False):
        settings = dict(zip(SETTINGS, values, strict=True))
        for epochs, members in _part_by_epochs(part):
            groups.append(_make_group(settings | {"epochs": epochs}, members, roles))
    return sorted(groups, key=lambda group: (-len(group.runs), -group.settings["arithmetic"], str(group.settings)))


def _part_by_epochs(runs: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """One number of epochs a task and mode in each part."""
    rule = [paper_epochs(task, mode) for task, mode in zip(runs["task"], runs["mode"], strict=True)]
    follows = runs["epochs"] == rule
    views = [(PAPER_EPOCHS, frozenset(runs.index[follows]))]
    views += [
        (number, frozenset(runs.index[runs["epochs"] == number])) for number in sorted(set(runs["epochs"][~follows]))
    ]
    return [
        (label, runs.loc[sorted(members)])
        for label, members in views
        if members and not any(members < other for _, other in views)
    ]


def _make_group(settings: dict[str, Any], runs: pd.DataFrame, roles: Seeds) -> Group:
    runs = runs.assign(column=_columns(runs))
    runs = _drop_repeats(runs)
    seeds = tuple(sorted({int(seed) for seed in runs["seed"]}))
    return Group(settings, runs, _make_cells(runs, seeds, roles, "paper"), seeds, roles)


def _make_cells(runs: pd.DataFrame, seeds: Iterable[int], roles: Seeds, protocol: str) -> dict[tuple[Row, str], Cell]:
    asked = sum(map(roles.report, seeds))
    cells: Any = {
        place: make_cell(part, asked, roles, protocol) for place, part in runs.groupby(["row", "column"], sort=False)
    }
    return {place: cell for place, cell in cells.items() if cell is not None}


def _columns(runs: pd.DataFrame) -> list[str]:
    """Each run's task; a task that was run on several data sets (by content or columns) is as many columns."""
    names = sorted(TASK_FIELDS)
    keys = list(zip(runs["task"], *(map(none_if_missing, runs[name]) for name in names), strict=True))
    variants: dict[str, list[tuple[Any, ...]]] = {}
    for key in dict.fromkeys(keys):
        variants.setdefault(key[0], []).append(key[1:])
    titles = {}
    for task, choices in variants.items():
        differing = [i for i in range(len(names)) if len({choice[i] for choice in choices}) > 1]
        for choice in choices:
            told = ", ".join(f"{names[i].removesuffix('_sha256')} {_short(choice[i])}" for i in differing)
            titles[task, *choice] = f"{task} ({told})" if told else task
    return [titles[key] for key in keys]


def _short(value: Any) -> str:
    """A value in a caption or title; digests by their first digits, lists joined."""
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "-"
    text = "-" if value is None or value == "" else str(value)
    return text[:8] if len(text) == 64 else text


def _drop_repeats(runs: pd.DataFrame) -> pd.DataFrame:
    """One run a cell, rate and seed: the same run may be there twice, for what it kept."""
    place = ["row", "column", "learning_rate", "seed"]
    repeated = runs[runs.duplicated(place, keep=False)]
    if repeated.empty:
        return runs
    compared = [name for name in RunSpec.model_fields if name not in _SAME_SCORE]
    for _, same in repeated.groupby(place, sort=False):
        differing = [name for name in compared if same[name].map(str).nunique() > 1]
        if differing:
            first, second = same["run_id"].iloc[:2]
            raise RequestError(
                f"runs {first} and {second} belong to one cell of a table and differ in {', '.join(differing)}:"
                " keep them in separate folders and give one to --runs"
            )
    # A scored one before others; then by id, so that the choice does not hang on the order of files.
    order = runs.assign(_lost=runs["outcome"] != "scored").sort_values(["_lost", "run_id"]).drop(columns="_lost")
    return order.drop_duplicates(place).sort_values("run_id")


def describe_settings(group: Group, names: Iterable[str] | None = None) -> str:
    """A group's settings as `batching random, precision float32, ...`.

    Args:
      group: the group.
      names: which settings; None for `settings_to_tell` and the epochs.
    """
    if names is None:
        names = [*settings_to_tell(group), "epochs"]
    return ", ".join(_DESCRIPTIONS.get(name, _plainly)(name, group) for name in names)


def settings_to_tell(group: Group) -> list[str]:
    """The settings a caption names: the model, the arithmetic, a few more, and all that is not `RunSpec`'s default."""
    return [name for name in SETTINGS if name in _ALWAYS_TOLD or not _is_default(name, group.settings[name])]


def differing_settings(groups: Iterable[Group]) -> list[str]:
    """The settings in which groups differ."""
    groups = list(groups)
    return [name for name in (*SETTINGS, "epochs") if len({str(group.settings[name]) for group in groups}) > 1]


def name_parts(groups: Sequence[Group]) -> list[tuple[Group, str]]:
    """Groups that have a table each, with what stands behind the table's title: which it is, where there are more."""
    differing = differing_settings(groups)
    return [
        (group, f" ({part} of {len(groups)}: {describe_settings(group, differing)})" if len(groups) > 1 else "")
        for part, group in enumerate(groups, 1)
    ]


def tell_left_out(runs: pd.DataFrame) -> tuple[str, ...]:
    """Caption lines on runs that a reader might miss: left out by `narrow`, stopped, or of another arithmetic.

    Args:
      runs: what `read_runs` or `narrow` returned.
    """
    lines = [without_folders(f"L{line[1:]}.") for line in runs.attrs.get("left_out", ())]
    lines += tell_stopped(runs.attrs.get("stopped", ()))
    lines += [without_folders(f"Not read: {message}", 2) for message in runs.attrs.get("broken", ())]
    counts = runs["arithmetic"].value_counts().sort_index()
    if others := [f"{count:,} of arithmetic {number}" for number, count in counts.items() if number != ARITHMETIC]:
        lines.append(
            f"Runs of another arithmetic than this tfmt's, {ARITHMETIC}: {', '.join(others)}. Each arithmetic is judged"
            " and averaged by itself."
        )
    return tuple(lines)


_ALWAYS_TOLD = ("model_sha256", "arithmetic", "batching", "precision", "batch_size", "max_length")


def _is_default(name: str, value: Any) -> bool:
    return name in RunSpec.model_fields and RunSpec.model_fields[name].default == value


def _plainly(name: str, group: Group) -> str:
    return f"{name} {_short(group.settings[name])}"


def _tell_model(name: str, group: Group) -> str:
    names = " = ".join(sorted(set(group.runs["model_name"])))
    return f"model {names} (sha256 {_short(group.settings[name])})"


def _tell_epochs(name: str, group: Group) -> str:
    if group.settings[name] != PAPER_EPOCHS:
        return counted(group.settings[name], "epoch")
    counts = "/".join(str(number) for number in sorted(set(group.runs["epochs"])))
    return f"epochs {PAPER_EPOCHS} ({counts})"


_DESCRIPTIONS: dict[str, Callable[[str, Group], str]] = {"model_sha256": _tell_model, "epochs": _tell_epochs}
