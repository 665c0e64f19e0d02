"""How a sweep stands, told by its folder; and cleaning, which takes what was told and nothing else."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tfmt import sweep
from tfmt.runs import lease
from tfmt.runs.folder import CHECKPOINT
from tfmt.runs.lease import Lease
from tfmt.runs.records import find_records
from tfmt.study import status
from tfmt.training import fine_tune
from tfmt.training.workbench import Workbench

GRID = {"task": "mrpc", "mode": "frozen,layernorm", "learning_rate": "1e-3", "seed": "0,1"}


@pytest.fixture(scope="module")
def shared(toy_bert, toy_glue):
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "max_length": 32, "epochs": 2}


def flags_of(shared, folder, **changes):
    settings = shared | GRID | {"workers": 0, "output_dir": str(folder)} | changes
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture
def ask(shared, tmp_path, capsys, monkeypatch):
    """The lines that the command prints, by their first word; those that are indented go with the one before."""

    monkeypatch.setenv("COLUMNS", "200")  # a terminal that is narrow has what is told of a run below its name

    def ask(*switches, **changes):
        capsys.readouterr()
        assert sweep.main([*flags_of(shared, tmp_path, **changes), *(switches or ["--status"])]) == 0
        told, name = {}, ""
        for line in capsys.readouterr().out.splitlines():
            name = line[:10].strip() or name
            told.setdefault(name, []).append(line[10:])
        return told

    return ask


def contents(folder):
    """Path to (time, bytes) of every file and folder below one."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def numbers(folder):
    """What must be the same in two sweeps of one grid, by run."""
    found = {}
    for record in find_records(folder)[0]:
        epochs = [(epoch.train_loss, epoch.metrics) for epoch in record.result.epochs]
        found[record.run_id] = epochs, (folder / record.run_id / "tuned.safetensors").read_bytes()
    return found


class Killed(BaseException):
    """Stands for a process that dies."""


def die_in_epoch_two(monkeypatch, run=2):
    """The process dies in the second epoch of its `run`-th run, and nothing that it would do at its end is done."""
    real, calls = Workbench.train_step, iter(range(1, 1000))
    monkeypatch.setattr(Lease, "__exit__", lambda self, *_: self._ended.set())

    def step(self, batch):
        if next(calls) == 6 * (run - 1) + 5:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(Workbench, "train_step", step)


def test_states_of_a_sweep_that_was_killed_and_of_another_in_its_folder(shared, tmp_path, ask, monkeypatch):
    assert sweep.main(flags_of(shared, tmp_path, mode="bitfit", seed="0")) == 0
    with monkeypatch.context() as patched:
        die_in_epoch_two(patched)
        with pytest.raises(Killed):
            sweep.main(flags_of(shared, tmp_path))
    (held,) = tmp_path.glob("*/checkpoint/state.1-0.safetensors")
    told = ask()  # this process still lives, and so does its lease
    assert told["running"][0] == "1"
    assert re.fullmatch(
        rf"{held.parent.parent.name}  epoch 2/2 on .+, process {os.getpid()}, last sign \d s ago", told["running"][1]
    )
    assert [told[name][0].split()[0] for name in ("runs", "failed", "not begun", "others")] == ["4", "0", "2", "1"]
    for path in tmp_path.glob("*/lease.*"):  # its process is gone
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": 2**22 + 1}))
    told = ask()
    assert (told["running"], told["begun"][0].split()[0]) == (["0"], "1")


def test_disk_is_what_a_walk_finds_and_nothing_is_written(shared, tmp_path, ask, monkeypatch):
    with monkeypatch.context() as patched:
        die_in_epoch_two(patched)
        with pytest.raises(Killed):
            sweep.main(flags_of(shared, tmp_path))
    for path in tmp_path.glob("*/lease.*"):
        path.write_text(json.dumps({"released": True}))
    (tmp_path / "scores" / "ab").mkdir(parents=True)
    (tmp_path / "scores" / "ab" / "scores.safetensors").write_bytes(b"x" * 1234)
    before = contents(tmp_path)
    ask()
    assert contents(tmp_path) == before
    sizes = {name: len(content) for name, (_, content) in before.items()}
    files = sum(os.path.isfile(tmp_path / name) for name in before)
    disk = status._measure(tmp_path)
    assert (disk.files, disk.total, disk.scores) == (files, sum(sizes.values()), 1234)
    assert disk.checkpoints == sum(size for name, size in sizes.items() if f"/{CHECKPOINT}/" in name) > 0
    assert disk.tuned == sum(size for name, size in sizes.items() if name.endswith("/tuned.safetensors")) > 0


