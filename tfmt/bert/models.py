"""Loading BERT models: Hugging Face's TFBert classes, filled from safetensors, with a head that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tensorflow as tf
import tf_keras as keras
import transformers
from pydantic import Field, model_validator
from tensorflow.python.saved_model import save_context
from tf_keras.src.mixed_precision.autocast_variable import enable_auto_cast_variables
from transformers.modeling_tf_outputs import TFSequenceClassifierOutput, TFTokenClassifierOutput

from tfmt.bert import forward
from tfmt.bert.base_weights import BaseWeights
from tfmt.bert.configs import ACTIVATIONS, find_model, read_config, shape_of
from tfmt.bert.trained_set import TrainedSet
from tfmt.bert.vocabulary import Weight, list_weights
from tfmt.errors import RequestError
from tfmt.quiet import find_devices, without_advice
from tfmt.spec import Checked, check_settings
from tfmt.words import counted

# Whether a model is being written as a SavedModel: then it computes as Hugging Face's does.
_AS_HUGGING_FACE: ContextVar[bool] = ContextVar("as_hugging_face", default=False)


@contextmanager
def _as_hugging_face(model: Any) -> Iterator[None]:
    """Has models compute with Hugging Face's own layers, so that a SavedModel of one is what TFBert's would be.

    tfmt's forward pass has gradients that no SavedModel can hold, and dropout that counts in variables of its own.
    """
    token = _AS_HUGGING_FACE.set(True)
    try:
        if model.bert._saved_model_inputs_spec is None:
            model(model.dummy_inputs, training=False)  # Keras writes no layer that was never called
        yield
    finally:
        _AS_HUGGING_FACE.reset(token)


class _Selectable(TrainedSet):
    """What tfmt adds to a TFBert model: an exact set of trained variables, and the lean forward pass."""

    _output: Any

    def _dropout(self, training: Any, inputs: Any) -> Any:
        """The dropout of this forward pass over `inputs`, (batch, ...)."""
        if not training:
            return forward.keep_all
        state = self._dropout_state  # type: ignore[attr-defined]
        return forward.Dropout.of_pass(state.seed, state.passes, tf.shape(inputs)[0])

    def run_prefix(self, inputs: Mapping[str, Any], blocks: int) -> tf.Tensor:
        """What the lowest blocks make of a text, without dropout: what `run_suffix` goes on from.

        Args:
          inputs: `input_ids`, `attention_mask`, `token_type_ids`, each (batch, length); the last two may be missing.
          blocks: how many blocks, from block 0.

        Returns:
          (batch, length, hidden); with all blocks of a sentence model (batch, 1, hidden), the first position.
        """
        input_ids = tf.convert_to_tensor(inputs["input_ids"])
        with self._in_compute_dtype():
            embedded = self._embed(input_ids, inputs, forward.keep_all)
            return self._run(inputs, embedded, range(blocks), forward.keep_all)

    def run_suffix(self, states: tf.Tensor, attention_mask: tf.Tensor, blocks: int, training: Any) -> tf.Tensor:
        """Logits, from what `run_prefix` returned for that many blocks."""
        drop = self._dropout(training, states)
        above = range(blocks, self.config.num_hidden_layers)  # type: ignore[attr-defined]
        with self._in_compute_dtype():
            return self._head_logits(self._run({"attention_mask": attention_mask}, states, above, drop), drop)

    def _in_compute_dtype(self) -> Any:
        """Variables read inside have the type that the model computes in, as Keras does it around `call`."""
        return enable_auto_cast_variables(self._compute_dtype_object)  # type: ignore[attr-defined]

    def _embed(self, input_ids: tf.Tensor, inputs: Mapping[str, Any], drop: Any) -> tf.Tensor:
        kinds = inputs.get("token_type_ids")
        kinds = tf.zeros_like(input_ids) if kinds is None else tf.convert_to_tensor(kinds)
        return forward.run_embeddings(self.bert, input_ids, kinds, drop=drop, dtype=self.compute_dtype)  # type: ignore[attr-defined]

    def _run(self, inputs: Mapping[str, Any], x: tf.Tensor, blocks: range, drop: Any) -> tf.Tensor:
        mask = inputs.get("attention_mask")
        mask = tf.ones(tf.shape(x)[:2], tf.int32) if mask is None else tf.convert_to_tensor(mask)
        first_only = self._head_name == "sentence"  # the last block's other positions reach no logit
        return forward.run_blocks(self.bert, x, mask, blocks, drop=drop, first_only=first_only)  # type: ignore[attr-defined]

    def _plain_inputs(self, input_ids: Any, named: dict[str, Any]) -> dict[str, Any] | None:
        """The three tensors that BERT needs, or None where the caller asks for something that only the library does."""
        inputs = {name: value for name, value in named.items() if value is not None}
        if isinstance(input_ids, Mapping):
            inputs |= {name: value for name, value in input_ids.items() if value is not None}
        elif isinstance(input_ids, list | tuple):
            if len(input_ids) > 3 or not all(map(tf.is_tensor, input_ids)):
                return None
            inputs |= dict(zip(("input_ids", "attention_mask", "token_type_ids"), input_ids, strict=False))
        elif input_ids is not None:
            inputs["input_ids"] = input_ids
        known = {"input_ids", "attention_mask", "token_type_ids", "labels", "return_dict"}
        config = self.config  # type: ignore[attr-defined]
        special = set(inputs) - known or config.output_attentions or config.output_hidden_states
        if special or "input_ids" not in inputs or inputs.get("return_dict", config.use_return_dict) is not True:
            return None
        return inputs

    def call(
        self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, position_ids: Any = None,
        head_mask: Any = None, inputs_embeds: Any = None, output_attentions: bool | None = None,
        output_hidden_states: bool | None = None, return_dict: bool | None = None, labels: Any = None,
        training: Any = False,
    ) -> Any:  # fmt: skip
        """As in Hugging Face: logits (batch, [length,] labels), and the loss where labels are given."""
        named = {
            "attention_mask": attention_mask, "token_type_ids": token_type_ids, "position_ids": position_ids,
            "head_mask": head_mask, "inputs_embeds": inputs_embeds, "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states, "return_dict": return_dict, "labels": labels,
        }  # fmt: skip
        library = _AS_HUGGING_FACE.get() or save_context.in_save_context()
        inputs = None if library else self._plain_inputs(input_ids, named)
        if inputs is None:
            return super().call(input_ids, **named, training=training)  # type: ignore[misc]
        input_ids = tf.convert_to_tensor(inputs["input_ids"])
        drop = self._dropout(training, input_ids)
        embedded = self._embed(input_ids, inputs, drop)
        states = self._run(inputs, embedded, range(self.config.num_hidden_layers), drop)  # type: ignore[attr-defined]
        logits = self._head_logits(states, drop)
        labels = inputs.get("labels")
        loss = None if labels is None else self.hf_compute_loss(labels=labels, logits=logits)  # type: ignore[attr-defined]
        return self._output(loss=loss, logits=logits)

    def save(self, *arguments: Any, **named: Any) -> Any:
        """As in Keras; what is written is Hugging Face's model."""
        with _as_hugging_face(self):
            return super().save(*arguments, **named)  # type: ignore[misc]

    def export(self, *arguments: Any, **named: Any) -> Any:
        """As in Keras; what is written is Hugging Face's model."""
        with _as_hugging_face(self):
            return super().export(*arguments, **named)  # type: ignore[misc]

    @tf.function(autograph=False)
    def serving(self, inputs: Mapping[str, tf.Tensor]) -> Any:
        """As in Hugging Face: the signatures of a SavedModel that `save_pretrained` writes."""
        with _as_hugging_face(self):
            return self.serving_output(self.call(inputs))  # type: ignore[attr-defined]

    def _trackable_children(self, save_type: str = "checkpoint", **named: Any) -> Any:
        if save_type == "checkpoint":
            return super()._trackable_children(save_type, **named)  # type: ignore[misc]
        with _as_hugging_face(self):
            children = super()._trackable_children(save_type, **named)  # type: ignore[misc]
        state = self._dropout_state  # type: ignore[attr-defined]  # what a user's own traced step may have read
        return children | {"_dropout_seed": state.seed, "_dropout_passes": state.passes}

    def _head_logits(self, states: tf.Tensor, drop: Any) -> tf.Tensor:
        """What the head makes of the last block's output."""
        raise AssertionError("each class below has its own head")


