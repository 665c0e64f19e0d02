"""What a mask costs: step times of masked modes against the modes they are compared with, as ratios of one run.

    python tests/benchmarks/gradient_mask.py [--repetitions 15] [--steps 2] [--random_only]

One BERT of 6 x 384 with a vocabulary of 30,522, batches of 16 x 64. `outliers` trains 16 of the 768 weights of each
LayerNorm and is set against `layernorm`; `random` trains as many weights as `layernorm`, drawn from the whole encoder,
and is set against `full`. The modes take turns within each repetition, so that a busy machine slows all of them.
Expected: outliers / layernorm at most 1.05, random / full at most 1, Adam's state on BERT-base below 1 MB.

Then 5 % and 0.5 % of all encoder weights of that BERT, and 5 % of BERT-base's, at random, embeddings included, with
tfmt's forward pass on sentences of Rotten Tomatoes laid end to end. They are set against `full` with tfmt's own Adam,
one kernel a variable, and with Keras's. Expected: at most 1.1 of either, and state for nothing but what is selected.
"""

import argparse
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
import tf_keras as keras
from transformers import BertConfig, TFBertForSequenceClassification

from tfmt.bert.configs import demo_folder
from tfmt.bert.models import build_bert
from tfmt.bert.tokenizer import load_tokenizer
from tfmt.bert.vocabulary import variable_path
from tfmt.data.demo_text import read_rotten_tomatoes
from tfmt.memory import keep_memory
from tfmt.selection.draws import draw_without_replacement
from tfmt.selection.gradient_mask import GradientMask
from tfmt.training.adam import FusedAdam

SMALL = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "num_labels": 2
}  # fmt: skip


