"""`RunSpec`: everything that one fine-tuning run is asked to do, and the id that names it."""

from __future__ import annotations

import functools
import hashlib
import json
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from tfmt import expressions, protocol
from tfmt.errors import RequestError
from tfmt.files import find_path_fault, parse_json

# Raised whenever tfmt's arithmetic changes, so that records of different arithmetic never share an id.
ARITHMETIC = 5

Mode = Literal[
    "full",
    "frozen",
    "attention",
    "feedforward",
    "layernorm",
    "layernorm_attention",
    "layernorm_feedforward",
    "bitfit",
    "random",
    "outliers",
    "outliers_control",
    "fisher",
    "fisher_control",
    "custom",
]
TaskName = Literal[
    "cola",
    "sst2",
    "mrpc",
    "stsb",
    "qqp",
    "mnli",
    "qnli",
    "rte",
    "ptb_pos",
    "conll2003_ner",
    "rotten_tomatoes",
    "custom",
]
MODES: tuple[str, ...] = get_args(Mode)
TASK_NAMES: tuple[str, ...] = get_args(TaskName)

# The optimizers that have Adam's epsilon.
_ADAMS = ("adam", "adamw")

_LAYERS = "`all`, a block `5`, a range `0-3` or a list `0,5,11`"


def parse_layers(text: str) -> tuple[int, ...] | None:
    """Reads `all`, `5`, `0-3` or `0,5,11` (0-based blocks).

    Args:
      text: the value of `--layers`.

    Returns:
      The blocks, sorted and without repeats, or None for `all`.

    Raises:
      ValueError: the text is none of these forms.
    """
    if text == "all":
        return None
    blocks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        if not match:
            raise ValueError(f"layers must be {_LAYERS}. Received: layers={text!r}")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first or last > 999:
            raise ValueError(f"layers has the empty or too large range {part.strip()!r}. Received: layers={text!r}")
        blocks.update(range(first, last + 1))
    return tuple(sorted(blocks))


def format_layers(blocks: tuple[int, ...]) -> str:
    """The shortest text that `parse_layers` reads back as these sorted blocks."""
    ranges: list[list[int]] = []
    for block in blocks:
        if ranges and block == ranges[-1][1] + 1:
            ranges[-1][1] = block
        else:
            ranges.append([block, block])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


# A name on the hub and a branch, tag or commit. What begins with a dot or a slash is a path.
_PINNED = re.compile(r"(\w[\w.-]*(?:/[\w.-]+)?)@(\S+)", re.ASCII)


def split_revision(model: str, revision: str = "") -> tuple[str, str]:
    """Parts a hub model's `name@revision`; a folder that has just this name stays whole.

    Args:
      model: the value of `--model`.
      revision: the value of `--revision`.

    Returns:
      (model, revision)

    Raises:
      ValueError: two different revisions are given.

    Example:
      >>> split_revision("bert-base-uncased@v1")
      ('bert-base-uncased', 'v1')
    """
    match = _PINNED.fullmatch(model)
    if match is None or Path(model).is_dir():
        return model, revision
    if revision not in ("", match[2]):
        raise ValueError(f"--model={model} names another revision than --revision={revision}; leave one of them out")
    return match[1], match[2]


_BUDGET = re.compile(r"[1-9][0-9]{0,11}|(?!0*\.?0*%)([0-9]{1,3})(\.[0-9]{1,12})?%", re.ASCII)

# What no type says of single values: {name: (whether it holds, what is expected)}.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (lambda value: bool(value.strip()), "a hub name, a local folder, or `demo`"),
    "fisher_from": (lambda value: all(folder.strip() for folder in value), "folders of runs"),
    "learning_rate": (lambda value: value is None or value > 0, "a positive number"),
    "epochs": (lambda value: 0 <= value <= 1_000_000, "at least 1 (at most 1,000,000), or 0 for the paper's rule"),
    "batch_size": (lambda value: value >= 1, "at least 1"),
    "max_length": (lambda value: value >= 8, "at least 8 tokens"),
    "warmup_ratio": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "adam_epsilon": (lambda value: value > 0, "a positive number"),
    "weight_decay": (lambda value: value >= 0, "0 (none) or a positive number"),
    "clip_norm": (lambda value: value >= 0, "0 (no clipping) or a positive number"),
    "early_stopping": (lambda value: value >= 0, "0 (off) or a number of epochs"),
    "seed": (lambda value: 0 <= value < 2**31, "between 0 and 2147483647"),
    "split_seed": (lambda value: value is None or value >= 0, "0 or more"),
    "train_limit": (lambda value: value >= 0, "0 (all) or a number of examples"),
    "validation_limit": (lambda value: value >= 0, "0 (all) or a number of examples"),
    "replicas": (lambda value: value >= 0, "0 (every GPU, else one CPU) or a number of devices"),
    "mask_size": (lambda value: value is None or value >= 1, "at least 1"),
    "mask_fraction": (lambda value: value is None or 0 < value <= 1, "above 0 and at most 1"),
    "budget": (
        lambda value: not value or bool(_BUDGET.fullmatch(value)),
        "a number of weights, 6144, or percent, 0.5%",
    ),
    "fisher_examples": (lambda value: value >= 1, "at least 1"),
    "cache_limit_gb": (lambda value: value >= 0, "0 or more gigabytes"),
    "validation_fraction": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
}


