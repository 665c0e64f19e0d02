"""`tfmt-export`: a tuned model as a folder for PyTorch's transformers, PEFT or TFBert."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from tfmt import quiet
from tfmt.flags import define_tuned_run, require, run_command

_SUMMARY = (
    "Writes the model that a run tuned as a folder that other libraries load; its README.md says how.\n"
    "transformers: a Hugging Face folder for PyTorch. peft: an adapter for the base model, of layernorm modes alone.\n"
    "keras: config.json and tf_model.h5 for TFBert's from_pretrained or load_weights."
)


def _define(values: flags.FlagValues) -> None:
    define_tuned_run(values)
    flags.DEFINE_string("output", None, "Folder to make; must be empty if it is there.", flag_values=values)
    flags.DEFINE_enum(
        "format",
        "transformers",
        ["transformers", "peft", "keras"],
        "What to write; transformers, as most read it.",
        flag_values=values,
    )


def _main(values: flags.FlagValues) -> None:
    require(values, "run", "output")
    from tfmt.tuned.export import export_run

    if values.format == "keras":
        quiet.import_tensorflow(values.verbosity)
    folder = export_run(values.run, values.output, format=values.format, model=values.model)
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"wrote     {folder}  ({files})")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("tfmt-export", _SUMMARY, _define, _main, arguments)


if __name__ == "__main__":
    sys.exit(main())
