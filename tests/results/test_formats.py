"""The five formats, on a table with everything that a format might trip over."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re

import pytest

from tfmt.errors import RequestError
from tfmt.results.formats import FORMATS, Block, Table, format_tables

TABLE = Table(
    name="1",
    title="Table 1: A & B",
    caption=("50 % of <all>",),
    blocks=(
        Block("", ("", "layer_norm"), (("a|b", "1.0 ± 0.5"), ("[x]", "two\nlines"))),
        Block("Rates", ("", "x"), (("a_b", "1e-3"),)),
    ),
    numbers=(
        {"row": "a|b", "mean": 0.01, "scores": {0: 0.5, 1: float("nan")}, "low": None},
        {"row": '[x], "y"', "high": float("inf"), "columns": ("p", "q")},
    ),
)


def test_markdown() -> None:
    assert format_tables([TABLE], "markdown") == (
        "### Table 1: A & B\n"
        "\n"
        "|      | layer_norm |\n"
        "|------|------------|\n"
        "| a\\|b | 1.0 ± 0.5  |\n"
        "| [x]  | two lines  |\n"
        "\n"
        "Rates\n"
        "\n"
        "|     | x    |\n"
        "|-----|------|\n"
        "| a_b | 1e-3 |\n"
        "\n"
        "- 50 % of <all>\n"
    )


def test_csv_has_the_numbers_one_row_a_cell() -> None:
    rows = list(csv.DictReader(io.StringIO(format_tables([TABLE, TABLE], "csv"))))
    assert len(rows) == 4
    assert [row["part"] for row in rows] == ["1", "1", "2", "2"]
    assert rows[0] == {
        "table": "1",
        "part": "1",
        "row": "a|b",
        "mean": "0.01",
        "scores": '{"0": 0.5, "1": null}',
        "low": "",
        "high": "",
        "columns": "",
    }
    assert (rows[1]["row"], rows[1]["high"], rows[1]["columns"]) == ('[x], "y"', "", '["p", "q"]')


def test_json_has_the_numbers_and_no_nan() -> None:
    (table,) = json.loads(format_tables([TABLE], "json"))["tables"]
    assert (table["table"], table["title"], table["caption"]) == ("1", "Table 1: A & B", ["50 % of <all>"])
    assert table["numbers"][0] == {"row": "a|b", "mean": 0.01, "scores": {"0": 0.5, "1": None}, "low": None}
    assert table["numbers"][1] == {"row": '[x], "y"', "high": None, "columns": ["p", "q"]}


def test_latex() -> None:
    text = format_tables([TABLE], "latex")
    assert text == (
        "% needs \\usepackage{booktabs}\n"
        "\n"
        "\\begin{table*}\n"
        "\\centering\n"
        "\\small\n"
        "\\begin{tabular}{lr}\n"
        "\\toprule\n"
        " & layer\\_norm \\\\\n"
        "\\midrule\n"
        "a|b & 1.0 $\\pm$ 0.5 \\\\\n"
        "{}[x] & two\nlines \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\par\\medskip Rates\\par\n"
        "\\begin{tabular}{lr}\n"
        "\\toprule\n"
        " & x \\\\\n"
        "\\midrule\n"
        "a\\_b & 1e-3 \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\caption{Table 1: A \\& B. 50 \\% of $<$all$>$}\n"
        "\\end{table*}\n"
    )


class _Cells(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_html_is_a_whole_page_with_balanced_tags() -> None:
    text = format_tables([TABLE], "html")
    parser = _Cells()
    parser.feed(text)
    assert parser.open == []
    assert parser.cells == ["", "layer_norm", "a|b", "1.0 ± 0.5", "[x]", "two\nlines", "", "x", "a_b", "1e-3"]
    assert "&lt;all&gt;" in text
    assert re.match(r'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">', text)


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_without_rows(form: str) -> None:
    text = format_tables([Table("2", "Table 2", ("No runs.",), (), ())], form)
    assert text.endswith("\n")
    assert form == "csv" or "No runs." in text


def test_unknown_format() -> None:
    with pytest.raises(
        RequestError, match=r"--format must be one of markdown, csv, latex, html, json\. Received: 'xml'"
    ):
        format_tables([TABLE], "xml")
