"""Texts as the arrays that a model's own `fit` and `predict` take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.bert.configs import find_model, read_config, shape_of
from tfmt.bert.tokenizer import load_tokenizer, tokenizer_digest
from tfmt.data.batches import assemble
from tfmt.data.examples import Examples
from tfmt.data.tokens import tokenize as tokenize_split
from tfmt.errors import RequestError
from tfmt.spec import check_settings


def tokenize(
    model: Any, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 128
) -> dict[str, np.ndarray]:
    """What a model's `fit`, `predict` and call take of some texts: the tokens that a run of tfmt would train on.

    Args:
      model: a model from `tfmt.load_bert`, `tfmt.load_tuned` or transformers; or a name or folder as in `load_bert`.
      texts: the texts; a list, an array or a column of pandas.
      pairs: the second text of each pair, for models of two texts.
      max_length: the most tokens of an example, special tokens included; what is longer is cut.

    Returns:
      `input_ids`, `attention_mask` and `token_type_ids`: int32 of shape `(texts, length)`, padded to the longest.

    Raises:
      RequestError: no texts, something else than texts, another number of pairs, a `max_length` that the model has no
        positions for, or a model that does not say where its tokenizer lies.

    Example:
      >>> import tfmt
      >>> inputs = tfmt.tokenize("demo", ["a gripping story", "dull"])
      >>> inputs["input_ids"].shape, inputs["attention_mask"].sum(axis=1).tolist()
      ((2, 5), [5, 3])
    """
    max_length = check_settings(max_length=max_length)["max_length"]
    columns = [_check_texts("texts", texts)]
    if pairs is not None:
        columns.append(_check_texts("pairs", pairs))
        if len(columns[0]) != len(columns[1]):
            raise RequestError(f"every text needs its pair. Received: {len(columns[0])} texts, {len(columns[1])} pairs")
    folder = _folder_of(model)
    positions = shape_of(read_config(folder), folder / "config.json").max_position_embeddings
    if max_length > positions:
        raise RequestError(f"max_length must be at most {positions}, the model's positions. Received: {max_length}")
    tokenizer = load_tokenizer(folder)
    examples = Examples(tuple(columns), None)
    split = tokenize_split(examples, tokenizer, max_length, tokenizer_digest(tokenizer), cached=False)
    return assemble(split, np.arange(len(split)), int(split.lengths.max()))


def _check_texts(name: str, texts: Any) -> list[str]:
    ordered = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping | Set)
    if not ordered or getattr(texts, "ndim", 1) != 1:
        raise RequestError(f"{name} must be a list of texts, [text] for one. Received: one {type(texts).__name__}")
    listed = list(texts)
    if not listed:
        raise RequestError(f"{name} must hold at least one text. Received: none")
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise RequestError(f"{name} must hold texts. Received: {name}[{number}] = {text!r}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{name}[{number}] holds half a surrogate pair, which no tokenizer takes") from None
    return [str(text) for text in listed]  # NumPy's own kind of str is none to the tokenizer


def _folder_of(model: Any) -> Path:
    """Where a model's tokenizer lies."""
    place = model if isinstance(model, str | Path) else getattr(model, "name_or_path", "")
    if not isinstance(place, str | Path) or not str(place):
        raise RequestError(
            "this model does not say where it was loaded from: load it with tfmt.load_bert, or give the name or folder "
            "of its tokenizer in its place"
        )
    folder = find_model(check_settings(model=str(place))["model"], download=True)
    assert folder is not None
    return folder
