"""The commands as their users meet them: help, dry runs, flagfiles, and what bad input gets."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from tfmt import files, report, train
from tfmt.flagfile import expand_flagfiles, find_flagfile
from tfmt.flags import define_run_flags, parse, read_spec

FLAGS = Path(__file__).resolve().parents[1] / "flags"


@pytest.fixture
def request_flags(toy_bert, toy_glue, tmp_path):
    return {"model": str(toy_bert), "data_dir": str(toy_glue), "task": "mrpc", "mode": "layernorm", "max_length": 32,
            "epochs": 1, "output_dir": str(tmp_path / "runs")}  # fmt: skip


def call(main, settings, capsys):
    status = main([f"--{name}={value}" for name, value in settings.items()])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(settings, capsys, *words):
    """The command refuses: status 2, one line on stderr that holds the words, nothing written."""
    status, out, err = call(train.main, settings, capsys)
    assert status == 2, err
    assert out == ""
    assert err.startswith("tfmt-train: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    folder = Path(settings["output_dir"])
    assert not folder.exists() or not list(folder.glob("*/*.json"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "mrp"}, ["--task=mrp", "mrpc"]), ({"mode": "lora"}, ["--mode=lora", "layernorm"]),
        ({"lr": "3"}, ["'lr'"]), ({"layers": "7"}, ["layers", "0-1"]), ({"layers": "x"}, ["layers"]),
        ({"learning_rate": "0"}, ["learning_rate", "positive"]), ({"learning_rate": "fast"}, ["learning_rate", "fast"]),
        ({"mask_size": "4"}, ["--mask_size", "layernorm"]), ({"batch_size": "49"}, ["batch_size", "48"]),
        ({"max_length": "128"}, ["max_length", "64 positions"]), ({"data_dir": "/nowhere"}, ["/nowhere"]),
        ({"task": "rte"}, ["train.tsv", "--data_dir"]), ({"model": "/nowhere"}, ["/nowhere"]),
        ({"flagfile": "none.flags"}, ["none.flags", "demo.flags"]), ({"replicas": "3"}, ["batch_size", "replicas"]),
        ({"task": "custom"}, ["custom", "text_columns"]), ({"mode": "outliers"}, ["mask_size"]),
        ({"mode": "outliers", "mask_size": "33"}, ["mask_size", "32"]),
    ],
)  # fmt: skip
def test_wrong_requests(request_flags, capsys, changes, words):
    refused(request_flags | changes, capsys, *words)


ROW = "1\t0\t0\tthe film\ta plot"
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{HEADER}\n{ROW}\n1\t0\t0\tthe film\n".encode(), ["train.tsv", "3"]),
        (f"{HEADER}\n{ROW}\n2\t0\t0\ta\tb\n".encode(), ["train.tsv", "3", "'2'"]),
        (f"{HEADER}\n{ROW}\n".encode() + b"1\t0\t0\t\xff\tb\n", ["train.tsv", "3", "UTF-8"]),
        (f"{HEADER}\n".encode(), ["train.tsv"]), (b"", ["train.tsv"]),
        (f"Quality\t#1 ID\t#2 ID\t#1 String\n{ROW}\n".encode(), ["train.tsv", "#2 String"]),
    ],
)  # fmt: skip
def test_broken_data_is_named_with_file_and_line(request_flags, tmp_path, toy_glue, capsys, content, words):
    shutil.copytree(toy_glue, tmp_path / "glue")
    (tmp_path / "glue" / "MRPC" / "train.tsv").write_bytes(content)
    refused(request_flags | {"data_dir": str(tmp_path / "glue")}, capsys, *words)


def test_folder_that_cannot_be_written(request_flags, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refused(request_flags | {"output_dir": str(tmp_path / "file" / "runs")}, capsys, "--output_dir")


def test_folder_of_another_spec(request_flags, capsys):
    status, out, err = call(train.main, request_flags | {"dry_run": True}, capsys)
    assert status == 0, err
    folder = Path(out.split("folder    ")[1].strip())
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text('{"identity": {"settings": "others"}}')
    status, out, err = call(train.main, request_flags, capsys)
    assert status == 2
    assert "another run" in err
    assert not (folder / "record.json").exists()


def test_full_disk_ends_with_1_and_keeps_what_was_finished(request_flags, capsys, monkeypatch):
    real = os.fsync
    writes = iter(range(100))

    def fsync(number):
        if "checkpoint/" in os.readlink(f"/proc/self/fd/{number}") and next(writes) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(files.os, "fsync", fsync)
    settings = request_flags | {"epochs": 6}
    status, _, err = call(train.main, settings, capsys)
    assert status == 1
    assert "disk is full" in err
    assert "same command" in err
    left = sorted(path.name for path in Path(settings["output_dir"]).glob("*/checkpoint/*"))
    assert [name.split(".")[0] for name in left] == ["kept", "state"]
    monkeypatch.setattr(files.os, "fsync", real)
    status, out, err = call(train.main, settings, capsys)
    assert status == 0, err
    assert "proof" in out


def test_tfds_that_cannot_be_had_names_data_dir(request_flags, capsys, monkeypatch):
    import tensorflow_datasets as tfds

    def offline(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds, "builder", offline)
    status, _, err = call(train.main, request_flags | {"data_dir": ""}, capsys)
    assert status == 1
    assert "no network" in err
    assert "--data_dir" in err
    assert err.count("\n") == 1


def test_dry_run_counts_and_steps(request_flags, capsys):
    status, out, err = call(train.main, request_flags | {"dry_run": True, "epochs": 3}, capsys)
    assert status == 0, err
    lines = out.splitlines()
    assert ["attention_layernorm", "64", "64"] in [line.split() for line in lines]
    assert ["attention", "2,176", "frozen"] in [line.split() for line in lines]
    assert "3 an epoch x 3 epochs = 9, batches of 16 from 48 examples" in out
    assert "tuned     128 weights" in out
    assert "tuned.safetensors" in out
    assert not Path(request_flags["output_dir"]).exists()
    out = call(train.main, request_flags | {"dry_run": True, "epochs": 3, "early_stopping": 1}, capsys)[1]
    assert "3 an epoch x at most 3 epochs = 9" in out


def test_dry_run_needs_a_config_alone_and_answers_at_once(tmp_path, toy_bert):
    shutil.copy(toy_bert / "config.json", tmp_path / "config.json")
    for model in (str(tmp_path), "bert-base-uncased"):
        command = [sys.executable, "-X", "importtime", "-m", "tfmt.train", f"--model={model}", "--task=mrpc",
                   "--mode=layernorm", "--dry_run"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert "3,668 examples (published size" in done.stdout
        assert not [line for line in done.stderr.splitlines() if line.endswith((" tensorflow", " transformers"))]
    assert "36,864 weights = 0.0337 %" in done.stdout


def test_help_is_quick_to_import_and_names_every_flag(capsys):
    assert train.main(["--help"]) == 0
    shown = capsys.readouterr().out
    values = flags.FlagValues()
    define_run_flags(values)
    for name in values:
        assert f"--{name}" in shown
    assert report.main(["--help"]) == 0
    assert "--claims" in capsys.readouterr().out


def test_finished_run_is_not_run_again(request_flags, capsys):
    assert call(train.main, request_flags, capsys)[0] == 0
    record = next(Path(request_flags["output_dir"]).glob("*/record.json"))
    before = record.stat().st_mtime_ns
    started = time.time()
    status, out, err = call(train.main, request_flags, capsys)
    assert status == 0
    assert "already" in err
    assert "proof" in out
    assert record.stat().st_mtime_ns == before
    assert time.time() - started < 60


def test_weights_that_an_earlier_run_did_not_keep_are_refused(request_flags, capsys):
    assert call(train.main, request_flags | {"keep": "scores"}, capsys)[0] == 0
    (folder,) = Path(request_flags["output_dir"]).iterdir()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    status, out, err = call(train.main, request_flags, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    for word in ("--keep=tuned", str(folder), "--keep=scores", "--output_dir", "delete the folder"):
        assert word in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    shutil.rmtree(folder)
    assert call(train.main, request_flags, capsys)[0] == 0
    assert (folder / "tuned.safetensors").exists()
    status, out, err = call(train.main, request_flags | {"keep": "scores"}, capsys)
    assert (status, "already" in err) == (0, True)


def test_report_reads_what_is_there_and_names_what_is_broken(request_flags, capsys):
    assert call(train.main, request_flags, capsys)[0] == 0
    broken = Path(request_flags["output_dir"]) / "broken"
    broken.mkdir()
    (broken / "record.json").write_text('{"schema": 1, "run')
    status, out, err = call(report.main, {"runs": request_flags["output_dir"], "table": "runs"}, capsys)
    assert status == 0
    assert "mrpc-layernorm" in out
    assert str(broken / "record.json") in err
    for settings in ({"runs": "/nowhere", "table": "1"}, {"runs": str(broken.parent)}):
        status, _, err = call(report.main, settings, capsys)
        assert status == 2
        assert err.startswith("tfmt-report: ")


@pytest.mark.parametrize("path", sorted(FLAGS.glob("*.flags")), ids=lambda path: path.name)
def test_every_flagfile_can_be_found_and_read(path, tmp_path):
    with contextlib.chdir(tmp_path):
        assert find_flagfile(path.name).read_text() == path.read_text()
    lines = expand_flagfiles([f"--flagfile={path}"])
    assert lines
    assert all(line.startswith("--") for line in lines)
    first = path.read_text().splitlines()[0]
    assert first.startswith("#")


@pytest.mark.parametrize("name", ["demo.flags", "protocol.flags"])
def test_run_flagfiles_make_a_spec(name):
    values = flags.FlagValues()
    define_run_flags(values)
    parse(values, [f"--flagfile={name}", "--task=mrpc", "--mode=layernorm", "--seed=3"])
    assert read_spec(values).seed == 3


def test_protocol_flagfile_is_p1s(tmp_path):
    values = flags.FlagValues()
    define_run_flags(values)
    parse(values, ["--flagfile=protocol.flags", "--task=rte", "--mode=full"])
    spec = read_spec(values)
    assert (spec.model, spec.batch_size, spec.max_length, spec.warmup_ratio) == ("bert-base-uncased", 16, 128, 0.1)
    assert (spec.adam_epsilon, spec.epochs, spec.batching) == (1e-6, 5, "random")


def test_flagfiles_nest_later_flags_win_and_loops_end(tmp_path, capsys):
    (tmp_path / "inner.flags").write_text("# inner\n--seed=1\n--epochs=7\n")
    (tmp_path / "outer.flags").write_text("--flagfile=inner.flags\n--seed=2\n\n")
    assert expand_flagfiles([f"--flagfile={tmp_path / 'outer.flags'}"]) == ["--seed=1", "--epochs=7", "--seed=2"]
    (tmp_path / "loop.flags").write_text("--flagfile=loop.flags\n")
    assert train.main([f"--flagfile={tmp_path / 'loop.flags'}"]) == 2
    assert "without end" in capsys.readouterr().err
    (tmp_path / "bad.flags").write_text("--seed=1\nseed=2\n")
    assert train.main([f"--flagfile={tmp_path / 'bad.flags'}"]) == 2
    assert "line 2" in capsys.readouterr().err


def test_demo_on_a_slice_with_the_real_model(tmp_path, capsys):
    settings = {"flagfile": "demo.flags", "mode": "layernorm", "train_limit": 64, "validation_limit": 48, "epochs": 1}
    status, out, err = call(train.main, settings | {"output_dir": str(tmp_path)}, capsys)
    assert status == 0, err
    assert "9,216 weights = 0.0406 %" in out
    assert "9,986 selected weights moved, 0 others" in out
    assert "N = 48" in out
    status, out, err = call(report.main, {"runs": str(tmp_path), "table": "runs"}, capsys)
    assert status == 0, err
    assert "9,216" in out
