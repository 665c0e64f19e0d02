"""The notebooks: stored with their plots, without logic of their own, and running afresh from top to bottom."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = ["weight_distributions", "weight_change", "outlier_tuning", "study_results"]
SECONDS = 240
# Calls, imports, assignments, and what one writes of settings; nothing that decides or repeats.
LOGIC = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While, ast.If, ast.IfExp, ast.Try, ast.With)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", 4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    return cell


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def pictures(notebook):
    return [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]


def test_every_notebook_is_tested():
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_stored_executed_with_plots(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert pictures(notebook)
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 500_000
    assert not re.search(r"/(home|root|tmp|usr|var|work|Users)/", path.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_prose_and_calls_alone(name):
    notebook = read(name)
    told = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "The one cell to change." in told
    assert "bert-base-uncased" in told
    for cell in code_cells(notebook):
        tree = ast.parse(re.sub("(?m)^%.*$", "", cell.source))
        assert not [node for node in ast.walk(tree) if isinstance(node, LOGIC)], cell.source
    assigned = [node.targets[0].id for node in ast.parse(parameters(notebook).source).body]
    assert "RUNS" in assigned


@pytest.fixture(scope="module")
def small(toy_bert, toy_glue, tmp_path_factory):
    """{notebook: the cell to change, for a toy}; the two on weights share their full run."""
    shared = tmp_path_factory.mktemp("notebooks") / "weights"
    common = {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "max_length": 32, "epochs": 1}
    flags = [f"--{name}={value}" for name, value in common.items()]
    weights = {"MODEL": str(toy_bert), "RUNS": str(shared), "SETTINGS": common | {"keep": "scores"}}
    return {
        "weight_distributions": weights,
        "weight_change": weights | {"FISHER": {"mask_fraction": 0.2, "fisher_examples": 8}},
        "outlier_tuning": {"RUNS": "runs", "MASK_SIZE": 2, "SETTINGS": common | {"learning_rate": 1e-2}},
        "study_results": {
            "RUNS": "runs", "TABLE": "1",
            "SWEEP": [*flags, "--mode=frozen,layernorm", "--learning_rate=1e-3", "--seed=0,1", "--keep=scores"],
        },
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_runs_afresh(name, small, tmp_path):
    notebook = read(name)
    stored = len(pictures(notebook))
    cell = parameters(notebook)
    names = {node.targets[0].id for node in ast.parse(cell.source).body}
    assert names == set(small[name])
    cell.source = "\n".join(f"{variable} = {value!r}" for variable, value in small[name].items())
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # raises at the first cell that fails
    assert len(pictures(notebook)) == stored
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr" and "Warning" in output.text]
