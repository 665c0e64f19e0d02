"""`select`: makes a model train exactly a mode's weights, or an expression's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.bert.models import adopt, weights_of
from tfmt.bert.vocabulary import SUBLAYERS, Weight, variable_path
from tfmt.errors import RequestError
from tfmt.files import check_path
from tfmt.selection.gradient_mask import GradientMask
from tfmt.selection.inner_optimizers import check_optimizer, first_unknown, within_loss_scale
from tfmt.selection.masks import as_array, check_union
from tfmt.selection.modes import plan_mode
from tfmt.selection.plans import Chosen, Plan, choose
from tfmt.selection.scores.pool import Known, Read
from tfmt.selection.stored import read_fisher, read_given, write_selection
from tfmt.selection.summary import format_map, format_summary
from tfmt.spec import MODES, RunSpec, check_settings, find_idle


class Selection:
    """The weights of a model that train: selected = trains.

    Attributes:
      model: the model.
      mode: the mode's name; `custom` for an expression.
      plan: how the weights are found; `plan.expression` and `plan.normal_form` say it.
      warnings: on parts of the expression that had no effect.
      tuned: selected weights without the classifier.
      head: weights of the classifier, which always trains.
      total: all weights of the model.
      percent: tuned / (total - head), in percent.
      masks: {path: indices} of the variables of which only single weights are selected.
      open_masks: the same, with an empty mask for each variable that another seed may select weights of.

    Example:
      >>> import tfmt
      >>> selection = tfmt.select(tfmt.load_bert("demo"), mode="outliers", mask_size=16)
      >>> selection.tuned, selection.head  # 16 weights of each of 12 LayerNorms, and the classifier
      (192, 770)
    """

    def __init__(self, model: Any, mode: str, plan: Plan, chosen: Chosen) -> None:
        self.model, self.mode, self.plan = model, mode, plan
        self.warnings = tuple(chosen.warnings)
        parts = chosen.weights.parts
        self.masks = {path: part for path, part in parts.items() if part is not None}
        none = np.zeros(0, np.int64)
        still_open = [
            path for path in plan.table.by_path if path in plan.open_paths and parts.get(path, none) is not None
        ]
        self.open_masks = dict.fromkeys(still_open, none) | self.masks
        self.weights: tuple[Weight, ...] = weights_of(model)
        self._whole = frozenset(path for path, part in parts.items() if part is None) | {
            w.path for w in self.weights if w.sublayer == "classifier"
        }
        self.total = sum(weight.size for weight in self.weights)
        self.head = sum(weight.size for weight in self.weights if weight.sublayer == "classifier")
        self.tuned = sum(self.count(weight) for weight in self.weights) - self.head
        self.percent = 100.0 * self.tuned / (self.total - self.head)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the variables that hold a selected weight, in the model's order."""
        return tuple(weight.path for weight in self.weights if self.count(weight))

    def count(self, weight: Weight) -> int:
        """How many weights of a variable are selected."""
        if weight.path in self._whole:
            return weight.size
        return len(self.masks.get(weight.path, ()))

    def indices(self, path: str) -> np.ndarray:
        """Selected indices into the flattened variable, int64 and rising.

        Raises:
          KeyError: the model has no variable of that path.
        """
        if path in self.masks:
            return self.masks[path]
        size = next((weight.size for weight in self.weights if weight.path == path), None)
        if size is None:
            raise KeyError(f"the model has no variable {path!r}")
        return np.arange(size if path in self._whole else 0, dtype=np.int64)

    def optimizer(self, optimizer: Any) -> Any:
        """The optimizer that trains this selection.

        Args:
          optimizer: any tf_keras optimizer.

        Returns:
          The same optimizer where only whole variables train, else a `tfmt.GradientMask` around it.

        Raises:
          RequestError: an optimizer of Keras 3.
        """
        if not self.masks:
            check_optimizer(optimizer)
            return optimizer
        return GradientMask(optimizer, self.masks)

    def check_optimizer(self, optimizer: Any) -> None:
        """Refuses an optimizer that would train other weights than these; the model calls it before it trains.

        Args:
          optimizer: a tf_keras optimizer; a `LossScaleOptimizer` is looked through.

        Raises:
          RequestError: it does not carry just the masks of this selection, or has begun with other variables.
        """
        inner = within_loss_scale(optimizer)
        if not isinstance(inner, GradientMask):
            if self.masks:
                raise RequestError(
                    f"mode={self.mode} selects single weights, and this optimizer would move their whole variables: "
                    "compile with selection.optimizer(...) around it. Received: "
                    f"optimizer={type(inner).__name__}"
                )
            unknown = first_unknown(inner, self.model.trainable_weights)
            if unknown is not None:
                raise RequestError(
                    f"this optimizer has begun with another selection and has no state for {variable_path(unknown)}: "
                    "compile with a new one"
                )
            return
        # An empty mask of a variable that does not train anyway says nothing.
        masks = {path: each for path, each in inner.masks.items() if len(each) or path in self._whole}
        if self.masks.keys() != masks.keys() or any(
            not np.array_equal(each, masks[path]) for path, each in self.masks.items()
        ):
            raise RequestError(
                "this optimizer selects other weights than the model's last tfmt.select: compile with the "
                f"selection.optimizer(...) of what that returned, {self!r}"
            )

    def save(self, file: str | Path) -> str:
        """Writes which weights are selected, for `mask("...")` in an expression, as safetensors.

        Of a variable `<name>.indices` (int64, rising, into the flattened tensor as PyTorch stores it); the names of
        those that are selected whole are in the file's metadata.

        Args:
          file: where to.

        Returns:
          sha256 of the content.

        Raises:
          RunError: the disk is full, or the file cannot be written.
        """
        return write_selection(check_path(file, "file"), self.weights, self.masks, self._whole, {})

    def __repr__(self) -> str:
        tuned = f"{self.tuned:,} weights = {self.percent:.4f} % of the encoder"
        return f"<tfmt.Selection {self.mode}: {tuned}, head {self.head:,}>"

    def _repr_html_(self) -> str:
        """A map of what trains, for notebooks."""
        return format_map([(w.block, w.sublayer, w.size, self.count(w)) for w in self.weights], repr(self)[1:-1])

    def summary(self) -> str:
        """A table by sublayer: weights, selected weights, share."""
        rows = []
        for sublayer in SUBLAYERS:
            weights = [weight for weight in self.weights if weight.sublayer == sublayer]
            size, selected = sum(w.size for w in weights), sum(self.count(w) for w in weights)
            if size:
                rows.append((sublayer, size, (selected, selected)))
        return format_summary(rows, (self.tuned, self.tuned), self.total - self.head, self.head)


