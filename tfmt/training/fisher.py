"""Diagonal empirical Fisher information: how much each weight matters to what the model says of the data's labels.

Of a weight w it is the mean over examples of (d log p(y|x) / dw)^2 with the labels y of the data, each example by
itself (the square of a batch's mean gradient is something else), dropout off. For regression p is a Gaussian of unit
variance around the score f: log p = -(y - f)^2 / 2 + a constant. In token tasks an example is a sentence, and its
log p is the sum over its labelled words.

A new head says nothing, so its gradients say nothing about the encoder either. A run with `--mode=fisher` therefore
first trains the head alone on the frozen encoder: one epoch over the run's own training data with its seed, batches,
warm-up and schedule, at the rate `HEAD_LEARNING_RATE`, by Adam whatever the run's own optimizer is. With that head the
Fisher information is estimated; then the head goes back to its initial values, and the run starts as any other does.

References:
  P2 ([ValizadehAslani & Liang, 2024](https://arxiv.org/abs/2403.20284)), which leaves the head's training open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from pydantic import ValidationError

from tfmt import protocol, signals
from tfmt.bert.forward import per_example_layernorms
from tfmt.bert.models import weights_of
from tfmt.data.batches import evaluation_batches, plan_epoch, training_batches
from tfmt.data.tokens import TokenizedSplit
from tfmt.errors import RequestError
from tfmt.files import make_folder
from tfmt.selection.draws import draw_without_replacement
from tfmt.selection.selection import Selection
from tfmt.selection.stored import FISHER_FILE, FisherNotes
from tfmt.spec import RunSpec
from tfmt.tensors import read_tensors, reason_of, write_tensors
from tfmt.training.workbench import Workbench

Discard = Callable[[Path, str], None]  # takes a file that is of no use, and why

HEAD_EPOCHS = 1
HEAD_LEARNING_RATE = protocol.PART_LEARNING_RATE
# What of a run the head's training depends on, beside its seed, its data and its precision.
HEAD_SETTINGS = ("batch_size", "batching", "warmup_ratio", "schedule", "adam_epsilon")
# What an interrupted estimation leaves in the run's folder.
PARTS_FILE = "checkpoint/fisher.safetensors"
KEEP_SECONDS = 300.0  # between two times that the head is stored
# Tokens with padding of one batch; the result does not depend on it beyond rounding.
FISHER_TOKENS = 4096
# Keeps the draw of the examples apart from the draws of masks, whose streams are the numbers of their pools; an
# expression with more pools than this has one that draws by the same bits, out of another number of things.
_EXAMPLES_STREAM = 0xF15E


class ComponentFisher(NamedTuple):
    """Fisher information of one component in one block (`-` outside the blocks): sum, weights, mean per weight."""

    component: str
    block: str
    total: float
    weights: int
    mean: float


def log_likelihood(kind: str, labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """log p(y|x) of each example, (batch,), without constants; labels below 0 do not count in token tasks.

    Args:
      kind: the task's kind; `regression` is a Gaussian of unit variance.
      labels: (batch,), or (batch, length) for token tasks.
      logits: (batch, outputs), or (batch, length, outputs).
    """
    if kind == "regression":
        return -0.5 * tf.math.squared_difference(logits[:, 0], labels)
    counted = labels >= 0
    logs = -tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(counted, labels, 0), logits)
    logs = tf.where(counted, logs, 0.0)
    return tf.reduce_sum(logs, axis=1) if labels.shape.rank == 2 else logs


def layernorm_fisher(
    model: Any,
    kind: str,
    split: TokenizedSplit,
    indices: np.ndarray,
    *,
    tokens_per_batch: int = FISHER_TOKENS,
    step: Callable[..., Any] | None = None,
) -> dict[str, np.ndarray]:
    """Fisher information of every LayerNorm weight of a model, in batches.

    Each example gets a gamma and a beta of its own, equal to the model's; the gradient to them is the example's own,
    and costs a sum over positions.

    Args:
      model: a TFBert model from `tfmt.load_bert`.
      kind: the task's kind: `classification`, `regression` or `tokens`.
      split: tokenised text with labels.
      indices: which examples.
      tokens_per_batch: tokens with padding of one batch.
      step: what `make_layernorm_step(model, kind)` gave, to trace it once for many calls.

    Returns:
      {path: float64 array of the variable's shape}.
    """
    step = step or make_layernorm_step(model, kind)
    totals: dict[str, np.ndarray] = {}
    for batch in evaluation_batches(split, tokens_per_batch, examples=indices):
        gradients = step({name: tf.constant(array) for name, array in batch.inputs.items()})
        for path, gradient in gradients.items():
            squares = np.square(gradient.numpy().astype(np.float64)).sum(axis=0)
            totals[path] = totals[path] + squares if path in totals else squares
    return {path: total / len(indices) for path, total in totals.items()}


def make_layernorm_step(model: Any, kind: str) -> Callable[..., Any]:
    """A function from a batch with labels to {path of a LayerNorm weight: (batch, hidden), gradients of log p}."""
    layers = _layernorms(model)

    @tf.function(input_signature=[batch_signature(model, kind, None)], autograph=False)
    def step(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        examples = tf.shape(batch["input_ids"])[0]
        own = {path: (_repeat(layer.gamma, examples), _repeat(layer.beta, examples)) for path, layer in layers.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(own)
            with per_example_layernorms({id(layers[path]): affine for path, affine in own.items()}):
                logs = log_likelihood(kind, batch["labels"], _logits(model, batch))
        found = tape.gradient(logs, own)
        gradients = {f"{path}/gamma": pair[0] for path, pair in found.items()}
        gradients |= {f"{path}/beta": pair[1] for path, pair in found.items()}
        return {path: tf.squeeze(gradient, 1) for path, gradient in gradients.items()}

    return step


def component_fisher(
    model: Any,
    kind: str,
    split: TokenizedSplit,
    indices: np.ndarray,
    *,
    step: Callable[..., Any] | None = None,
) -> list[ComponentFisher]:
    """Fisher information of all weights of a model, example by example, summed by component and block (P2).

    Args:
      model: a TFBert model from `tfmt.load_bert`, its head trained.
      kind: the task's kind: `classification`, `regression` or `tokens`.
      split: tokenised text with labels.
      indices: which examples.
      step: what `make_component_step(model, kind)` gave, to trace it once for many calls.

    Returns:
      One `ComponentFisher` a component and block, in the model's order, the classifier included; a DataFrame can be
      made of the list as it is.
    """
    step = step or make_component_step(model, kind)
    weights = weights_of(model)
    totals = np.zeros(len(weights))
    for batch in evaluation_batches(split, 1, examples=indices):  # each example by itself
        totals += step({name: tf.constant(array) for name, array in batch.inputs.items()}).numpy()
    means = totals / len(indices)
    return [
        ComponentFisher(w.component, "-" if w.block is None else str(w.block), total, w.size, total / w.size)
        for w, total in zip(weights, means.tolist(), strict=True)
    ]


def make_component_step(model: Any, kind: str) -> Callable[..., Any]:
    """A function from one example with its label to the sum of squares of log p's gradient to each variable."""
    # Outside a replica a mirrored variable is read, and so watched, through the first replica's part of it.
    variables = [getattr(model.all_weights[w.path], "_primary", model.all_weights[w.path]) for w in weights_of(model)]

    @tf.function(input_signature=[batch_signature(model, kind, 1)], autograph=False)
    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable)
            logs = log_likelihood(kind, batch["labels"], _logits(model, batch))
        return tf.stack([_sum_of_squares(gradient) for gradient in tape.gradient(logs, variables)])

    return step


