import numpy as np
import pytest

from tfmt.data.entities import OrphanTagError, to_iob2
from tfmt.data.sources import read_dataset, read_test_split
from tfmt.errors import RequestError

IOB1 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
Hungarian JJ I-NP B-MISC
lamb NN I-NP I-MISC

-DOCSTART- -X- O O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""
IOB2 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
Hungarian JJ I-NP B-MISC
lamb NN I-NP I-MISC


Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER"""
TAGS = ["B-ORG", "O", "B-MISC", "B-MISC", "I-MISC", "B-PER", "I-PER"]


def lay_out(folder, train=IOB1, validation=IOB1, test=IOB1, names=("eng.train", "eng.testa", "eng.testb"), end="\n"):
    for name, content in zip(names, (train, validation, test), strict=True):
        (folder / name).write_bytes(content.replace("\n", end).encode())
    return str(folder)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("names", [("eng.train", "eng.testa", "eng.testb"), ("train.txt", "valid.txt", "test.txt")])
def test_both_layouts_are_read_as_iob2(tmp_path, names, end):
    folder = lay_out(tmp_path, IOB1, IOB2, IOB1, names, end)
    dataset = read_dataset("conll2003_ner", folder)
    for examples in (*dataset.splits.values(), read_test_split("conll2003_ner", folder, "test")):
        assert [dataset.task.classes[tag] for tag in examples.labels] == TAGS
        assert examples.sentence_lengths.tolist() == [5, 2]
        assert examples.texts[0] == ["EU", "rejects", "German", "Hungarian", "lamb", "Peter", "Blackburn"]
    assert dataset.notes["sentences"] == {"train": 2, "validation": 2}
    assert dataset.notes["words"] == {"train": 7, "validation": 7}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-A I-A O", "B-A I-A O"),  # IOB1
        ("I-A B-A I-A", "B-A B-A I-A"),  # IOB1: B- only between two entities of one type
        ("I-A I-B", "B-A B-B"),  # IOB1: another type is another entity
        ("I-A I-B B-B", "B-A B-B B-B"),
        ("O I-A O I-A", "O B-A O B-A"),
        ("B-A I-A O B-A", "B-A I-A O B-A"),  # IOB2
        ("B-A B-A I-A", "B-A B-A I-A"),
        ("B-A B-B I-B", "B-A B-B I-B"),
        ("O O", "O O"),
    ],
)
def test_iob1_to_iob2(tags, expected):
    assert to_iob2([tags.split()]) == [expected.split()]


def test_sentences_do_not_continue_each_other():
    assert to_iob2([["I-A"], ["I-A"]]) == [["B-A"], ["B-A"]]
    with pytest.raises(OrphanTagError):
        to_iob2([["B-A"], ["I-A"]])


@pytest.mark.parametrize("tags", ["B-A O I-A", "B-A I-B", "O B-A O O I-A"])
def test_an_orphan_in_iob2(tags):
    with pytest.raises(OrphanTagError) as error:
        to_iob2([["O"], tags.split()])
    assert error.value.sentence == 1
    assert error.value.word == len(tags.split()) - 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a NN O O\nb NN O\n", r"eng\.testa:2: 3 columns where 4 are expected"),
        ("a NN O O x\n", r"eng\.testa:1: 5 columns"),
        ("a NN O O\n\nb NN O B-PER\n\nc NN O I-LOC\n", r"eng\.testa:5: the tag I-LOC continues no entity"),
        ("a NN O O\nb NN O I-GENE\n", r"eng\.testa:2: the tag 'B-GENE' is not one of O, B-PER"),
        ("-DOCSTART- -X- O O\n\n", r"eng\.testa: holds no sentence"),
    ],
)
def test_malformed_lines_are_named(tmp_path, content, message):
    with pytest.raises(RequestError, match=message) as error:
        read_dataset("conll2003_ner", lay_out(tmp_path, validation=content))
    assert "\n" not in str(error.value)


def test_latin_1_is_reported_or_read(tmp_path):
    folder = lay_out(tmp_path)
    (tmp_path / "eng.train").write_bytes("a NN O O\nM\u00fcller\u00a0x NNP O I-PER\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"eng\.train:2: byte 0xfc is not utf-8; .*--encoding"):
        read_dataset("conll2003_ner", folder)
    # The no-break space is part of the word: only blanks and tabs part columns.
    words = read_dataset("conll2003_ner", folder, encoding="latin-1").splits["train"].texts[0]
    assert words == ["a", "M\u00fcller\u00a0x"]
    with pytest.raises(RequestError, match="encoding must be one that Python knows"):
        read_dataset("conll2003_ner", folder, encoding="klingon")
    with pytest.raises(RequestError, match="cannot be read line by line"):
        read_dataset("conll2003_ner", folder, encoding="utf-16")


def test_missing_files(tmp_path):
    with pytest.raises(RequestError, match=r"holds neither eng\.train nor train\.txt"):
        read_dataset("conll2003_ner", str(tmp_path))
    with pytest.raises(RequestError, match="no such folder"):
        read_dataset("conll2003_ner", str(tmp_path / "nowhere"))


def test_tfds_drops_its_empty_sentence(monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow as tf

    from tfmt.data import tfds_source

    rows = [(["EU", "rejects"], [3, 0]), (["Zo\u00e9"], [1]), ([], [])]
    asked = []

    def as_dataset(self, split, **kwargs):
        asked.append(split)

        def generate():
            yield from ({"tokens": words, "ner": np.array(tags, np.int64)} for words, tags in rows)

        signature = {"tokens": tf.TensorSpec([None], tf.string), "ner": tf.TensorSpec([None], tf.int64)}
        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    monkeypatch.setattr(tfds_source, "_offline", lambda: False)
    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        dataset = read_dataset("conll2003_ner")
    assert [str(split) for split in np.ravel(asked)] == ["train", "dev"]
    validation = dataset.splits["validation"]
    assert validation.texts[0] == ["EU", "rejects", "Zo\u00e9"]
    assert validation.labels.tolist() == [3, 0, 1]
    assert validation.sentence_lengths.tolist() == [2, 1]
