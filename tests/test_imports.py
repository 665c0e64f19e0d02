"""The rooms import in one direction, and the light ones start without TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "tfmt"
# A module imports from its own room and from rooms to its left.
ORDER = ["version", "words", "errors", "files", "tensors", "streams", "signals", "liveness", "quiet", "memory",
         "protocol", "expressions", "spec", "tasks", "metrics", "bert", "data", "selection", "training", "runs",
         "study", "tuned", "results", "claims", "figures", "page", "flagfile", "help", "flags"]  # fmt: skip
# What tables, claims and figures are made of are runs, not the study that made them; nor does a tuned model know it.
APART = {("tuned", "study"), ("results", "study"), ("results", "tuned"), ("claims", "study"), ("claims", "tuned"),
         ("figures", "study"), ("figures", "claims"), ("page", "study"), ("page", "tuned")}  # fmt: skip
COMMANDS = {"train", "sweep", "report", "analyze", "audit", "predict", "export"}


def imported_rooms(path):
    """Rooms of tfmt that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module] if node.module != "tfmt" else [f"tfmt.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("tfmt."):
                yield name.split(".")[1]


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_the_left(path):
    room = room_of(path)
    if room == "__init__" or room in COMMANDS:
        return
    assert room in ORDER, f"{room} has no place in the order"
    for other in imported_rooms(path):
        if (PACKAGE / other).exists() or (PACKAGE / f"{other}.py").exists():
            assert ORDER.index(other) <= ORDER.index(room), f"{path.name} of {room} imports {other}"
            assert (room, other) not in APART, f"{path.name} of {room} imports {other}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_commands_and_flags_know_absl(path):
    uses = "absl" in path.read_text()
    assert not uses or room_of(path) in COMMANDS | {"flags", "help", "flagfile", "quiet"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_bert_touches_transformers(path):
    modules = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    touches = any(module and module.split(".")[0] == "transformers" for module in modules)
    assert not touches or room_of(path) in {"bert", "quiet"}


def test_light_modules_import_no_tensorflow():
    light = ["tfmt", "tfmt.spec", "tfmt.tasks", "tfmt.metrics", "tfmt.bert.vocabulary", "tfmt.bert.configs",
             "tfmt.bert.base_weights", "tfmt.selection.modes", "tfmt.runs.records", "tfmt.runs.runner",
             "tfmt.study.dry_run", "tfmt.study.status", "tfmt.tuned.load",
             "tfmt.tuned.predict", "tfmt.tuned.export", "tfmt.flags",
             "tfmt.train", "tfmt.predict", "tfmt.export", "tfmt.training.distribution", "tfmt.results.analyses",
             "tfmt.figures", "tfmt.page.page", "tfmt.analyze", "tfmt.report", "tfmt.audit",
             "tfmt.runs.audit"]  # fmt: skip
    code = f"import sys, os; import {', '.join(light)}; assert os.environ['TF_USE_LEGACY_KERAS'] == '1'; "
    code += "print([m for m in ('tensorflow', 'transformers', 'tf_keras', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
