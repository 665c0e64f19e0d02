"""The modes: each row of the papers' tables as an expression of the language of selections. No TensorFlow here."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from tfmt import expressions
from tfmt.bert.vocabulary import Weight, list_weights
from tfmt.errors import RequestError
from tfmt.selection.plans import Given, OverfullError, Plan, make_plan
from tfmt.selection.stored import digest_masks, read_given, read_masks
from tfmt.spec import RunSpec, check_mode, check_settings, parse_layers
from tfmt.tasks import find_task

if TYPE_CHECKING:
    from tfmt.bert.configs import BertShape

# {mode: its expression}; `@` is where `layers` goes, and what else stands in braces is a setting.
EXPRESSIONS: dict[str, str] = {
    "full": "all@",
    "frozen": "none",
    "attention": "attention@",
    "feedforward": "feedforward@",
    "layernorm": "layernorm@",
    "layernorm_attention": "attention_layernorm@",
    "layernorm_feedforward": "feedforward_layernorm@",
    "bitfit": "all.bias@ + all.beta@",
    "random": "all@:random(100% of layernorm@)",
    "outliers": "layernorm{pool}@:far({mask_size}, per=module)",
    "outliers_control": "layernorm{pool}@:random({mask_size}, per=module)",
    "fisher": "feedforward_layernorm@:fisher({mask_percent}%, head=trained)",
    "fisher_control": "feedforward_layernorm@:random({mask_percent}%)",
}
_UNION = "union"  # stands for masks that are given as arrays


def write_mode(
    mode: str,
    *,
    layers: str = "all",
    mask_size: int | None = None,
    mask_fraction: float | None = None,
    outlier_pool: str = "layernorm",
) -> str:
    """A mode as an expression, for modes other than `custom`.

    Args:
      mode: one of `tfmt.spec.MODES`.
      layers: `all`, or 0-based blocks as in `tfmt.spec.parse_layers`.
      mask_size: weights per LayerNorm for `outliers` and `outliers_control`.
      mask_fraction: part of the feed-forward LayerNorms' weights for `fisher` and `fisher_control`.
      outlier_pool: `layernorm` pools gamma and beta of one LayerNorm; `gamma` or `beta` takes that vector alone.

    Example:
      >>> write_mode("outliers", layers="0-3", mask_size=16)
      'layernorm@0-3:far(16, per=module)'
    """
    percent = "" if mask_fraction is None else f"{Decimal(repr(mask_fraction)) * 100:f}"
    pool = "" if outlier_pool == "layernorm" else f".{outlier_pool}"
    text = EXPRESSIONS[mode].format(pool=pool, mask_size=mask_size, mask_percent=percent)
    return text.replace("@", "" if layers == "all" else f"@{layers}")


def write_union(folders: Sequence[str]) -> expressions.Node:
    """The union of what runs selected, as `fisher` with `fisher_from` trains it: `run("a") + run("b")`."""
    runs: list[expressions.Node] = [expressions.Call("run", folder) for folder in folders]
    return functools.reduce(lambda union, run: expressions.Pair("+", union, run), runs)


def plan_mode(
    weights: Sequence[Weight],
    mode: str,
    *,
    layers: str = "all",
    mask_size: int | None = None,
    mask_fraction: float | None = None,
    outlier_pool: str = "layernorm",
    union: Mapping[str, np.ndarray] | None = None,
    select: str = "",
    budget: str = "",
    heads: int = 1,
    given: Given | None = None,
) -> Plan:
    """The plan of a mode on a model.

    Args:
      weights: the model's table of weights.
      mode: one of `tfmt.spec.MODES`.
      layers: see `write_mode`.
      mask_size: see `write_mode`.
      mask_fraction: see `write_mode`.
      outlier_pool: see `write_mode`.
      union: for `fisher` with the masks of other runs, their indices by path.
      select: for `custom`, the expression.
      budget: for `custom`, what `budget` in it is.
      heads: attention heads of a block, for `custom`.
      given: reads what other runs and files select, for `custom`.

    Raises:
      RequestError: a value that no `RunSpec` takes, a mode without what it needs, a block that the model does not have,
        more weights than a pool holds, or an expression that does not fit the model.

    Example:
      >>> from tfmt.bert.configs import find_shape
      >>> from tfmt.bert.vocabulary import list_weights
      >>> plan_mode(list_weights(find_shape("bert-base-uncased"), "sentence", 2), "layernorm").tuned
      36864

    References:
      P1 tables 1, 3 and 4 (AkbarTajari et al., 2022); P2 (ValizadehAslani & Liang, 2024) for `fisher`;
      [Ben Zaken et al., 2022](https://arxiv.org/abs/2106.10199) for `bitfit`.
    """
    settings = check_settings(
        mode=mode, layers=layers, mask_size=mask_size, mask_fraction=mask_fraction, outlier_pool=outlier_pool
    )
    check_mode(mode, mask_size, mask_fraction, select, union=union is not None)
    if mode == "custom":
        return make_plan(expressions.split_label(select)[1], weights, heads, budget=budget, given=given)
    _check_blocks(weights, layers)
    del settings["mode"]
    if union is not None:
        masks = union
        return make_plan(f'mask("{_UNION}")', weights, heads, given=lambda *_: masks)
    try:
        return make_plan(write_mode(mode, **settings), weights, heads)
    except OverfullError as error:
        raise RequestError(
            f"mask_size must be at most {error.holds}, the weights to choose from. Received: mask_size={mask_size}"
        ) from None


def plan_spec(spec: RunSpec, weights: Sequence[Weight], heads: int, model_sha256: str | None) -> Plan:
    """The plan of a run, the selections of other runs that it names read.

    Args:
      spec: the run.
      weights: the model's table.
      heads: attention heads of a block.
      model_sha256: digest of the base model, which those runs must share; None leaves that unchecked.

    Raises:
      RequestError: as `plan_mode`; or a run or file that is named holds no selection that fits.
    """
    if spec.fisher_from:
        candidates = plan_mode(weights, "layernorm_feedforward", layers=spec.layers).step.support.parts
        table = [weight for weight in weights if weight.path in candidates]
        masks = {folder: read_masks(folder, table, model_sha256) for folder in spec.fisher_from}
        return make_plan(write_union(spec.fisher_from), weights, heads, given=lambda _, folder: masks[folder])
    return plan_mode(
        weights, spec.mode, layers=spec.layers, mask_size=spec.mask_size, mask_fraction=spec.mask_fraction,
        outlier_pool=spec.outlier_pool, select=spec.select, budget=spec.budget, heads=heads,
        given=lambda kind, text: read_given(kind, text, weights, model_sha256),
    )  # fmt: skip


def head_of(spec: RunSpec) -> str:
    """`sentence` or `tokens`: the kind of head of a run's task, told without its data."""
    if spec.task != "custom":
        return find_task(spec.task).head
    return "tokens" if spec.task_type == "tokens" else "sentence"


def plan_on_shape(spec: RunSpec, shape: BertShape) -> Plan:
    """The plan of a run from the sizes of its model alone, without weights and data.

    Raises:
      RequestError: as `plan_spec`.
    """
    weights = list_weights(shape, head_of(spec), 1)  # no selection has the classifier, however many classes there are
    return plan_spec(spec, weights, shape.num_attention_heads, None)


def list_full_runs(spec: RunSpec, plan: Plan) -> dict[tuple[Any, ...], RunSpec]:
    """The full fine-tunings that a run's `change` scores compare with: {(rate, epochs, checkpoint): its spec}.

    Each is an ordinary run, on the run's own data and seed, that keeps its weights. It is trained by Adam whatever the
    run's own optimizer is, so that an optimizer chooses no weights.
    """
    found = {}
    for rate, epochs, checkpoint in plan.needed("tuned"):
        own = {"mode": "full", "select": "", "budget": "", "learning_rate": rate, "epochs": epochs, "keep": "tuned",
               "keep_epoch": checkpoint, "frozen_prefix": "live", "early_stopping": 0, "optimizer": "adam",
               "weight_decay": 0.0, "clip_norm": 0.0}  # fmt: skip
        found[rate, epochs, checkpoint] = RunSpec.make(**spec.model_dump() | own)
    return found


def plan_digests(spec: RunSpec, plan: Plan) -> dict[str, str]:
    """What of a plan belongs into a run's id, beside its settings: what other runs or an expression select.

    An expression counts by its normal form, and by the number of examples where it has gradients measured.
    """
    if spec.fisher_from:
        return {
            "fisher_from": digest_masks({path: plan.step.support.indices(path) for path in plan.step.support.parts})
        }
    if spec.mode != "custom":
        return {}
    measured = plan.needed("gradient") or plan.needed("squares")
    told = f"{plan.normal_form}\non {spec.fisher_examples} examples" if measured else plan.normal_form
    return {"selection": hashlib.sha256(told.encode()).hexdigest()}


def _check_blocks(weights: Sequence[Weight], layers: str) -> None:
    """Refuses blocks that the model does not have."""
    chosen = parse_layers(layers)
    blocks = 1 + max((weight.block for weight in weights if weight.block is not None), default=-1)
    if chosen is not None and chosen[-1] >= blocks:
        raise RequestError(f"layers must be within 0-{blocks - 1}, the blocks of this model. Received: layers={layers}")