def draw_examples(examples: int, count: int, seed: int) -> np.ndarray:
    """Which training examples the Fisher information is estimated on: at most `count`, rising, from the seed alone."""
    return np.sort(draw_without_replacement(examples, min(count, examples), seed, _EXAMPLES_STREAM))


# ---- in a run ------------------------------------------------------------------------------------------------------


def prepare_fisher(
    bench: Workbench, spec: RunSpec, folder: Path, before_write: Callable[[], None], discard: Discard
) -> tuple[dict[str, np.ndarray], FisherNotes]:
    """The Fisher information that a run chooses its mask by, from its folder if it is there, else estimated.

    Args:
      bench: the run's workbench; has to be set up for the run afterwards.
      spec: the run.
      folder: the run's folder; its name is the run's id. What an interrupted estimation left there is taken up.
      before_write: called before what is done so far is stored, may raise to end the run.
      discard: is given a file that is of no use, and why.

    Returns:
      {path: Fisher information of a LayerNorm variable}, and how it came about.

    Raises:
      Stop: a signal asked for it.
    """
    stored = _read_stored(folder, bench.model, discard)
    if stored is not None:
        return stored
    parts = _read_parts(folder, discard)

    def keep(more: dict[str, np.ndarray]) -> None:
        parts.update(more)
        before_write()
        path = folder / PARTS_FILE
        make_folder(path.parent)
        write_tensors(path, parts, {"run_id": folder.name})

    loss = train_head(bench, spec, parts, keep)
    drawn = draw_examples(len(bench.splits["train"]), spec.fisher_examples, spec.seed)
    shapes = {path: bench.model.all_weights[path].shape for path in _affine_paths(bench.model)}
    values = _part(parts, "layernorm", shapes) or _estimate(bench, drawn)
    keep({f"layernorm/{path}": value for path, value in values.items()})
    totals, sizes = _sum_components(bench, spec, drawn)
    notes = FisherNotes(
        examples=len(drawn), head_epochs=HEAD_EPOCHS, head_learning_rate=HEAD_LEARNING_RATE, head_train_loss=loss,
        totals=totals, weights=sizes,
    )  # fmt: skip
    return values, notes


