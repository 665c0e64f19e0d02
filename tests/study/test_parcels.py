"""Runs on a machine that shares no disk with the sweep: what is shipped, what comes back, and what goes wrong."""

import errno
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from tfmt.errors import SurroundingsError
from tfmt.files import UnreadableError, UnwritableError, here, relocated, there
from tfmt.runs.lease import TakenError
from tfmt.runs.records import read_record
from tfmt.runs.runner import Sources, execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.study import parcels, shelf
from tfmt.study.parcels import fetch_run, list_reads, make_parcel, place_reads, send_run, ship
from tfmt.study.shelf import Shelf, address_of, list_run
from tfmt.study.worker import Executor
from tfmt.tensors import read_tensors
from tfmt.training import fine_tune

TOKEN = "study"


class Node:
    """A machine whose shelf is called as another process would: nothing but what pickle carries gets there."""

    def __init__(self, root):
        self.shelf, self.calls = Shelf(str(root)), []

    def __call__(self, name, *arguments):
        self.calls.append((name, *arguments))
        answer = getattr(self.shelf, name)(*pickle.loads(pickle.dumps(arguments)))
        return pickle.loads(pickle.dumps(answer))

    def sent(self):
        return sum(len(call[4]) for call in self.calls if call[0] == "put")

    def execute(self, spec, sources, until=None):
        runs = self.shelf.folder_of(TOKEN, "run").parent
        runs.mkdir(parents=True, exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TFMT_CACHE", str(runs / "cache"))  # what the sweep's machine remembers is not here
            return Executor(runs).execute(spec, sources, until)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.delenv("TFMT_NODE_DIR", raising=False)
    monkeypatch.setattr(shelf, "PIECE", 4096)
    monkeypatch.setattr(parcels, "_POLL_SECONDS", 0.01)


@pytest.fixture
def node(tmp_path, monkeypatch):
    monkeypatch.setattr(Shelf, "has_same", lambda *_: False)
    return Node(tmp_path / "node")


@pytest.fixture
def driver(tmp_path, toy_bert, toy_glue):
    """The sweep's own disk, which can be taken away."""
    folder = tmp_path / "driver"
    shutil.copytree(toy_bert, folder / "bert")
    shutil.copytree(toy_glue, folder / "glue")
    return folder


@pytest.fixture
def settings(driver):
    return {"model": str(driver / "bert"), "data_dir": str(driver / "glue"), "task": "mrpc", "max_length": 32,
            "epochs": 2, "learning_rate": 1e-2, "mode": "layernorm"}  # fmt: skip


def local(request):
    return execute(request, make_bench(request), started=0.0, quiet=True)


def bits(folder):
    """All of a run that does not tell of time, place and machine."""
    record = json.loads((folder / "record.json").read_text())
    for name in ("sha256", "cost"):
        record.pop(name, None)
    for name in ("started", "finished"):
        record["origin"].pop(name)
    for epoch in record["result"]["epochs"]:
        epoch.pop("seconds")
    record["selection"]["cost"].pop("seconds")
    files = {}
    for path in folder.glob("*.safetensors"):
        tensors, about = read_tensors(path)
        about.pop("cost", None)  # of a selection: seconds
        files[path.name] = about, {name: (array.dtype, array.tobytes()) for name, array in tensors.items()}
    return record, files, (folder / "spec.json").read_bytes()


def away(driver):
    driver.rename(driver.with_name("away"))


def back(driver):
    driver.with_name("away").rename(driver)


def test_run_reads_nothing_of_the_sweeps_disk_and_comes_back_bit_for_bit(driver, settings, node, tmp_path):
    request = prepare(RunSpec.make(**settings), tmp_path / "local")
    local(request)
    sources = request.sources.at(place_reads(node, list_reads(request.spec, request.sources)))
    assert Sources.from_json(sources.to_json()) == sources
    send_run(node, TOKEN, tmp_path / "fetched" / request.run_id)
    away(driver)
    ended = node.execute(request.spec, sources)
    assert ended.status == "completed"
    back(driver)
    folder = tmp_path / "fetched" / request.run_id
    checks = []
    fetch_run(node, TOKEN, request.run_id, folder, checkpoint=False, check=lambda: checks.append(1))
    assert bits(folder) == bits(request.folder)
    assert read_record(folder) == ended.record
    assert checks
    assert {path.name for path in folder.iterdir() if not path.name.startswith("events")} == {
        path.name for path in request.folder.iterdir() if not path.name.startswith("events")
    }
    sent = node.sent()
    place_reads(node, list_reads(request.spec, request.sources))
    assert node.sent() == sent  # once a machine
    node("drop_run", TOKEN, request.run_id)
    assert not node("snapshot", TOKEN, request.run_id, True)
    fetch_run(node, TOKEN, request.run_id, tmp_path / "nothing", checkpoint=True, check=lambda: None)
    assert not (tmp_path / "nothing").exists()


class Killed(BaseException):
    """Stands for a process that dies."""


def test_killed_run_goes_on_elsewhere_from_its_fetched_checkpoint(driver, settings, node, tmp_path, monkeypatch):
    request = prepare(RunSpec.make(**settings | {"epochs": 3, "keep_epoch": "best"}), tmp_path / "local")
    local(request)
    folder = tmp_path / "fetched" / request.run_id
    reads = list_reads(request.spec, request.sources)
    sources = request.sources.at(place_reads(node, reads))
    real, saves = fine_tune.FineTuning._save, []

    def save(self):
        real(self)
        saves.append(1)
        fetch_run(node, TOKEN, request.run_id, folder, checkpoint=True, check=lambda: None)  # while it is at work
        if len(saves) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(fine_tune.FineTuning, "_save", save)
        with pytest.raises(Killed):
            node.execute(request.spec, sources)
    assert {"checkpoint/state.1-0.safetensors", "checkpoint/state.2-0.safetensors"} <= set(list_run(folder))
    assert not (folder / "record.json").exists()
    other = Node(tmp_path / "other")
    elsewhere = request.sources.at(place_reads(other, reads))
    send_run(other, TOKEN, folder)
    shutil.rmtree(tmp_path / "node")
    away(driver)
    ended = other.execute(request.spec, elsewhere)
    back(driver)
    assert ended.record.cost.resumed == 1
    fetch_run(other, TOKEN, request.run_id, folder, checkpoint=False, check=lambda: None)
    assert bits(folder) == bits(request.folder)
    assert not (folder / "checkpoint").exists()


def test_run_that_waits_after_an_epoch_goes_on_elsewhere(settings, node, tmp_path):
    request = prepare(RunSpec.make(**settings), tmp_path / "local")
    local(request)
    folder = tmp_path / "fetched" / request.run_id
    sources = request.sources.at(place_reads(node, list_reads(request.spec, request.sources)))
    assert node.execute(request.spec, sources, until=1).status == "paused"
    fetch_run(node, TOKEN, request.run_id, folder, checkpoint=False, check=lambda: None)
    assert (folder / "paused.json").exists()
    other = Node(tmp_path / "other")
    send_run(other, TOKEN, folder)
    sources = request.sources.at(place_reads(other, list_reads(request.spec, request.sources)))
    assert other.execute(request.spec, sources).record.cost.resumed == 1
    fetch_run(other, TOKEN, request.run_id, folder, checkpoint=False, check=lambda: None)
    assert bits(folder) == bits(request.folder)
    assert not (folder / "paused.json").exists()
    assert sum(path.stat().st_size > 0 for path in folder.glob("events.*")) == 1


@pytest.mark.parametrize("kind", ["fisher_from", "run", "mask"])
def test_run_that_takes_the_selection_of_others(driver, settings, node, tmp_path, kind):
    fisher = prepare(RunSpec.make(**settings | {"mode": "fisher", "mask_fraction": 0.2, "epochs": 1}), driver / "runs")
    local(fisher)
    if kind == "fisher_from":
        chosen = {"mode": "fisher", "fisher_from": (str(fisher.folder),)}
    else:
        place = fisher.folder / ("selection.safetensors" if kind == "mask" else "")
        chosen = {"mode": "custom", "select": f'{kind}("{place}") + layernorm@0'}
    request = prepare(RunSpec.make(**settings | chosen | {"epochs": 1}), tmp_path / "local")
    local(request)
    sources = request.sources.at(place_reads(node, list_reads(request.spec, request.sources)))
    away(driver)
    ended = node.execute(request.spec, sources)
    assert ended.status == "completed", ended.error
    back(driver)
    fetch_run(node, TOKEN, request.run_id, tmp_path / "fetched", checkpoint=False, check=lambda: None)
    assert bits(tmp_path / "fetched") == bits(request.folder)


@pytest.mark.parametrize("full_is_there", [True, False])
def test_run_that_compares_with_a_full_fine_tuning(driver, settings, node, tmp_path, full_is_there):
    chosen = {"mode": "custom", "select": "all:change(50, rate=1e-3, epochs=1)", "epochs": 1}
    request = prepare(RunSpec.make(**settings | chosen), driver / "runs")
    local(request)
    (full,) = request.full_runs.values()
    sources = request.sources.at(place_reads(node, list_reads(request.spec, request.sources)))
    if full_is_there:
        send_run(node, TOKEN, full.folder)
    away(driver)
    ended = node.execute(request.spec, sources)
    assert ended.status == "completed", ended.error
    back(driver)
    for made in (request, full):
        folder = tmp_path / "fetched" / made.run_id
        fetch_run(node, TOKEN, made.run_id, folder, checkpoint=False, check=lambda: None)
        assert bits(folder) == bits(made.folder)
    origins = [read_record(place / full.run_id).origin.started for place in (tmp_path / "fetched", driver / "runs")]
    assert (origins[0] == origins[1]) == full_is_there


def test_own_file_and_errors_name_what_the_sweep_calls_it(driver, settings, node, tmp_path):
    place = driver / "own.tsv"
    place.write_text("text\tlabel\n" + "good film\tyes\nbad plot\tno\nbad\tno\nfilm\tno\ngood\tyes\n" * 9)
    own = {"task": "custom", "task_type": "classification", "data_dir": str(place), "text_columns": ("text",),
           "label_column": "label", "validation_fraction": 0.3, "epochs": 1, "batch_size": 4}  # fmt: skip
    request = prepare(RunSpec.make(**settings | own), tmp_path / "local")
    local(request)
    sources = request.sources.at(place_reads(node, list_reads(request.spec, request.sources)))
    away(driver)
    assert node.execute(request.spec, sources).status == "completed"
    fetch_run(node, TOKEN, request.run_id, tmp_path / "fetched", checkpoint=False, check=lambda: None)
    assert bits(tmp_path / "fetched") == bits(request.folder)
    Path(sources.places[str(place)]).write_text("text\tlabel\n")
    node("drop_run", TOKEN, request.run_id)
    ended = node.execute(request.spec, sources)
    assert ended.status == "failed"
    assert str(place) in ended.error
    assert "node" not in ended.error


def test_names_of_places():
    with relocated({"data": "/node/1", "data/own": "/node/11", "": "/node/2"}):
        assert (here("data"), here(""), here("other")) == ("/node/1", "/node/2", "other")
        assert there("/node/11/x: bad; /node/1/y: bad; /node/2: bad") == "data/own/x: bad; data/y: bad; /node/2: bad"
    assert here("data") == "data"


# ---- parcels -------------------------------------------------------------------------------------------------------


@pytest.fixture
def parcel(tmp_path):
    folder = tmp_path / "files"
    (folder / "deep").mkdir(parents=True)
    (folder / "big").write_bytes(np.random.default_rng(0).bytes(20_000))
    (folder / "deep" / "small").write_bytes(b"x")
    (folder / "empty").touch()
    (folder / "link").symlink_to(folder / "big")
    return make_parcel(folder, [folder / "big", folder / "deep" / "small", folder / "empty", folder / "link"])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_parcel_arrives_once_as_content(parcel, node):
    folder = ship(node, parcel)
    assert contents(folder) == contents(parcel.folder)
    assert not any(path.is_symlink() for path in Path(folder).iterdir())
    assert max(len(call[4]) for call in node.calls if call[0] == "put") == 4096
    sent = node.sent()
    assert ship(node, parcel) == folder
    assert node.sent() == sent == 40_001
    (Path(folder) / "big").write_bytes(b"cut")  # a whole one comes in its place
    assert contents(ship(node, parcel)) == contents(parcel.folder)


def test_broken_shipment_goes_on_where_it_broke(parcel, node, tmp_path):
    def breaks(name, *arguments):
        if name == "close" or (name == "put" and arguments[2] == 8192):
            raise ConnectionError("the actor died")
        return node(name, *arguments)

    with pytest.raises(ConnectionError):
        ship(breaks, parcel)
    assert not (tmp_path / "node" / "parcels").exists()
    sent = node.sent()
    assert contents(ship(node, parcel)) == contents(parcel.folder)
    assert (sent, node.sent()) == (8192, 40_001)


def test_torn_part_is_sent_anew(parcel, node, tmp_path):
    opened = node("open_parcel", parcel.manifest)
    assert opened[1]["big"] == 0
    node("put", address_of(parcel.manifest), "big", 0, b"zero" * 1024)
    node("close", address_of(parcel.manifest))
    assert contents(ship(node, parcel)) == contents(parcel.folder)


def test_piece_that_is_damaged_once_is_sent_again_and_twice_is_told(parcel, node):
    def damages(times):
        left = iter(range(times))

        def call(name, *arguments):
            if name == "put" and arguments[1] == "big" and arguments[2] == 4096 and next(left, None) is not None:
                arguments = (*arguments[:3], b"\0" * 4096)
            return node(name, *arguments)

        return call

    with pytest.raises(SurroundingsError, match="big: changed while it was sent"):
        ship(damages(2), parcel)
    assert contents(ship(damages(1), parcel)) == contents(parcel.folder)


def test_two_processes_of_a_machine_ship_it_once(parcel, node, tmp_path):
    second, first_is_at_it, folders = Node(tmp_path / "node"), threading.Event(), []

    def slow(name, *arguments):
        if name == "put":
            first_is_at_it.set()
            while len([call for call in second.calls if call[0] == "open_parcel"]) < 2:
                pass
        return node(name, *arguments)

    thread = threading.Thread(target=lambda: folders.append(ship(slow, parcel)))
    thread.start()
    first_is_at_it.wait(30)
    folders.append(ship(second, parcel))
    thread.join()
    assert len(set(folders)) == 1
    assert second.sent() == 0


def test_file_that_is_gone_or_changes_is_told(parcel, node):
    (parcel.folder / "deep" / "small").write_bytes(b"y")
    with pytest.raises(SurroundingsError, match="small: changed while it was sent"):
        ship(node, parcel)
    (parcel.folder / "deep" / "small").unlink()
    with pytest.raises(UnreadableError, match="small: cannot be read now"):
        ship(node, parcel)
    with pytest.raises(UnreadableError, match="none: cannot be read now"):
        make_parcel(parcel.folder, [parcel.folder / "none"])


def refuse(monkeypatch, below, number=errno.ENOSPC):
    """A disk that is full for a folder; `fsync` is what tells."""
    real = os.fsync

    def fsync(file):
        if str(below) in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)


