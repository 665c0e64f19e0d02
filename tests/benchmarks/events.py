"""What TensorBoard's points within an epoch cost: training time with them against without, as a ratio of one process.

    python tests/benchmarks/events.py [--examples 640]

The packaged MiniLM on Rotten Tomatoes, LayerNorms only, a point a step, which is the most there can be. The time within
what makes and writes points is taken from the whole, so that a busy machine disturbs little. Expected: at most 1.002.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from tfmt import quiet
from tfmt.spec import RunSpec


def main(examples: int) -> None:
    from tfmt.runs.runner import execute, make_bench, prepare
    from tfmt.training.events import Curve, Events

    spent = 0.0

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> None:
            nonlocal spent
            start = time.perf_counter()
            function(*arguments)
            spent += time.perf_counter() - start

        return call

    spec = RunSpec.make(model="demo", task="rotten_tomatoes", mode="layernorm", epochs=1, keep="scores",
                        train_limit=examples, validation_limit=32, max_length=64)  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        bench = make_bench(prepare(spec, made))
        execute(prepare(spec, Path(made) / "warm"), bench, started=time.perf_counter(), quiet=True)
        Curve.add, Events.catch_up = timed(Curve.add), timed(Events.catch_up)  # type: ignore[method-assign]
        record = execute(prepare(spec, Path(made) / "timed"), bench, started=time.perf_counter(), quiet=True)
    assert record.cost is not None
    whole, steps = record.cost.train_seconds, record.cost.steps
    print(f"a step {1e3 * whole / steps:.1f} ms, a point {1e6 * spent / steps:.0f} us")
    print(f"with points / without: {whole / (whole - spent):.5f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=640)
    arguments = parser.parse_args()
    quiet.set_verbosity(0)
    quiet.import_tensorflow(0)
    main(arguments.examples)
