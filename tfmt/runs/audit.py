"""A run made again from its record, and how far its numbers are from those that the record tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfmt.bert.base_weights import is_model
from tfmt.bert.configs import locate_model
from tfmt.errors import RequestError
from tfmt.runs.comparison import (
    LOSS,
    Answers,
    Number,
    compare_epochs,
    compare_facts,
    compare_predictions,
    surroundings_of,
)
from tfmt.runs.folder import finished
from tfmt.runs.records import Record
from tfmt.runs.runner import Request, prepare
from tfmt.spec import ARITHMETIC, RunSpec
from tfmt.training.predictions import Predictions

# Up to where rounding explains a difference: of losses fifty times the largest that was measured, of predictions a few
# where none was measured to differ; of scores it was not measured. docs/audit.md has the numbers.
LOSS_BOUND = 1e-5
PREDICTIONS_BOUND = 0.005
SCORES_BOUND = 1e-4


@dataclass(frozen=True)
class Audit:
    """A run as its record tells it, and as it was made again.

    Attributes:
      numbers: of each epoch, on both halves as well.
      answers: what each epoch predicted; empty where the record's predictions are not there.
      exact: (what, recorded, again) of what differs and no rounding changes: how it ended, steps, tokens, examples,
        what lies outside the selection.
      rounded: the same of what follows from last bits: the weights that were kept, their change, Fisher information.
      surroundings: the same of machine and versions.
      unknown: whether the record does not tell of its machine what decides last bits.
    """

    numbers: list[Number]
    answers: list[Answers]
    exact: list[tuple[str, Any, Any]]
    rounded: list[tuple[str, Any, Any]]
    surroundings: list[tuple[str, Any, Any]]
    unknown: bool

    @property
    def identical(self) -> bool:
        """Whether nothing differs, in any bit."""
        return not (self.exact or self.rounded or self.first_epoch)

    @property
    def first_epoch(self) -> int | None:
        """The first epoch of which something differs."""
        differing = [each.epoch for each in self.numbers if each.difference]
        return min([*differing, *(told.epoch for told in self.answers if told.differing)], default=None)

    @property
    def loss(self) -> float:
        """The largest relative difference of an epoch's loss."""
        return max((each.relative for each in self.numbers if each.what == LOSS), default=0.0)

    @property
    def share(self) -> float:
        """The largest share of predictions that differ, of any epoch and split."""
        return max((told.differing / max(told.total, 1) for told in self.answers), default=0.0)

    @property
    def explained(self) -> bool:
        """Whether what differs is no more than rounding does, and there is a reason for other rounding."""
        within = self.loss <= LOSS_BOUND and all(map(_is_within, self.answers))
        undefined = any(each.relative == float("inf") for each in self.numbers)
        return within and not undefined and not self.exact and bool(self.surroundings or self.unknown)


def _is_within(told: Answers) -> bool:
    if told.largest is not None:
        return told.largest <= SCORES_BOUND
    return told.differing <= max(1, PREDICTIONS_BOUND * told.total)


def why_not(record: Record) -> str:
    """Why a run cannot be made again to be compared; empty where it can."""
    if record.status == "failed":
        return "it failed, and has no result"
    if record.origin.arithmetic != ARITHMETIC:
        return f"it is of arithmetic {record.origin.arithmetic}, and this tfmt's is {ARITHMETIC}: take the tfmt of then"
    return ""


