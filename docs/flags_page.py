"""Writes docs/flags.md from the definitions of the flags: `make flags-page`."""

from importlib import import_module
from pathlib import Path

from tfmt.help import format_common, format_page

PAGE = Path(__file__).with_name("flags.md")
COMMANDS = ("train", "sweep", "report", "analyze", "audit", "predict", "export")
INTRODUCTION = """# Flags

Made from the definitions of the flags by `make flags-page`; `--help` says the same in a terminal. A flag is written
`--name=value`; one that takes no value is switched on by `--name` and off again by `--noname`, for example behind a
[flagfile](runs.md#flagfiles). P1 and P2 are the two papers that [README](../README.md) names."""


def make_page() -> str:
    """The text of docs/flags.md."""
    sections = [INTRODUCTION]
    train = None
    for name in COMMANDS:
        command = import_module(f"tfmt.{name}").COMMAND
        values = command.flags()
        like = train if name == "sweep" else None
        sections.append(format_page(command.program, command.summary, command.examples, values, like))
        train = train or values
    return "\n\n".join([*sections, format_common(values)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8")
