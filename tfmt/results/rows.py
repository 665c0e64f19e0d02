"""What a run tunes, as a row of a table; how it ended; and the score that counts."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from tfmt.errors import RequestError
from tfmt.expressions import shorten, split_label
from tfmt.results.crossfit import Fold, cross_fit
from tfmt.spec import MODES, RunSpec, parse_layers

if TYPE_CHECKING:
    import pandas as pd

SCORE_COLUMNS = {"best": "score_best", "last": "score_last"}
ROW_FIELDS = ("mode", "layers", "mask_size", "mask_fraction", "outlier_pool", "fisher_examples", "fisher_from",
              "frozen_prefix", "select", "budget")  # fmt: skip

MODE_TITLES = {
    "full": "Full-FT",
    "frozen": "Frozen",
    "attention": "Multi-head attention",
    "feedforward": "Feed-forward",
    "layernorm": "LayerNorms",
    "layernorm_attention": "Attention LayerNorms",
    "layernorm_feedforward": "Feed-forward LayerNorms",
    "bitfit": "BitFit",
    "random": "Random",
    "outliers": "Outliers",
    "outliers_control": "Random LayerNorm weights",
    "fisher": "Fisher",
    "fisher_control": "Random feed-forward LayerNorm weights",
}
TASK_TITLES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "ptb_pos": "PTB tags",
    "conll2003_ner": "CoNLL-2003 entities",
    "rotten_tomatoes": "Rotten Tomatoes",
}
# The tasks of P1's table 1, of its tables 3 and 4, of its table 2; and those for which P2 shows what changes.
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
SMALL_GLUE_TASKS = ("cola", "mrpc", "stsb", "rte")
P2_TASKS = ("rte", "mrpc", "stsb", "sst2")
TOKEN_TASKS = ("ptb_pos", "conll2003_ner")


@dataclass(frozen=True)
class Row:
    """What a run tunes: all that its mode's name leaves open.

    Attributes:
      union: a `fisher` run on the union of other runs' masks; `mask_fraction` is then theirs, None if they are not at
        hand to tell.
      select: the expression of a `custom` run, `NAME = EXPRESSION` where it has a name; runs and files in it go by
        their own names, and by folders above them where that tells two rows apart.
      budget: what `budget` in it is, `6144` or `0.5%`; empty where it has none.
    """

    mode: str
    layers: str = "all"
    mask_size: int | None = None
    mask_fraction: float | None = None
    union: bool = False
    outlier_pool: str = RunSpec.model_fields["outlier_pool"].default
    fisher_examples: int = RunSpec.model_fields["fisher_examples"].default
    frozen_prefix: str = RunSpec.model_fields["frozen_prefix"].default
    select: str = ""
    budget: str = ""

    @property
    def selection(self) -> str:
        """The short name of a `custom` row's expression: its name, else the expression."""
        name, expression = split_label(self.select)
        return name or expression

    @property
    def title(self) -> str:
        """The row's name in a table, in the words of the papers."""
        title = "Union of other tasks' Fisher masks" if self.union else MODE_TITLES.get(self.mode) or self.selection
        parts = []
        if self.mask_size is not None:
            parts.append(f"n={self.mask_size}")
        if self.mask_fraction is not None:
            parts.append(f"f={self.mask_fraction:g}")
        if self.budget:
            parts.append(f"b={self.budget}")
        if self.layers != "all":
            parts.append(f"block {self.layers}" if self.layers.isdecimal() else f"blocks {self.layers}")
        defaults = {column.name: column.default for column in fields(Row)}
        if self.outlier_pool != defaults["outlier_pool"]:
            parts.append(f"{self.outlier_pool} alone")
        if self.fisher_examples != defaults["fisher_examples"]:
            parts.append(f"{self.fisher_examples} examples")
        if self.frozen_prefix != defaults["frozen_prefix"]:
            parts.append(f"{self.frozen_prefix} prefix")
        return " ".join([title, ", ".join(parts)]).strip()

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts rows as the papers do: by mode, size and fraction, then whole models before blocks; then by name."""
        return (
            MODES.index(self.mode),
            self.union,
            self.mask_size or 0,
            self.mask_fraction or 0.0,
            parse_layers(self.layers) or (),
            self.outlier_pool,
            self.fisher_examples,
            self.frozen_prefix,
            self.select,
            self.budget.endswith("%"),
            float(self.budget.rstrip("%") or 0),
        )


def is_token_task(task: str, task_type: str) -> bool:
    """Whether a run's task tags words (P1, table 2) rather than sentences."""
    return task in TOKEN_TASKS or task_type == "tokens"


def keep_runs(runs: pd.DataFrame, wanted: Iterable[bool]) -> pd.DataFrame:
    """The rows of a DataFrame that are wanted, also if that is none."""
    return runs.iloc[[position for position, keep in enumerate(wanted) if keep]]


