"""tfmt's side of `make bench`: answers the requests that speed.py writes to it, one JSON object a line.

`step` takes training steps on one batch of random tokens, `epoch` a share of an epoch's steps, `plain` the same with
transformers' own forward pass on batches padded to 128 (the papers' way; asked of a process of its own, started with
`plain`, that has none of tfmt's settings), `evaluate` predicts, `memory` tells the process's memory.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfmt  # noqa: F401  (before TensorFlow: it chooses Keras 2)

if "plain" in sys.argv[1:]:  # TensorFlow as it comes
    os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the libraries print is no answer

import tensorflow as tf
import tf_keras as keras
import transformers

from tfmt.bert.configs import find_model
from tfmt.data.batches import plan_epoch, training_batches
from tfmt.data.tokens import TokenizedSplit
from tfmt.memory import keep_memory
from tfmt.spec import RunSpec
from tfmt.tasks import find_task
from tfmt.training.devices import make_devices
from tfmt.training.workbench import Workbench

MAX_LENGTH = 128


def load_split(data: str) -> TokenizedSplit:
    stored = np.load(data)
    return TokenizedSplit(**{name: stored[name] for name in ("ids", "offsets", "first_lengths", "labels")}, pad_id=0)


def take_first(split: TokenizedSplit, count: int) -> TokenizedSplit:
    ends = split.offsets[: count + 1]
    return TokenizedSplit(
        split.ids[: ends[-1]], ends, split.first_lengths[:count], split.labels[:count], pad_id=split.pad_id
    )


def make_bench(model: str, mode: str, rows: int, splits: dict, layers: str = "all") -> Workbench:
    spec = RunSpec.make(
        model=model, task="mrpc", mode=mode, layers=layers, seed=0, batch_size=rows, learning_rate=1e-5,
        max_length=MAX_LENGTH,
    )  # fmt: skip
    bench = Workbench(spec, find_task("mrpc"), splits, {}, make_devices(1))
    bench.set_up(spec, 1_000_000)
    return bench


def random_batch(rows: int, length: int) -> dict:
    generator = np.random.default_rng(0)
    return {
        "input_ids": generator.integers(1000, 30000, (rows, length)).astype(np.int32),
        "attention_mask": np.ones((rows, length), np.int32),
        "token_type_ids": np.zeros((rows, length), np.int32),
        "labels": generator.integers(2, size=rows).astype(np.int32),
    }


def take_steps(bench: Workbench, batch: dict, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        float(bench.train_step(batch))
        seconds.append(time.perf_counter() - start)
    return seconds


def train(bench: Workbench, rows: int, share: float, epoch: int) -> dict:
    """The first steps of an epoch of batches of like length, whose order is random."""
    split = bench.splits["train"]
    plan = plan_epoch(split.lengths, rows, "grouped", 0, epoch, MAX_LENGTH)
    steps = max(round(plan.steps * share), 1)
    start = time.perf_counter()
    for _, batch in zip(range(steps), bench.training_batches(plan), strict=False):
        float(bench.train_step(batch))
    seconds = time.perf_counter() - start
    lengths = split.lengths[plan.indices[:steps]]
    return {
        "seconds": seconds, "steps": steps, "tokens": int(lengths.sum()), "squares": int((lengths**2).sum()),
        "padded": int(plan.padded_lengths[:steps].sum()) * rows,
    }  # fmt: skip


class Plain:
    """LayerNorm tuning as people write it with transformers: the library's model, Keras's Adam, padding to 128."""

    def __init__(self, model: str, rows: int, split: TokenizedSplit) -> None:
        self.split, self.rows = split, rows
        keras.utils.set_random_seed(0)
        self.model = transformers.TFBertForSequenceClassification.from_pretrained(find_model(model, download=False))
        self.model.build_in_name_scope()
        trained = [
            v for v in self.model.weights if "classifier" in v.name or ("/layer_._" in v.name and "Norm" in v.name)
        ]
        optimizer = keras.optimizers.Adam(1e-5)
        optimizer.build(trained)

        @tf.function
        def step(batch: dict) -> tf.Tensor:
            labels = batch["labels"]
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            with tf.GradientTape() as tape:
                logits = self.model(inputs, training=True).logits
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            optimizer.apply_gradients(zip(tape.gradient(loss, trained), trained, strict=True))
            return loss

        self.step = step

    def train(self, share: float, epoch: int) -> dict:
        plan = plan_epoch(self.split.lengths, self.rows, "fixed", 0, epoch, MAX_LENGTH)
        steps = max(round(plan.steps * share), 1)
        start = time.perf_counter()
        for _, batch in zip(range(steps), training_batches(self.split, plan), strict=False):
            float(self.step({name: tf.constant(array) for name, array in batch.items()}))
        tokens = int(self.split.lengths[plan.indices[:steps]].sum())
        return {"seconds": time.perf_counter() - start, "steps": steps, "tokens": tokens}


class Side:
    """Answers requests; what one has built stays for the next."""

    def __init__(self) -> None:
        self.kept: dict = {}

    def keep(self, kind: str, key: object, build) -> object:
        """One object of each kind; another key replaces it."""
        if self.kept.get(kind, (None,))[0] != key:
            self.kept.pop(kind, None)
            self.kept[kind] = key, build()
        return self.kept[kind][1]

    def versions(self) -> dict:
        return {name: version(name) for name in ("tensorflow", "transformers", "numpy")}

    def step(self, model: str, mode: str, rows: int, length: int, count: int, layers: str = "all") -> list[float]:
        key = (model, mode, rows, layers)
        bench = self.keep(f"steps of {model} {layers}", key, lambda: make_bench(model, mode, rows, {}, layers))
        return take_steps(bench, random_batch(rows, length), count)

    def epoch(self, model: str, data: str, rows: int, share: float, epoch: int) -> dict:
        bench = self.keep(
            "epoch", (model, data, rows), lambda: make_bench(model, "layernorm", rows, {"train": load_split(data)})
        )
        return train(bench, rows, share, epoch)

    def evaluate(self, share: float) -> dict:
        bench = self.kept["epoch"][1]
        train = bench.splits["train"]
        bench.splits["validation"] = some = take_first(train, max(round(len(train) * share), 1))
        start = time.perf_counter()
        bench.predict("validation")
        return {"seconds": time.perf_counter() - start, "tokens": len(some.ids)}

    def plain(self, model: str, data: str, rows: int, share: float, epoch: int) -> dict:
        plain = self.keep("plain", (model, data, rows), lambda: Plain(model, rows, load_split(data)))
        return plain.train(share, epoch)

    def memory(self) -> dict:
        """MB: the most there was, what there is, and what of that no file holds (Linux)."""
        told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {name: int(told[name].split()[0]) / 2**10 for name in ("VmHWM", "VmRSS", "RssAnon")}


def main() -> None:
    if "plain" not in sys.argv[1:]:
        keep_memory()  # as the command does
    side = Side()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(side, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
