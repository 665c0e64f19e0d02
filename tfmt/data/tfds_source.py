"""TensorFlow Datasets as a source."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.conll import number_tags, settle_tags
from tfmt.data.examples import Examples
from tfmt.data.rows import Row
from tfmt.errors import RequestError
from tfmt.tasks import Task

# TFDS's names where they differ from ours.
_SPLITS = {"conll2003_ner": {"validation": "dev"}}
_HOST = "storage.googleapis.com"


def read_tfds(task: Task, splits: Sequence[str]) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Reads splits of the task's TFDS dataset, which is downloaded the first time.

    GLUE's examples are put back into the order of GLUE's files, which TFDS shuffles, so that both sources train alike.

    Args:
      task: a task with a TFDS name.
      splits: names as in `task.validation_splits`.

    Returns:
      The splits, and notes for the record. The labels of test splits are None, except for entities.

    Raises:
      RequestError: tensorflow_datasets is not installed, or the data is neither on this machine nor to be had.
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
        if not tfds.builder(task.tfds_name).is_prepared() and _offline():
            raise ConnectionError("this machine is offline and the data has not been downloaded before")
        datasets, info = tfds.load(task.tfds_name, split=names, with_info=True)
    except Exception as error:  # Downloads fail in too many ways to list: network, checksums, disk, missing packages.
        reason = (str(error).splitlines() or [""])[0][:200]
        raise RequestError(
            f"TFDS could not give {task.tfds_name} ({type(error).__name__}: {reason}); "
            f"connect to the network, or {remedy}"
        ) from None
    named = dict(zip(splits, datasets, strict=True))
    notes: dict[str, Any] = {"source": f"TFDS {info.full_name}"}
    if task.head == "tokens":
        examples, tags = _read_tagged(task, named, info.features)
        return examples, notes | tags
    return {name: _read_texts(task, dataset, info.features) for name, dataset in named.items()}, notes


def _read_texts(task: Task, dataset: Any, features: Any) -> Examples:
    """A split of GLUE, sorted by the row of GLUE's file."""
    if task.classes:
        _check_classes(task, features["label"].names)
    texts: tuple[list[str], ...] = tuple([] for _ in task.text_fields)
    labels, rows = [], []
    for batch in dataset.batch(1024).as_numpy_iterator():
        for column, field in zip(texts, task.text_fields, strict=True):
            column.extend(text.decode("utf-8") for text in batch[field].tolist())
        labels.append(batch["label"])
        rows.append(batch["idx"])
    flat = np.concatenate(labels).astype(np.int32 if task.classes else np.float32)
    order = np.argsort(np.concatenate(rows), kind="stable")
    hidden = bool((flat == -1).all())  # Test splits: -1 stands for a label that is not public.
    return Examples(texts, None if hidden else flat).take(order)


def _read_tagged(task: Task, datasets: dict[str, Any], features: Any) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Splits of CoNLL-2003, without the empty sentence that TFDS may put last, and notes on their tags."""
    _check_classes(task, features["ner"].feature.names)
    rows: dict[str, list[Row]] = {name: [] for name in datasets}
    for name, dataset in datasets.items():
        for example in dataset.as_numpy_iterator():
            if len(example["tokens"]):
                words = [word.decode("utf-8") for word in example["tokens"]]
                tags = [task.classes[tag] for tag in example["ner"]]
                rows[name].append(Row(len(rows[name]) + 1, {"words": words, "tags": tags}))
    settled = settle_tags(rows, "tags")
    rows, notes = (rows, {}) if settled is None else (settled.rows, {"entity_tags": settled.notes})
    place = Path(task.tfds_name)
    return {name: number_tags(place, split, "words", "tags", task.classes) for name, split in rows.items()}, notes


def _check_classes(task: Task, names: Sequence[str]) -> None:
    if tuple(names) != task.classes:
        raise RequestError(
            f"TFDS orders the classes of {task.tfds_name} as {', '.join(names)}, "
            f"and tfmt as {', '.join(task.classes)}; install another version of tensorflow-datasets"
        )


def _offline() -> bool:
    """Whether no name can be looked up, which TFDS itself would only say after minutes of retries."""
    if urllib.request.getproxies():
        return False
    try:
        socket.getaddrinfo(_HOST, 443)
    except OSError:
        return True
    return False


def _remedy(task: Task) -> str:
    if task.glue is not None:
        return f"give --data_dir with GLUE's own files (a folder that holds {task.glue.folder}/train.tsv)"
    return "give --data_dir with eng.train, eng.testa and eng.testb, or train.txt, valid.txt and test.txt"
