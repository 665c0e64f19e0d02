"""`Record`: what a finished run says of itself, one JSON file a run; and reading many of them as one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tfmt.bert.configs import public_name
from tfmt.errors import RequestError
from tfmt.files import check_path, parse_json
from tfmt.selection.stored import FisherNotes
from tfmt.spec import RunSpec, digest_json
from tfmt.training.distribution import Distributions
from tfmt.training.epoch import Count, Epoch, Score, Seconds

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
RECORD_FILE = "record.json"
SPEC_FILE = "spec.json"
DISTRIBUTIONS_FILE = "distributions.json"


class _Part(BaseModel):
    # Pydantic below 2.10 keeps names that begin with `model_` for itself.
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class _Sealed(_Part):
    """A file of its own, which carries a digest of its content: most single bits that flip leave JSON that parses."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", allow_inf_nan=False, protected_namespaces=(),
        alias_generator=lambda name: name.rstrip("_"), populate_by_name=True,
    )  # fmt: skip

    def to_json(self) -> str:
        """The content as it is stored; `sha256` is of the rest in one canonical form, whatever the layout."""
        return seal_json(json.loads(self.model_dump_json(by_alias=True)))

    @model_validator(mode="before")
    @classmethod
    def _unseal(cls, content: Any) -> Any:
        return unseal(content)


def seal_json(content: dict[str, Any]) -> str:
    """A JSON object as text, with a digest of itself under `sha256`, which `unseal` checks."""
    return json.dumps(content | {"sha256": digest_json(content)}, indent=1)


def unseal(content: Any) -> Any:
    """What `seal_json` was given; a value without a digest, as of earlier versions, is taken as it is.

    Raises:
      ValueError: it is not what it was when it was written.
    """
    if not isinstance(content, dict) or "sha256" not in content:
        return content
    rest = {key: value for key, value in content.items() if key != "sha256"}
    if content["sha256"] != digest_json(rest):
        raise ValueError("its content has changed since it was written (sha256)")
    return rest


class Parameters(_Part):
    """Counts of weights; `tuned_percent` is tuned / (total - head), in percent."""

    total: Count
    tuned: Count
    head: Count
    trainable: Count
    tuned_percent: Annotated[float, Field(ge=0, le=100)]


class Result(_Part):
    """Scores as fractions.

    `test` has the metrics of a test split with labels at the kept epoch, which chose nothing, and `score_test` is
    its headline; null where there is none. `reasons` says why a metric that is null is not defined. `words` counts
    the words of token tasks by split, those that truncation cut off, and those without a token at any length; both
    count as wrong tags or as O.
    """

    score_name: str
    score_last: Score | None
    score_best: Score | None
    best_epoch: Annotated[int, Field(ge=1)] | None
    collapsed: bool | None
    epochs: list[Epoch]
    examples: dict[str, Count]
    predicted: dict[str, dict[str, Count]]
    reasons: dict[str, str] = {}
    words: dict[str, dict[str, Count]] = {}
    test: dict[str, Score | None] | None = None
    score_test: Score | None = None

    def collapsed_in(self, epoch: int | None) -> bool | None:
        """Whether an epoch (from 1) predicted one class only, or a constant; where it does not say, the kept epoch."""
        told = self.epochs[epoch - 1].collapsed if epoch and epoch <= len(self.epochs) else None
        return self.collapsed if told is None else told

    @property
    def scored(self) -> dict[str, int]:
        """N of each split: its examples, or in token tasks its words."""
        return self.examples | {split: told["words"] for split, told in self.words.items()}


class Cost(_Part):
    """What the run took. Seconds and tokens add up over resumptions; `tokens` are real ones, `padded_tokens` all.

    `peak_rss_mb` is the process's largest memory during the run (what it held before included), `peak_gpu_mb` the
    largest that TensorFlow held on one GPU.

    `replicas`, `threads` and `devices` are those of the end. A run that was resumed elsewhere, so that its last bits
    may differ, has where it computed in `computed_on`, first to last.
    """

    setup_seconds: Seconds
    train_seconds: Seconds
    eval_seconds: Seconds
    steps: Count
    tokens: Count
    padded_tokens: Count
    peak_rss_mb: float
    peak_gpu_mb: float | None = None
    optimizer_bytes: Count
    replicas: Count
    threads: Count
    devices: list[str]
    jit_compile: bool
    resumed: int
    computed_on: list[str] = []


