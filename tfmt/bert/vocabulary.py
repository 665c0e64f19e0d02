"""The one table of BERT's weights: where each lies, what it is called elsewhere, which part of BERT it is.

*Sublayers* are the parts that P1 tunes; *components* are the finer parts that P2 analyses. Both, the names that
Hugging Face's PyTorch checkpoints use, and every count of weights come from `_BLOCK` and `_OUTSIDE` below, without
TensorFlow and without a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfmt.bert.configs import BertShape

BLOCK_SUBLAYERS = ("attention", "attention_layernorm", "feedforward", "feedforward_layernorm")
SUBLAYERS = ("embeddings", "embeddings_layernorm", *BLOCK_SUBLAYERS, "pooler", "classifier")

# (path of the layer inside its block, the same in PyTorch's names, component, sublayer, kind, input, output)
# where input and output are names of sizes; a LayerNorm has one size.
_BLOCK = (
    ("attention/self/query", "attention.self.query", "query", "attention", "dense", "hidden", "hidden"),
    ("attention/self/key", "attention.self.key", "key", "attention", "dense", "hidden", "hidden"),
    ("attention/self/value", "attention.self.value", "value", "attention", "dense", "hidden", "hidden"),
    ("attention/output/dense", "attention.output.dense", "attention.output", "attention", "dense", "hidden", "hidden"),
    ("attention/output/LayerNorm", "attention.output.LayerNorm", "attention.output.LayerNorm", "attention_layernorm",
     "layernorm", "hidden", "hidden"),
    ("intermediate/dense", "intermediate.dense", "intermediate", "feedforward", "dense", "hidden", "intermediate"),
    ("output/dense", "output.dense", "output", "feedforward", "dense", "intermediate", "hidden"),
    ("output/LayerNorm", "output.LayerNorm", "output.LayerNorm", "feedforward_layernorm", "layernorm", "hidden",
     "hidden"),
)  # fmt: skip
_OUTSIDE = (
    ("bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings", "embeddings.word", "embeddings",
     "table", "vocabulary", "hidden"),
    ("bert/embeddings/token_type_embeddings", "bert.embeddings.token_type_embeddings", "embeddings.token_type",
     "embeddings", "table", "token_types", "hidden"),
    ("bert/embeddings/position_embeddings", "bert.embeddings.position_embeddings", "embeddings.position",
     "embeddings", "table", "positions", "hidden"),
    ("bert/embeddings/LayerNorm", "bert.embeddings.LayerNorm", "embeddings.LayerNorm", "embeddings_layernorm",
     "layernorm", "hidden", "hidden"),
    ("bert/pooler/dense", "bert.pooler.dense", "pooler", "pooler", "dense", "hidden", "hidden"),
    ("classifier", "classifier", "classifier", "classifier", "dense", "hidden", "labels"),
)  # fmt: skip


@dataclass(frozen=True)
class Weight:
    """One variable of a BERT model with a head.

    Attributes:
      path: TensorFlow path after the model's own name, `bert/encoder/layer_._0/output/LayerNorm/gamma`.
      torch_name: the name in a PyTorch checkpoint, `bert.encoder.layer.0.output.LayerNorm.weight`.
      shape: TensorFlow's shape; a Dense kernel is (in, out), which PyTorch stores transposed.
      sublayer: one of `SUBLAYERS`.
      component: P2's finer name with the part of it, `output.LayerNorm.gamma`.
      block: 0-based block, or None outside the blocks.
    """

    path: str
    torch_name: str
    shape: tuple[int, ...]
    sublayer: str
    component: str
    block: int | None

    @property
    def part(self) -> str:
        """kernel, bias, gamma, beta, or table."""
        return self.component.rsplit(".", 1)[-1]

    @property
    def size(self) -> int:
        """Number of weights in it."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def transposed(self) -> bool:
        """Whether PyTorch stores it transposed."""
        return self.part == "kernel"


def _layer_weights(
    row: tuple[str, ...], prefix: tuple[str, str], block: int | None, sizes: dict[str, int]
) -> Iterator[Weight]:
    """The one or two variables of one row of the table."""
    layer, torch_layer, component, sublayer, kind, size_in, size_out = row
    path, torch_name = prefix[0] + layer, prefix[1] + torch_layer
    rows, columns = sizes[size_in], sizes[size_out]
    if kind == "table":
        # Hugging Face names the variable of the word table alone `weight`.
        variable = "weight" if component == "embeddings.word" else "embeddings"
        yield Weight(
            f"{path}/{variable}", f"{torch_name}.weight", (rows, columns), sublayer, f"{component}.table", block
        )
    elif kind == "dense":
        yield Weight(f"{path}/kernel", f"{torch_name}.weight", (rows, columns), sublayer, f"{component}.kernel", block)
        yield Weight(f"{path}/bias", f"{torch_name}.bias", (columns,), sublayer, f"{component}.bias", block)
    else:
        yield Weight(f"{path}/gamma", f"{torch_name}.weight", (columns,), sublayer, f"{component}.gamma", block)
        yield Weight(f"{path}/beta", f"{torch_name}.bias", (columns,), sublayer, f"{component}.beta", block)


def list_weights(shape: BertShape, head: str, num_labels: int) -> tuple[Weight, ...]:
    """Every variable of a BERT model with a head, from its sizes alone.

    Args:
      shape: sizes of the model.
      head: `sentence` (with the pooler) or `tokens` (without it).
      num_labels: outputs of the classifier.

    Returns:
      The weights: embeddings, blocks in order, pooler, classifier.
    """
    sizes = {
        "hidden": shape.hidden_size,
        "intermediate": shape.intermediate_size,
        "vocabulary": shape.vocab_size,
        "positions": shape.max_position_embeddings,
        "token_types": shape.type_vocab_size,
        "labels": num_labels,
    }
    found: list[Weight] = []
    for row in _OUTSIDE:
        if row[3] == "pooler":
            for block in range(shape.num_hidden_layers):
                prefix = (f"bert/encoder/layer_._{block}/", f"bert.encoder.layer.{block}.")
                for block_row in _BLOCK:
                    found += _layer_weights(block_row, prefix, block, sizes)
            if head == "tokens":
                continue
        found += _layer_weights(row, ("", ""), None, sizes)
    return tuple(found)


# Anchored at both ends: `output/dense` alone would also find `attention/output/dense`.
_BLOCK_PATHS = "|".join(re.escape(row[0]) for row in _BLOCK)
_OUTSIDE_PATHS = "|".join(re.escape(row[0]) for row in _OUTSIDE)
_KNOWN_PATH = re.compile(
    rf"(?:{_OUTSIDE_PATHS}|bert/encoder/layer_\._\d+/(?:{_BLOCK_PATHS}))/(?:weight|embeddings|kernel|bias|gamma|beta)"
)


def variable_path(variable: Any) -> str:
    """The path of a variable, independent of the model's own name.

    Args:
      variable: a TensorFlow variable, also one replica's part of a mirrored one.

    Returns:
      `bert/encoder/layer_._0/output/LayerNorm/gamma` for a BERT variable whatever its model is called; for any other
      variable its name without the `:0`.
    """
    name = re.sub(r"(/replica_\d+)?:\d+$", "", variable.name)
    _, _, rest = name.partition("/")
    return rest if _KNOWN_PATH.fullmatch(rest) else name
