"""Getting a tuned model back from a run's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.bert.base_weights import BaseWeights, is_model
from tfmt.bert.configs import DEMO_NAME, locate_model, public_name, read_config, shape_of
from tfmt.bert.vocabulary import Weight, list_weights
from tfmt.errors import RequestError
from tfmt.files import check_path
from tfmt.runs.folder import read_stored_spec
from tfmt.runs.records import Record, read_record
from tfmt.selection.stored import TUNED_FILE
from tfmt.spec import check_settings


@dataclass(frozen=True)
class TunedWeights:
    """What a run tuned, on top of the base model it was tuned from, read without TensorFlow.

    Attributes:
      record: the run's record.
      source: the base model as it was asked for: `demo`, a hub name, or a folder.
      commit: the commit of a hub model; None of others.
      base: the folder of the base model.
      head: `sentence` or `tokens`.
      classes: names of the head's outputs; empty for regression.
      weights: the table of the tuned model's weights.
      values: {path: the whole variable at the kept epoch} of every variable that the run tuned, the head included.
    """

    record: Record
    source: str
    commit: str | None
    base: Path
    head: str
    classes: tuple[str, ...]
    weights: tuple[Weight, ...]
    values: dict[str, np.ndarray]

    @property
    def on_hub(self) -> str:
        """The base model's name on the hub, wherever its files were found; empty where it is a local folder alone."""
        return self._hub_model[0] or (DEMO_NAME if "demo" in (self.source, self.record.spec.model) else "")

    @property
    def hub_commit(self) -> str | None:
        """The commit of the base model on the hub, where it is known."""
        return self._hub_model[1]

    @property
    def base_name(self) -> str:
        """What the base model is called: its name on the hub, or its folder's own."""
        return self.on_hub or public_name(os.path.abspath(self.source), local=True)

    @property
    def _hub_model(self) -> tuple[str, str | None]:
        """(name, commit) as it was found now, else as the run found it: the digest says that it is the same model."""
        if self.commit:
            return self.source, self.commit
        run = self.record.model
        return (run.name, run.commit) if run and run.commit else ("", None)

    def read(self) -> dict[str, np.ndarray]:
        """{path: value} of every variable of the tuned model, under TensorFlow's paths and orientation."""
        base = BaseWeights(self.base, self.head)
        paths = [weight.path for weight in self.weights]
        return {path: self.values[path] if path in self.values else base.read(path) for path in paths}


def read_tuned(run: str | Path, *, model: str = "") -> TunedWeights:
    """What a run tuned, checked against its base model.

    Args:
      run: the run's folder.
      model: where the base model lies now, if it is no longer where the run found it.

    Raises:
      RequestError: no path is given, the run kept no weights, or the base model is not the one that the run tuned.
    """
    from tfmt.bert.torch_names import from_torch_names
    from tfmt.tensors import read_tensors

    folder = check_path(run, "run")
    if not isinstance(model, str) or model:  # empty: where the run found it
        model = check_settings(model=str(model) if isinstance(model, Path) else model)["model"]
    record = read_record(folder)
    read_stored_spec(folder)  # nothing of it is needed, but what lies beside damage is not to be trusted in silence
    path = folder / TUNED_FILE
    if not path.exists():
        why = (
            "it kept scores alone; delete its folder and run it again with --keep=tuned"
            if record.spec.keep == "scores"
            else f"it {record.status}"
        )
        raise RequestError(f"{path}: missing; {why}")
    found = locate_model(model) if model else locate_model(record.spec.model, _revision_of(record))
    assert found is not None
    source, base = found.name, found.folder
    if not is_model(base, record.origin.model_sha256):
        raise RequestError(
            f"{source}: not the base model that {folder.name} tuned (its digest differs); give the right one"
        )
    tensors, about = read_tensors(path, sha256=record.tuned_sha256)
    head, classes = about["head"], tuple(about["classes"])
    weights = list_weights(shape_of(read_config(base)), head, len(classes) or 1)
    try:
        values, masks = from_torch_names(weights, tensors)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    before = BaseWeights(base, head)
    for name, indices in masks.items():
        whole = before.read(name).copy(order="C")
        whole.reshape(-1)[indices] = values[name]
        values[name] = whole
    return TunedWeights(record, source, found.commit, base, head, classes, weights, values)


def _revision_of(record: Record) -> str:
    """What finds a run's base model again on the hub: the commit, wherever its branch is now."""
    return (record.model and record.model.commit) or record.spec.revision


def load_tuned(run: str | Path, *, model: str = "") -> Any:
    """The model that a run tuned, with the predictions it had at the kept epoch.

    Args:
      run: the run's folder.
      model: where the base model lies now, if it is no longer where the run found it.

    Returns:
      A TFBertForSequenceClassification or TFBertForTokenClassification.

    Raises:
      RequestError: the run kept no weights, or the base model is not the one that the run tuned.

    Example:
      >>> import tfmt
      >>> model = tfmt.load_tuned("runs/mrpc-layernorm-lr0.001-s0-d9e29dc098")
      >>> type(model).__name__
      'TFBertForSequenceClassification'
    """
    return build_tuned(read_tuned(run, model=model))


def build_tuned(tuned: TunedWeights) -> Any:
    """A TFBert model that holds these weights, in the Keras precision policy of the moment."""
    from tfmt.bert.models import assign_weights, load_bert

    seed, outputs = tuned.record.spec.seed, len(tuned.classes) or 1
    built = load_bert(str(tuned.base), outputs, seed, head=tuned.head, classes=tuned.classes)
    assign_weights(built, tuned.values)
    return built