def test_full_disk_of_the_machine(parcel, node, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        refuse(patch, tmp_path / "node")
        with pytest.raises(UnwritableError, match=r"^[^/\n]+:/.*: the disk is full") as caught:
            ship(node, parcel)
        assert pickle.loads(pickle.dumps(caught.value)).disk_full
    assert [path.suffix for path in (tmp_path / "node" / "incoming").iterdir()] == [".lock"]
    assert contents(ship(node, parcel)) == contents(parcel.folder)


def test_disk_is_shared_only_where_it_says_the_same(parcel, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("7")
    one = Shelf(str(tmp_path / "node"))
    assert one.sees(str(tmp_path / "token"), "7")
    assert not one.sees(str(tmp_path / "token"), "8")
    assert not one.sees(str(tmp_path / "none"), "7")
    assert one.has_same(str(parcel.folder), parcel.manifest)
    call = Node(tmp_path / "node")
    assert place_reads(call, {"files": parcel}) == {"files": str(parcel.folder)}
    assert not call.sent()
    (parcel.folder / "big").write_bytes(np.random.default_rng(1).bytes(20_000))
    assert not one.has_same(str(parcel.folder), parcel.manifest)
    monkeypatch.setenv("TFMT_NODE_DIR", str(tmp_path / "own"))
    own = Shelf()
    assert own.folder_of("a", "b") == tmp_path / "own" / "runs" / "a" / "b"
    assert not own.sees(str(tmp_path / "token"), "7")


# ---- runs ----------------------------------------------------------------------------------------------------------


def write_run(folder, **files):
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / NAMES[name]).write_bytes(content)


NAMES = {
    "spec": "spec.json", "record": "record.json", "paused": "paused.json", "tuned": "tuned.safetensors",
    "events": "events.out.tfevents.1", "old_events": "events.out.tfevents.0", "note": "note.txt",
    "one": "checkpoint/state.1-0.safetensors", "two": "checkpoint/state.2-0.safetensors",
    "kept_one": "checkpoint/kept.1.safetensors", "kept_two": "checkpoint/kept.2.safetensors",
}  # fmt: skip
BEFORE = {"spec": b"spec", "one": b"1" * 9000, "kept_one": b"k1", "note": b"mine", "old_events": b"e0"}
AFTER = {"spec": b"spec", "one": b"1" * 9000, "two": b"2" * 9000, "kept_one": b"k1", "kept_two": b"k2"}
LATER = {"spec": b"spec", "two": b"2" * 9000, "kept_two": b"k2"}
ENDED = {"spec": b"spec", "record": b"r" * 5000, "tuned": b"t" * 9000, "events": b"e1"}


def named(files):
    return {NAMES[name]: content for name, content in files.items()}


def fetch(node, folder, *, checkpoint, check=lambda: None):
    fetch_run(node, TOKEN, "run", folder, checkpoint=checkpoint, check=check)


def dies_after(checks):
    """A check of the lease that lets so many writes pass."""
    left = iter(range(checks))

    def check():
        if next(left, None) is None:
            raise TakenError("killed")

    return check


@pytest.mark.parametrize("after", [AFTER, LATER])
def test_kill_while_a_checkpoint_comes_leaves_one_that_is_whole(node, tmp_path, after):
    write_run(node.shelf.folder_of(TOKEN, "run"), **after, events=b"e1")
    for checks in range(100):
        folder = tmp_path / f"run{checks}"
        write_run(folder, **BEFORE)
        check = dies_after(checks)
        try:
            fetch(node, folder, checkpoint=True, check=check)
            break
        except TakenError:
            found = {name: content for name, content in contents(folder).items() if "/.tmp" not in f"/{name}"}
            assert set(named(BEFORE)) <= set(found) or set(named(after)) <= set(found)
            for state, kept in (("one", "kept_one"), ("two", "kept_two")):
                assert NAMES[state] not in found or NAMES[kept] in found
    assert checks > 4
    assert contents(folder) == named(after | {"note": b"mine", "old_events": b"e0"})


def test_record_comes_last_and_the_checkpoint_goes_behind_it(node, tmp_path):
    write_run(node.shelf.folder_of(TOKEN, "run"), **ENDED)
    for checks in range(100):
        folder = tmp_path / f"run{checks}"
        write_run(folder, **BEFORE)
        check = dies_after(checks)
        try:
            fetch(node, folder, checkpoint=False, check=check)
            break
        except TakenError:
            found = contents(folder)
            whole = {"record", "tuned", "events"} if NAMES["record"] in found else {"one", "kept_one"}
            assert {NAMES[name] for name in whole} <= set(found)
    assert checks > 4
    assert contents(folder) == named(ENDED | {"note": b"mine"})
    assert not (folder / "checkpoint").exists()


def test_run_that_has_not_ended_takes_nothing_away(node, tmp_path):
    write_run(node.shelf.folder_of(TOKEN, "run"), spec=b"spec")
    write_run(tmp_path / "run", **BEFORE)
    for checkpoint in (True, False):
        fetch(node, tmp_path / "run", checkpoint=checkpoint)
        assert contents(tmp_path / "run") == named(BEFORE)


def test_sent_run_replaces_what_the_machine_had(node, tmp_path):
    write_run(node.shelf.folder_of(TOKEN, "run"), **ENDED)
    write_run(tmp_path / "run", **BEFORE)
    (tmp_path / "run" / "lease.3").touch()
    (tmp_path / "run" / ".spec.json.7").touch()
    send_run(node, TOKEN, tmp_path / "run")
    expected = {name: content for name, content in BEFORE.items() if name != "note"}
    assert contents(node.shelf.folder_of(TOKEN, "run")) == named(expected)
    sent = node.sent()
    send_run(node, TOKEN, tmp_path / "run")  # is there
    assert node.sent() == sent > 9000
    (tmp_path / "run" / NAMES["one"]).write_bytes(b"2" * 9000)
    send_run(node, TOKEN, tmp_path / "run")
    assert contents(node.shelf.folder_of(TOKEN, "run")) == named(expected | {"one": b"2" * 9000})
    send_run(node, TOKEN, tmp_path / "none" / "run")
    assert contents(node.shelf.folder_of(TOKEN, "run")) == {}
    assert [path.name for path in node.shelf.folder_of(TOKEN, "run").parent.iterdir()] == ["run"]


def test_run_that_two_send_at_once_travels_once(node, tmp_path):
    write_run(tmp_path / "run", **ENDED)
    second, first_is_at_it = Node(tmp_path / "node"), threading.Event()

    def slow(name, *arguments):
        if name == "put":
            first_is_at_it.set()
            while len([call for call in second.calls if call[0] == "open_run"]) < 2:
                pass
        return node(name, *arguments)

    thread = threading.Thread(target=lambda: send_run(slow, TOKEN, tmp_path / "run"))
    thread.start()
    first_is_at_it.wait(30)
    send_run(second, TOKEN, tmp_path / "run")
    thread.join()
    assert second.sent() == 0
    assert contents(node.shelf.folder_of(TOKEN, "run")) == named(ENDED)


def test_checkpoint_that_changes_while_it_is_held_is_held_anew(node, tmp_path, monkeypatch):
    run = node.shelf.folder_of(TOKEN, "run")
    write_run(run, **BEFORE)
    real, steps = shelf._link, iter(["vanish", "come"])

    def link(path, target):
        step = next(steps, None)
        if step == "vanish":  # the run's process clears what it no longer needs
            (run / NAMES["one"]).unlink()
            (run / NAMES["kept_one"]).unlink()
            write_run(run, two=b"2", kept_two=b"k2")
        elif step == "come":
            write_run(run, kept_one=b"k1")
        real(path, target)

    monkeypatch.setattr(shelf, "_link", link)
    fetch(node, tmp_path / "run", checkpoint=True)
    assert contents(tmp_path / "run") == named({"spec": b"spec", "two": b"2", "kept_two": b"k2", "kept_one": b"k1"})
    assert not list(run.parent.glob(".held.*"))
    monkeypatch.setattr(shelf, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(shelf, "list_run", lambda *_, **__: [NAMES["spec"], "gone"])
    with pytest.raises(SurroundingsError, match="changes faster than it can be read"):
        node("snapshot", TOKEN, "run", True)


def test_file_that_comes_damaged(node, tmp_path):
    write_run(node.shelf.folder_of(TOKEN, "run"), **AFTER)
    write_run(tmp_path / "run", **BEFORE)

    def damages(times):
        left = iter(range(times))

        def call(name, *arguments):
            answer = node(name, *arguments)
            hit = name == "read" and arguments[2] == NAMES["two"] and arguments[3] and next(left, None) is not None
            return b"\0" + answer[1:] if hit else answer

        return call

    with pytest.raises(SurroundingsError, match=r"state\.2-0\.safetensors: did not come undamaged"):
        fetch(damages(4), tmp_path / "run", checkpoint=True)
    assert contents(tmp_path / "run") == named(BEFORE)
    fetch(damages(1), tmp_path / "run", checkpoint=True)
    assert (tmp_path / "run" / NAMES["two"]).read_bytes() == AFTER["two"]


def test_full_disk_of_the_sweep(node, tmp_path, monkeypatch):
    write_run(node.shelf.folder_of(TOKEN, "run"), **AFTER)
    write_run(tmp_path / "sweep" / "run", **BEFORE)
    refuse(monkeypatch, tmp_path / "sweep")
    with pytest.raises(UnwritableError, match=r"run/checkpoint/\w+\.2\S*\.safetensors: the disk is full"):
        fetch(node, tmp_path / "sweep" / "run", checkpoint=True)
    assert contents(tmp_path / "sweep" / "run") == named(BEFORE)
    assert not list((tmp_path / "node" / "runs" / TOKEN).glob(".held.*"))
