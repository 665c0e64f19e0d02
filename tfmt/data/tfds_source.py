"""TensorFlow Datasets as a source."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmt import quiet
from tfmt.data.conll import number_tags, settle_tags
from tfmt.data.examples import Examples
from tfmt.data.rows import Row
from tfmt.errors import RequestError, RequestWarning, RunError
from tfmt.tasks import Task

# TFDS's names where they differ from ours.
_SPLITS = {"conll2003_ner": {"validation": "dev"}}
# From where TFDS downloads; MRPC's development set is on a host of its own.
_HOSTS = {
    "conll2003": ("data.deepai.org",),
    "glue": ("dl.fbaipublicfiles.com",),
    "glue/mrpc": ("dl.fbaipublicfiles.com", "firebasestorage.googleapis.com"),
}
_ANSWER_SECONDS = 5.0  # for a connection, and again for an answer
_ALL_SECONDS = 15.0  # for everything, names that are looked up included


class _Stored(NamedTuple):
    """A split as TFDS keeps it: one array or list a feature, in TFDS's order."""

    split: str
    columns: dict[str, list[Any]]


def read_tfds(task: Task, splits: Sequence[str], place: str = "") -> tuple[dict[str, Examples], dict[str, Any]]:
    """Reads splits of the task's TFDS dataset, which is downloaded the first time.

    TFDS shuffles what it stores. Examples are put back into the order of the files, so that both sources train alike:
    GLUE's by their index, CoNLL-2003's by the keys from which TFDS made its order.

    Args:
      task: a task with a TFDS name.
      splits: names as in `task.validation_splits`.
      place: the folder in which TFDS keeps its datasets; empty for the one that it takes by itself.

    Returns:
      The splits, and notes for the record. The labels of test splits are None, except for entities.

    Raises:
      RequestError: tensorflow_datasets is not installed, or has other classes.
      RunError: the data is neither on this machine nor to be had.
    """
    remedy = _remedy(task)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise RequestError(
            f"task={task.name} without --data_dir needs tensorflow-datasets ({error}): "
            f"pip install tensorflow-datasets, or {remedy}"
        ) from None
    names = [_SPLITS.get(task.name, {}).get(split, split) for split in splits]
    try:
        builder = _prepare(tfds, task.tfds_name, place)
        with quiet.silent():  # reading imports TensorFlow
            read = _read_tagged if task.head == "tokens" else _read_texts
            stored = [read(task, builder, name) for name in names]
    except RunError as error:
        raise RunError(f"TFDS could not give {task.tfds_name} ({error}); {remedy}") from None
    except Exception as error:  # Downloads fail in too many ways to list: network, checksums, disk, missing packages.
        reason = (str(error).splitlines() or [""])[0][:200]
        raise RunError(
            f"TFDS could not give {task.tfds_name} ({type(error).__name__}: {reason}); "
            f"connect to the network, or {remedy}"
        ) from None
    named = dict(zip(splits, stored, strict=True))
    notes: dict[str, Any] = {"source": f"TFDS {builder.info.full_name}"}
    if task.head == "tokens":
        _check_classes(task, builder.info.features["ner"].feature.names)
        examples, more = _restore_sentences(task, named, builder.info.disable_shuffling)
        return examples, notes | more
    if task.classes:
        _check_classes(task, builder.info.features["label"].names)
    return {name: _restore_rows(task, split) for name, split in named.items()}, notes


def list_tfds_files(task: Task) -> tuple[Path, list[Path]]:
    """TFDS's folder, and the files in it that hold the task's dataset, which has been read before."""
    import tensorflow_datasets as tfds

    with quiet.silent(), _without_bucket(tfds):
        builder = tfds.builder(task.tfds_name)
    folder = Path(builder.data_dir)
    root = folder.parents[len(Path(builder.info.full_name).parts) - 1]
    return root, sorted(path for path in folder.rglob("*") if path.is_file())


# ---- what TFDS does ------------------------------------------------------------------------------------------------


def _prepare(tfds: Any, name: str, place: str = "") -> Any:
    """The builder of a dataset that lies in TFDS's folder, where need be after a download.

    Raises:
      RunError: it is not there, and the hosts that have it cannot be reached.
    """
    with quiet.silent(), _without_bucket(tfds):
        builder = tfds.builder(name, data_dir=place or None)
        is_there = builder.is_prepared()
    if is_there:
        return builder
    # TFDS would try a dead connection for minutes, and a server that says nothing for ever.
    problem = _find_problem(_HOSTS.get(name) or _HOSTS.get(name.partition("/")[0], ()))
    if problem:
        raise RunError(f"it is not in {builder.data_dir}, and {problem}")
    print(f"downloading {name} with TFDS into {builder.data_dir}", file=sys.stderr, flush=True)
    with quiet.silent():
        # From the hosts that were asked, as newer TFDS does by itself, and not from its bucket.
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


@contextmanager
def _without_bucket(tfds: Any) -> Iterator[None]:
    """Keeps TFDS from asking its bucket about a dataset that is not here.

    It would ask before anyone knows whether there is a network, and leave an empty folder among the temporary ones.
    """
    info = tfds.core.DatasetInfo
    ask = info.initialize_from_bucket
    info.initialize_from_bucket = lambda self: None
    try:
        yield
    finally:
        info.initialize_from_bucket = ask