def prepare_audit(
    record: Record, output_dir: Path, *, model: str = "", data_dir: str = "", replicas: int | None = None
) -> Request:
    """Finds all that makes a run again, and that it is what the run had.

    Args:
      record: the run's.
      output_dir: where the run's folder shall be.
      model: where the base model lies on this machine; empty for where the run found it.
      data_dir: where the data do.
      replicas: devices; None for as many as the run was asked for.

    Raises:
      RequestError: it cannot be audited, the model or the data are not there or are others, or it lies there already.
      RunError: network, hub or disk failed.
    """
    if reason := why_not(record):
        raise RequestError(f"{record.run_id}: {reason}")
    settings = record.spec.model_dump()
    commit = record.model.commit if record.model else None
    settings |= {"model": model, "revision": ""} if model else {"revision": commit or record.spec.revision}
    if data_dir:
        settings["data_dir"] = data_dir
    if replicas is not None:
        settings["replicas"] = replicas
    spec = RunSpec.make(**settings)
    found = locate_model(spec.model, spec.revision)
    assert found is not None
    if not is_model(found.folder, record.origin.model_sha256):
        raise _other("model", spec.model, "base model", record.origin.model_sha256)
    request = prepare(spec, output_dir)
    if request.digests["data"] != record.origin.data_sha256:
        raise _other("data_dir", spec.data_dir, "data", record.origin.data_sha256)
    if request.run_id != record.run_id:
        raise RequestError(
            f"{record.run_id}: its settings, model and data make the id {request.run_id}; the record was edited, or "
            "--fisher_from's folders hold other masks"
        )
    if finished(request) is not None:
        raise RequestError(f"--output_dir={output_dir}: holds this run already; an audit makes it again: give another")
    return request


def _other(flag: str, value: str, what: str, sha256: str) -> RequestError:
    return RequestError(
        f"--{flag}={value}: not the {what} of the run (its digest differs from the record's, {sha256[:10]}); say where "
        f"it lies on this machine by --{flag}"
    )


def compare(recorded: Record, again: Record, predictions: tuple[Predictions | None, Predictions | None]) -> Audit:
    """How far a run that was made again is from its record.

    Args:
      recorded: the record.
      again: of the run that was made again.
      predictions: what each predicted; None where that is not known.
    """
    first, second = predictions
    rounded = compare_facts(_rounded(recorded), _rounded(again))
    if recorded.tuned_sha256 is None or again.tuned_sha256 is None:
        rounded = [each for each in rounded if each[0] != "tuned weights"]
    exact = compare_facts(_exact(recorded), _exact(again))
    if None in (recorded.origin.test_sha256, again.origin.test_sha256):  # one of the two machines has no test split
        exact, rounded = ([each for each in facts if each[0] not in _TEST] for facts in (exact, rounded))
    cost = recorded.cost
    return Audit(
        numbers=list(compare_epochs(recorded, again, halves=True)),
        answers=list(compare_predictions(first, second)) if first and second else [],
        exact=exact,
        rounded=rounded,
        surroundings=compare_facts(surroundings_of(recorded), surroundings_of(again)),
        unknown=cost is None or cost.processor is None,
    )


_TEST = ("test split's sha256", "test", "score_test")


def _exact(record: Record) -> dict[str, Any]:
    told: dict[str, Any] = {"status": record.status}
    if record.parameters:
        told |= record.parameters.model_dump()
    if record.cost:
        told |= {name: getattr(record.cost, name) for name in ("steps", "tokens", "padded_tokens")}
    if record.proof:
        told["frozen weights stayed"] = record.proof.frozen_sha256_before == record.proof.frozen_sha256_after
        told["frozen_changed"] = record.proof.frozen_changed
    if record.result:
        told |= {"examples": record.result.examples, "words": record.result.words}
        told["score_name"] = record.result.score_name
    told[_TEST[0]] = record.origin.test_sha256
    return told


def _rounded(record: Record) -> dict[str, Any]:
    told: dict[str, Any] = {"error": record.error, "change": record.change, "tuned weights": record.tuned_sha256}
    if record.fisher:
        told["Fisher information"] = record.fisher.model_dump(mode="json")
    if record.proof:
        told["selected_changed"] = record.proof.selected_changed
        told["frozen weights"] = record.proof.frozen_sha256_before  # rounding may choose others by scores
    if record.result:
        names = ("best_epoch", "score_best", "score_last", "collapsed", "predicted", "reasons", "test", "score_test")
        told |= {name: getattr(record.result, name) for name in names}
    return told
