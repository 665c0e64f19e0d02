"""The page itself, from templates that escape all that they are given."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from tfmt.metrics import COLLAPSED_MARK
from tfmt.page.drawings import Drawing
from tfmt.page.facts import tell_run, tell_study
from tfmt.results.cells import ALL_SEEDS, Seeds
from tfmt.results.formats import Block, Table
from tfmt.results.outcomes import CHOSEN, tabulate_lost, tabulate_rates
from tfmt.results.tables import build_tables

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.runs.records import Record
    from tfmt.spec import RunSpec

# Columns of the list of runs by whose values a reader may choose.
_CHOICES = ("model", "task", "mode", "layers", "rate", "seed", "status", "notes")
_NUMBER = re.compile(rf"[-+]?[\d,]+(\.\d+)?(e[-+]?\d+)?{COLLAPSED_MARK}?")


def build_page(
    runs: pd.DataFrame, records: Sequence[Record], tables: Sequence[Table], claims: Table,
    drawings: Sequence[Drawing], write: Callable[[RunSpec], Sequence[str]], epoch: str = "best",
    roles: Seeds = ALL_SEEDS, again: Sequence[str] = (),
) -> str:  # fmt: skip
    """A study as one HTML page, the same text for the same runs.

    Args:
      runs: what `read_runs` or `narrow` returned.
      records: the same runs' records.
      tables: the papers' tables; of those without rows the page says what makes them.
      claims: what `tabulate_claims` returned.
      drawings: what `draw_all` gave.
      write: gives the flags of tfmt-train that ask for a spec.
      epoch: whose scores they all show.
      roles: which seeds choose the learning rates of the tables, and which are reported.
      again: the flags that ask for just this page, beside those that say where the runs are and where it goes.
    """
    lost = tabulate_lost(runs, records, epoch)
    (listed,) = build_tables(runs, "runs", epoch)
    study = {
        "facts": tell_study(records, lost.numbers[0]),
        "claims": claims,
        "tables": [table for table in tables if table.blocks],
        "missing": [table for table in tables if not table.blocks],
        "rates": tabulate_rates(runs, epoch, roles),
        "lost": lost,
        "drawn": [drawing for drawing in drawings if drawing.svg],
        "undrawn": [drawing for drawing in drawings if not drawing.svg],
        "listed": listed,
        "list": listed.blocks[0],
        "told": {record.run_id: tell_run(record, write) for record in records},
        "choices": _CHOICES,
        "chosen": CHOSEN,
        "epoch": epoch,
        "again": again,
    }
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["numeric"] = _numeric
    script = _read("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        study, style=Markup(_read("page.css")), script=Markup(script), script_digest=digest, markup=Markup
    )


def _read(name: str) -> str:
    """A file of this package."""
    return (resources.files("tfmt.page") / name).read_text(encoding="utf-8")


def _numeric(block: Block) -> list[bool]:
    """Which columns of a grid hold numbers, dashes and nothing else."""
    grid = list(zip(*block.rows, strict=True))
    return [
        all(text in ("-", "") or _NUMBER.fullmatch(text) for text in column) and any(map(_NUMBER.fullmatch, column))
        for column in grid
    ]
