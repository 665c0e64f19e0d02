"""Getting a tuned model back from a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfmt.bert.base_weights import model_digest
from tfmt.bert.configs import find_model
from tfmt.errors import RequestError
from tfmt.study.records import TUNED_FILE, read_record


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
      >>> model = load_tuned("runs/mrpc-layernorm-lr0.001-s0-d9e29dc098")
    """
    from tfmt.bert.models import assign_weights, load_bert, weights_of
    from tfmt.training.tuned import from_torch_names, read_tensors

    folder = Path(run)
    record = read_record(folder)
    path = folder / TUNED_FILE
    if not path.exists():
        why = "it kept scores alone; run it again with --keep=tuned" if record.spec.keep == "scores" else f"it {record.status}"
        raise RequestError(f"{path}: missing; {why}")
    source = model or record.spec.model
    base = find_model(source, download=True)
    assert base is not None
    if model_digest(base) != record.origin.model_sha256:
        raise RequestError(f"{source}: not the base model that {folder.name} tuned (its digest differs); give the right one")
    tensors, about = read_tensors(path)
    classes = tuple(about["classes"])
    tuned = load_bert(source, len(classes) or 1, record.spec.seed, head=about["head"], classes=classes)
    weights = weights_of(tuned)
    values, masks = from_torch_names(weights, tensors)
    for path_, indices in masks.items():
        whole = tuned.all_weights[path_].numpy()
        whole.reshape(-1)[indices] = values[path_]
        values[path_] = whole
    assign_weights(tuned, values)
    return tuned
