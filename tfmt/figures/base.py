"""A model's weights for figures, whichever way the model is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfmt.bert.base_weights import BaseWeights
from tfmt.bert.configs import find_model, read_config, shape_of
from tfmt.bert.vocabulary import Weight, list_weights
from tfmt.errors import RequestError
from tfmt.runs.records import RECORD_FILE
from tfmt.tuned.load import read_tuned


def read_weights(model: Any) -> tuple[tuple[Weight, ...], Callable[[str], np.ndarray], str]:
    """The encoder's table of weights, what gives a variable's values by path, and a name.

    Args:
      model: `demo`, a hub name, a model's folder, the folder of a run that kept its weights, or a TFBert model from
        tfmt.

    Raises:
      RequestError: nothing of that name can be had, or a model that tfmt did not make.
    """
    if isinstance(model, str | Path):
        name = Path(model).name
        if (Path(model) / RECORD_FILE).is_file():
            tuned = read_tuned(model)
            values = tuned.read()
            return _encoder(tuned.weights), values.__getitem__, name
        folder = find_model(str(model), download=True)
        assert folder is not None
        weights = list_weights(shape_of(read_config(folder)), "tokens", 1)  # figures show no pooler
        return _encoder(weights), BaseWeights(folder, "tokens").read, name
    variables = getattr(model, "all_weights", None)
    if variables is None:
        raise RequestError(f"expected a model from tfmt.load_bert or load_tuned. Received: {type(model).__name__}")
    weights = list_weights(shape_of(model.config.to_dict()), "tokens", 1)
    return _encoder(weights), lambda path: variables[path].numpy(), model.name


def _encoder(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    return tuple(weight for weight in weights if weight.sublayer != "classifier")