# Settings that hold paths, or may.
_PATHS = frozenset({"model", "data_dir", "fisher_from"})


class Checked(BaseModel):
    """Settings by name, strict: what a field of a name may be is the same wherever one has that name.

    Numbers of NumPy are taken for what they are; a bool is no number, and neither is a text.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """What JSON and NumPy write in their own way, as Python's."""
        if info.field_name == "layers" and not isinstance(value, str):
            raise ValueError(f"layers must be a text: {_LAYERS}. Received: layers={value!r}")
        if isinstance(value, list):
            return tuple(value)  # JSON has no tuples
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return value
        return int(value) if isinstance(value, numbers.Integral) else float(value)

    @field_validator("*")
    @classmethod
    def _within_range(cls, value: Any, info: ValidationInfo) -> Any:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and (fault := _find_fault(str(info.field_name), text)):
                raise ValueError(f"{info.field_name} {fault}. Received: {info.field_name}={value!r}")
        holds, expected = _RULES.get(str(info.field_name), (None, ""))
        if holds is not None and not holds(value):
            raise ValueError(f"{info.field_name} must be {expected}. Received: {info.field_name}={value!r}")
        return value

    @field_validator("layers", check_fields=False)
    @classmethod
    def _shortest_layers(cls, value: str) -> str:
        blocks = parse_layers(value)
        return "all" if blocks is None else format_layers(blocks)

    @classmethod
    def make(cls, **settings: Any) -> Self:
        """The settings, checked; what pydantic finds wrong becomes a one-line `RequestError`."""
        try:
            return cls(**settings)
        except ValidationError as error:
            cause = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            if isinstance(cause, expressions.ExpressionError):
                raise cause from None  # its further lines point at the place
            raise RequestError(_one_line(error)) from None


def _find_fault(name: str, text: str) -> str | None:
    """Why no setting can have this text."""
    if name in _PATHS and (fault := find_path_fault(text)):
        return fault
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


