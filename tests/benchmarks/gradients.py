"""What the scores of gradients cost: seconds, backward passes and memory, on Rotten Tomatoes with a new head.

python tests/benchmarks/gradients.py [--model=NAME] [--examples=1024] [--repetitions=3]
"""

import argparse
import statistics
import sys
import time

from tfmt.memory import keep_memory
from tfmt.runs.runner import make_bench, prepare
from tfmt.spec import RunSpec
from tfmt.training.devices import peak_rss_mb


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    flags = parser.parse_args()
    keep_memory()
    spec = RunSpec.make(model=flags.model, task="rotten_tomatoes", mode="full")
    bench = make_bench(prepare(spec, "unused"))

    from tfmt.bert.models import weights_of
    from tfmt.data.batches import evaluation_batches
    from tfmt.training import gradients
    from tfmt.training.fisher import FISHER_TOKENS, draw_examples

    model, kind, split = bench.model, bench.task.kind, bench.splits["train"]
    drawn = draw_examples(len(split), flags.examples, spec.seed)
    weights = weights_of(model)
    everything = [weight.path for weight in weights]
    layernorms = [weight.path for weight in weights if weight.part in ("gamma", "beta")]
    print(f"{sum(weight.size for weight in weights):,} weights, {len(drawn)} examples, {bench.devices.described}")
    rows = [
        ("mean gradient", gradients.make_mean_step, gradients.mean_gradient, everything, gradients.EVALUATION_TOKENS),
        ("squares", gradients.make_squared_step, gradients.squared_gradient, everything, 1),
        ("squares, LayerNorms", gradients.make_squared_step, gradients.squared_gradient, layernorms, FISHER_TOKENS),
    ]
    for name, make, measure, paths, tokens in rows:
        step, times = make(model, kind, paths), []
        bench.devices.forget_peaks()
        before = peak_rss_mb()
        for _ in range(flags.repetitions):
            began = time.perf_counter()
            measure(model, kind, split, drawn, paths, step=step)
            times.append(time.perf_counter() - began)
        passes = sum(1 for _ in evaluation_batches(split, tokens, examples=drawn))
        more = peak_rss_mb() - before
        print(
            f"{name:20} {statistics.median(times):6.1f} s  {passes:5} backward passes  {more:6.0f} MB more at its peak"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
