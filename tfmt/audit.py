"""`tfmt-audit`: makes a recorded run again and compares every number."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from tfmt import quiet, signals, streams
from tfmt.errors import RequestError
from tfmt.flags import Command, define_runs, run_command
from tfmt.memory import keep_memory
from tfmt.words import counted

if TYPE_CHECKING:
    from tfmt.runs.audit import Audit
    from tfmt.runs.records import Record

_SUMMARY = (
    "Makes a run again from its record and compares every loss, metric and prediction with what the record tells.\n"
    "Without --run it lists what can be audited. Exit status 0: identical, or within what rounding explains; else 1."
)


def _define(values: flags.FlagValues) -> None:
    define_runs(values)
    flags.DEFINE_string("run", "", "Run to make again: its id, a part of it that no other has, or its folder.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_string(
        "model", "", "Where the base model lies now; empty means where the run found it.", flag_values=values
    )
    flags.DEFINE_string("data_dir", "", "Where the task's files lie now; empty means where the run found them.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_string("output_dir", "", "Folder for the run's folder; empty means a temporary one.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_integer("replicas", None, "Devices; unset means as many as the run was asked for.", lower_bound=0,
                         flag_values=values)  # fmt: skip
    flags.DEFINE_integer("threads", 0, "Threads of one operation on a CPU; 0 means as many as the run had.",
                         lower_bound=0, flag_values=values)  # fmt: skip


def _check(values: flags.FlagValues) -> None:
    idle = [name for name in ("model", "data_dir", "output_dir", "replicas", "threads") if values[name].present]
    if idle and not values.run:
        raise RequestError(f"--{idle[0]} means nothing without --run, which names the run to make again")


def _main(values: flags.FlagValues) -> int:
    _check(values)
    if not values.run:
        print(_list_runs(values.runs))
        return 0
    from tfmt.runs.audit import compare, prepare_audit
    from tfmt.runs.records import find_predictions, find_run
    from tfmt.runs.runner import execute, make_bench
    from tfmt.training.predictions import read_predictions

    started = time.perf_counter()
    recorded, place = find_run(values.runs, values.run, "--run")
    predictions, broken = find_predictions(place, [recorded])
    if broken:
        raise RequestError(broken[0])
    with _folder(values.output_dir) as folder:
        with streams.told_if_slow(f"tfmt-audit: looks for {recorded.spec.model} and the text of {recorded.spec.task}"):
            request = prepare_audit(
                recorded, folder, model=values.model, data_dir=values.data_dir, replicas=values.replicas
            )
        print(f"makes {recorded.run_id} again, which took {_took(recorded)}", file=sys.stderr, flush=True)
        keep_memory()
        quiet.import_tensorflow(values.verbosity)
        bench = make_bench(request, threads=_threads(values.threads, recorded))
        print(f"trains on {bench.devices.described}", file=sys.stderr, flush=True)
        again = execute(request, bench, started=started)
        made = read_predictions(request.folder, sha256=again.predictions_sha256)
    audit = compare(recorded, again, (predictions.get(recorded.run_id), made))
    print(_report(recorded, again, audit))
    return 0 if audit.identical or audit.explained else 1


@contextlib.contextmanager
def _folder(output_dir: str) -> Iterator[Path]:
    """Where the run is made: the folder that is given, or one that is removed afterwards."""
    if output_dir:
        yield Path(output_dir)
        return
    with tempfile.TemporaryDirectory(prefix="tfmt-audit-") as folder:
        try:
            yield Path(folder)
        except signals.Stop as stop:
            stop.kept = "nothing of the audit is kept without --output_dir"
            raise


def _threads(asked: int, recorded: Record) -> int:
    """How many threads to ask TensorFlow for; 0 where it takes as many by itself."""
    from tfmt.training.devices import threads_in_use

    wanted = asked or (recorded.cost.threads if recorded.cost else 0)
    return 0 if wanted == threads_in_use() else wanted


def _took(record: Record) -> str:
    from tfmt.study.times import format_seconds

    return format_seconds(record.cost.seconds) if record.cost else "-"


def _list_runs(runs: Sequence[str]) -> str:
    """The runs, how long each took, and which of them can be made again."""
    from tfmt.results.formats import Block, Table, format_tables
    from tfmt.runs.audit import why_not
    from tfmt.runs.records import find_records, none_found

    records, broken = find_records(runs)
    if not records:
        raise none_found(runs, broken)
    rows = []
    for record in records:
        reason = why_not(record)
        told = f"no: {reason}" if reason else "yes" if record.predictions_sha256 else "yes, without predictions"
        if not reason and record.spec.fisher_from:
            told += f"; needs {', '.join(record.spec.fisher_from)}"
        devices = ", ".join(dict.fromkeys(record.cost.devices)) if record.cost else "-"
        rows.append((record.run_id, record.status, _took(record), devices, told))
    block = Block("", ("run", "status", "took", "on", "can be audited"), tuple(rows))
    caption = ("tfmt-audit --run=RUN makes one of them again.", *(f"Not read: {message}" for message in broken))
    table = Table("audit", f"{counted(len(records), 'run')} to audit", caption, (block,), ())
    return format_tables([table], "markdown").rstrip("\n")


def _report(recorded: Record, again: Record, audit: Audit) -> str:
    """What the audit found, in a table and a few lines."""
    from tfmt.results.difference import scores_block
    from tfmt.results.formats import Table, format_tables
    from tfmt.runs.audit import LOSS_BOUND, PREDICTIONS_BOUND

    numbers = [each for each in audit.numbers if ", half " not in each.what or each.difference]
    block = scores_block(numbers, audit.answers, ("recorded", "again"))
    made = f"recorded {recorded.origin.finished[:10]} by tfmt {recorded.origin.tfmt}"
    lines = [format_tables([Table("audit", f"{recorded.run_id}, {made}", (), (block,), ())], "markdown")]
    if audit.identical:
        weights = recorded.tuned_sha256 and again.tuned_sha256
        told = ["every loss", "every metric", *(["every prediction"] if audit.answers else [])]
        lines.append("identical  " + ", ".join(told) + (", the tuned weights" if weights else "") + ": bit for bit")
    else:
        since = f"since epoch {audit.first_epoch}" if audit.first_epoch else "in no epoch's numbers"
        lines.append(
            f"differs    {since}: losses by at most {audit.loss:.1e} of their size, "
            f"predictions by at most {100 * audit.share:.2g} %"
        )
        lines += [f"           {what}: {first}, again {second}" for what, first, second in audit.exact]
        names = ", ".join(what for what, _, _ in audit.rounded)
        lines += [f"           and so do: {names}"] if names else []
    lines += [f"machine    {what}: {first}, here {second}" for what, first, second in audit.surroundings]
    if audit.unknown:
        lines.append("machine    the record does not tell its processor")
    if not audit.answers:
        lines.append("           without predictions: the record has none, or of other labels")
    if not audit.identical:
        bound = f"{LOSS_BOUND:g} of a loss and {100 * PREDICTIONS_BOUND:g} % of the predictions, or one"
        if audit.explained:
            lines.append(f"explained  by rounding, which other machines do otherwise, up to {bound}")
        elif audit.surroundings or audit.unknown:
            lines.append(f"unexplained  rounding explains up to {bound}, and nothing in steps, tokens or the proof")
        else:
            lines.append("unexplained  machine and versions are the same, and so should be every bit")
    return "\n".join(lines)


_EXAMPLES = (
    "tfmt-audit --runs=study.jsonl.gz",
    "tfmt-audit --runs=study.jsonl.gz --run=mrpc-layernorm-lr0.001-s0 --data_dir=glue",
)
COMMAND = Command("tfmt-audit", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
