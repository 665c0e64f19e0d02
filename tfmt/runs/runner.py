"""From a spec to a run's folder: find the data and the model, train, and write what remains of the run."""

from __future__ import annotations

import errno
import functools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmt import liveness, signals, streams
from tfmt.bert.base_weights import BaseWeights, describe_model, tell_difference
from tfmt.bert.checkpoint import find_weights
from tfmt.bert.configs import FoundModel, locate_model, read_config, shape_of
from tfmt.bert.tokenizer import describe_tokenizer
from tfmt.bert.vocabulary import list_weights
from tfmt.data.sources import Dataset, read_dataset_for
from tfmt.errors import RequestError, RequestWarning, RunError, SurroundingsError
from tfmt.files import UnreadableError, UnwritableError, disk_error, write_whole
from tfmt.runs import origin
from tfmt.runs.folder import clear_ended, clear_leftovers, finished, note_spec, open_folder
from tfmt.runs.full_runs import check_full, read_full, read_tuned
from tfmt.runs.lease import Lease, TakenError, time_to_look
from tfmt.runs.paused import PAUSED_FILE, Paused
from tfmt.runs.records import (
    DISTRIBUTIONS_FILE,
    RECORD_FILE,
    SCHEMA,
    Cost,
    ModelFacts,
    Origin,
    Parameters,
    Proof,
    Record,
    Result,
    WeightDistributions,
)
from tfmt.runs.score_cache import read_or_measure
from tfmt.selection.modes import list_full_runs, plan_digests, plan_spec
from tfmt.selection.plans import Plan
from tfmt.selection.stored import TUNED_FILE, SelectionFacts
from tfmt.spec import ARITHMETIC, RunSpec
from tfmt.tasks import Task
from tfmt.training.distribution import measure_sublayers
from tfmt.training.predictions import Predictions, SplitTruth
from tfmt.training.progress import Standing
from tfmt.version import __version__
from tfmt.words import counted

if TYPE_CHECKING:
    from tfmt.training.fine_tune import Outcome
    from tfmt.training.workbench import Workbench


SCORES_FOLDER = "scores"  # beside the runs' folders
_SLICE_SECONDS = 1.0  # in which a process that waits looks for signals and gives a sign of life


class UnexpectedError(SurroundingsError):
    """What no code of tfmt expects ended a run, and perhaps broke TensorFlow: compute nothing more in this process.

    Once says nothing of the run: memory and devices are shared with others. A sweep tries it again alone.

    Attributes:
      cause: the name of the error's type.
      told: the error in one line.
    """

    def __init__(self, request: Request, error: Exception) -> None:
        self.cause = type(error).__name__
        first = (str(error).splitlines() or [""])[0]
        self.told = f"{self.cause}: {first}" if first else self.cause
        super().__init__(
            f"{request.run_id}: {self.told}; nothing is recorded in {request.folder}, "
            "and the same command tries it again"
        )


@dataclass(frozen=True)
class Request:
    """A run that is known to make sense: its data can be read, its model is a BERT, its folder has a name.

    Attributes:
      spec: what to do.
      task: the task, its classes known.
      dataset: the text.
      model: where the base model lies, and which it is.
      digests: of the model and the data.
      folder: where the run's files go.
      model_parts: of what the model's digest is; see `describe_model`.
      plan: what the run selects.
      full_runs: the full fine-tunings that its `change` scores need, by their rate, epochs and checkpoint.
      model_notes: what the record says about the model: `embedding_rows` and `vocabulary` where rows have no word,
        `stored_blocks` where its file holds more blocks than it has.
    """

    spec: RunSpec
    task: Task
    dataset: Dataset
    model: FoundModel
    digests: dict[str, str]
    folder: Path
    model_parts: dict[str, Any]
    plan: Plan
    full_runs: dict[tuple[Any, ...], Request] = field(default_factory=dict)
    model_notes: dict[str, Any] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def model_folder(self) -> Path:
        """Where the base model's files lie."""
        return self.model.folder

    @property
    def bench_key(self) -> tuple[Any, ...]:
        """Equal for runs that can share a workbench: the same settings, weights and text."""
        return (*bench_key(self.spec), self.digests["model"], *self.dataset.digests.values())

    @property
    def sources(self) -> Sources:
        """What other runs of the same model and data are handed, so that they look for nothing again."""
        return Sources(self.model, self.model_parts, self.dataset.digests)


