"""TensorFlow's side of `make interop`: tunes and exports a few runs, and stores their logits on real sentences.

Usage: python tests/interop/check_tensorflow.py FOLDER
"""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np

from tfmt import quiet
from tfmt.data.demo_text import read_rotten_tomatoes
from tfmt.runs.runner import execute, finished, make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.tuned.export import ADAPTER_MODES, export_run

SENTENCES = 100
TOLERANCE = 1e-5
RUNS = {
    "layernorm": {"mode": "layernorm"},
    "layernorm_feedforward-blocks-3-5": {"mode": "layernorm_feedforward", "layers": "3-5"},
    "outliers-16": {"mode": "outliers", "mask_size": 16},
    "full": {"mode": "full"},
    "tokens-layernorm": {"mode": "layernorm"},
}


def write_tagged(folder, sentences):
    """Real sentences with a tag that a rule gives: a token task that needs no other text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", sentences[:2000]), ("validation", sentences[2000:2100])):
        rows = []
        for sentence in part:
            words = sentence.split()
            tags = ["SHORT" if len(word) < 4 else "MARK" if not word.isalpha() else "LONG" for word in words]
            rows.append(json.dumps({"words": words, "tags": tags}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {"data_dir": str(folder), "text_columns": ("words",), "label_column": "tags", "task_type": "tokens"}


def main(folder):
    quiet.set_verbosity(0)
    quiet.import_tensorflow(0)
    import transformers

    from tfmt.bert.tokenizer import load_tokenizer
    from tfmt.tuned.load import load_tuned

    splits, _ = read_rotten_tomatoes()
    sentences = list(splits["validation"].texts[0][:SENTENCES])
    (folder / "sentences.json").write_text(json.dumps(sentences), encoding="utf-8")
    own = write_tagged(folder / "tagged", list(splits["train"].texts[0][:2100]))
    worst = 0.0
    for name, settings in RUNS.items():
        tokens = name.startswith("tokens")
        task = {"task": "custom", **own} if tokens else {"task": "rotten_tomatoes"}
        spec = RunSpec.make(
            model="demo", epochs=1, max_length=64, train_limit=2000, validation_limit=64, **task, **settings
        )
        request = prepare(spec, folder / "runs")
        # An adapter names its base model and not where it lies; PyTorch's side can reach no hub.
        (folder / "base.txt").write_text(str(request.model_folder), encoding="utf-8")
        if finished(request) is None:
            execute(request, make_bench(request), started=time.perf_counter(), quiet=True)
        model = load_tuned(request.folder)
        tokenizer = load_tokenizer(request.model_folder)
        inputs = dict(tokenizer(sentences, padding=True, truncation=True, max_length=64, return_tensors="np"))
        logits = model(inputs, training=False).logits.numpy()
        np.savez(folder / f"{name}.npz", logits=logits, **inputs)
        formats = ["transformers", "keras", *(["peft"] if settings["mode"] in ADAPTER_MODES else [])]
        for kind in formats:
            shutil.rmtree(folder / f"{name}-{kind}", ignore_errors=True)  # of an earlier call
            export_run(request.folder, folder / f"{name}-{kind}", format=kind)
        plain = getattr(transformers, f"TFBertFor{'Token' if tokens else 'Sequence'}Classification")
        loaded, info = plain.from_pretrained(folder / f"{name}-keras", output_loading_info=True)
        assert not any(info.values()), info
        difference = float(np.abs(loaded(inputs, training=False).logits.numpy() - logits).max())
        worst = max(worst, difference)
        print(f"{name:<34} keras         {difference:.2e}", flush=True)
    print(f"largest difference of TFBert's logits: {worst:.2e} (at most {TOLERANCE:g})")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    sys.exit(main(place))
