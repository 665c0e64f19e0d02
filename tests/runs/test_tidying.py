"""What a process leaves that was killed just after its record was written goes with the next start."""

import json

import pytest

import tfmt
from tfmt import sweep, train
from tfmt.runs.folder import tidy_finished
from tfmt.runs.lease import Lease
from tfmt.runs.records import read_record
from tfmt.runs.runner import prepare, record_failure
from tfmt.runs.sealed import seal_json, unseal
from tfmt.spec import RunSpec


@pytest.fixture
def settings(toy_bert, toy_glue):
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "mode": "frozen", "max_length": 32}


@pytest.fixture
def leave(settings, tmp_path):
    """A folder with a record of this status, as its process left it."""

    def leave(status="diverged", pid=2**22 + 1):
        request = prepare(RunSpec.make(**settings), tmp_path)
        record_failure(request, "no number")
        path = request.folder / "record.json"
        path.write_text(seal_json(unseal(json.loads(path.read_text())) | {"status": status}))
        with Lease(request.folder) as lease:
            owner = lease._owner | {"pid": pid}
        for name in ("state.safetensors", "kept.2.safetensors", "fisher.safetensors", ".state.safetensors.7.ab"):
            (request.folder / "checkpoint").mkdir(exist_ok=True)
            (request.folder / "checkpoint" / name).touch()
        for name in (".record.json.7.ab", ".tuned.safetensors.7.ab", ".tmpAb3xYz", ".clock.7.ab", "mine", "lease.txt"):
            (request.folder / name).touch()
        (request.folder / "lease.3").write_text(json.dumps(owner))
        return request.folder

    return leave


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


STARTS = {
    "train": lambda settings, runs: train.main(flags(settings, runs)),
    "sweep": lambda settings, runs: sweep.main([*flags(settings, runs), "--workers=0"]),
    "Python": lambda settings, runs: tfmt.fine_tune(RunSpec.make(**settings), runs, quiet=True),
}


def flags(settings, runs):
    return [*(f"--{name}={value}" for name, value in settings.items()), f"--output_dir={runs}"]


@pytest.mark.parametrize("start", STARTS)
def test_next_start_of_a_finished_run_tidies_up(settings, leave, tmp_path, start):
    folder = leave()
    STARTS[start](settings, tmp_path)
    assert names(folder) == ["lease.txt", "mine", "record.json", "spec.json"]
    assert read_record(folder).status == "diverged"


def test_living_holder_keeps_all(settings, leave, tmp_path):
    folder = leave()
    (folder / "lease.3").unlink()
    with Lease(folder):
        before = names(folder)
        assert train.main(flags(settings, tmp_path)) == 0
        assert names(folder) == before


def test_dry_run_leaves_all_as_it_is(settings, leave, tmp_path):
    folder = leave()
    before = names(folder)
    assert train.main([*flags(settings, tmp_path), "--dry_run"]) == 0
    assert names(folder) == before


def test_checkpoint_of_a_failed_run_stays_and_so_does_what_is_not_tfmts(leave):
    folder = leave("failed")
    tidy_finished(folder, read_record(folder))
    kept = [f"checkpoint/{name}" for name in ("fisher.safetensors", "kept.2.safetensors", "state.safetensors")]
    assert names(folder) == ["checkpoint", *kept, "lease.txt", "mine", "record.json", "spec.json"]
    folder = leave()
    (folder / "checkpoint" / "notes.txt").touch()
    tidy_finished(folder, read_record(folder))
    assert names(folder)[:2] == ["checkpoint", "checkpoint/notes.txt"]


def test_folder_that_may_only_be_read_is_left_in_peace(settings, leave, tmp_path, monkeypatch):
    folder = leave()
    before = names(folder)

    def enter(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Lease, "__enter__", enter)
    assert train.main(flags(settings, tmp_path)) == 0
    assert names(folder) == before
