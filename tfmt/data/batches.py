"""Batches: which examples go together, in which order, and padded to which length."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from tfmt import liveness
from tfmt.data.order import permutation
from tfmt.data.tokens import IGNORED, TokenizedSplit
from tfmt.errors import RequestError
from tfmt.tasks import Task
from tfmt.words import counted

Batching = Literal["grouped", "random", "fixed"]
Batch = dict[str, np.ndarray]

# Training pads to a multiple of this: texts of one padded length share batches in a random order.
LENGTH_MULTIPLE = 8

# Tokens with padding of one evaluation batch, of which two are computed at a time.
EVALUATION_TOKENS = 2048


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """The batches of one training epoch.

    Attributes:
      indices: which examples, int64 of shape `(steps, batch_size)`.
      padded_lengths: tokens that each batch is padded to, int64 of shape `(steps,)`.
      real_tokens: tokens of the epoch without padding.
    """

    indices: np.ndarray
    padded_lengths: np.ndarray
    real_tokens: int

    @property
    def steps(self) -> int:
        """Batches of the epoch: the examples divided by the batch size, without the remainder."""
        return len(self.indices)

    @property
    def padded_tokens(self) -> int:
        """Tokens of the epoch with padding: what the model computes."""
        return int(self.padded_lengths.sum()) * self.indices.shape[1]


def plan_epoch(
    lengths: np.ndarray, batch_size: int, batching: Batching, seed: int, epoch: int, max_length: int
) -> EpochPlan:
    """Decides the batches of a training epoch, as a pure function of its arguments.

    An epoch is a random permutation of the examples without its last few, which fill no batch: which examples are
    left out differs from epoch to epoch. `random` and `fixed` cut it into batches as it is. `grouped` first sorts it
    by padded length, so that a batch needs hardly more padding than its examples do alone; inside one padded length
    the order stays random, and so does the order of the batches.

    Args:
      lengths: tokens of each example, integers of shape `(examples,)`.
      batch_size: examples in a batch.
      batching: "grouped", "random", or "fixed" (as `random`, all padded to `max_length`).
      seed: the run's seed.
      epoch: the epoch, from 0.
      max_length: the most tokens of an example.

    Raises:
      RequestError: there are fewer examples than one batch needs.
    """
    steps = len(lengths) // batch_size
    if steps == 0:
        raise RequestError(
            f"the training split has {counted(len(lengths), 'example')}, fewer than one batch of {batch_size}; "
            "lower --batch_size"
        )
    order = permutation(len(lengths), seed, epoch, 0)[: steps * batch_size]
    if batching == "grouped":
        order = order[np.argsort(_padded(lengths[order], max_length), kind="stable")]
    indices = order.reshape(steps, batch_size)
    if batching == "grouped":
        indices = indices[permutation(steps, seed, epoch, 1)]
    taken = lengths[indices]
    padded = np.full(steps, max_length) if batching == "fixed" else _padded(taken.max(axis=1), max_length)
    return EpochPlan(indices, padded, int(taken.sum()))


def training_batches(split: TokenizedSplit, plan: EpochPlan, start: int = 0) -> Iterator[Batch]:
    """The batches of an epoch, from step `start` on (to resume inside an epoch).

    Args:
      split: the tokenised training split.
      plan: what `plan_epoch` decided for `split.lengths`.
      start: the first step to give, from 0.

    Yields:
      `input_ids`, `attention_mask` and `token_type_ids`, int32 of shape `(batch_size, length)`, and `labels` of shape
      `(batch_size,)`, for token tasks `(batch_size, length)` with -100 on tokens that don't count.
    """
    for indices, length in zip(plan.indices[start:], plan.padded_lengths[start:].tolist(), strict=True):
        liveness.sign()
        yield assemble(split, indices, length)


class EvaluationBatch(NamedTuple):
    """A batch of evaluation.

    Attributes:
      inputs: as from `training_batches`; without `labels` where the split has none.
      indices: the example of each row, int64 of shape `(rows,)`; -1 for a row that only fills the batch up.
    """

    inputs: Batch
    indices: np.ndarray


def evaluation_batches(
    split: TokenizedSplit,
    tokens_per_batch: int = EVALUATION_TOKENS,
    multiple_of: int = 1,
    examples: np.ndarray | None = None,
) -> Iterator[EvaluationBatch]:
    """Every example exactly once, the longest first, with about as many tokens in each batch.

    Args:
      split: the tokenised split.
      tokens_per_batch: how many tokens with padding a batch holds at most (one row of each replica at least).
      multiple_of: rows of every batch are a multiple of this (the number of replicas); the last batch is filled up
        with repeated rows, whose index is -1.
      examples: indices of the examples; all of the split if None.

    Yields:
      `EvaluationBatch`es as long as their longest example.
    """
    examples = np.arange(len(split)) if examples is None else examples
    order = examples[np.argsort(-split.lengths[examples], kind="stable")]
    start = 0
    while start < len(order):
        length = int(split.lengths[order[start]])
        rows = max(tokens_per_batch // length // multiple_of, 1) * multiple_of
        taken = order[start : start + rows]
        filling = -len(taken) % multiple_of
        rows_taken = np.concatenate([taken, np.repeat(taken[-1:], filling)])
        indices = np.concatenate([taken, np.full(filling, -1, taken.dtype)])
        liveness.sign()
        yield EvaluationBatch(assemble(split, rows_taken, length), indices)
        start += rows


def compute_outputs(
    batches: Iterable[EvaluationBatch], compute: Callable[[EvaluationBatch], np.ndarray]
) -> Iterator[tuple[EvaluationBatch, np.ndarray]]:
    """Each batch with what `compute` makes of it, in the order of the batches.

    Two are computed at a time: while one waits for memory or for the host, the other multiplies.

    Args:
      batches: read a little ahead of what is given.
      compute: called in two threads.
    """
    waiting: deque[tuple[EvaluationBatch, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(compute, batch)))
            if len(waiting) > 2:
                first, outputs = waiting.popleft()
                yield first, outputs.result()
        for first, outputs in waiting:
            yield first, outputs.result()


class SplitPredictions:
    """Collects the outputs of evaluation batches into one prediction for each label of the split.

    Args:
      task: the task; it says what the outputs mean.
      split: the tokenised split that the batches come from.

    Example:
      >>> from tfmt.bert.configs import find_model
      >>> from tfmt.bert.tokenizer import load_tokenizer, tokenizer_digest
      >>> from tfmt.data.sources import read_dataset
      >>> from tfmt.data.tokens import tokenize
      >>> from tfmt.tasks import find_task
      >>> tokenizer = load_tokenizer(find_model("demo", download=False))
      >>> examples = read_dataset("rotten_tomatoes").splits["validation"].limit(4)
      >>> split = tokenize(examples, tokenizer, 128, tokenizer_digest(tokenizer))
      >>> predictions = SplitPredictions(find_task("rotten_tomatoes"), split)
      >>> for batch in evaluation_batches(split):
      ...     logits = np.zeros((len(batch.indices), 2))  # stands for model(batch.inputs).logits
      ...     predictions.add(batch.indices, logits)
      >>> predictions.values().tolist()
      [0, 0, 0, 0]
    """

    def __init__(self, task: Task, split: TokenizedSplit):
        self._task = task
        self._split = split
        self._pending = np.ones(len(split), bool)
        if split.sentence_lengths is not None:
            self._values = np.full(int(split.sentence_lengths.sum()), task.fill_class, np.int32)
            self._word_ends = np.concatenate([[0], np.cumsum(split.sentence_lengths)])
        else:
            self._values = np.zeros(len(split), np.int32 if task.classes else np.float32)

    def add(self, indices: np.ndarray, outputs: np.ndarray) -> None:
        """Takes in the outputs of one batch.

        Args:
          indices: `EvaluationBatch.indices`, shape `(rows,)`.
          outputs: logits of shape `(rows, classes)`, `(rows, length, classes)` for token tasks, `(rows, 1)` for a
            score.
        """
        indices = np.asarray(indices)
        outputs = np.asarray(outputs)[indices >= 0]
        indices = indices[indices >= 0]
        self._pending[indices] = False
        if self._task.kind == "regression":
            self._values[indices] = outputs.reshape(len(indices))
        elif self._split.word_positions is None:
            self._values[indices] = outputs.argmax(axis=-1)
        else:
            classes = outputs.argmax(axis=-1)
            for row, sentence in zip(classes, indices.tolist(), strict=True):
                words = slice(self._word_ends[sentence], self._word_ends[sentence + 1])
                positions = self._split.word_positions[words]
                kept = positions >= 0
                self._values[words][kept] = row[positions[kept]]

    def values(self) -> np.ndarray:
        """The predictions in the order of the split: classes or scores, `(examples,)`; for token tasks `(words,)`.

        Raises:
          ValueError: some examples were never added.
        """
        if self._pending.any():
            raise ValueError(f"{int(self._pending.sum())} examples have no prediction yet")
        return self._values


def assemble(split: TokenizedSplit, indices: np.ndarray, length: int) -> Batch:
    """The inputs (and labels, if any) of these examples, padded to `length`."""
    columns = np.arange(length)
    positions = np.minimum(split.offsets[indices][:, None] + columns, len(split.ids) - 1)
    real = columns < (split.offsets[indices + 1] - split.offsets[indices])[:, None]
    batch = {
        "input_ids": np.where(real, split.ids[positions], np.int32(split.pad_id)),
        "attention_mask": real.astype(np.int32),
        "token_type_ids": (real & (columns >= split.first_lengths[indices][:, None])).astype(np.int32),
    }
    if split.labels is not None:
        if split.word_positions is None:
            batch["labels"] = split.labels[indices]
        else:
            batch["labels"] = np.where(real, split.labels[positions], np.int32(IGNORED))
    return batch


def _padded(lengths: np.ndarray, max_length: int) -> np.ndarray:
    return np.minimum(-(-lengths // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, max_length)
