import sys
import types
import zipfile

import pytest

from tfmt.data.sources import count_examples, read_dataset, read_test_split
from tfmt.errors import RequestError

TREE = """
( (S
    (NP-SBJ (NNP Mr.) (NNP File{i}) )
    (VP (VBZ is)
      (NP-PRD (-NONE- *-1) (DT the) (-LRB- -LRB-) (NN chairman) ))
    (. .) ))
"""


def write(folder, trees=None):
    """All 199 files; file i names itself in one sentence."""
    home = folder / "treebank" / "combined"
    home.mkdir(parents=True, exist_ok=True)
    for i in range(1, 200):
        (home / f"wsj_{i:04}.mrg").write_text((trees or {}).get(i, TREE.format(i=i)))
    return folder / "treebank"


def files_of(examples):
    return [int(word[4:]) for word in examples.texts[0] if word.startswith("File")]


def test_trees_become_words_and_tags_without_traces(tmp_path):
    two = TREE.format(i=1) + "( (S (-NONE- 0)) )\n( (INTJ (UH Yes)\n(, ,)) )"
    dataset = read_dataset("ptb_pos", str(write(tmp_path, {1: two})))
    train = dataset.splits["train"]
    assert train.sentence_lengths[:3].tolist() == [7, 2, 7]
    words = ["Mr.", "File1", "is", "the", "-LRB-", "chairman", ".", "Yes", ","]
    tags = ["NNP", "NNP", "VBZ", "DT", "-LRB-", "NN", ".", "UH", ","]
    assert train.texts[0][:9] == words
    assert [dataset.task.classes[tag] for tag in train.labels[:9]] == tags
    assert dataset.notes["sentences"] == {"train": 160, "validation": 20}
    assert dataset.notes["words"] == {"train": 159 * 7 + 2, "validation": 140}
    assert "160-179 validation" in dataset.notes["split_rule"]


def test_the_split_is_by_file(tmp_path):
    home = str(write(tmp_path))
    splits = read_dataset("ptb_pos", home).splits
    assert files_of(splits["train"]) == list(range(1, 160))
    assert files_of(splits["validation"]) == list(range(160, 180))
    assert files_of(read_test_split("ptb_pos", home, "test")) == list(range(180, 200))
    assert count_examples("ptb_pos", home) == {"train": 159, "validation": 20}


@pytest.mark.parametrize("split_seed", [None, 1])
def test_the_test_split_has_labels_and_chooses_nothing(tmp_path, split_seed):
    """It is scored, so it stands beside the splits, with a digest of its own that leaves theirs alone."""
    home = str(write(tmp_path))
    dataset = read_dataset("ptb_pos", home, split_seed=split_seed)
    assert set(dataset.splits) == {"train", "validation"}
    assert len(dataset.test) == 20
    assert not set(files_of(dataset.test)) & set(
        files_of(dataset.splits["train"]) + files_of(dataset.splits["validation"])
    )
    tags = [dataset.task.classes[tag] for tag in dataset.test.labels]
    assert tags == ["NNP", "NNP", "VBZ", "DT", "-LRB-", "NN", "."] * 20
    assert set(dataset.digests) == {"data", "test"}
    assert "test" not in {*dataset.notes["sentences"], *dataset.notes["words"]}
    changed = files_of(dataset.test)[0]
    other = write(tmp_path, {changed: TREE.format(i=changed).replace("chairman", "chair")})
    digests = read_dataset("ptb_pos", str(other), split_seed=split_seed).digests
    assert digests["data"] == dataset.digests["data"]
    assert digests["test"] != dataset.digests["test"]


def test_a_seed_splits_at_random(tmp_path):
    home = str(write(tmp_path))
    dataset = read_dataset("ptb_pos", home, split_seed=1)
    test = files_of(read_test_split("ptb_pos", home, "test", split_seed=1))
    validation = files_of(dataset.splits["validation"])
    assert sorted(files_of(dataset.splits["train"]) + validation + test) == list(range(1, 200))
    assert (len(validation), len(test)) == (20, 20)
    assert test != list(range(180, 200))
    assert "split_seed 1" in dataset.notes["split_rule"]
    assert dataset.digest == read_dataset("ptb_pos", home, split_seed=1).digest
    assert dataset.digest != read_dataset("ptb_pos", home, split_seed=2).digest
    with pytest.raises(RequestError, match="split_seed must be 0 or more"):
        read_dataset("ptb_pos", home, split_seed=-1)


def test_every_place_it_may_lie_in(tmp_path, monkeypatch):
    home = write(tmp_path / "corpora")
    digest = read_dataset("ptb_pos", str(home)).digest
    archive = tmp_path / "zipped" / "treebank.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as files:
        for path in home.rglob("*.mrg"):
            files.write(path, path.relative_to(home.parent))
    for place in (home / "combined", home.parent, archive, archive.parent):
        assert read_dataset("ptb_pos", str(place)).digest == digest
    fake = types.ModuleType("nltk.data")
    fake.path = [str(tmp_path / "nothing"), str(tmp_path)]
    package = types.ModuleType("nltk")
    package.data = fake
    monkeypatch.setitem(sys.modules, "nltk", package)
    monkeypatch.setitem(sys.modules, "nltk.data", fake)
    assert read_dataset("ptb_pos").digest == digest


def test_missing_data(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(RequestError, match=r"no Penn Treebank found; --data_dir is NLTK's treebank"):
        read_dataset("ptb_pos")
    with pytest.raises(RequestError, match=r"holds no combined/wsj_0001\.mrg"):
        read_dataset("ptb_pos", str(tmp_path))
    home = write(tmp_path)
    (home / "combined" / "wsj_0042.mrg").unlink()
    with pytest.raises(RequestError, match=r"wsj_0042\.mrg: there is no such file"):
        read_dataset("ptb_pos", str(home))
    archive = tmp_path / "treebank.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("treebank/README", "")
    with pytest.raises(RequestError, match=r"treebank\.zip: lacks treebank/combined/wsj_0001\.mrg"):
        read_dataset("ptb_pos", str(archive))
    archive.write_bytes(b"PK")
    with pytest.raises(RequestError, match=r"treebank\.zip: cannot be read"):
        read_dataset("ptb_pos", str(archive))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("( (S (NN a)\n (XX b)) )", r"wsj_0003\.mrg:2: 'XX' is not a Penn Treebank tag"),
        ("( (S (NN a)) )\n)", r"wsj_0003\.mrg:2: a bracket closes"),
        ("( (S (NN a))", r"wsj_0003\.mrg: ends inside a tree"),
        ("( (S (NN)) )", r"wsj_0003\.mrg:1: 'NN' is not a \(tag word\) pair"),
        ("( (S (NN a b)) )", r"wsj_0003\.mrg:1: 'NN a b' is not"),
        ("( (S (NN a) b) )", r"wsj_0003\.mrg:1: 'b' is not"),
        ("( (S (NN a)) ) word", r"wsj_0003\.mrg: ends inside"),
        ("( (S (NN a))\n(NN caf\u00e9) )", r"wsj_0003\.mrg:2: byte 0xc3 is not ASCII"),
    ],
)
def test_broken_trees_are_named(tmp_path, tree, message):
    home = write(tmp_path)
    (home / "combined" / "wsj_0003.mrg").write_bytes(tree.encode())
    with pytest.raises(RequestError, match=message) as error:
        read_dataset("ptb_pos", str(home))
    assert "\n" not in str(error.value)
