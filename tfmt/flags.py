"""absl flags and flagfiles <-> RunSpec, and how every command starts and ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from absl import flags

from tfmt import quiet
from tfmt.errors import RequestError, RunError
from tfmt.spec import CONDITIONAL_FIELDS, RunSpec, meaningful_fields

# One sentence each, with the reason of the default.
_HELP = {
    "model": "BERT to tune: a hub name, a local folder, or `demo` for the packaged MiniLM.",
    "task": "Task to tune for; `custom` reads your own files.",
    "data_dir": "Folder with the task's own files; empty takes TensorFlow Datasets (or the packaged text).",
    "mode": "Which weights train: a row of the papers' tables; the classifier always trains.",
    "layers": "Blocks that train, counted from 0: all, 5, 0-3 or 0,5,11.",
    "mask_size": "Weights per LayerNorm in the outlier modes; P1 uses 4, 16, 64 and 256.",
    "mask_fraction": "Part of the feed-forward LayerNorms' weights in the Fisher modes, above 0 and at most 1.",
    "outlier_pool": "Where a LayerNorm's outliers are sought; P1 does not say, so gamma and beta are pooled.",
    "fisher_examples": "Training examples that the Fisher information is estimated on.",
    "fisher_from": "Folders of other runs; the union of their masks trains instead of a fraction.",
    "learning_rate": "Peak learning rate; P1 picks it per cell; unset means 5e-5 (full), 1e-4 (modules) or 5e-3.",
    "epochs": "Epochs; 0 is P1's rule: full 5; otherwise 10 for sst2, qqp, mnli, qnli and 20 for the rest.",
    "batch_size": "Examples a step over all replicas together; 16 as in P1.",
    "max_length": "Tokens an example keeps; 128 as in P1.",
    "warmup_ratio": "Share of the steps in which the rate rises; 0.1 as in P1.",
    "schedule": "What follows the warm-up: linear decay to 0 (P1 does not say), or constant.",
    "adam_epsilon": "Adam's epsilon; 1e-6 as in P1.",
    "seed": "Decides the head, the order, dropout and every drawn mask.",
    "batching": "grouped joins texts of like length (fastest), random is as they come, fixed pads all to max_length.",
    "train_limit": "Train on the first so many examples of a seeded shuffle; 0 means all.",
    "validation_limit": "Evaluate on the first so many examples of each development split; 0 means all.",
    "replicas": "Devices: 0 is every GPU or else one CPU; k without GPUs makes k logical CPU devices.",
    "precision": "Type to compute in; float32 as nothing else is exact enough to compare by default.",
    "jit_compile": "Compile the step with XLA; auto means off, as XLA was slower where it was measured.",
    "frozen_prefix": "Blocks below all that trains: live runs them in each step, with dropout; cached once, without.",
    "cache_limit_gb": "Memory for what cached blocks computed; a larger result lies in a temporary file.",
    "keep": "What a run stores: the tuned weights, or scores alone, as the big tables need no more.",
    "keep_epoch": "Whose weights and change are kept: the epoch of the best score, or the last.",
    "text_columns": "Custom data: one or two columns of text.",
    "label_column": "Custom data: the column of the label.",
    "task_type": "Custom data: classification, regression or tokens.",
    "validation_fraction": "Custom data in one file: part of it to hold out.",
    "encoding": "Encoding of your files or of CoNLL's; UTF-8 unless you say otherwise.",
    "split_seed": "Splits by a seeded shuffle instead of the fixed rule.",
}


def define_run_flags(values: flags.FlagValues, names: Sequence[str] = tuple(RunSpec.model_fields)) -> None:
    """Defines a flag for each named field of `RunSpec`, with its type, default and help."""
    for name in names:
        field = RunSpec.model_fields[name]
        default = None if field.is_required() else field.default
        kind, text = field.annotation, _HELP[name]
        if get_origin(kind) is Literal:
            flags.DEFINE_enum(name, default, list(get_args(kind)), text, flag_values=values)
        elif kind in (int, int | None):
            flags.DEFINE_integer(name, default, text, flag_values=values)
        elif kind in (float, float | None):
            flags.DEFINE_float(name, default, text, flag_values=values)
        elif kind is str:
            flags.DEFINE_string(name, default, text, flag_values=values)
        else:
            flags.DEFINE_list(name, list(default or ()), text, flag_values=values)


def define_tuned_run(values: flags.FlagValues) -> None:
    """Defines --run and --model, of commands that take a tuned model up."""
    flags.DEFINE_string("run", None, "Folder of the run, made with --keep=tuned.", flag_values=values)
    flags.DEFINE_string(
        "model", "", "Where the base model lies now; empty means where the run found it.", flag_values=values
    )


def require(values: flags.FlagValues, *names: str) -> None:
    """Raises `RequestError` for the first of these flags that has no value."""
    for name in names:
        if not values[name].value:
            raise RequestError(f"--{name} is required: {values[name].help}")


def read_spec(values: flags.FlagValues) -> RunSpec:
    """The spec that the flags ask for.

    Raises:
      RequestError: a required flag is missing, a flag means nothing for the mode or task, or the spec is impossible.
    """
    for name in ("model", "task", "mode"):
        if values[name].value is None:
            raise RequestError(f"--{name} is required: {_HELP[name]}")
    given = {name for name in RunSpec.model_fields if values[name].present}
    idle = sorted((given & CONDITIONAL_FIELDS) - meaningful_fields(values.mode, values.task))
    if idle:
        raise RequestError(f"--{idle[0]} means nothing for --mode={values.mode} --task={values.task}; leave it out")
    settings = {name: values[name].value for name in RunSpec.model_fields}
    spec = RunSpec.make(**settings)
    if values.frozen_prefix != spec.frozen_prefix:
        raise RequestError(
            f"--frozen_prefix={values.frozen_prefix} means nothing for --mode={spec.mode} --layers={spec.layers}: "
            "no whole block lies below what trains; leave it out"
        )
    return spec


def find_flagfile(name: str, beside: Path | None = None) -> Path:
    """A flagfile by path, beside the flagfile that names it, or by the name of one that comes with tfmt."""
    package = Path(__file__).resolve().parent
    candidates = [Path(name).expanduser()]
    if beside is not None:
        candidates.append(beside.parent / name)
    # Installed, the folder flags/ is tfmt/flagfiles/.
    candidates += [folder / Path(name).name for folder in (package / "flagfiles", package.parent / "flags")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(
        {path.name for folder in (package / "flagfiles", package.parent / "flags") for path in folder.glob("*.flags")}
    )
    raise RequestError(f"--flagfile={name}: no such file; tfmt's own are {', '.join(known)}")


def expand_flagfiles(arguments: Sequence[str], beside: Path | None = None, depth: int = 0) -> list[str]:
    """Puts the lines of flagfiles in the place of `--flagfile`; later flags win.

    Raises:
      RequestError: a flagfile is missing, unreadable, includes itself, or holds a line that is no flag.
    """
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, name = argument.partition("=")
        if flag not in ("--flagfile", "-flagfile"):
            found.append(argument)
            continue
        name = name if equals else next(rest, "")
        path = find_flagfile(name, beside)
        if depth > 9:
            raise RequestError(f"{path}: flagfiles include each other without end")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"{path}: not readable: {error}") from None
        inner = []
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if not line or line.startswith(("#", "//")):
                continue
            if not line.startswith("-"):
                raise RequestError(f"{path} line {number}: expected --name=value. Received: {line!r}")
            inner.append(line)
        found += expand_flagfiles(inner, path, depth + 1)
    return found


def parse(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Reads command-line arguments, flagfiles included, into the flags.

    Raises:
      RequestError: an unknown flag, a value of the wrong kind, or an argument that is no flag.
    """
    try:
        left = values(["tfmt", *expand_flagfiles(arguments)])[1:]
    except flags.Error as error:
        raise RequestError(str(error).replace("\n", " ")) from None
    if left:
        raise RequestError(f"unexpected argument {left[0]!r}; every setting is a flag: --name=value")


