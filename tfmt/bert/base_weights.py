"""The pre-trained weights in a model folder, read without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.bert.checkpoint import StoredTensor, digest_weights, find_weights, open_tensors
from tfmt.bert.configs import ACTIVATIONS, BertSettings, read_config, shape_of
from tfmt.bert.digests import file_digest, json_digest, recall, remember
from tfmt.bert.tokenizer import describe_tokenizer, uses_bert_class
from tfmt.bert.vocabulary import Weight, list_weights
from tfmt.errors import RequestError
from tfmt.words import counted

# What the forward pass depends on beside the weights.
_DECIDING = (
    "attention_probs_dropout_prob", "classifier_dropout", "hidden_act", "hidden_dropout_prob", "initializer_range",
    "layer_norm_eps", "num_attention_heads",
)  # fmt: skip
_BLOCK = re.compile(r"^bert[./]encoder[./]layer(?:\.|_\._)(\d{1,9})[./]", re.MULTILINE)
# {the path of a weight, without the block's number: what config.json calls its sizes}.
_SIZES = {
    "bert/embeddings/word_embeddings/weight": ("vocab_size", "hidden_size"),
    "bert/embeddings/token_type_embeddings/embeddings": ("type_vocab_size", "hidden_size"),
    "bert/embeddings/position_embeddings/embeddings": ("max_position_embeddings", "hidden_size"),
    "bert/encoder/layer/intermediate/dense/kernel": ("hidden_size", "intermediate_size"),
}
_REMEDY = "take the config.json that belongs to these weights"
_EARLIER_VOCABULARY_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")


class BaseWeights:
    """The pre-trained encoder in a model folder, read weight by weight under TensorFlow's paths and orientation.

    Files of PyTorch and of TensorFlow, in one piece or in shards, are understood; so are names with and without the
    leading `bert.`, and LayerNorms called weight/bias or gamma/beta. Nothing is held in memory.

    Args:
      folder: the model's folder.
      head: `sentence` or `tokens`; the second needs no pooler.

    Attributes:
      from_tensorflow: whether the file has TensorFlow's names and orientation.
      stored_blocks: how many blocks the file holds.

    Raises:
      RequestError: a file is missing or broken, lacks a weight or a block, or holds one of another shape or type.
    """

    def __init__(self, folder: Path, head: str) -> None:
        source = find_weights(folder)
        shape = shape_of(read_config(folder), folder / "config.json")
        stored = open_tensors(folder)
        self._folder, self._source = folder, source
        self.from_tensorflow = _is_tensorflow(stored)
        found = _plain_names(stored)
        # A config may ask for the lowest blocks of a file alone.
        self.stored_blocks = count_blocks(found)
        if 0 < self.stored_blocks < shape.num_hidden_layers:
            raise RequestError(
                f"{source}: holds {counted(self.stored_blocks, 'block')}, and config.json asks for "
                f"{shape.num_hidden_layers} (num_hidden_layers); {_REMEDY}"
            )
        wanted = [weight for weight in list_weights(shape, head, 1) if weight.sublayer != "classifier"]
        keys = {weight.path: weight.path if self.from_tensorflow else weight.torch_name for weight in wanted}
        missing = [key for key in keys.values() if key not in found]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise RequestError(f"{source}: holds no {missing[0]}{more}; is this the BERT of config.json?")
        self._weights = {weight.path: (weight, found[keys[weight.path]]) for weight in wanted}
        for weight, tensor in self._weights.values():
            expected = weight.shape[::-1] if self._flips(weight) else weight.shape
            if not tensor.is_float:
                raise RequestError(
                    f"{source}: {tensor.name} is stored as {tensor.kind}; tfmt reads float32, float16, bfloat16 and "
                    f"float64, so take the model before it was quantised"
                )
            if tensor.shape != expected:
                raise RequestError(
                    f"{source}: {tensor.name} has shape {list(tensor.shape)}, config.json asks for {list(expected)}"
                    f"{_tell_key(weight, tensor.shape[::-1] if self._flips(weight) else tensor.shape)}; {_REMEDY}"
                )

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all weights but the classifier's."""
        return tuple(self._weights)

    def read(self, path: str) -> np.ndarray:
        """One weight as a float32 array of TensorFlow's shape; every bfloat16 and float16 is a float32 exactly.

        Raises:
          RequestError: a value is no finite number, in the file or as a float32.
        """
        weight, tensor = self._weights[path]
        value = tensor.read()
        with np.errstate(over="ignore"):  # of a float64, which is refused below
            value = (value.T if self._flips(weight) else value).astype(np.float32, copy=False)
        finite = np.isfinite(value)
        if not finite.all():
            many = counted(int(value.size - finite.sum()), "value")
            raise RequestError(
                f"{self._source}: {tensor.name} holds {many} that no float32 can train from (NaN, or infinite); its "
                f"training went wrong or the file is damaged: take an earlier checkpoint, or fetch the model again"
            )
        return value

    def check_values(self) -> None:
        """Reads all weights once; what was found finite is not read again while the files' digests are the same.

        Raises:
          RequestError: as `read`.
        """
        tensors = sorted(tensor.name for _, tensor in self._weights.values())
        key = json_digest(["finite", digest_weights(self._folder), tensors])
        if recall("weights", key) is not True:
            for path in self._weights:
                self.read(path)
            remember("weights", key, True)

    def _flips(self, weight: Weight) -> bool:
        return weight.transposed and not self.from_tensorflow