def test_folder_to_look_at_only_is_not_written_and_a_probe_is_removed(shared, tmp_path, ask, monkeypatch):
    assert sweep.main(flags_of(shared, tmp_path, mode="frozen", seed="0")) == 0
    (folder,) = tmp_path.iterdir()
    (folder / "record.json").rename(folder / "record.away")
    touched, real = [], lease.Path.touch

    def touch(path, *arguments, **more):
        touched.append(path)
        return real(path, *arguments, **more)

    monkeypatch.setattr(lease.Path, "touch", touch)
    with Lease(folder):
        before = set(os.listdir(folder))
        touched.clear()
        assert ask()["running"][0] == "1"
        assert [path.parent for path in touched] == [tmp_path]  # one probe for all, beside the runs' folders
        assert set(os.listdir(folder)) == before
        assert os.listdir(tmp_path) == [folder.name]

        def refuse(path, *_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(lease.Path, "touch", refuse)
        assert ask()["running"][0] == "1"


def test_failed_runs_have_their_reasons_and_damaged_files_are_named(shared, tmp_path, ask, monkeypatch):
    def run(self):
        raise FloatingPointError(f"no number {self.spec.seed}\nat all")

    with monkeypatch.context() as patched:
        patched.setattr(fine_tune.FineTuning, "run", run)
        assert sweep.main(flags_of(shared, tmp_path, mode="frozen")) == 1
    told = ask()
    assert told["failed"][0] == "2 (--retry_failed: again)"
    assert [line.split("  ")[1] for line in told["failed"][1:]] == [
        "FloatingPointError: no number 0", "FloatingPointError: no number 1",
    ]  # fmt: skip
    damaged = sorted(tmp_path.glob("*/record.json"))[0]
    damaged.write_bytes(damaged.read_bytes()[:200])
    told = ask()
    assert told["failed"][0].startswith("2")
    assert told["unread"][0] == "1 file"
    assert told["unread"][1].startswith(f"{damaged}: broken record")
    monkeypatch.setattr(status, "_MOST_LISTED", 1)
    assert ask()["failed"][-1] == "and 1 more"


def test_paused_and_stopped_runs_and_their_checkpoints(shared, tmp_path, ask, monkeypatch):
    grid = {"mode": "layernorm", "learning_rate": "1e-4,1e-3,1e-2", "seed": "0,1", "epochs": 5, "search": "halving"}
    flags = flags_of(shared, tmp_path, **grid)
    with monkeypatch.context() as patched:
        real, calls = fine_tune.FineTuning.run, iter(range(100))

        def run(self):
            if next(calls) == 2:
                raise Killed
            return real(self)

        patched.setattr(fine_tune.FineTuning, "run", run)
        with pytest.raises(Killed):
            sweep.main(flags)
    assert ask(**grid)["paused"][0].startswith("2 (wait for what others show, --search=halving)")
    assert ask("--clean", **grid)["removed"] == ["0 files, 0 bytes"]  # all go on
    monkeypatch.setattr("tfmt.study.sweep.drop_paused", lambda folder: False)  # as if the sweep had died before
    assert sweep.main(flags) == 0
    told = ask(**grid)
    stopped = int(told["stopped"][0].split()[0])
    assert stopped >= 1
    left = [path for path in tmp_path.glob("*/checkpoint/*") if not (path.parent.parent / "record.json").exists()]
    assert left
    assert told["clean"][0].startswith(f"{len(left)} files, ")
    assert ask("--clean", **grid)["removed"][0].startswith(f"{len(left)} files, ")
    assert not any(path.exists() for path in left)
    assert len(list(tmp_path.glob("*/paused.json"))) == stopped


def test_clean_takes_what_status_lists_and_the_sweep_goes_on_to_the_same_bits(shared, tmp_path, ask, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "runs"
    assert sweep.main(flags_of(shared, whole)) == 0
    with monkeypatch.context() as patched:
        die_in_epoch_two(patched)
        with pytest.raises(Killed):
            sweep.main(flags_of(shared, folder))
    for path in folder.glob("*/lease.*"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": 2**22 + 1}))
    ended = next(folder.glob("*/record.json")).parent
    begun = next(folder.glob("*/checkpoint")).parent
    (ended / CHECKPOINT).mkdir(exist_ok=True)
    waste = [
        ended / CHECKPOINT / "state.2-0.safetensors",
        ended / "paused.json",
        ended / ".tuned.safetensors.7.0a1b2c3d",
        begun / CHECKPOINT / ".state.2-0.safetensors.7.0a1b2c3d",
        folder / ".probe.7",
        folder / ".clock.7.0a1b2c3d",
    ]
    kept = [ended / ".record.json.swp", ended / "notes.txt", folder / ".probe.8", folder / ".tmp-mine"]
    for path in (*waste, *kept):
        path.write_bytes(b"x" * 10)
    for path in waste[-2:]:
        os.utime(path, (0, 0))
    leases = list(ended.glob("lease.*"))
    listed = ask(output_dir=folder)["clean"]
    before = set(contents(folder))
    assert listed[0].startswith(f"{len(waste) + len(leases)} files, ")
    told = ask("--clean", output_dir=folder)
    assert listed[0].startswith(told["removed"][0] + ",")
    gone = before - set(contents(folder))
    names = {str(path.relative_to(folder)) for path in [*waste, *leases, ended / CHECKPOINT]}
    assert {name for name in gone if "lease." not in name or ended.name in name} == names
    assert told["clean"][0] == "nothing to remove"
    assert all(path.exists() for path in kept)
    assert sweep.main(flags_of(shared, folder)) == 0
    assert numbers(folder) == numbers(whole)
    assert len(numbers(whole)) == 4


def test_frozen_sweep_is_held_and_left_alone(shared, tmp_path, ask, monkeypatch):
    command = [sys.executable, "-m", "tfmt.sweep", *flags_of(shared, tmp_path, mode="layernorm", seed="0", epochs=400)]
    other = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        grid = {"mode": "layernorm", "seed": "0", "epochs": 400}
        while not list(tmp_path.glob("*/checkpoint/state.*")) and other.poll() is None:
            time.sleep(0.05)
        other.send_signal(signal.SIGSTOP)
        assert ask(**grid)["running"][0] == "1"
        monkeypatch.setattr(lease, "SILENT_SECONDS", -1.0)
        (folder,) = (path.parent for path in tmp_path.glob("*/spec.json"))
        (folder / ".tuned.safetensors.7.0a1b2c3d").touch()
        before = contents(folder)
        told = ask("--clean", **grid)
        assert told["removed"] == ["0 files, 0 bytes"]
        assert told["held"][0].startswith("1 ")
        assert re.search(
            rf"epoch \d+/400 on .+, process {other.pid}, silent for \d+ s, free in \d+ (s|min)", told["held"][1]
        )
        assert contents(folder) == before
    finally:
        other.kill()
        other.wait()
    assert ask(**grid)["begun"][0].startswith("1 ")


@pytest.mark.parametrize("switches", [["--status", "--dry_run"], ["--clean", "--dry_run"], ["--status"]])
def test_refused(shared, tmp_path, switches, capsys):
    assert sweep.main([*flags_of(shared, tmp_path / "nowhere"), *switches]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("--dry_run" if len(switches) > 1 else "--output_dir=") in error


def test_unions_of_a_grid_are_found_by_the_masks_that_they_unite(shared, toy_glue, tmp_path, ask):
    data, runs = tmp_path / "data", tmp_path / "runs"
    shutil.copytree(toy_glue, data)
    (data / "RTE").mkdir()
    for name in ("train", "dev"):
        rows = [line.split("\t") for line in (data / "MRPC" / f"{name}.tsv").read_text().splitlines()[1:]]
        lines = [f"{i}\t{b}\t{a}\t{('entailment', 'not_entailment')[i % 2]}" for i, (*_, a, b) in enumerate(rows)]
        (data / "RTE" / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
    grid = {"data_dir": data, "task": "mrpc,rte", "mode": "fisher", "mask_fraction": "0.25", "seed": "0", "epochs": 1,
            "learning_rate": "1e-2", "fisher_examples": 16, "fisher_union": "held_out", "output_dir": runs}  # fmt: skip
    assert sweep.main(flags_of(shared, runs, **grid)) == 0
    told = ask(**grid)
    assert (told["runs"], told["done"], "others" in told) == (["4"], ["4"], False)
    assert "others" in ask(**grid | {"fisher_union": "none"})


def test_long_lines_break_behind_the_names():
    rows = [("a" * 30, "b" * 40), ("c", "d")]
    assert [len(line) for line in status._list(rows, 82)] == [82, 43]
    assert [line.strip() for line in status._list(rows, 81)] == ["a" * 30, "b" * 40, "c", "d"]


def test_needs_no_tensorflow(shared, tmp_path):
    code = ("import sys; from tfmt import sweep; sweep.main(sys.argv[1:]); "
            "assert 'tensorflow' not in sys.modules")  # fmt: skip
    flags = flags_of(shared, tmp_path)
    subprocess.run([sys.executable, "-c", code, *flags, "--clean"], capture_output=True, check=True)