def _estimate(bench: Workbench, drawn: np.ndarray) -> dict[str, np.ndarray]:
    if bench.fisher_step is None:
        bench.fisher_step = make_layernorm_step(bench.model, bench.task.kind)
    values = layernorm_fisher(
        bench.model, bench.task.kind, bench.splits["train"], drawn, step=bench.fisher_step
    )  # fmt: skip
    if not all(np.isfinite(value).all() for value in values.values()):
        raise FloatingPointError("the Fisher information is not finite; use --precision=float32")
    return values


def _read_parts(folder: Path, discard: Discard) -> dict[str, np.ndarray]:
    """What an interrupted estimation left; nothing where there is none, or it is broken or another run's."""
    path = folder / PARTS_FILE
    if not path.exists():
        return {}
    try:
        parts, about = read_tensors(path)
        if about.get("run_id") == folder.name:
            return parts
        discard(path, "it is another run's")
    except RequestError as error:
        discard(path, reason_of(path, error))
    return {}


def _part(
    parts: Mapping[str, np.ndarray], name: str, shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray] | None:
    """The arrays of one part by their own names; None where they are not all there in these shapes."""
    found = {own: parts.get(f"{name}/{own}") for own in shapes}
    if any(array is None or array.shape != tuple(shapes[own]) for own, array in found.items()):
        return None
    return {own: array for own, array in found.items() if array is not None}


def _read_stored(folder: Path, model: Any, discard: Discard) -> tuple[dict[str, np.ndarray], FisherNotes] | None:
    """What an earlier start of this run stored; None where nothing that fits is there, and it is computed again."""
    wanted = [weight for weight in weights_of(model) if weight.path in _affine_paths(model)]
    path = folder / FISHER_FILE
    if not path.exists():
        return None
    try:
        tensors, about = read_tensors(path)
        values = {weight.path: tensors[weight.torch_name] for weight in wanted}
        notes = FisherNotes.model_validate(about["fisher"])
        if all(values[weight.path].shape == weight.shape for weight in wanted) and about.get("run_id") == folder.name:
            return values, notes
        discard(path, "it is another run's")
    except RequestError as error:
        discard(path, reason_of(path, error))
    except (KeyError, ValidationError):
        discard(path, "it does not hold what a run's Fisher information is")
    return None


