"""What a source gives: the texts and labels of each split, and a digest of all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.data.order import permutation
from tfmt.errors import RequestError, RequestWarning
from tfmt.tasks import Task


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one split, by column.

    Attributes:
      texts: one or two columns of texts. For token tasks one column that holds the words of all sentences, one after
        the other.
      labels: int32 classes or float32 scores of shape `(examples,)`; for token tasks int32 classes of shape
        `(words,)`; None where there are none (test splits).
      sentence_lengths: words of each sentence, int64 of shape `(examples,)`; None for other tasks.
    """

    texts: tuple[Sequence[str], ...]
    labels: np.ndarray | None
    sentence_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of texts, pairs or sentences."""
        return len(self.texts[0]) if self.sentence_lengths is None else len(self.sentence_lengths)

    def take(self, indices: np.ndarray) -> Examples:
        """The examples at these indices, in their order."""
        if self.sentence_lengths is None:
            rows = indices
            lengths = None
        else:
            lengths = self.sentence_lengths[indices]
            starts = np.cumsum(self.sentence_lengths) - self.sentence_lengths
            spans = [np.arange(s, s + n) for s, n in zip(starts[indices], lengths, strict=True)]
            rows = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        texts = tuple([column[i] for i in rows.tolist()] for column in self.texts)
        return Examples(texts, None if self.labels is None else self.labels[rows], lengths)

    def limit(self, count: int) -> Examples:
        """At most `count` examples (0: all), the same ones every time, in their order.

        They are spread over the split at random, because a source may be sorted by class.
        """
        if count == 0 or count >= len(self):
            return self
        return self.take(np.sort(permutation(len(self), len(self))[:count]))

    @functools.cached_property
    def halves(self) -> np.ndarray:
        """Which half each example is in for cross-fitted scores: 0 or 1, uint8 `(examples,)`.

        The examples whose hash is below the median are the first half. That depends on the texts alone, so it is the
        same in all runs, and equal texts are together. The hash is one of its own, since splits may have been made by
        a hash of the same texts.
        """
        if self.sentence_lengths is None:
            rows: Iterable[tuple[str, ...]] = zip(*self.texts, strict=True)
        else:
            ends = np.cumsum(self.sentence_lengths)
            rows = (
                tuple(self.texts[0][end - length : end])
                for end, length in zip(ends.tolist(), self.sentence_lengths.tolist(), strict=True)
            )
        texts = ("\0".join(("half", *row)).encode("utf-8", "surrogatepass") for row in rows)
        hashes = np.array([int.from_bytes(hashlib.sha256(text).digest()[:8], "big") for text in texts], np.uint64)
        return (
            (hashes >= np.sort(hashes)[len(hashes) // 2]).astype(np.uint8) if len(hashes) else hashes.astype(np.uint8)
        )

    @functools.cached_property
    def text_digest(self) -> str:
        """sha256 of the texts alone, in order."""
        digest = hashlib.sha256()
        if self.sentence_lengths is not None:
            digest.update(b"sentences" + self.sentence_lengths.astype("<i8").tobytes())
        for column in self.texts:
            digest.update(f"column {len(column)}\n".encode())
            for start in range(0, len(column), 4096):
                chunk = [text.encode("utf-8", "surrogatepass") for text in column[start : start + 4096]]
                # The lengths keep the texts apart: "ab", "c" and "a", "bc" are two columns.
                digest.update(np.array([len(text) for text in chunk], "<i8").tobytes())
                digest.update(b"".join(chunk))
        return digest.hexdigest()


@contextlib.contextmanager
def test_is_optional() -> Iterator[None]:
    """Inside it a test split is read: one that cannot be scored is told of, and hinders no training."""
    try:
        yield
    except RequestError as error:
        warnings.warn(f"{error}; the test split is not scored", RequestWarning, stacklevel=4)


def check_learnable(path: Path, task: Task, train: Examples) -> None:
    """Refuses a training split from which nothing can be learned.

    Args:
      path: its file, for the message.
      task: a task with one label an example.
      train: the split.

    Raises:
      RequestError: all labels are one, or a column of texts is blank in every row.
    """
    labels = train.labels
    if labels is not None and len(labels) > 1 and (labels == labels[0]).all():
        only = f"{labels[0]:g}" if labels.dtype.kind == "f" else repr(task.classes[int(labels[0])])
        raise RequestError(f"{path}: every label is {only}; training needs at least two different ones")
    for name, column in zip(task.text_fields, train.texts, strict=True):
        if not any(text.strip() for text in column):
            raise RequestError(f"{path}: {name} is empty in every row; nothing can be learned from that")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The labelled splits of a task.

    Attributes:
      task: the task; for `custom` with the classes that were found.
      splits: "train" and the task's validation splits.
      test: a test split with labels, which is scored and chooses nothing; None where there is none.
      notes: what the record says about the data: `source`, and where they apply `split_rule`, `dropped_rows`,
        `sentences`, `words`, `entity_tags` (of each file, see `tfmt.data.entities.Settled`; `all` where one is split).
    """

    task: Task
    splits: dict[str, Examples]
    notes: dict[str, Any]
    test: Examples | None = None

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """What a run's id holds of the content: `data`, and where it is scored `test`, which decides nothing else."""
        test = {} if self.test is None else {"test": self._digest({"test": self.test})}
        return {"data": self.digest} | test

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of the content: classes, and texts and labels of every split in order.

        It does not depend on where the data came from: TFDS and files with the same rows agree.
        """
        return self._digest(self.splits)

    def _digest(self, splits: Mapping[str, Examples]) -> str:
        digest = hashlib.sha256(repr((self.task.kind, self.task.classes)).encode())
        for name, examples in sorted(splits.items()):
            digest.update(f"split {name} {examples.text_digest}\n".encode())
            labels = examples.labels
            if labels is not None:
                digest.update(np.ascontiguousarray(labels, "<f4" if labels.dtype.kind == "f" else "<i4").tobytes())
        return digest.hexdigest()

    def limit(self, train: int, validation: int) -> Dataset:
        """The dataset with at most so many examples in the training split and in each of the others (0: all)."""
        splits = {
            name: examples.limit(train if name == "train" else validation) for name, examples in self.splits.items()
        }
        test = None if self.test is None else self.test.limit(validation)
        return dataclasses.replace(self, splits=splits, test=test)
