"""The five formats, on a table with everything that a format might trip over."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

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


@pytest.mark.parametrize(
    ("value", "field"),
    [('=HYPERLINK("http://a")', "'=HYPERLINK(\"http://a\")"), ("+1", "'+1"), ("@x", "'@x"), ("-x", "'-x"),
     (-1.5, "-1.5"), ("a=b", "a=b"), ("", "")],
)  # fmt: skip
def test_csv_holds_no_formula(value: str | float, field: str) -> None:
    table = Table("1", "", (), (), numbers=({"model": value},))
    assert next(csv.DictReader(io.StringIO(format_tables([table], "csv"))))["model"] == field


def test_json_has_the_numbers_and_no_nan() -> None:
    (table,) = json.loads(format_tables([TABLE], "json"))["tables"]
    assert (table["table"], table["title"], table["caption"]) == ("1", "Table 1: A & B", ["50 % of <all>"])
    assert table["numbers"][0] == {"row": "a|b", "mean": 0.01, "scores": {"0": 0.5, "1": None}, "low": None}
    assert table["numbers"][1] == {"row": '[x], "y"', "high": None, "columns": ["p", "q"]}


SENTENCE = (
    "tfmt-sweep --flagfile=table1.flags --task=mrpc,rte,cola,stsb,sst2,qnli --model='a_b' makes 50 % of {these} & ^~\\"
)


def latex_tables() -> list[Table]:
    """Tables that fit a page and one that does not, with whatever LaTeX might take for its own."""
    claims = Block("The numbers", ("claim", "what", "value"), ((("C1"), SENTENCE, "+1.0"), ("*", "[short", "-")))
    runs = Block("", ("run", "n"), tuple((f"mrpc_{i}", str(i)) for i in range(60)))
    return [
        TABLE,
        TABLE,
        Table("claims", "Claims", ("For it: <x> # 1.", SENTENCE), (claims,), ()),
        Table("runs", "Runs", ("60 runs.",), (runs,), ()),
    ]


def test_latex_rows_have_the_columns_that_they_announce() -> None:
    text = format_tables(latex_tables(), "latex")
    opened: list[str] = []
    columns = rows = 0
    for line in text.splitlines()[2:]:
        if begin := re.match(r"\\begin\{([a-z*]+)\}", line.removeprefix(r"\resizebox")):
            opened.append(begin[1])
            if begin[1] in ("tabular", "longtable"):
                spec = re.sub(r">\{[^}]*\}|p\{[^}]*\}", lambda found: "p" if found[0][0] == "p" else "", line)
                columns = len(spec[len(begin[0]) + 1 : -1])
        elif end := re.match(r"\\end\{([a-z*]+)\}", line):
            assert opened.pop() == end[1]
        elif line.endswith(r"\\") and r"\caption" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) + 1 == columns
            assert not re.search(r"(?<!\\)[%#_^~]", line)
            assert "--" not in line
            assert not line.startswith(("[", "*"))
            rows += 1
    assert opened == []
    assert rows == 2 * (3 + 2) + 3 + (2 + 60)  # a longtable says its head twice
    plain = re.sub(r"\\[{}\\]", "", text)
    assert plain.count("{") == plain.count("}")


def test_latex_captions_are_short_and_notes_stand_below() -> None:
    text = format_tables(latex_tables(), "latex")
    captions = re.findall(r"\\caption\{(.*?)\}\\label\{(.*?)\}", text)
    assert captions == [
        (r"A \& B (P1, table 1)", "tab:tfmt-1"),
        (r"A \& B (P1, table 1): Rates", "tab:tfmt-1-rates"),
        (r"A \& B (P1, table 1)", "tab:tfmt-1-2"),
        (r"A \& B (P1, table 1): Rates", "tab:tfmt-1-rates-2"),
        ("Claims: The numbers", "tab:tfmt-claims-the-numbers"),
        ("Runs", "tab:tfmt-runs"),
    ]
    assert text.count(r"50 \% of $<$all$>$\par") == 2
    first = text[: text.index(r"\end{table*}")]
    assert first.index(r"\caption") < first.index(r"\end{tabular}") < first.index(r"50 \% of $<$all$>$")
    assert re.search(r"\{l>\{\\raggedright\\arraybackslash\}p\{0\.\d\d\\linewidth\}r\}", text)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="there is no LaTeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    text = format_tables(latex_tables(), "latex")
    packages = text.splitlines()[0].removeprefix("% needs ")
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "all.tex").write_text(document)
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout
    assert "Overfull" not in told.stdout
    assert "Float too large" not in told.stdout


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
