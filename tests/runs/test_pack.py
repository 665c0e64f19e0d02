"""A study in one file says what its folders say, and no damage to it goes unnoticed."""

import gzip
import json
import random
import shutil

import numpy as np
import pytest

import tfmt
from tfmt import analyze, figures, report
from tfmt.errors import RequestError
from tfmt.runs.records import RECORD_FILE, find_distributions, find_predictions, find_records, pack_runs, read_record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.runs.sealed import seal_json
from tfmt.spec import RunSpec, digest_json


def fine_tune(settings, folder, bench=None):
    request = prepare(RunSpec.make(**settings), folder)
    bench = bench or make_bench(request)
    execute(request, bench, started=0.0, quiet=True)
    return request, bench


@pytest.fixture(scope="module")
def study(toy_bert, toy_glue, tmp_path_factory):
    """Runs of three modes, one of them on two seeds, and the pack of them."""
    place = tmp_path_factory.mktemp("study")
    settings = {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "max_length": 32, "epochs": 2,
                "learning_rate": 1e-2, "keep": "scores"}  # fmt: skip
    bench = None
    for mode, seed, more in (("full", 0, {}), ("layernorm", 0, {}), ("layernorm", 1, {}),
                             ("fisher", 0, {"mask_fraction": 0.5, "fisher_examples": 16})):  # fmt: skip
        _, bench = fine_tune(settings | {"mode": mode, "seed": seed} | more, place / "runs", bench)
    assert report.main([f"--runs={place / 'runs'}", f"--pack={place / 'study.jsonl.gz'}"]) == 0
    return place


def lines_of(path):
    return gzip.decompress(path.read_bytes()).splitlines(keepends=True)


def write_lines(path, lines):
    path.write_bytes(gzip.compress(b"".join(lines)))
    return path


def read_all(path):
    records, _ = find_records(path)
    return records, find_predictions(path, records)[0], find_distributions(path)[0]


def test_a_pack_says_what_the_folders_say(study):
    folder, pack = study / "runs", study / "study.jsonl.gz"
    records, predictions, distributions = read_all(folder)
    packed, packed_predictions, packed_distributions = read_all(pack)
    assert len(records) == 4
    assert packed == records
    assert packed_distributions == distributions != {}
    assert list(packed_predictions) == [record.run_id for record in records]
    for record in records:
        run_id = record.run_id
        assert packed_predictions[run_id].sha256 == predictions[run_id].sha256 == record.predictions_sha256
        truth, told = predictions[run_id].truth["validation"], packed_predictions[run_id].truth["validation"]
        np.testing.assert_array_equal(told.labels, truth.labels)
        np.testing.assert_array_equal(told.halves, truth.halves)
        for epoch in (1, 2):
            one, other = (each.by_epoch["validation"][epoch] for each in (predictions[run_id],
                                                                          packed_predictions[run_id]))  # fmt: skip
            np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize(
    "asked", [("--table=1",), ("--table=runs", "--format=json"), ("--table=fisher", "--format=csv"), ("--claims",)],
    ids=lambda asked: asked[0].strip("-"),
)  # fmt: skip
def test_tables_and_claims_of_a_pack_are_those_of_its_folders(study, capsys, asked):
    texts = []
    for source in ("runs", "study.jsonl.gz"):
        assert report.main([f"--runs={study / source}", *asked]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize("name", ["weights", "change", "fisher", "curves"])
def test_numbers_of_figures_of_a_pack_are_those_of_its_folders(study, tmp_path, name):
    texts = []
    for source in ("runs", "study.jsonl.gz"):
        output = [f"--output={tmp_path / 'a.png'}", f"--data={tmp_path / 'a.csv'}"]
        assert analyze.main([f"--figure={name}", f"--runs={study / source}", *output]) == 0
        texts.append((tmp_path / "a.csv").read_bytes())
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) > 1


