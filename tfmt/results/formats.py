"""A finished table, and its five ways onto a page: markdown, CSV, LaTeX, HTML, JSON.

Markdown, LaTeX and HTML show what a reader reads, CSV and JSON the numbers behind it, one row a cell.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfmt.errors import RequestError
from tfmt.results.latex import to_latex


@dataclass(frozen=True)
class Block:
    """One grid of text.

    Attributes:
      title: what stands above it; may be empty.
      columns: the column heads.
      rows: as many texts a row as there are columns.
      bold: (row, column) of the texts that stand out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Table:
    """What tfmt-report prints.

    Attributes:
      name: the value of `--table`, or `claims`.
      title: one line.
      caption: lines that say what the numbers are.
      blocks: the grids of text.
      numbers: the numbers behind them, one mapping a cell; fractions, not percent.
    """

    name: str
    title: str
    caption: tuple[str, ...]
    blocks: tuple[Block, ...]
    numbers: tuple[Mapping[str, Any], ...]


def format_tables(tables: Iterable[Table], form: str) -> str:
    """Writes tables as text that ends in a newline.

    Args:
      tables: the tables, in order.
      form: `markdown`, `csv`, `latex` (needs the packages of `tfmt.results.latex`), `html` (a whole page) or `json`.

    Raises:
      RequestError: another form.
    """
    if form not in FORMATS:
        raise RequestError(f"--format must be one of {', '.join(FORMATS)}. Received: {form!r}")
    return FORMATS[form](tuple(tables)).rstrip("\n") + "\n"


def _to_markdown(tables: Sequence[Table]) -> str:
    def in_cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|").replace("<", "\\<")

    parts = []
    for table in tables:
        parts.append(f"### {table.title}")
        for block in table.blocks:
            grid = [[in_cell(text) for text in row] for row in (block.columns, *block.rows)]
            for row, column in block.bold:
                grid[1 + row][column] = f"**{grid[1 + row][column]}**"
            # Padded, so that it reads as well in a terminal; a long cell does not widen its column beyond reason.
            widths = [min(60, max(3, *(len(row[i]) for row in grid))) for i in range(len(block.columns))]
            lines = [
                "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
                for row in grid
            ]
            lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
            parts.append("\n".join([f"{block.title}\n", *lines] if block.title else lines))
        parts.append("\n".join(f"- {line}" for line in table.caption))
    return "\n\n".join(part for part in parts if part)


def _to_csv(tables: Sequence[Table]) -> str:
    rows = [{"table": table.name, "part": part, **row} for part, table in enumerate(tables, 1) for row in table.numbers]
    columns = dict.fromkeys(name for row in rows for name in row) or {"table": None, "part": None}
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: no_formula(_flat(value)) for name, value in row.items()} for row in rows)
    return file.getvalue()


def no_formula(value: Any) -> Any:
    """A field of CSV that no spreadsheet takes for a formula: a text that begins as one does gets a quote in front.

    Numbers are no texts and stay as they are.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _flat(value: Any) -> Any:
    """A value as one CSV field; lists and mappings as JSON."""
    value = _plain(value)
    return json.dumps(value) if isinstance(value, list | dict) else value


def _plain(value: Any) -> Any:
    """A value that JSON knows: no NaN, no NumPy types, no tuples."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _to_json(tables: Sequence[Table]) -> str:
    told = [
        {
            "table": table.name,
            "title": table.title,
            "caption": list(table.caption),
            "numbers": [_plain(row) for row in table.numbers],
        }
        for table in tables
    ]
    return json.dumps({"tables": told}, indent=1, ensure_ascii=False, allow_nan=False)


def _to_html(tables: Sequence[Table]) -> str:
    def line(texts: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

    def cells(block: Block, row: int) -> Iterator[str]:
        for column, text in enumerate(block.rows[row]):
            yield f"<b>{html.escape(text)}</b>" if (row, column) in block.bold else html.escape(text)

    title = html.escape("; ".join(table.title for table in tables) or "tfmt-report")
    style = "body{font-family:sans-serif}table{border-collapse:collapse;margin:1em 0}"
    style += "th,td{text-align:left;padding:.2em .8em}"
    style += "thead tr{border-top:2px solid;border-bottom:1px solid}tbody tr:last-child{border-bottom:2px solid}"
    lines = [f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>']
    lines += [f"<style>{style}</style></head><body>"]
    for table in tables:
        lines += ["<section>", f"<h2>{html.escape(table.title)}</h2>"]
        for block in table.blocks:
            caption = f"<caption>{html.escape(block.title)}</caption>" if block.title else ""
            lines += [f"<table>{caption}<thead>{line(map(html.escape, block.columns), 'th')}</thead>", "<tbody>"]
            lines += [line(cells(block, row), "td") for row in range(len(block.rows))]
            lines += ["</tbody></table>"]
        lines += ["<ul>", *(f"<li>{html.escape(text)}</li>" for text in table.caption), "</ul>", "</section>"]
    return "\n".join([*lines, "</body></html>"])


FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {
    "markdown": _to_markdown,
    "csv": _to_csv,
    "latex": to_latex,
    "html": _to_html,
    "json": _to_json,
}