class TFBertForSequenceClassification(_Selectable, transformers.TFBertForSequenceClassification):
    """Hugging Face's class with tfmt's selection and forward pass; saved and loaded as Hugging Face's."""

    _output = TFSequenceClassifierOutput

    def _head_logits(self, states: tf.Tensor, drop: Any) -> tf.Tensor:
        pooler = self.bert.pooler.dense
        pooled = tf.tanh(tf.nn.bias_add(tf.matmul(states[:, 0], pooler.kernel), pooler.bias))
        return self.classifier(drop(pooled, _head_dropout(self.config)))


class TFBertForTokenClassification(_Selectable, transformers.TFBertForTokenClassification):
    """Hugging Face's class with tfmt's selection and forward pass; saved and loaded as Hugging Face's."""

    _head_name = "tokens"
    _output = TFTokenClassifierOutput

    def _head_logits(self, states: tf.Tensor, drop: Any) -> tf.Tensor:
        return self.classifier(drop(states, _head_dropout(self.config)))


_CLASSES: dict[str, Any] = {"sentence": TFBertForSequenceClassification, "tokens": TFBertForTokenClassification}


def _head_dropout(config: Any) -> float:
    rate = getattr(config, "classifier_dropout", None)
    return config.hidden_dropout_prob if rate is None else rate


