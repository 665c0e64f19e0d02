"""`Record`: what a finished run says of itself, one JSON file a run; and reading many of them as one table."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from tfmt.bert.configs import public_name
from tfmt.errors import RequestError
from tfmt.files import UnreadableError, check_path, exists, parse_json
from tfmt.metrics import NO_PREDICTION, headline
from tfmt.runs.pack import PackedRun, read_pack, write_pack
from tfmt.runs.sealed import Part, Sealed, reason_of
from tfmt.selection.stored import FisherNotes, SelectionFacts
from tfmt.spec import RunSpec
from tfmt.tasks import Task, custom_task, find_task
from tfmt.training.distribution import Distributions
from tfmt.training.epoch import Count, Epoch, Score, Seconds
from tfmt.training.predictions import Predictions, read_predictions

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
RECORD_FILE = "record.json"
SPEC_FILE = "spec.json"
DISTRIBUTIONS_FILE = "distributions.json"
# Where runs lie: the `--output_dir` of some, one run's own folder, a packed study, or several of these.
Sources = str | Path | Sequence[str | Path]


class Parameters(Part):
    """Counts of weights; `tuned_percent` is tuned / (total - head), in percent."""

    total: Count
    tuned: Count
    head: Count
    trainable: Count
    tuned_percent: Annotated[float, Field(ge=0, le=100)]


class Result(Part):
    """Scores as fractions.

    `stopped_early` is the epoch after which early stopping ended the run; null where it trained all that were planned.
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
    stopped_early: Annotated[int, Field(ge=1)] | None = None

    def collapsed_in(self, epoch: int | None) -> bool | None:
        """Whether an epoch (from 1) predicted one class only, or a constant; where it does not say, the kept epoch."""
        told = self.epochs[epoch - 1].collapsed if epoch and epoch <= len(self.epochs) else None
        return self.collapsed if told is None else told

    @property
    def scored(self) -> dict[str, int]:
        """N of each split: its examples, or in token tasks its words."""
        return self.examples | {split: told["words"] for split, told in self.words.items()}


class Cost(Part):
    """What the run took. Seconds and tokens add up over resumptions; `tokens` are real ones, `padded_tokens` all.

    `peak_rss_mb` is the process's largest memory during the run (what it held before included), `peak_gpu_mb` the
    largest that TensorFlow held on one GPU.

    `replicas`, `threads` and `devices` are those of the end. A run that was resumed elsewhere, so that its last bits
    may differ, has where it computed in `computed_on`, first to last. `processor` (with its wide instructions) and
    `onednn` (whether TensorFlow was told to use it) decide last bits as well; records of earlier versions have neither.
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
    processor: str | None = None
    onednn: bool | None = None

    @property
    def seconds(self) -> float:
        """All of them: set-up, training and evaluation."""
        return self.setup_seconds + self.train_seconds + self.eval_seconds


class Proof(Part):
    """That nothing outside the selection moved: changed weights counted against the base model's file."""

    selected_changed: Count
    frozen_changed: Count
    frozen_sha256_before: str
    frozen_sha256_after: str


class ModelFacts(Part):
    """The base model: as it was asked for, the hub's commit (null for a local folder and `demo`), and its digest."""

    name: str
    revision: str
    commit: str | None
    sha256: str


class Origin(Part):
    """What made the record, and on which machine; records of earlier versions do not tell that."""

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
    host: str | None = None
    started: str
    finished: str


class Record(Sealed):
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
    selection: SelectionFacts | None = None  # records of earlier versions have none
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

    @property
    def half_scores(self) -> tuple[tuple[float | None, float | None], ...] | None:
        """The score on each half of the (first) development split, epoch by epoch; None where it is not defined.

        None for the run if an epoch was not measured on halves, as in records of earlier versions.
        """
        if self.result is None or not self.result.epochs or not all(epoch.halves for epoch in self.result.epochs):
            return None
        task = self.task
        measured = [
            [headline(task, {split: told[half] for split, told in epoch.halves.items()}) for half in (0, 1)]
            for epoch in self.result.epochs
        ]
        return tuple((first, second) for first, second in measured)

    @property
    def task(self) -> Task:
        """The task; of one's own data its classes are those that the record counts."""
        if self.spec.task != "custom" or not self.spec.task_type:
            return find_task(self.spec.task)
        classes = next(iter(self.result.predicted.values()), {}) if self.result else {}
        named = tuple(name for name in classes if name != NO_PREDICTION)
        return custom_task(self.spec.task_type, self.spec.text_columns, named)


