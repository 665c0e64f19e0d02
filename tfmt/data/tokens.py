"""Texts to token ids, once for each text, vocabulary and length."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from typing import Any

import numpy as np
from tqdm import tqdm

from tfmt import liveness
from tfmt.data.cache import load_arrays, store_arrays
from tfmt.data.examples import Examples

# Raised whenever the arrays below get another meaning or content.
_VERSION = 2
_CHUNK = 2048
# The label of a token that does not count.
IGNORED = -100
# In place of a word's position.
CUT_OFF = -1
NO_TOKEN = -2


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
    """A split as integers; example i holds the tokens `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
      ids: int32 of shape `(tokens,)`: every example with its special tokens, without padding.
      offsets: int64 of shape `(examples + 1,)`.
      first_lengths: int32 of shape `(examples,)`: tokens before the second text; all of them where there is one text.
      labels: int32 classes or float32 scores of shape `(examples,)`. For token tasks int32 of shape `(tokens,)`: the
        class of a word on its first token, -100 elsewhere. None where there are no labels.
      pad_id: the id that fills a batch up.
      word_positions: int32 of shape `(words,)`: where in its sentence's tokens a word begins; -1 for a word that
        truncation cut off, -2 for one that has no token at any length (BERT removes control characters and the like,
        of which some words are all made). None for sentence tasks.
      sentence_lengths: int64 of shape `(examples,)`: words of each sentence. None for sentence tasks.
    """

    ids: np.ndarray
    offsets: np.ndarray
    first_lengths: np.ndarray
    labels: np.ndarray | None
    pad_id: int
    word_positions: np.ndarray | None = None
    sentence_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 of shape `(examples,)`."""
        return np.diff(self.offsets)

    @property
    def answered(self) -> np.ndarray | None:
        """Which words get a prediction of their own, bool of shape `(words,)`; None for tasks on whole texts."""
        return None if self.word_positions is None else self.word_positions >= 0

    @property
    def words_cut_off(self) -> int:
        """Words beyond `max_length`, which get no prediction of their own."""
        return 0 if self.word_positions is None else int((self.word_positions == CUT_OFF).sum())

    @property
    def words_without_token(self) -> int:
        """Words of which the tokenizer leaves nothing, which get no prediction of their own either."""
        return 0 if self.word_positions is None else int((self.word_positions == NO_TOKEN).sum())


def tokenize(
    examples: Examples, tokenizer: Any, max_length: int, tokenizer_digest: str, name: str = "", *, cached: bool = True
) -> TokenizedSplit:
    """Turns the texts of a split into token ids, or takes them from the cache.

    Pairs longer than `max_length` are cut at the end of their longer text, token by token.

    Args:
      examples: the texts and labels.
      tokenizer: the model's fast tokenizer (Hugging Face's `BertTokenizerFast`).
      max_length: the most tokens of an example, special tokens included.
      tokenizer_digest: names everything in the tokenizer that decides the tokens.
      name: the split's name, for the progress bar.
      cached: whether the cache is used; a part of a stream that is read once would only fill it.

    Returns:
      A `TokenizedSplit` in the order of the examples.
    """
    identity = {
        "version": _VERSION,
        "texts": examples.text_digest,
        "tokenizer": tokenizer_digest,
        "tokenizers": importlib.metadata.version("tokenizers"),
        "max_length": max_length,
    }
    key = "tokens-" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:40]
    arrays = load_arrays(key) if cached else None
    if arrays is None:
        arrays = _encode(examples, tokenizer, max_length, name)
        if cached:
            store_arrays(key, arrays)
    labels = examples.labels
    positions = arrays.get("word_positions")
    if labels is not None and positions is not None and examples.sentence_lengths is not None:
        labels = _place_labels(labels, positions, arrays["offsets"], examples.sentence_lengths, len(arrays["ids"]))
    return TokenizedSplit(
        ids=arrays["ids"],
        offsets=arrays["offsets"],
        first_lengths=arrays["first_lengths"],
        labels=labels,
        pad_id=int(tokenizer.pad_token_id or 0),  # of a tokenizer without one; masked, any id computes the same
        word_positions=positions,
        sentence_lengths=examples.sentence_lengths,
    )


def _encode(examples: Examples, tokenizer: Any, max_length: int, name: str) -> dict[str, np.ndarray]:
    """Tokenises chunk by chunk: Python lists of a whole MNLI would take gigabytes."""
    settings = {
        "truncation": "longest_first",
        "max_length": max_length,
        "return_token_type_ids": True,
        "return_attention_mask": False,
        "verbose": False,
    }
    sentence_lengths = examples.sentence_lengths
    ends = None if sentence_lengths is None else [0, *np.cumsum(sentence_lengths).tolist()]
    ids, lengths, second_lengths, positions = [], [], [], []
    # Only what takes long enough to wonder about shows a bar, and only on a terminal.
    with tqdm(total=len(examples), desc=f"Tokenising {name}".strip(), delay=2, disable=None, leave=False) as bar:
        for start in range(0, len(examples), _CHUNK):
            liveness.sign()
            stop = min(start + _CHUNK, len(examples))
            if ends is None:
                encoded = tokenizer(*(list(column[start:stop]) for column in examples.texts), **settings)
            else:
                words = examples.texts[0]
                sentences = [list(words[ends[i] : ends[i + 1]]) for i in range(start, stop)]
                encoded = tokenizer(sentences, is_split_into_words=True, **settings)
                positions += [
                    _first_positions(encoding, len(words))
                    for encoding, words in zip(encoded.encodings, sentences, strict=True)
                ]
            ids += [np.concatenate([np.asarray(row, np.int32) for row in encoded["input_ids"]])]
            lengths += [len(row) for row in encoded["input_ids"]]
            second_lengths += [sum(row) for row in encoded["token_type_ids"]]
            bar.update(stop - start)
    arrays = {
        "ids": np.concatenate(ids),
        "offsets": np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        "first_lengths": np.array(lengths, np.int32) - np.array(second_lengths, np.int32),
    }
    if ends is not None:
        arrays["word_positions"] = np.concatenate(positions)
    return arrays


def _first_positions(encoding: Any, words: int) -> np.ndarray:
    """The position of each word's first token, or why it has none.

    Args:
      encoding: of a sentence, a `tokenizers.Encoding`, which keeps what truncation took from it.
      words: the words of the sentence.
    """
    positions = np.full(words, NO_TOKEN, np.int32)
    for part in encoding.overflowing:
        positions[[word for word in part.word_ids if word is not None]] = CUT_OFF
    kept = encoding.word_ids
    for position in range(len(kept) - 1, -1, -1):
        word = kept[position]
        if word is not None:
            positions[word] = position
    return positions


def _place_labels(
    labels: np.ndarray, positions: np.ndarray, offsets: np.ndarray, sentence_lengths: np.ndarray, tokens: int
) -> np.ndarray:
    """The words' classes on their first tokens, -100 on all others."""
    placed = np.full(tokens, IGNORED, np.int32)
    starts = np.repeat(offsets[:-1], sentence_lengths)
    kept = positions >= 0
    placed[starts[kept] + positions[kept]] = labels[kept]
    return placed
