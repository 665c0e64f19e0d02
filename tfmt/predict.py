"""`tfmt-predict`: predictions of a tuned model, as GLUE's server takes them or beside your own columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from tfmt import quiet, streams
from tfmt.flags import Command, define_tuned_run, require, run_command
from tfmt.memory import keep_memory
from tfmt.words import counted

if TYPE_CHECKING:
    from tfmt.tuned.predict import Written

_SUMMARY = (
    "Predicts with the model that a run tuned, from the run's folder and its base model.\n"
    "GLUE tasks: index and prediction, in the files that GLUE's server takes. Token tasks: a word and its tag a line.\n"
    "Other tasks: the input's columns, the prediction and its probability. Where there are labels it prints the score."
)


def _define(values: flags.FlagValues) -> None:
    define_tuned_run(values)
    flags.DEFINE_enum(
        "split", None, ["test", "validation"], "Split of the run's task to predict for.", flag_values=values
    )
    flags.DEFINE_string(
        "input", "", "File to predict for instead: TSV, CSV, JSON Lines or CoNLL, of any size.", flag_values=values
    )
    flags.DEFINE_string(
        "output", None, "TSV file to write, or a folder, which takes GLUE's names (MNLI has two).", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "Where the task's files lie now; empty means where the run found them.", flag_values=values
    )
    flags.DEFINE_string("encoding", "", "Encoding of your files; empty means the run's.", flag_values=values)


def _check(values: flags.FlagValues) -> None:
    require(values, "run", "output")
    from tfmt.tuned.predict import check_source

    check_source(values.split or "", values.input)


def _main(values: flags.FlagValues) -> None:
    _check(values)
    from tfmt.tuned.predict import prepare_prediction

    texts = values.input or f"the {values.split} split"
    with streams.told_if_slow(f"predicts for {texts} with {values.run} -> {values.output}") as tell:
        prediction = prepare_prediction(
            values.run,
            values.output,
            split=values.split or "",
            input_file=values.input,
            data_dir=values.data_dir,
            model=values.model,
            encoding=values.encoding,
        )
        if "tensorflow" not in sys.modules:  # whose import takes seconds
            tell()
    keep_memory()
    quiet.import_tensorflow(values.verbosity)
    for written in prediction.write():
        print(_report(written))


def _report(written: Written) -> str:
    """A few lines on a file that was written."""
    source = written.source
    lines = [f"wrote     {source.path}  ({counted(written.examples, 'prediction')})"]
    if written.cut_off:
        lines.append(f"          {counted(written.cut_off, 'word')} beyond --max_length got no prediction")
    if written.no_token:
        lines.append(
            f"          {counted(written.no_token, 'word')} of which the tokenizer keeps no character got no prediction"
        )
    if written.scores is not None:
        scores = written.scores.values
        shown = "  ".join(f"{k} {'undefined' if v is None else f'{100 * v:.2f}'}" for k, v in scores.items())
        lines.append(f"{source.name:<9} {shown}  (N = {written.scored:,})")
    if source.same_data is False:
        lines.append("          these are not the data of the run, so its record may give other scores")
    return "\n".join(lines)


_EXAMPLES = (
    "tfmt-predict --run=runs/<run id> --split=test --data_dir=glue --output=predictions",
    "tfmt-predict --run=runs/<run id> --input=new.tsv --output=new-predictions.tsv",
)
COMMAND = Command("tfmt-predict", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
