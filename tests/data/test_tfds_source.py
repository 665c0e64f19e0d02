import builtins
import shutil
import socket
import tempfile
import threading
import time

import pytest

from tfmt.data import tfds_source
from tfmt.data.sources import list_data_files, read_dataset, read_dataset_for, read_test_split
from tfmt.errors import RequestError, RequestWarning, RunError
from tfmt.files import relocated
from tfmt.spec import RunSpec

tfds = pytest.importorskip("tensorflow_datasets")

# (sentence1, sentence2, label) in the order of GLUE's file; TFDS stores them in another.
ROWS = [("Zoé left.", "She left.", 1), ("a", 'b "', 0), ("c", "d", 1)]
SHUFFLED = [2, 0, 1]


def mock(task_rows, monkeypatch):
    """Lets TFDS hold these rows for every split, under its own features."""
    import tensorflow as tf

    def as_dataset(self, *args, **kwargs):
        return tf.data.Dataset.from_tensor_slices(task_rows)

    monkeypatch.setattr(tfds_source, "_find_problem", lambda hosts: "")
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


def write_conll(folder, *, blank_end=("train", "valid")):
    """CoNLL-2003's three files with sentences that all differ."""
    for name, count in (("train", 90), ("valid", 7), ("test", 20)):
        sentences = [
            f"{name}{i} NNP B-NP {('B-PER', 'O', 'B-LOC')[i % 3]}\n"
            + "".join(f"w{j} NN I-NP {'I-PER' if i % 3 == 0 and j == 0 else 'O'}\n" for j in range(i % 4))
            for i in range(count)
        ]
        text = "-DOCSTART- -X- -X- O\n\n" + "\n".join(sentences)
        (folder / f"{name}.txt").write_text(text + ("\n" if name in blank_end else ""))


@pytest.fixture(scope="module")
def conll(tmp_path_factory):
    """The files of CoNLL-2003, and the folder into which TFDS's own builder stored them, in three shards."""
    files, store = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("store")
    write_conll(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: files)
        builder = tfds.builder("conll2003", data_dir=str(store))
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return files, store


def refuse_network(monkeypatch):
    monkeypatch.setattr(tfds_source, "_find_problem", lambda hosts: pytest.fail("asked the network"))


def test_conll2003_has_the_order_of_its_files(conll, monkeypatch, capfd):
    files, store = conll
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(store))
    refuse_network(monkeypatch)
    stored = [example["tokens"][0].decode() for example in tfds.as_numpy(tfds.load("conll2003", split="test"))]
    capfd.readouterr()
    dataset, expected = read_dataset("conll2003_ner"), read_dataset("conll2003_ner", str(files))
    assert dataset.digests == expected.digests
    assert dataset.test is not None
    assert dataset.notes["entity_tags"] == expected.notes["entity_tags"]
    assert dataset.notes["sentences"] == {"train": 90, "validation": 7}
    test = read_test_split("conll2003_ner", "", "test")
    first = [word for word in test.texts[0] if word.startswith("test")]
    assert first == [f"test{i}" for i in range(20)] != stored
    assert test.labels.tolist() == read_test_split("conll2003_ner", str(files), "test").labels.tolist()
    assert capfd.readouterr() == ("", "")


def test_listed_files_are_all_that_is_read_of_it(conll, monkeypatch, tmp_path):
    _, store = conll
    spec = RunSpec.make(model="demo", task="conll2003_ner", mode="layernorm")
    refuse_network(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(store))
        expected, (place, listed) = read_dataset_for(spec), list_data_files(spec)
    assert place == store
    for path in listed:
        target = tmp_path / path.relative_to(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "none"))
    with relocated({"": str(tmp_path)}):
        found = read_dataset_for(spec)
    assert (found.digests, found.notes) == (expected.digests, expected.notes)


def test_the_first_read_downloads_and_says_one_line(conll, monkeypatch, tmp_path, capfd):
    files, _ = conll
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_source, "_find_problem", lambda hosts: "")
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: files)
    assert read_dataset("conll2003_ner").digest == read_dataset("conll2003_ner", str(files)).digest
    told = f"downloading conll2003 with TFDS into {tmp_path}/conll2003/conll2003/1.0.0\n"
    assert capfd.readouterr() == ("", told)


def test_an_order_that_is_not_understood_is_told(conll, monkeypatch):
    """As if another TFDS had hashed the sentences' numbers in another way."""
    _, store = conll
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(store))
    monkeypatch.setattr("tensorflow_datasets.core.hashing.Hasher.hash_key", lambda self, key: (7 * key) % 91)
    with pytest.warns(RequestWarning, match="Sentences of train, validation are not in the order"):
        dataset = read_dataset("conll2003_ner")
    assert dataset.notes["shuffled"] == ["train", "validation"]
    assert len(dataset.splits["train"]) == 90


def serve(answer):
    """A server on this machine that takes connections; `answer` gets each of them. Returns its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def take():
        while True:
            connection, _ = server.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=take, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def refuse(connection):
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    connection.close()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"NO_PROXY": "localhost"}, "dl.fbaipublicfiles.com cannot be reached; is this machine offline"),
        ({"HTTPS_PROXY": "http://127.0.0.1:9"}, "cannot be reached through the proxy that HTTPS_PROXY"),
        ({"HTTPS_PROXY": refuse}, "cannot be reached through the proxy that HTTPS_PROXY"),
        ({"HTTPS_PROXY": lambda connection: time.sleep(60)}, "dl.fbaipublicfiles.com does not answer"),
    ],
)
def test_no_network_is_one_line_and_soon(environment, reason, monkeypatch, tmp_path, capfd):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, serve(value) if callable(value) else value)

    def lookup(host, *arguments, **options):
        if host != "127.0.0.1":
            raise socket.gaierror(-2, "Name or service not known")
        return look_up(host, *arguments, **options)

    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(tfds_source, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    started = time.monotonic()
    with pytest.raises(RunError, match=rf"it is not in .*, and .*{reason}.*give --data_dir .*RTE/train\.tsv") as error:
        read_dataset("rte")
    assert time.monotonic() - started < 15
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_name_that_is_looked_up_for_ever_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(tfds_source, "_ALL_SECONDS", 0.2)
    monkeypatch.setattr(tfds_source, "_ask", lambda host, problems: time.sleep(60))
    assert tfds_source._find_problem(["a.example"]) == "a.example does not answer"


def test_a_failed_download_is_one_line(monkeypatch, tmp_path, capfd):
    def fail(self, url):
        print("Downloading and preparing dataset")
        tfds.core.logging.logging_logger.logging.warning("retrying in 1 second")
        raise OSError("no route\nto host")

    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_source, "_find_problem", lambda hosts: "")
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    with pytest.raises(RunError, match=r"OSError: .*no route.*--data_dir") as error:
        read_dataset("cola")
    assert "\n" not in str(error.value)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"downloading glue/cola with TFDS into {tmp_path}/glue/cola/2.0.0\n"


def test_without_the_package(monkeypatch):
    true_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("tensorflow_datasets"):
            raise ImportError(f"No module named {name!r}")
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RequestError, match=r"pip install tensorflow-datasets.*--data_dir"):
        read_dataset("cola")
