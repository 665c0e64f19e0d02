"""TensorFlow as every test sees it: quiet, legacy Keras, and four logical CPU devices.

The devices have to exist before anything initialises TensorFlow. One of them is what a test without a strategy uses;
`MirroredStrategy(["CPU:0", "CPU:1"])` runs two replicas without a GPU.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tfmt import streams
from tfmt.bert.configs import shape_of
from tfmt.bert.vocabulary import list_weights
from tfmt.runs import lease

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def pytest_configure() -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)


TOY_WORDS = [
    "good",
    "bad",
    "film",
    "plot",
    "the",
    "a",
    "very",
    "not",
    "dull",
    "bright",
    "story",
    "actor",
    "ends",
    "well",
]


def write_toy_bert(folder: Path, *, seed: int = 0, blocks: int = 2, hidden: int = 16, **config: object) -> Path:
    """A tiny BERT with random weights, as a model folder in Hugging Face's layout."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TOY_WORDS]
    settings = {
        "model_type": "bert", "architectures": ["BertModel"], "hidden_size": hidden, "num_hidden_layers": blocks,
        "num_attention_heads": 2, "intermediate_size": 2 * hidden, "vocab_size": len(vocabulary),
        "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
    } | config  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    generator = np.random.default_rng(seed)
    tensors = {}
    for weight in list_weights(shape_of(settings), "sentence", 2):
        if weight.sublayer != "classifier":
            shape = weight.shape[::-1] if weight.transposed else weight.shape
            centre = 1.0 if weight.part == "gamma" else 0.0
            tensors[weight.torch_name] = generator.normal(centre, 0.2, shape).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_toy_mrpc(folder: Path, *, train: int = 48, validation: int = 20, seed: int = 0) -> Path:
    """Sentence pairs in the layout of GLUE's MRPC; a pair is equivalent where both hold `good` or neither does."""
    generator = np.random.default_rng(seed)
    (folder / "MRPC").mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("dev", validation)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for row in range(count):
            first, second = (" ".join(generator.choice(TOY_WORDS, generator.integers(2, 12))) for _ in range(2))
            label = int(("good" in first) == ("good" in second))
            lines.append(f"{label}\t{row}\t{row}\t{first}\t{second}")
        (folder / "MRPC" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def toy_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bert(tmp_path_factory.mktemp("toy") / "bert")


@pytest.fixture(scope="session")
def make_toy_bert():
    """`write_toy_bert`, for toys of other sizes."""
    return write_toy_bert


@pytest.fixture(scope="session")
def toy_glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_mrpc(tmp_path_factory.mktemp("glue"))


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["TFMT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _patient() -> None:
    """A machine under load is no reason for lines that say what takes so long."""
    streams.SLOW_SECONDS = 600.0
    lease.LOOK_SECONDS = 0.1, 0.3  # nor is a test to wait as long as a file server should be left alone


@pytest.fixture(scope="session")
def impatient_sweep() -> list[str]:
    """`tfmt-sweep` as a process that looks as often at what others hold as the tests do."""
    code = "import sys; from tfmt import sweep; from tfmt.runs import lease; lease.LOOK_SECONDS = 0.1, 0.3"
    return [sys.executable, "-c", f"{code}; sys.exit(sweep.main())"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Runs switch deterministic operations on for the process; then Keras's own shuffling asks for a seed."""
    import tensorflow as tf

    tf.random.set_seed(0)
