import numpy as np
import pytest
from seqeval.metrics.sequence_labeling import get_entities

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


# Entities of CoNLL-2003's files: of all types, how many follow one of their own type and so begin with B- in IOB1,
# and how many begin with a B- that IOB1 does not need (in eng.train two, both after O).
REAL = {
    "eng.train": (23_499, 70, 2, 14_041, 203_621),
    "eng.testa": (5_942, 4, 0, 3_250, 51_362),
    "eng.testb": (5_648, 20, 0, 3_453, 46_435),
}


def write_conll2003(folder, shape, seed=0):
    """Files of the real ones' shape in IOB1, with the entities (sentence, type, first, last) that are in each."""
    generator = np.random.default_rng(seed)
    written = {}
    for name, (entities, adjacent, needless, sentences, words) in shape.items():
        lengths = 1 + generator.multinomial(
            words - sentences - 2 * entities + adjacent, np.full(sentences, 1 / sentences)
        )
        owner = np.sort(generator.integers(0, sentences, entities - adjacent))
        joined = set(generator.choice(entities - adjacent, adjacent, replace=False).tolist())
        needless_at = set(generator.choice([i for i in range(entities - adjacent) if i not in joined], needless,
                                           replace=False).tolist())  # fmt: skip
        plan = [[] for _ in range(sentences)]
        for entity, sentence in enumerate(owner.tolist()):
            plan[sentence].append(entity)
        lines, found = ["-DOCSTART- -X- O O", ""], []
        for sentence, own in enumerate(plan):
            tags = ["O"] * int(lengths[sentence])
            for entity in own:
                kind = ("PER", "ORG", "LOC", "MISC")[int(generator.integers(4))]
                tags += ["O", ("B-" if entity in needless_at else "I-") + kind]
                found.append((sentence, kind, len(tags) - 1, len(tags) - 1))
                if entity in joined:
                    tags.append("B-" + kind)
                    found.append((sentence, kind, len(tags) - 1, len(tags) - 1))
            lines += [f"w{generator.integers(999)} NNP I-NP {tag}" for tag in tags] + [""]
        (folder / name).write_text("\n".join(lines))
        written[name] = found
    return written


def entities_of(examples, classes):
    """(sentence, type, first, last) of every entity, by seqeval."""
    ends = np.cumsum(examples.sentence_lengths)[:-1]
    return [
        (sentence, *entity)
        for sentence, tags in enumerate(np.split(np.array(classes)[examples.labels], ends))
        for entity in get_entities(tags.tolist())
    ]


def test_files_of_the_real_shape_are_iob1_with_two_odd_tags(tmp_path):
    written = write_conll2003(tmp_path, REAL)
    dataset = read_dataset("conll2003_ner", str(tmp_path))
    splits = dataset.splits | {"test": read_test_split("conll2003_ner", str(tmp_path), "test")}
    for (name, found), examples in zip(written.items(), splits.values(), strict=True):
        assert (len(examples), len(examples.labels)) == REAL[name][3:]
        assert len(found) == REAL[name][0]
        assert entities_of(examples, dataset.task.classes) == found
        names = np.array(dataset.task.classes)[examples.labels]
        assert sum(tag.startswith("B-") for tag in names) == REAL[name][0]
    assert dataset.notes["entity_tags"] == {
        "train": {"scheme": "IOB1", "entities": 23_499, "irregular": 2},
        "validation": {"scheme": "IOB1", "entities": 5_942, "irregular": 0},
    }


def test_each_file_is_judged_by_itself(tmp_path):
    orphan = "a NN O I-PER\n\nb NN O B-PER\n\nc NN O B-LOC\n"
    dataset = read_dataset("conll2003_ner", lay_out(tmp_path, validation=orphan))
    assert [dataset.task.classes[tag] for tag in dataset.splits["validation"].labels] == ["B-PER", "B-PER", "B-LOC"]
    assert dataset.notes["entity_tags"] == {
        "train": {"scheme": "IOB1", "entities": 4, "irregular": 0},
        "validation": {"scheme": "IOB2", "entities": 3, "irregular": 1},
    }


def test_i_o_is_o_and_counted(tmp_path):
    dataset = read_dataset("conll2003_ner", lay_out(tmp_path, train=IOB1 + "Kloof NNP I-NP I-O\nGold NNP I-NP I-O\n"))
    assert [dataset.task.classes[tag] for tag in dataset.splits["train"].labels] == [*TAGS, "O", "O"]
    assert dataset.notes["entity_tags"]["train"]["outside"] == {"I-O": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a NN O O\nb NN O\n", r"eng\.testa:2: 3 columns where 4 are expected"),
        ("a NN O O x\n", r"eng\.testa:1: 5 columns"),
        ("a NN O O\nb NN O I-GENE\n", r"eng\.testa:2: the tag 'I-GENE' is not one of O, B-PER"),
        ("a NN O O\nb NN O E-GENE\n", r"eng\.testa:2: the tag 'E-GENE' is not one of O, B-PER"),
        ("a NN O O\nb NN O B-O\nc NN O I-O\n", r"eng\.testa:2: the tag 'B-O' is not one of O, B-PER"),
        ("a NN O O\nb NN O I-PER\nc NN O per\n", r"eng\.testa:3: the tag 'per' is not one of O, B-PER"),
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
