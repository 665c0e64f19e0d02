"""From the request to the data: which source reads a task."""

from __future__ import annotations

from typing import Any

from tfmt.data.demo_text import read_rotten_tomatoes
from tfmt.data.examples import Dataset, Examples
from tfmt.data.glue_files import read_glue_split, read_glue_test
from tfmt.data.tfds_source import read_tfds
from tfmt.errors import RequestError
from tfmt.tasks import Task, find_task


def read_dataset(task: str, data_dir: str = "") -> Dataset:
    """Reads the training and validation splits of a task.

    Args:
      task: the value of `--task`.
      data_dir: the task's own files; empty for TFDS, or for the packaged text of rotten_tomatoes.

    Raises:
      RequestError: the data cannot be had, or something in it is wrong; the message names file and line.

    Example:
      >>> read_dataset("rotten_tomatoes").splits["validation"].labels.shape
      (1017,)
    """
    found = find_task(task)
    if found.name == "rotten_tomatoes":
        _refuse_data_dir(found, data_dir)
        splits, notes = read_rotten_tomatoes()
    elif data_dir:
        splits, notes = _read_glue(found, data_dir)
    else:
        splits, notes = read_tfds(found, ("train", *found.validation_splits))
    return Dataset(found, splits, notes)


def read_test_split(task: str, data_dir: str, split: str) -> Examples:
    """Reads a split without labels, in the order of GLUE's own file.

    Args:
      task: the name of a GLUE task.
      data_dir: GLUE's own files; empty for TFDS.
      split: one of `Task.test_splits`.

    Raises:
      RequestError: the task has no such split, or its data cannot be had.
    """
    found = find_task(task)
    if split not in found.test_splits:
        known = ", ".join(found.test_splits) or "none"
        raise RequestError(f"split must be a test split of {found.name} ({known}). Received: {split=}")
    if data_dir:
        return read_glue_test(found, data_dir, split)
    return read_tfds(found, (split,))[0][split]


def count_examples(task: str, data_dir: str = "") -> dict[str, int]:
    """The number of examples of the training and validation splits, without reading more than is at hand.

    Args:
      task: the value of `--task`.
      data_dir: the task's own files, which are read; without them the published sizes are given.
    """
    found = find_task(task)
    if not data_dir and found.sizes:
        return dict(found.sizes)
    return {name: len(examples) for name, examples in read_dataset(task, data_dir).splits.items()}


def _read_glue(task: Task, data_dir: str) -> tuple[dict[str, Examples], dict[str, Any]]:
    splits, dropped = {}, {}
    for split in ("train", *task.validation_splits):
        splits[split], dropped[split] = read_glue_split(task, data_dir, split)
    notes: dict[str, Any] = {"source": "GLUE's own files"}
    if any(dropped.values()):
        notes["dropped_rows"] = dropped
    return splits, notes


def _refuse_data_dir(task: Task, data_dir: str) -> None:
    if data_dir:
        raise RequestError(f"task={task.name} is read from an installed package; leave --data_dir out")
