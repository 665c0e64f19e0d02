import itertools
import json
import warnings

import numpy as np
import pytest

from tfmt.data.own_files import find_own_file, stream_unlabelled
from tfmt.data.rows import read_rows
from tfmt.data.sources import read_dataset, read_dataset_for, read_test_split
from tfmt.errors import RequestError, RequestWarning
from tfmt.spec import RunSpec
from tfmt.tasks import custom_task

ROWS = [
    {"id": "1", "a": 'She said "hi", twice', "b": "x", "y": "pos"},
    {"id": "2", "a": "caf\u00e9 ; \u2028 no break", "b": "", "y": "neg"},
    {"id": "3", "a": "plain", "b": "z z", "y": "neutral"},
]


def tsv(rows):
    return "\n".join("\t".join(row) for row in (rows[0], *(r.values() for r in rows))) + "\n"


def quoted(rows):
    lines = [rows[0], *(row.values() for row in rows)]
    return "\r\n".join(",".join('"' + str(v).replace('"', '""') + '"' for v in line) for line in lines) + "\r\n"


def jsonl(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


WRITERS = {"tsv": tsv, "csv": quoted, "jsonl": jsonl}
PAIRS = {"text_columns": ("a", "b"), "label_column": "y", "task_type": "classification"}


def lay_out(folder, ending="tsv", **contents):
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.{ending}").write_bytes(content.encode())
    return str(folder)


def test_every_format_of_the_same_rows_is_the_same_data(tmp_path):
    digests = set()
    for ending, write in WRITERS.items():
        content = write(ROWS)
        folder = lay_out(tmp_path / ending, ending, train=content, validation=content)
        dataset = read_dataset("custom", folder, **PAIRS)
        assert dataset.task.classes == ("neg", "neutral", "pos")
        assert dataset.task.text_fields == ("a", "b")
        train = dataset.splits["train"]
        assert train.texts == ([row["a"] for row in ROWS], [row["b"] for row in ROWS])
        assert train.labels.tolist() == [2, 0, 1]
        digests.add(dataset.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["validation", "valid", "dev"])
def test_names_of_the_validation_file(tmp_path, name):
    folder = lay_out(tmp_path, train=tsv(ROWS), **{name: tsv(ROWS)})
    assert len(read_dataset("custom", folder, **PAIRS).splits["validation"]) == 3


def test_json_labels_may_be_numbers(tmp_path):
    rows = [{"a": "x", "y": 1}, {"a": "y", "y": 0}, {"a": "z", "y": True}]
    folder = lay_out(tmp_path, "jsonl", train=jsonl(rows), dev=jsonl(rows[:2]))
    settings = PAIRS | {"text_columns": ("a",)}
    assert read_dataset("custom", folder, **settings).task.classes == ("0", "1", "true")
    settings["task_type"] = "regression"
    with pytest.raises(RequestError, match=r"train\.jsonl:3: y must be a number, not 'true'"):
        read_dataset("custom", folder, **settings)
    lay_out(tmp_path, "jsonl", train=jsonl([{"a": "x", "y": -1.5}, {"a": "y", "y": "2"}]))
    dataset = read_dataset("custom", folder, **settings)
    assert dataset.splits["train"].labels.tolist() == [-1.5, 2.0]
    assert dataset.task.kind == "regression"


def test_csv_fields_may_span_lines(tmp_path):
    content = ('a,y\n"one\r\ntwo",1\n\nthree,0\n"bad',)
    folder = lay_out(tmp_path, "csv", train='a,y\n"one\r\ntwo",1\n\nthree,0\n', dev="a,y\nx,1\n")
    settings = PAIRS | {"text_columns": ("a",)}
    assert read_dataset("custom", folder, **settings).splits["train"].texts == (["one\ntwo", "three"],)
    assert [row.line for row in read_rows(tmp_path / "train.csv")] == [2, 5]
    lay_out(tmp_path, "csv", train=content[0])
    with pytest.raises(RequestError, match=r"train\.csv:6: not a row of CSV"):
        read_dataset("custom", folder, **settings)


def make_pool(count=400):
    return [{"a": f"text {i % (count // 2)}", "y": "ab"[i % 2]} for i in range(count)]


def test_one_file_is_split_by_its_texts(tmp_path):
    lay_out(tmp_path, pool=tsv(make_pool()))
    settings = PAIRS | {"text_columns": ("a",), "validation_fraction": 0.2}
    dataset = read_dataset("custom", str(tmp_path / "pool.tsv"), **settings)
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    assert len(train) + len(validation) == 400
    assert 40 < len(validation) < 120
    assert not set(train.texts[0]) & set(validation.texts[0])  # Every text is there twice, on one side.
    assert "hash" in dataset.notes["split_rule"]
    assert read_dataset("custom", str(tmp_path / "pool.tsv"), **settings).digest == dataset.digest
    other = read_dataset("custom", str(tmp_path / "pool.tsv"), **settings, split_seed=5)
    assert other.digest != dataset.digest
    (tmp_path / "pool.tsv").rename(tmp_path / "train.tsv")
    assert read_dataset("custom", str(tmp_path), **settings).digest == dataset.digest


def test_it_reads_what_a_spec_asks_for(tmp_path):
    folder = lay_out(tmp_path, train=tsv(ROWS), dev=tsv(ROWS))
    spec = RunSpec.make(model="demo", task="custom", mode="layernorm", data_dir=folder, **PAIRS)
    assert read_dataset_for(spec).digest == read_dataset("custom", folder, **PAIRS).digest


BAD = [
    ("tsv", "a\tb\ty\n1\t2\n", r"train\.tsv:2: 2 fields where the header has 3"),
    ("tsv", "a\tb\ty\n1\t2\t3\t4\n", r"train\.tsv:2: 4 fields where the header has 3"),
    ("tsv", "a\ta\ty\n", r"train\.tsv:1: the header has the column 'a' twice"),
    ("tsv", "a\ty\nx\tp\n", r"train\.tsv:2: no column 'b' \(there are: a, y\)"),
    ("tsv", "a\tb\ty\nx\tz\t \n", r"train\.tsv:2: y is not a label"),
    ("tsv", "a\tb\ty\n", r"the train split holds no example"),
    ("tsv", "", r"the train split holds no example"),
    ("tsv", "a\tb\ty\nx\tz\tp\n", r"only one class \(p\)"),
    ("csv", 'a,b,y\n"x"z,1,2\n', r"train\.csv:2: not a row of CSV"),
    ("csv", "a,b,y\n1,2\n", r"train\.csv:2: 2 fields"),
    ("jsonl", '{"a": "x", "b": "z", "y": 1}\n{"a": \n', r"train\.jsonl:2: not JSON"),
    ("jsonl", "[1]\n", r"train\.jsonl:1: not a JSON object"),
    ("jsonl", '{"a": 1, "b": "z", "y": 1}\n', r"train\.jsonl:1: a must be a text, not int"),
    ("jsonl", '{"a": "x", "b": "z", "y": null}\n', r"train\.jsonl:1: y is not a label: None"),
    ("jsonl", '{"a": "x", "b": "\\ud800", "y": 1}\n', r"train\.jsonl:1: a text holds half a surrogate"),
    ("jsonl", '{"a": "x", "b": "z", "y": "\\ud800"}\n', r"train\.jsonl:1: a text holds half a surrogate"),
    ("jsonl", '{"a": "x", "a": "y", "b": "z", "y": 1}\n', r"train\.jsonl:1: the key 'a' is there twice"),
    ("jsonl", "[" * 100_000 + "\n", r"train\.jsonl:1: nested too deeply"),
    ("tsv", "a\tb\ty\nx\0\tz\tp\n", r"train\.tsv:2: holds a NUL"),
    ("csv", "a,b,y\n1,2,p\n1,\0,q\n", r"train\.csv:3: holds a NUL"),
    ("tsv", "a\tb\ty\rx\tz\tp\rx\tz\tq\r", r"train\.tsv:1: lines end with a carriage return alone"),
    ("csv", 'a,b,y\n1,"' + 140_000 * "2" + '",p\n', r"train\.csv:2: a field of over 131,072 characters"),
    ("tsv", "a\tb\ty\nx\t \tpos\nx\t\tneg\nx\t\tneutral\n", r"train\.tsv: b is empty in every row"),
]


@pytest.mark.parametrize(("ending", "content", "message"), BAD)
def test_bad_rows_are_named(tmp_path, ending, content, message):
    folder = lay_out(tmp_path, ending, train=content, dev=WRITERS[ending](ROWS))
    with pytest.raises(RequestError, match=message) as error:
        read_dataset("custom", folder, **PAIRS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [("1 1e39", r"train\.tsv:3: y is 1e39, more than float32 holds; scale the scores"), ("1 x", "'x'"),
     ("1 nan", "'nan'"), ("2.5 2.5", r"train\.tsv: every label is 2\.5"), ("1 -3e38", "")],
)  # fmt: skip
def test_scores_are_numbers_that_differ(tmp_path, labels, message):
    rows = "a\tb\ty\n" + "".join(f"x\tz\t{label}\n" for label in labels.split())
    folder = lay_out(tmp_path, train=rows, dev=tsv(ROWS[:1]).replace("pos", "0.5"))
    settings = PAIRS | {"task_type": "regression"}
    if not message:
        assert read_dataset("custom", folder, **settings).splits["train"].labels.tolist() == [1, np.float32(-3e38)]
        return
    with pytest.raises(RequestError, match=message):
        read_dataset("custom", folder, **settings)


def test_labels_that_training_lacks(tmp_path):
    rows = [*ROWS, ROWS[0] | {"y": "new"}, ROWS[0] | {"y": "odd"}]
    folder = lay_out(tmp_path, train=tsv(ROWS), dev=tsv(rows))
    with pytest.raises(RequestError, match=r"dev\.tsv:5: labels in the validation split .* lacks: new, odd"):
        read_dataset("custom", folder, **PAIRS)


def test_files_that_cannot_be_chosen(tmp_path):
    def message(place, **settings):
        with pytest.raises(RequestError) as error:
            read_dataset("custom", str(place), **(PAIRS | settings))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such file or folder" in message(tmp_path / "nowhere")
    assert "holds no train file" in message(tmp_path)
    lay_out(tmp_path, train=tsv(ROWS))
    assert "no validation file" in message(tmp_path)
    lay_out(tmp_path, dev=tsv(ROWS))
    assert "leave out --validation_fraction" in message(tmp_path, validation_fraction=0.5)
    lay_out(tmp_path, "csv", train=quoted(ROWS))
    assert "keep one train file" in message(tmp_path)
    lay_out(tmp_path, "xml", pool="")
    assert "the ending must be one of .tsv" in message(tmp_path / "pool.xml", validation_fraction=0.5)
    assert "1 or 2 columns" in message(tmp_path, text_columns=("a", "b", "c"))
    assert "1 column for tokens" in message(tmp_path, task_type="tokens")
    assert "task_type must be" in message(tmp_path, task_type="ranking")
    assert "add some, another --validation_fraction" in message(tmp_path / "dev.tsv", validation_fraction=1e-9)


def test_other_encodings(tmp_path):
    folder = lay_out(tmp_path, dev=tsv(ROWS[2:]))
    (tmp_path / "train.tsv").write_bytes(tsv([ROWS[0] | {"a": "caf\u00e9"}, ROWS[2]]).encode("latin-1"))
    with pytest.raises(RequestError, match=r"train\.tsv:2: byte 0xe9"):
        read_dataset("custom", folder, **PAIRS)
    assert read_dataset("custom", folder, **PAIRS, encoding="latin-1").splits["train"].texts[0][0] == "caf\u00e9"


SENTENCES = [(["The", "cat", "sat"], ["DT", "NN", "VBD"]), (["Go"], ["VB"])]
TAGGED = {"label_column": "t", "text_columns": ("w",), "task_type": "tokens"}


def test_every_format_of_the_same_sentences(tmp_path):
    joined = [{"w": " ".join(words), "t": " ".join(tags)} for words, tags in SENTENCES]
    lists = [{"w": words, "t": tags} for words, tags in SENTENCES]
    conll = "\n\n".join("\n".join(f"{w}\tx {t}" for w, t in zip(*s, strict=True)) for s in SENTENCES)
    conllu = "\n\n".join(
        "# text = ...\n1-2\tdu" + "\t_" * 8 + "\n"
        + "\n".join(f"{i}\t{w}\t_\t{t}" + "\t_" * 6 for i, (w, t) in enumerate(zip(*s, strict=True), 1))
        for s in SENTENCES
    )  # fmt: skip
    contents = {
        "tsv": (tsv(joined), ("w",), "t"),
        "csv": (quoted(joined), ("w",), "t"),
        "jsonl": (jsonl(lists), ("w",), "t"),
        "conll": (conll, ("0",), "2"),
        "txt": (conll, ("0",), "2"),
        "conllu": (conllu + "\n", ("form",), "upos"),
    }
    digests = set()
    for ending, (content, columns, label) in contents.items():
        folder = lay_out(tmp_path / ending, ending, train=content, dev=content)
        dataset = read_dataset("custom", folder, text_columns=columns, label_column=label, task_type="tokens")
        assert dataset.task.classes == ("DT", "NN", "VB", "VBD")
        assert dataset.task.metrics == ("accuracy",)
        assert dataset.splits["train"].sentence_lengths.tolist() == [3, 1]
        assert dataset.notes["words"] == {"train": 4, "validation": 4}
        digests.add(dataset.digest)
    assert len(digests) == 1


def test_entity_tags_become_iob2(tmp_path):
    folder = lay_out(tmp_path, "conll", train="a I-G\nb O\n\nc I-G\n", dev="a I-G\nb I-G\n\nc O\n")
    with pytest.raises(RequestError, match=r"dev\.conll:2: labels in the validation split .*: I-G;"):
        read_dataset("custom", folder, text_columns=("0",), label_column="1", task_type="tokens")
    lay_out(tmp_path, "conll", train="a I-G\nb I-G\nd O\n\nc I-G\n")
    dataset = read_dataset("custom", folder, text_columns=("0",), label_column="1", task_type="tokens")
    assert dataset.task.classes == ("B-G", "I-G", "O")
    assert dataset.task.headline == ("f1",)
    assert dataset.splits["train"].labels.tolist() == [0, 1, 2, 0]
    assert dataset.notes["entity_tags"] == {
        "train": {"scheme": "IOB1", "entities": 2, "irregular": 0},
        "validation": {"scheme": "IOB1", "entities": 1, "irregular": 0},
    }
    lay_out(tmp_path, "conll", train="a B-G\nb O\n\nc I-G\nd I-G\n")
    dataset = read_dataset("custom", folder, text_columns=("0",), label_column="1", task_type="tokens")
    assert dataset.splits["train"].labels.tolist() == [0, 2, 0, 1]
    assert dataset.notes["entity_tags"]["train"] == {"scheme": "IOB2", "entities": 2, "irregular": 1}


def test_one_file_is_judged_whole_before_it_is_split(tmp_path):
    # 30 sentences in IOB1, one of them with a B- that IOB1 does not need: no part of them is taken for IOB2.
    sentences = [f"w{i} {'B' if i == 7 else 'I'}-G\nx{i} O\ny{i} I-G\nz{i} I-G" for i in range(30)]
    lay_out(tmp_path, "conll", pool="\n\n".join(sentences) + "\n")
    dataset = read_dataset("custom", str(tmp_path / "pool.conll"), text_columns=("0",), label_column="1",
                           task_type="tokens", validation_fraction=0.3)  # fmt: skip
    assert dataset.notes["entity_tags"] == {"all": {"scheme": "IOB1", "entities": 60, "irregular": 1}}
    for examples in dataset.splits.values():
        assert examples.labels.tolist() == [0, 2, 0, 1] * len(examples)


def tagged_rows(*sentences):
    return [{"w": [f"w{i}" for i in range(len(tags.split()))], "t": tags.split()} for tags in sentences]


@pytest.mark.parametrize(
    ("sentences", "scheme", "more"),
    [
        (["S-G O B-G I-G E-G", "O B-G E-G S-G O"], "IOBES", {}),
        (["U-G O B-G I-G L-G", "O B-G L-G U-G O"], "BILOU", {}),
        (["E-G O I-G I-G E-G", "O I-G E-G E-G O"], "IOE2", {}),
        (["I-G O I-G I-G I-G", "O I-G E-G I-G O"], "IOE1", {}),
        (["I-G O I-G I-G I-G", "O I-G I-G B-G O"], "IOB1", {}),
        (["B-G O B-G I-G I-G", "O B-G I-G B-G 0"], "IOB2", {"outside": {"0": 1}}),
        (["B-G 0 B-G I-G I-G", "0 B-G I-G B-G 0"], "IOB2", {"outside": {"0": 3}}),
        (["B-Ge I-O B-Ge I-Ge I-Ge", "O B-Ge I-Ge B-Ge O"], "IOB2", {"outside": {"I-O": 1}}),
        (["G-S O G-B G-I G-E", "O G-B G-E G-S O"], "IOBES", {"form": "suffix"}),
        (["Ge-B O Ge-B Ge-I Ge-I", "O Ge-B Ge-I Ge-B O-I"], "IOB2", {"form": "suffix", "outside": {"O-I": 1}}),
        (["B O B I I", "O B I B O"], "IOB2", {"form": "untyped"}),
        (["S O B I E", "O B E S O"], "IOBES", {"form": "untyped"}),
    ],
)
def test_entity_tags_of_every_spelling_are_the_same_data(tmp_path, sentences, scheme, more):
    rows = tagged_rows(*sentences)
    folder = lay_out(tmp_path, "jsonl", train=jsonl(rows), dev=jsonl(rows))
    dataset = read_dataset("custom", folder, **TAGGED)
    names = [dataset.task.classes[tag][:1] for tag in dataset.splits["train"].labels]
    assert names == ["B", "O", "B", "I", "I", "O", "B", "I", "B", "O"]
    assert dataset.task.entities
    assert dataset.notes["entity_tags"]["train"] == {"scheme": scheme, "entities": 4, "irregular": 0} | more


@pytest.mark.parametrize(
    ("sentences", "told"),
    [
        (["B_G O I_G", "O O O"], r"train\.jsonl:1: .* B_G, I_G fit none of IOB1"),
        (["O O O", "B-G O E-G", "U-G O O"], r"train\.jsonl:2: .* E-G, U-G fit none of"),
        (["B-G I-G O", "B-G o I-Gx", "O O B/G"], r"train\.jsonl:3: .* B/G, o fit none of"),
        (["B-G I-G", "B-G I-G I-G"], r"train\.jsonl: .* there is no O"),
        (["(PER* *) * *", "* (LOC*)"], r"train\.jsonl:2: .* \(LOC\*\), \(PER\*, \*, \*\) fit none of"),
        (["B M E S", "S B E"], r"train\.jsonl:1: .* B, E, M, S fit none of"),
    ],
)
def test_tags_that_only_look_like_entities_are_warned_of(tmp_path, sentences, told):
    rows = tagged_rows(*sentences)
    folder = lay_out(tmp_path, "jsonl", train=jsonl(rows), dev=jsonl(rows))
    with pytest.warns(RequestWarning, match=told) as warned:
        dataset = read_dataset("custom", folder, **TAGGED)
    (warning,) = warned
    assert "accuracy, which is not entity F1" in str(warning.message)
    assert "\n" not in str(warning.message)
    assert dataset.task.metrics == ("accuracy",)
    assert "entity_tags" not in dataset.notes


@pytest.mark.parametrize("tags", ["NN VB -LRB- .", "B-side NN VB DT IN", "NOUN X-Y O", "1 0 0", "en de O mixed"])
def test_other_tags_are_scored_by_word_without_a_warning(tmp_path, tags):
    rows = tagged_rows(tags)
    folder = lay_out(tmp_path, "jsonl", train=jsonl(rows), dev=jsonl(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_dataset("custom", folder, **TAGGED).task.metrics == ("accuracy",)


def test_unseen_tags_are_named_as_the_file_writes_them(tmp_path):
    folder = lay_out(tmp_path, "conll", train="a S-G\nb O\n\nc S-G\n", dev="a S-G\n\nb O\nc B-G\nd E-G\n")
    with pytest.raises(RequestError, match=r"dev\.conll:5: labels .* lacks: I-G \(the file writes E-G\)"):
        read_dataset("custom", folder, text_columns=("0",), label_column="1", task_type="tokens")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"w": "a b", "t": "X"}], r"train\.jsonl:1: 2 words and 1 tag;"),
        ([{"w": "", "t": ""}], r"train\.jsonl:1: no words"),
        ([{"w": [1], "t": ["X"]}], r"train\.jsonl:1: w must be words"),
        ([{"w": "a"}], r"train\.jsonl:1: no column 't'"),
    ],
)
def test_bad_sentences_are_named(tmp_path, rows, message):
    folder = lay_out(tmp_path, "jsonl", train=jsonl(rows), dev=jsonl(rows))
    with pytest.raises(RequestError, match=message):
        read_dataset("custom", folder, **TAGGED)


