"""A small tokenised split with labels of every kind of task."""

import numpy as np

from tfmt.data.tokens import IGNORED, TokenizedSplit

# Kind of task -> head of the model and its outputs.
KINDS = {"classification": ("sentence", 3), "regression": ("sentence", 1), "tokens": ("tokens", 4)}


def toy_split(kind, examples, seed=0, words=range(5, 19)):
    """Pairs of texts of 3 to 14 tokens, so that batches hold padding; few words are read twice by a text."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(3, 15, examples)
    tokens = int(lengths.sum())
    if kind == "tokens":
        labels = np.where(generator.random(tokens) < 0.6, generator.integers(0, 4, tokens), IGNORED).astype(np.int32)
    elif kind == "regression":
        labels = generator.normal(size=examples).astype(np.float32)
    else:
        labels = generator.integers(0, 3, examples).astype(np.int32)
    return TokenizedSplit(
        ids=generator.integers(words.start, words.stop, tokens).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]), first_lengths=(lengths - 1).astype(np.int32),
        labels=labels, pad_id=0, word_positions=np.zeros(0, np.int32) if kind == "tokens" else None,
    )  # fmt: skip
