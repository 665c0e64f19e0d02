"""`tfmt-report`: tables and claims from the records of runs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from tfmt.errors import RequestError
from tfmt.files import check_output, write_whole
from tfmt.flags import Command, define_runs, run_command, write_flags
from tfmt.results.row_names import split_names
from tfmt.words import counted

if TYPE_CHECKING:
    import pandas as pd

    from tfmt.results.formats import Table
    from tfmt.results.predicted import Predicted
    from tfmt.runs.records import Record

_SUMMARY = "Prints the papers' tables and checks their claims, from the records of runs; packs runs into one file."
_TABLES = ("1", "2", "3", "4", "fisher", "budget", "optimism", "runs")


def _define(values: flags.FlagValues) -> None:
    define_runs(values)
    flags.DEFINE_string("where", "", "Which runs: conditions like `task=mrpc,rte mode=layernorm`; empty means all.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_enum("table", None, list(_TABLES),
                      "Table to print: P1's 1, 2, 3 and 4, P2's (fisher), ways of choosing weights at equal counts"
                      " (budget), what choosing on the reported split gains (optimism), or a list of all runs.",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_bool("claims", False, "Checks the papers' claims on these runs.", flag_values=values)
    flags.DEFINE_string("compare", "", "Two settings, whose difference is printed with its interval over seeds and"
                        " examples: layernorm,full, or outliers:mask_size=16,outliers_control:mask_size=16.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_enum("format", "markdown", ["markdown", "csv", "latex", "html", "json"],
                      "How the tables are written; markdown lines up in a terminal.", flag_values=values)  # fmt: skip
    flags.DEFINE_enum("epoch", "best", ["best", "last"],
                      "Whose score counts; P1 does not say, so records hold both.", flag_values=values)  # fmt: skip
    flags.DEFINE_string("pack", "", "File to pack the runs into, like study.jsonl.gz: records, predictions and "
                        "distributions, no weights; --runs takes it.", flag_values=values)  # fmt: skip
    flags.DEFINE_string("command", "", "A run, by its folder, id or a part of that: prints the tfmt-train line that "
                        "makes it again.", flag_values=values)  # fmt: skip
    flags.DEFINE_list("diff", [], "Two runs, named as for --command: shows what differs, settings, versions, "
                      "machine and scores epoch by epoch.", flag_values=values)  # fmt: skip
    flags.DEFINE_enum("protocol", None, ["paper", "crossfit"],
                      "How rate and epoch are chosen: paper on the split that is reported, crossfit on one half of it"
                      " and scored on the other; both where records have halves.", flag_values=values)  # fmt: skip
    flags.DEFINE_list("choose_on", [], "Seeds that choose the learning rate, as 0,1; empty means those that are not"
                      " reported, or all.", flag_values=values)  # fmt: skip
    flags.DEFINE_list("report_on", [], "Seeds whose scores are reported, as 2,3,4; empty means those that do not"
                      " choose, or all.", flag_values=values)  # fmt: skip
    flags.DEFINE_bool("seeds", False, "Tables list every seed's score, too.", flag_values=values)
    flags.DEFINE_string("html", "", "File for one page of the whole study: tables, claims, figures and all runs.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_string("output", "", "File to write instead of the terminal.", flag_values=values)


# What is asked for instead of tables, and the flags that mean something beside it.
_ALONE = {
    "pack": ("where",),
    "html": ("where", "epoch", "protocol", "choose_on", "report_on", "seeds"),
    "command": ("output",),
    "diff": ("format", "output"),
}
_OF_REPORT = (
    "where",
    "table",
    "compare",
    "claims",
    "epoch",
    "protocol",
    "choose_on",
    "report_on",
    "seeds",
    "format",
    "output",
    *_ALONE,
)


def _check(values: flags.FlagValues) -> None:
    asked = [name for name in ("table", "claims", *_ALONE) if values[name].value]
    asked += ["compare"] if values["compare"].present else []
    if not asked:
        raise RequestError(
            "give --table=1, 2, 3, 4, fisher, budget, optimism or runs, --compare=LEFT,RIGHT, --claims, --html, --pack,"
            " --command or --diff"
        )
    alone = next((name for name in asked if name in _ALONE), None)
    idle = [name for name in _OF_REPORT if alone and name not in (alone, *_ALONE[alone]) and values[name].present]
    if idle:
        raise RequestError(f"--{idle[0]} means nothing beside --{alone}; leave one of them out")
    if values["compare"].present:
        split_names(values.compare)
    if values.diff and len(values.diff) != 2:
        raise RequestError(f"--diff={','.join(values.diff)}: give two runs, --diff=A,B")
    for name, path in (("output", values.output), ("pack", values.pack), ("html", values.html)):
        if path:
            check_output(Path(path), f"--{name}")


def _main(values: flags.FlagValues) -> int:
    _check(values)
    if values.command:
        return _write(values, _tell_command(values))
    if values.diff:
        return _write(values, _tell_difference(values))
    from tfmt.results.stopped import find_stopped
    from tfmt.results.where import narrow
    from tfmt.runs.records import find_records, none_found, tabulate

    records, broken = find_records(values.runs)
    if not records:
        raise none_found(values.runs, broken)
    runs = narrow(tabulate(records, broken), values.where)
    runs.attrs["stopped"], unread = find_stopped(values.runs, values.where)
    kept = set(runs["run_id"])
    records = [record for record in records if record.run_id in kept]
    if values.pack:
        return _pack(values, runs, records, [*broken, *unread])
    for line in [*broken, *runs.attrs["left_out"], *unread]:
        print(f"tfmt-report: {line}", file=sys.stderr)
    if values.html:
        write_whole(Path(values.html), _make_page(values, runs, records).encode())
        print(f"wrote {values.html}", file=sys.stderr)
        return 0
    return _write(values, _make_tables(values, runs, records))


def _write(values: flags.FlagValues, text: str) -> int:
    if values.output:
        write_whole(Path(values.output), (text + "\n").encode())
        print(f"wrote {values.output}", file=sys.stderr)
    else:
        print(text)
    return 0


def _make_tables(values: flags.FlagValues, runs: pd.DataFrame, records: list[Record]) -> str:
    """The tables and claims that are asked for."""
    from tfmt.results.comparing import compare_settings
    from tfmt.results.formats import format_tables
    from tfmt.results.predicted import Predicted

    predicted = Predicted(values.runs, records, values.epoch)
    tables = [*_build(values, runs, records, predicted, values.table)] if values.table else []
    if values.compare:
        asked = _asked(values, runs) | {"predicted": predicted}
        tables += compare_settings(runs, values.compare, epoch=values.epoch, **asked)
    if values.claims:
        tables.append(_judge_claims(values, runs, records, predicted))
    return format_tables(tables, values.format)


def _asked(values: flags.FlagValues, runs: pd.DataFrame) -> dict[str, Any]:
    """How rates and epochs are chosen."""
    from tfmt.results.cells import part_seeds

    return {"protocol": values.protocol, "roles": part_seeds(runs, values.choose_on, values.report_on)}


def _build(
    values: flags.FlagValues, runs: pd.DataFrame, records: list[Record], predicted: Predicted, name: str
) -> tuple[Table, ...]:
    """What --table=NAME shows."""
    from tfmt.results.budgets import build_budgets
    from tfmt.results.optimism import build_optimism
    from tfmt.results.tables import build_tables

    if name == "budget":
        return build_budgets(runs, records, values.epoch, predicted=predicted, **_asked(values, runs))
    if name == "optimism":
        return build_optimism(runs, values.epoch, **_asked(values, runs))
    return build_tables(runs, name, values.epoch, every_seed=values.seeds, **_asked(values, runs))


def _judge_claims(values: flags.FlagValues, runs: pd.DataFrame, records: list[Record], predicted: Predicted) -> Table:
    """The verdicts on these runs."""
    from tfmt.claims.claims import evaluate_claims, tabulate_claims
    from tfmt.results.analyses import tabulate_change, tabulate_fisher, tabulate_weights
    from tfmt.results.crossfit import tell_uncertain_halves
    from tfmt.results.groups import tell_left_out
    from tfmt.results.rows import annotate
    from tfmt.results.stopped import tell_searched
    from tfmt.runs.records import find_distributions

    asked = _asked(values, runs)
    distributions, unreadable = find_distributions(values.runs)
    for line in unreadable:
        print(f"tfmt-report: {line}", file=sys.stderr)
    weights = tabulate_weights(runs, distributions, values.epoch, asked["roles"])
    fisher = tabulate_fisher(runs, records)
    verdicts = evaluate_claims(
        runs,
        epoch=values.epoch,
        change=tabulate_change(records),
        weights=None if weights.empty else weights,
        fisher=None if fisher.empty else fisher,
        predicted=predicted,
        **asked,
    )
    notes = [*tell_left_out(runs)]
    annotated = annotate(runs, values.epoch)
    halves = any(verdict.crossfit or verdict.protocol == "crossfit" for verdict in verdicts)
    notes += tell_uncertain_halves(annotated) if halves else []
    notes += tell_searched(annotated, halves=halves)
    return tabulate_claims(verdicts, values.epoch, unreadable, notes, asked["roles"])


def _make_page(values: flags.FlagValues, runs: pd.DataFrame, records: list[Record]) -> str:
    """The study as one page, with every table there is."""
    from tfmt.page.drawings import draw_all
    from tfmt.page.page import build_page
    from tfmt.results.predicted import Predicted

    names = [name for name in _TABLES if name != "runs"]  # which the page lists in its own way
    predicted = Predicted(values.runs, records, values.epoch)
    tables = [table for name in names for table in _build(values, runs, records, predicted, name)]
    claims = _judge_claims(values, runs, records, predicted)
    drawings = list(draw_all(values.runs, values.where, values.epoch))
    again = [shlex.quote(values[name].serialize()) for name in _ALONE["html"] if values[name].present]
    roles = _asked(values, runs)["roles"]
    return build_page(runs, records, tables, claims, drawings, write_flags, values.epoch, roles, again)


def _tell_command(values: flags.FlagValues) -> str:
    """The command line that makes a run again."""
    from tfmt.runs.records import find_run

    record, _ = find_run(values.runs, values.command, "--command")
    commit = record.model.commit if record.model else None
    if commit and record.spec.revision != commit:
        print(f"tfmt-report: it ran on commit {commit} of the hub: --revision={commit}", file=sys.stderr)
    return shlex.join(["tfmt-train", *write_flags(record.spec)])


def _tell_difference(values: flags.FlagValues) -> str:
    """What differs between two runs."""
    from tfmt.results.difference import tabulate_difference
    from tfmt.results.formats import format_tables
    from tfmt.runs.records import find_predictions, find_run

    found = [find_run(values.runs, name, "--diff") for name in values.diff]
    predictions = []
    for record, place in found:
        known, broken = find_predictions(place, [record])
        for line in broken:
            print(f"tfmt-report: {line}", file=sys.stderr)
        predictions.append(known.get(record.run_id))
    (one, _), (other, _) = found
    return format_tables([tabulate_difference(one, other, (predictions[0], predictions[1]))], values.format)


def _pack(values: flags.FlagValues, runs: pd.DataFrame, records: list[Record], broken: list[str]) -> int:
    """Writes the runs as one file."""
    from tfmt.runs.paused import find_paused
    from tfmt.runs.records import pack_runs

    if broken:
        raise RequestError(f"--pack={values.pack}: not all can be read, so nothing is packed: {broken[0]}")
    path = Path(values.pack)
    stopped = {each.run_id for each in runs.attrs["stopped"]}
    paused = {each.run_id: each.to_json() for each in find_paused(values.runs)[0] if each.run_id in stopped}
    pack_runs(values.runs, records, path, paused)
    print(f"wrote {path}  ({counted(len(records), 'run')}, {path.stat().st_size / 1000:,.0f} kB)", file=sys.stderr)
    return 0


_EXAMPLES = (
    "tfmt-report --runs=runs --table=runs",
    "tfmt-report --table=1 --format=latex --output=table1.tex",
    "tfmt-report --runs=runs --html=study.html",
    "tfmt-report --runs=runs --pack=study.jsonl.gz",
    "tfmt-report --diff=mrpc-full-lr5e-05-s0,mrpc-full-lr5e-05-s1",
    "tfmt-report --runs=runs --compare=layernorm,full",
)
COMMAND = Command("tfmt-report", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