def one_word_rows(ending, count=12):
    """A word a row; as in Kaggle's GMB only the first row of a sentence has its number."""
    rows = [
        {"Sentence #": "" if i % 4 else f"Sentence: {i // 4}", "Word": f"w{i}", "Tag": "OB"[i % 2]}
        for i in range(count)
    ]
    if ending == "conll":
        return "\n\n".join(f"{row['Word']} {row['Tag']}" for row in rows) + "\n", ("0",), "1"
    return WRITERS[ending](rows), ("Word",), "Tag"


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "conll"])
def test_one_word_a_row_is_no_sentence(tmp_path, ending):
    content, columns, label = one_word_rows(ending)
    lay_out(tmp_path, ending, pool=content)
    settings = {"text_columns": columns, "label_column": label, "task_type": "tokens", "validation_fraction": 0.25}
    with pytest.raises(
        RequestError, match=rf"pool\.{ending}: every sentence holds one word; .* write a \.conll"
    ) as error:
        read_dataset("custom", str(tmp_path / f"pool.{ending}"), **settings)
    assert "\n" not in str(error.value)


def test_one_word_a_row_is_warned_of_in_what_is_predicted(tmp_path):
    lay_out(tmp_path, "csv", words=one_word_rows("csv")[0], sentences="Word\na\nb c\n", single="Word\na\n")
    task = custom_task("tokens", ("Word",), ("B", "O"))
    with pytest.warns(RequestWarning, match=r"words\.csv: every sentence holds one word") as warned:
        assert sum(len(examples) for _, examples in stream_unlabelled(tmp_path / "words.csv", task, chunk=5)) == 12
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, count in (("sentences", 2), ("single", 1)):
            assert sum(len(e) for _, e in stream_unlabelled(tmp_path / f"{name}.csv", task)) == count


