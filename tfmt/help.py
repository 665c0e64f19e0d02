"""What a command's flags say for themselves: `--help` in groups, and the page that docs/flags.md is made from."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

_WIDEST = 100
_MARGIN = 25  # where the texts begin, behind the names

# Every flag of every command has its place here; those of one command keep this order.
GROUPS: dict[str, tuple[str, ...]] = {
    "Model and data": (
        "run", "model", "revision", "task", "data_dir", "split", "input", "train_limit", "validation_limit",
    ),
    "Your own data": ("task_type", "text_columns", "label_column", "validation_fraction", "split_seed", "encoding"),
    "What trains": (
        "mode", "layers", "mask_size", "mask_fraction", "outlier_pool", "select", "budget", "fisher_examples",
        "fisher_from", "fisher_union",
    ),
    "How it trains": (
        "learning_rate", "epochs", "batch_size", "max_length", "batching", "warmup_ratio", "schedule", "optimizer",
        "adam_epsilon", "weight_decay", "clip_norm", "early_stopping", "seed", "search", "frozen_prefix",
        "cache_limit_gb",
    ),
    "Devices": ("replicas", "threads", "workers", "precision", "jit_compile", "require_gpu"),
    "Many machines": ("ray", "gpus_per_run", "cpus_per_run", "shard", "leave"),
    "Which runs": ("runs", "where"),
    "What is shown": (
        "figure", "table", "compare", "claims", "command", "diff", "epoch", "protocol", "choose_on", "report_on",
        "seeds",
    ),
    "Output": (
        "output_dir", "keep", "keep_epoch", "retry_failed", "dry_run", "status", "clean", "output", "format",
        "data", "pack", "html",
    ),
    "Every command": ("flagfile", "help", "version", "verbosity"),
    # absl's conventions, which --helpfull lists.
    "Every command, further": ("helpshort", "helpfull", "only_check_args", "undefok"),
}  # fmt: skip
COMMON = ("Every command", "Every command, further")
_FURTHER = "Every command, further"
_ELSEWHERE = "More"


def flag_groups(values: Any) -> dict[str, list[Any]]:
    """A command's flags by group, each once; flags without a place come last, under `More`.

    Args:
      values: an absl `FlagValues`.
    """
    flags = {values[name].name: values[name] for name in values if values[name].name.isidentifier()}
    groups = {group: [flags.pop(name) for name in names if name in flags] for group, names in GROUPS.items()}
    groups[_ELSEWHERE] = list(flags.values())
    return {group: members for group, members in groups.items() if members}


def describe_flag(flag: Any) -> str:
    """What a flag does, and the values it takes where the sentence does not explain each of them."""
    text = re.sub(r"^<[^>]*>: |;\n    repeat this option .*", "", flag.help)  # absl's own words around it
    choices = [choice for choice in getattr(flag.parser, "enum_values", ()) if choice]
    explained = all(re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text) for choice in choices)
    return text if explained else f"{text} One of {', '.join(choices)}."


def default_of(flag: Any) -> str:
    """The default as it would be given; empty where that is nothing, or no."""
    if flag.default is None or flag.default is False or flag.default == [] or not flag.default_as_str:
        return ""
    return flag.default_as_str.strip("'")


def format_help(program: str, summary: str, examples: Sequence[str], values: Any, full: bool) -> str:
    """The text of --help, at most 100 columns wide.

    Args:
      program: the command's name.
      summary: what it does.
      examples: command lines that show it.
      values: an absl `FlagValues` with its flags.
      full: also lists what `--helpfull` adds.
    """
    width = max(60, min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns))
    lines = [f"usage: {program} [--flag=value ...] [--flagfile=NAME.flags]", ""]
    lines += textwrap.wrap(summary, width)
    lines += ["", "for example", *(f"  {example}" for example in examples)]
    for group, members in flag_groups(values).items():
        if group != _FURTHER or full:
            lines += ["", group]
            lines += [line for flag in members for line in _format_flag(flag, width)]
    lines += ["", "A flag that takes no value is switched off again by --noNAME."]
    if not full:
        lines += ["--helpfull also lists the flags that absl gives every command."]
    return "\n".join(lines)


def _format_flag(flag: Any, width: int) -> Iterator[str]:
    """A flag's name and, beside it, what it does; all names are shorter than the margin."""
    short = f"-{flag.short_name}, " if flag.short_name else ""
    head = f"  {short}--{flag.name}"
    default = default_of(flag)
    text = describe_flag(flag) + (f" (default\0{default})" if default else "")
    for line in textwrap.wrap(text, width - _MARGIN, break_on_hyphens=False, break_long_words=False):
        yield f"{head:<{_MARGIN}}{line}".replace("\0", " ")
        head = ""


def format_page(program: str, summary: str, examples: Sequence[str], values: Any, like: Any) -> str:
    """A command's section of docs/flags.md: a table a group; flags of every command are left out.

    Args:
      program: the command's name.
      summary: what it does.
      examples: command lines that show it.
      values: an absl `FlagValues` with its flags.
      like: tfmt-train's, or None; flags that are the same there are named and not said again.
    """
    lines = [f"## {program}", "", summary.replace("\n", " "), "", *(f"    {example}" for example in examples)]
    same = []
    for group, members in flag_groups(values).items():
        if group in COMMON:
            continue
        rows = [flag for flag in members if like is None or not _is_same(flag, like)]
        same += [flag.name for flag in members if flag not in rows]
        if rows:
            lines += ["", f"### {group}", "", *_format_table(rows)]
    if same:
        lines += ["", f"As in tfmt-train: {', '.join(f'`--{name}`' for name in same)}."]
    return "\n".join(lines)


def format_common(values: Any) -> str:
    """The section of docs/flags.md on the flags that every command has."""
    groups = flag_groups(values)
    return "\n".join(["## Every command", "", *_format_table([flag for group in COMMON for flag in groups[group]])])


def _is_same(flag: Any, others: Any) -> bool:
    if flag.name not in others:
        return False
    other = others[flag.name]
    return (describe_flag(flag), default_of(flag)) == (describe_flag(other), default_of(other))


def _format_table(flags: Sequence[Any]) -> Iterator[str]:
    yield "| flag | what it does | default |"
    yield "|---|---|---|"
    for flag in flags:
        short = f", `-{flag.short_name}`" if flag.short_name else ""
        default = default_of(flag)
        yield f"| `--{flag.name}`{short} | {describe_flag(flag)} | {f'`{default}`' if default else ''} |"