@dataclass(frozen=True)
class Sources:
    """What a sweep found once for its runs of one model and task.

    Attributes:
      model: where the base model lies, and which it is.
      model_parts: of what its digest is.
      data: the digests of the text.
      places: what else the machine that executes the runs keeps elsewhere than their settings say; see `relocated`.
    """

    model: FoundModel
    model_parts: dict[str, Any]
    data: dict[str, str]
    places: dict[str, str] = field(default_factory=dict)

    def at(self, places: dict[str, str]) -> Sources:
        """The same as a machine finds it that keeps these files elsewhere, the model's folder among them."""
        folder = str(self.model.folder)
        return replace(self, model=replace(self.model, folder=Path(places.get(folder, folder))), places=places)

    def to_json(self) -> str:
        """For another process."""
        model = asdict(self.model) | {"folder": str(self.model.folder)}
        return json.dumps(asdict(self) | {"model": model})

    @classmethod
    def from_json(cls, text: str) -> Sources:
        """What `to_json` wrote."""
        told = json.loads(text)
        model = FoundModel(**told["model"] | {"folder": Path(told["model"]["folder"])})
        return cls(model, told["model_parts"], told["data"], told["places"])


def prepare(
    spec: RunSpec, output_dir: str | Path, like: Request | None = None, sources: Sources | None = None
) -> Request:
    """Finds everything that a run needs, and stops at what is wrong before anything is written.

    A model of the hub and the text of TensorFlow Datasets are downloaded where they are not on this machine yet.

    Args:
      spec: what to do.
      output_dir: the folder of the runs' folders.
      like: an earlier request, whose model and text are taken over where this one names the same.
      sources: model and data as they were found before; they are not looked for again, and must be what they were.

    Raises:
      RequestError: the model or the data cannot be had or do not fit the spec, or are no longer those of `sources`.
      RunError: network, hub or disk failed.
    """
    model, model_sha256, model_parts = _find_model(spec, like, sources)
    model_folder = model.folder
    shape = shape_of(read_config(model_folder), model_folder / "config.json")
    shared = like is not None and bench_key(like.spec) == bench_key(spec)
    dataset = like.dataset if like is not None and shared else read_dataset_for(spec)
    if sources is not None and dataset.digests != sources.data:
        raise RequestError(
            f"--data_dir={spec.data_dir}: the data of {spec.task} is no longer what it was when the sweep began; leave "
            "it as it is while a sweep runs, and run the same command again"
        )
    task = dataset.task
    base = BaseWeights(model_folder, task.head)  # a file that lacks a weight is the request's fault
    base.check_values()
    if spec.max_length > shape.max_position_embeddings:
        raise RequestError(
            f"--max_length={spec.max_length}: {spec.model} has {shape.max_position_embeddings} positions"
        )
    tokenizer = describe_tokenizer(model_folder)
    if len(task.text_fields) > 1 and tokenizer.pair_types > shape.type_vocab_size:
        raise RequestError(
            f"--model={spec.model}: type_vocab_size is {shape.type_vocab_size}, and {spec.task} has pairs "
            f"({', '.join(task.text_fields)}), whose second text needs a token type of its own; take another model"
        )
    weights = list_weights(shape, task.head, task.num_labels)
    digests = {"model": model_sha256, **dataset.digests}
    plan = plan_spec(spec, weights, shape.num_attention_heads, digests["model"])
    if spec.mode == "custom" and spec.frozen_prefix == "cached" and not plan.lowest_block:
        raise RequestError(
            f"--frozen_prefix=cached means nothing for --select={spec.select}: no whole block lies below what trains; "
            "leave it out"
        )
    examples = count_used(len(dataset.splits["train"]), spec.train_limit)
    if examples < spec.batch_size:
        raise RequestError(
            f"--batch_size={spec.batch_size} is more than the {counted(examples, 'training example')}; "
            "make one step possible"
        )
    digests |= plan_digests(spec, plan)
    notes: dict[str, Any] = {}
    if tokenizer.words < shape.vocab_size:
        notes |= {"embedding_rows": shape.vocab_size, "vocabulary": tokenizer.words}
    if base.stored_blocks > shape.num_hidden_layers:
        notes["stored_blocks"] = base.stored_blocks
        warnings.warn(
            f"--model={spec.model}: its file holds {base.stored_blocks} blocks, and config.json asks for the lowest "
            f"{shape.num_hidden_layers} alone (num_hidden_layers)",
            RequestWarning,
            stacklevel=2,
        )
    folder = Path(output_dir) / spec.run_id(**digests)
    request = Request(spec, task, dataset, model, digests, folder, model_parts, plan, model_notes=notes)
    full = {key: prepare(own, output_dir, request) for key, own in list_full_runs(spec, plan).items()}
    for own in full.values():
        check_full(own)
    return replace(request, full_runs=full)


