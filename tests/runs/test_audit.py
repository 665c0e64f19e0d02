"""A run made again from its record: identical where it is the run, and not where the record tells another's numbers."""

import json
import shutil

import pytest

from tfmt import audit, report
from tfmt.runs.audit import LOSS_BOUND, PREDICTIONS_BOUND, compare
from tfmt.runs.comparison import Answers
from tfmt.runs.records import RECORD_FILE, find_predictions, find_records, read_record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.runs.sealed import seal_json
from tfmt.spec import RunSpec

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def settings(toy_bert, toy_glue):
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "max_length": 32, "epochs": 2,
            "learning_rate": 1e-2, "mode": "layernorm"}  # fmt: skip


@pytest.fixture(scope="module")
def study(settings, tmp_path_factory):
    """A folder with two seeds of one run, and the pack of it."""
    place = tmp_path_factory.mktemp("study")
    bench = None
    for seed in SEEDS:
        request = prepare(RunSpec.make(**settings | {"seed": seed}), place / "runs")
        bench = bench or make_bench(request)
        execute(request, bench, started=0.0, quiet=True)
    assert report.main([f"--runs={place / 'runs'}", f"--pack={place / 'study.jsonl.gz'}"]) == 0
    return place


def call(capsys, *arguments):
    status = audit.main(list(arguments))
    out, err = capsys.readouterr()
    return status, out, err


def edit(folder, change, name=RECORD_FILE):
    """Changes a record as somebody would who also knows how it is sealed."""
    path = folder / name
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content)
    path.write_text(seal_json(content))


def forge(study, place, change=lambda content: None):
    """Seed 0's record, with what seed 1's run predicted and scored."""
    runs = shutil.copytree(study / "runs", place / "runs")
    one, other = (next(runs.glob(f"*-s{seed}-*")) for seed in SEEDS)
    told = json.loads((other / RECORD_FILE).read_text())

    def take(content):
        content["result"], content["predictions_sha256"] = told["result"], None
        change(content)

    edit(one, take)
    shutil.rmtree(other)
    return runs


@pytest.mark.parametrize("source", ["runs", "study.jsonl.gz"])
def test_a_run_is_the_run_again(study, capsys, source):
    status, out, err = call(capsys, f"--runs={study / source}", "--run=-s1-")
    assert status == 0, err
    assert "identical  every loss, every metric, every prediction, the tuned weights: bit for bit" in out
    assert "machine" not in out
    assert out.count(" = ") == 8  # two epochs of loss, two metrics, predictions


def test_model_and_data_may_lie_elsewhere_and_must_be_the_same(study, toy_bert, toy_glue, make_toy_bert, tmp_path,
                                                               capsys):  # fmt: skip
    model, data = shutil.copytree(toy_bert, tmp_path / "bert"), shutil.copytree(toy_glue, tmp_path / "glue")
    where = [f"--runs={study / 'runs'}", "--run=-s0-"]
    status, out, _ = call(capsys, *where, f"--model={model}", f"--data_dir={data}", f"--output_dir={tmp_path / 'out'}")
    assert (status, "identical" in out) == (0, True)
    assert (next((tmp_path / "out").iterdir()) / RECORD_FILE).exists()
    status, out, err = call(capsys, *where, f"--model={model}", f"--output_dir={tmp_path / 'out'}")
    assert (status, out) == (2, "")
    assert "holds this run already" in err
    other = make_toy_bert(tmp_path / "other", seed=5)
    file = data / "MRPC" / "dev.tsv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    for flag, words in ((f"--model={other}", "not the base model"), (f"--data_dir={data}", "not the data")):
        status, out, err = call(capsys, *where, flag)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert flag.partition("=")[0] in err


