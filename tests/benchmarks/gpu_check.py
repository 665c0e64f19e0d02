"""What a person with a GPU runs to try what could only be read: `make gpu-check`, a block to paste into a report.

    python tests/benchmarks/gpu_check.py [--device=gpu|cpu] [--model=demo] [--steps=30]

Runs are `tfmt-train` in processes of their own, on the packaged sentences; --device=cpu shows that the check itself
works, with two logical CPU devices in place of several GPUs. Each line says what was tried and what was found; `FAILED`
lines make the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tfmt import quiet

# Every kind of selection: whole variables, sparse gradients, and masks that lie in all of the model or in few vectors.
MODES = ("layernorm", "full", "random", "outliers")
ROWS = 16

# Steps under TensorFlow's profiler, in a process of its own: where the time of a step goes.
PROFILED = """
import sys
from tfmt import quiet
quiet.set_verbosity(0)
quiet.import_tensorflow(0)
import tensorflow as tf
from tfmt.data.batches import plan_epoch
from tfmt.runs.runner import make_bench, prepare
from tfmt.spec import RunSpec
model, mode, folder = sys.argv[1:]
request = prepare(RunSpec.make(model=model, task="rotten_tomatoes", mode=mode, train_limit=160), folder)
bench = make_bench(request)
bench.set_up(request.spec, 100)
split = bench.splits["train"]
batches = list(bench.training_batches(plan_epoch(split.lengths, 16, "grouped", 0, 0, 128)))
for batch in batches[:3]:
    float(bench.train_step(batch))
tf.profiler.experimental.start(folder)
for batch in batches[3:8]:
    loss = bench.train_step(batch)