def _tell_key(weight: Weight, stored: tuple[int, ...]) -> str:
    """Which of config.json's sizes a tensor does not have, as ` (vocab_size)`, where it is one that tells."""
    keys = _SIZES.get(re.sub(r"_\._\d+", "", weight.path), ())
    wrong = [key for key, size, found in zip(keys, weight.shape, stored, strict=False) if size != found]
    return f" ({', '.join(wrong)})" if wrong and len(stored) == len(keys) else ""


def _is_tensorflow(stored: Iterable[str]) -> bool:
    return any("/" in name for name in stored)


def _plain_names(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """{the name in the columns of tfmt's table: the tensor}, whatever wrote the file."""
    return (_tensorflow_paths if _is_tensorflow(stored) else _torch_names)(stored.values())


def count_blocks(names: Iterable[str]) -> int:
    """How many blocks a file holds, by the names of its tensors."""
    return 1 + max((int(block) for block in _BLOCK.findall("\n".join(names))), default=-1)


def _torch_names(stored: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """{the name that transformers uses today: the tensor}."""
    names = {}
    for tensor in stored:
        today = tensor.name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if today.startswith(("embeddings.", "encoder.", "pooler.")):
            today = f"bert.{today}"
        names[today] = tensor
    return names


def _tensorflow_paths(stored: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """{the path in tfmt's table: the tensor}; what is around the encoder's own path differs from file to file."""
    paths = {}
    for tensor in stored:
        found = re.search(r"(?:^|/)(bert/(?:embeddings|encoder|pooler)/.+?)(?::0)?$", tensor.name)
        if found:
            paths[found[1]] = tensor
    return paths


def model_digest(folder: Path) -> str:
    """sha256 of what decides a model's numbers: weights, settings of the forward pass, and what its tokenizer does."""
    return describe_model(folder)[0]


def describe_model(folder: Path) -> tuple[str, dict[str, Any]]:
    """The model's digest, and its parts, by which two models are told apart; see `tell_difference`.

    Returns:
      (`model_digest`, {"weights": sha256, "config": {key: value}, "tokenizer": sha256})
    """
    config = read_config(folder)
    weights = digest_weights(folder)
    # As the file writes them: 0 and 0.0 have other digests, which ids of runs rest on.
    settings = {key: config.get(key, BertSettings.model_fields[key].default) for key in _DECIDING}
    settings["hidden_act"] = ACTIVATIONS[str(settings["hidden_act"])]  # some functions have two names
    blocks = shape_of(config, folder / "config.json").num_hidden_layers
    if blocks < count_blocks(_plain_names(open_tensors(folder))):
        settings["num_hidden_layers"] = blocks  # of all sizes the one that the weights do not tell
    parts = {
        "weights": weights,
        "config": settings,
        "tokenizer": describe_tokenizer(folder).sha256,
    }
    return json_digest(parts), parts | {"weights": weights if isinstance(weights, str) else json_digest(weights)}


def tell_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two models differ, from the parts that `describe_model` gives: `the weights, layer_norm_eps ...`."""
    told = ["the weights"] if before["weights"] != now["weights"] else []
    for key in sorted({*before["config"], *now["config"]}):
        old, new = before["config"].get(key), now["config"].get(key)
        if old != new:
            told.append(f"config.json's {key} ({new!r}, was {old!r})")
    if before["tokenizer"] != now["tokenizer"]:
        told.append("what the tokenizer does")
    return ", ".join(told)


def is_model(folder: Path, sha256: str) -> bool:
    """Whether a folder holds the model of a digest, also of one from a record of a tfmt that digested whole files.

    That tfmt took every tokenizer for BERT's, so that its digest says something where the tokenizer is that.
    """
    if model_digest(folder) == sha256:
        return True
    source = find_weights(folder)
    if source.name != "model.safetensors" or not uses_bert_class(folder):
        return False
    config = read_config(folder)
    files = [folder / name for name in _EARLIER_VOCABULARY_FILES]
    parts = {
        "weights": file_digest(source),
        "config": {key: config.get(key) for key in _DECIDING},
        "vocabulary": {path.name: file_digest(path) for path in files if path.is_file()},
    }
    return json_digest(parts) == sha256