class WeightDistributions(Sealed):
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


_AGAIN = "delete the file to run this run again"


def read_record(folder: Path) -> Record:
    """The record of a run's folder.

    Raises:
      RequestError: there is none, or it is broken or of another schema; the message names the file.
      UnreadableError: it is there and cannot be read now.
    """
    path = folder / RECORD_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"{path}: missing; the run has not ended, or this is no run's folder") from None
    except OSError as error:
        raise UnreadableError.of(path, error) from None
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise _tell_broken(path, content, error, _AGAIN) from None


def _tell_broken(place: Path | str, content: bytes | str, error: ValidationError, remedy: str) -> RequestError:
    """What is wrong with a record that cannot be read."""
    schema = _schema_of(content)
    if schema != SCHEMA:
        return RequestError(f"{place}: schema {schema!r}, this tfmt reads schema {SCHEMA}; {remedy}")
    return RequestError(f"{place}: broken record: {reason_of(error)}; {remedy}")


def _schema_of(content: bytes | str) -> Any:
    """The schema number that a record claims, or `SCHEMA` when it cannot even be read as JSON."""
    try:
        return parse_json(content if isinstance(content, bytes) else content.encode()).get("schema")
    except (ValueError, AttributeError):
        return SCHEMA


_MOST_LISTED = 12


# ---- many runs ------------------------------------------------------------------------------------------------------


def list_sources(runs: Sources) -> list[Path]:
    """The folders and packed studies that hold runs.

    Raises:
      RequestError: one of them is no path, or is not there.
    """
    given: Sequence[Any] = [runs] if isinstance(runs, str | Path) or not isinstance(runs, Sequence) else runs
    sources = [check_path(source, "runs") for source in given]
    if not sources:
        raise RequestError("runs is empty: give a folder of runs, or a packed study")
    for source in sources:
        if not exists(source):
            raise RequestError(f"{source}: no such folder of runs, and no packed study")
    return sources


def name_sources(runs: Sources) -> str:
    """The sources as `--runs` takes them."""
    return str(runs) if isinstance(runs, str | Path) else ",".join(map(str, runs))


def _find_files(folder: Path, name: str) -> list[Path]:
    """The files of a name in a folder of runs, or in one run's own folder."""
    return [folder / name] if (folder / name).exists() else sorted(folder.glob(f"*/{name}"))


def find_records(runs: Sources) -> tuple[list[Record], list[str]]:
    """All records of folders and packed studies, in the order of their run ids.

    Args:
      runs: the `--output_dir` of the runs, one run's own folder, a packed study, or several of these.

    Returns:
      The records, and a message for each in a folder that cannot be read.

    Raises:
      RequestError: there is no such folder or file, a pack is damaged, or a run is there twice and not the same.
    """
    found: list[Record] = []
    elsewhere: dict[str, tuple[Record, str]] = {}
    broken: list[str] = []
    for source in list_sources(runs):
        here: dict[str, tuple[Record, str]] = {}
        for read, place in _read_records(source):
            try:
                record = read()
            except (RequestError, UnreadableError) as error:
                if not source.is_dir():
                    raise
                broken.append(str(error))
                continue
            here[record.run_id] = record, place
            if record.run_id not in elsewhere:
                found.append(record)
                continue
            known, where = elsewhere[record.run_id]
            if known != record:
                raise RequestError(
                    f"{record.run_id} is in {where} and in {place}, and the two differ: they are two executions of one "
                    "run; leave one of them out"
                )
        elsewhere = here | elsewhere
    return sorted(found, key=lambda record: record.run_id), broken


def _read_records(source: Path) -> Iterator[tuple[Callable[[], Record], str]]:
    """What reads each record of a source, and where it lies."""
    if source.is_dir():
        for path in _find_files(source, RECORD_FILE):
            yield functools.partial(read_record, path.parent), str(path.parent)
    else:
        for run in read_pack(source):
            yield functools.partial(_read_packed, run), run.place


def _read_packed(run: PackedRun) -> Record:
    content = json.dumps(run.record)
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise _tell_broken(run.place, content, error, "pack the runs again with a tfmt that reads them") from None