def _find_model(spec: RunSpec, like: Request | None, sources: Sources | None) -> tuple[FoundModel, str, dict[str, Any]]:
    """The base model, its digest and the digest's parts."""
    if sources is not None:
        sha256, parts = describe_model(sources.model.folder)
        if parts != sources.model_parts:
            place = _changed_place(sources.model.folder, sources.model_parts, parts)
            raise RequestError(
                f"{place}: no longer the model that the sweep began with; it differs in "
                f"{tell_difference(sources.model_parts, parts)}; leave a model as it is while a sweep runs, and run "
                "the same command again"
            )
        return sources.model, sha256, parts
    if like is not None and (like.spec.model, like.spec.revision) == (spec.model, spec.revision):
        return like.model, like.digests["model"], like.model_parts
    model = locate_model(spec.model, spec.revision)
    assert model is not None
    return model, *describe_model(model.folder)


# What runs on one workbench may differ in; every other field decides the model, the text or the devices.
_PER_RUN = frozenset({
    "mode", "layers", "mask_size", "mask_fraction", "outlier_pool", "select", "budget", "fisher_examples",
    "fisher_from", "learning_rate", "epochs", "warmup_ratio", "schedule", "optimizer", "adam_epsilon", "weight_decay",
    "clip_norm", "early_stopping", "seed", "keep", "keep_epoch", "frozen_prefix",
})  # fmt: skip


def bench_key(spec: RunSpec) -> tuple[Any, ...]:
    """Equal for runs that can share a workbench, as far as their settings tell; see `Request.bench_key`."""
    return tuple(getattr(spec, name) for name in RunSpec.model_fields if name not in _PER_RUN)


def count_used(examples: int, limit: int) -> int:
    """Examples of a split that a limit leaves; 0 is no limit."""
    return min(examples, limit) if limit else examples


def make_bench(request: Request, *, threads: int = 0) -> Workbench:
    """A workbench for a run and all that share its model, task and precision.

    Raises:
      RequestError: the text or the model does not fit.
      UnwritableError: the disk is full, or a file cannot be written.
      UnexpectedError: there is not enough memory, or TensorFlow met something that tfmt does not expect.
    """
    try:
        with _surroundings_told(request):
            return _make_bench(request, threads)
    except (RequestError, RunError, RequestWarning):
        raise
    except Exception as error:  # a GPU that others fill has many names
        raise _tell_unexpected(request, error) from error


def _make_bench(request: Request, threads: int) -> Workbench:
    from tfmt.bert.tokenizer import keeps_case, load_tokenizer, tokenizer_digest
    from tfmt.data.tokens import tokenize
    from tfmt.training.devices import find_missing_gpus, make_devices
    from tfmt.training.workbench import Workbench

    spec = request.spec
    tokenizer = load_tokenizer(request.model_folder)
    if request.task.cased and not keeps_case(tokenizer):
        warnings.warn(
            f"{spec.model} lower-cases its text and {spec.task} is a task where case tells much; "
            "the papers take a cased model, such as bert-base-cased",
            RequestWarning,
            stacklevel=2,
        )
    digest = tokenizer_digest(tokenizer)
    limited = request.dataset.limit(spec.train_limit, spec.validation_limit)
    used = limited.splits | ({} if limited.test is None else {"test": limited.test})
    splits = {name: tokenize(examples, tokenizer, spec.max_length, digest, name) for name, examples in used.items()}
    truths = {
        name: SplitTruth(examples.labels, examples.halves, splits[name].sentence_lengths)
        for name, examples in used.items()
        if examples.labels is not None and name != "train"
    }
    devices = make_devices(spec.replicas, spec.precision, threads=threads)
    if missing := find_missing_gpus():
        warnings.warn(missing, RequestWarning, stacklevel=2)
    return Workbench(spec, request.task, splits, truths, devices, request.model_folder)