def _find_problem(hosts: Sequence[str]) -> str:
    """Why these hosts cannot be reached, in the way in which TFDS reaches them, or "" if they can."""
    problems: dict[str, str] = {}
    threads = [threading.Thread(target=_ask, args=(host, problems), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for host, thread in zip(hosts, threads, strict=True):
        thread.join(_ALL_SECONDS)  # looking up a name has no limit of its own
        if thread.is_alive():
            return f"{host} does not answer"
    return next((problems[host] for host in hosts if problems[host]), "")


def _ask(host: str, problems: dict[str, str]) -> None:
    import requests  # by which TFDS downloads, so that proxies are those that it would take

    try:
        requests.head(f"https://{host}/", timeout=_ANSWER_SECONDS, allow_redirects=False).close()
        problems[host] = ""
    except requests.exceptions.ProxyError:
        problems[host] = f"{host} cannot be reached through the proxy that HTTPS_PROXY or ALL_PROXY names"
    except requests.exceptions.Timeout:
        problems[host] = f"{host} does not answer"
    except requests.exceptions.SSLError:
        problems[host] = f"{host} shows a certificate that is not trusted here; is there a log-in page in between?"
    except (requests.exceptions.RequestException, OSError, ValueError):
        problems[host] = f"{host} cannot be reached; is this machine offline?"


def _open(builder: Any, split: str) -> Any:
    """A split as a tf.data.Dataset, file after file: TFDS would mix its files."""
    import tensorflow_datasets as tfds

    return builder.as_dataset(split=split, read_config=tfds.ReadConfig(interleave_cycle_length=1))


# ---- reading it ----------------------------------------------------------------------------------------------------


def _read_texts(task: Task, builder: Any, split: str) -> _Stored:
    columns: dict[str, list[Any]] = {name: [] for name in (*task.text_fields, "label", "idx")}
    for batch in _open(builder, split).batch(1024).as_numpy_iterator():
        for name, column in columns.items():
            column.extend(batch[name].tolist())
    return _Stored(split, columns)


def _read_tagged(task: Task, builder: Any, split: str) -> _Stored:
    columns: dict[str, list[Any]] = {"tokens": [], "ner": []}
    for example in _open(builder, split).as_numpy_iterator():
        for name, column in columns.items():
            column.append(example[name].tolist())
    return _Stored(split, columns)


def _restore_rows(task: Task, stored: _Stored) -> Examples:
    """A split of GLUE, sorted by the row of GLUE's file."""
    columns = stored.columns
    texts = tuple([text.decode("utf-8") for text in columns[field]] for field in task.text_fields)
    labels = np.array(columns["label"], np.int32 if task.classes else np.float32)
    hidden = bool((labels == -1).all())  # Test splits: -1 stands for a label that is not public.
    return Examples(texts, None if hidden else labels).take(np.argsort(columns["idx"], kind="stable"))


def _restore_sentences(
    task: Task, splits: dict[str, _Stored], in_order: bool
) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Splits of CoNLL-2003 in the order of its files, and notes on them.

    The empty sentence that TFDS makes of the end of a file is left out.
    """
    rows: dict[str, list[Row]] = {}
    lost = []
    for name, (split, columns) in splits.items():
        words, tags = columns["tokens"], columns["ner"]
        order: Sequence[int] = range(len(words))
        if not in_order:
            restored = _file_order(split, [len(sentence) for sentence in words])
            if restored is None:
                lost.append(name)
            else:
                order = restored
        found = [
            {"words": [word.decode("utf-8") for word in words[i]], "tags": [task.classes[tag] for tag in tags[i]]}
            for i in order
            if words[i]
        ]
        rows[name] = [Row(number, fields) for number, fields in enumerate(found, 1)]
    if lost:
        warnings.warn(
            f"task={task.name}: TFDS's {task.tfds_name} on this machine is shuffled in a way that tfmt does not know. "
            f"Sentences of {', '.join(lost)} are not in the order of CoNLL-2003's files: a run gives other numbers "
            f"than from the files, and predictions cannot be laid beside them; {_remedy(task)}",
            RequestWarning,
            stacklevel=2,
        )
    notes: dict[str, Any] = {"shuffled": lost} if lost else {}
    settled = settle_tags(rows, "tags")
    if settled is not None:
        rows, notes = settled.rows, notes | {"entity_tags": settled.notes}
    place = Path(task.tfds_name)
    return {name: number_tags(place, split, "words", "tags", task.classes) for name, split in rows.items()}, notes


def _file_order(split: str, lengths: Sequence[int]) -> list[int] | None:
    """Where TFDS stores sentence 0, 1, ... of a file of CoNLL-2003; None if it did not store them as expected.

    TFDS numbers sentences as it reads them, and sorts them by a hash of the number and the split's name. Only the last
    can be empty, where the file ends in a blank line, which shows whether the numbers are right.

    Args:
      split: TFDS's name of it.
      lengths: the words of each sentence as stored.
    """
    from tensorflow_datasets.core import hashing

    hasher = hashing.Hasher(split)
    numbers = np.array(sorted(range(len(lengths)), key=hasher.hash_key), np.int64)
    empty = np.flatnonzero(np.array(lengths) == 0)
    return np.argsort(numbers).tolist() if (numbers[empty] == len(lengths) - 1).all() else None


def _check_classes(task: Task, names: Sequence[str]) -> None:
    if tuple(names) != task.classes:
        raise RequestError(
            f"TFDS orders the classes of {task.tfds_name} as {', '.join(names)}, "
            f"and tfmt as {', '.join(task.classes)}; install another version of tensorflow-datasets"
        )


def _remedy(task: Task) -> str:
    if task.glue is not None:
        return f"give --data_dir with GLUE's own files (a folder that holds {task.glue.folder}/train.tsv)"
    return "give --data_dir with eng.train, eng.testa and eng.testb, or train.txt, valid.txt and test.txt"
