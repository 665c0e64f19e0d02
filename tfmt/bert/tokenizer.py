"""The model's own tokenizer: the one that transformers' AutoTokenizer makes of a folder."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfmt.bert.configs import read_config, shape_of
from tfmt.bert.digests import file_digest, json_digest, recall, remember
from tfmt.errors import RequestError, RequestWarning
from tfmt.files import parse_json
from tfmt.words import counted

_SETTINGS_FILE = "tokenizer_config.json"
_BERT_CLASS = "BertTokenizer"
# What transformers 5 calls the class that it and transformers 4 both read as the second name.
_TODAY = {"TokenizersBackend": "PreTrainedTokenizerFast"}
# Raised whenever the facts below get another meaning.
_FACTS_VERSION = 2
# What every text of a batch needs; a vocabulary that lacks one of them is another model's, or cut.
_NEEDED = ("unk_token", "cls_token", "sep_token", "pad_token")
# A text, and one of a character that no vocabulary holds (a noncharacter stays out of Unicode for ever).
_TRIALS = ("a", "a \U0010fffd.", "")


@dataclass(frozen=True)
class TokenizerFacts:
    """What a run needs to know of a tokenizer before it starts.

    Attributes:
      sha256: of all that decides the tokens; see `tokenizer_digest`.
      words: rows of embeddings that its ids need.
      pair_types: how many token types it gives a pair: 2, or 1 where both texts get type 0.
    """

    sha256: str
    words: int
    pair_types: int


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a model folder, of the class that `AutoTokenizer` takes for it, from local files alone.

    What transformers warns about while it loads is shown as a `RequestWarning`.

    Raises:
      RequestError: the folder has no vocabulary, asks for a tokenizer in Python or for code of its own, or its
        vocabulary does not fit the embeddings.
    """
    tokenizer, said = _load(folder)
    for line in said:
        warnings.warn(f"{folder}: {line}", RequestWarning, stacklevel=2)
    return tokenizer


def describe_tokenizer(folder: Path) -> TokenizerFacts:
    """The facts on a folder's tokenizer, without loading it again where its files are those of an earlier time.

    Raises:
      RequestError: as `load_tokenizer`.
    """
    files = list_small_files(folder)
    key = json_digest([_FACTS_VERSION, _versions(), {path.name: file_digest(path) for path in files}])
    try:
        facts = TokenizerFacts(**recall("tokenizers", key))
    except TypeError:
        tokenizer = _load(folder)[0]
        with _refused(folder):
            facts = _measure(tokenizer)
        remember("tokenizers", key, asdict(facts))
    return facts


def list_small_files(folder: Path) -> list[Path]:
    """The files of a model folder that a tokenizer can be made of; config.json is among them."""
    kinds = ("json", "txt", "model", "jinja")
    return [path for kind in kinds for path in sorted(folder.glob(f"*.{kind}")) if path.is_file()]


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of what decides a tokenizer; looking them up takes milliseconds, and a sweep asks for every run."""
    return tuple(importlib.metadata.version(package) for package in ("transformers", "tokenizers"))


def uses_bert_class(folder: Path) -> bool:
    """Whether a folder's tokenizer is transformers' BertTokenizerFast."""
    return _class_name(folder, _read_settings(folder)).removesuffix("Fast") == _BERT_CLASS


def keeps_case(tokenizer: Any) -> bool:
    """Whether `Berlin` and `berlin` stay different for a tokenizer; its own configuration decides."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is None or "A" in normalizer.normalize_str("A")


def tokenizer_digest(tokenizer: Any) -> str:
    """sha256 of all that decides the tokens; settings of a call (truncation, padding) are not part of it."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    deciding = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
    return json_digest({
        **{part: state[part] for part in deciding},
        "splits_special_tokens": tokenizer.backend_tokenizer.encode_special_tokens,
        "truncation_side": tokenizer.truncation_side,
        "pad_token_id": tokenizer.pad_token_id,
    })  # fmt: skip


def save_tokenizer(folder: Path, target: Path) -> None:
    """Writes a model folder's tokenizer to another folder, where `AutoTokenizer` makes the same tokens.

    All that a version of transformers could take a default for is written out.

    Raises:
      RequestError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(folder)
    tokenizer.save_pretrained(str(target))


