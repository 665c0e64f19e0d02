"""The command that makes a run again, and what differs between two runs."""

import json
import shlex

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfmt import report, train
from tfmt.flags import parse, read_spec, write_flags
from tfmt.runs.records import find_run
from tfmt.spec import MODES, RunSpec
from tfmt.training.predictions import Predictions, SplitTruth


def parsed(arguments):
    values = train.COMMAND.flags()
    parse(values, arguments)
    return read_spec(values)


def call(capsys, *arguments):
    status = report.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


NEEDED = {
    "outliers": {"mask_size": 4}, "outliers_control": {"mask_size": 16}, "fisher": {"mask_fraction": 0.1},
    "fisher_control": {"mask_fraction": 0.25},
    "custom": {"select": "it's half = all@6-last:fisher(budget, head=trained) - run(\"a b/c\")", "budget": "0.5%"},
}  # fmt: skip
SPECS = [
    *({"model": "bert-base-uncased", "task": "mrpc", "mode": mode, **NEEDED.get(mode, {})} for mode in MODES),
    {"model": "some/bert@v1", "task": "mnli", "mode": "full", "learning_rate": 1e-5, "seed": 7, "keep": "scores"},
    {"model": "m", "task": "rte", "mode": "layernorm", "layers": "0-3,7", "replicas": 2, "frozen_prefix": "live"},
    {"model": "m", "task": "rte", "mode": "layernorm", "layers": "3", "frozen_prefix": "cached", "jit_compile": "on"},
    {"model": "m", "task": "rte", "mode": "fisher", "fisher_from": ("a b", 'c,"d"'), "adam_epsilon": 2.5e-7},
    {"model": "a folder/it's", "task": "custom", "data_dir": "$HOME/x;y", "mode": "bitfit", "label_column": "-label",
     "text_columns": ('one,"two"', "three's"), "task_type": "regression", "encoding": "latin-1", "split_seed": 3},
]  # fmt: skip


@pytest.mark.parametrize("spec", [RunSpec.make(**spec) for spec in SPECS], ids=lambda spec: spec.label())
def test_flags_of_a_spec_ask_for_it(spec):
    assert parsed(write_flags(spec)) == spec
    short = RunSpec.make(model="demo", task="rte", mode="full")
    assert [flag.partition("=")[0] for flag in write_flags(short)] == [
        "--model", "--task", "--mode", "--learning_rate", "--epochs", "--seed"
    ]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rate=st.floats(1e-12, 10), seed=st.integers(0, 2**31 - 1), epochs=st.integers(1, 99), ratio=st.floats(0, 0.99),
    columns=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["C", "Z"]),
                             min_size=1, max_size=9), min_size=2, max_size=3, unique=True),
)  # fmt: skip
def test_flags_survive_the_shell(rate, seed, epochs, ratio, columns):
    spec = RunSpec.make(
        model="demo", task="custom", data_dir="d", mode="full", learning_rate=rate, seed=seed, epochs=epochs,
        warmup_ratio=ratio, label_column=columns[0], text_columns=tuple(columns[1:]), task_type="classification",
    )  # fmt: skip
    assert parsed(shlex.split(shlex.join(write_flags(spec)))) == spec


def test_command_of_a_run(add_run, tmp_path, capsys):
    record = add_run(0.5, task="rte", mode="outliers", mask_size=4, seed=3, max_length=64, model="my model")
    add_run(0.5, task="rte", mode="outliers", mask_size=16, seed=3, model="my model")
    runs = f"--runs={tmp_path / 'runs'}"
    for name in (record.run_id, "n4-", str(tmp_path / "runs" / record.run_id)):
        status, out, err = call(capsys, runs, f"--command={name}")
        assert (status, err) == (0, "")
        program, *flags = shlex.split(out)
        assert program == "tfmt-train"
        assert parsed(flags) == record.spec
        assert "'--model=my model'" in out
    status, _, err = call(capsys, runs, f"--command={record.run_id}", f"--output={tmp_path / 'again.sh'}")
    assert (status, (tmp_path / "again.sh").read_text().count("tfmt-train")) == (0, 1)


@pytest.mark.parametrize(("name", "words"), [("outliers", ["several", "n4-"]), ("layernorm", ["no run", "n16-"])])
def test_a_name_that_is_no_runs_or_several(add_run, tmp_path, capsys, name, words):
    for size in (4, 16):
        add_run(0.5, mode="outliers", mask_size=size)
    for flag in (f"--command={name}", f"--diff=n4-,{name}"):
        status, out, err = call(capsys, f"--runs={tmp_path / 'runs'}", flag)
        assert (status, out, err.count("\n")) == (2, "", 1)
        for word in (name, *words):
            assert word in err


def test_an_id_that_is_a_part_of_another_is_its_own(add_run, tmp_path):
    record = add_run(0.5)
    add_run(0.5, seed=1)
    assert find_run(tmp_path / "runs", record.run_id, "--command")[0] == record


@pytest.fixture
def pair(add_run, tmp_path):
    """Two runs of other seeds and threads, with known predictions."""
    labels = np.array([0, 1, 1, 0], np.int8)
    truth = {"validation": SplitTruth(labels, np.array([0, 1, 0, 1], np.uint8))}
    found = []
    for seed, score, predicted in ((0, 0.5, [0, 1, 0, 0]), (1, 0.75, [0, 0, 0, 1])):
        record = add_run(score, seed=seed, origin={"python": f"3.11.{seed}"})
        folder = tmp_path / "runs" / record.run_id
        predictions = Predictions(record.run_id, truth, {"validation": {1: np.array(predicted, np.int8)}})
        digest = predictions.write(folder)
        cost = record.cost.model_copy(update={"threads": 2 + seed})
        record = record.model_copy(update={"cost": cost, "predictions_sha256": digest})
        (folder / "record.json").write_text(record.to_json())
        found.append(record)
    return found


def test_difference_of_two_runs(pair, tmp_path, capsys):
    one, other = pair
    runs = f"--runs={tmp_path / 'runs'}"
    status, out, err = call(capsys, runs, f"--diff={one.run_id},s1-")
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in out.splitlines() if line[:1] == "|"]
    assert ["seed", "0", "1"] in rows
    assert ["threads", "2", "3"] in rows
    assert ["python", "3.11.0", "3.11.1"] in rows
    assert ["1", "validation f1", "50.00", "75.00", "+25"] in rows
    assert ["1", "training loss", "0.500000000", "0.500000000", "="] in rows
    assert ["1", "validation predictions", "", "", "2 of 4 differ"] in rows
    assert not [row for row in rows if row[0] in ("task", "tensorflow", "devices")]
    widths = {tuple(at for at, letter in enumerate(line) if letter == "|") for line in out.split("Epoch by epoch")[1]
              .splitlines() if line[:1] == "|"}  # fmt: skip
    assert len(widths) == 1
    status, out, _ = call(capsys, runs, f"--diff={one.run_id},{other.run_id}", "--format=json")
    told = {(row["what"], row["epoch"]): (row["a"], row["b"]) for row in json.loads(out)["tables"][0]["numbers"]}
    assert told["validation f1", 1] == (0.5, 0.75)
    assert told["seed", None] == (0, 1)


def test_a_run_differs_from_itself_in_nothing(pair, tmp_path, capsys):
    folder = tmp_path / "runs" / pair[0].run_id
    status, out, _ = call(capsys, f"--diff={folder},{folder}")
    assert status == 0
    assert "Settings" not in out
    assert "Machine" not in out
    assert out.count(" = ") == 3  # loss, score, predictions