class RunSpec(Checked):
    """One run, immutable and strict; equal runs are equal specs.

    Fields carry the names of the tfmt-train flags. Fields that mean nothing for the mode, the task or the optimizer
    are set to their defaults, `learning_rate=None` and `epochs=0` are replaced by the numbers they stand for, and
    `layers` is written in its shortest form.

    Raises:
      RequestError (from `RunSpec.make` and `RunSpec.from_json`): an unknown field, a wrong type or value, or a
        combination that cannot be trained.

    Example:
      >>> import tfmt
      >>> tfmt.RunSpec.make(model="demo", task="mrpc", mode="layernorm").epochs
      20
    """

    model: str
    revision: str = ""
    task: TaskName
    data_dir: str = ""
    mode: Mode
    layers: str = "all"
    mask_size: int | None = None
    mask_fraction: float | None = None
    outlier_pool: Literal["layernorm", "gamma", "beta"] = "layernorm"
    select: str = ""
    budget: str = ""
    fisher_examples: int = 1024
    fisher_from: tuple[str, ...] = ()
    learning_rate: float | None = None
    epochs: int = 0
    batch_size: int = protocol.BATCH_SIZE
    max_length: int = protocol.MAX_LENGTH
    warmup_ratio: float = protocol.WARMUP_RATIO
    schedule: Literal["linear", "constant"] = "linear"
    optimizer: Literal["adam", "adamw", "sgd", "lion", "adafactor"] = "adam"
    adam_epsilon: float = protocol.ADAM_EPSILON
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    early_stopping: int = 0
    seed: int = 0
    batching: Literal["grouped", "random", "fixed"] = "grouped"
    train_limit: int = 0
    validation_limit: int = 0
    replicas: int = 0
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    jit_compile: Literal["auto", "on", "off"] = "auto"
    frozen_prefix: Literal["live", "cached"] = "live"
    cache_limit_gb: float = 4.0
    keep: Literal["tuned", "scores"] = "tuned"
    keep_epoch: Literal["best", "last"] = "best"
    text_columns: tuple[str, ...] = ()
    label_column: str = ""
    task_type: Literal["", "classification", "regression", "tokens"] = ""
    validation_fraction: float = 0.0
    encoding: str = "utf-8"
    split_seed: int | None = None

    # Never in an id. Digests stand for the model, the data, other runs' masks and an expression's normal form, wherever
    # and however they are given. On other devices or compiled by XLA a run is the same up to rounding, and its record
    # says on what it ran. What a run keeps, and how much memory it may take, is no part of its result.
    _OUTSIDE_IDS: ClassVar[frozenset[str]] = frozenset(
        {"model", "revision", "data_dir", "fisher_from", "select", "budget", "replicas", "jit_compile",
         "cache_limit_gb", "keep"}
    )  # fmt: skip
    # In every id, whatever their value. This set is closed: a field that is added later enters an id only where it
    # differs from its default, which must be what runs did before, so that a new flag renames no run.
    _IN_EVERY_ID: ClassVar[frozenset[str]] = frozenset({
        "task", "mode", "layers", "mask_size", "mask_fraction", "outlier_pool", "fisher_examples", "learning_rate",
        "epochs", "batch_size", "max_length", "warmup_ratio", "schedule", "adam_epsilon", "seed", "batching",
        "train_limit", "validation_limit", "precision", "frozen_prefix", "keep_epoch", "text_columns", "label_column",
        "task_type", "validation_fraction", "encoding", "split_seed",
    })  # fmt: skip

    @model_validator(mode="after")
    def _settle(self) -> RunSpec:
        for name, number in self:
            if isinstance(number, float):
                object.__setattr__(self, name, number + 0.0)  # -0.0 is 0.0, and one run has one id
        for name, value in zip(("model", "revision"), split_revision(self.model, self.revision), strict=True):
            object.__setattr__(self, name, value)
        if self.mode == "custom":
            label, expression = expressions.split_label(self.select)
            _check_label(label)
            tree = _parse(expression) if expression else None
            written = expressions.write(tree) if tree else ""
            object.__setattr__(self, "select", f"{label} = {written}" if label else written)
        meaningful = meaningful_fields(self.mode, self.task, self.select)
        for name in CONDITIONAL_FIELDS - meaningful:
            object.__setattr__(self, name, type(self).model_fields[name].default)
        if self.mode != "custom" and not has_frozen_prefix(self.mode, self.layers):
            object.__setattr__(self, "frozen_prefix", "live")
        if self.optimizer not in _ADAMS:
            object.__setattr__(self, "adam_epsilon", protocol.ADAM_EPSILON)
        if self.learning_rate is None:
            if self.optimizer != "adam":
                raise ValueError(f"--optimizer={self.optimizer} has no usual rate, as adam has; give --learning_rate")
            object.__setattr__(self, "learning_rate", protocol.usual_rate(self.mode))
        if self.epochs == 0:
            object.__setattr__(self, "epochs", protocol.paper_epochs(self.task, self.mode))
        if self.early_stopping >= self.epochs:  # the run has ended by then
            object.__setattr__(self, "early_stopping", 0)
        _check_combination(self)
        return self

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """The spec that `to_json` wrote."""
        try:
            settings = parse_json(text.encode())
        except (AttributeError, ValueError) as error:
            raise RequestError(f"a run spec must be JSON: {error}") from None
        if not isinstance(settings, dict):
            raise RequestError(f"a run spec must be a JSON object. Received: {type(settings).__name__}")
        return cls.make(**settings)

    def to_json(self) -> str:
        """All fields as a JSON object, in the order of the class."""
        return self.model_dump_json(indent=1)

    def identity(self, **digests: str) -> dict[str, Any]:
        """What changes the result: the settings, the digests given, and the number of tfmt's arithmetic.

        Args:
          **digests: digests of content, for example `model=...`, `data=...`, `fisher_from=...`.
        """
        settings = {name: value for name, value in self.model_dump(mode="json").items() if self._identifies(name)}
        if self.mode == "custom":  # whether it means anything is known with the model, so that the digests tell it
            settings["fisher_examples"] = type(self).model_fields["fisher_examples"].default
        return {"arithmetic": ARITHMETIC, "digests": dict(sorted(digests.items())), "settings": settings}

    def _identifies(self, name: str) -> bool:
        """Whether a field tells this run from others."""
        if name in self._OUTSIDE_IDS:
            return False
        default = type(self).model_fields[name].get_default(call_default_factory=True)
        return name in self._IN_EVERY_ID or getattr(self, name) != default

    def run_id(self, **digests: str) -> str:
        """A readable name that ends in ten hex digits of the hash of `identity`."""
        return f"{self.label()}-{digest_json(self.identity(**digests))[:10]}"

    @property
    def trained(self) -> str:
        """What trains, for people: the mode's name, or of `custom` the selection's name or its expression."""
        if self.mode != "custom":
            return self.mode
        label, expression = expressions.split_label(self.select)
        return " ".join(filter(None, (label or expressions.shorten(expression), self.budget)))

    def label(self) -> str:
        """The readable part of the id: task, mode and its choices, another optimizer than Adam, rate, seed."""
        parts: list[str] = [self.task, self.mode]
        if self.layers != "all":
            parts.append("L" + self.layers.replace(",", "+"))
        if self.mask_size is not None:
            parts.append(f"n{self.mask_size}")
        if self.mask_fraction is not None:
            parts.append(f"f{self.mask_fraction:g}")
        if self.fisher_from:
            parts.append("union")
        if self.optimizer != "adam":
            parts.append(self.optimizer)
        parts += [f"lr{self.learning_rate:g}", f"s{self.seed}"]
        return "-".join(parts)


