"""`select`: makes a model train exactly a mode's weights."""

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
from tfmt.selection.modes import Plan, choose_weights, plan_mode
from tfmt.selection.stored import read_fisher
from tfmt.selection.summary import format_map, format_summary
from tfmt.spec import RunSpec, check_settings, find_idle


class Selection:
    """The weights of a model that train: selected = trains.

    Attributes:
      model: the model.
      mode: the mode's name.
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

    def __init__(self, model: Any, mode: str, plan: Plan, masks: dict[str, np.ndarray]) -> None:
        self.model = model
        self.mode = mode
        self.masks = masks
        none = np.zeros(0, np.int64)
        self.open_masks = {weight.path: masks.get(weight.path, none) for pool in plan.pools for weight in pool.weights}
        self.weights: tuple[Weight, ...] = weights_of(model)
        self._whole = frozenset(w.path for w in plan.whole) | {
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
                rows.append((sublayer, size, selected))
        return format_summary(rows, self.tuned, self.percent, self.head)


def select(
    model: Any,
    mode: str,
    *,
    layers: str = "all",
    mask_size: int | None = None,
    mask_fraction: float | None = None,
    outlier_pool: str = "layernorm",
    fisher: Mapping[str, np.ndarray] | str | Path | None = None,
    union: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> Selection:
    """Makes a model train exactly the weights of a mode, and its classifier; selected = trains.

    Sublayers get their `trainable` flags, and `model.trainable_variables` is from then on exactly the variables that
    hold a selected weight. Select before `compile`: Keras reads the set there.

    Args:
      model: a TFBert model with a sentence or token head, from `tfmt.load_bert` or from transformers.
      mode: one of `tfmt.spec.MODES`.
      layers: `all`, or 0-based blocks: `5`, `0-3`, `0,5,11`.
      mask_size: weights per LayerNorm for `outliers` and `outliers_control`.
      mask_fraction: part of the feed-forward LayerNorms' weights for `fisher` and `fisher_control`.
      outlier_pool: `layernorm`, `gamma` or `beta`: what the outliers of a LayerNorm are sought in.
      fisher: for `fisher`, {path: Fisher information of the variable's shape}, or a run's folder that holds it.
      union: for `fisher` instead of a fraction, {path: indices} as `tfmt.selection.stored.unite_masks` gives them, or
        any masks of the feed-forward LayerNorms as `tfmt.GradientMask` takes them.
      seed: decides the weights of `random` and of the controls.

    Returns:
      A `Selection`; its `optimizer(...)` wraps an optimizer where single weights are selected.

    Raises:
      RequestError: an unknown mode, a value that `RunSpec` would not take, an argument that means nothing for the mode,
        a model of another kind, a block out of range, a mask or Fisher information that does not fit.

    Example:
      >>> import tfmt
      >>> model = tfmt.load_bert("demo", num_labels=2, seed=0)
      >>> tfmt.select(model, mode="layernorm").tuned
      9216
    """
    settings = _check_settings(
        mode, fisher=fisher, union=union, seed=seed, layers=layers, mask_size=mask_size, mask_fraction=mask_fraction,
        outlier_pool=outlier_pool,
    )  # fmt: skip
    seed = settings.pop("seed")
    adopt(model)
    weights = weights_of(model)
    importance = None if fisher is None else _read_importance(fisher, weights)
    united = None
    if union is not None:
        candidates = plan_mode(weights, mode, layers=layers, mask_fraction=1.0).pools[0].weights
        united = check_union(union, candidates)
    plan = plan_mode(
        weights, mode, union_size=None if united is None else sum(map(len, united.values())), **settings
    )  # fmt: skip
    variables = model.all_weights
    missing = [weight.path for weight in weights if weight.path not in variables]
    if missing or len(variables) != len(weights):
        raise RequestError(f"the model's variables are not those of a BERT, first: {(missing or ['?'])[0]}")
    masks = choose_weights(
        plan,
        seed=seed,
        values=lambda path: variables[path].numpy(),
        importance=importance,
        union=united,
    )
    selection = Selection(model, mode, plan, masks)
    model.train_only(frozenset(selection.paths), selection.check_optimizer)
    return selection


def _check_settings(mode: str, *, fisher: Any, union: Any, **settings: Any) -> dict[str, Any]:
    """The settings of `select`, as a spec would have them.

    Raises:
      RequestError: a value that no spec takes, or one that means nothing for the mode.
    """
    checked = check_settings(mode=mode, **settings)
    del checked["mode"]
    sources = {"fisher": fisher is not None, "union": union is not None}
    idle = find_idle((name for name, value in checked.items() if value != RunSpec.model_fields[name].default), mode)
    if idle is None and mode != "fisher":
        idle = next((name for name, given in sources.items() if given), None)
    if idle is not None:
        raise RequestError(f"{idle} means nothing for mode={mode}; leave it out")
    if all(sources.values()):
        raise RequestError("mode=fisher takes fisher or union, not both: a union asks for no Fisher information")
    return checked


def _read_importance(fisher: Any, weights: Sequence[Weight]) -> Mapping[str, np.ndarray]:
    """The Fisher information by path, out of a run's folder or as it was given."""
    if not isinstance(fisher, Mapping):
        return read_fisher(check_path(fisher, "fisher"), weights)
    shapes = {weight.path: weight.shape for weight in weights}
    checked = {}
    for path, values in fisher.items():
        array = as_array(values)
        if path not in shapes:
            raise RequestError(f"fisher has values of {path!r}, and the model has no such variable")
        if array.shape != shapes[path] or array.dtype.kind not in "fiu":
            raise RequestError(
                f"fisher has a number for each weight: of {path} an array of the variable's shape, {shapes[path]}. "
                f"Received: type {array.dtype} and shape {array.shape}"
            )
        checked[path] = array
    return checked