def _load(folder: Path) -> tuple[Any, list[str]]:
    """The tokenizer, and what there is to say about it."""
    settings = _read_settings(folder)
    name = _class_name(folder, settings)
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

    # The fast class of a name where there is one, as AutoTokenizer does.
    found = None if name.endswith("Fast") else tokenizer_class_from_name(f"{name}Fast")
    found = found or tokenizer_class_from_name(name)
    if found is None:
        raise RequestError(f"{folder}: this transformers has no tokenizer_class {name}; take a model that it can read")
    if not issubclass(found, PreTrainedTokenizerFast):
        raise RequestError(
            f"{folder}: its tokenizer_class {name} is one in Python, not a fast one, which tfmt needs; "
            f"take a model with a tokenizer.json"
        )
    files = {name for name in found.vocab_files_names.values() if name} | {"tokenizer.json"}
    if not any((folder / file).is_file() for file in files):
        raise RequestError(
            f"{folder / 'vocab.txt'}: missing; a model folder needs a vocabulary (vocab.txt or tokenizer.json)"
        )
    for file in ("tokenizer.json", "added_tokens.json", "special_tokens_map.json"):
        _read_object(folder / file)  # transformers does not say which of them is broken
    more: dict[str, Any] = {}
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 5's word for what 4 calls additional
        more = {"extra_special_tokens": {}, "additional_special_tokens": settings["extra_special_tokens"]}
    with _refused(folder), _warnings_of_transformers() as said:
        tokenizer = found.from_pretrained(str(folder), local_files_only=True, **more)
    source = folder / ("tokenizer.json" if (folder / "tokenizer.json").is_file() else "vocab.txt")
    rows = shape_of(read_config(folder), folder / "config.json").vocab_size
    with _refused(folder):
        lacking = _lacking(tokenizer, folder)
    fits = _rows_needed(tokenizer) <= rows
    if wanted := [token for name, token in lacking.items() if name in _NEEDED or not fits]:
        raise RequestError(
            f"{source}: holds no {', '.join(wanted)}; take the vocabulary that belongs to this model, or name its own "
            f"special tokens in {_SETTINGS_FILE}"
        )
    if not fits:
        raise RequestError(
            f"{folder}: the vocabulary has {len(tokenizer):,} entries with ids below {_rows_needed(tokenizer):,}, and "
            f"the embeddings have {rows:,} rows; take the vocabulary that belongs to this model"
        )
    repeated = _repeated(folder / "vocab.txt") if source.name == "vocab.txt" and source.is_file() else []
    if twice := [word for word in repeated if word in tokenizer.all_special_tokens]:
        raise RequestError(f"{source}: holds {twice[0]} more than once; take the vocabulary that belongs to this model")
    with _refused(folder):
        _check_types(tokenizer, folder)
        ids = [
            id for first in _TRIALS for call in (tokenizer(first), tokenizer(first, "a")) for id in call["input_ids"]
        ]
    if ids and max(ids) >= rows:
        raise RequestError(
            f"{source}: gives a text the id {max(ids):,}, and the embeddings have {rows:,} rows (vocab_size); take the "
            f"tokenizer that belongs to this model"
        )
    # That the other name of a class is not its name is no news.
    told = [line for line in said if not any(other in line for other in _TODAY)]
    if repeated:
        told.append(
            f"vocab.txt holds {counted(len(repeated), 'entry', 'entries')} more than once ({repeated[0]!r}); the last "
            f"place of each counts, as in transformers"
        )
    if not tokenizer.num_special_tokens_to_add():
        told.append("the tokenizer adds no special tokens ([CLS], [SEP]), and a head reads a text's first token")
    return tokenizer, [*told, *_case_warning(tokenizer, settings)]