def adopt(model: Any) -> Any:
    """Gives a TFBert model that Hugging Face made tfmt's selection and forward pass, in place.

    Args:
      model: a TFBertForSequenceClassification or TFBertForTokenClassification.

    Returns:
      The same object.

    Raises:
      RequestError: it is a model of another kind.
    """
    if isinstance(model, _Selectable):
        return model
    for kind in _CLASSES.values():
        if type(model) is kind.__bases__[1]:
            if not model.weights:
                model.build_in_name_scope()
            model.__class__ = kind
            set_seed(model, 0)
            return model
    raise RequestError(
        "tfmt tunes TFBertForSequenceClassification and TFBertForTokenClassification of transformers: load the model "
        f"with tfmt.load_bert(...). Received: {type(model).__module__}.{type(model).__name__}"
    )


class _DropoutState:
    """What decides a model's dropout masks, where Keras does not take it for weights of the model.

    Attributes:
      seed: int64.
      passes: int64, forward passes in training that the model counted itself; each replica has its own.
    """

    def __init__(self) -> None:
        self.seed = tf.Variable(0, dtype=tf.int64, trainable=False, name="dropout_seed")
        self.passes = tf.Variable(
            0, dtype=tf.int64, trainable=False, name="dropout_passes",
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )  # fmt: skip


def set_seed(model: Any, seed: int) -> None:
    """Sets the seed of a model's dropout masks and begins their sequence anew."""
    if getattr(model, "_dropout_state", None) is None:
        with model.distribute_strategy.scope():
            model._dropout_state = _DropoutState()
    model._dropout_state.seed.assign(seed)
    model._dropout_state.passes.assign(0)


def weights_of(model: Any) -> tuple[Weight, ...]:
    """The table of a model's weights, in the order of its architecture."""
    return list_weights(shape_of(model.config.to_dict()), model._head_name, model.config.num_labels)


class _Arguments(Checked):
    """The arguments of `load_bert` that no `RunSpec` has."""

    num_labels: Annotated[int, Field(ge=1, le=1_000_000)]
    head: Literal["sentence", "tokens"]
    classes: tuple[str, ...]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9.][A-Za-z0-9_.-]*$")]  # what TensorFlow takes for a scope
    dropout: Annotated[float, Field(ge=0, lt=1)] | None

    @model_validator(mode="after")
    def _fit(self) -> _Arguments:
        if self.classes and (len(self.classes) != self.num_labels or len(set(self.classes)) < len(self.classes)):
            raise ValueError(
                f"classes must be as many different names as num_labels, or none. Received: "
                f"{counted(len(self.classes), 'name')} ({', '.join(self.classes)}), num_labels={self.num_labels}"
            )
        return self


