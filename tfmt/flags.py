"""absl flags and flagfiles <-> RunSpec, and how every command starts and ends."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from absl import flags

from tfmt import quiet, signals, streams
from tfmt.errors import RequestError, RunError
from tfmt.files import check_path
from tfmt.flagfile import expand_flagfiles
from tfmt.help import format_help
from tfmt.spec import RunSpec, find_idle
from tfmt.study.grid import AXES, EACH
from tfmt.version import __version__
from tfmt.words import comma_list

# One sentence each, with the reason of the default.
_HELP = {
    "model": "BERT to tune: a hub name, a local folder, or `demo` for the packaged MiniLM.",
    "revision": "Branch, tag or commit of a hub model; empty is its main; --model=NAME@REVISION says the same.",
    "task": "Task to tune for; `custom` reads your own files.",
    "data_dir": "Folder with the task's own files; empty takes TensorFlow Datasets (or the packaged text).",
    "mode": "Which weights train: a row of the papers' tables; the classifier always trains.",
    "layers": "Blocks that train, counted from 0: all, 5, 0-3 or 0,5,11.",
    "mask_size": "Weights per LayerNorm in the outlier modes; P1 uses 4, 16, 64 and 256.",
    "mask_fraction": "Part of the feed-forward LayerNorms' weights in the Fisher modes, above 0 and at most 1.",
    "outlier_pool": "Where a LayerNorm's outliers are sought; P1 does not say, so gamma and beta are pooled.",
    "select": "What trains with --mode=custom, an expression; `NAME = EXPRESSION` names it.",
    "budget": "What `budget` in --select is: a number of weights, or percent of the encoder, 0.5%.",
    "fisher_examples": "Training examples that Fisher information, or another score by gradients, is measured on.",
    "fisher_from": "Folders of other runs; the union of their masks trains instead of a fraction.",
    "learning_rate": "Peak rate; search it, as P1 does; unset is 5e-5 (full), 1e-4 (modules), 1e-3 (custom) or 5e-3.",
    "epochs": "Epochs; 0 is P1's rule: full 5; otherwise 10 for sst2, qqp, mnli, qnli and 20 for the rest.",
    "batch_size": "Examples a step over all replicas together; the default is P1's.",
    "max_length": "Tokens an example keeps; the default is P1's.",
    "warmup_ratio": "Share of the steps in which the rate rises; the default is P1's.",
    "schedule": "What follows the warm-up: linear decay to 0 (P1 does not say), or constant.",
    "optimizer": "What updates the weights; adam is P1's, the others want --learning_rate; sgd has momentum 0.9.",
    "adam_epsilon": "Epsilon of adam and adamw; the default is P1's.",
    "weight_decay": "Part of each selected weight that a step takes off, times the rate; P1 names none, adam has none.",
    "clip_norm": "Longest gradient over all that trains, the head included; 0 does not clip, as P1 names none.",
    "early_stopping": "Ends a run after so many epochs in a row without a better score; 0, as in the papers, never.",
    "seed": "Decides the head, the order, dropout and every drawn mask.",
    "batching": "grouped joins texts of like length (fastest), random is as they come, fixed pads all to max_length.",
    "train_limit": "Train on the first so many examples of a seeded shuffle; 0 means all.",
    "validation_limit": "Evaluate on the first so many examples of each development split; 0 means all.",
    "replicas": "Devices: 0 is every GPU or else one CPU; k without GPUs makes k logical CPU devices.",
    "precision": "Type to compute in; nothing but the default is exact enough to compare with other work.",
    "jit_compile": "Compile the step with XLA; auto means off, as XLA was slower where it was measured.",
    "frozen_prefix": "Blocks below all that trains: live runs them in each step, with dropout; cached once, without.",
    "cache_limit_gb": "Memory for what cached blocks computed; a larger result lies in a temporary file.",
    "keep": "What a run stores: tuned is weights and scores; scores is all that the big tables need.",
    "keep_epoch": "Whose weights and change are kept: best is the epoch of the best score, last the last.",
    "text_columns": "Custom data: one or two columns of text.",
    "label_column": "Custom data: the column of the label.",
    "task_type": "Custom data: classification, regression or tokens.",
    "validation_fraction": "Custom data in one file: part of it to hold out.",
    "encoding": "Encoding of your files or of CoNLL's.",
    "split_seed": "Splits by a seeded shuffle instead of the fixed rule.",
}
# Flags that hold a path, or may.
_PATHS = ("model", "data_dir", "fisher_from", "run", "runs", "input", "output", "output_dir", "data", "pack", "html")
_LONGEST_NAME = 100  # of a flag
# Those whose help says what empty means.
_MAY_BE_EMPTY = ("model", "data_dir")


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


def define_require_gpu(values: flags.FlagValues) -> None:
    """Defines --require_gpu."""
    flags.DEFINE_bool(
        "require_gpu", False, "Stops where TensorFlow finds no GPU, or not all that CUDA_VISIBLE_DEVICES names.",
        flag_values=values,
    )  # fmt: skip


def define_runs(values: flags.FlagValues) -> None:
    """Defines --runs, of commands that read many."""
    flags.DEFINE_list(
        "runs", ["runs"], "Folders that hold the runs' folders, or studies packed by tfmt-report --pack; a comma list.",
        flag_values=values,
    )  # fmt: skip


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
    if EACH in values.layers or "+" in values.layers:
        raise RequestError(
            f"--layers={values.layers}: a run takes all, 5, 0-3 or 0,5,11; `{EACH}` and 0+5 are for tfmt-sweep"
        )
    given = {name for name in RunSpec.model_fields if values[name].present}
    if values.mode == "custom" and "layers" in given:
        raise RequestError("--layers means nothing for --mode=custom: `@` in --select says which blocks")
    idle = find_idle(given, values.mode, values.task, values.select)
    if idle == "budget" and values.mode == "custom":
        raise RequestError("--budget means nothing for a --select without `budget` in it; leave it out")
    if idle:
        raise RequestError(f"--{idle} means nothing for --mode={values.mode} --task={values.task}; leave it out")
    settings = {name: values[name].value for name in RunSpec.model_fields}
    spec = RunSpec.make(**settings)
    for name, beside in (
        ("frozen_prefix", f"--mode={spec.mode} --layers={spec.layers}: no whole block lies below what trains"),
        ("adam_epsilon", f"--optimizer={spec.optimizer}"),
        ("early_stopping", f"--epochs={spec.epochs}: the run has ended by then"),
    ):
        if values[name].value != getattr(spec, name):
            raise RequestError(f"--{name}={values[name].value} means nothing for {beside}; leave it out")
    return spec


def write_flags(spec: RunSpec) -> list[str]:
    """The flags of tfmt-train that ask for a spec: those that name a run, and those that are off their defaults.

    Example:
      >>> write_flags(RunSpec.make(model="demo", task="mrpc", mode="frozen", learning_rate=1e-3, epochs=2))
      ['--model=demo', '--task=mrpc', '--mode=frozen', '--learning_rate=0.001', '--epochs=2', '--seed=0']
    """
    given = []
    for name, field in RunSpec.model_fields.items():
        value = getattr(spec, name)
        if name == "seed" or value != field.default:  # a rate and what names a run are never at a default
            given.append(f"--{name}={comma_list(value) if isinstance(value, tuple) else value}")
    return given


def parse(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Reads command-line arguments, flagfiles included, into the flags.

    Raises:
      RequestError: an unknown flag, a value of the wrong kind, no path where one is needed, or an argument that is no
        flag.
    """
    given = expand_flagfiles(arguments)
    for argument in given:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and len(name) > _LONGEST_NAME:  # absl would look for names like it, for ever
            raise RequestError(f"Unknown command line flag {name!r}")
    try:
        left = values(["tfmt", *given])[1:]
    except flags.Error as error:
        raise RequestError(_explain(str(error))) from None
    if left:
        raise RequestError(f"unexpected argument {left[0]!r}; every setting is a flag: --name=value")
    for name in _PATHS:
        if name in values:
            values[name].value = _expand_user(values[name].value)
            _check_paths(values[name])


