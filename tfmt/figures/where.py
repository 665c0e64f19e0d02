"""Where selected weights lie, and how much selections share beside what chance would give."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tfmt.bert.configs import find_shape
from tfmt.bert.vocabulary import Weight, list_weights
from tfmt.errors import RequestError
from tfmt.figures.runs import read_table
from tfmt.figures.style import MAP, PALE, finish_figure, set_title, styled, tick_whole
from tfmt.results.rows import Row, annotate
from tfmt.results.tables import format_percent
from tfmt.runs.records import RECORD_FILE, Record, Sources, list_sources, name_sources
from tfmt.selection.stored import SELECTION_FILE, read_given
from tfmt.words import counted

MOST = 12  # selections that a page has room for
_HELD_BYTES = 1_000_000_000  # of selections as bits, one a weight
_TRIVIAL = ("full", "frozen")
_KINDS = {"task": "other tasks", "seed": "other seeds"}
_COLUMNS, _MAP_WIDTH, _NAMES_WIDTH, _LINE = 3, 2.1, 1.7, 0.135  # of the maps, in inches


@dataclass(frozen=True, eq=False)
class Chosen:
    """One selection: of a row, on a task, with a seed.

    Attributes:
      place: the run's folder.
      table: the weights of its model's encoder.
    """

    row: Row
    task: str
    seed: int
    place: Path
    table: tuple[Weight, ...]

    @functools.cached_property
    def size(self) -> int:
        """Weights of the encoder."""
        return sum(weight.size for weight in self.table)


@styled
def plot_where(
    runs: Sources, *, tasks: Sequence[str] = (), where: str = "", epoch: str = "best"
) -> tuple[Figure, pd.DataFrame]:
    """Which share of each component's weights a selection has, by block, and how much selections have in common.

    Above is a map for each selection, the mean over its tasks and seeds; embeddings and pooler lie outside the blocks
    and are lines of one colour. Below, for each two selections of one task and seed: the percent of the smaller one
    that the other has too, and how many times that is of what two random selections of their sizes would share,
    |A| |B| / N of the N weights of the encoder. The last columns compare a selection with itself on other tasks, and
    with other seeds.

    Args:
      runs: the folder of the runs' folders, or several; packed studies have no selections.
      tasks: which tasks; none means all.
      where: conditions on runs, as in `tfmt.results.where.narrow`.
      epoch: makes no difference here.

    Returns:
      The figure, and a DataFrame of two kinds of lines: `share`: `row`, `task`, `seed`, `component`, `block` (`-`
      outside), `selected`, `weights`, `share`; and `overlap`: `differ` (`row`, `task` or `seed`), `row`, `task`,
      `seed`, `other_row`, `other_task`, `other_seed`, `shared`, `expected`, `ratio`, `overlap`, `jaccard`.

    Raises:
      RequestError: no run that says which weights it selected, in a folder.
    """
    table, records, notes = read_table(runs, tasks, where)
    chosen = _find(runs, table, records, notes)
    if not chosen:
        told = f": {notes[-1]}" if notes else ""
        raise RequestError(f"--runs={name_sources(runs)}: no selections beside all weights and none{told}")
    chosen = _most(chosen, notes)
    shares, overlaps = _measure(chosen)
    frame = pd.concat([pd.DataFrame(shares).assign(kind="share"), pd.DataFrame(overlaps).assign(kind="overlap")])
    frame = frame[["kind", *(name for name in frame.columns if name != "kind")]]
    figure = _draw(pd.DataFrame(shares), pd.DataFrame(overlaps), [row.title for row in _rows(chosen)])
    frame.attrs["notes"] = notes
    return figure, frame


def _rows(chosen: Iterable[Chosen]) -> list[Row]:
    return sorted({each.row for each in chosen}, key=lambda row: row.order)


def _find(runs: Sources, table: pd.DataFrame, records: dict[str, Record], notes: list[str]) -> list[Chosen]:
    """The selections of these runs: one of each row, task and seed, as learning rates change none."""
    places: dict[str, Path] = {}
    for source in list_sources(runs):
        if not source.is_dir():
            notes.append(f"{source}: packed runs have no selections; give the folder that they were packed from")
        elif (source / RECORD_FILE).exists():
            places[source.resolve().name] = source
        else:
            places |= {path.parent.name: path.parent for path in source.glob(f"*/{SELECTION_FILE}")}
    found: dict[tuple[Row, str, int], Chosen] = {}
    without = 0
    lost: set[str] = set()
    columns = ("row", "run_id", "task", "seed")
    annotated = annotate(table)
    for row, run_id, task, seed in zip(*(annotated[name] for name in columns), strict=True):
        if row.mode in _TRIVIAL or (row, task, int(seed)) in found:
            continue
        if run_id not in places or not (places[run_id] / SELECTION_FILE).exists():
            without += 1
            continue
        try:
            weights = _encoder(records[run_id])
        except RequestError as error:
            lost.add(str(error))
            continue
        found[row, task, int(seed)] = Chosen(row, task, int(seed), places[run_id], weights)
    notes += [f"not read, as the model's sizes cannot be had: {error}" for error in sorted(lost)]
    if without:
        notes.append(f"left out: {counted(without, 'run')} without a {SELECTION_FILE}")
    return list(found.values())


def _encoder(record: Record) -> tuple[Weight, ...]:
    commit = record.model.commit if record.model else None
    return _list_encoder(record.spec.model, commit or record.spec.revision, record.task.head)


@functools.cache
def _list_encoder(model: str, revision: str, head: str) -> tuple[Weight, ...]:
    weights = list_weights(find_shape(model, revision), head, 1)
    return tuple(weight for weight in weights if weight.sublayer != "classifier")


def _most(chosen: list[Chosen], notes: list[str]) -> list[Chosen]:
    """As many selections as a page has room for: those of one budget, where there are several."""
    rows = _rows(chosen)
    if len(rows) <= MOST:
        return chosen
    budgets = [row.budget for row in rows if row.budget]
    most = max(budgets, key=budgets.count) if budgets else ""
    kept = [row for row in rows if row.budget == most][:MOST]
    notes.append(
        f"shown: {len(kept)} of {len(rows)} selections{f', those with --budget={most}' if most else ''}; --where"
        " chooses others, for example --where=budget=0.5%"
    )
    return [each for each in chosen if each.row in kept]


def _measure(chosen: Sequence[Chosen]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What each selects, and what each two have in common that differ in one thing."""
    longest = max((each.table for each in chosen), key=len)
    held = max(2, _HELD_BYTES * 8 // sum(weight.size for weight in longest))
    shares: list[dict[str, Any]] = []
    told: set[Chosen] = set()

    @functools.lru_cache(maxsize=held)
    def bits(each: Chosen) -> np.ndarray:
        """A bit a weight of the encoder, in the order of the table; a token task's model lacks the last ones."""
        given = read_given("run", str(each.place), each.table, None)
        flags = np.zeros(sum(weight.size for weight in longest), bool)
        start = 0
        for weight in each.table:
            mine = flags[start : start + weight.size]
            if weight.path in given:
                indices = given[weight.path]
                mine[slice(None) if indices is None else indices] = True
            start += weight.size
            if each not in told:
                selected = int(np.count_nonzero(mine))
                shares.append(
                    {"row": each.row.title, "task": each.task, "seed": each.seed, "component": weight.component}
                    | {"block": "-" if weight.block is None else str(weight.block), "selected": selected}
                    | {"weights": weight.size, "share": selected / weight.size}
                )
        told.add(each)
        return np.packbits(flags)

    sizes = {each: int(np.bitwise_count(bits(each)).sum()) for each in chosen}
    overlaps = []
    for differ, one, other in _pairs(chosen):
        shared = int(np.bitwise_count(bits(one) & bits(other)).sum())
        expected = sizes[one] * sizes[other] / max(one.size, other.size)
        smaller, joined = min(sizes[one], sizes[other]), sizes[one] + sizes[other] - shared
        overlaps.append(
            {"differ": differ, "row": one.row.title, "task": one.task, "seed": one.seed}
            | {"other_row": other.row.title, "other_task": other.task, "other_seed": other.seed}
            | {"shared": shared, "expected": expected, "ratio": shared / expected if expected else None}
            | {"overlap": shared / smaller if smaller else None, "jaccard": shared / joined if joined else None}
        )
    return shares, overlaps


def _pairs(chosen: Sequence[Chosen]) -> Iterator[tuple[str, Chosen, Chosen]]:
    """Each two selections that differ in one of row, task and seed, with which it is."""
    ordered = sorted(chosen, key=lambda each: (each.task, each.seed, each.row.order))
    for one, other in combinations(ordered, 2):
        differing = [name for name in ("row", "task", "seed") if getattr(one, name) != getattr(other, name)]
        if len(differing) == 1 and [w.size for w in one.table[:1]] == [w.size for w in other.table[:1]]:
            yield differing[0], one, other


# ---- drawing --------------------------------------------------------------------------------------------------------


def _draw(shares: pd.DataFrame, overlaps: pd.DataFrame, titles: list[str]) -> Figure:
    components = list(dict.fromkeys(shares["component"]))
    columns = {1: 1, 2: 2, 4: 2}.get(len(titles), _COLUMNS)
    lines = math.ceil(len(titles) / columns)
    compared = _compare(overlaps, titles)
    heights = [0.75 + _LINE * len(components)] * lines
    if compared is not None:
        heights.append(1.3 + 0.36 * len(titles))
    width = max(_NAMES_WIDTH + _MAP_WIDTH * columns + 0.9, 5.2 if compared is not None else 0)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    known = shares.loc[shares["share"] > 0, "share"]
    low = min(float(known.min()), 0.1) if len(known) else 0.1
    panels = []
    for number, title in enumerate(titles):
        panel = figure.add_subplot(grid[number // columns, number % columns])
        image = _draw_map(panel, shares[shares["row"] == title], components, LogNorm(low, 1.0), number % columns == 0)
        set_title(panel, title, _MAP_WIDTH - 0.2)
        panels.append(panel)
    figure.colorbar(image, ax=panels, label="share of a component's weights", pad=0.02, aspect=30, shrink=0.8)
    if compared is not None:
        _draw_overlaps(figure.add_subplot(grid[lines, :]), *compared, titles)
    finish_figure(figure, {"none selected": Patch(facecolor=PALE, edgecolor="0.5", linewidth=0.5)})
    return figure


def _draw_map(panel: Axes, mine: pd.DataFrame, components: list[str], norm: LogNorm, named: bool) -> Any:
    """Component x block, the mean over tasks and seeds; what lies outside the blocks is the same in all of them."""
    blocks = max([0, *(int(block) for block in mine["block"] if block != "-")]) + 1
    means = mine.groupby(["component", "block"])["share"].mean()
    values = np.zeros((len(components), blocks))
    for (component, block), share in means.items():  # type: ignore[misc]
        place = slice(None) if block == "-" else int(block)  # type: ignore[has-type]
        values[components.index(component), place] = share  # type: ignore[has-type]
    panel.set_facecolor(PALE)
    shown = np.ma.masked_less_equal(values, 0)
    image = panel.imshow(shown, norm=norm, cmap=MAP, aspect="auto", interpolation="nearest")
    panel.grid(visible=False)
    panel.set(xlabel="block (from 0)")
    tick_whole(panel.xaxis, 0, blocks - 1, most=8)
    panel.set_yticks(range(len(components)), components if named else [""] * len(components), fontsize=6.5)
    panel.tick_params(axis="y", length=0)
    return image


def _compare(overlaps: pd.DataFrame, titles: list[str]) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Overlaps and their ratios to chance, rows x (rows and other tasks, other seeds); None where nothing compares."""
    if overlaps.empty:
        return None
    columns = [*titles, *(_KINDS[kind] for kind in _KINDS if (overlaps["differ"] == kind).any())]
    found = [pd.DataFrame(np.nan, index=titles, columns=columns) for _ in range(2)]
    for place, part in overlaps.groupby(["differ", "row", "other_row"]):
        differ, row, other = map(str, cast("tuple[Any, ...]", place))
        ratio = part["shared"].sum() / part["expected"].sum() if part["expected"].sum() else np.nan
        for values, value in zip(found, (part["overlap"].mean(), ratio), strict=True):
            values.loc[row, other if differ == "row" else _KINDS[differ]] = value
            if differ == "row":
                values.loc[other, row] = value
    return found[0], found[1]


def _draw_overlaps(panel: Axes, overlap: pd.DataFrame, ratio: pd.DataFrame, titles: list[str]) -> None:
    values = np.ma.masked_invalid(overlap.to_numpy(float))
    panel.set_facecolor("white")
    panel.imshow(values, vmin=0, vmax=1, cmap=MAP, aspect="auto", interpolation="nearest")
    ratios = ratio.to_numpy(float)
    for (line, column), value in np.ndenumerate(overlap.to_numpy(float)):
        if np.isfinite(value):
            times = float(ratios[line, column])
            told = f"{format_percent(100 * value)} %" + (f"\n{_two_digits(times)} x" if np.isfinite(times) else "")
            colour = "white" if value > 0.5 else "black"
            panel.text(column, line, told, ha="center", va="center", fontsize=6, color=colour)
    panel.grid(visible=False)
    numbers = [str(number) for number in range(1, len(titles) + 1)]
    heads = [*numbers, *(str(name).replace(" ", "\n") for name in overlap.columns[len(titles) :])]
    panel.set_xticks(range(len(heads)), heads)
    panel.set_yticks(range(len(titles)), [f"{title}  {number}" for title, number in zip(titles, numbers, strict=True)])
    panel.tick_params(length=0)
    panel.set_title("Percent of the smaller selection in the other, and times what chance gives")


def _two_digits(times: float) -> str:
    return f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
