"""PyTorch's side of `make interop`: loads what check_tensorflow.py exported and compares logits on real sentences.

It knows nothing of tfmt and runs where TensorFlow is not installed.

Usage: python tests/interop/check_torch.py FOLDER
"""

import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, logging

TOLERANCE = 1e-5


def load_whole(auto, folder):
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info  # missing, unexpected, mismatched weights, errors
    return model


def load_adapter(auto, folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    whole = folder.with_name(folder.name.replace("-peft", "-transformers"))
    labels = json.loads((whole / "config.json").read_text())["id2label"]
    logging.set_verbosity_error()  # the base model has no head yet, which is no news here
    base = auto.from_pretrained((folder.parent / "base.txt").read_text(), num_labels=len(labels))
    logging.set_verbosity_warning()
    untouched = {name: value.clone() for name, value in base.state_dict().items()}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder)
    # Other warnings come with every adapter of this kind: PEFT's own calls that transformers deprecates, for one.
    told = [str(warning.message) for warning in told if "missing adapter keys" in str(warning.message)]
    assert not told, told
    tuned = dict(model.named_parameters())
    assert len(config["target_modules"]) == sum(".ln_tuning_layers.default.weight" in name for name in tuned)
    for name, value in untouched.items():
        now = [tensor for key, tensor in tuned.items() if key.replace(".base_layer", "") == f"base_model.model.{name}"]
        assert not now or torch.equal(now[0], value), name
    return model


def main(folder):
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")))
    sentences = json.loads((folder / "sentences.json").read_text())
    worst, count = 0.0, 0
    for path in sorted(folder.glob("*.npz")):
        expected = np.load(path)
        tokens = path.stem.startswith("tokens")
        auto = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
        for kind, load in (("transformers", load_whole), ("peft", load_adapter)):
            exported = folder / f"{path.stem}-{kind}"
            if not exported.is_dir():
                continue
            model = load(auto, exported).eval()
            tokenizer = AutoTokenizer.from_pretrained(exported)
            inputs = tokenizer(sentences, padding=True, truncation=True, max_length=64, return_tensors="pt")
            assert np.array_equal(inputs["input_ids"], expected["input_ids"]), "the tokenizers disagree"
            with torch.no_grad():
                logits = model(**inputs).logits.numpy()
            # Nothing reads what a token task says of padding.
            real = expected["attention_mask"].astype(bool) if tokens else np.ones(len(sentences), bool)
            difference = float(np.abs(logits - expected["logits"])[real].max())
            spread = float(np.abs(expected["logits"][real]).max())
            worst, count = max(worst, difference), count + 1
            print(f"{path.stem:<34} {kind:<13} {difference:.2e}  (largest logit {spread:.2f})", flush=True)
    assert count, f"{folder} holds no export"
    print(f"largest difference of PyTorch's logits on {len(sentences)} sentences: {worst:.2e} (at most {TOLERANCE:g})")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