float(loss)
tf.profiler.experimental.stop()
"""


class Check:
    """Runs, and the lines on what was found."""

    def __init__(self, device: str, model: str, steps: int, folder: Path) -> None:
        self.device, self.model, self.steps, self.folder = device, model, steps, folder
        self.environment = os.environ | ({"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {})
        self.failed = False

    def tell(self, what: str, found: str, holds: bool | None = None) -> None:
        self.failed |= holds is False
        mark = "" if holds is None else "ok      " if holds else "FAILED  "
        print(f"{what:<46} {mark}{found}", flush=True)

    def train(self, name: str, **flags: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The record of a run in a process of its own, and what it tuned."""
        settings = {
            "model": self.model, "task": "rotten_tomatoes", "train_limit": self.steps * ROWS, "epochs": 1,
            "validation_limit": 203, "learning_rate": 1e-4, "keep_epoch": "last", "replicas": 1,
        } | flags  # fmt: skip
        output = self.folder / name
        command = [sys.executable, "-m", "tfmt.train", f"--output_dir={output}"]
        command += [f"--{flag}={value}" for flag, value in settings.items()]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        found = list(output.glob("*/record.json"))
        if done.returncode or not found:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no record"])[-1])
        return json.loads(found[0].read_text()), load_file(found[0].with_name("tuned.safetensors"))

    # ---- what is tried ---------------------------------------------------------------------------------------------

    def modes(self) -> None:
        """Each mode twice: the same bytes, nothing else moved; its memory and time."""
        for mode in MODES:
            more = {"mask_size": 16} if mode == "outliers" else {}
            (one, tuned), (_, again) = (self.train(f"{mode}-{turn}", mode=mode, **more) for turn in "ab")
            same = all(np.array_equal(value, again[name]) for name, value in tuned.items())
            self.tell(f"{mode}: two processes, the same bytes", "", same)
            proof, cost = one["proof"], one["cost"]
            still = proof["frozen_changed"] == 0 and proof["selected_changed"] > 0
            self.tell(f"{mode}: nothing else moved", f"{proof['selected_changed']:,} selected did", still)
            gpu = "" if cost["peak_gpu_mb"] is None else f"GPU {cost['peak_gpu_mb']:,.0f} MB, "
            told = f"host {cost['peak_rss_mb']:,.0f} MB, {cost['train_seconds']:.2f} s for {self.steps} steps"
            self.tell(f"{mode}: cost", gpu + told)

    def replicas(self, count: int) -> None:
        """One device against several, dropout on."""
        for mode in ("layernorm", "full"):
            one, tuned = self.train(f"{mode}-1", mode=mode)
            several, others = self.train(f"{mode}-{count}", mode=mode, replicas=count)
            loss = abs(one["result"]["epochs"][0]["train_loss"] - several["result"]["epochs"][0]["train_loss"])
            # The gradient of a key's bias is rounding alone, which Adam makes as large as any.
            held = [name for name in tuned if "key.bias" not in name]
            apart = max(float(np.abs(tuned[name] - others[name]).max()) for name in held)
            told = f"loss differs by {loss:.1e}, weights by {apart:.1e}"
            self.tell(f"{mode}: 1 and {count} devices", told, loss < 1e-5)

    def precisions(self) -> None:
        """What each precision and XLA give beside float32."""
        exact, _ = self.train("exact", mode="layernorm")
        others: dict[str, dict[str, Any]] = {name: {"precision": name} for name in ("tf32", "bfloat16", "float16")}
        others["XLA"] = {"jit_compile": "on"}
        for name, more in others.items():
            try:
                record, _ = self.train(name, mode="layernorm", **more)
            except RuntimeError as error:
                self.tell(f"layernorm in {name}", str(error), False)
                continue
            losses = [each["result"]["epochs"][0]["train_loss"] for each in (exact, record)]
            seconds = [each["cost"]["train_seconds"] for each in (exact, record)]
            differ = abs(losses[0] - losses[1])
            told = f"loss {differ:.1e} from float32's, {seconds[1] / seconds[0]:.2f} of its time"
            self.tell(f"layernorm in {name}", told, differ < 0.05)

    def kernels(self, mode: str) -> None:
        """Which kernels a step spends its time in, and what it copies between host and GPU."""
        from tensorflow.tsl.profiler.protobuf import xplane_pb2

        folder = self.folder / f"profile-{mode}"
        command = [sys.executable, "-c", PROFILED, self.model, mode, str(folder)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        stored = list(folder.rglob("*.xplane.pb"))
        if done.returncode or not stored:
            return self.tell(f"{mode}: kernels", (done.stderr.strip().splitlines() or ["no profile"])[-1], False)
        spent: Counter[str] = Counter()
        for plane in xplane_pb2.XSpace.FromString(stored[0].read_bytes()).planes:
            if plane.name.startswith("/device:GPU" if self.device == "gpu" else "/host:CPU"):
                names = {number: event.name for number, event in plane.event_metadata.items()}
                for line in plane.lines:
                    for event in line.events:
                        spent[names[event.metadata_id]] += event.duration_ps
        if self.device == "cpu":  # operations are `name:Kind` there, among much else
            kinds: Counter[str] = Counter()
            for name, time in spent.items():
                if ":" in name and "::" not in name and " " not in name:
                    kinds[name.rpartition(":")[2]] += time
            spent = kinds
        total = sum(spent.values()) or 1
        copies = sum(time for name, time in spent.items() if name.lower().startswith(("memcpyd2h", "memcpyh2d")))
        self.tell(f"{mode}: copies between host and GPU", f"{100 * copies / total:.1f} % of the device's time")
        for name, time in spent.most_common(8):
            print(f"    {100 * time / total:5.1f} %  {name[:100]}")
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu tries the check itself")
    parser.add_argument("--model", default="demo", help="a hub name, a folder, or `demo`")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each run")
    arguments = parser.parse_args()
    quiet.set_verbosity(0)
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    from tfmt.runs.origin import git_state, package_versions

    quiet.import_tensorflow(0)
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if arguments.device == "gpu" and not gpus:
        parser.error("TensorFlow sees no GPU here; --device=cpu tries the check itself")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    print(f"```\ndevices   {', '.join(names) or 'CPU'}; tfmt {git_state()[0] or 'installed'}")
    print("packages  " + ", ".join(f"{name} {version}" for name, version in package_versions().items()))
    with tempfile.TemporaryDirectory() as folder:
        check = Check(arguments.device, arguments.model, arguments.steps, Path(folder))
        check.modes()
        if arguments.device == "cpu" or len(gpus) > 1:
            check.replicas(len(gpus) if len(gpus) > 1 else 2)
        else:
            check.tell("1 and several devices", "there is one GPU")
        check.precisions()
        for mode in ("layernorm", "random"):
            check.kernels(mode)
    print("```")
    return int(check.failed)


if __name__ == "__main__":
    sys.exit(main())
