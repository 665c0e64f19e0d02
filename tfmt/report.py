"""`tfmt-report`: tables and claims from the records of runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmt.errors import RequestError
from tfmt.files import check_output, write_whole
from tfmt.flags import Command, run_command

_SUMMARY = "Prints the papers' tables and checks their claims, from the records below a folder."


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("runs", "runs", "Folder that holds the runs' folders.", flag_values=values)
    flags.DEFINE_string("where", "", "Which runs: conditions like `task=mrpc,rte mode=layernorm`; empty means all.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_enum("table", None, ["1", "2", "3", "4", "fisher", "runs"],
                      "Table to print: P1's 1, 2, 3 and 4, P2's (fisher), or a list of all runs.",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_bool("claims", False, "Checks the papers' claims on these runs.", flag_values=values)
    flags.DEFINE_enum("format", "markdown", ["markdown", "csv", "latex", "html", "json"],
                      "How the tables are written; markdown lines up in a terminal.", flag_values=values)  # fmt: skip
    flags.DEFINE_enum("epoch", "best", ["best", "last"],
                      "Whose score counts; P1 does not say, so records hold both.", flag_values=values)  # fmt: skip
    flags.DEFINE_string("output", "", "File to write instead of the terminal.", flag_values=values)


def _check(values: flags.FlagValues) -> None:
    if values.table is None and not values.claims:
        raise RequestError("give --table=1, 2, 3, 4, fisher or runs, or --claims")
    if values.output:
        check_output(Path(values.output))


def _main(values: flags.FlagValues) -> int:
    _check(values)
    from tfmt.claims.claims import evaluate_claims, tabulate_claims
    from tfmt.results.analyses import tabulate_change, tabulate_fisher, tabulate_weights
    from tfmt.results.formats import format_tables
    from tfmt.results.groups import tell_left_out
    from tfmt.results.tables import build_tables
    from tfmt.results.where import narrow
    from tfmt.runs.records import find_distributions, find_records, none_found, tabulate

    records, broken = find_records(values.runs)
    distributions, unreadable = find_distributions(values.runs) if values.claims else ({}, [])
    broken += unreadable
    if not records:
        raise none_found(values.runs, broken)
    runs = tabulate(records, broken)
    for line in broken:
        print(f"tfmt-report: {line}", file=sys.stderr)
    runs = narrow(runs, values.where)
    kept = set(runs["run_id"])
    records = [record for record in records if record.run_id in kept]
    for line in runs.attrs["left_out"]:
        print(f"tfmt-report: {line}", file=sys.stderr)
    tables = list(build_tables(runs, values.table, values.epoch)) if values.table else []
    if values.claims:
        weights = tabulate_weights(runs, distributions, values.epoch)
        fisher = tabulate_fisher(runs, records)
        verdicts = evaluate_claims(
            runs,
            epoch=values.epoch,
            change=tabulate_change(records),
            weights=None if weights.empty else weights,
            fisher=None if fisher.empty else fisher,
        )
        tables.append(tabulate_claims(verdicts, values.epoch, broken, tell_left_out(runs)))
    text = format_tables(tables, values.format)
    if values.output:
        write_whole(Path(values.output), (text + "\n").encode())
        print(f"wrote {values.output}", file=sys.stderr)
    else:
        print(text)
    return 0


_EXAMPLES = (
    "tfmt-report --runs=runs --table=runs",
    "tfmt-report --table=1 --format=latex --output=table1.tex",
)
COMMAND = Command("tfmt-report", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
