"""`tfmt-train`: one fine-tuning run."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from tfmt import quiet, signals, streams
from tfmt.flags import Command, define_require_gpu, define_run_flags, read_spec, run_command
from tfmt.memory import keep_memory
from tfmt.spec import RunSpec
from tfmt.words import counted

if TYPE_CHECKING:
    from tfmt.runs.records import Record

_SUMMARY = (
    "Fine-tunes the chosen part of a pre-trained BERT and nothing else, and writes a record that proves it.\n"
    "The same command goes on where an interrupted run stopped, and only prints a finished run."
)


def _define(values: flags.FlagValues) -> None:
    define_run_flags(values)
    define_require_gpu(values)
    flags.DEFINE_string("output_dir", "runs", "Folder that holds the runs' folders.", flag_values=values)
    flags.DEFINE_bool(
        "dry_run", False, "Prints what would train, with counts and steps, and stops.", flag_values=values
    )


def _main(values: flags.FlagValues) -> int:
    started = time.perf_counter()
    spec = read_spec(values)
    if values.dry_run:
        from tfmt.study.dry_run import describe

        print(describe(spec, values.output_dir, by_layer=values.verbosity > 0))
        return 0
    from tfmt.runs.folder import finished, open_folder, tell_other_model, tidy_finished
    from tfmt.runs.runner import execute, make_bench, prepare

    with streams.told_if_slow(f"tfmt-train: looks for {spec.model} and the text of {spec.task}"):
        request = prepare(spec, values.output_dir)
    record = finished(request)
    if record is None:
        if values.require_gpu:
            require_gpu("tfmt-train", values.verbosity)
        if not request.folder.exists() and (told := tell_other_model(request)):
            print(f"tfmt-train: {told}", file=sys.stderr)
        open_folder(request)
        print(_announce(request.spec, str(request.folder)), file=sys.stderr, flush=True)
        keep_memory()
        try:
            quiet.import_tensorflow(values.verbosity)
            bench = make_bench(request)
            print(f"trains on {bench.devices.described}", file=sys.stderr, flush=True)
            record = execute(request, bench, started=started)
        except signals.Stop as stop:
            stop.kept = f"{stop.kept or 'nothing was computed yet'}; the same command goes on"
            raise
    else:
        print(f"tfmt-train: {request.folder} holds this run already", file=sys.stderr)
        tidy_finished(request.folder, record)
    print(_report(record, str(request.folder)))
    return 0


def _check(values: flags.FlagValues) -> None:
    """Refuses flags that do not fit together, and a selection that the model has not."""
    from tfmt.bert.configs import find_shape
    from tfmt.selection.modes import plan_on_shape

    spec = read_spec(values)
    if spec.mode == "custom":
        plan_on_shape(spec, find_shape(spec.model, spec.revision))


def require_gpu(program: str, verbosity: int) -> None:
    """Raises `RequestError` where GPUs are missing; imports TensorFlow for that."""
    with streams.told_if_slow(f"{program}: looks for GPUs"):
        quiet.import_tensorflow(verbosity)
        from tfmt.training import devices

        devices.require_gpu()


def _announce(spec: RunSpec, folder: str) -> str:
    epochs = "at most " * bool(spec.early_stopping) + counted(spec.epochs, "epoch")
    return f"{spec.task} {spec.trained}: {epochs} at learning rate {spec.learning_rate:g}, seed {spec.seed} -> {folder}"


def _report(record: Record, folder: str) -> str:
    """A few lines on a run that ended."""
    lines = []
    if record.parameters:
        parts = record.parameters
        lines.append(
            f"tuned     {parts.tuned:,} weights = {parts.tuned_percent:.4f} % of the encoder, head {parts.head:,}"
        )
    result, proof = record.result, record.proof
    if record.status != "completed":
        lines.append(f"{record.status}  {record.error}")
    if record.status == "diverged":
        lines.append("          a result like another, and no failure: exit status 0; tables count it as lost")
    if result and result.epochs:
        for split, metrics in result.epochs[-1].metrics.items():
            shown = "  ".join(f"{k} {'undefined' if v is None else f'{100 * v:.2f}'}" for k, v in metrics.items())
            lines.append(f"{split:<9} {shown}  (N = {result.scored[split]:,}, epoch {result.epochs[-1].epoch})")
        if result.stopped_early:
            lines.append(
                f"stopped   after epoch {result.stopped_early} of {record.spec.epochs}: "
                f"no better score in {counted(record.spec.early_stopping, 'epoch')} (--early_stopping)"
            )
        flat = result.collapsed_in(result.best_epoch)
        best = (
            "undefined" if result.score_best is None else f"{100 * result.score_best:.2f} in epoch {result.best_epoch}"
        )
        lines.append(f"best      {result.score_name} {best}" + ("  (collapsed)" if flat else ""))
        if flat:
            lines.append("          collapsed: one class for all, or a constant; the score of having learned nothing")
        if result.test is not None:
            shown = "  ".join(f"{k} {'undefined' if v is None else f'{100 * v:.2f}'}" for k, v in result.test.items())
            lines.append(f"test      {shown}  (N = {result.scored['test']:,}, epoch {record.kept_epoch})")
    if proof:
        lines.append(f"proof     {proof.selected_changed:,} selected weights moved, {proof.frozen_changed} others")
    if record.cost:
        cost = record.cost
        lines.append(
            f"cost      {cost.setup_seconds:.1f} s set-up, {cost.train_seconds:.1f} s training, "
            f"{cost.eval_seconds:.1f} s evaluation; {cost.tokens:,} tokens ({cost.padded_tokens:,} with padding)"
        )
        if cost.computed_on:
            lines.append(f"devices   {', then '.join(cost.computed_on)}: the last bits of its numbers may differ")
    lines.append(f"record    {folder}/record.json")
    return "\n".join(lines)


_EXAMPLES = (
    "tfmt-train --model=demo --task=rotten_tomatoes --mode=layernorm --epochs=2 --train_limit=2000",
    "tfmt-train --flagfile=protocol.flags --task=mrpc --mode=bitfit --learning_rate=1e-3 --dry_run",
)
COMMAND = Command("tfmt-train", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
