"""The pre-trained weights in a model folder, read without TensorFlow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from tfmt.bert.configs import file_digest, read_config, shape_of, weights_path
from tfmt.bert.vocabulary import list_weights
from tfmt.errors import RequestError

# What the forward pass and the tokens depend on beside the weights.
_CONFIG_KEYS = ("attention_probs_dropout_prob", "classifier_dropout", "hidden_act", "hidden_dropout_prob",
                "initializer_range", "layer_norm_eps", "num_attention_heads")  # fmt: skip
_VOCABULARY_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")


class BaseWeights:
    """The pre-trained encoder in a model folder, read weight by weight under TensorFlow's paths and orientation.

    Names with and without the leading `bert.`, and LayerNorms called weight/bias or gamma/beta, are understood. Nothing
    is held in memory.

    Args:
      folder: the model's folder.
      head: `sentence` or `tokens`; the second needs no pooler.

    Raises:
      RequestError: the file is missing or broken, lacks a weight, or holds one of another shape.
    """

    def __init__(self, folder: Path, head: str) -> None:
        self._source = weights_path(folder)
        shape = shape_of(read_config(folder), folder / "config.json")
        wanted = [weight for weight in list_weights(shape, head, 1) if weight.sublayer != "classifier"]
        try:
            self._file = safe_open(self._source, framework="np")
            names = _torch_names(self._file.keys())
            missing = [weight.torch_name for weight in wanted if weight.torch_name not in names]
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise RequestError(f"{self._source}: holds no {missing[0]}{more}; is this the BERT of config.json?")
            for weight in wanted:
                found = tuple(self._file.get_slice(names[weight.torch_name]).get_shape())
                stored = weight.shape[::-1] if weight.transposed else weight.shape
                if found != stored:
                    raise RequestError(
                        f"{self._source}: {weight.torch_name} has shape {list(found)}, "
                        f"config.json asks for {list(stored)}"
                    )
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{self._source}: not a readable safetensors file: {error}") from None
        self._weights = {weight.path: (names[weight.torch_name], weight.transposed) for weight in wanted}

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all weights but the classifier's."""
        return tuple(self._weights)

    def read(self, path: str) -> np.ndarray:
        """One weight as a float32 array of TensorFlow's shape."""
        name, transposed = self._weights[path]
        value = self._file.get_tensor(name)
        return (value.T if transposed else value).astype(np.float32, copy=False)


def _torch_names(stored: Iterable[str]) -> dict[str, str]:
    """{the name that transformers uses today: the name in the file}."""
    names = {}
    for name in stored:
        today = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if today.startswith(("embeddings.", "encoder.", "pooler.")):
            today = f"bert.{today}"
        names[today] = name
    return names


def model_digest(folder: Path) -> str:
    """sha256 over a model folder's weights, the settings its forward pass depends on, and its vocabulary."""
    config = read_config(folder)
    parts = {
        "weights": file_digest(weights_path(folder)),
        "config": {key: config.get(key) for key in _CONFIG_KEYS},
        "vocabulary": {name: file_digest(folder / name) for name in _VOCABULARY_FILES if (folder / name).is_file()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
