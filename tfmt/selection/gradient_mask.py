"""Train single weights: an optimizer that moves the selected weights of a variable and no others.

The selected weights of the masked variables are gathered into short vectors, the inner optimizer updates those vectors
as it would any variable, and the result is scattered back. So slots, clipping norms, weight decay and the sum over
replicas see nothing but selected weights, without a line written for a particular optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfmt.bert.vocabulary import variable_path
from tfmt.errors import RequestError
from tfmt.selection.inner_optimizers import (
    ELEMENTWISE,
    advance,
    check_inner,
    count_in_graph,
    refuse_python_state,
    slots_of,
    state_of,
    variables_of,
)
from tfmt.selection.masks import MaskDigest, check_fit, check_masks, unknown_path
from tfmt.selection.vectors import (
    Masked,
    Vector,
    join_gradients,
    keep_members,
    load_vectors,
    make_vectors,
    read_slots,
    select_gradient,
    split_gradient,
    store_vectors,
)


@keras.utils.register_keras_serializable(package="tfmt")
class GradientMask(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer so that only the selected weights of some variables train.

    Selected = trains. In a variable that `masks` names, the selected weights get exactly the update that the inner
    optimizer gives to a vector of just those weights, and every other weight stays bit-identical. A variable that
    `masks` does not name trains whole. Optimizer state, clipping norms, weight decay and the sum over replicas
    cover selected (and wholly trained) weights only; NaN or inf in an unselected gradient has no effect.

    The model's variables are the only truth about a weight: `load_weights` or an assignment by hand is respected by
    the next step. For float16 put this optimizer inside `LossScaleOptimizer`, as `model.compile` does by itself.

    Args:
      optimizer: a tf_keras optimizer that has not been built yet (not `legacy`, not Keras 3).
      masks: {variable path: what trains in it}, each either a 1-D sequence of distinct indices into the flattened
        variable, or a boolean array of the variable's shape, True where a weight trains. The path is the variable's
        name without `:0`, and in a BERT model without the model's own name:
        `bert/encoder/layer_._0/output/LayerNorm/gamma`. A mask may be empty as long as another is not.

    Raises:
      RequestError: for an optimizer of another kind or a malformed mask at once; for an unknown path, an index out of
        range, a mask of another shape or a variable with a constraint in `build`, which the first step calls.

    Example:
      >>> import tfmt
      >>> import tensorflow as tf, tf_keras as keras
      >>> table = tf.Variable([[1.0, 2.0], [3.0, 4.0]], name="table")
      >>> bias = tf.Variable([1.0], name="bias")
      >>> optimizer = tfmt.GradientMask(keras.optimizers.SGD(0.5), {"table": [1, 2]})
      >>> optimizer.minimize(lambda: tf.reduce_sum(table) + bias[0], [table, bias])
      >>> print(table.numpy().tolist(), bias.numpy().tolist())  # bias has no mask: it trains whole
      [[1.0, 1.5], [2.5, 4.0]] [0.5]

    References:
      [AkbarTajari et al., 2022](https://arxiv.org/abs/2302.00378) tune single LayerNorm weights this way.
    """

    # Optimizer.__init__ would make a second `iterations`. Nothing is tracked by itself: scratch vectors must not be
    # saved, and the inner optimizer is tracked by hand below.
    @tf.__internal__.tracking.no_automatic_dependency_tracking
    def __init__(self, optimizer: Any, masks: Mapping[str, Any]) -> None:
        check_inner(optimizer, GradientMask)
        self.name = "GradientMask"
        self._optimizer = optimizer
        self._selected, self._shapes = check_masks(masks)
        self._vectors: list[Vector] = []
        self._whole: list[Any] = []
        self._masked_of: dict[Any, Masked] = {}
        # Others (LossScaleOptimizer, Model.fit) read these from every optimizer.
        self._mesh = optimizer._mesh
        self._run_with_dtensor = optimizer._run_with_dtensor
        self._distribution_strategy = optimizer._distribution_strategy
        self.jit_compile = optimizer.jit_compile
        self._track_trackable(optimizer, "optimizer")
        self._track_trackable(MaskDigest(self._selected), "masks")

    @property
    def inner_optimizer(self) -> Any:
        """The optimizer that updates the selected weights."""
        return self._optimizer

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """{variable path: ascending int64 indices of the weights that train, in the flattened variable}."""
        return {path: indices.copy() for path, indices in self._selected.items()}

    def build(self, var_list: Iterable[Any]) -> None:
        """Makes the inner optimizer's state: slots for selected weights, and for variables without a mask.

        Args:
          var_list: the variables that will train; has to hold every masked one.

        Raises:
          RequestError: if a mask does not fit these variables.
        """
        if self._built:
            return
        masked: dict[str, Any] = {}
        whole = []
        for variable in var_list:
            path = variable_path(variable)
            if path not in self._selected:
                whole.append(variable)
            elif path in masked:
                raise RequestError(f"two variables are called {path}: give them different names to mask one of them.")
            else:
                masked[path] = variable
        for path in self._selected:
            if path not in masked:
                raise RequestError(unknown_path(path, [variable_path(variable) for variable in whole]))
            check_fit(path, masked[path], self._selected[path], self._shapes[path])

        inner = self._optimizer
        decays = {path: inner._use_weight_decay(variable) for path, variable in masked.items()}
        shared = type(inner) in ELEMENTWISE and not inner.clipnorm and not inner.use_ema
        vectors = make_vectors(masked, self._selected, decays if shared else {path: path for path in masked})

        undecayed = [variable for variable in whole if not inner._use_weight_decay(variable)]
        undecayed += [vector.values for vector in vectors if not decays[vector.members[0].path]]
        # What excluded a variable, by its name or itself, has to exclude its vector, and no other vector.
        inner.exclude_from_weight_decay(var_list=undecayed)
        inner.build([vector.values for vector in vectors] + whole)
        count_in_graph(inner)
        # Extended, not assigned: Keras would wrap, track and save a list that is assigned outside the constructor.
        self._vectors.extend(vectors)
        self._whole.extend(whole)
        for vector in vectors:
            for member in vector.members:
                self._masked_of[self._var_key(member.variable)] = member
                self._masked_of[self._var_key(member.indices)] = member

    # Keras's own optimizers are not rewritten by AutoGraph either; it would only lengthen the first step.
    @tf.autograph.experimental.do_not_convert
    def aggregate_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Takes the selected part of each gradient, then sums over replicas.

        `LossScaleOptimizer` calls this before it looks for inf and NaN: those of unselected weights are gone by then.

        Args:
          grads_and_vars: (gradient, variable) pairs.

        Returns:
          Pairs for `apply_gradients(..., skip_gradients_aggregation=True)`. The gradient of a masked variable is a
          vector of its selected weights; such a pair's second part tells `apply_gradients` which variable it is of.
        """
        pairs = self._select(list(grads_and_vars))
        if self._distribution_strategy.num_replicas_in_sync == 1:
            return pairs
        # Whole vectors are summed, because replicas exchange tensors of a fixed size only, and few of them.
        gradients, whole = self._sort(pairs)
        joined = [(join_gradients(vector, gradients), vector.values) for vector in self._vectors]
        summed = list(self._optimizer.aggregate_gradients(joined + whole))
        selected = []
        for vector, (total, _) in zip(self._vectors, summed, strict=False):
            parts = split_gradient(vector, total)
            selected += [(parts[member.path], member.indices) for member in vector.members if member.path in gradients]
        return selected + summed[len(joined) :]

    @tf.autograph.experimental.do_not_convert
    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Moves selected weights, and variables without a mask, by one step of the inner optimizer.

        Args:
          grads_and_vars: (gradient, variable) pairs, or what `aggregate_gradients` returned. A gradient may be dense,
            `tf.IndexedSlices`, or None, which leaves its variable alone.
          name: name scope of the update; the inner optimizer's name by default.
          skip_gradients_aggregation: True if the gradients are summed over replicas already.
          **kwargs: `experimental_aggregate_gradients`, the older name of the opposite.

        Returns:
          `iterations`, after the step.
        """
        pairs = list(grads_and_vars)
        if not pairs:
            return self._optimizer.apply_gradients(pairs, name=name)
        skip = skip_gradients_aggregation or not kwargs.pop("experimental_aggregate_gradients", True)
        pairs = self._select(pairs) if skip else self.aggregate_gradients(pairs)

        gradients, whole = self._sort(pairs)
        joined = [(join_gradients(vector, gradients), vector.values) for vector in self._vectors]

        # Of these vectors only a part has a gradient: what Keras does with a variable without one is nothing at all.
        partly = [v for v in self._vectors if 0 < sum(m.path in gradients for m in v.members) < len(v.members)]
        slots = [slots_of(self._optimizer, vector.values) for vector in partly]
        before: dict[Any, Any] = {}

        def start(strategy: Any) -> None:
            load_vectors(strategy, self._vectors)
            advance(strategy, self._optimizer)
            before.update(read_slots(strategy, [slot for own in slots for slot in own]))

        def finish(strategy: Any) -> None:
            for vector, own in zip(partly, slots, strict=True):
                keep_members(strategy, vector, gradients, own, before)
            store_vectors(strategy, self._vectors, gradients)

        merge_call = tf.__internal__.distribute.interim.maybe_merge_call
        merge_call(start, self._distribution_strategy)
        with refuse_python_state(self._optimizer):
            iterations = self._optimizer.apply_gradients(joined + whole, name=name, skip_gradients_aggregation=True)
        merge_call(finish, self._distribution_strategy)
        return iterations

    def _select(self, pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Replaces (gradient, masked variable) by (its selected part, the variable's indices)."""
        try:
            with tf.init_scope():
                self.build([variable for _, variable in pairs])
        except RequestError as error:
            error.ag_pass_through = True  # type: ignore[attr-defined]  # or AutoGraph makes a StagingError of it
            raise
        selected = []
        for gradient, variable in pairs:
            member = self._masked_of.get(self._var_key(variable))
            if gradient is None or member is None or self._var_key(variable) == self._var_key(member.indices):
                selected.append((gradient, variable))
                continue
            part = select_gradient(gradient, variable.shape, tf.convert_to_tensor(member.indices))
            selected.append((part, member.indices))
        return selected

    def _sort(self, pairs: Iterable[tuple[Any, Any]]) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
        """Splits what `_select` returned into {path: selected gradient} and the pairs of variables without a mask."""
        gradients: dict[str, Any] = {}
        whole = []
        for gradient, variable in pairs:
            member = self._masked_of.get(self._var_key(variable))
            if member is None:
                whole.append((gradient, variable))
            elif gradient is not None:
                gradients[member.path] = gradient
        return gradients, whole

    def assign_masks(self, masks: Mapping[str, Any]) -> None:
        """Selects other weights without tracing a step again, and resets the state, which belonged to the old ones.

        Args:
          masks: as in the constructor, for the same variables. Where the inner optimizer treats all weights alike (see
            `inner_optimizer`), weights may move from one variable to another as long as their number stays; with
            `clipnorm`, `use_ema` or another optimizer each variable has to keep its number.

        Raises:
          RequestError: if the masks fit only a new GradientMask.
        """
        selected, shapes = check_masks(masks)
        if set(selected) != set(self._selected):
            differing = ", ".join(sorted(set(selected) ^ set(self._selected)))
            raise RequestError(
                f"assign_masks expects masks for the same variables; make a new GradientMask. Differing: {differing}."
            )
        for vector in self._vectors:
            for member in vector.members:
                check_fit(member.path, member.variable, selected[member.path], shapes[member.path])
            size = sum(selected[member.path].size for member in vector.members)
            if size != vector.values.shape[0]:
                raise RequestError(
                    "assign_masks expects as many selected weights as before; make a new GradientMask. Received: "
                    f"{size} instead of {vector.values.shape[0]} in {', '.join(each.path for each in vector.members)}."
                )
        # In place, because MaskDigest and this object share the dictionaries.
        self._selected.update(selected)
        self._shapes.update(shapes)
        with self._distribution_strategy.scope():
            for vector in self._vectors:
                for member in vector.members:
                    member.indices.assign(selected[member.path])
        self.reset()

    def reset(self) -> None:
        """Sets `iterations` and all state to what they were before the first step, without tracing a step again.

        The learning rate is a setting, not state: it stays. The model's weights stay, too.
        """
        inner = self._optimizer
        with self._distribution_strategy.scope():
            # The optimizer's own class knows best how its slots start: not all of them at zero.
            config = inner.get_config()
            if isinstance(inner._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
                config["learning_rate"] = inner._learning_rate  # a user's own schedule need not be registered
            fresh = type(inner).from_config(config)
            if self._built:
                load_vectors(self._distribution_strategy, self._vectors)
                fresh.build([vector.values for vector in self._vectors] + self._whole)
            for variable, start in zip(state_of(inner), state_of(fresh), strict=True):
                variable.assign(start.numpy())

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Replaces trained weights by their moving averages, if the inner optimizer keeps those (`use_ema`).

        Args:
          var_list: the model's variables that train.
        """
        if not (self.use_ema and self._built):
            return
        var_list = list(var_list)
        members = [self._masked_of.get(self._var_key(variable)) for variable in var_list]
        whole = [variable for variable, member in zip(var_list, members, strict=True) if member is None]
        self._optimizer.finalize_variable_values([vector.values for vector in self._vectors] + whole)
        moved = [member.path for member in members if member is not None]
        store_vectors(self._distribution_strategy, self._vectors, moved)

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Excludes variables from weight decay, masked or not; see `keras.optimizers.Optimizer`."""
        self._optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)

    def get_config(self) -> dict[str, Any]:
        """The inner optimizer's configuration and the masks, as plain lists of indices."""
        return {
            "optimizer": keras.optimizers.serialize(self._optimizer),
            "masks": {path: indices.tolist() for path, indices in self._selected.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> GradientMask:
        """Makes the optimizer that `get_config` described, without state."""
        optimizer = config["optimizer"]
        if isinstance(optimizer, Mapping):
            optimizer = keras.optimizers.deserialize(
                dict(optimizer), custom_objects=custom_objects, use_legacy_optimizer=False
            )
        return cls(optimizer, config["masks"])

    @property
    def iterations(self) -> Any:
        """Number of steps so far."""
        return self._optimizer.iterations

    @iterations.setter
    def iterations(self, variable: Any) -> None:
        self._optimizer.iterations = variable

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate; under a schedule, that of the last step."""
        return self._optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self._optimizer.learning_rate = learning_rate

    @property
    def use_ema(self) -> bool:
        """Whether the inner optimizer keeps moving averages."""
        return self._optimizer.use_ema

    @property
    def _variables(self) -> list[Any]:
        """What the base class's `variables`, `set_weights`, `save_own_variables` and `load_own_variables` go by.

        `iterations` and the inner optimizer's state; the masks and the model's weights are not among them.
        """
        return variables_of(self._optimizer)

    @property
    def _built(self) -> bool:
        return getattr(self._optimizer, "_built", False)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        if save_type != "checkpoint":
            # A SavedModel revives any optimizer as Keras's own stand-in, so it has to look like one; nor could it
            # trace the check of the masks.
            return dict(self._optimizer._trackable_children(save_type, **kwargs))
        return dict(super()._trackable_children(save_type, **kwargs))