def find_run(runs: Sources, name: str, flag: str) -> tuple[Record, Sources]:
    """One run, by its folder, its id, or a part of its id that no other has.

    Args:
      runs: as for `find_records`.
      name: how it was asked for.
      flag: by which flag.

    Returns:
      Its record, and where it lies, for `find_predictions`.

    Raises:
      RequestError: there is none, or several; the message lists them.
    """
    if (Path(name) / RECORD_FILE).is_file():
        return read_record(Path(name)), name
    records, broken = find_records(runs)
    if not records:
        raise none_found(runs, broken)
    found = [record for record in records if record.run_id == name]
    found = found or [record for record in records if name in record.run_id]
    if len({record.run_id for record in found}) == 1:
        return found[0], runs
    ids = [record.run_id for record in found or records]
    more = f" and {len(ids) - _MOST_LISTED} more" if len(ids) > _MOST_LISTED else ""
    which = "several runs have it in their ids" if found else "no run has it in its id; there is"
    raise RequestError(f"{flag}={name}: {which}: {', '.join(ids[:_MOST_LISTED])}{more}".replace("is:", "is"))


def find_distributions(
    runs: Sources, wanted: Collection[str] | None = None
) -> tuple[dict[str, WeightDistributions], list[str]]:
    """The distributions of weights: {run id: distributions}, and a message for each file that cannot be read.

    Args:
      runs: as for `find_records`.
      wanted: ids of the runs that are asked for; None for all.
    """
    found, broken = {}, []
    for source in list_sources(runs):
        if source.is_dir():
            for path in _find_files(source, DISTRIBUTIONS_FILE):
                if wanted is not None and path.parent.name not in wanted:
                    continue
                try:
                    read = WeightDistributions.model_validate_json(path.read_bytes())
                    found[read.run_id] = read
                except OSError as error:
                    broken.append(str(UnreadableError.of(path, error)))
                except ValidationError:
                    broken.append(f"{path}: broken; delete the run's folder and run it again")
        else:
            for run in read_pack(source):
                if run.distributions is not None:
                    try:
                        read = WeightDistributions.model_validate_json(json.dumps(run.distributions))
                    except ValidationError:
                        raise RequestError(f"{run.place}: broken distributions; pack the runs again") from None
                    found[read.run_id] = read
    return found, broken


def find_predictions(runs: Sources, records: Iterable[Record]) -> tuple[dict[str, Predictions], list[str]]:
    """What runs predicted: {run id: predictions}, and a message for each file that is missing or cannot be read.

    Args:
      runs: as for `find_records`.
      records: of the runs that are asked for; those that kept no predictions have none.

    Example:
      >>> from tfmt.runs.records import find_predictions, find_records
      >>> records, _ = find_records("runs")
      >>> predictions, _ = find_predictions("runs", records)
      >>> predictions[records[0].run_id].by_epoch["validation"][1].shape
      (20,)
    """
    found: dict[str, Predictions] = {}
    broken: list[str] = []
    for run_id, told in stream_predictions(runs, records):
        if isinstance(told, str):
            broken.append(told)
        else:
            found[run_id] = told
    return found, broken


def stream_predictions(runs: Sources, records: Iterable[Record]) -> Iterator[tuple[str, Predictions | str]]:
    """What runs predicted, run by run: its id, and its predictions or the message on a file that cannot be read.

    Args:
      runs: as for `find_records`.
      records: of the runs that are asked for; those that kept no predictions are passed over.
    """
    wanted = {record.run_id: record.predictions_sha256 for record in records if record.predictions_sha256}
    named = set(wanted)
    for source in list_sources(runs):  # of packs also where nothing is wanted: a damaged one is refused
        if source.is_dir():
            folders = [path.parent for path in _find_files(source, RECORD_FILE)]
            for folder in [folder for folder in folders if folder.name in wanted]:
                told = _read_or_tell(folder, wanted[folder.name])
                yield folder.name, told
                if not isinstance(told, str):
                    del wanted[folder.name]
            for folder in [folder for folder in folders if folder.name not in named] if wanted else ():
                with contextlib.suppress(RequestError, UnreadableError):  # `find_records` tells of it
                    run_id = read_record(folder).run_id  # the folder has been given another name
                    if run_id in wanted:
                        told = _read_or_tell(folder, wanted[run_id])
                        yield run_id, told
                        if not isinstance(told, str):
                            del wanted[run_id]
        else:
            for run in read_pack(source):
                if run.predictions and wanted.pop(run.predictions.run_id, None):
                    yield run.predictions.run_id, run.predictions


def _read_or_tell(folder: Path, sha256: str | None) -> Predictions | str:
    try:
        return read_predictions(folder, sha256=sha256)
    except (RequestError, UnreadableError) as error:
        return str(error)