def run_command(
    program: str,
    summary: str,
    define: Callable[[flags.FlagValues], None],
    main: Callable[[flags.FlagValues], int | None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a command: parses flags, answers --help, and turns errors into one line and an exit status.

    Args:
      program: the command's name.
      summary: what it does, in a sentence or two, for --help.
      define: defines the command's flags.
      main: does the work; its result is the exit status, None means 0.
      arguments: instead of the command line.

    Returns:
      0 done, 1 something went wrong while running, 2 the request was wrong.
    """
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_integer("verbosity", 0, "1 shows what the libraries say, too.", short_name="v", flag_values=values)
    flags.DEFINE_bool("help", False, "Shows this text.", short_name="h", flag_values=values)
    try:
        parse(values, sys.argv[1:] if arguments is None else arguments)
        if values.help:
            print(_help_text(program, summary, values))
            return 0
        with quiet.plain_warnings(program):
            quiet.set_verbosity(values.verbosity)
            return main(values) or 0
    except RequestError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _help_text(program: str, summary: str, values: flags.FlagValues) -> str:
    lines = [summary, "", f"usage: {program} [--flagfile=NAME.flags] [--flag=value ...]", ""]
    seen = set()
    for name in values:
        flag: Any = values[name]
        if flag.name in seen:
            continue
        seen.add(flag.name)
        default = flag.default_as_str.strip("'") if flag.default is not None and flag.default_as_str is not None else ""
        shown = f"  --{flag.name}" + (f" (default {default})" if default else "")
        lines += [shown, f"      {flag.help}"]
        if isinstance(flag, flags.EnumFlag):
            lines.append(f"      one of: {', '.join(flag.parser.enum_values)}")
    return "\n".join(lines)
