"""`tfmt-export`: a tuned model as a folder for PyTorch's transformers, PEFT or TFBert."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from tfmt import quiet, streams
from tfmt.flags import Command, define_tuned_run, require, run_command

_SUMMARY = "Writes the model that a run tuned as a folder that other libraries load; its README.md says how."


def _define(values: flags.FlagValues) -> None:
    define_tuned_run(values)
    flags.DEFINE_string("output", None, "Folder to make; must be empty if it is there.", flag_values=values)
    flags.DEFINE_enum(
        "format",
        "transformers",
        ["transformers", "peft", "keras"],
        "What to write: transformers is a Hugging Face folder for PyTorch, which most read; peft an adapter for the "
        "base model, of layernorm modes alone; keras config.json and tf_model.h5 for TFBert's from_pretrained or "
        "load_weights.",
        flag_values=values,
    )


def _check(values: flags.FlagValues) -> None:
    require(values, "run", "output")


def _main(values: flags.FlagValues) -> None:
    _check(values)
    from tfmt.tuned.export import export_run

    with streams.told_if_slow(f"exports {values.run} -> {values.output} ({values.format})") as tell:
        if values.format == "keras":
            if "tensorflow" not in sys.modules:  # whose import takes seconds
                tell()
            quiet.import_tensorflow(values.verbosity)
        folder = export_run(values.run, values.output, format=values.format, model=values.model)
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"wrote     {folder}  ({files})")


_EXAMPLES = (
    "tfmt-export --run=runs/<run id> --output=exported",
    "tfmt-export --run=runs/<run id> --output=adapter --format=peft",
)
COMMAND = Command("tfmt-export", _SUMMARY, _EXAMPLES, _define, _main, check=_check)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(COMMAND, arguments)


if __name__ == "__main__":
    sys.exit(main())
