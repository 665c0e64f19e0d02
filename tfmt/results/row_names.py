"""Naming the settings that a command compares: `layernorm`, `outliers:mask_size=16`, `my heads:budget=0.5%`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from tfmt.errors import RequestError
from tfmt.results.rows import Row
from tfmt.results.where import read_meaning
from tfmt.spec import MODES

_DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(Row) if each.name != "mode"}
_UNION = "union"  # the only field that is said without a value
_VALUED = tuple(name for name in _DEFAULTS if name != _UNION)
_MOST_LISTED = 12


def name_row(row: Row) -> str:
    """The shortest name that `find_row` reads as this row: its mode, and each field that is not its default.

    A selection that has a name is called by it, where that is no mode and has no comma.
    """
    named = row.selection != row.select and row.selection not in MODES and "," not in row.selection
    said = [row.selection if named else row.mode]
    for name, default in _DEFAULTS.items():
        value = row.selection if name == "select" else getattr(row, name)
        if value != default and not (named and name == "select"):
            told = f"{value:g}" if isinstance(value, float) else str(value)
            told = told.replace(",", "+") if name == "layers" else told
            said.append(_UNION if name == _UNION else f"{name}={told}")
    return ":".join(said)


def split_names(text: str) -> tuple[str, str]:
    """The two names of `--compare=LEFT,RIGHT`.

    Raises:
      RequestError: they are not two, or the same.
    """
    # A comma parts them only before a mode, so that lists of blocks may have commas, too.
    names = re.split(rf",(?=(?:{'|'.join(MODES)})(?::|,|$))", text.strip())
    if len(names) != 2:
        names = text.strip().split(",")
    if len(names) != 2 or not all(names):
        raise RequestError(
            f"--compare={text}: expected two settings, like layernorm,full or"
            " outliers:mask_size=16,outliers_control:mask_size=16"
        )
    if names[0] == names[1]:
        raise RequestError(f"--compare={text}: expected two different settings")
    return names[0], names[1]


def find_row(name: str, rows: Iterable[Row]) -> Row:
    """The row that a name means.

    Args:
      name: a mode or the name of a selection, and behind colons what tells its rows apart: `field=value` with the
        fields of `Row`, or `union`. Values are compared by what they mean, as in `narrow`. Where several rows fit, it
        is the one all of whose other fields have their defaults.
      rows: the rows there are.

    Raises:
      RequestError: no such mode or field, no row that fits, or several; it says which there are.

    Example:
      >>> rows = [Row("layernorm"), Row("layernorm", layers="5"), Row("outliers", mask_size=16)]
      >>> find_row("layernorm", rows), find_row("layernorm:layers=5", rows).title, find_row("outliers", rows).title
      (Row(mode='layernorm', ...), 'LayerNorms block 5', 'Outliers n=16')
    """
    mode, *qualifiers = re.split(rf":(?=(?:{'|'.join(_VALUED)})=|{_UNION}(?::|$))", name)
    rows = list(rows)
    selection = read_meaning("select", mode)
    of_mode = sorted({row for row in rows if row.mode == mode or (row.select and _value(row, "select") == selection)},
                     key=lambda row: row.order)  # fmt: skip
    if mode not in MODES and not of_mode:
        shown, _, rest = mode.partition(":")
        if shown in MODES:
            told = f"expected {shown}:field=value with one of {', '.join(_VALUED)}, or {shown}:{_UNION}"
            raise RequestError(f"--compare: {name!r}: {told}. Received: {rest!r}")
        named = _join(sorted({row.selection for row in rows if row.select}))
        told = f" and no selection there is ({named})" if named else ""
        raise RequestError(f"--compare: {shown!r} is no mode{told}; expected one of {', '.join(MODES)}")
    wanted: dict[str, Any] = {}
    for qualifier in qualifiers:
        field, _, value = qualifier.partition("=")
        wanted[field] = True if field == _UNION else read_meaning(field, value, written=True)
    fitting = [row for row in of_mode if all(_value(row, field) == value for field, value in wanted.items())]
    plain = [row for row in fitting if all(field in wanted or getattr(row, field) == _DEFAULTS[field]
                                           or (field == "select" and row.mode != mode)
                                           for field in _DEFAULTS)]  # fmt: skip
    plain = [row for row in plain if row.mode == mode] or plain
    if len(fitting) != 1 and len(plain) != 1:
        if fitting:
            raise RequestError(f"--compare: {name!r} may be any of {_list(fitting)}; name one")
        there = _list(of_mode) if of_mode else _list_modes(rows)
        raise RequestError(f"--compare: no run of {name!r}; there is {there}")
    return fitting[0] if len(fitting) == 1 else plain[0]


def _value(row: Row, field: str) -> Any:
    value = getattr(row, field)
    return value if field == _UNION else read_meaning(field, value)


def _list(rows: Iterable[Row]) -> str:
    return _join([name_row(row) for row in rows])


def _list_modes(rows: Iterable[Row]) -> str:
    modes = {row.mode for row in rows}
    return _join([mode for mode in MODES if mode in modes]) or "none"


def _join(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
