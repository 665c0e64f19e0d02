"""Sweeps over a toy BERT: every run once, whatever fails, dies, or is run by two at a time."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tfmt import files, signals, sweep
from tfmt.runs.lease import is_held
from tfmt.runs.records import find_records
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.study import board, pool, worker
from tfmt.study import sweep as study_sweep
from tfmt.study.places import Place, share_places
from tfmt.study.sweep import Item, choose
from tfmt.study.times import Times, format_seconds
from tfmt.study.worker import Executor
from tfmt.training import fine_tune
from tfmt.training.workbench import Workbench

GRID = {"task": "mrpc", "mode": "frozen,layernorm", "learning_rate": "1e-2,1e-3", "seed": "0,1"}


@pytest.fixture(scope="module")
def shared(toy_bert, toy_glue):
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "max_length": 32, "epochs": 2}


def flags_of(shared, folder, **changes):
    settings = shared | GRID | {"workers": 0, "output_dir": str(folder)} | changes
    return [f"--{name}={value}" for name, value in settings.items()]


def numbers(folder):
    """What must be the same in two sweeps of one grid, by run."""
    found = {}
    for record in find_records(folder)[0]:
        result = record.result
        epochs = result and [(epoch.train_loss, epoch.metrics) for epoch in result.epochs]
        found[record.run_id] = record.status, epochs, result and result.predicted, record.proof
    return found


@pytest.fixture(scope="module")
def untouched_folder(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untouched")
    assert sweep.main(flags_of(shared, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def untouched(untouched_folder):
    return numbers(untouched_folder)


class Killed(BaseException):
    """Stands for a process that dies."""


def test_runs_every_run_once_and_then_none(shared, untouched, tmp_path, capsys, monkeypatch):
    assert len(untouched) == 8
    assert {status for status, *_ in untouched.values()} == {"completed"}
    with monkeypatch.context() as patched:
        patched.setattr(board, "_PLAIN_SECONDS", -1.0)
        assert sweep.main(flags_of(shared, tmp_path)) == 0
    first = capsys.readouterr()
    told = [line for line in first.err.splitlines() if line.startswith("0/8 done, 0 failed, 1 running")]
    assert "left" not in told[0]
    judged = next(line for line in told if "left" in line)  # with the first epoch, and not with the first run
    assert re.search(r"; mrpc (frozen|layernorm) 0\.01 seed 0: epoch 1/2 loss \d\.\d\d$", judged)
    assert "8 completed" in first.out
    assert "best      mrpc layernorm: f1" in first.out
    assert not list(tmp_path.glob("*/lease*"))
    for folder in tmp_path.iterdir():  # what TensorBoard's HParams tab reads
        plugin = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
        content = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"]).session_start_info
        assert content.group_name
        assert folder.name.startswith(f"mrpc-{content.hparams['mode'].string_value}-")
        ended = HParamsPluginData.FromString(plugin["_hparams_/session_end_info"]).session_end_info
        assert ended.status == STATUS_SUCCESS
    monkeypatch.setattr(worker, "make_bench", None)  # nothing is loaded again
    assert sweep.main(flags_of(shared, tmp_path)) == 0
    assert "8 of them before" in capsys.readouterr().out
    assert numbers(tmp_path) == untouched


def test_warm_is_cold(shared, untouched, untouched_folder, tmp_path):
    for mode, seed in (("layernorm", 1), ("frozen", 1)):
        spec = RunSpec.make(**shared | {"task": "mrpc", "mode": mode, "learning_rate": 1e-3, "seed": seed})
        request = prepare(spec, tmp_path)
        execute(request, make_bench(request), started=0.0, quiet=True)
    alone = numbers(tmp_path)
    assert alone == {run: untouched[run] for run in alone}
    for run in alone:  # the weights, too
        warm, cold = (folder / run / "tuned.safetensors" for folder in (untouched_folder, tmp_path))
        assert warm.read_bytes() == cold.read_bytes()


def test_killed_five_times_and_restarted(shared, untouched, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tune, "CHECKPOINT_SECONDS", 0.0)
    real = files.os.fsync
    for writes in (2, 7, 11, 5, 9):
        left = iter(range(writes))

        def fsync(number, left=left):
            if next(left, None) is None:
                raise Killed
            real(number)

        monkeypatch.setattr(files.os, "fsync", fsync)
        with pytest.raises(Killed):
            sweep.main(flags_of(shared, tmp_path))
    monkeypatch.setattr(files.os, "fsync", real)
    assert sweep.main(flags_of(shared, tmp_path)) == 0
    assert numbers(tmp_path) == untouched


def test_sweep_that_a_signal_stops_goes_on_with_the_same_command(shared, untouched, tmp_path, monkeypatch, capsys):
    ended_by, real, calls = [], Workbench.train_step, iter(range(1, 1000))

    def step(self, batch):
        if next(calls) in (8, 9):  # of the second run; whoever passes signals on sends one twice
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    monkeypatch.setattr(Workbench, "train_step", step)
    monkeypatch.setattr(signals, "end_by", ended_by.append)
    with signals.heeded():
        assert sweep.main(flags_of(shared, tmp_path)) == 1
    assert ended_by == [signal.SIGTERM]
    said = capsys.readouterr()
    name = next(tmp_path.glob("*/checkpoint/state.*")).parent.parent.name
    assert said.err.splitlines()[-1] == (
        f"tfmt-sweep: stopped by SIGTERM; {name}: checkpoint written at step 2 of 3 in epoch 1; "
        "the same command goes on"
    )
    assert "runs      8: 1 completed" in said.out
    monkeypatch.undo()
    assert sweep.main(flags_of(shared, tmp_path)) == 0
    assert numbers(tmp_path) == untouched


def test_failed_run_is_recorded_and_the_rest_goes_on(shared, untouched, tmp_path, monkeypatch, capsys):
    real = fine_tune.FineTuning.run

    def run(self):
        if self.spec.mode == "frozen" and self.spec.seed == 1:
            raise FloatingPointError("no number\nat all")
        return real(self)

    monkeypatch.setattr(fine_tune.FineTuning, "run", run)
    assert sweep.main(flags_of(shared, tmp_path)) == 1
    errors = capsys.readouterr().err
    assert errors.count("FloatingPointError: no number") == 2
    assert "at all" not in errors
    found = numbers(tmp_path)
    assert sorted(status for status, *_ in found.values()) == ["completed"] * 6 + ["failed"] * 2
    monkeypatch.setattr(fine_tune.FineTuning, "run", real)
    assert sweep.main(flags_of(shared, tmp_path)) == 1  # failed stays failed
    assert sweep.main(flags_of(shared, tmp_path, retry_failed="true")) == 0
    assert numbers(tmp_path) == untouched


def test_damaged_record_is_named_and_the_rest_goes_on(shared, untouched, tmp_path, capsys):
    flags = flags_of(shared, tmp_path, seed="0", learning_rate="1e-3")
    assert sweep.main(flags_of(shared, tmp_path, mode="frozen", seed="0", learning_rate="1e-3")) == 0
    (damaged,) = tmp_path.glob("*/record.json")
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert sweep.main(flags) == 1
    assert f"{damaged}: broken record" in capsys.readouterr().err
    damaged.unlink()
    assert sweep.main(flags) == 0
    found = numbers(tmp_path)
    assert found == {run: untouched[run] for run in found}
    assert len(found) == 2


def test_disk_that_is_full_from_the_first_file_on_stops_the_sweep(shared, tmp_path, monkeypatch, capsys):
    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    assert sweep.main(flags_of(shared, tmp_path)) == 1
    errors = capsys.readouterr().err
    assert "spec.json: the disk is full" in errors
    assert not list(tmp_path.glob("*/record.json"))


def test_more_replicas_than_a_worker_has_gpus_is_refused(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_sweep, "visible_gpus", lambda: ("0", "1", "2"))
    assert sweep.main(flags_of(shared, tmp_path, replicas=2, workers=3)) == 2
    assert "--replicas=2: with --workers=3 a worker has 1 GPU;" in capsys.readouterr().err


def test_diverged_run_is_a_result(shared, tmp_path, capsys):
    flags = flags_of(shared, tmp_path, mode="layernorm", learning_rate="1e38,1e-3", seed="0")
    assert sweep.main(flags) == 0
    assert "1 diverged (their loss is no number any more: results, no failures)" in capsys.readouterr().out
    assert sweep.main(flags) == 0


def test_full_disk_stops_and_the_same_command_goes_on(shared, untouched, tmp_path, monkeypatch, capsys):
    real = files.os.fsync
    left = iter(range(10))

    def fsync(number):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(files.os, "fsync", fsync)
    assert sweep.main(flags_of(shared, tmp_path)) == 1
    assert "disk is full" in capsys.readouterr().err
    monkeypatch.setattr(files.os, "fsync", real)
    assert sweep.main(flags_of(shared, tmp_path)) == 0
    assert numbers(tmp_path) == untouched


@pytest.mark.parametrize("changes", [
    {"mode": "lora"}, {"seed": "x"}, {"max_length": 999}, {"data_dir": "/nowhere"}, {"layers": "7"},
    {"output_dir": "/proc/none"}, {"workers": -1},
])  # fmt: skip
def test_wrong_request_runs_nothing(shared, tmp_path, changes, capsys):
    assert sweep.main(flags_of(shared, tmp_path, **changes)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.glob("*/record.json"))


def test_two_sweeps_at_once_run_every_run_once(shared, untouched, tmp_path, capsys, impatient_sweep):
    command = [*impatient_sweep, *flags_of(shared, tmp_path), "--verbosity=1"]
    other = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    status = []
    while not list(tmp_path.glob("*/lease.*")) and other.poll() is None:
        time.sleep(0.02)
    thread = threading.Thread(target=lambda: status.append(sweep.main([*flags_of(shared, tmp_path), "-v=1"])))
    thread.start()
    thread.join(120)
    _, errors = other.communicate(timeout=120)
    assert (status, other.returncode) == ([0], 0), errors
    assert numbers(tmp_path) == untouched
    told = errors + capsys.readouterr().err  # a line for each run that a sweep has executed itself
    assert sum(line.endswith(": completed") for line in told.splitlines()) == len(untouched)


def test_killed_worker_is_replaced_and_its_run_resumed(shared, tmp_path, monkeypatch, capsys):
    # Long enough to be hit between its first checkpoint and its end.
    flags = flags_of(shared, tmp_path, mode="layernorm", learning_rate="1e-3", seed="0,1", epochs=40, workers=2)
    monkeypatch.setattr(board, "_PLAIN_SECONDS", -1.0)
    killed = []

    def kill():
        while not killed:
            for path in tmp_path.glob("*/checkpoint/state.*.safetensors"):
                for lease in path.parent.parent.glob("lease.*"):
                    os.kill(owner_pid(lease), signal.SIGKILL)
                    killed.append(path.parent.parent.name)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    assert sweep.main(flags) == 0
    assert killed
    # Where they stand comes through the pipes, and with it how long they will take, before either has ended.
    told = capsys.readouterr().err
    assert re.search(r"0/2 done.* left; .*mrpc layernorm 0\.001 seed \d: epoch \d+/40 loss \d", told)
    records = {record.run_id: record for record in find_records(tmp_path)[0]}
    assert [record.status for record in records.values()] == ["completed"] * 2
    assert records[killed[0]].cost.resumed == 1
    assert {record.cost.threads for record in records.values()} == {max(1, len(os.sched_getaffinity(0)) // 2)}


def owner_pid(lease):
    return json.loads(lease.read_text())["pid"]


def work_and_break(*arguments):
    """The body of a worker process whose TensorFlow breaks in the first run of a head alone, and with it all later."""
    real, broken = Workbench.train_step, []

    def step(self, batch):
        if broken or self.selection.tuned == 0:
            broken.append(True)
            raise tf.errors.InternalError(None, None, "CUDA error: an illegal memory access was encountered")
        return real(self, batch)

    Workbench.train_step = step
    worker.work(*arguments)


def test_worker_that_met_something_unexpected_is_replaced(shared, untouched, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "work", work_and_break)
    # The worker finds this file by its name, tests.study.test_sweep; last, so that it takes no tfmt from there.
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    flags = flags_of(shared, tmp_path, mode="frozen,layernorm", learning_rate="1e-3", seed="0", workers=1)
    assert sweep.main(flags) == 1
    told = sorted((record.spec.mode, record.status, record.error) for record in find_records(tmp_path)[0])
    met = "InternalError: CUDA error: an illegal memory access was encountered, in two processes of its own"
    assert told == [("frozen", "failed", met), ("layernorm", "completed", None)]
    found = {run: told for run, told in numbers(tmp_path).items() if told[0] == "completed"}
    assert found == {run: untouched[run] for run in found}


def test_three_unexpected_failures_in_a_row_stop_the_sweep(shared, untouched, tmp_path, monkeypatch, capsys):
    real, benches = Workbench.train_step, []

    def step(self, batch):
        benches.append(self)
        raise tf.errors.InternalError(None, None, "CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Workbench, "train_step", step)
    assert sweep.main(flags_of(shared, tmp_path, mode="frozen", seed="0,1,2")) == 1
    said = capsys.readouterr()
    assert "3 runs in a row met what no run should" in said.err
    assert "illegal memory access" in said.err.splitlines()[-1]
    assert "left as before: 6 runs" in said.err
    assert "none done, 3 left without a record (the same command tries again)" in said.out
    assert not find_records(tmp_path)[0]
    assert not any(map(is_held, tmp_path.iterdir()))
    assert len(list(tmp_path.glob("*/spec.json"))) == 3
    assert len(set(map(id, benches))) == 3  # a workbench of its own for each
    monkeypatch.setattr(Workbench, "train_step", real)
    assert sweep.main(flags_of(shared, tmp_path, mode="frozen")) == 0
    found = {run: told for run, told in numbers(tmp_path).items() if run in untouched}
    assert found == {run: untouched[run] for run in found}
    assert len(found) == 4


def test_unexpected_failures_between_successes_do_not_stop_a_sweep(shared, tmp_path, monkeypatch):
    real, calls = fine_tune.FineTuning.run, iter(range(100))

    def run(self):
        if next(calls) % 3 != 2:
            raise MemoryError("no room")
        return real(self)

    monkeypatch.setattr(fine_tune.FineTuning, "run", run)
    assert sweep.main(flags_of(shared, tmp_path, seed="0,1,2", mode="frozen", epochs=1)) == 1
    assert [record.status for record in find_records(tmp_path)[0]] == ["completed"] * 2


def test_numbers_that_are_not_finite_are_the_runs_own_fault_and_stop_no_sweep(shared, tmp_path, monkeypatch):
    def run(self):
        raise FloatingPointError("the Fisher information is not finite")

    monkeypatch.setattr(fine_tune.FineTuning, "run", run)
    assert sweep.main(flags_of(shared, tmp_path, seed="0,1,2,3", mode="frozen", learning_rate="1e-3")) == 1
    told = {(record.status, record.error) for record in find_records(tmp_path)[0]}
    assert told == {("failed", "FloatingPointError: the Fisher information is not finite")}
    assert len(find_records(tmp_path)[0]) == 4


def test_bench_is_dropped_after_a_run_whose_proof_failed(shared, untouched, untouched_folder, tmp_path, monkeypatch):
    real = Workbench.train_step

    def meddle(self, batch):
        variable = self.model.all_weights["bert/encoder/layer_._0/intermediate/dense/kernel"]
        variable.assign_add(np.full(variable.shape, 1e-2, np.float32))
        return real(self, batch)

    executor = Executor(tmp_path)
    specs = [RunSpec.make(**shared, task="mrpc", mode="layernorm", learning_rate=1e-3, seed=seed) for seed in (0, 1)]
    monkeypatch.setattr(Workbench, "train_step", meddle)
    first = executor.execute(specs[0])
    assert (first.status, first.unexpected) == ("failed", False)
    assert "512 weights outside the selection changed" in first.error
    monkeypatch.setattr(Workbench, "train_step", real)
    assert executor.execute(specs[1]).status == "completed"
    (run,) = (run for run, told in numbers(tmp_path).items() if told[0] == "completed")
    assert numbers(tmp_path)[run] == untouched[run]
    after, cold = (folder / run / "tuned.safetensors" for folder in (tmp_path, untouched_folder))
    assert after.read_bytes() == cold.read_bytes()


def test_runs_kept_whole_serve_where_scores_are_asked_for_and_not_the_other_way_round(
    shared, untouched, tmp_path, capsys, monkeypatch
):
    few = {"mode": "frozen", "learning_rate": "1e-3"}
    assert sweep.main(flags_of(shared, tmp_path / "whole", **few)) == 0
    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(worker, "make_bench", None)
        assert sweep.main(flags_of(shared, tmp_path / "whole", **few, keep="scores")) == 0
    assert "2 completed (2 of them before)" in capsys.readouterr().out
    assert len(list(tmp_path.glob("whole/*/tuned.safetensors"))) == 2

    assert sweep.main(flags_of(shared, tmp_path / "scores", **few, keep="scores")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "scores").glob("*/record.json")}
    assert set(numbers(tmp_path / "scores")) == set(numbers(tmp_path / "whole")) <= set(untouched)
    capsys.readouterr()
    more = few | {"mode": "frozen,layernorm"}
    assert sweep.main(flags_of(shared, tmp_path / "scores", **more, retry_failed="true")) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    for word in ("--keep=tuned", "--keep=scores", "--output_dir", "delete", "1 other run"):
        assert word in told
    assert {path: path.read_bytes() for path in (tmp_path / "scores").glob("*/record.json")} == before
    assert sweep.main(flags_of(shared, tmp_path / "scores", **more, dry_run="true")) == 0
    assert "2 of them without the weights" in capsys.readouterr().out


def test_dry_run_counts_and_estimates(shared, tmp_path, capsys):
    assert sweep.main(flags_of(shared, tmp_path, seed="0", dry_run="true")) == 0
    assert "known once a run has been timed" in capsys.readouterr().out
    assert sweep.main(flags_of(shared, tmp_path, seed="0")) == 0
    capsys.readouterr()
    assert sweep.main(flags_of(shared, tmp_path, dry_run="true")) == 0
    out = capsys.readouterr().out
    assert "runs      8 (1 task x 2 modes x 2 learning rates x 2 seeds)" in out
    assert "done      4" in out
    assert "as 4 runs took" in out
    for path in tmp_path.glob("*/record.json"):  # of an older arithmetic, so that they would be run again
        record = json.loads(path.read_text())
        record["origin"]["arithmetic"] -= 1
        path.write_text(json.dumps(record))
    assert sweep.main(flags_of(shared, tmp_path, dry_run="true")) == 0
    assert "done      0" in capsys.readouterr().out


@pytest.mark.parametrize(("table", "runs"), [("table1", "1,512"), ("table3", "1,008")])
def test_papers_dry_runs_need_no_tensorflow(table, runs, tmp_path):
    code = ("import sys; from tfmt import sweep; "
            f"sweep.main(['--flagfile={table}.flags', '--dry_run', '--output_dir={tmp_path}']); "
            "assert 'tensorflow' not in sys.modules")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"runs      {runs} " in done.stdout


def test_order_keeps_warm_and_takes_long_runs_first(shared):
    def item(task, mode, seconds, seed=0):
        spec = RunSpec.make(model="m", task=task, mode=mode, seed=seed)
        made = Item(spec, None)
        made.seconds = seconds
        return made

    waiting = [item("rte", "full", 5), item("mrpc", "full", 9), item("mrpc", "frozen", 20), item("rte", "frozen", 1)]
    assert choose(waiting, None, set()) is waiting[2]
    assert choose(waiting, None, {waiting[2].bench}) is waiting[0]
    assert choose(waiting, item("rte", "frozen", 1, seed=7), set()) is waiting[3]
    assert choose(waiting[:3], item("rte", "frozen", 1, seed=7), set()) is waiting[0]


def test_places():
    assert share_places(1, (), (0, 1)) == [Place()]
    assert [place.cores for place in share_places(3, (), (0, 1, 2, 3))] == [(0, 1), (2,), (3,)]
    assert [place.gpus for place in share_places(3, ("0", "1"), (0,))] == [("0",), ("1",), ("0",)]


def test_times():
    assert Times().estimate(RunSpec.make(model="m", task="mrpc", mode="full")) is None
    assert [format_seconds(s) for s in (5, 600, 12000, 200000)] == ["5 s", "10 min", "3 h 20 min", "2 d 7 h"]


def test_held_out_union_takes_the_masks_of_the_other_task(shared, toy_glue, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy_glue, data)
    (data / "RTE").mkdir()
    for name in ("train", "dev"):
        rows = [line.split("\t") for line in (data / "MRPC" / f"{name}.tsv").read_text().splitlines()[1:]]
        lines = [f"{i}\t{b}\t{a}\t{('entailment', 'not_entailment')[i % 2]}" for i, (*_, a, b) in enumerate(rows)]
        (data / "RTE" / f"{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tlabel", *lines]) + "\n")
    runs = tmp_path / "runs"
    flags = flags_of(shared, runs, data_dir=data, task="mrpc,rte", mode="fisher", mask_fraction="0.25", seed="0",
                     learning_rate="1e-2", fisher_examples=16, epochs=1, fisher_union="held_out")  # fmt: skip
    assert sweep.main(flags) == 0
    records = find_records(runs)[0]
    assert len(records) == 4

    def mask(task, union, file):
        (run,) = [r.run_id for r in records if r.spec.task == task and bool(r.spec.fisher_from) == union]
        stored = load_file(runs / run / file)
        return {name: indices.tolist() for name, indices in stored.items() if name.endswith(".indices")}

    for task, other in (("mrpc", "rte"), ("rte", "mrpc")):
        assert mask(task, True, "tuned.safetensors") == mask(other, False, "fisher.safetensors")
    assert mask("mrpc", False, "fisher.safetensors") != mask("rte", False, "fisher.safetensors")