def draw(variables: Sequence[tf.Variable], count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks of `count` weights, drawn uniformly without replacement from all weights of `variables`."""
    ends = np.cumsum([variable.shape.num_elements() for variable in variables])
    drawn = np.sort(draw_without_replacement(int(ends[-1]), count, seed))
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    starts = [0, *ends[:-1]]
    return {variable_path(v): part - start for v, part, start in zip(variables, parts, starts, strict=True)}


def make_step(
    model: keras.Model, variables: Sequence[tf.Variable], optimizer: keras.optimizers.Optimizer, batch: dict
) -> Callable[[], float]:
    """A traced training step that moves `variables`; returns the seconds it took."""

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            inputs = {name: array for name, array in batch.items() if name != "labels"}
            logits = model(inputs, training=True).logits
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def run() -> float:
        start = time.perf_counter()
        step().numpy()
        return time.perf_counter() - start

    return run


def state_bytes(optimizer: keras.optimizers.Optimizer) -> int:
    return sum(variable.shape.num_elements() * variable.dtype.size for variable in optimizer.variables)


def measure_steps(repetitions: int, steps: int) -> None:
    """Prints the median step time of each mode, and the two ratios."""
    config = BertConfig(**SMALL)
    model = TFBertForSequenceClassification(config)
    model.build()
    generator = np.random.default_rng(0)
    batch = {
        "input_ids": tf.constant(generator.integers(config.vocab_size, size=(16, 64)), tf.int32),
        "attention_mask": tf.ones((16, 64), tf.int32),
        "token_type_ids": tf.zeros((16, 64), tf.int32),
        "labels": tf.constant(generator.integers(2, size=16), tf.int32),
    }
    everything = model.trainable_variables
    encoder = [v for v in everything if not variable_path(v).startswith("classifier/")]
    head = [v for v in everything if variable_path(v).startswith("classifier/")]
    norms = [v for v in encoder if "LayerNorm" in v.name and "/layer_._" in v.name]
    outliers = {variable_path(v): generator.choice(384, 8, replace=False) for v in norms}
    adam = keras.optimizers.Adam
    optimizers = {
        "layernorm": (adam(1e-5), norms + head),
        "outliers": (GradientMask(adam(1e-5), outliers), norms + head),
        "full": (adam(1e-5), everything),
        "random": (GradientMask(adam(1e-5), draw(encoder, sum(v.shape[0] for v in norms))), everything),
    }
    runs = {mode: make_step(model, variables, optimizer, batch) for mode, (optimizer, variables) in optimizers.items()}
    compare(runs, optimizers, repetitions, steps, [("outliers", "layernorm"), ("random", "full")])


def compare(
    runs: dict[str, Callable[[], float]],
    optimizers: dict[str, tuple],
    repetitions: int,
    steps: int,
    pairs: list[tuple[str, str]],
) -> None:
    """Prints the median step time of each run, and the ratio of each pair."""
    for run in runs.values():
        run(), run()  # tracing, then a step that finds its buffers
    times: dict[str, list[float]] = {mode: [] for mode in runs}
    for _ in range(repetitions):
        for mode, run in runs.items():
            times[mode].append(min(run() for _ in range(steps)))
    for mode, seconds in times.items():
        print(
            f"{mode:16} {1000 * statistics.median(seconds):7.1f} ms a step, state {state_bytes(optimizers[mode][0]):,}"
        )
    for masked, plain in pairs:
        ratio = statistics.median(a / b for a, b in zip(times[masked], times[plain], strict=True))
        print(f"{masked} / {plain}: {ratio:.3f}", flush=True)


def text_batch(length: int) -> dict:
    """16 rows of so many tokens: sentences one after the other."""
    tokenizer = load_tokenizer(demo_folder())
    sentences = iter(read_rotten_tomatoes()[0]["train"].texts[0])
    rows = []
    for _ in range(16):
        row: list[int] = []
        while len(row) < length:
            row += tokenizer.encode(next(sentences))
        rows.append(row[:length])
    return {
        "input_ids": tf.constant(rows, tf.int32),
        "attention_mask": tf.ones((16, length), tf.int32),
        "token_type_ids": tf.zeros((16, length), tf.int32),
        "labels": tf.constant([0, 1] * 8, tf.int32),
    }


def measure_random(config: BertConfig, shares: Sequence[float], repetitions: int, steps: int, length: int) -> None:
    """Prints what parts of all encoder weights, at random, cost beside `full`."""
    model = build_bert(config)
    batch = text_batch(length)
    everything = model.trainable_variables
    encoder = [v for v in everything if not variable_path(v).startswith("classifier/")]
    sizes = [sum(v.shape.num_elements() for v in variables) for variables in (encoder, everything)]
    adam = functools.partial(keras.optimizers.Adam, 1e-5, jit_compile=False)
    optimizers = {
        "full": (FusedAdam(1e-5, jit_compile=False), everything),
        "full, Keras": (adam(), everything),
    }
    masked = []
    for share in shares:
        count = math.floor(share * sizes[0])
        optimizer = GradientMask(adam(), draw(encoder, count))
        optimizer.build(everything)
        others = sum(variable.dtype.size for variable in optimizer.variables if not variable.shape.rank)
        assert state_bytes(optimizer) - others == 2 * 4 * (count + sizes[1] - sizes[0])
        masked.append(f"random {share:.1%}")
        optimizers[masked[-1]] = optimizer, everything
    runs = {mode: make_step(model, variables, optimizer, batch) for mode, (optimizer, variables) in optimizers.items()}
    print(f"{config.num_hidden_layers} x {config.hidden_size}, {sizes[0]:,} encoder weights, 16 x {length} tokens")
    compare(runs, optimizers, repetitions, steps, [(m, plain) for m in masked for plain in ("full", "full, Keras")])


def measure_state() -> None:
    """Prints how much state Adam keeps for `random` on BERT-base-uncased, built on its real shapes."""
    model = TFBertForSequenceClassification(BertConfig(num_labels=2))
    model.build()
    variables = [v for v in model.trainable_variables if not variable_path(v).startswith("classifier/")]
    optimizer = GradientMask(keras.optimizers.Adam(), draw(variables, 36_864))
    optimizer.build(variables)
    whole = 2 * sum(v.shape.num_elements() for v in variables) * 4
    print(f"random on BERT-base: Adam keeps {state_bytes(optimizer):,} B; for full it would keep {whole:,} B")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="of each repetition the fastest of so many steps counts")
    parser.add_argument("--length", type=int, default=64, help="tokens of each row of text")
    parser.add_argument("--random_only", action="store_true", help="only what parts of all weights cost")
    arguments = parser.parse_args()
    keep_memory()  # as the command does
    if not arguments.random_only:
        measure_steps(arguments.repetitions, arguments.steps)
        measure_state()
    how_often = arguments.repetitions, arguments.steps, arguments.length
    measure_random(BertConfig(**SMALL), (0.05, 0.005), *how_often)
    measure_random(BertConfig(num_labels=2), (0.05,), *how_often)
