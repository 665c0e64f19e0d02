"""Which selected weights can move: the rows of the embedding tables that some training text reads. No TensorFlow.

A row that no training example reads gets a gradient of exactly 0 at every step, and every optimizer leaves it where it
is; weight decay alone, which is not the data's doing and is not counted here, makes it smaller. A text that is padded
reads the padding's rows too, but its attention mask keeps them from everything that the loss sees: their gradient is
exactly 0 as well, however long a batch is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tfmt.bert.vocabulary import Weight
from tfmt.data.tokens import TokenizedSplit


def movable_rows(weights: Sequence[Weight], train: TokenizedSplit) -> dict[str, np.ndarray]:
    """The rows of the embedding tables that get a gradient from some training example.

    Args:
      weights: the table of a model's weights.
      train: the tokenised training split, as far as it is used; its labels too.

    Returns:
      {path of a table: bool of shape (rows,)}: words that occur, positions before the end of the longest text, kinds of
      text. A sentence without a labelled word counts for nothing, since no loss sees it.
    """
    lengths = train.lengths
    counted = np.ones(len(train), bool)
    if train.labels is not None and train.word_positions is not None:
        counted = np.logical_or.reduceat(train.labels >= 0, train.offsets[:-1])
    longest = int(lengths[counted].max(initial=0))
    second = bool((lengths > train.first_lengths)[counted].any())
    used = {
        "embeddings.word.table": np.unique(train.ids[np.repeat(counted, lengths)]),
        "embeddings.position.table": np.arange(longest),
        "embeddings.token_type.table": np.arange(int(longest > 0) + second),
    }
    return {w.path: np.isin(np.arange(w.shape[0]), used[w.component]) for w in weights if w.component in used}


def count_movable(
    selected: Mapping[str, np.ndarray | None], weights: Sequence[Weight], rows: Mapping[str, np.ndarray]
) -> int:
    """How many selected weights can move.

    Args:
      selected: {path: flat indices of the selected weights, or None where the whole variable is selected}.
      weights: the table of a model's weights.
      rows: what `movable_rows` gave; every weight of a variable without a table's rows can move.
    """
    table = {weight.path: weight for weight in weights}
    count = 0
    for path, indices in selected.items():
        weight, moving = table[path], rows.get(path)
        if moving is None:
            count += weight.size if indices is None else len(indices)
        elif indices is None:
            count += int(moving.sum()) * weight.shape[1]
        else:
            count += int(moving[indices // weight.shape[1]].sum())
    return count
