"""Flags as absl's users know them: flagfiles, the flags that answer at once, lists, and help that can be read."""

import contextlib
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from tfmt.errors import RequestError
from tfmt.flagfile import expand_flagfiles, find_flagfile
from tfmt.flags import parse
from tfmt.help import GROUPS, describe_flag, flag_groups
from tfmt.version import __version__

COMMANDS = {
    name: import_module(f"tfmt.{name}")
    for name in ("train", "sweep", "report", "analyze", "audit", "predict", "export")
}
every_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
CUSTOM = ["--model=demo", "--task=rotten_tomatoes", "--mode=custom"]
RIGHT = ["--model=demo", "--task=rotten_tomatoes", "--mode=layernorm"]


def refuse(capsys, arguments, command="train"):
    """What a command says that refuses a request."""
    assert COMMANDS[command].main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix(f"tfmt-{command}: ").strip()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flgs/table1.flags", "there is no folder flgs; tfmt's own is --flagfile=table1.flags"),
        ("here/table1.flags", "no such file; tfmt's own is --flagfile=table1.flags"),
        ("./table1.flags", "no such file; tfmt's own is --flagfile=table1.flags"),
        ("flgs/mine.flags", "there is no folder flgs"), ("/nowhere/table1.flags", "there is no folder /nowhere"),
        ("here", "tfmt's own are budget.flags"), ("table9.flags", "tfmt's own are budget.flags"),
    ],
)  # fmt: skip
def test_only_bare_names_are_tfmts_own_flagfiles(tmp_path, capsys, name, words):
    (tmp_path / "here").mkdir()
    with contextlib.chdir(tmp_path):
        told = refuse(capsys, [f"--flagfile={name}", "--dry_run"], "sweep")
        assert told.startswith(f"--flagfile={name}: ")
        assert words in told
        assert find_flagfile("table1.flags").read_text().startswith("# Table 1")


def test_flagfiles_are_found_beside_then_here_then_among_tfmts_own(tmp_path):
    study, here = tmp_path / "study", tmp_path / "here"
    for folder in (study, study / "parts", here):
        folder.mkdir(parents=True)
    nested = ["inner.flags", "parts/part.flags", "only_here.flags", "table1.flags"]
    (study / "outer.flags").write_text("".join(f"--flagfile={name}\n" for name in nested))
    (study / "inner.flags").write_text("--seed=1\n")
    (study / "parts" / "part.flags").write_text("--flagfile=sibling.flags\n")
    (study / "parts" / "sibling.flags").write_text("--seed=2\n")
    for name in ("inner.flags", "only_here.flags", "demo.flags"):
        (here / name).write_text("--seed=3\n")
    with contextlib.chdir(here):
        found = expand_flagfiles(["--flagfile", "../study/outer.flags"])
        assert found[:3] == ["--seed=1", "--seed=2", "--seed=3"]
        assert "--mode=full,frozen,attention,feedforward,layernorm" in found[4]
        assert expand_flagfiles(["--flagfile=demo.flags"]) == ["--seed=3"]
    (study / "outer.flags").write_text("--flagfile=../there/x.flags\n")
    with pytest.raises(RequestError, match=r"outer.flags: --flagfile=../there/x.flags: there is no folder ../there"):
        expand_flagfiles([f"--flagfile={study / 'outer.flags'}"])


def test_flagfile_of_an_editor_with_byte_order_mark_and_of_nobody(tmp_path, monkeypatch):
    (tmp_path / "bom.flags").write_bytes(b"\xef\xbb\xbf--seed=1\r\n# seeds\r\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_flagfiles(["--flagfile=~/bom.flags"]) == ["--seed=1"]
    assert expand_flagfiles(["--flagfile=", "--seed=2"]) == ["--seed=2"]  # as in absl
    with pytest.raises(RequestError, match="--flagfile needs a value"):
        expand_flagfiles(["--flagfile"])


def test_tilde_behind_the_equals_sign_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = COMMANDS["train"].COMMAND.flags()
    parse(values, [*RIGHT, "--data_dir=~/glue", "--output_dir=~", "--fisher_from=~/a,b"])
    assert (values.data_dir, values.output_dir) == (f"{tmp_path}/glue", str(tmp_path))
    assert (values.fisher_from, values.model) == ([f"{tmp_path}/a", "b"], "demo")
    assert not values["model"].using_default_value


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--seed=0,1", "tfmt-sweep"), ("--task=mrpc,rte", "tfmt-sweep"), ("--mode=full,frozen", "tfmt-sweep"),
        ("--learning_rate=1e-3,5e-3", "tfmt-sweep"), ("--mask_size=4,16", "tfmt-sweep"),
        ("--layers=each", "tfmt-sweep"), ("--layers=0+5", "tfmt-sweep"), ("--batch_size=16,32", "takes one value"),
        ("--task_type=tags", "<classification|regression|tokens>"), ("--sed=1", "seed"),
    ],
)  # fmt: skip
def test_lists_for_one_run_are_told_of_tfmt_sweep(capsys, argument, words):
    told = refuse(capsys, [*RIGHT, argument])
    assert argument.split("=")[0].strip("-") in told
    assert words in told


