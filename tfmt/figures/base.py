"""A model's weights for figures, whichever way the model is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmt.bert.base_weights import BaseWeights
from tfmt.bert.configs import find_model, public_name, read_config, shape_of
from tfmt.bert.vocabulary import Weight, list_weights
from tfmt.errors import RequestError
from tfmt.runs.records import RECORD_FILE, Record
from tfmt.tuned.load import read_tuned


class ModelWeights(NamedTuple):
    """A model's weights as they are, and as they were before tfmt tuned them where that is known.

    Attributes:
      name: of the model or the run.
      table: the encoder's weights.
      states: what gives a variable's values by path, by what they are: `pre-trained` and `fine-tuned` of a run,
        `pre-trained` of `demo` and hub names, `as stored` of folders, `as given` of objects. The last is the model.
      record: of the run, if it is one.
    """

    name: str
    table: tuple[Weight, ...]
    states: dict[str, Callable[[str], np.ndarray]]
    record: Record | None = None

    @property
    def read(self) -> Callable[[str], np.ndarray]:
        """Gives a variable's values as they are."""
        return list(self.states.values())[-1]


def read_weights(model: Any) -> ModelWeights:
    """Finds a model's weights.

    Args:
      model: `demo`, a hub name, a model's folder, the folder of a run that kept its weights, or a TFBert model from
        tfmt.

    Raises:
      RequestError: nothing of that name can be had, or a model that tfmt did not make.
    """
    if isinstance(model, str | Path):
        if (Path(model) / RECORD_FILE).is_file():
            tuned = read_tuned(model)
            states = {"pre-trained": BaseWeights(tuned.base, tuned.head).read, "fine-tuned": tuned.read().__getitem__}
            return ModelWeights(tuned.record.run_id, _encoder(tuned.weights), states, tuned.record)
        folder = find_model(str(model), download=True)
        assert folder is not None
        base = BaseWeights(folder, "tokens")  # figures show no pooler
        weights = list_weights(shape_of(read_config(folder)), "tokens", 1)
        local = Path(model).is_dir()
        name = public_name(os.path.abspath(model) if local else str(model), local=local)
        state = "as stored" if local else "pre-trained"  # what a folder holds may have been tuned
        return ModelWeights(name, _encoder(weights), {state: base.read})
    variables = getattr(model, "all_weights", None)
    if variables is None:
        raise RequestError(f"expected a model from tfmt.load_bert or load_tuned. Received: {type(model).__name__}")
    weights = list_weights(shape_of(model.config.to_dict()), "tokens", 1)
    return ModelWeights(model.name, _encoder(weights), {"as given": lambda path: variables[path].numpy()})


def _encoder(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    return tuple(weight for weight in weights if weight.sublayer != "classifier")
