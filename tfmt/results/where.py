"""Narrowing a folder of mixed runs to some of them, told in a few words: `task=mrpc,rte mode=layernorm`."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tfmt import expressions
from tfmt.errors import RequestError
from tfmt.results.rows import keep_runs, none_if_missing, united_fractions
from tfmt.spec import RunSpec, format_layers, parse_layers
from tfmt.words import counted

if TYPE_CHECKING:
    import pandas as pd

# What runs can be told apart by beside the fields of their specs.
_MORE_FIELDS = ("status", "arithmetic", "run_id")
_MOST_SHOWN = 12


def narrow(runs: pd.DataFrame, where: str, *, given: str = "") -> pd.DataFrame:
    """The runs for which every condition holds.

    Args:
      runs: what `read_runs` returns.
      where: conditions parted by blanks, `field=value` or `field=value,value` for any of them. Fields are those of
        `RunSpec`, `status`, `arithmetic` and `run_id`. Values are compared by what they mean: 1e-3 is 0.001; blocks
        that belong together are joined by +, as in tfmt-sweep: `layers=0+5,all`; `none` is a field that is not set. A
        `select` is its name, or the expression of one that has none.
        Quotes hold a value with blanks together: `model="my models/bert"`. Empty means all runs.
      given: how it was asked for, in messages; empty means as `--where`.

    Returns:
      Rows of the DataFrame; `attrs["left_out"]` has a line more on what was left out, if anything was.

    Raises:
      RequestError: no such field, or a value that no run has; it says what there is.

    Example:
      >>> import tfmt
      >>> runs = narrow(tfmt.read_runs("runs"), "task=mrpc learning_rate=1e-3")
      >>> runs["mode"].unique().tolist()
      ['layernorm']
    """
    # A union's row is named by the fraction of the runs that it unites, which may be left out.
    kept = runs.copy()
    kept["mask_fraction"] = united_fractions(runs)
    given = given or f"--where={shlex.quote(where)}"
    try:
        conditions = shlex.split(where)
    except ValueError as error:
        raise RequestError(f"{given}: {str(error).lower()}") from None
    for condition in conditions:
        name, found, values = condition.partition("=")
        if not found or not values:
            raise RequestError(f"{given}: expected field=value[,value]. Received: {condition!r}")
        if name not in RunSpec.model_fields and name not in _MORE_FIELDS:
            fields = ", ".join((*RunSpec.model_fields, *_MORE_FIELDS))
            raise RequestError(f"{given}: {name!r} is no field of a run; expected one of {fields}")
        known = [read_meaning(name, value) for value in kept[name]]
        whole = read_meaning(name, values, written=True)
        entries = (
            [values] if name == "select" and whole in known else values.split(",")
        )  # it may have commas of its own
        wanted = [read_meaning(name, value, written=True) for value in entries]
        if name == "select" and whole not in known:  # tables leave out where runs and files lie
            known, wanted = ([each and expressions.shorten(each) for each in those] for those in (known, wanted))
        for meaning, value in zip(wanted, entries, strict=True):
            if meaning not in known:
                raise RequestError(f"{given}: no run has {name}={value}; there is {_list(known)}")
        kept = keep_runs(kept, [value in wanted for value in known])
    count = len(runs) - len(kept)
    told = [f"left out by {given}: {count:,} of {counted(len(runs), 'run')}"] if count else []
    kept.attrs["left_out"] = [*runs.attrs.get("left_out", ()), *told]
    return kept


def read_meaning(name: str, value: Any, *, written: bool = False) -> Any:
    """What a value of a DataFrame, or one that was written in a condition, says of a field."""
    value = none_if_missing(value)
    if value is None or value in ("", ()) or (written and value == "none"):
        return None
    if name == "layers":
        blocks = parse_layers(str(value).replace("+", ",")) if _reads_as_layers(value) else str(value)
        return blocks if isinstance(blocks, str) else "all" if blocks is None else format_layers(blocks)
    if name == "select":
        return _read_selection(str(value))
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


@functools.cache
def _read_selection(text: str) -> str:
    """A selection by its name; one without by the expression in its one way of writing."""
    name, expression = expressions.split_label(text)
    if name:
        return name
    try:
        return expressions.write(expressions.parse(expression))
    except RequestError:
        return expression  # a name that reads as none


def _reads_as_layers(value: Any) -> bool:
    try:
        parse_layers(str(value).replace("+", ","))
    except ValueError:
        return False
    return True


def _list(known: Iterable[Any]) -> str:
    """The values that there are, the first few of many."""
    texts = list(dict.fromkeys("none" if value is None else f"{value:g}" if isinstance(value, float) else
                               str(value).replace(",", "+") for value in known))  # fmt: skip
    more = f" and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return ", ".join(texts[:_MOST_SHOWN]) + more if texts else "none left after the other conditions"