def select(
    model: Any,
    what: str = "",
    *,
    mode: str = "",
    layers: str = "all",
    mask_size: int | None = None,
    mask_fraction: float | None = None,
    outlier_pool: str = "layernorm",
    budget: str = "",
    fisher: Mapping[str, np.ndarray] | str | Path | None = None,
    gradient: Mapping[str, np.ndarray] | None = None,
    tuned: Mapping[str, np.ndarray] | None = None,
    union: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Selection:
    """Makes a model train exactly the weights of an expression or a mode, and its classifier; selected = trains.

    Sublayers get their `trainable` flags, and `model.trainable_variables` is from then on exactly the variables that
    hold a selected weight. Select before `compile`: Keras reads the set there.

    Args:
      model: a TFBert model with a sentence or token head, from `tfmt.load_bert` or from transformers.
      what: an expression, as docs/selections.md describes them, or the name of a mode.
      mode: one of `tfmt.spec.MODES`, where no expression is given.
      layers: `all`, or 0-based blocks: `5`, `0-3`, `0,5,11`.
      mask_size: weights per LayerNorm for `outliers` and `outliers_control`.
      mask_fraction: part of the feed-forward LayerNorms' weights for `fisher` and `fisher_control`.
      outlier_pool: `layernorm`, `gamma` or `beta`: what the outliers of a LayerNorm are sought in.
      budget: what `budget` in the expression is: a number of weights, or percent of the encoder, `0.5%`.
      fisher: for `fisher`, {path: Fisher information of the variable's shape}, or a run's folder that holds it.
      gradient: for the scores `gradient`, `sensitivity` and `rgn`, {path: mean gradient of the variable's shape}.
      tuned: for the score `change`, {path: the variable's value after full fine-tuning}.
      union: for `fisher` instead of a fraction, {path: indices} as `tfmt.selection.stored.unite_masks` gives them, or
        any masks of the feed-forward LayerNorms as `tfmt.GradientMask` takes them.
      seed: decides what is drawn.

    Returns:
      A `Selection`; its `optimizer(...)` wraps an optimizer where single weights are selected.

    Raises:
      RequestError: an expression that does not fit the model, an unknown mode, a value that `RunSpec` would not take,
        an argument that means nothing for the mode, a model of another kind, a block out of range, a mask or a
        measured array that does not fit or is missing.

    Example:
      >>> import tfmt
      >>> model = tfmt.load_bert("demo", num_labels=2, seed=0)
      >>> tfmt.select(model, "attention.query.bias@3-last + layernorm.gamma@even").tuned
      3456
      >>> tfmt.select(model, mode="layernorm").tuned
      9216
    """
    mode, expression = _read_what(what, mode)
    settings = _check_settings(
        mode, fisher=fisher, union=union, seed=seed, layers=layers, mask_size=mask_size, mask_fraction=mask_fraction,
        outlier_pool=outlier_pool, select=expression, budget=budget,
    )  # fmt: skip
    seed = settings.pop("seed")
    adopt(model)
    weights = weights_of(model)
    known = Known(
        gradient=_measured("gradient", gradient, weights),
        squares=_measured("squares", None if fisher is None else _read_importance(fisher, weights), weights),
        tuned=_measured("tuned", tuned, weights),
    )
    united = None
    if union is not None:
        candidates = plan_mode(weights, "layernorm_feedforward", layers=layers).step.support.parts
        united = check_union(union, [weight for weight in weights if weight.path in candidates])
    plan = plan_mode(
        weights, mode, heads=model.config.num_attention_heads, union=united,
        given=lambda kind, text: read_given(kind, text, weights, None), **settings,
    )  # fmt: skip
    return apply_plan(model, mode, plan, seed=seed, known=known)


def apply_plan(
    model: Any, mode: str, plan: Plan, *, seed: int, known: Known, chosen: Chosen | None = None
) -> Selection:
    """Makes a model train what a plan selects.

    Args:
      model: a TFBert model with tfmt's own sublayers.
      mode: the mode's name, for messages.
      plan: of this model.
      seed: decides what is drawn.
      known: what scores need but the model's own values, which are read from it.
      chosen: what the plan selects, where that is known.

    Raises:
      RequestError: something that a score needs is missing, or the model is no BERT.
    """
    variables = model.all_weights
    weights = weights_of(model)
    missing = [weight.path for weight in weights if weight.path not in variables]
    if missing or len(variables) != len(weights):
        raise RequestError(f"the model's variables are not those of a BERT, first: {(missing or ['?'])[0]}")
    if chosen is None:
        found = {kind: _needed_by(plan, kind, getattr(known, kind)) for kind in _MEASURED}
        values = known.values or (lambda path: variables[path].numpy())
        chosen = choose(plan, seed=seed, known=Known(values, **found))
    selection = Selection(model, mode, plan, chosen)
    model.train_only(frozenset(selection.paths), selection.check_optimizer)
    return selection


# {what is measured: (the argument that gives it, what it is)}
_MEASURED = {
    "gradient": ("gradient", "the mean gradient of its variables"),
    "squares": ("fisher", "the Fisher information of its variables"),
    "tuned": ("tuned", "the values of its variables after full fine-tuning"),
}


def _needed_by(plan: Plan, kind: str, measured: Mapping[Any, Read]) -> dict[Any, Read]:
    """What a plan needs of a kind, by the options of the scores that need it."""
    argument, what = _MEASURED[kind]
    for key in plan.needed(kind):
        if key not in measured:
            raise RequestError(
                f"{plan.expression} needs {what}: give {argument}=... with it, or train it with tfmt.fine_tune or "
                "tfmt-train, which measure it"
            )
    return {key: measured[key] for key in plan.needed(kind)}


class _Anyhow(dict[Any, Read]):
    """What was measured, for any options of the score that asks for it: who gives it knows how it came about."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, key: Any) -> Read:
        return self._read

    def __contains__(self, key: object) -> bool:
        return True


def _measured(kind: str, arrays: Mapping[str, np.ndarray] | None, weights: Sequence[Weight]) -> Mapping[Any, Read]:
    if arrays is None:
        return {}
    argument, what = _MEASURED[kind]
    checked = _check_arrays(argument, arrays, weights)

    def read(path: str) -> np.ndarray:
        if path not in checked:
            raise RequestError(f"the selection needs {what}: give {argument}=... with the values of {path}")
        return checked[path]

    return _Anyhow(read)


def _read_what(what: str, mode: str) -> tuple[str, str]:
    """(mode, expression) of what was given by position or by name."""
    if not isinstance(what, str):
        raise RequestError(f"a selection is a text: an expression, or the name of a mode. Received: {what!r}")
    if what and mode:
        raise RequestError(f"give an expression or mode={mode}, not both")
    if what in MODES and what != "custom":
        return what, ""
    return ("custom", what) if what else (mode, "")


def _check_settings(mode: str, *, fisher: Any, union: Any, **settings: Any) -> dict[str, Any]:
    """The settings of `select`, as a spec would have them.

    Raises:
      RequestError: a value that no spec takes, or one that means nothing for the mode.
    """
    checked = check_settings(mode=mode, **settings)
    del checked["mode"]
    sources = {"fisher": fisher is not None, "union": union is not None}
    given = (name for name, value in checked.items() if value != RunSpec.model_fields[name].default)
    idle = find_idle(given, mode, select=settings["select"])
    if idle is None and mode not in ("fisher", "custom"):
        idle = next((name for name, given in sources.items() if given), None)
    if idle is not None:
        raise RequestError(f"{idle} means nothing for mode={mode}; leave it out")
    if mode == "custom" and union is not None:
        raise RequestError('union means nothing for an expression, in which mask("...") takes a file of indices')
    if all(sources.values()):
        raise RequestError("mode=fisher takes fisher or union, not both: a union asks for no Fisher information")
    return checked


def _read_importance(fisher: Any, weights: Sequence[Weight]) -> Mapping[str, np.ndarray]:
    """The Fisher information by path, out of a run's folder or as it was given."""
    return fisher if isinstance(fisher, Mapping) else read_fisher(check_path(fisher, "fisher"), weights)


def _check_arrays(name: str, arrays: Any, weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Arrays by path, each of its variable's shape."""
    if not isinstance(arrays, Mapping):
        raise RequestError(f"{name} must be {{variable path: an array of its shape}}. Received: {name}={arrays!r}")
    shapes = {weight.path: weight.shape for weight in weights}
    checked = {}
    for path, values in arrays.items():
        array = as_array(values)
        if path not in shapes:
            raise RequestError(f"{name} has values of {path!r}, and the model has no such variable")
        if array.shape != shapes[path] or array.dtype.kind not in "fiu":
            raise RequestError(
                f"{name} has a number for each weight: of {path} an array of the variable's shape, {shapes[path]}. "
                f"Received: type {array.dtype} and shape {array.shape}"
            )
        checked[path] = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    return checked
