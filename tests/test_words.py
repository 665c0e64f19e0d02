"""Counts that are shown agree with what they count."""

from tfmt.spec import RunSpec
from tfmt.study.dry_run import describe
from tfmt.train import _announce
from tfmt.words import counted, format_bytes, without_folders


def test_one_is_singular(toy_bert, toy_glue):
    assert [counted(n, "run") for n in (0, 1, 2, 1512)] == ["0 runs", "1 run", "2 runs", "1,512 runs"]
    assert counted(2, "entry", "entries") == "2 entries"
    spec = RunSpec.make(
        model=str(toy_bert), data_dir=str(toy_glue), task="mrpc", mode="layernorm", layers="1", max_length=32, epochs=1,
        frozen_prefix="cached", batch_size=1, train_limit=1,
    )  # fmt: skip
    told = describe(spec, "runs")
    assert "1 an epoch x 1 epoch = 1, batches of 1 from 1 example\n" in told
    assert "lowest 1 block," in told
    assert "mrpc layernorm: 1 epoch at" in _announce(spec, "runs")


def test_bytes():
    told = [format_bytes(size) for size in (0, 1, 999, 1000, 999_949, 999_999, 4.4e8, 1.5123e15)]
    assert told == ["0 bytes", "1 byte", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "440.0 MB", "1,512.3 TB"]


def test_paths_lose_their_folders_and_nothing_else_changes():
    told = "/home/me/runs/a/record.json: broken; --model=/data/bert and ~/x/y, ../z/w, './v'"
    assert without_folders(told) == "record.json: broken; --model=bert and y, w, 'v'"
    assert without_folders("/home/me/runs/a/record.json: broken", 2) == "a/record.json: broken"
    for text in (
        "google/bert",
        "larger / smaller",
        "https://a.b/c/d",
        "f1/accuracy (1/2)",
        "1 / 3",
        "runs/a/record.json",
    ):
        assert without_folders(text) == text
