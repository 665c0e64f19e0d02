import numpy as np
import pytest

from tfmt.data.sources import count_examples, read_dataset, read_test_split
from tfmt.errors import RequestError

ROWS = {
    "cola": (["gj04\t1\t\tHe left.", "gj04\t0\t*\tLeft he."], [1, 0]),
    "sst2": (["sentence\tlabel", "a gem \t1", "dull \t0"], [1, 0]),
    "mrpc": (["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\tHe said " no .\t" No , he said .'], [1]),
    "rte": (["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment", "1\tc\td\tentailment"], [1, 0]),
    "qnli": (["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tentailment"], [0]),
    "stsb": (["index\tgenre\tsentence1\tsentence2\tscore", "0\tnews\ta\tb\t3.800", "1\tnews\tc\td\t0"], [3.8, 0]),
    "qqp": (["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tWhy?\tHow?\t0"], [0]),
    "mnli": (["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\ta\tb\tneutral\tcontradiction"], [2]),
}
FOLDERS = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "rte": "RTE", "qnli": "QNLI", "stsb": "STS-B"}
FOLDERS |= {"qqp": "QQP", "mnli": "MNLI"}


def lay_out(folder, task, lines=None, end="\n", start=b""):
    """Writes train and development files of a task; `lines` replaces those of train.tsv."""
    home = folder / FOLDERS[task]
    home.mkdir(exist_ok=True)
    names = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    for name in ["train", *names]:
        content = lines if lines is not None and name == "train" else ROWS[task][0]
        (home / f"{name}.tsv").write_bytes(start + "".join(line + end for line in content).encode())
    return home


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize(("end", "start"), [("\n", b""), ("\r\n", b""), ("\n", b"\xef\xbb\xbf")])
def test_every_task_is_read(tmp_path, task, end, start):
    home = lay_out(tmp_path, task, end=end, start=start)
    dataset = read_dataset(task, str(tmp_path))
    labels = dataset.splits["train"].labels
    assert labels.dtype == (np.float32 if task == "stsb" else np.int32)
    np.testing.assert_allclose(labels, ROWS[task][1], rtol=1e-6)
    assert set(dataset.splits) == {"train", *dataset.task.validation_splits}
    assert read_dataset(task, str(home)).digest == dataset.digest  # The task's own folder will do.


def test_texts_are_taken_as_they_are(tmp_path):
    lay_out(tmp_path, "mrpc")
    assert read_dataset("mrpc", str(tmp_path)).splits["train"].texts == (['He said " no .'], ['" No , he said .'])
    lay_out(tmp_path, "sst2", ["sentence\tlabel\textra", "a\x0bb\u2028c\x85 \t1\tmore"])
    assert read_dataset("sst2", str(tmp_path)).splits["train"].texts == (["a\x0bb\u2028c\x85 "],)
    lay_out(tmp_path, "cola")
    assert read_dataset("cola", str(tmp_path)).splits["train"].texts == (["He left.", "Left he."],)


def test_digest_depends_on_content_alone(tmp_path):
    lay_out(tmp_path, "rte")
    first = read_dataset("rte", str(tmp_path)).digest
    lay_out(tmp_path, "rte", end="\r\n", start=b"\xef\xbb\xbf")
    assert read_dataset("rte", str(tmp_path)).digest == first
    header, one, two = ROWS["rte"][0]
    for lines in (
        [header, two, one],
        [header, one],
        [header, one.replace("\tnot_", "\t"), two.replace("\tentail", "\tnot_entail")],
    ):
        lay_out(tmp_path, "rte", lines)
        assert read_dataset("rte", str(tmp_path)).digest != first
    lay_out(tmp_path, "rte", [header, one.replace("\ta\tb\t", "\tab\t\t"), two])
    assert read_dataset("rte", str(tmp_path)).digest != first


def test_qqp_drops_and_counts_corrupt_rows(tmp_path):
    header, row = ROWS["qqp"][0]
    lay_out(
        tmp_path,
        "qqp",
        [header, row, "", "4\t5\t6\tcut off", "7\t8\t9\ta\tb\tc", "7\t8\t9\ta\tb\tc\t1", row[:-1] + "1", "", ""],
    )
    dataset = read_dataset("qqp", str(tmp_path))
    assert len(dataset.splits["train"]) == 2
    assert dataset.notes["dropped_rows"] == {"train": 4, "validation": 0}


HEADER = ROWS["rte"][0][0]
GOOD = "0\ta\tb\tentailment"


@pytest.mark.parametrize(
    ("task", "lines", "message"),
    [
        ("rte", [HEADER, GOOD, "1\ta\tb"], r"train\.tsv:3: 3 fields where the header has 4 \(index, .*by tabs; repair"),
        ("rte", [HEADER, GOOD, "", GOOD], r"train\.tsv:3: an empty line between rows; repair or remove"),
        ("rte", [HEADER, "0\ta\tb\tentailment\t"], r"train\.tsv:2: 5 fields where the header has 4"),
        (
            "mrpc",
            [ROWS["mrpc"][0][0], "1\t7\t8\tThe plan\tsaid the firm .\tIt said so ."],
            r"train\.tsv:2: 6 fields where the header has 5",
        ),
        ("stsb", [ROWS["stsb"][0][0], "0\tnews\tThe\tplan\tb\t3.8"], r"train\.tsv:2: 6 fields where the header has 5"),
        (
            "cola",
            ["gj04\t1\t\tHe left.", "gj04\t1\t\tHe\tleft."],
            r"train\.tsv:2: 5 fields where the task has 4 \(source, label, note, sentence\)",
        ),
        ("rte", [HEADER, "0\ta\tb\tneutral"], r"train\.tsv:2: the label must be one of entailment.*'neutral'"),
        ("rte", ["index\tsentence1\tlabel", GOOD], r"train\.tsv:1: .*'sentence2'"),
        ("rte", [HEADER], r"train\.tsv: holds no example"),
        ("rte", [], r"train\.tsv:1: "),
        ("cola", ["source\tlabel\tnote\tsentence"], r"train\.tsv:1: the label must be"),
        ("stsb", [ROWS["stsb"][0][0], "0\tn\ta\tb\t5.1"], r"train\.tsv:2: the score must be a number from 0 to 5"),
        ("stsb", [ROWS["stsb"][0][0], "0\tn\ta\tb\tnan"], r"train\.tsv:2: the score"),
        ("qqp", [ROWS["qqp"][0][0], "nothing"], r"train\.tsv: holds no example \(1 corrupt"),
        ("rte", [HEADER, GOOD, GOOD], r"train\.tsv: every label is 'entailment'; training needs at least two"),
        ("stsb", [ROWS["stsb"][0][0], *["0\tn\ta\tb\t4.5"] * 2], r"train\.tsv: every label is 4\.5"),
        ("rte", [HEADER, "0\ta\t \tentailment", "1\tb\t\tnot_entailment"], r"train\.tsv: sentence2 is empty in"),
        ("rte", [HEADER + "\tsentence1", GOOD + "\tc"], r"train\.tsv:1: the header has the column 'sentence1' twice"),
        ("rte", [HEADER, "0\ta\0\tb\tentailment"], r"train\.tsv:2: holds a NUL"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, task, lines, message):
    lay_out(tmp_path, task, lines)
    with pytest.raises(RequestError, match=message) as error:
        read_dataset(task, str(tmp_path))
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path):
    home = lay_out(tmp_path, "rte")
    (home / "dev.tsv").write_bytes(f"{HEADER}\n{GOOD}\n1\tcaf".encode() + b"\xe9\tb\tentailment\n")
    with pytest.raises(RequestError, match=r"dev\.tsv:3: byte 0xe9 is not utf-8"):
        read_dataset("rte", str(tmp_path))


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(RequestError, match="there is no such folder"):
        read_dataset("rte", str(tmp_path / "nowhere"))
    with pytest.raises(RequestError, match=r"train\.tsv: there is no such file; check --data_dir"):
        read_dataset("rte", str(tmp_path))
    (lay_out(tmp_path, "rte") / "dev.tsv").unlink()
    with pytest.raises(RequestError, match=r"dev\.tsv: there is no such file"):
        read_dataset("rte", str(tmp_path))


def test_test_files_have_no_labels(tmp_path):
    for task, lines in {
        "cola": ["index\tsentence", "0\tHe left.", "1\tLeft he."],
        "mrpc": ["index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\ta\tb", "1\t1\t2\tc\td"],
        "mnli": ["index\tsentence1\tsentence2", "0\ta\tb", "1\tc\td"],
    }.items():
        name = "test_mismatched" if task == "mnli" else "test"
        (lay_out(tmp_path, task) / f"{name}.tsv").write_text("\n".join(lines) + "\n")
        examples = read_test_split(task, str(tmp_path), name)
        assert examples.labels is None
        assert len(examples) == 2
    with pytest.raises(RequestError, match="split must be a test split of rte"):
        read_test_split("rte", str(tmp_path), "validation")
    (lay_out(tmp_path, "rte") / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\n")
    with pytest.raises(RequestError, match=r"test\.tsv:2: 2 fields where the header has 3"):
        read_test_split("rte", str(tmp_path), "test")
    for task, header, row in (
        ("cola", "index\tsentence", "0\tHe\tleft."),
        ("mrpc", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t1\t2\tThe plan\tsaid the firm .\tIt said so ."),
    ):
        (lay_out(tmp_path, task) / "test.tsv").write_text(f"{header}\n{row}\n")
        with pytest.raises(RequestError, match=r"test\.tsv:2: \d fields where the header has \d .*repair this line"):
            read_test_split(task, str(tmp_path), "test")


def test_counts_come_from_the_files_or_the_published_sizes(tmp_path):
    lay_out(tmp_path, "rte")
    assert count_examples("rte", str(tmp_path)) == {"train": 2, "validation": 2}
    assert count_examples("mnli") == {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832}
