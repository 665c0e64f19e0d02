"""What a mask costs: step times of masked modes against the modes they are compared with, as ratios of one run.

    python tests/benchmarks/gradient_mask.py [--repetitions 15] [--steps 2]

One BERT of 6 x 384 with a vocabulary of 30,522, batches of 16 x 64. `outliers` trains 16 of the 768 weights of each
LayerNorm and is set against `layernorm`; `random` trains as many weights as `layernorm`, drawn from the whole encoder,
and is set against `full`. The modes take turns within each repetition, so that a busy machine slows all of them.
Expected: outliers / layernorm at most 1.05, random / full at most 1, Adam's state on BERT-base below 1 MB.
"""

import argparse
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

from tfmt.bert.vocabulary import variable_path
from tfmt.selection.gradient_mask import GradientMask


def draw(variables: Sequence[tf.Variable], count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks of `count` weights, drawn uniformly without replacement from all weights of `variables`."""
    generator = np.random.default_rng(seed)
    ends = np.cumsum([variable.shape.num_elements() for variable in variables])
    drawn = np.array(sorted(_distinct(generator, int(ends[-1]), count)))
    owners = np.searchsorted(ends, drawn, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return {variable_path(v): drawn[owners == i] - starts[i] for i, v in enumerate(variables)}


def _distinct(generator: np.random.Generator, total: int, count: int) -> set[int]:
    found: set[int] = set()
    while len(found) < count:
        found.update(generator.integers(total, size=count - len(found)).tolist())
    return found


def make_step(
    model: keras.Model, variables: Sequence[tf.Variable], optimizer: keras.optimizers.Optimizer, batch: dict
) -> Callable[[], float]:
    """A traced training step that moves `variables`; returns the seconds it took."""

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            logits = model(batch, training=True).logits
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
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=2
    )
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
    for run in runs.values():
        run(), run()  # tracing, then a step that finds its buffers
    times: dict[str, list[float]] = {mode: [] for mode in runs}
    for _ in range(repetitions):
        for mode, run in runs.items():
            times[mode].append(min(run() for _ in range(steps)))
    for mode, seconds in times.items():
        print(
            f"{mode:10} {1000 * statistics.median(seconds):7.1f} ms a step, state {state_bytes(optimizers[mode][0]):,}"
        )
    for masked, plain in (("outliers", "layernorm"), ("random", "full")):
        ratio = statistics.median(a / b for a, b in zip(times[masked], times[plain], strict=True))
        print(f"{masked} / {plain}: {ratio:.3f}")


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
    arguments = parser.parse_args()
    measure_steps(arguments.repetitions, arguments.steps)
    measure_state()
