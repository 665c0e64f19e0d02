"""A tuned model as a folder that other libraries load: Hugging Face's PyTorch classes, PEFT, TFBert."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tfmt.bert.base_weights import BaseWeights
from tfmt.bert.checkpoint import WEIGHTS_FILE
from tfmt.bert.configs import read_config
from tfmt.errors import RequestError
from tfmt.files import whole_folder
from tfmt.tuned.card import write_card
from tfmt.tuned.load import TunedWeights, build_tuned, read_tuned

FORMATS = ("transformers", "peft", "keras")
# Modes that tune whole LayerNorms and nothing else beside the head: what PEFT's LN tuning can say.
ADAPTER_MODES = ("layernorm", "layernorm_attention", "layernorm_feedforward")
_CLASSES = {"sentence": "ForSequenceClassification", "tokens": "ForTokenClassification"}
# What a base model's config says of its own file, or of a head that is replaced.
_STALE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "num_labels", "finetuning_task")
_TAGS = ("bert", "tfmt")
# Stands for the exported folder in its README.
_FOLDER = "path/to/this/folder"


def export_run(run: str | Path, output: str | Path, *, format: str = "transformers", model: str = "") -> Path:
    """Writes a tuned model as a folder that other libraries load, whole or not at all.

    Args:
      run: the run's folder.
      output: the folder to make; it must be empty if it is there.
      format: `transformers` (config, safetensors under PyTorch's names, tokenizer), `peft` (an adapter with the
        LayerNorms and the head; modes of `ADAPTER_MODES` only) or `keras` (config and tf_model.h5 for TFBert).
      model: where the base model lies now, if not where the run found it.

    Returns:
      The folder.

    Raises:
      RequestError: the run kept no weights, the base model is another one, the folder is not empty, or the mode
        does not fit an adapter.
      RunError: the disk is full, or the folder cannot be written.

    Example:
      >>> folder = export_run("runs/mrpc-layernorm-lr0.001-s0-d9e29dc098", "mrpc-for-pytorch")
      >>> (folder / "model.safetensors").exists()
      True
    """
    writers: dict[str, Callable[[TunedWeights, Path], None]] = {
        "transformers": _write_transformers, "peft": _write_adapter, "keras": _write_keras
    }  # fmt: skip
    if format not in writers:
        raise RequestError(f"--format must be one of {', '.join(FORMATS)}. Received: --format={format}")
    tuned = read_tuned(run, model=model)
    mode = tuned.record.spec.mode
    if format == "peft" and mode not in ADAPTER_MODES:
        raise RequestError(
            f"--format=peft: an adapter of PEFT's LN tuning holds whole LayerNorms and the head, which is not what "
            f"mode={mode} tunes (it fits {', '.join(ADAPTER_MODES)}); use --format=transformers"
        )
    if format == "peft" and BaseWeights(tuned.base, tuned.head).from_tensorflow:
        raise RequestError(
            f"--format=peft: an adapter is put on the base model, and {tuned.base_name} holds TensorFlow's weights, "
            f"which PEFT cannot load; use --format=transformers"
        )
    folder = Path(output).expanduser()
    with whole_folder(folder) as temporary:
        writers[format](tuned, temporary)
    return folder


def _write_transformers(tuned: TunedWeights, folder: Path) -> None:
    from tfmt.bert.torch_names import to_torch_names

    _save_tensors(folder / WEIGHTS_FILE, to_torch_names(tuned.weights, tuned.read(), {}))
    _write_json(folder / "config.json", _config(tuned))
    _write_tokenizer(tuned, folder)
    name = _auto_class(tuned)
    write_card(tuned, folder, [
        f"from transformers import AutoTokenizer, {name}",
        f'model = {name}.from_pretrained("{_FOLDER}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{_FOLDER}")',
    ], library="transformers", tags=_TAGS)  # fmt: skip


def _write_adapter(tuned: TunedWeights, folder: Path) -> None:
    tensors, modules = {}, []
    for weight in tuned.weights:
        if weight.path not in tuned.values:
            continue
        value = tuned.values[weight.path]
        module, part = weight.torch_name.rsplit(".", 1)
        if weight.sublayer == "classifier":
            tensors[f"base_model.model.{module}.{part}"] = value.T if weight.transposed else value
        else:
            tensors[f"base_model.model.{module}.ln_tuning_layers.{part}"] = value
            modules.append(module)
    _save_tensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": tuned.base_name,
        "exclude_modules": None,
        "inference_mode": True,
        "modules_to_save": ["classifier"],
        "peft_type": "LN_TUNING",
        "revision": tuned.hub_commit,
        # Whole names: PEFT takes a shorter one for every module that ends in it.
        "target_modules": list(dict.fromkeys(modules)),
        "task_type": "TOKEN_CLS" if tuned.head == "tokens" else "SEQ_CLS",
    }
    _write_json(folder / "adapter_config.json", config)
    _write_tokenizer(tuned, folder)
    name = _auto_class(tuned)
    labels = json.dumps(_config(tuned)["id2label"])
    base = tuned.on_hub or f"path/to/{tuned.base_name}"
    write_card(tuned, folder, [
        "from peft import PeftModel",
        f"from transformers import AutoTokenizer, {name}",
        f"names = {{int(number): name for number, name in {labels}.items()}}",
        f'base = {name}.from_pretrained("{base}", num_labels={len(tuned.classes) or 1}, id2label=names'
        + (f', revision="{tuned.hub_commit}")' if tuned.hub_commit else ")"),
        "base = base.float()  # the run computed with float32, whatever the base model's file holds",
        f'model = PeftModel.from_pretrained(base, "{_FOLDER}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{_FOLDER}")',
    ], library="peft", tags=_TAGS)  # fmt: skip


def _write_keras(tuned: TunedWeights, folder: Path) -> None:
    import h5py

    written = folder / "written.h5"
    build_tuned(tuned).save_weights(str(written))
    with h5py.File(written) as found, h5py.File(folder / "tf_model.h5", "w") as file:
        # Keras lists the dropout, too, under a number that changes; transformers calls it an unexpected weight. What is
        # deleted from a file leaves its name there, hence a new one.
        names = [name for name in found.attrs["layer_names"] if len(found[name].attrs["weight_names"])]
        for name in names:
            found.copy(name, file)
        file.attrs.update(dict(found.attrs) | {"layer_names": names})
    written.unlink()
    _write_json(folder / "config.json", _config(tuned))
    _write_tokenizer(tuned, folder)
    name = f"TFBert{_CLASSES[tuned.head]}"
    write_card(tuned, folder, [
        "import os",
        'os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported',
        f"from transformers import {name}  # transformers 4",
        f'model = {name}.from_pretrained("{_FOLDER}")',
    ], library="transformers", tags=[*_TAGS, "tf"])  # fmt: skip


def _auto_class(tuned: TunedWeights) -> str:
    return f"AutoModel{_CLASSES[tuned.head]}"


def _config(tuned: TunedWeights) -> dict[str, Any]:
    """The base model's config with the new head."""
    config = {name: value for name, value in read_config(tuned.base).items() if name not in _STALE}
    labels = tuned.classes or ("LABEL_0",)
    config |= {
        "architectures": [f"Bert{_CLASSES[tuned.head]}"],
        "model_type": "bert",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    config.pop("problem_type", None)
    if tuned.head == "sentence":
        config["problem_type"] = "single_label_classification" if tuned.classes else "regression"
    return config


def _save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    # transformers reads no file that lacks a format. Nothing beside it: safetensors writes several in no fixed order.
    about = {"format": "pt"}
    try:
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata=about)
    except SafetensorError as error:
        raise _write_error(error, path) from None


def _write_tokenizer(tuned: TunedWeights, folder: Path) -> None:
    from tfmt.bert.tokenizer import save_tokenizer

    try:
        save_tokenizer(tuned.base, folder)
    except (RequestError, OSError):
        raise
    except Exception as error:  # The tokenizers' own code has one error for all, and the errno in its text.
        raise _write_error(error, folder) from None


def _write_error(error: Exception, path: Path) -> OSError:
    """What native code says when it cannot write, as the error of the system that it hides in its text."""
    return OSError(errno.ENOSPC if "No space left" in str(error) else errno.EIO, str(error), str(path))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