class Proof(_Part):
    """That nothing outside the selection moved: changed weights counted against the base model's file."""

    selected_changed: Count
    frozen_changed: Count
    frozen_sha256_before: str
    frozen_sha256_after: str


class ModelFacts(_Part):
    """The base model: as it was asked for, the hub's commit (null for a local folder and `demo`), and its digest."""

    name: str
    revision: str
    commit: str | None
    sha256: str


class Origin(_Part):
    """What made the record."""

    tfmt: str
    arithmetic: int
    packages: dict[str, str]
    python: str
    git_commit: str | None
    git_dirty: bool | None
    model_sha256: str
    data_sha256: str
    test_sha256: str | None = None
    data_notes: dict[str, Any]
    model_notes: dict[str, Any] = {}
    started: str
    finished: str


class Record(_Sealed):
    """One run that ended; docs/records.md says how to read it.

    `warnings` says where what was asked for was not had, as GPUs, and what was found damaged on the way.
    `tuned_sha256` and `predictions_sha256` are what `write_tensors` returned for these files.

    Example:
      >>> import tfmt
      >>> spec = tfmt.RunSpec.make(model="demo", task="rotten_tomatoes", mode="layernorm", epochs=1, train_limit=1000)
      >>> record = tfmt.fine_tune(spec, "runs")  # doctest: +SKIP
      >>> record.result.score_best, record.proof.frozen_changed  # doctest: +SKIP
    """

    schema_: Literal[1]
    run_id: str
    status: Literal["completed", "diverged", "failed"]
    error: str | None
    spec: RunSpec
    parameters: Parameters | None
    result: Result | None
    cost: Cost | None
    proof: Proof | None
    change: dict[str, dict[str, float]] | None
    fisher: FisherNotes | None = None
    warnings: list[str] = []
    model: ModelFacts | None = None  # records of earlier versions have none
    origin: Origin
    tuned_sha256: str | None = None
    predictions_sha256: str | None = None

    @property
    def model_name(self) -> str:
        """What the base model is called in tables and exports; `spec.model` says where it was found."""
        return public_name(self.spec.model, local=self.model is not None and self.model.commit is None)

    @property
    def kept_epoch(self) -> int | None:
        """The epoch (from 1) whose weights, change and distributions the run kept; None where it ended none."""
        if self.result is None or not self.result.epochs:
            return None
        if self.spec.keep_epoch == "last":
            return len(self.result.epochs)
        return self.result.best_epoch or 1  # the first, where no epoch has a defined score


class WeightDistributions(_Sealed):
    """How the weights of a `full` run were distributed before and after it, at the kept epoch.

    Attributes:
      run_id: the run.
      before: of the base model, {sublayer: {part: distribution}}.
      after: of the tuned one.
    """

    schema_: Literal[1]
    run_id: str
    before: Distributions
    after: Distributions


def find_distributions(runs: str | Path) -> tuple[dict[str, WeightDistributions], list[str]]:
    """The distributions of weights below a folder: {run id: distributions}, and a message for each unreadable file.

    Args:
      runs: the `--output_dir` of the runs, or one run's own folder.
    """
    found, broken = {}, []
    root = Path(runs)
    for path in sorted([*root.glob(DISTRIBUTIONS_FILE), *root.glob(f"*/{DISTRIBUTIONS_FILE}")]):
        try:
            read = WeightDistributions.model_validate_json(path.read_bytes())
            found[read.run_id] = read
        except (OSError, ValidationError):
            broken.append(f"{path}: broken; delete the run's folder and run it again")
    return found, broken


_AGAIN = "delete the file to run this run again"


def read_record(folder: Path) -> Record:
    """The record of a run's folder.

    Raises:
      RequestError: there is none, or it is broken or of another schema; the message names the file.
    """
    path = folder / RECORD_FILE
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RequestError(f"{path}: missing; the run has not ended, or this is no run's folder") from None
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        schema = _schema_of(path)
        if schema != SCHEMA:
            raise RequestError(f"{path}: schema {schema!r}, this tfmt reads schema {SCHEMA}; {_AGAIN}") from None
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        what = first["msg"].removeprefix("Value error, ")
        raise RequestError(f"{path}: broken record: {where}: {what}; {_AGAIN}") from None


def _schema_of(path: Path) -> Any:
    """The schema number that a file claims, or `SCHEMA` when it cannot even be read as JSON."""
    try:
        return parse_json(path.read_bytes()).get("schema")
    except (ValueError, AttributeError):
        return SCHEMA


