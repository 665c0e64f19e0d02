"""The model's own tokenizer."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tfmt.bert.configs import read_config, shape_of
from tfmt.errors import RequestError


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a model folder (transformers.BertTokenizerFast).

    Raises:
      RequestError: the folder has no vocabulary, or one that does not fit the embeddings.
    """
    from transformers import BertTokenizerFast

    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise RequestError(
            f"{folder / 'vocab.txt'}: missing; a model folder needs a vocabulary (vocab.txt or tokenizer.json)"
        )
    try:
        tokenizer = BertTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # The tokenizer libraries raise errors of many kinds for a broken file.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(f"{folder}: the tokenizer's files cannot be read: {first}") from None
    expected = shape_of(read_config(folder), folder / "config.json").vocab_size
    if len(tokenizer) != expected:
        raise RequestError(
            f"{folder}: the vocabulary has {len(tokenizer):,} entries and the embeddings have {expected:,}; "
            f"take the vocabulary that belongs to this model"
        )
    return tokenizer


def keeps_case(tokenizer: Any) -> bool:
    """Whether `Berlin` and `berlin` stay different for a tokenizer; its own configuration decides."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is None or normalizer.normalize_str("A") == "A"


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of all that decides the tokens; settings of a call (truncation, padding) are not part of it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["truncation"] = state["padding"] = None
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
