"""What a warm run costs on a Ray cluster beyond itself, against the local sweep: toy runs, one worker, one thread.

    python tests/benchmarks/ray_overhead.py [RUNS]

Prints for each way the median of the seconds between the records of two runs, less those that the second run tells of
itself.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.clusters import Command, Ring
from conftest import write_toy_bert, write_toy_mrpc


def measure(folder: Path) -> float:
    """The median for the runs of a folder; the first made the workbench and does not count."""
    paths = sorted(folder.glob("*/record.json"), key=lambda path: path.stat().st_mtime)
    ends = [path.stat().st_mtime for path in paths]
    costs = [json.loads(path.read_text())["cost"] for path in paths]
    took = [cost["setup_seconds"] + cost["train_seconds"] + cost["eval_seconds"] for cost in costs]
    return statistics.median(end - before - own for before, end, own in zip(ends, ends[1:], took[1:], strict=False))


def main(runs: int) -> None:
    """Measures the three ways."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # so that the local worker has one thread as well
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = {"model": write_toy_bert(folder / "bert"), "data_dir": write_toy_mrpc(folder / "glue"), "task": "mrpc",
                 "mode": "frozen", "max_length": 32, "epochs": 1, "seed": ",".join(map(str, range(runs)))}  # fmt: skip
        ways = {"local": {}, "Ray": {}, "Ray, no disk shared": {"TFMT_NODE_DIR": folder / "node"}}
        for way, environment in ways.items():
            ring = Ring() if way != "local" else None
            try:
                if ring:
                    ring.add("node", **environment)
                where = {"ray": ring.address} if ring else {"workers": 1}
                sweep = Command(folder, **flags, **where, output_dir=folder / way)
                if sweep.end(600):
                    sys.exit(sweep.told)
            finally:
                if ring:
                    ring.close()
            print(f"{1000 * measure(folder / way):7.1f} ms a run  {way}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
