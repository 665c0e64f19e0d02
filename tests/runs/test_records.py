"""Records: what cannot have been written by a run is told of by its file, and nothing else of it is believed."""

import hashlib
import json
import random

import pytest

from tfmt.errors import RequestError
from tfmt.runs.records import Record, find_records, read_record
from tfmt.runs.sealed import seal_json
from tfmt.spec import RunSpec

RECORD = {
    "schema": 1,
    "run_id": "rte-full-lr5e-05-s0-0123456789",
    "status": "completed",
    "error": None,
    "spec": RunSpec.make(model="demo", task="rte", mode="full").model_dump(mode="json"),
    "parameters": {"total": 10, "tuned": 8, "head": 2, "trainable": 10, "tuned_percent": 100.0},
    "result": {
        "score_name": "accuracy", "score_last": 0.5, "score_best": 0.75, "best_epoch": 1, "collapsed": False,
        "epochs": [{"epoch": 1, "train_loss": 0.6, "metrics": {"validation": {"accuracy": 0.75}}, "seconds": 1.0}],
        "examples": {"train": 8, "validation": 4}, "predicted": {"validation": {"entailment": 4}},
    },
    "cost": None, "proof": None, "change": None,
    "origin": {
        "tfmt": "0.1.0", "arithmetic": 5, "packages": {}, "python": "3.11", "git_commit": None, "git_dirty": None,
        "model_sha256": "0" * 64, "data_sha256": "1" * 64, "data_notes": {}, "started": "", "finished": "",
    },
}  # fmt: skip


def write(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def changed(path, value):
    record = json.loads(json.dumps(RECORD))
    *parents, last = path.split("/")
    part = record
    for name in parents:
        part = part[int(name)] if isinstance(part, list) else part[name]
    part[last] = value
    return record


def test_a_record_is_read(tmp_path):
    assert read_record(write(tmp_path / "a", RECORD)).result.score_best == 0.75


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (changed("result/score_best", 7.5), "result.score_best"), (changed("result/score_last", -1.5), "score_last"),
        (changed("result/epochs/0/metrics", {"validation": {"accuracy": 75.0}}), "accuracy"),
        (changed("result/best_epoch", 0), "best_epoch"), (changed("result/examples", {"train": -1}), "examples"),
        (changed("parameters/tuned_percent", 101.0), "tuned_percent"), (changed("parameters/tuned", -1), "tuned"),
        (changed("spec/seed", -1), "seed"), (changed("status", "done"), "status"), (changed("schema", 2), "schema 2"),
        (changed("more", 1), "more"), (b"", "broken"), (b"[]", "broken"), (b"[" * 100_000, "broken"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "record.json"), (b"\xff\xfe", "broken"),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_in_one_line_and_ends_no_report(tmp_path, content, told):
    good, bad = write(tmp_path / "a", RECORD), write(tmp_path / "b", content)
    with pytest.raises(RequestError, match=f"^{bad}/record.json: ") as error:
        read_record(bad)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    records, broken = find_records(tmp_path)
    assert [record.run_id for record in records] == [read_record(good).run_id]
    assert broken == [str(error.value)]


def test_a_record_carries_a_digest_of_its_content_in_one_canonical_form(tmp_path):
    record = read_record(write(tmp_path / "a", RECORD))
    stored = json.loads(record.to_json())
    told = stored.pop("sha256")
    text = json.dumps(stored, sort_keys=True, separators=(",", ":"))
    assert told == hashlib.sha256(text.encode()).hexdigest()
    assert read_record(write(tmp_path / "b", record.to_json().encode())) == record
    laid_out = json.dumps(stored | {"sha256": told}, indent=8, sort_keys=True).encode()
    assert read_record(write(tmp_path / "c", laid_out)) == record


def test_no_flipped_bit_of_a_record_makes_it_another(tmp_path):
    record = Record.model_validate_json(json.dumps(RECORD))
    whole = record.to_json().encode()
    places = random.Random(0).sample(range(8 * len(whole)), 2000)
    unnoticed = 0
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        try:
            found = read_record(write(tmp_path / "a", bytes(content)))
        except RequestError:
            continue
        unnoticed += found != record
    assert unnoticed == 0


def test_a_record_that_was_edited_by_hand_is_refused(tmp_path):
    content = json.loads(seal_json(RECORD))
    content["result"]["score_best"] = 0.8
    with pytest.raises(RequestError, match=r"record\.json: broken record: the file: its content has changed since"):
        read_record(write(tmp_path / "a", content))
