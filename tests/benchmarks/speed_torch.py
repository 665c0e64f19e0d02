"""PyTorch's side of `make bench`: answers the requests that speed.py writes to it, one JSON object a line.

It knows nothing of tfmt and runs where TensorFlow is not installed. `step` takes training steps on one batch of random
tokens, `epoch` trains with PEFT's LayerNorm tuning under the Trainer's defaults, `memory` tells the process's memory.
"""

import json
import os
import re
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import numpy as np
import torch
from peft import LNTuningConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
    set_seed,
)

logging.set_verbosity_error()
logging.disable_progress_bar()

# What each mode trains, besides the classifier, by the parameters' names.
_BLOCK_NORM = r"encoder\.layer\.\d+\..*LayerNorm\."
MODES = {
    "full": r".*",
    "layernorm": _BLOCK_NORM,
    "bitfit": r".*\.bias$",
    "attention": r"encoder\.layer\.\d+\.attention\.(self\..*|output\.dense)\.",
    "feedforward": r"encoder\.layer\.\d+\.(intermediate|output)\.dense\.",
}


def load(folder: str) -> torch.nn.Module:
    set_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


class Steps:
    """Training steps of one mode on one batch of random tokens."""

    def __init__(self, folder: str, mode: str) -> None:
        self.model = load(folder).train()
        for name, parameter in self.model.named_parameters():
            inner = name.removeprefix("bert.")
            parameter.requires_grad_(name.startswith("classifier") or re.match(MODES[mode], inner) is not None)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def take(self, rows: int, length: int, count: int) -> list[float]:
        generator = np.random.default_rng(0)
        batch = {
            "input_ids": torch.tensor(generator.integers(1000, 30000, (rows, length))),
            "attention_mask": torch.ones((rows, length), dtype=torch.long),
            "token_type_ids": torch.zeros((rows, length), dtype=torch.long),
            "labels": torch.tensor(generator.integers(2, size=rows)),
        }
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self.model(**batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
        return seconds


class _Clock(TrainerCallback):
    """Seconds of the epoch without what the Trainer does before and after."""

    def on_epoch_begin(self, *_, **__) -> None:
        self.start = time.perf_counter()

    def on_epoch_end(self, *_, **__) -> None:
        self.seconds = time.perf_counter() - self.start


def train_epoch(folder: str, data: str, rows: int, share: float, epoch: int) -> dict:
    """A share of an epoch of PEFT's LayerNorm tuning under the Trainer: random batches, padded to their longest."""
    stored = np.load(data)
    ends, firsts = stored["offsets"], stored["first_lengths"]
    order = np.random.default_rng(epoch).permutation(len(firsts))
    steps = max(round(len(firsts) // rows * share), 1)
    taken = []
    for index in order[: steps * rows]:
        ids = stored["ids"][ends[index] : ends[index + 1]].tolist()
        kinds = [0] * int(firsts[index]) + [1] * (len(ids) - int(firsts[index]))
        taken.append(
            {"input_ids": ids, "token_type_ids": kinds, "attention_mask": [1] * len(ids),
             "labels": int(stored["labels"][index])}
        )  # fmt: skip
    model = get_peft_model(load(folder), LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]))
    clock = _Clock()
    with tempfile.TemporaryDirectory() as output:
        settings = TrainingArguments(
            output_dir=output, per_device_train_batch_size=rows, num_train_epochs=1, learning_rate=1e-5,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no", seed=epoch,
        )  # fmt: skip
        collator = DataCollatorWithPadding(AutoTokenizer.from_pretrained(folder))
        Trainer(model=model, args=settings, train_dataset=taken, data_collator=collator, callbacks=[clock]).train()
    return {"seconds": clock.seconds, "steps": steps, "tokens": sum(len(row["input_ids"]) for row in taken)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    steps: dict[str, Steps] = {}
    for line in sys.stdin:
        request = json.loads(line)
        kind = request.pop("do")
        if kind == "versions":
            answer = {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")}
        elif kind == "step":
            mode = request.pop("mode")
            folder = request.pop("folder")
            if mode not in steps:
                steps.clear()
                steps[mode] = Steps(folder, mode)
            answer = steps[mode].take(**request)
        elif kind == "epoch":
            answer = train_epoch(**request)
        else:
            told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            answer = {name: int(told[name].split()[0]) / 2**10 for name in ("VmHWM", "VmRSS", "RssAnon")}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
