"""From the request to the data: which source reads a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfmt.data.conll import describe_sentences, has_conll2003, list_conll2003, read_conll2003
from tfmt.data.demo_text import read_rotten_tomatoes
from tfmt.data.examples import Dataset, Examples, test_is_optional
from tfmt.data.glue_files import read_glue_split, read_glue_test, split_path
from tfmt.data.own_files import list_own_files, read_own_data
from tfmt.data.tfds_source import list_tfds_files, read_tfds
from tfmt.data.treebank import list_tree_files, read_treebank
from tfmt.errors import RequestError
from tfmt.files import here
from tfmt.spec import RunSpec
from tfmt.tasks import Kind, Task, find_task


def read_dataset(
    task: str,
    data_dir: str = "",
    *,
    text_columns: tuple[str, ...] = (),
    label_column: str = "",
    task_type: Kind | str = "",
    validation_fraction: float = 0.0,
    encoding: str = "utf-8",
    split_seed: int | None = None,
) -> Dataset:
    """Reads the training and validation splits of a task, and its test split where that has labels.

    Args:
      task: the value of `--task`.
      data_dir: the task's own files; empty for TFDS, for the packaged text of rotten_tomatoes, and for NLTK's treebank
        where nltk keeps it.
      text_columns: `custom`: the columns of the texts.
      label_column: `custom`: the column of the label.
      task_type: `custom`: "classification", "regression" or "tokens".
      validation_fraction: `custom`: which part of a single file is the validation split.
      encoding: `custom`, `conll2003_ner`: how the files write their characters.
      split_seed: `custom`, `ptb_pos`: another split.

    Raises:
      RequestError: the data cannot be had, or something in it is wrong; the message names file and line.

    Example:
      >>> read_dataset("rotten_tomatoes").splits["validation"].labels.shape
      (1017,)
    """
    if split_seed is not None and split_seed < 0:
        raise RequestError(f"split_seed must be 0 or more. Received: {split_seed=}")
    if task == "custom":
        return read_own_data(
            here(data_dir), text_columns, label_column, _kind(task_type), validation_fraction, encoding, split_seed
        )
    found = find_task(task)
    names = ("train", *found.validation_splits)
    if found.name == "rotten_tomatoes":
        if data_dir:
            raise RequestError("task=rotten_tomatoes is read from an installed package; leave --data_dir out")
        splits, notes = read_rotten_tomatoes()
    elif found.name == "ptb_pos":
        splits, notes = read_treebank(found, here(data_dir), split_seed)
    elif not data_dir:
        wanted = (*names, *found.test_splits) if found.head == "tokens" else names
        splits, notes = read_tfds(found, wanted, here(""))
    elif found.glue is not None:
        splits, notes = _read_glue(found, here(data_dir))
    else:
        splits, notes = _read_conll(found, here(data_dir), encoding)
    test = splits.pop("test", None)
    notes.get("entity_tags", {}).pop("test", None)  # the notes are on what decides the run
    if found.head == "tokens":
        notes |= describe_sentences(splits)
    return Dataset(found, splits, notes, test)


def _read_conll(task: Task, data_dir: str, encoding: str) -> tuple[dict[str, Examples], dict[str, Any]]:
    """CoNLL-2003's own files; the test file may be missing, and one that cannot be scored is no error."""
    names = ("train", *task.validation_splits)
    read = {name: read_conll2003(task, data_dir, name, encoding) for name in names}
    if has_conll2003(data_dir, "test"):
        with test_is_optional():
            read["test"] = read_conll2003(task, data_dir, "test", encoding)
    splits = {name: examples for name, (examples, _) in read.items()}
    return splits, {
        "source": "CoNLL-2003's own files",
        "entity_tags": {name: tags for name, (_, tags) in read.items()},
    }


def read_dataset_for(spec: RunSpec) -> Dataset:
    """Reads the data that a run asks for; see `read_dataset`."""
    return read_dataset(
        spec.task,
        spec.data_dir,
        text_columns=spec.text_columns,
        label_column=spec.label_column,
        task_type=spec.task_type,
        validation_fraction=spec.validation_fraction,
        encoding=spec.encoding,
        split_seed=spec.split_seed,
    )


def list_data_files(spec: RunSpec) -> tuple[Path, list[Path]]:
    """The files that a run reads its data from.

    Returns:
      The folder that they lie in, or the one file, which is what `data_dir` names or would name; and the files. None
      where the data are part of an installed package.

    Raises:
      RequestError: there are none.
    """
    place = Path(spec.data_dir).expanduser()
    if spec.task == "custom":
        return place, list_own_files(spec.data_dir)
    task = find_task(spec.task)
    if task.name == "rotten_tomatoes":
        return place, []
    if task.name == "ptb_pos":
        files = list_tree_files(spec.data_dir)
        return place if spec.data_dir else files[0].parent, files
    if not spec.data_dir:
        return list_tfds_files(task)
    if task.glue is not None:
        return place, [split_path(task, spec.data_dir, split) for split in ("train", *task.validation_splits)]
    return place, list_conll2003(spec.data_dir)


def read_test_split(
    task: str, data_dir: str, split: str, *, encoding: str = "utf-8", split_seed: int | None = None
) -> Examples:
    """Reads a test split of a named task, in the order of its own file.

    Args:
      task: a task other than `custom` (whose files `tfmt.data.own_files.stream_unlabelled` reads).
      data_dir: the task's own files; empty for TFDS, or for NLTK's treebank.
      split: one of `Task.test_splits`.
      encoding: `conll2003_ner`: how the files write their characters.
      split_seed: `ptb_pos`: another split.

    Returns:
      The examples; without labels for the GLUE tasks, whose labels are not public.

    Raises:
      RequestError: the task has no such split, or its data cannot be had.
    """
    found = find_task(task)
    if split not in found.test_splits:
        known = ", ".join(found.test_splits) or "none"
        raise RequestError(f"split must be a test split of {found.name} ({known}). Received: {split=}")
    if found.name == "ptb_pos":
        return read_treebank(found, data_dir, split_seed)[0][split]
    if not data_dir:
        return read_tfds(found, (split,))[0][split]
    if found.glue is not None:
        return read_glue_test(found, data_dir, split)
    return read_conll2003(found, data_dir, split, encoding)[0]


def count_examples(task: str, data_dir: str = "") -> dict[str, int]:
    """The examples of the training and validation splits of a named task, without loading TFDS.

    Args:
      task: the value of `--task`, other than `custom`.
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


def _kind(task_type: str) -> Kind:
    kinds: tuple[Kind, ...] = ("classification", "regression", "tokens")
    for kind in kinds:
        if task_type == kind:
            return kind
    raise RequestError(f"task_type must be classification, regression or tokens. Received: {task_type=}")