def digest_json(value: Mapping[str, Any]) -> str:
    """sha256 of a JSON value in one canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


_MODE_FIELDS: dict[str, frozenset[str]] = {
    "outliers": frozenset({"mask_size", "outlier_pool"}),
    "outliers_control": frozenset({"mask_size", "outlier_pool"}),
    "fisher": frozenset({"mask_fraction", "fisher_examples", "fisher_from"}),
    "fisher_control": frozenset({"mask_fraction"}),
    "custom": frozenset({"select", "budget", "fisher_examples"}),
}
_CUSTOM_FIELDS = frozenset({"text_columns", "label_column", "task_type", "validation_fraction"})
_TASK_FIELDS: dict[str, frozenset[str]] = {
    "custom": _CUSTOM_FIELDS | {"encoding", "split_seed"},
    "ptb_pos": frozenset({"split_seed"}),
    "conll2003_ner": frozenset({"encoding"}),
}
# Fields that only some modes or tasks read; elsewhere they are normalised away.
CONDITIONAL_FIELDS: frozenset[str] = frozenset().union({"layers"}, *_MODE_FIELDS.values(), *_TASK_FIELDS.values())


def _check_label(label: str) -> None:
    """Refuses a selection's name that is a mode's, unless it is a score's too, or that is no line of text."""
    if label in MODES and label not in expressions.SCORE_OPTIONS:
        raise ValueError(f"select: {label} is the name of a mode; give the selection another, or none")
    if not label.isprintable():
        raise ValueError(f"select: a name is one line of printable characters. Received: {label!r}")


def meaningful_fields(mode: str, task: str, select: str = "") -> frozenset[str]:
    """The members of `CONDITIONAL_FIELDS` that change something for this mode and task.

    Args:
      mode: the mode.
      task: the task.
      select: with `custom`, the expression; an empty one may have any settings.
    """
    fields = _MODE_FIELDS.get(mode, frozenset()) | _TASK_FIELDS.get(task, frozenset())
    if mode == "custom" and select:
        scored = [node for node in _walk(select) if isinstance(node, expressions.Scored)]
        if not any(node.amount.budget for node in scored):
            fields -= {"budget"}
        if not any(node.score in expressions.GRADIENT_SCORES for node in scored):
            fields -= {"fisher_examples"}
    return fields if mode in ("frozen", "custom") else fields | {"layers"}


@functools.lru_cache(1000)
def _parse(expression: str) -> expressions.Node:
    """A tree never changes, and the runs of a study have few."""
    return expressions.parse(expression)


def _walk(select: str) -> Iterable[expressions.Node]:
    return expressions.walk(_parse(expressions.split_label(select)[1]))