def find_records(runs: str | Path) -> tuple[list[Record], list[str]]:
    """All records below a folder, in the order of their run ids.

    Args:
      runs: the `--output_dir` of the runs, or one run's own folder.

    Returns:
      The records, and a message for each that cannot be read.

    Raises:
      RequestError: there is no such folder.
    """
    root = Path(runs)
    if not root.is_dir():
        raise RequestError(f"{root}: no such folder of runs")
    folders = [root] if (root / RECORD_FILE).exists() else sorted(path.parent for path in root.glob(f"*/{RECORD_FILE}"))
    records, broken = [], []
    for folder in folders:
        try:
            records.append(read_record(folder))
        except RequestError as error:
            broken.append(str(error))
    return records, broken


def none_found(runs: str | Path, broken: Sequence[str]) -> RequestError:
    """The error for a folder in which `find_records` found no record that can be read."""
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        return RequestError(f"--runs={runs}: holds no record that can be read: {broken[0]}{more}")
    return RequestError(f"--runs={runs}: holds no record; give the --output_dir of tfmt-train or tfmt-sweep")


def read_runs(runs: str | Path) -> pd.DataFrame:
    """The records below a folder as one DataFrame, one row a run; see `tabulate`.

    Args:
      runs: the `--output_dir` of the runs.

    Raises:
      RequestError: there is no such folder.

    Example:
      >>> import tfmt
      >>> runs = tfmt.read_runs("runs")
      >>> int(runs["frozen_changed"].sum())  # weights outside the selections that moved
      0
    """
    return tabulate(*find_records(check_path(runs, "runs")))


_COMPUTING = ("tensorflow", "tf_keras", "transformers")  # what a table's caption tells the versions of


def tabulate(records: Sequence[Record], broken: Sequence[str] = ()) -> pd.DataFrame:
    """Records as one DataFrame, one row a run.

    Args:
      records: from `find_records`.
      broken: messages on records that cannot be read, kept in `attrs["broken"]`.

    Returns:
      A DataFrame: `run_id`, `status`, `error`, every field of the spec, `tuned`, `tuned_percent`, `score_name`,
      `score_best`, `score_last`, `score_test` (fractions), `best_epoch`, `collapsed` (in the best epoch),
      `collapsed_last`, `examples` ({split: N of
      its score}), `seconds`,
      `frozen_changed`, `tfmt` (version), `arithmetic`, `packages` (versions of Python and of what computes),
      `model_name` (what tables call the base model), `model_sha256`, `data_sha256`.
    """
    import pandas as pd

    rows = []
    for record in records:
        row: dict[str, Any] = {"run_id": record.run_id, "status": record.status, "error": record.error}
        row |= record.spec.model_dump()
        if record.parameters:
            row |= {"tuned": record.parameters.tuned, "tuned_percent": record.parameters.tuned_percent}
        if record.result:
            fields = ("score_name", "score_best", "score_last", "score_test", "best_epoch", "collapsed", "examples")
            row |= {name: getattr(record.result, name) for name in fields}
            row["examples"] = record.result.scored
            row["collapsed"] = record.result.collapsed_in(record.result.best_epoch)
            row["collapsed_last"] = record.result.collapsed_in(len(record.result.epochs))
        if record.cost:
            row["seconds"] = record.cost.setup_seconds + record.cost.train_seconds + record.cost.eval_seconds
        if record.proof:
            row["frozen_changed"] = record.proof.frozen_changed
        origin = record.origin
        row |= {"tfmt": origin.tfmt, "arithmetic": origin.arithmetic}
        versions = {"Python": origin.python} | {name: origin.packages.get(name) for name in _COMPUTING}
        row["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        row["model_name"] = record.model_name
        row |= {"model_sha256": origin.model_sha256, "data_sha256": origin.data_sha256}
        rows.append(row)
    columns = ["run_id", "status", "error", *RunSpec.model_fields, "tuned", "tuned_percent", "score_name", "score_best"]
    columns += [
        "score_last",
        "score_test",
        "best_epoch",
        "collapsed",
        "collapsed_last",
        "examples",
        "seconds",
        "frozen_changed",
    ]
    columns += ["tfmt", "arithmetic", "packages", "model_name", "model_sha256", "data_sha256"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["broken"] = list(broken)
    return frame