def test_another_seeds_numbers_are_not_the_runs(study, tmp_path, capsys):
    runs = forge(study, tmp_path)
    status, out, _ = call(capsys, f"--runs={runs}", "--run=-s0-")
    assert status == 1
    assert "differs    since epoch 1" in out
    assert "machine and versions are the same, and so should be every bit" in out
    runs = forge(study, tmp_path / "elsewhere", lambda content: content["cost"].update(processor="Another One"))
    status, out, _ = call(capsys, f"--runs={runs}", "--run=-s0-")
    assert status == 1
    assert "machine    processor: Another One, here " in out
    assert "unexplained  rounding explains up to" in out


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        (lambda loss, cost: (loss * (1 + LOSS_BOUND / 2), {"processor": "Another One"}), 0, "explained"),
        (lambda loss, cost: (loss * (1 + LOSS_BOUND / 2), {}), 1, "the same"),
        (lambda loss, cost: (loss * (1 + LOSS_BOUND * 2), {"processor": "Another One"}), 1, "unexplained"),
        (lambda loss, cost: (loss * (1 + LOSS_BOUND / 2), {"processor": None}), 0, "does not tell its processor"),
        (lambda loss, cost: (loss, {"processor": "Another One"}), 0, "identical"),
        (lambda loss, cost: (loss, {"processor": "Another One", "tokens": cost["tokens"] + 1}), 1, "tokens"),
    ],
)  # fmt: skip
def test_what_rounding_explains_needs_another_machine(study, tmp_path, capsys, change, status, words):
    runs = shutil.copytree(study / "runs", tmp_path / "runs")

    def edited(content):
        last = content["result"]["epochs"][-1]
        last["train_loss"], more = change(last["train_loss"], content["cost"])
        content["cost"] |= more

    edit(next(runs.glob("*-s0-*")), edited)
    found, out, _ = call(capsys, f"--runs={runs}", "--run=-s0-")
    assert (found, words in out) == (status, True), out
    if words == "explained":
        assert "differs    since epoch 2: losses by at most 5.0e-06 of their size, predictions by at most 0 %" in out


def test_predictions_alone_are_compared_one_by_one(study):
    records, _ = find_records(study / "runs")
    predictions, _ = find_predictions(study / "runs", records)
    one, other = (predictions[record.run_id] for record in records)
    found = compare(records[0], records[0], (one, other))
    expected = [int((one.by_epoch["validation"][i] != other.by_epoch["validation"][i]).sum()) for i in (1, 2)]
    assert [(told.differing, told.total) for told in found.answers] == [(count, 20) for count in expected]
    assert found.share == max(expected) / 20 > PREDICTIONS_BOUND
    assert not found.identical
    assert compare(records[0], records[0], (one, one)).identical
    assert compare(records[0], records[0], (None, one)).answers == []
    assert Answers(1, "validation", 0, 20, None) in compare(records[0], records[0], (one, one)).answers


def test_a_score_on_a_test_split_is_compared_where_both_have_one(study):
    record = find_records(study / "runs")[0][0]

    def scored(score, digest):
        result = record.result.model_copy(update={"test": {"f1": score}, "score_test": score})
        origin = record.origin.model_copy(update={"test_sha256": digest * 64})
        return record.model_copy(update={"result": result, "origin": origin})

    found = compare(scored(0.5, "a"), scored(0.25, "a"), (None, None))
    assert [name for name, _, _ in found.rounded] == ["test", "score_test"]
    assert compare(scored(0.5, "a"), scored(0.5, "b"), (None, None)).exact
    assert compare(scored(0.5, "a"), record, (None, None)).identical


def test_a_half_alone_that_differs_is_shown(study, tmp_path, capsys):
    runs = shutil.copytree(study / "runs", tmp_path / "runs")

    def change(content):
        content["result"]["epochs"][1]["halves"]["validation"][0]["accuracy"] = 0.125

    edit(next(runs.glob("*-s0-*")), change)
    status, out, _ = call(capsys, f"--runs={runs}", "--run=-s0-")
    assert status == 1
    assert "differs    since epoch 2" in out
    (row,) = (line for line in out.splitlines() if "half" in line)
    assert "validation accuracy, half 0" in row
    assert "12.50" in row


def test_a_record_whose_settings_were_edited_is_refused(study, tmp_path, capsys):
    runs = shutil.copytree(study / "runs", tmp_path / "runs")
    edit(next(runs.glob("*-s0-*")), lambda content: content["spec"].update(warmup_ratio=0.2))
    status, out, err = call(capsys, f"--runs={runs}", "--run=-s0-")
    assert (status, out) == (2, "")
    assert "the record was edited" in err


def test_list_says_what_can_be_audited_and_how_long_it_takes(study, tmp_path, capsys):
    runs = shutil.copytree(study / "runs", tmp_path / "runs")

    def change(content):
        content["origin"]["arithmetic"] = 4
        content["cost"] |= {"setup_seconds": 60.0, "train_seconds": 3600.0, "eval_seconds": 0.0}

    folder = next(runs.glob("*-s0-*"))
    edit(folder, change)
    status, out, _ = call(capsys, f"--runs={runs}")
    assert status == 0
    rows = {cells[1].strip(): cells for line in out.splitlines() if len(cells := line.split("|")) == 7}
    record = read_record(folder)
    assert "1 h 1 min" in " ".join(rows[record.run_id]) or "61 min" in " ".join(rows[record.run_id])
    assert "arithmetic 4" in rows[record.run_id][5]
    (other,) = (row for name, row in rows.items() if "-s1-" in name)
    assert other[5].strip() == "yes"