def _read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, checked for what tfmt will not do; empty where there is none."""
    path = folder / _SETTINGS_FILE
    settings = _read_object(path)
    asked = settings.get("auto_map")
    if asked and (not isinstance(asked, dict) or "AutoTokenizer" in asked):
        raise RequestError(f"{path}: asks for code of its own (auto_map); tfmt runs no code that comes with weights")
    words = settings.get("word_tokenizer_type") or "basic"
    if words != "basic":
        raise RequestError(
            f"{path}: asks for the word tokenizer {words} (word_tokenizer_type), which no fast tokenizer has; "
            f"take a model with a tokenizer.json"
        )
    return settings


def _class_name(folder: Path, settings: dict[str, Any]) -> str:
    """The name of the class that AutoTokenizer takes: tokenizer_config.json's, else config.json's, else BERT's."""
    name = settings.get("tokenizer_class") or read_config(folder).get("tokenizer_class") or _BERT_CLASS
    if not isinstance(name, str):
        raise RequestError(f"{folder}: tokenizer_class must be a name. Received: {name!r}")
    return _TODAY.get(name, name)


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """Turns whatever the tokenizer libraries raise for a broken file into one line."""
    try:
        yield
    except RequestError:
        raise
    except BaseException as error:  # a panic in their Rust code is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequestError(
            f"{folder}: the tokenizer's files cannot be read: {first}; fetch the tokenizer of this model again"
        ) from None


def _lacking(tokenizer: Any, folder: Path) -> dict[str, str]:
    """{`cls_token`: `[CLS]`} of special tokens that no file gives an id; transformers makes one up for each."""
    known = set(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False))
    if not known:
        raise RequestError(f"{folder}: its vocabulary is empty; fetch the tokenizer of this model again")
    known |= set(_read_object(folder / "added_tokens.json"))
    known |= {token["content"] for token in _read_object(folder / "tokenizer.json").get("added_tokens") or ()}
    known |= {
        token["content"] if isinstance(token, dict) else str(token)
        for token in (_read_object(folder / _SETTINGS_FILE).get("added_tokens_decoder") or {}).values()
    }
    names = tokenizer.special_tokens_map
    return {name: str(token) for name, token in names.items() if isinstance(token, str) and token not in known}


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes())
    except (ValueError, OSError) as error:
        raise RequestError(f"{path}: not readable as JSON: {error}; fetch the model again") from None
    if not isinstance(content, dict):
        raise RequestError(f"{path}: expected a JSON object; fetch the model again")
    return content


def _repeated(path: Path) -> list[str]:
    """The lines of a vocabulary that come more than once, in the order in which they do."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [word for word, count in Counter(lines).items() if count > 1]


def _rows_needed(tokenizer: Any) -> int:
    return 1 + max(tokenizer.get_vocab().values(), default=0)


def _measure(tokenizer: Any) -> TokenizerFacts:
    return TokenizerFacts(
        tokenizer_digest(tokenizer), _rows_needed(tokenizer), 1 + max(_types(tokenizer, "a", "a"), default=0)
    )


def _types(tokenizer: Any, *texts: str) -> list[int]:
    return list(tokenizer(*texts, return_token_type_ids=True)["token_type_ids"])


def _check_types(tokenizer: Any, folder: Path) -> None:
    """Refuses token types that BERT was not made for: anything but 0 for a first text and then 0 or 1 for a second."""
    pair = _types(tokenizer, "a", "a")
    if any(_types(tokenizer, "a")) or pair != sorted(pair) or not set(pair) <= {0, 1}:
        raise RequestError(f"{folder}: expected token types 0 and 1 of the tokenizer. Received for a pair: {pair}")


def _case_warning(tokenizer: Any, settings: dict[str, Any]) -> Iterator[str]:
    """A line for a vocabulary that looks cased, where only transformers' default says to lower-case."""
    if not hasattr(tokenizer, "do_lower_case") or "do_lower_case" in settings or keeps_case(tokenizer):
        return
    special = set(tokenizer.all_special_tokens)
    words = (word for word in tokenizer.get_vocab() if word not in special and not word.startswith("["))
    cased = sorted(word for word in words if word != word.lower())
    if cased:
        yield (
            f"the vocabulary holds {len(cased):,} words with capitals ({cased[0]}), and transformers lower-cases "
            f"every text unless {_SETTINGS_FILE} says otherwise; if the model keeps case, "
            f'write {{"do_lower_case": false}} there'
        )


@contextmanager
def _warnings_of_transformers() -> Iterator[list[str]]:
    """Collects what transformers warns about, one line each, however quiet it was told to be."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(" ".join(record.getMessage().split()))

    logger = logging.getLogger("transformers")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [Listener(logging.WARNING)], False
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        # Deprecations are for those who call transformers; they are of other classes.
        said += [" ".join(str(warning.message).split()) for warning in caught if warning.category is UserWarning]
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
