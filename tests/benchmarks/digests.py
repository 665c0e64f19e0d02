"""What the digests of a run's files cost: their share of a whole run of the packaged model, with all of it tuned.

python tests/benchmarks/digests.py [flags of tfmt-train]
"""

import sys
import tempfile
import time

from tfmt import tensors, train

FLAGS = ["--flagfile=demo.flags", "--mode=full", "--train_limit=2000", "--epochs=2"]


def main() -> int:
    taken, compute = [], tensors._digest

    def timed(*given):
        began = time.perf_counter()
        try:
            return compute(*given)
        finally:
            taken.append(time.perf_counter() - began)

    tensors._digest = timed
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        status = train.main([*FLAGS, f"--output_dir={folder}", *sys.argv[1:]])
    whole = time.perf_counter() - began
    print(f"{len(taken)} digests: {sum(taken):.2f} s of {whole:.1f} s, {100 * sum(taken) / whole:.2f} %")
    return status


if __name__ == "__main__":
    sys.exit(main())
