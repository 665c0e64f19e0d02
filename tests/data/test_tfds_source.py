import builtins

import pytest

from tfmt.data import tfds_source
from tfmt.data.sources import read_dataset, read_test_split
from tfmt.errors import RequestError

tfds = pytest.importorskip("tensorflow_datasets")

# (sentence1, sentence2, label) in the order of GLUE's file; TFDS stores them in another.
ROWS = [("Zoé left.", "She left.", 1), ("a", 'b "', 0), ("c", "d", 1)]
SHUFFLED = [2, 0, 1]


def mock(task_rows, monkeypatch):
    """Lets TFDS hold these rows for every split, under its own features."""
    import tensorflow as tf

    def as_dataset(self, *args, **kwargs):
        return tf.data.Dataset.from_tensor_slices(task_rows)

    monkeypatch.setattr(tfds_source, "_offline", lambda: False)
    return tfds.testing.mock_data(as_dataset_fn=as_dataset)


def pairs(label=True):
    return {
        "sentence1": [ROWS[i][0] for i in SHUFFLED],
        "sentence2": [ROWS[i][1] for i in SHUFFLED],
        "label": [ROWS[i][2] if label else -1 for i in SHUFFLED],
        "idx": SHUFFLED,
    }


def test_tfds_and_files_with_the_same_rows_agree(monkeypatch, tmp_path):
    with mock(pairs(), monkeypatch):
        dataset = read_dataset("mrpc")
    assert dataset.splits["train"].texts == ([row[0] for row in ROWS], [row[1] for row in ROWS])
    assert dataset.splits["train"].labels.tolist() == [1, 0, 1]
    assert dataset.notes["source"].startswith("TFDS glue/mrpc/")
    lines = [f"{label}\t0\t0\t{first}\t{second}" for first, second, label in ROWS]
    for name in ("train", "dev"):
        content = "\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *lines])
        (tmp_path / f"{name}.tsv").write_text(content, encoding="utf-8")
    assert read_dataset("mrpc", str(tmp_path)).digest == dataset.digest


def test_scores_and_mnli_splits(monkeypatch):
    import numpy as np

    with mock(pairs() | {"label": np.array([3.8, 0.0, 5.0], np.float32)}, monkeypatch):
        labels = read_dataset("stsb").splits["validation"].labels
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels, np.array([0.0, 5.0, 3.8], np.float32))
    rows = pairs()
    rows["premise"], rows["hypothesis"] = rows.pop("sentence1"), rows.pop("sentence2")
    with mock(rows, monkeypatch):
        assert set(read_dataset("mnli").splits) == {"train", "validation_matched", "validation_mismatched"}


def test_test_splits_have_no_labels(monkeypatch):
    with mock(pairs(label=False), monkeypatch):
        assert read_test_split("rte", "", "test").labels is None


def test_offline_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_source, "_offline", lambda: True)
    with pytest.raises(RequestError, match=r"offline.*give --data_dir .*RTE/train\.tsv") as error:
        read_dataset("rte")
    assert "\n" not in str(error.value)


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route\nto host")

    monkeypatch.setattr(tfds_source, "_offline", lambda: False)
    monkeypatch.setattr(tfds, "load", fail)
    with pytest.raises(RequestError, match=r"OSError: no route.*--data_dir") as error:
        read_dataset("cola")
    assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch):
    true_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("tensorflow_datasets"):
            raise ImportError(f"No module named {name!r}")
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RequestError, match=r"pip install tensorflow-datasets.*--data_dir"):
        read_dataset("cola")