# Not enough of something that other processes have, be it the machine's memory or a GPU's.
_SHORTAGES = ("MemoryError", "ResourceExhaustedError")


@contextmanager
def _surroundings_told(request: Request) -> Iterator[None]:
    """Turns what the disk or the memory raises into one line."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, request.folder) or UnexpectedError(request, error) from error
    except Exception as error:
        if type(error).__name__ in _SHORTAGES:
            raise _tell_unexpected(request, error) from error
        raise


def _tell_unexpected(request: Request, error: Exception) -> SurroundingsError:
    """One line on what is no error of tfmt's; TensorFlow hides a full disk in its text."""
    if "No space left on device" in str(error):
        return UnwritableError.of(request.folder, OSError(errno.ENOSPC, str(error)))
    return UnexpectedError(request, error)


def execute(request: Request, bench: Workbench, *, started: float, quiet: bool = False,
            before_write: Callable[[], None] = lambda: None,
            tell: Callable[[Standing], None] | None = None) -> Record:  # fmt: skip
    """Trains a run to its end and writes its record.

    Args:
      request: from `prepare`.
      bench: from `make_bench`, of this run or of one that shares its shapes.
      started: `time.perf_counter()` at which its set-up began.
      quiet: show no progress.
      before_write: called before each write into the folder; raises when the folder is no longer this process's.
      tell: is told now and then where the run stands.

    Returns:
      The record, completed or diverged; if another process ended the run just before, its record.

    Raises:
      UnkeptError: weights are asked for, and the run ended meanwhile and kept none.
      TakenError: another process is at this run.
      UnwritableError, UnreadableError: the disk is full, or something cannot be written or read now.
      UnexpectedError: something that tfmt does not raise itself ended the run. As of the two above, nothing is
        recorded.
      RunError: the run failed; where it is the run's own fault a record says so.
      Stop: a signal asked for it; what is kept is said, and the next call goes on.
    """
    record = execute_until(
        request, bench, request.spec.epochs, started=started, quiet=quiet, before_write=before_write, tell=tell
    )
    assert isinstance(record, Record)
    return record


def execute_until(request: Request, bench: Workbench, epoch: int, *, started: float, quiet: bool = False,
                  before_write: Callable[[], None] = lambda: None,
                  tell: Callable[[Standing], None] | None = None) -> Record | Paused:  # fmt: skip
    """Trains a run until an epoch has ended, and lets it wait there: the next call goes on, as after an interruption.

    Args:
      epoch: how many epochs of the run; from its last one on this is `execute`.

    Returns:
      What `paused.json` says beside the run's checkpoint; or the record of a run that ended before, whoever ended it.

    Raises:
      As `execute`.
    """
    with _surroundings_told(request):
        before = time.perf_counter()
        _make_full_runs(request, bench, quiet=quiet)
        started += time.perf_counter() - before  # their own records tell what they took
        return _hold_and_execute(request, bench, epoch, started, quiet, before_write, tell)


def _make_full_runs(request: Request, bench: Workbench, *, quiet: bool) -> None:
    """Makes the full fine-tunings that a run compares with, or waits for another process that makes one.

    Raises:
      RunError: one has diverged or failed; the run is recorded as failed.
    """
    if finished(request) is not None:
        return
    for full in request.full_runs.values():
        record, told = read_full(full), quiet
        while record is None:
            if not told:
                print(f"first the full fine-tuning that it compares with: {full.folder}", file=sys.stderr, flush=True)
            told = True
            try:
                record = execute(full, bench, started=time.perf_counter(), quiet=quiet)
            except TakenError:  # another process makes it
                _wait_to_look()
                record = read_full(full)
        if record.status != "completed":
            remedy = "take another rate=" if record.status == "diverged" else f"delete {full.folder} to try it again"
            message = f"the full fine-tuning that it compares with {record.status} ({full.run_id}); {remedy}"
            record_failure(request, message)
            raise RunError(f"{request.run_id}: {message}")