def load_bert(
    model: str | Path,
    num_labels: int = 2,
    seed: int = 0,
    *,
    head: str = "sentence",
    classes: Sequence[str] = (),
    name: str = "tfmt",
    dropout: float | None = None,
    revision: str = "",
) -> Any:
    """A pre-trained BERT with a new head.

    Inside a `tf.distribute` scope its variables are made for that strategy.

    Args:
      model: a hub name (also `name@revision`), a local folder with config.json, model.safetensors and a vocabulary, or
        `demo`.
      num_labels: outputs of the classifier, from 1, which means regression.
      seed: decides the initial weights of the head, and the dropout masks of `fit` and of loops of one's own, on every
        machine alike; not the dropout of what only the library computes (attention maps, hidden states).
      head: `sentence` (TFBertForSequenceClassification) or `tokens` (TFBertForTokenClassification).
      classes: names of the outputs for `config.id2label`, as many as `num_labels`; empty for `LABEL_0`, ...
      name: the model's Keras name.
      dropout: replaces the config's dropout rates; at least 0 and below 1.
      revision: a branch, tag or commit of a hub model; empty for `main`.

    Returns:
      The model, built and filled. A head that the file may hold is not read.

    Raises:
      RequestError: an argument is not of its kind, or the model cannot be had, is no BERT, lacks a file or a weight, or
        holds one of another shape or one that is not finite.
      RunError: network, hub or disk failed.

    Example:
      >>> import tfmt
      >>> model = tfmt.load_bert("demo", num_labels=2, seed=0)
      >>> int(model.config.num_hidden_layers)
      6
    """
    given = _Arguments.make(num_labels=num_labels, head=head, classes=classes, name=name, dropout=dropout)
    num_labels, classes, dropout = given.num_labels, given.classes, given.dropout
    place = str(model) if isinstance(model, Path) else model
    seed = check_settings(model=place, seed=seed, revision=revision)["seed"]
    folder = find_model(place, download=True, revision=revision)
    assert folder is not None
    settings = read_config(folder)
    base = BaseWeights(folder, head)
    labels = classes or [f"LABEL_{index}" for index in range(num_labels)]
    settings |= {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "num_labels": num_labels,
        "problem_type": "regression" if num_labels == 1 else None,
        "output_attentions": False,
        "output_hidden_states": False,
        "hidden_act": ACTIVATIONS[settings.get("hidden_act", "gelu")],
    }
    # The last two would have the model answer with a tuple.
    for key in ("architectures", "transformers_version", "torch_dtype", "_name_or_path", "return_dict", "torchscript"):
        settings.pop(key, None)
    if dropout is not None:
        settings |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    try:
        config = transformers.BertConfig(**settings)
    except Exception as error:  # of many kinds, for keys that decide nothing and are none of the library's
        raise RequestError(
            f"{folder / 'config.json'}: transformers' BertConfig cannot be made of it ({error}); leave that key out"
        ) from None
    built = build_bert(config, head=head, seed=seed, name=name)
    variables = built.all_weights
    for path in base.paths:
        variables[path].assign(base.read(path))
    built.name_or_path = str(folder)  # as in Hugging Face; `tfmt.tokenize` finds the tokenizer there
    return built


def build_bert(config: Any, *, head: str = "sentence", seed: int = 0, name: str = "tfmt") -> Any:
    """A BERT of a config with random weights and a head that the seed decides.

    Args:
      config: a transformers.BertConfig.
      head: `sentence` or `tokens`.
      seed: decides the head and the dropout masks.
      name: the model's Keras name.
    """
    find_devices()
    with without_advice():
        model = _CLASSES[head](config, name=name)
    model.build_in_name_scope()
    set_seed(model, seed)
    assign_weights(model, new_head(config.hidden_size, config.num_labels, config.initializer_range, seed))
    return model


def new_head(hidden_size: int, num_labels: int, initializer_range: float, seed: int) -> dict[str, np.ndarray]:
    """A classifier's initial weights, from the seed alone: normal within two standard deviations, biases 0.

    Returns:
      {path: array}, the kernel of shape (hidden_size, num_labels).
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x4EAD])))
    kernel = generator.standard_normal((hidden_size, num_labels))
    while (outside := np.abs(kernel) > 2).any():
        kernel[outside] = generator.standard_normal(int(outside.sum()))
    return {
        "classifier/kernel": (kernel * initializer_range).astype(np.float32),
        "classifier/bias": np.zeros(num_labels, np.float32),
    }


def assign_weights(model: Any, values: Mapping[str, np.ndarray]) -> None:
    """Sets variables of a model by path; the others stay."""
    variables = model.all_weights
    for path, value in values.items():
        variables[path].assign(value)


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Has models that are made inside compute in a precision; a policy left behind would change those of others.

    Args:
      precision: float32, tf32 (float32 to Keras), bfloat16 or float16.
    """
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(
        "float32" if precision in ("float32", "tf32") else f"mixed_{precision}"
    )  # fmt: skip
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