def test_python_reads_packs_and_several_sources(study, tmp_path):
    pack = study / "study.jsonl.gz"
    assert tfmt.read_runs(pack).equals(tfmt.read_runs(study / "runs"))
    rows = len(figures.plot_curves(pack)[1])
    for number, path in enumerate(sorted((study / "runs").iterdir())):
        shutil.copytree(path, tmp_path / str(number % 2) / path.name)
    for runs in ([tmp_path / "0", tmp_path / "1"], [tmp_path / "0", pack], [pack, str(pack)]):
        assert find_records(runs)[0] == find_records(pack)[0]
        assert len(find_predictions(runs, find_records(runs)[0])[0]) == 4
        assert len(figures.plot_curves(runs)[1]) == rows
        told = tfmt.read_runs(runs, predictions=True).attrs["predictions"]
        assert told.keys() == {record.run_id for record in find_records(pack)[0] if record.predictions_sha256}
        for record in find_records(pack)[0]:
            for epoch in record.result.epochs if record.run_id in told else ():
                again = told[record.run_id].score(record.task, "validation", epoch.epoch).values
                assert again == epoch.metrics["validation"]
    assert "predictions" not in tfmt.read_runs(pack).attrs
    with pytest.raises(RequestError, match="empty"):
        tfmt.read_runs([])