@every_command
@pytest.mark.parametrize("given", [["--version"], ["--nonsense=1", "--version", "--verbosity=x"]])
def test_version(command, given, capsys):
    assert command.main(given) == 0
    assert capsys.readouterr().out == f"tfmt {__version__}\n"


@every_command
def test_help_short_and_full(command, capsys):
    shown = {}
    for name in ("help", "h", "helpshort", "?", "helpfull"):
        assert command.main([f"--{name}"]) == 0
        shown[name] = capsys.readouterr().out
    assert shown["help"] == shown["h"] == shown["helpshort"] == shown["?"]
    added = {line.split()[0] for line in shown["helpfull"].splitlines() if line not in shown["help"].splitlines()}
    assert {"--helpshort", "--helpfull", "--only_check_args", "--undefok"} <= added


@every_command
def test_help_has_groups_and_says_nothing_twice(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    command.main(["--helpfull"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    values = command.COMMAND.flags()
    names = {values[name].name for name in values} - {"?"}
    assert sorted(re.findall(r"^  (?:-\w, )?--(\w+)", shown, re.MULTILINE)) == sorted(names)
    assert set(flag_groups(values)) <= set(GROUPS), "give each flag a place in help.GROUPS"
    running = " ".join(shown.split())
    for flag in (values[name] for name in names):
        text = describe_flag(flag)
        assert text in running
        assert flag.default_as_str is None or text.count(f"default {flag.default_as_str}") == 0
        for choice in filter(None, getattr(flag.parser, "enum_values", ())):
            assert re.search(rf"(?<!\w){choice}(?!\w)", text)
        assert not re.search(r"(One of|,) ?[,.]|<", text)  # no empty choice
    for example in command.COMMAND.examples:
        program, *arguments = shlex.split(example.replace("<run id>", "id"))
        assert program == command.COMMAND.program
        parse(command.COMMAND.flags(), arguments)


def test_choices_stand_once():
    values = COMMANDS["train"].COMMAND.flags()
    assert describe_flag(values["mode"]).count("layernorm_attention") == 1
    assert "One of" not in describe_flag(values["batching"])  # its sentence explains each
    assert describe_flag(values["task_type"]) == "Custom data: classification, regression or tokens."


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("train", RIGHT, [*RIGHT, "--mask_size=4"]),
        ("sweep", [*RIGHT, "--seed=0,1", "--layers=each"], [*RIGHT, "--layers=6"]),
        ("sweep", [*CUSTOM, "--select=layernorm"], [*CUSTOM, "--select=layernorm", "--budget=5"]),
        ("report", ["--table=1"], ["--table=5"]), ("report", ["--claims"], []),
        ("analyze", ["--figure=rates"], ["--figure=rates", "--output=rates.doc"]),
        ("audit", ["--run=r"], ["--threads=2"]),
        ("predict", ["--run=r", "--output=o", "--split=test"], ["--run=r", "--output=o"]),
        ("export", ["--run=r", "--output=o"], ["--run=r"]),
    ],
)  # fmt: skip
def test_only_check_args_checks_and_does_nothing(name, right, wrong, tmp_path, capsys):
    with contextlib.chdir(tmp_path):
        assert COMMANDS[name].main(["--only_check_args", *right]) == 0
        assert capsys.readouterr() == ("", "")
        refuse(capsys, ["--only_check_args", *wrong], name)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "sweep"])
@pytest.mark.parametrize(("select", "caret"), [("pooler + attention@99", 19), ("layernorm:far(99999999)", 14)])
def test_selections_are_checked_on_the_model(name, select, caret, capsys):
    for flag in ("--only_check_args", "--dry_run"):
        assert COMMANDS[name].main([*CUSTOM, f"--select={select}", flag]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 3)
        assert err.splitlines()[2].index("^") == 2 + caret


def test_a_sweep_s_dry_run_tells_what_each_selection_is(tmp_path, capsys):
    selects = ["--select=mine = all:random(budget)", "--select=all:far(3) + pooler:far(2)"]
    assert COMMANDS["sweep"].main([*CUSTOM, *selects, "--budget=50,4000", f"--output_dir={tmp_path}", "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[1:4] == [
        "select        50  mine 50",
        "           4,000  mine 4000",
        "          3 to 5  all:far(3) + pooler:far(2)",
    ]


def test_help_imports_nothing_slow():
    code = "import sys; from tfmt import train, sweep, report, analyze, audit, predict, export\n"
    code += "for command in (train, sweep, report, analyze, audit, predict, export): command.main(['--help'])\n"
    code += "print({'tensorflow', 'transformers', 'pandas', 'matplotlib', 'scipy', 'requests'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