def none_found(runs: Sources, broken: Sequence[str]) -> RequestError:
    """The error for a folder in which `find_records` found no record that can be read."""
    given = name_sources(runs)
    if broken:
        return RequestError(f"--runs={given}: holds no record that can be read: {_first(broken)}")
    return RequestError(f"--runs={given}: holds no record; give the --output_dir of tfmt-train or tfmt-sweep")


def _first(messages: Sequence[str]) -> str:
    more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
    return messages[0] + more


def pack_runs(runs: Sources, records: Sequence[Record], path: Path, paused: Mapping[str, str] | None = None) -> None:
    """Writes runs as one file, which everything reads that reads folders of runs; see `tfmt.runs.pack`.

    Args:
      runs: where they lie.
      records: of the runs to pack.
      path: the file.
      paused: what paused.json holds of the runs to pack that a search stopped, by run id.

    Raises:
      RequestError: what one of them predicted, or its distributions, are missing or broken.
      UnwritableError: the disk is full, or the file cannot be written.
    """
    distributions, broken = find_distributions(runs, {record.run_id for record in records})
    predictions, more = find_predictions(runs, records)
    if broken or more:
        raise RequestError(f"--pack={path}: not all can be read, so nothing is packed: {_first([*more, *broken])}")
    write_pack(
        path,
        {record.run_id: record.to_json() for record in records},
        predictions,
        {run_id: told.to_json() for run_id, told in distributions.items()},
        paused or {},
    )


def read_runs(runs: Sources, *, predictions: bool = False) -> pd.DataFrame:
    """The records of runs as one DataFrame, one row a run; see `tabulate`.

    Args:
      runs: the `--output_dir` of the runs, a packed study (`tfmt-report --pack`), or a list of several of these.
      predictions: whether `attrs["predictions"]` is to hold what each run predicted, {run id: `Predictions`}: for each
        split and epoch the class or score of every example, and the labels. Runs of earlier versions kept none.

    Raises:
      RequestError: there is no such folder or file, a pack is damaged, or a run is there twice and not the same.

    Example:
      >>> import tfmt
      >>> runs = tfmt.read_runs("runs")
      >>> int(runs["frozen_changed"].sum())  # weights outside the selections that moved
      0
    """
    records, broken = find_records(runs)
    found, unread = find_predictions(runs, records) if predictions else ({}, [])
    frame = tabulate(records, [*broken, *unread])
    if predictions:
        frame.attrs["predictions"] = found
    return frame


_COMPUTING = ("tensorflow", "tf_keras", "transformers")  # what a table's caption tells the versions of


def tabulate(records: Sequence[Record], broken: Sequence[str] = ()) -> pd.DataFrame:
    """Records as one DataFrame, one row a run.

    Args:
      records: from `find_records`.
      broken: messages on records that cannot be read, kept in `attrs["broken"]`.

    Returns:
      A DataFrame: `run_id`, `status`, `error`, every field of the spec, `tuned`, `tuned_percent`, `score_name`,
      `score_best`, `score_last`, `score_test` (fractions), `best_epoch`, `stopped_early` (the epoch after which early
      stopping ended it), `collapsed` (in the best epoch), `collapsed_last`, `half_scores` (of each epoch, see
      `Record.half_scores`), `collapsed_epochs` (in each),
      `examples` ({split: N of its score}), `seconds`,
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
            fields = (
                "score_name",
                "score_best",
                "score_last",
                "score_test",
                "best_epoch",
                "collapsed",
                "stopped_early",
            )
            row |= {name: getattr(record.result, name) for name in fields}
            row["examples"] = record.result.scored
            row["collapsed"] = record.result.collapsed_in(record.result.best_epoch)
            row["collapsed_last"] = record.result.collapsed_in(len(record.result.epochs))
            row["half_scores"] = record.half_scores
            row["collapsed_epochs"] = tuple(epoch.collapsed for epoch in record.result.epochs)
        if record.cost:
            row["seconds"] = record.cost.seconds
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
    columns += ["score_last", "score_test", "best_epoch", "stopped_early", "collapsed", "collapsed_last", "half_scores"]
    columns += ["collapsed_epochs", "examples", "seconds", "frozen_changed", "tfmt", "arithmetic", "packages"]
    columns += ["model_name", "model_sha256", "data_sha256"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["broken"] = list(broken)
    return frame
