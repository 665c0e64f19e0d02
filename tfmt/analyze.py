"""`tfmt-analyze`: the papers' figures from the records of runs, or from a model's weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmt import streams
from tfmt.errors import RequestError
from tfmt.files import write_whole
from tfmt.flags import Command, define_runs, run_command

_SUMMARY = "Draws a figure of the papers and, with --data, writes the numbers that it shows."
FIGURES = ("weights", "change", "fisher", "outliers", "layers", "rates", "curves", "frontier", "where")
_OF_MODELS = ("weights", "outliers")


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "figure", None, list(FIGURES), "What to draw: weights and change of full runs; fisher of fisher runs; layers, "
        "rates and curves of any runs; frontier of runs with a --budget; where of runs' selections; outliers of a "
        "model.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "model", "", "For outliers, or weights without runs: `demo`, a hub name, a model's or a tuned run's folder.",
        flag_values=values,
    )  # fmt: skip
    define_runs(values)
    flags.DEFINE_list("task", [], "Tasks to show: short for --where=task=...; empty means all.", flag_values=values)
    flags.DEFINE_string("where", "", "Which runs: conditions like `task=mrpc,rte mode=layernorm`; empty means all.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_enum("epoch", "best", ["best", "last"],
                      "Whose score counts; P1 does not say, so records hold both.", flag_values=values)  # fmt: skip
    flags.DEFINE_string(
        "output", "", "File to draw to: PNG, PDF or SVG; else the figure's name and .png.", flag_values=values
    )
    flags.DEFINE_string("data", "", "CSV file for the numbers that the figure shows.", flag_values=values)


def _check(values: flags.FlagValues) -> None:
    name = values.figure
    if name is None:
        raise RequestError(f"--figure is required: one of {', '.join(FIGURES)}")
    if values.model and name not in _OF_MODELS:
        raise RequestError(f"--model means nothing for --figure={name}, which is made from --runs; leave it out")
    if name == "outliers" and not values.model:
        raise RequestError("--figure=outliers needs --model: demo, a hub name, a model's or a tuned run's folder")
    idle = [flag for flag in ("runs", "task", "where", "epoch") if values.model and values[flag].present]
    if idle:
        raise RequestError(f"--{idle[0]} means nothing beside --model; leave one of them out")
    from tfmt.figures.style import check_output

    check_output(values.output or f"{name}.png")
    if values.data:
        check_output(values.data, "--data", (".csv",))


def _main(values: flags.FlagValues) -> None:
    _check(values)
    name, of_model = values.figure, bool(values.model)
    output, data = Path(values.output or f"{name}.png"), values.data
    with streams.told_if_slow(f"tfmt-analyze: draws {name} from {values.model or ','.join(values.runs)}"):
        from tfmt import figures

        draw = getattr(figures, f"plot_{name}")
        figure, frame = (
            draw(model=values.model)
            if of_model
            else draw(values.runs, tasks=tuple(values.task), where=values.where, epoch=values.epoch)
        )
    for line in frame.attrs.get("notes", ()):
        print(f"tfmt-analyze: {line}", file=sys.stderr)
    figures.save_figure(figure, output)
    print(f"wrote {output}")
    if data:
        from tfmt.results.formats import no_formula

        write_whole(Path(data), frame.map(no_formula).to_csv(index=False).encode())
        print(f"wrote {data}  ({len(frame):,} rows)")


_EXAMPLES = (
    "tfmt-analyze --figure=rates --runs=runs --output=rates.pdf --data=rates.csv",
    "tfmt-analyze --figure=outliers --model=demo",
)
COMMAND = Command("tfmt-analyze", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