def test_commands_take_several_sources(study, tmp_path, capsys):
    copied = shutil.copytree(study / "runs", tmp_path / "with,comma")
    for path in sorted(copied.iterdir())[1:]:
        shutil.rmtree(path)
    texts = []
    for runs in (f'"{copied}",{study / "study.jsonl.gz"}', str(study / "runs")):
        assert report.main([f"--runs={runs}", "--table=runs"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_two_executions_of_one_run_are_not_taken_for_one(study, tmp_path, capsys):
    copied = shutil.copytree(study / "runs", tmp_path / "again")
    path = sorted(copied.glob(f"*/{RECORD_FILE}"))[0]
    content = json.loads(path.read_text())
    content["cost"]["train_seconds"] += 1
    path.write_text(seal_json({name: value for name, value in content.items() if name != "sha256"}))
    assert report.main([f"--runs={study / 'study.jsonl.gz'},{copied}", "--table=runs"]) == 2
    told = capsys.readouterr().err
    for words in (path.parent.name, "study.jsonl.gz:3", f"in {path.parent}", "differ"):
        assert words in told


def test_equal_runs_give_equal_bytes_wherever_they_lie(study, tmp_path, capsys):
    shutil.copytree(study / "runs", tmp_path / "elsewhere")
    for name, source in (("folder", tmp_path / "elsewhere"), ("pack", study / "study.jsonl.gz")):
        assert report.main([f"--runs={source}", f"--pack={tmp_path / name}"]) == 0
        assert (tmp_path / name).read_bytes() == (study / "study.jsonl.gz").read_bytes()
    assert report.main([f"--runs={study / 'runs'}", "--where=mode=full", f"--pack={tmp_path / 'part'}"]) == 0
    assert "1 run" in capsys.readouterr().err
    assert [record.spec.mode for record in find_records(tmp_path / "part")[0]] == ["full"]


def test_truths_that_runs_share_are_stored_once_and_lines_stand_alone(study):
    lines = [json.loads(line) for line in lines_of(study / "study.jsonl.gz")]
    assert [sorted(set(line) & {"format", "truth", "record"}) for line in lines] == [
        ["format"], ["truth"], *([["record"]] * 4)
    ]  # fmt: skip
    assert (lines[0]["runs"], lines[0]["truths"], lines[0]["schema"], lines[0]["tfmt"]) == (4, 1, 1, tfmt.__version__)
    for line in lines:
        assert line.pop("sha256") == digest_json(line)


def refused(path, *words):
    for read in (find_records, find_distributions, lambda runs: find_predictions(runs, [])):
        with pytest.raises(RequestError) as error:
            read(path)
        for word in words:
            assert word in str(error.value)


def test_every_damaged_line_is_named(study, tmp_path):
    lines = lines_of(study / "study.jsonl.gz")
    generator = random.Random(0)
    for number, line in enumerate(lines, 1):
        for _ in range(5):
            at = generator.randrange(len(line) - 1)
            damaged = line[:at] + bytes([line[at] ^ 1 << generator.randrange(7)]) + line[at + 1 :]
            if b"\n" in damaged[:-1]:
                continue
            path = write_lines(tmp_path / "a.gz", [*lines[: number - 1], damaged, *lines[number:]])
            refused(path, f"{path}:{number}: ")
        for damaged in (b"", b"[]\n", b"{}\n", b"\xff\n", b"[" * 100_000 + b"\n", line.replace(b"sha256", b"sha255")):
            path = write_lines(tmp_path / "a.gz", [*lines[: number - 1], damaged, *lines[number:]])
            refused(path, f"{path}:")
        refused(write_lines(tmp_path / "a.gz", lines[:number][:-1]), str(tmp_path / "a.gz"))
    refused(write_lines(tmp_path / "a.gz", [*lines, lines[-1]]), ":7: ", "twice")


def reseal(line, **changes):
    content = json.loads(line) | changes
    del content["sha256"]
    return json.dumps(content | {"sha256": digest_json(content)}).encode() + b"\n"


def test_what_was_packed_by_others_is_refused(study, tmp_path):
    lines = lines_of(study / "study.jsonl.gz")
    path = tmp_path / "a.gz"
    refused(write_lines(path, [reseal(lines[0], schema=2), *lines[1:]]), ":1: schema 2, this tfmt")
    refused(write_lines(path, [reseal(lines[0], format="other"), *lines[1:]]), ":1: no packed study")
    refused(write_lines(path, [reseal(lines[0], runs=5), *lines[1:]]), ":6: ", "4 of 5 runs")
    halves = json.loads(lines[1])["labels"]
    refused(write_lines(path, [lines[0], reseal(lines[1], halves=halves[:-8] + "AAAA"), *lines[2:]]), f"{path}:")
    refused(write_lines(path, [lines[0], reseal(lines[1], labels="int8:AAAA"), *lines[2:]]), ":2: ", "do not fit")
    refused(write_lines(path, [lines[0], reseal(lines[1], labels="object:AAAA"), *lines[2:]]), ":2: ", "'object'")
    first, second = json.loads(lines[2]), json.loads(lines[3])
    for predictions, words in ((None, "lacks"), (second["predictions"], "not those that its record tells of")):
        changed = reseal(lines[2], predictions=predictions)
        refused(write_lines(path, [*lines[:2], changed, *lines[3:]]), ":3: ", words)
    first["record"]["result"]["score_best"] = 0.123
    changed = reseal(lines[2], record=first["record"])
    with pytest.raises(RequestError, match=r"a\.gz:3: broken record: the file: its content has changed"):
        find_records(write_lines(path, [*lines[:2], changed, *lines[3:]]))


def test_no_flipped_bit_and_no_cut_makes_it_another_study(study, tmp_path):
    whole, path = (study / "study.jsonl.gz").read_bytes(), tmp_path / "a.gz"
    expected = find_records(study / "study.jsonl.gz")[0]
    generator = random.Random(0)
    for place in generator.sample(range(8 * len(whole)), 150):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            found = find_records(path)[0]
        except RequestError:
            refused(path, f"{path}:")
        else:
            assert found == expected  # gzip's note of the time, which nothing reads
    for end in (*generator.sample(range(1, len(whole)), 20), len(whole) - 1, len(whole) - 8):
        path.write_bytes(whole[:end])
        refused(path, str(path), "cut off")
    path.write_bytes(whole + b"more")
    refused(path, str(path))
    path.write_bytes(b"")
    refused(path, f"{path}:1: ", "empty")


def test_what_cannot_be_read_is_not_left_out_of_a_pack(study, tmp_path, capsys):
    for number, name in enumerate((RECORD_FILE, "predictions.safetensors", "distributions.json")):
        copied = shutil.copytree(study / "runs", tmp_path / str(number))
        path = next(copied.glob(f"*/{name}"))
        path.write_bytes(path.read_bytes()[:-100])
        assert report.main([f"--runs={copied}", f"--pack={tmp_path / 'a.gz'}"]) == 2
        assert f"{path}: " in capsys.readouterr().err
        assert not (tmp_path / "a.gz").exists()
    path = next((study / "runs").glob("*full*"))
    gone = shutil.copytree(path, tmp_path / "gone" / path.name)
    (gone / "predictions.safetensors").unlink()
    with pytest.raises(RequestError, match=r"predictions\.safetensors: missing"):
        pack_runs(tmp_path / "gone", [read_record(gone)], tmp_path / "a.gz")