def _explain(error: str) -> str:
    """absl's message in one line, with the remedy where a list was given for one value."""
    error = error.replace("\n", " ").replace("<|", "<")  # an empty choice is none to offer
    given = re.match(r"flag --(\w+)=(.*?): ", error)
    if given is None or "," not in given[2]:
        return error
    name, value = given.groups()
    if name in AXES:
        return f"--{name}={value}: a run takes one value; a comma list of --{name} is for tfmt-sweep"
    return f"{error} (it takes one value, no list)"


def _expand_user(value: Any) -> Any:
    """Paths with `~` at their head as the shell would have given them, had it looked behind the `=`."""
    if isinstance(value, list):
        return [_expand_user(entry) for entry in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _check_paths(flag: flags.Flag) -> None:
    """Refuses an empty path, which would be the current folder, where empty has no meaning of its own."""
    told = flag.default == "" and flag.name in _MAY_BE_EMPTY
    if flag.present and not (told and flag.value == ""):
        given = flag.value if isinstance(flag.value, list) else [flag.value]
        for value in given or [""] * bool(flag.default):
            check_path(value, f"--{flag.name}")


class Asked(Exception):  # noqa: N818 (no error)
    """A flag that is answered at once, before the others are looked at, was given.

    Attributes:
      name: the flag's.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Question(flags.BooleanFlag):
    """A flag such as --help, which absl answers as soon as it meets it."""

    def parse(self, argument: Any) -> None:
        if self._parse(argument):
            raise Asked(self.name)


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      program: its name.
      summary: what it does, in a sentence or two.
      examples: command lines that show it.
      define: defines its flags.
      main: does the work; its result is the exit status, None means 0.
      check: raises `RequestError` for flags that do not fit together.
    """

    program: str
    summary: str
    examples: tuple[str, ...]
    define: Callable[[flags.FlagValues], None]
    main: Callable[[flags.FlagValues], int | None]
    check: Callable[[flags.FlagValues], Any]

    def flags(self) -> flags.FlagValues:
        """Its flags, with those that every command has, before any is given."""
        values = flags.FlagValues()
        self.define(values)
        _define_common(values)
        return values


def _define_common(values: flags.FlagValues) -> None:
    flags.DEFINE_string("flagfile", "", "File of flags, one a line, that takes this flag's place: a path, or the name "
                        "of one of tfmt's own. Later flags win.", flag_values=values)  # fmt: skip
    flags.DEFINE_integer(
        "verbosity",
        0,
        "1 shows what the libraries say, too, and each layer in a dry run.",
        short_name="v",
        flag_values=values,
    )
    for name, short, text in (
        ("help", "h", "Shows what the command does, and its flags."),
        ("helpshort", None, "The same as --help."),
        ("helpfull", None, "The same, with the flags that absl gives every command."),
        ("version", None, "Shows tfmt's version."),
        ("?", None, "The same as --help."),
    ):
        flags.DEFINE_flag(_Question(name, False, text, short_name=short), values)
    flags.DEFINE_bool("only_check_args", False, "Checks the flags and stops, without a word if they are right.",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_string("undefok", "", "Names of flags, a comma list, that are passed over where they are unknown.",
                        flag_values=values)  # fmt: skip


def run_command(command: Command, arguments: Sequence[str] | None = None) -> int:
    """Runs a command: parses flags, answers --help, and turns errors into one line and an exit status.

    On the command line, which is where `arguments` is None, a signal ends the process as that signal does; called from
    Python no signal is touched. Lost output ends nothing.

    Args:
      command: what to run.
      arguments: instead of the command line.

    Returns:
      0 done, 1 something went wrong while running, 2 the request was wrong.
    """
    if arguments is None:
        streams.open_standard_files()
    ended_by = 0
    with streams.tolerated():
        try:
            with signals.heeded() if arguments is None else contextlib.nullcontext():
                status = _run(command, arguments)
        except signals.Stop as stop:
            ended_by, status = stop.number, 1
            kept = f"; {stop.kept}" if stop.kept else ""
            print(f"{command.program}: stopped by {stop.name}{kept}", file=sys.stderr)
        lost = streams.settle()
        if lost is not None and not status:
            reason = lost.strerror or lost
            print(f"{command.program}: not all of its output could be written ({reason})", file=sys.stderr)
            status = 1
    if ended_by:
        signals.end_by(ended_by)
    return status


def _run(command: Command, arguments: Sequence[str] | None) -> int:
    program, values = command.program, command.flags()
    try:
        try:
            parse(values, sys.argv[1:] if arguments is None else arguments)
        except Asked as asked:
            print(_answer(asked.name, command, values))
            return 0
        with quiet.plain_warnings(program):
            quiet.set_verbosity(values.verbosity)
            if values.only_check_args:
                command.check(values)
                return 0
            return command.main(values) or 0
    except RequestError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # in a process that heeds no signals, as a notebook's
        print(f"\n{program}: interrupted", file=sys.stderr)
        return 1
    except MemoryError:
        print(f"{program}: there is not enough memory; free some and run the same command again", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
        return 1


def _answer(name: str, command: Command, values: flags.FlagValues) -> str:
    """What --version, --help and its kin print."""
    if name == "version":
        return f"tfmt {__version__}"
    return format_help(command.program, command.summary, command.examples, values, full=name == "helpfull")
