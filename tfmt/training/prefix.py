"""What the frozen blocks below a selection make of the text, computed once instead of at each step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping

import numpy as np

from tfmt.bert.vocabulary import Weight
from tfmt.data.tokens import TokenizedSplit
from tfmt.errors import RunError
from tfmt.files import UnwritableError, cache_folder


def count_prefix_blocks(weights: tuple[Weight, ...], selected: Collection[str], blocks: int) -> int:
    """How many blocks lie below the lowest selected weight of the encoder; all of them if only the head trains.

    Args:
      weights: the model's table.
      selected: paths of the selected variables.
      blocks: blocks of the model.
    """
    reached = [weight for weight in weights if weight.path in selected and weight.sublayer != "classifier"]
    return min((blocks if weight.sublayer == "pooler" else weight.block or 0 for weight in reached), default=blocks)


class PrefixStates:
    """The output of the blocks below a selection for every example of some splits.

    Args:
      splits: the tokenised splits by name.
      first_only: only the first position's output is there and needed.
      hidden: size of an output.
      dtype: NumPy's type of an output.
      limit: bytes that may be held in memory; more lies in a temporary file that has no name and so leaves nothing.

    Raises:
      RunError: there is no room on the disk for such a file.
    """

    def __init__(
        self, splits: Mapping[str, TokenizedSplit], *, first_only: bool, hidden: int, dtype: np.dtype, limit: float
    ) -> None:
        self._splits, self._first_only = splits, first_only
        rows = {name: len(split) if first_only else int(split.offsets[-1]) for name, split in splits.items()}
        self.bytes = sum(rows.values()) * hidden * dtype.itemsize
        make = self._in_memory if self.bytes <= limit else self._in_file
        self.in_memory = self.bytes <= limit
        self._states = {name: make((count, hidden), dtype) for name, count in rows.items()}

    @staticmethod
    def _in_memory(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    @staticmethod
    def _in_file(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # Claimed whole now: a mapped file that meets a full disk later would kill the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, max(shape[0] * shape[1] * dtype.itemsize, 1))
                return np.memmap(file, dtype, "w+", shape=shape)
        except OSError as error:
            raise UnwritableError.of(folder, error) from None

    def put(self, name: str, indices: np.ndarray, outputs: np.ndarray) -> None:
        """Takes in the outputs of one batch.

        Args:
          name: the split.
          indices: `EvaluationBatch.indices`, (rows,).
          outputs: (rows, length or 1, hidden).

        Raises:
          RunError: an output is not finite.
        """
        split, states = self._splits[name], self._states[name]
        if not np.isfinite(np.asarray(outputs, np.float32)).all():
            raise RunError(f"the frozen blocks give numbers that are not finite on the {name} split")
        for row, example in enumerate(indices.tolist()):
            if example < 0:  # fills the batch up
                continue
            if self._first_only:
                states[example] = outputs[row, 0]
            else:
                first, end = split.offsets[example], split.offsets[example + 1]
                states[first:end] = outputs[row, : end - first]

    def take(self, name: str, indices: np.ndarray, length: int) -> np.ndarray:
        """The outputs of some examples, (rows, length or 1, hidden), 0 where there is padding.

        Args:
          name: the split.
          indices: which examples; -1 may stand for any.
          length: tokens that the batch is padded to.
        """
        indices, states = np.maximum(indices, 0), self._states[name]
        if self._first_only:
            return np.asarray(states[indices][:, None])
        offsets = self._splits[name].offsets
        columns = np.arange(length)
        real = columns < (offsets[indices + 1] - offsets[indices])[:, None]
        positions = np.minimum(offsets[indices][:, None] + columns, len(states) - 1)
        return np.where(real[..., None], states[positions], states.dtype.type(0))