def test_input_is_streamed_in_chunks(tmp_path):
    lay_out(tmp_path, test=tsv(make_pool(10)))
    path = find_own_file(str(tmp_path), "test")
    task = custom_task("classification", ("a",), ("a", "b"))
    chunks = list(stream_unlabelled(path, task, chunk=4))
    assert [len(examples) for _, examples in chunks] == [4, 4, 2]
    rows = list(itertools.chain.from_iterable(rows for rows, _ in chunks))
    assert rows[0].fields == {"a": "text 0", "y": "a"}
    assert chunks[2][1].texts == (["text 3", "text 4"],)
    assert chunks[0][1].labels is None
    with pytest.raises(RequestError, match=r"test\.tsv:2: no column 'nothing'"):
        next(stream_unlabelled(path, task, ("nothing",)))
    with pytest.raises(RequestError, match="holds no train file"):
        find_own_file(str(tmp_path), "train")


def test_sentences_are_streamed(tmp_path):
    lay_out(tmp_path, "conll", test="a X\nb X\n\nc X\n\nd X\n")
    task = custom_task("tokens", ("0",), ("X", "Y"))
    (_, first), (_, second) = stream_unlabelled(tmp_path / "test.conll", task, chunk=2)
    assert first.texts == (["a", "b", "c"],)
    np.testing.assert_array_equal(first.sentence_lengths, [2, 1])
    assert second.texts == (["d"],)


def test_custom_has_no_test_split_by_name():
    with pytest.raises(RequestError, match="no fixed classes"):
        read_test_split("custom", "", "test")
