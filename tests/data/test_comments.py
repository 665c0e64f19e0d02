"""Comments in CoNLL files, as corpora write them, and words that begin with `#`."""

import numpy as np
import pytest

from tfmt.data.own_files import stream_unlabelled
from tfmt.data.rows import read_rows
from tfmt.data.sources import read_dataset
from tfmt.errors import RequestError
from tfmt.tasks import custom_task

TAGGED = ["Ada\tB-person", "saw\tO", "Big\tB-location", "Ben\tI-location"]


def read(folder, content, columns=("0", "1")):
    """The sentences of a file, each as its words and their other fields."""
    path = folder / "file.conll"
    path.write_text(content, encoding="utf-8")
    return [list(zip(*(row.fields[column] for column in columns), strict=True)) for row in read_rows(path)]


def pairs(lines):
    return [tuple(line.split("\t")) for line in lines]


@pytest.mark.parametrize(
    "comment",
    ["# id = 12", "#\tdomain", "# http://t.co/a", "# 2014-01-02", "#\t2014-01-02", "# id 12\tdomain=en", "# O = 1",
     "# text = Ada saw O", "#begin document (bc/0012); part 000", "#id=12 en 3", "#\thttp://t.co/a\t[2009-10-17]",
     "# id\n# domain", "-DOCSTART- -X- O\n\n# id", "# 12\n"],
)  # fmt: skip
@pytest.mark.parametrize("separator", ["\t", " "])
def test_comments_before_sentences_are_no_words(tmp_path, comment, separator):
    block = "\n".join([comment, *TAGGED]).replace("\t", separator)
    assert read(tmp_path, f"{block}\n\n{block}\n") == [pairs(TAGGED)] * 2


def test_a_comment_with_as_many_fields_as_words_have(tmp_path):
    words = ["Ada _ _ B-PER", "saw _ _ O"]
    block = "\n".join(["# id 5239d808-f300-46ea-aa3b-5093040213a3 domain=en", *words])
    assert read(tmp_path, f"{block}\n\n{block}", ("0", "3")) == [[("Ada", "B-PER"), ("saw", "O")]] * 2
    words = ["Ada NNP I-NP I-PER", ", , O O", "saw VBD I-VP O"]
    (tmp_path / "train.txt").write_text("\n".join(["# id = 12", *words, "", "# id = 13", *words]))
    (tmp_path / "valid.txt").write_text("\n".join(words))
    train = read_dataset("conll2003_ner", str(tmp_path)).splits["train"]
    assert train.texts[0] == ["Ada", ",", "saw"] * 2


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("word", ["#hashtag\tO", "#\tO", "##\tO", "#1\tB-person", "#Paris\tB-product", "#\t#"])
def test_words_that_begin_with_a_hash_are_words(tmp_path, place, word):
    lines = [*TAGGED[:place], word, *TAGGED[place:]]
    block = "\n".join(lines) + "\n"
    assert read(tmp_path, f"# id = 1\n{block}\n{block}") == [pairs(lines)] * 2


def test_words_and_comments_of_one_file(tmp_path):
    generator = np.random.default_rng(3)
    content, expected = [], []
    for sentence in range(300):
        lines = [
            f"{'#' if generator.random() < 0.3 else ''}w{i}\t{generator.choice(['O', 'B-X', 'I-X'])}" for i in range(4)
        ]
        content += [f"#\tdomain{sentence % 3}"] * (sentence % 2) + [f"# id = {sentence}"] + lines + [""]
        expected.append(pairs(lines))
    assert read(tmp_path, "\n".join(content)) == expected


def test_the_pound_sign_of_the_penn_treebank(tmp_path):
    lines = ["# # B-NP", "5 CD I-NP", "billion CD I-NP", "fell VBD B-VP"]
    expected = [("#", "#"), ("5", "CD"), ("billion", "CD"), ("fell", "VBD")]
    assert read(tmp_path, "\n".join([*lines, "", *lines[1:], lines[0], ""])) == [expected, [*expected[1:], expected[0]]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("#\tB-product", "no other line has its tags"),  # the word #, or a comment
        ("#id=12\ten", "no other line has its tags"),
        ("#hashtag", "it has 1 column where words have 2"),
        ("#", "it has 1 column where words have 2"),
        ("#sunny day\tO", "it has 3 columns where words have 2"),
        ("#\tO\tO", "it has 3 columns where words have 2"),
    ],
)
def test_what_may_be_either_is_refused(tmp_path, line, reason):
    block = "\n".join(TAGGED)
    with pytest.raises(RequestError, match=rf"file\.conll:6: .* may be a comment or a word: {reason}; remove") as error:
        read(tmp_path, f"{block}\n\n{line}\n{block}\n")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        (["Ada B-person x", *TAGGED[1:], "", *TAGGED], 1),
        (["Ada", *TAGGED[1:], "", *TAGGED], 1),
        ([*TAGGED, "", *TAGGED[:2], "# id = 12", *TAGGED[2:]], 8),
        ([*TAGGED, "", *TAGGED[:2], "x y z"], 8),
    ],
)
def test_the_wrong_line_is_blamed(tmp_path, lines, wrong):
    with pytest.raises(RequestError, match=rf"file\.conll:{wrong}: \d columns? where 2 are expected"):
        read(tmp_path, "\n".join(lines))


def test_lists_of_words_alone(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("# id = 12\n#yolo\nfilm\n\n#\nplot\n", encoding="utf-8")
    task = custom_task("tokens", ("0",), ("B-X", "I-X", "O"))
    ((_, examples),) = stream_unlabelled(path, task)
    assert examples.texts == (["#yolo", "film", "#", "plot"],)
    path.write_text("#two words\nfilm\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"words\.txt:1: '#two words' may be a comment or a word"):
        list(stream_unlabelled(path, task))


def test_a_file_of_hashtags_alone(tmp_path):
    assert read(tmp_path, "#a\tO\n\n#b\tO\n#c\tO\n") == [[("#a", "O")], [("#b", "O"), ("#c", "O")]]
