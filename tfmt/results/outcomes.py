"""What became of all runs: the score of every cell by learning rate, and the runs that were lost or learned nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfmt.metrics import COLLAPSED_MARK
from tfmt.results.cells import ALL_SEEDS, Seeds, make_cell
from tfmt.results.formats import Block, Table
from tfmt.results.groups import column_title, group_runs, name_parts
from tfmt.results.rows import annotate
from tfmt.results.tables import format_rate
from tfmt.words import counted, without_folders

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.runs.records import Record

_LOST = ("diverged", "failed", "undefined", "collapsed")
CHOSEN = "*"  # behind the score at the rate that tables report


def tabulate_rates(runs: pd.DataFrame, epoch: str = "best", roles: Seeds = ALL_SEEDS) -> tuple[Table, ...]:
    """The score of every cell at each of its learning rates, a block for each task.

    Args:
      runs: what `read_runs` returns.
      epoch: whose scores: each run's `best` epoch's or its `last` one's.
      roles: which seeds choose the learning rate, and which are reported.

    Returns:
      One table for each group of runs that may be compared, the largest group first. `numbers` has a mapping for each
      cell and rate: `column`, `row`, `learning_rate`, `mean`, `deviation` (fractions), `seeds`, `chosen`.
    """
    tables = []
    for group, behind in name_parts(group_runs(annotate(runs, epoch), roles)):
        blocks, numbers = [], []
        parts = group.runs.groupby(["column", "row", "learning_rate"], sort=False)
        cells = {place: make_cell(part, len(group.seeds)) for place, part in parts}
        for column in group.columns:
            rates = sorted(set(group.runs.loc[group.runs["column"] == column, "learning_rate"]))
            rows = []
            for row in group.rows:
                if (row, column) not in group.cells:
                    continue
                chosen = group.cells[row, column]
                texts = [row.title]
                for rate in rates:
                    cell = cells.get((column, row, rate))
                    if cell is None:
                        texts.append("")
                        continue
                    is_chosen = chosen.eligible and chosen.learning_rate == rate
                    texts.append(cell.text + (CHOSEN if is_chosen else ""))
                    numbers.append(
                        {"column": column, "row": row.title, "learning_rate": rate, "mean": cell.mean}
                        | {"deviation": cell.deviation, "seeds": len(cell.scores), "chosen": is_chosen}
                    )
                rows.append(tuple(texts))
            blocks.append(Block(column_title(column), ("", *map(format_rate, rates)), tuple(rows)))
        caption: tuple[str, ...] = (
            f"Percent, {epoch} epoch of each run: mean ± sample standard deviation (n - 1) over seeds"
            f" {', '.join(map(str, group.seeds))}. {CHOSEN}: the rate that tables report. A dash:"
            " a seed was lost, so that the rate has no mean; empty: no runs.",
        )
        if any(COLLAPSED_MARK in text for block in blocks for row in block.rows for text in row):
            caption += (f"{COLLAPSED_MARK}: with runs that predict one class only, or a constant.",)
        tables.append(Table("rates", "Score by learning rate" + behind, caption, tuple(blocks), tuple(numbers)))
    return tuple(tables)


def tabulate_lost(runs: pd.DataFrame, records: Sequence[Record], epoch: str = "best") -> Table:
    """The runs that diverged, failed, have no defined score, or collapsed, each with what it left behind.

    Args:
      runs: what `read_runs` returns.
      records: the same runs' records.
      epoch: whose scores, and whose collapse.

    Returns:
      A table, one mapping in `numbers`: how many `completed`, `diverged`, ... Without such runs it has no block, and
      its caption says so.
    """
    known = {record.run_id: record for record in records}
    columns = ("run_id", "row", "task", "learning_rate", "seed", "outcome", "collapsed")
    annotated = annotate(runs, epoch)
    rows, counts = [], dict.fromkeys(_LOST, 0)
    for run_id, row, task, rate, seed, outcome, collapsed in zip(*(annotated[name] for name in columns), strict=True):
        became = outcome if outcome != "scored" else "collapsed" if collapsed == 1 else ""
        if became:
            counts[became] += 1
            why = _tell_why(known[run_id], became)
            rows.append((became, column_title(task), row.title, format_rate(rate), str(seed), why, run_id))
    rows.sort(key=lambda row: (_LOST.index(row[0]), row[-1]))
    told = ", ".join(f"{number:,} {became}" for became, number in counts.items() if number)
    caption: tuple[str, ...] = (f"Of {counted(len(annotated), 'run')} {told or 'none diverged, failed or collapsed'}.",)
    if counts["collapsed"]:
        caption += (
            "Collapsed: one class, or a constant, for every example of the split; its score is what one answer to"
            " everything gets.",
        )
    heads = ("what", "task", "row", "rate", "seed", "why", "run")
    blocks = (Block("", heads, tuple(rows)),) if rows else ()
    completed = len(annotated) - counts["diverged"] - counts["failed"]
    return Table("lost", "Diverged, failed, collapsed", caption, blocks, ({"completed": completed} | counts,))


def _tell_why(record: Record, became: str) -> str:
    """A run's error; of one that collapsed, what it predicted at the epoch that it kept."""
    if record.error:
        return without_folders(record.error)
    if record.proof is not None and record.proof.frozen_changed:
        return f"{counted(record.proof.frozen_changed, 'frozen weight')} changed"
    result = record.result
    if result is None:
        return "-"
    if became == "undefined":
        return "; ".join(f"{metric}: {reason}" for metric, reason in sorted(result.reasons.items())) or "-"
    for split, predicted in result.predicted.items():
        answers = [name for name, number in predicted.items() if number]
        if len(answers) == 1:  # more, where the epoch is not the one that it kept
            return f"{answers[0]} for all {sum(predicted.values()):,} of {split}"
    return "-"