def check_settings(**settings: Any) -> dict[str, Any]:
    """Checks single values as a spec would that has them, for calls that take some of a spec's settings.

    Args:
      **settings: values by the names of the fields of `RunSpec`.

    Returns:
      The same, normalised as in a spec.

    Raises:
      RequestError: a value that no spec can have.

    Example:
      >>> check_settings(layers="1,0", seed=3)
      {'layers': '0-1', 'seed': 3}
    """
    return dict(_settings_class(tuple(settings)).make(**settings))


@functools.cache
def _settings_class(names: tuple[str, ...]) -> type[Checked]:
    kinds: dict[str, Any] = {name: (RunSpec.model_fields[name].annotation, ...) for name in names}
    return create_model("Settings", __base__=Checked, **kinds)


def find_idle(given: Iterable[str], mode: str, task: str = "", select: str = "") -> str | None:
    """The first setting, of those given by hand, that means nothing for this mode and task; None if all do."""
    return min((set(given) & CONDITIONAL_FIELDS) - meaningful_fields(mode, task, select), default=None)


def check_mode(mode: str, mask_size: int | None, mask_fraction: float | None, select: str, **union: bool) -> None:
    """Refuses a mode without the settings that say what it trains, or with two that contradict each other.

    Args:
      mode: the mode.
      mask_size: its weights per LayerNorm.
      mask_fraction: its part of the feed-forward LayerNorms' weights.
      select: its expression.
      **union: whether there is a union of other masks, under the name of what gives it.
    """
    ((source, united),) = union.items()
    if mode == "custom" and not expressions.split_label(select)[1]:
        raise RequestError('mode=custom needs select, what trains: for example select="attention.query.bias@6-last"')
    if mode in ("outliers", "outliers_control") and mask_size is None:
        raise RequestError(f"mode={mode} needs mask_size, the number of weights per LayerNorm")
    if mode == "fisher" and mask_fraction is None and not united:
        raise RequestError(f"mode=fisher needs mask_fraction, or {source} for the union of other runs' masks")
    if mode == "fisher" and mask_fraction is not None and united:
        raise RequestError(f"mode=fisher takes mask_fraction or {source}, not both: a union has no fraction of its own")
    if mode == "fisher_control" and mask_fraction is None:
        raise RequestError("mode=fisher_control needs mask_fraction, the part of the weights to train")


def has_frozen_prefix(mode: str, layers: str) -> bool:
    """Whether whole blocks lie below everything that a mode may select, so that `frozen_prefix` means something."""
    blocks = parse_layers(layers)
    return mode == "frozen" or (blocks is not None and blocks[0] > 0)


def _check_combination(spec: RunSpec) -> None:
    """Combinations that cannot be trained."""
    check_mode(spec.mode, spec.mask_size, spec.mask_fraction, spec.select, fisher_from=bool(spec.fisher_from))
    if "budget" in meaningful_fields(spec.mode, spec.task, spec.select) and not spec.budget:
        raise ValueError("select has `budget` in it, which is the value of budget: give it, for example budget=0.5%")
    if spec.task == "custom":
        for name in ("data_dir", "text_columns", "label_column", "task_type"):
            if not getattr(spec, name):
                raise ValueError(f"task=custom needs {name}")
        columns = (*spec.text_columns, spec.label_column)
        if len(set(columns)) < len(columns):
            raise ValueError(
                f"text_columns and label_column must name different columns. "
                f"Received: text_columns={','.join(spec.text_columns)}, label_column={spec.label_column}"
            )
    if spec.optimizer == "adam" and spec.weight_decay:
        raise ValueError(f"--weight_decay={spec.weight_decay:g}: adam, P1's, has none; take --optimizer=adamw")
    if spec.replicas > 1 and spec.jit_compile == "on":
        raise ValueError("--jit_compile=on: XLA compiles steps of one device alone; use --replicas=1")
    if spec.replicas > 1 and spec.batch_size % spec.replicas:
        raise ValueError(
            f"batch_size is global and must be divisible by replicas."
            f" Received: batch_size={spec.batch_size}, replicas={spec.replicas}"
        )


def _one_line(error: ValidationError) -> str:
    """The first thing pydantic complains about, as `field must be what was expected. Received: ...`."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{name} is not a field of a run spec"
    if first["type"] == "missing":
        return f"{name} is required"
    expected = first["msg"].removeprefix("Input should be ").replace("a valid tuple", "a list or tuple")
    shown = f"{name} must be {expected}" if expected != first["msg"] else f"{name}: {expected[0].lower()}{expected[1:]}"
    return f"{shown}. Received: {name}={first['input']!r}"