def annotate(runs: pd.DataFrame, epoch: str = "best") -> pd.DataFrame:
    """Says of each run which row of a table it belongs to, how it ended, and its score.

    Args:
      runs: what `read_runs` returns.
      epoch: whose score counts: the `best` epoch's or the `last` one's.

    Returns:
      The same with `row` (a `Row`), `score` (a fraction) and `outcome`: `scored`, `undefined` (it completed and its
      metric is not defined), `diverged` or `failed`; `collapsed` is of that epoch. A run that changed a weight outside
      its selection counts as failed. `folds` is what `cross_fit` says of it, None where it has no scores on halves.

    Raises:
      RequestError: no such epoch.
    """
    import pandas as pd

    if epoch not in SCORE_COLUMNS:
        raise RequestError(f"--epoch must be one of {', '.join(SCORE_COLUMNS)}. Received: {epoch!r}")
    # Iterating over pandas' Arrow-backed texts is many times slower than over plain ones.
    runs = runs.astype(dict.fromkeys(runs.select_dtypes("string"), object))
    outcome = runs["status"].where(runs["status"] != "completed", "scored").astype(object)
    score = runs[SCORE_COLUMNS[epoch]].astype(float)
    outcome[(outcome == "scored") & score.isna()] = "undefined"
    outcome[(outcome != "diverged") & (runs["frozen_changed"].astype(float) > 0)] = "failed"
    rows: Any = find_rows(runs)
    # What a table shows of an epoch is of that epoch; frames made by hand may lack the second column.
    collapsed = runs["collapsed_last" if epoch == "last" and "collapsed_last" in runs else "collapsed"]
    annotated = runs.assign(row=rows, score=score.where(outcome == "scored"), outcome=outcome, collapsed=collapsed)
    annotated["folds"] = pd.Series(_folds(runs, epoch), index=runs.index, dtype=object)
    return annotated


def _folds(runs: pd.DataFrame, epoch: str) -> list[tuple[Fold, Fold] | None]:
    """Each run cross-fitted; frames made by hand may lack what it takes."""
    if "half_scores" not in runs or "collapsed_epochs" not in runs:
        return [None] * len(runs)
    measured = zip(map(none_if_missing, runs["half_scores"]), runs["collapsed_epochs"], strict=True)
    return [None if scores is None else cross_fit(scores, collapsed, epoch) for scores, collapsed in measured]


def find_rows(runs: pd.DataFrame) -> list[Row]:
    """Each run's row.

    A name that stands for one expression alone names it, also in runs whose `select` has no name. One that stands for
    several, or is the title of a mode, names none of them.
    """
    rows = []
    named = _name_selections(set(runs["select"]))
    columns = [runs[name] if name != "mask_fraction" else united_fractions(runs) for name in ROW_FIELDS]
    for mode, layers, size, fraction, pool, examples, sources, prefix, select, budget in zip(*columns, strict=True):
        size = none_if_missing(size)
        size = None if size is None else int(size)
        row = Row(mode, layers, size, fraction, bool(sources), pool, int(examples), prefix, named[select], budget)
        rows.append(row)
    return rows


def _name_selections(selects: Iterable[str]) -> dict[str, str]:
    """{`select` of a run: that of its row}."""
    split = {select: split_label(select) for select in selects}
    names: dict[str, set[str]] = {}
    for name, expression in split.values():
        names.setdefault(expression, set()).update({name} - {""})
    shown = _shorten_apart(names)
    times = Counter(name for found in names.values() for name in found)
    good = {
        expression: f"{min(found)} = {shown[expression]}"
        for expression, found in names.items()
        if len(found) == 1 and times[min(found)] == 1 and min(found) not in MODE_TITLES.values()
    }
    return {select: good.get(expression, shown[expression]) for select, (_, expression) in split.items()}


def _shorten_apart(texts: Iterable[str]) -> dict[str, str]:
    """Each expression without the folders that its runs and files lie in, but for those that tell two apart."""
    shown = {text: shorten(text) for text in texts}
    for folders in itertools.count(1):
        times = Counter(shown.values())
        longer = {text: shorten(text, folders) for text, short in shown.items() if times[short] > 1}
        if longer.items() <= shown.items():
            break
        shown |= longer
    return shown


def united_fractions(runs: pd.DataFrame) -> list[float | None]:
    """Each run's fraction; a union's is that of the runs whose masks it unites, found by their ids where they are."""
    own_fractions = [none_if_missing(fraction) for fraction in runs["mask_fraction"]]
    fractions = dict(zip(runs["run_id"], own_fractions, strict=True))
    found = []
    for own, sources in zip(own_fractions, runs["fisher_from"], strict=True):
        united = {fractions.get(PurePath(source).name) for source in sources}
        found.append(united.pop() if own is None and len(united) == 1 else own)
    return found


def none_if_missing(value: Any) -> Any:
    """A cell of a DataFrame, None where pandas wrote NaN for it."""
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value
