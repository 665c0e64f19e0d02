"""A run's folder: whose it is, and what is left alone in it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tfmt import files
from tfmt.errors import RequestError
from tfmt.files import check_output, parse_json, whole_file, whole_folder, write_whole
from tfmt.runs.folder import clear_leftovers, note_spec, open_folder, tell_other_model
from tfmt.runs.lease import Lease
from tfmt.runs.runner import prepare
from tfmt.spec import RunSpec
from tfmt.tensors import write_tensors


@pytest.fixture
def request_(toy_bert, toy_glue, tmp_path):
    spec = RunSpec.make(model=str(toy_bert), data_dir=str(toy_glue), task="mrpc", mode="layernorm", max_length=32)
    return prepare(spec, tmp_path)


def test_what_another_process_is_writing_is_left_to_it(request_):
    open_folder(request_)
    (request_.folder / "checkpoint").mkdir()
    for path in (request_.folder / "tuned.safetensors", request_.folder / "checkpoint" / "state.safetensors"):
        with whole_file(path) as temporary:
            temporary.write_bytes(b"whole")
            open_folder(request_)  # the same run is asked for once more meanwhile
        assert path.read_bytes() == b"whole"


def test_what_a_killed_process_was_writing_goes_once_the_folder_is_ones_own(request_):
    open_folder(request_)
    note_spec(request_)
    inside = request_.folder / "checkpoint"
    inside.mkdir()
    left = [
        request_.folder / ".record.json.77.ab12",
        request_.folder / ".tuned.safetensors.77",
        inside / ".state.safetensors.7",
        inside / ".tmpAb3xYz",
    ]
    kept = [inside / "state.safetensors", request_.folder / "spec.json"]
    for path in (*left, kept[0]):
        path.write_text("")
    clear_leftovers(request_.folder)
    assert sorted(path for path in request_.folder.rglob("*") if path.is_file()) == sorted(kept)


def test_a_run_that_differs_in_its_base_model_alone_is_told_of(request_, toy_bert, tmp_path):
    def ask(**changes):
        return tell_other_model(prepare(RunSpec.make(**request_.spec.model_dump() | changes), tmp_path))

    shutil.copytree(toy_bert, tmp_path / "edited")
    config = json.loads((toy_bert / "config.json").read_text())
    (tmp_path / "edited" / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.5}))
    assert ask(model=str(tmp_path / "edited")) == ""
    open_folder(request_)
    note_spec(request_)
    assert ask() == ""
    assert ask(model=str(tmp_path / "edited"), seed=1) == ""
    told = ask(model=str(tmp_path / "edited"))
    assert told.startswith(
        f"{request_.run_id} has the same settings and data, and another base model; this one differs"
    )
    assert told.endswith(" in config.json's hidden_dropout_prob (0.5, was 0.1)")


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file.npz"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_bytes(b"same")
        second.write_bytes(b"same")
    assert path.read_bytes() == b"same"
    assert [found.name for found in tmp_path.iterdir()] == ["file.npz"]


def test_folder_kept_otherwise_is_the_same_runs_and_another_runs_is_refused(request_, tmp_path):
    open_folder(request_)
    note_spec(request_)
    scores = prepare(RunSpec.make(**request_.spec.model_dump() | {"keep": "scores", "replicas": 2}), tmp_path)
    assert scores.folder == request_.folder
    open_folder(scores)
    path = request_.folder / "spec.json"
    stored = json.loads(path.read_text())
    assert "keep" not in stored["identity"]["settings"]
    stored["identity"]["settings"]["seed"] = 3
    path.write_text(json.dumps(stored))
    with pytest.raises(RequestError, match=r"spec\.json: broken .*; delete the file, which the next start writes anew"):
        open_folder(request_)
    path.write_text(json.dumps({"identity": stored["identity"]}))  # without a digest, as earlier versions wrote it
    with pytest.raises(RequestError, match="holds another run"):
        open_folder(request_)
    path.unlink()
    open_folder(request_)
    note_spec(request_)
    assert json.loads(path.read_text())["identity"]["settings"]["seed"] == 0


@pytest.mark.parametrize("mask", [0o022, 0o007, 0o077])
def test_files_have_the_mode_that_the_umask_leaves(tmp_path, mask):
    array = {"weight": np.ones(3, np.float32)}
    before = os.umask(mask)
    try:
        (tmp_path / "plain").write_text("")
        write_tensors(tmp_path / "tuned.safetensors", array, {})
        with whole_folder(tmp_path / "export") as folder:
            (folder / "inner").mkdir()
            save_file(array, folder / "inner" / "model.safetensors")
        with Lease(tmp_path):
            modes = {path.name: path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("plain", "tuned.safetensors", "model.safetensors", "lease.1"), 0o100666 & ~mask)


def test_a_place_where_no_file_can_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path, told in {
        tmp_path: "this is a folder",
        tmp_path / "none" / "a.csv": f"there is no folder {tmp_path / 'none'}",
        tmp_path / "file" / "a.csv": f"{tmp_path / 'file'} is no folder",
    }.items():
        with pytest.raises(RequestError, match=f"^--output={path}: .*{told}"):
            check_output(path)
    check_output(tmp_path / "a.csv")
    check_output(tmp_path / "none" / "a.csv", makes_folders=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # as for who is not root
    for path in (tmp_path / "a.csv", tmp_path / "none" / "a.csv"):
        with pytest.raises(RequestError, match=f"^--data={path}: nothing may be written into {tmp_path}"):
            check_output(path, "--data", makes_folders=True)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 10_000, b"\xff{}", b"", b"{"])
def test_what_is_no_json_is_one_kind_of_error(content):
    with pytest.raises(ValueError):
        parse_json(content)
    assert parse_json(b'\xef\xbb\xbf{"a": [1]}') == {"a": [1]}


@pytest.fixture
def to_the_disk(monkeypatch):
    """What is put on the disk, by device and inode, and what is renamed, in their order."""
    events, sync, replace = [], files.os.fsync, Path.replace

    def fsync(number):
        status = os.fstat(number)
        events.append(("sync", status.st_dev, status.st_ino))
        sync(number)

    def rename(path, target):
        events.append(("rename", path.parent, target))
        return replace(path, target)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    return events


def synced(path):
    status = path.stat()
    return "sync", status.st_dev, status.st_ino


def test_a_whole_files_name_is_put_on_the_disk_after_its_content(to_the_disk, tmp_path):
    """Else a crash of the machine may bring back the older file, which others have seen replaced."""
    path = tmp_path / "record.json"
    for content in (b"older", b"newer"):
        to_the_disk.clear()
        write_whole(path, content)
        assert to_the_disk == [synced(path), ("rename", tmp_path, path), synced(tmp_path)]
    assert path.read_bytes() == b"newer"


def test_a_whole_folders_name_is_put_on_the_disk_after_its_files(to_the_disk, tmp_path):
    path = tmp_path / "export"
    with whole_folder(path) as temporary:
        (temporary / "inner").mkdir()
        for name in ("a", "inner/b"):
            (temporary / name).write_text(name)
    assert to_the_disk[-2:] == [("rename", tmp_path, path), synced(tmp_path)]
    assert set(to_the_disk[:-2]) == {synced(path / "a"), synced(path / "inner" / "b")}