def _wait_to_look() -> None:
    """Waits until it is time for another look at what another process makes."""
    end = time_to_look()
    while (left := end - time.monotonic()) > 0:
        signals.check()
        liveness.sign()
        time.sleep(min(left, _SLICE_SECONDS))


def _hold_and_execute(request: Request, bench: Workbench, epoch: int, started: float, quiet: bool,
                      before_write: Callable[[], None],
                      tell: Callable[[Standing], None] | None) -> Record | Paused:  # fmt: skip
    open_folder(request)
    with streams.tolerated(), Lease(request.folder) as lease:
        note_spec(request)
        clear_leftovers(request.folder)

        def check() -> None:
            liveness.sign()
            lease.check()
            before_write()

        with signals.held():
            ended: Record | Paused | None = finished(request)
            if ended is None:
                ended = _execute(request, bench, epoch, started, quiet, check, tell)
            else:  # by a process that may have been killed just behind its record
                clear_ended(request.folder)
    signals.check(f"the run has ended, and its {'record' if isinstance(ended, Record) else PAUSED_FILE} is written")
    return ended


def _execute(request: Request, bench: Workbench, epoch: int, started: float, quiet: bool,
             before_write: Callable[[], None], tell: Callable[[Standing], None] | None) -> Record | Paused:  # fmt: skip
    from tfmt.training.fine_tune import FineTuning

    begun = origin.now()
    run = FineTuning(bench, request.spec, request.folder, quiet=quiet, before_write=before_write,
                     plan=request.plan, tuned={key: read_tuned(full) for key, full in request.full_runs.items()},
                     shared=functools.partial(_share, request, quiet), model_sha256=request.digests["model"], tell=tell,
                     until_epoch=epoch)  # fmt: skip
    try:
        outcome = run.run()
        _check_model(request)
        if outcome.status == "paused":
            return _pause(request, bench, outcome, epoch, before_write)
        record = _record(request, outcome, bench, outcome.status, outcome.error, begun, run.ready - started)
        if request.spec.keep == "tuned" and record.status == "completed":
            digest = _store_tuned(request, bench, run.kept_values(), before_write)
            record = record.model_copy(update={"tuned_sha256": digest})
        before_write()
        digest = Predictions(request.run_id, bench.truths, run.predicted).write(request.folder)
        record = record.model_copy(update={"predictions_sha256": digest})
        if outcome.state.kept_distributions is not None:
            _store_distributions(request, bench, outcome.state.kept_distributions, before_write)
    except RequestError:
        _check_model(request)  # else it would be the run's fault that a file of the base model went bad
        raise
    except (RunError, OSError):
        raise
    except FloatingPointError as error:  # the run's own; it leaves TensorFlow as it was
        message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        _finish(request, _record(request, None, bench, "failed", message, begun, 0.0), before_write)
        raise RunError(f"{request.run_id}: {message}") from error
    except Exception as error:  # whatever TensorFlow may raise: out of memory, a device that is gone
        raise _tell_unexpected(request, error) from error
    _finish(request, record, before_write)
    if record.status == "failed":
        raise RunError(f"{request.run_id}: {record.error}")
    return record


