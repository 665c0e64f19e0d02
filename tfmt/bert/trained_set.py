"""What tfmt adds to a Keras model so that an exact set of its variables trains, and nobody changes that set unseen."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfmt.bert.configs import shape_of
from tfmt.bert.vocabulary import list_weights, variable_path
from tfmt.errors import RequestError


class TrainedSet:
    """A mixin for TFBert models: `trainable_weights` is what `tfmt.select` said, and training anything else is refused.

    Attributes of a model that has it:
      _selected_paths: paths of the variables that hold a selected weight; None before any selection.
      _optimizer_check: refuses an optimizer that would train something else than the selection; None for any.
    """

    _selected_paths: frozenset[str] | None = None
    _optimizer_check: Callable[[Any], None] | None = None
    _flagged_paths: frozenset[str] = frozenset()
    _leaf_flags: tuple[tuple[Any, bool], ...] = ()
    _places: Mapping[str, int] = {}
    _head_name = "sentence"

    @property
    def all_weights(self) -> dict[str, Any]:
        """Every variable by its path, in the model's own order."""
        return {variable_path(variable): variable for variable in self.weights}

    @property
    def weights(self) -> list[Any]:
        """All variables in the order of the architecture; Keras's own order changes with the sublayers' flags."""
        found = super().weights  # type: ignore[misc]
        if self._selected_paths is None:
            return found
        return sorted(found, key=lambda variable: self._places.get(variable_path(variable), len(found)))

    @property
    def trainable_weights(self) -> list[Any]:
        """Exactly the variables that hold selected weights, whatever the sublayers' flags would allow."""
        if self._selected_paths is None:
            return super().trainable_weights  # type: ignore[misc]
        if not self.trainable:
            return []
        return [v for v in self.weights if variable_path(v) in self._selected_paths]

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All other variables."""
        if self._selected_paths is None:
            return super().non_trainable_weights  # type: ignore[misc]
        trained = {id(variable) for variable in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]

    @property
    def trainable(self) -> bool:
        """False stops the whole model from training; True gives the selection back."""
        return self._trainable  # type: ignore[attr-defined]

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        if value:
            for layer, flag in self._leaf_flags:
                layer.trainable = flag

    def train_only(self, paths: frozenset[str], optimizer_check: Callable[[Any], None]) -> None:
        """Makes `trainable_weights` exactly the variables of these paths, and sets the sublayers' flags to match.

        Args:
          paths: of the variables that hold a selected weight.
          optimizer_check: called with the optimizer before training; raises where it would train something else.
        """
        self._selected_paths, self._optimizer_check = paths, optimizer_check
        flags = []
        for layer in self._flatten_layers(include_self=False):  # type: ignore[attr-defined]
            # A frozen container would silence its children, so only layers without children get a flag.
            if layer.weights and next(layer._flatten_layers(include_self=False), None) is None:
                flags.append((layer, any(variable_path(variable) in paths for variable in layer.weights)))
        config = self.config  # type: ignore[attr-defined]
        weights = list_weights(shape_of(config.to_dict()), self._head_name, config.num_labels)
        # Past Keras, which would track, and save, what it is told of.
        object.__setattr__(self, "_leaf_flags", tuple(flags))
        object.__setattr__(self, "_places", {weight.path: place for place, weight in enumerate(weights)})
        self.trainable = True
        self._flagged_paths = self._paths_by_flags()
        if self._is_compiled:  # type: ignore[attr-defined]
            self._reset_compile_cache()  # type: ignore[attr-defined]  # what was compiled for another selection

    def _paths_by_flags(self) -> frozenset[str]:
        """What Keras would train by the layers' flags alone."""
        return frozenset(map(variable_path, super().trainable_weights))  # type: ignore[misc]

    # ---- what is refused -------------------------------------------------------------------------------------------

    def compile(self, optimizer: Any = "rmsprop", *arguments: Any, **named: Any) -> Any:
        """As in Keras; refuses an optimizer, and flags of sublayers, that do not fit the selection."""
        self._check_flags()
        # A name, such as the default, may stand there for a model that is only evaluated; `fit` refuses it.
        if not isinstance(optimizer, str | Mapping):
            self._check_optimizer(optimizer)
        return super().compile(optimizer, *arguments, **named)  # type: ignore[misc]

    def fit(self, *arguments: Any, **named: Any) -> Any:
        """As in Keras; refuses flags of sublayers that do not fit the selection."""
        # Here, because inside Keras sets the flags of the sublayers to what they were in `compile`.
        self._check_flags()
        return super().fit(*arguments, **named)  # type: ignore[misc]

    def make_train_function(self, force: bool = False) -> Any:
        """As in Keras; refuses an optimizer that does not fit the selection, where there is no such function yet."""
        if force or self.train_function is None:  # type: ignore[attr-defined]
            self._check_optimizer(self.optimizer)  # type: ignore[attr-defined]
        return super().make_train_function(force)  # type: ignore[misc]

    def train_step(self, data: Any) -> Any:
        """As in Keras; refuses an optimizer that does not fit the selection."""
        self._check_optimizer(self.optimizer)  # type: ignore[attr-defined]
        return super().train_step(data)  # type: ignore[misc]

    @tf.autograph.experimental.do_not_convert
    def _check_optimizer(self, optimizer: Any) -> None:
        """Refuses an optimizer that would train something else than the selection."""
        if self._optimizer_check is None:
            return
        try:
            self._optimizer_check(optimizer)
        except RequestError as error:
            error.ag_pass_through = True  # type: ignore[attr-defined]  # or AutoGraph makes a StagingError of it
            raise

    def _check_flags(self) -> None:
        """Refuses flags of sublayers that were changed after the selection, and would change what trains in Keras."""
        if self._selected_paths is None or not self.trainable:
            return  # without `trainable` nothing trains, as was asked for
        now = self._paths_by_flags()
        silenced = (self._flagged_paths - now) & self._selected_paths
        if silenced or now - self._flagged_paths:
            layer = self._find_layer(silenced or now - self._flagged_paths, flag=not silenced)
            raise RequestError(
                f"{layer}.trainable was set to {not silenced} after tfmt.select, which alone decides what trains: "
                "call tfmt.select(...) again, with the mode and layers that are meant"
            )

    def _find_layer(self, paths: frozenset[str], *, flag: bool) -> str:
        """The outermost layer with this flag, below which some of these variables and no others lie, by its path."""
        for layer in self._flatten_layers(include_self=False):  # type: ignore[attr-defined]
            held = {variable_path(variable) for variable in layer.weights}
            if layer.trainable == flag and held & paths and (not flag or held <= paths):
                return posixpath.commonpath([path.rpartition("/")[0] for path in sorted(held)])
        return "a sublayer"  # one that was put in another's place, for example

    # ---- files whose order Keras takes from flags ------------------------------------------------------------------

    def save_weights(self, filepath: Any, *arguments: Any, **named: Any) -> Any:
        """As in Keras; an HDF5 file has the architecture's order, whatever is selected."""
        with _all_sublayers_trainable(self):
            return super().save_weights(filepath, *arguments, **named)  # type: ignore[misc]

    def load_weights(self, filepath: Any, *arguments: Any, **named: Any) -> Any:
        """As in Keras; see `save_weights`."""
        with _all_sublayers_trainable(self):
            return super().load_weights(filepath, *arguments, **named)  # type: ignore[misc]


@contextmanager
def _all_sublayers_trainable(model: Any) -> Iterator[None]:
    """Sets every sublayer's flag for a while: Keras orders the weights of a layer in an HDF5 file by these flags."""
    flags = [(layer, layer.trainable) for layer in model._flatten_layers()]
    try:
        for layer, _ in flags:
            layer._trainable = True
        yield
    finally:
        for layer, flag in flags:
            layer._trainable = flag