def _sum_components(
    bench: Workbench, spec: RunSpec, drawn: np.ndarray
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """The record's sums of Fisher information by component and block, and the weights that each is over.

    Runs of one sweep that differ in rate, fraction or blocks have the same head and so the same sums.
    """
    key = (spec.seed, spec.fisher_examples, spec.warmup_ratio, spec.schedule, spec.adam_epsilon)
    if key not in bench.component_sums:
        if bench.component_step is None:
            bench.component_step = make_component_step(bench.model, bench.task.kind)
        rows = component_fisher(bench.model, bench.task.kind, bench.splits["train"], drawn, step=bench.component_step)
        totals: dict[str, dict[str, float]] = {}
        for row in rows:
            totals.setdefault(row.component, {})[row.block] = row.total
        bench.component_sums[key] = totals, {row.component: row.weights for row in rows}
    return bench.component_sums[key]


def store_fisher(
    folder: Path, selection: Selection, values: dict[str, np.ndarray], notes: FisherNotes, model_sha256: str,
    before_write: Callable[[], None],
) -> None:  # fmt: skip
    """Writes a run's Fisher information and its mask (`<name>.indices`) to `fisher.safetensors`, unless they are there.

    The mask lies here too because `--fisher_from` reads it, also of runs that keep scores alone.
    """
    path = folder / FISHER_FILE
    about = {"run_id": folder.name, "model_sha256": model_sha256, "fisher": notes.model_dump()}
    names = {weight.path: weight.torch_name for weight in selection.weights}
    tensors = {names[path_]: value for path_, value in values.items()}
    tensors |= {f"{names[path_]}.indices": indices for path_, indices in selection.masks.items()}
    try:
        stored, told = read_tensors(path)
        same = all(np.array_equal(stored[name], array) for name, array in tensors.items())
        if same and stored.keys() == tensors.keys() and told == about:
            return
    except (RequestError, KeyError):
        pass  # missing: a damaged one was set aside by `prepare_fisher`
    before_write()
    write_tensors(path, tensors, about)


def train_head(
    bench: Workbench, spec: RunSpec, parts: Mapping[str, np.ndarray],
    keep: Callable[[dict[str, np.ndarray]], None] | None,
) -> float:  # fmt: skip
    """One epoch of the head alone on the frozen encoder; the mean training loss.

    Args:
      bench: the run's workbench.
      spec: the run.
      parts: what an interrupted estimation left; the epoch goes on from there.
      keep: stores the head now and then, after the step that a signal stops the epoch at, and after its last; None
        where it is not to be kept.
    """
    settings = {
        "mode": "frozen", "epochs": HEAD_EPOCHS, "learning_rate": HEAD_LEARNING_RATE, "frozen_prefix": "live",
        "optimizer": "adam", "weight_decay": 0.0, "clip_norm": 0.0,
    }  # fmt: skip
    head = RunSpec.make(**spec.model_dump() | settings)
    train = bench.splits["train"]
    plan = plan_epoch(train.lengths, spec.batch_size, spec.batching, spec.seed, 0, spec.max_length)
    bench.set_up(head, HEAD_EPOCHS * plan.steps)
    losses = _take_up_head(bench, parts)
    kept = time.monotonic()
    with signals.held():
        for batch in training_batches(train, plan, len(losses)):
            losses.append(float(bench.train_step(batch)))
            if keep and (signals.asked() or len(losses) == plan.steps or time.monotonic() - kept > KEEP_SECONDS):
                keep(_head_part(bench, losses))
                kept = time.monotonic()
            place = f"step {len(losses)} of {plan.steps}"
            signals.check(
                f"the head for Fisher information is kept at {place}" if keep
                else f"the head that scores are measured with was at {place}, and starts anew"
            )  # fmt: skip
    loss = sum(losses) / plan.steps
    if not math.isfinite(loss):
        raise FloatingPointError("the loss was not finite while the head was trained for the Fisher information")
    return loss


def _head_part(bench: Workbench, losses: list[float]) -> dict[str, np.ndarray]:
    part = {f"head/{path}": value for path, value in bench.read_selected().items()}
    part |= {f"optimizer/{index}": variable.numpy() for index, variable in enumerate(bench.optimizer_variables)}
    return part | {"losses": np.array(losses, np.float64)}


def _take_up_head(bench: Workbench, parts: Mapping[str, np.ndarray]) -> list[float]:
    """Puts the head where an interrupted epoch left it; the losses of the steps that are done."""
    head = _part(parts, "head", {path: value.shape for path, value in bench.read_selected().items()})
    state = {str(index): variable for index, variable in enumerate(bench.optimizer_variables)}
    stored = _part(parts, "optimizer", {name: variable.shape for name, variable in state.items()})
    if head is None or stored is None or "losses" not in parts:
        return []
    bench.write_selected(head)
    for name, variable in state.items():
        variable.assign(stored[name])
    return parts["losses"].tolist()


# ---- arithmetic ----------------------------------------------------------------------------------------------------


def _layernorms(model: Any) -> dict[str, Any]:
    """{path: layer} of the LayerNorms of a TFBert model."""
    found = {"bert/embeddings/LayerNorm": model.bert.embeddings.LayerNorm}
    for index, layer in enumerate(model.bert.encoder.layer):
        block = f"bert/encoder/layer_._{index}"
        found[f"{block}/attention/output/LayerNorm"] = layer.attention.dense_output.LayerNorm
        found[f"{block}/output/LayerNorm"] = layer.bert_output.LayerNorm
    return found


def _affine_paths(model: Any) -> list[str]:
    """Paths of the gammas and betas of a TFBert model."""
    return [f"{path}/{part}" for path in _layernorms(model) for part in ("gamma", "beta")]


def _repeat(variable: Any, examples: tf.Tensor) -> tf.Tensor:
    """(hidden,) -> (examples, 1, hidden)."""
    return tf.tile(tf.convert_to_tensor(variable)[None, None, :], [examples, 1, 1])


def _logits(model: Any, batch: dict[str, tf.Tensor]) -> tf.Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return tf.cast(model(inputs, training=False).logits, tf.float32)


def _sum_of_squares(gradient: Any) -> tf.Tensor:
    """Sum of the squares of a gradient in float64; rows of a table that a text reads twice are added up first."""
    if gradient is None:  # no path to log p, as from the rows of a table that no text reads
        return tf.zeros([], tf.float64)
    if isinstance(gradient, tf.IndexedSlices):
        rows, places = tf.unique(gradient.indices)
        gradient = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows))
    return tf.reduce_sum(tf.square(tf.cast(gradient, tf.float64)))


def batch_signature(model: Any, kind: str, examples: int | None) -> dict[str, tf.TensorSpec]:
    """What a traced function of a batch with labels takes: so many examples, or any number, of any length."""
    whole = tf.TensorSpec([examples, None], tf.int32)
    tokens = model._head_name == "tokens"
    labels = tf.TensorSpec([examples, None] if tokens else [examples], tf.float32 if kind == "regression" else tf.int32)
    return {"input_ids": whole, "attention_mask": whole, "token_type_ids": whole, "labels": labels}