def _share(
    request: Request, quiet: bool, key: Mapping[str, Any], measure: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What scores are made of, measured once for all runs below one folder that share it."""
    about = {**key, "digests": {name: request.digests[name] for name in ("model", "data")}, "arithmetic": ARITHMETIC}
    return read_or_measure(request.folder.parent / SCORES_FOLDER, about, measure, quiet=quiet)


def _check_model(request: Request) -> None:
    """Whether the base model is still the one that the run was asked for: its proof reads the file anew.

    Raises:
      UnreadableError: it changed meanwhile.
    """
    try:
        sha256, parts = describe_model(request.model_folder)
        place = _changed_place(request.model_folder, request.model_parts, parts)
        told = tell_difference(request.model_parts, parts)
    except RequestError as error:
        sha256, place, told = "", request.model_folder, str(error)
    if sha256 != request.digests["model"]:
        raise UnreadableError(
            f"{place}: changed while the run read it ({told}), so nothing is recorded; put it back and run the same "
            "command again"
        )


def _changed_place(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> Path:
    """Which file to name where a model is no longer what it was: that of its weights, or its folder."""
    return find_weights(folder) if before["weights"] != now["weights"] else folder


def record_failure(request: Request, message: str, host: str = "") -> None:
    """Records a run that could not be executed to its end, for a reason that its own process could not record.

    Args:
      request: the run.
      message: why.
      host: on which machine, where that is another one.

    Raises:
      TakenError: another process is at this run.
      RunError: the record cannot be written.
    """
    open_folder(request)
    with Lease(request.folder) as lease:
        note_spec(request)
        if finished(request) is None:
            now = origin.now()
            record = Record(schema_=SCHEMA, run_id=request.run_id, status="failed", error=message, spec=request.spec,
                            parameters=None, result=None, cost=None, proof=None, change=None,
                            model=_model_facts(request), origin=_origin(request, now, host))  # fmt: skip
            _finish(request, record, lease.check)


def _store_tuned(request: Request, bench: Workbench, values: dict[str, Any], before_write: Callable[[], None]) -> str:
    """Writes what the run tuned; the digest of its content."""
    from tfmt.bert.torch_names import to_torch_names
    from tfmt.tensors import write_tensors

    assert bench.selection is not None
    tensors = to_torch_names(bench.selection.weights, values, bench.selection.masks)
    before_write()
    about = {"run_id": request.run_id, "model_sha256": request.digests["model"], "head": request.task.head,
             "classes": list(request.task.classes)}  # fmt: skip
    return write_tensors(request.folder / TUNED_FILE, tensors, about)


def _store_distributions(request: Request, bench: Workbench, after: Any, before_write: Callable[[], None]) -> None:
    """What the figures of weights need: a few 10 kB that stand for all of the model's weights."""
    assert bench.selection is not None
    before = measure_sublayers(bench.selection.weights, bench.base_value)
    stored = WeightDistributions(schema_=1, run_id=request.run_id, before=before, after=after)
    before_write()
    write_whole(request.folder / DISTRIBUTIONS_FILE, stored.to_json().encode())


def _finish(request: Request, record: Record, before_write: Callable[[], None]) -> None:
    before_write()
    if record.tuned_sha256 is None:  # an earlier start may have come as far as that and kept more
        (request.folder / TUNED_FILE).unlink(missing_ok=True)
    write_whole(request.folder / RECORD_FILE, record.to_json().encode())
    if record.status != "failed":
        with suppress(OSError):  # what stays goes with the next start
            clear_ended(request.folder)


def _pause(
    request: Request, bench: Workbench, outcome: Outcome, epoch: int, before_write: Callable[[], None]
) -> Paused:
    """Notes how far a run has come whose checkpoint is written."""
    paused = Paused(
        schema_=1, run_id=request.run_id, spec=request.spec, rung=epoch, score_name=request.task.headline_name,
        epochs=outcome.state.epochs, examples={name: len(split) for name, split in bench.splits.items()},
        model=_model_facts(request), arithmetic=ARITHMETIC, data_sha256=request.digests["data"],
    )  # fmt: skip
    before_write()
    write_whole(request.folder / PAUSED_FILE, paused.to_json().encode())
    # Of a run that failed and is tried again: it has not ended, as it will tell where it ends another time.
    (request.folder / RECORD_FILE).unlink(missing_ok=True)
    return paused


def _record(request: Request, outcome: Outcome | None, bench: Workbench, status: str, error: str | None,
            started: str, setup_seconds: float) -> Record:  # fmt: skip
    from tfmt.metrics import headline
    from tfmt.training.devices import find_missing_gpus, threads_in_use

    selection, spec = bench.selection, request.spec
    told = [missing] if (missing := find_missing_gpus()) else []
    told += list(selection.warnings if selection is not None else ())
    told += _tell_damaged(request, outcome.state.notes if outcome else [])
    parameters = result = cost = proof = change = fisher = None
    if selection is not None:
        parameters = Parameters(
            total=selection.total, tuned=selection.tuned, head=selection.head,
            trainable=selection.tuned + selection.head, tuned_percent=selection.percent,
        )  # fmt: skip
    if outcome is not None:
        state = outcome.state
        scores = [headline(request.task, epoch.metrics) for epoch in state.epochs]
        known = [(score, -index) for index, score in enumerate(scores) if score is not None]
        best, at = max(known) if known else (None, None)
        result = Result(
            score_name=request.task.headline_name,
            score_last=scores[-1] if scores else None,
            score_best=best,
            best_epoch=None if at is None else 1 - at,
            collapsed=state.kept_collapsed,
            epochs=state.epochs,
            examples={name: len(split) for name, split in bench.splits.items()},
            predicted=state.kept_predicted,
            reasons=state.reasons,
            test=state.kept_test or None,
            stopped_early=state.epoch if status == "completed" and state.epoch < spec.epochs else None,
            score_test=headline(request.task, dict.fromkeys(request.task.validation_splits, state.kept_test))
            if state.kept_test
            else None,
            words={
                name: {
                    "words": len(split.word_positions),
                    "cut_off": split.words_cut_off,
                    "no_token": split.words_without_token,
                }
                for name, split in bench.splits.items()
                if split.word_positions is not None
            },
        )
        cost = Cost(
            setup_seconds=setup_seconds, train_seconds=state.train_seconds, eval_seconds=state.eval_seconds,
            steps=state.steps, tokens=state.tokens, padded_tokens=state.padded_tokens,
            peak_rss_mb=outcome.peak_rss_mb, peak_gpu_mb=outcome.peak_gpu_mb,
            optimizer_bytes=outcome.optimizer_bytes, replicas=bench.devices.replicas, threads=threads_in_use(),
            devices=bench.devices.names, jit_compile=bench.jit, resumed=state.resumed,
            computed_on=state.devices if len(set(state.devices)) > 1 else [],
            processor=origin.processor(), onednn=origin.onednn(),
        )  # fmt: skip
        proof = Proof(
            selected_changed=outcome.selected_changed, frozen_changed=outcome.frozen_changed,
            frozen_sha256_before=state.frozen_sha256, frozen_sha256_after=outcome.frozen_sha256_after,
        )  # fmt: skip
        change = state.kept_change
        fisher = outcome.fisher
    return Record(
        schema_=SCHEMA, run_id=request.run_id, status=status, error=error, spec=spec,
        parameters=parameters, result=result, cost=cost, proof=proof, change=change,
        fisher=fisher, selection=outcome and _tell_selection(request, outcome), warnings=told,
        model=_model_facts(request),
        origin=_origin(request, started),
    )  # fmt: skip


def _tell_selection(request: Request, outcome: Outcome) -> SelectionFacts:
    full = ", ".join(full.run_id for full in request.full_runs.values())
    cost = outcome.selection.cost.model_copy(update={"full_run": full or None})
    return outcome.selection.model_copy(update={"cost": cost})


def _tell_damaged(request: Request, notes: list[str]) -> list[str]:
    """What was set aside, also by a start that died before it could store what it noted."""
    found = sorted(path.name for path in request.folder.glob("damaged.*"))
    untold = [name for name in found if not any(name in note for note in notes)]
    return notes + [f"{name}: found damaged and set aside by an earlier start" for name in untold]


def _model_facts(request: Request) -> ModelFacts:
    model = request.model
    return ModelFacts(name=model.name, revision=model.revision, commit=model.commit, sha256=request.digests["model"])


def _origin(request: Request, started: str, host: str = "") -> Origin:
    commit, dirty = origin.git_state()
    return Origin(
        tfmt=__version__, arithmetic=ARITHMETIC, packages=origin.package_versions(),
        python=origin.python_version(), git_commit=commit, git_dirty=dirty,
        model_sha256=request.digests["model"], data_sha256=request.digests["data"],
        test_sha256=request.digests.get("test"),
        data_notes=request.dataset.notes, model_notes=request.model_notes, host=host or origin.host(),
        started=started, finished=origin.now(),
    )  # fmt: skip
