"""How fast tfmt is, as ratios of one run: a table of eight goals, and JSON.

    python tests/benchmarks/speed.py [--torch=.venv-interop/bin/python] [--data_dir=glue] [--quick]

Two processes, tfmt's (speed_tfmt.py) and PyTorch's (speed_torch.py), take turns, one waiting while the other works; a
ratio is the median over repetitions of neighbouring times, so that a busy machine slows both. It slows
PyTorch more, whose threads wait for each other: only a quiet machine's numbers mean anything. The model is the packaged
MiniLM. With --data_dir the text is MRPC from GLUE's files, which the goals are about; without it, the packaged
sentences, which are shorter. Epochs are compared by their seconds per token without padding, on a share of their steps;
evaluation is of the whole split.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROWS = 16
GOALS = ("1", "4", "5", "6", "8")
SLICES = 4  # of an epoch's share, between which NumPy's rate is measured
ABSENT = "not measured: make bench-env"


# A training command that ends as soon as its first step has.
FIRST_STEP = """
import os, sys
from tfmt import quiet, train
quiet.import_tensorflow(0)  # as the command does
from tfmt.training.workbench import Workbench
real = Workbench.train_step
def step(bench, batch):
    float(real(bench, batch))
    os._exit(0)
Workbench.train_step = step
sys.exit(train.main(sys.argv[1:]) or "no step was taken")
"""


class Side:
    """A process that answers requests."""

    def __init__(self, python: str, *script: str) -> None:
        self._told = tempfile.TemporaryFile("w+")  # noqa: SIM115  (shown if the process fails)
        self._process = subprocess.Popen(
            [python, str(HERE / script[0]), *script[1:]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, text=True,
        )  # fmt: skip

    def ask(self, do: str, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do} | request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._told.seek(0)
            raise SystemExit(f"{self._told.read()}\nspeed.py: {self._process.args} ended at {do}")
        return json.loads(line)

    def end(self) -> None:
        self._process.communicate()


class Bench:
    """The goals, one method each; `rows` of the table gather in the order of their calls."""

    def __init__(self, torch: str, data: Path, folder: str, *, quick: bool) -> None:
        self.torch_python, self.data, self.folder = torch, str(data), folder
        self.repetitions, self.share = (3, 0.04) if quick else (5, 0.15)
        # Of fewer texts more is padding: their batches span more lengths.
        self.evaluated_share = 0.2 if quick else 1.0
        self.rows: list[dict[str, Any]] = []
        self.tfmt = Side(sys.executable, "speed_tfmt.py")
        self.torch = Side(torch, "speed_torch.py") if torch else None

    def add(self, goal: str, what: str, target: str, holds: Callable[[float], bool] | None, values: list[float] | None,
            unit: str = "") -> None:  # fmt: skip
        row: dict[str, Any] = {"goal": goal, "what": what, "target": target + unit}
        if not values:
            row |= {"measured": ABSENT, "holds": "-", "repetitions": 0}
        else:
            middle = statistics.median(values)
            row |= {"measured": round(middle, 3), "holds": "-" if holds is None else "yes" if holds(middle) else "no",
                    "repetitions": len(values), "values": [round(value, 4) for value in values]}  # fmt: skip
        self.rows.append(row)
        print(
            f"  {goal:3} {what}: {row['measured']}{unit} (target {row['target'] or 'none'})",
            file=sys.stderr,
            flush=True,
        )

    # ---- goals -----------------------------------------------------------------------------------------------------

    def epochs(self) -> None:
        """Goals 1, 2, 3 and 7."""
        config = json.loads((Path(self.folder) / "config.json").read_text())
        hidden, blocks = config["hidden_size"], config["num_hidden_layers"]
        weights = blocks * (4 * hidden**2 + 2 * hidden * config["intermediate_size"])
        tfmt = {"model": "demo", "data": self.data, "rows": ROWS}
        torch = {"folder": self.folder, "data": self.data, "rows": ROWS}
        self.tfmt.ask("epoch", **tfmt, share=self.share / 4, epoch=99)
        side = Side(sys.executable, "speed_tfmt.py", "plain")
        side.ask("plain", **tfmt, share=0, epoch=99)
        self.tfmt.ask("evaluate", share=self.share / 4)
        found: dict[str, list[float]] = {"plain": [], "torch": [], "cores": [], "evaluation": []}
        for epoch in range(self.repetitions):
            rates, parts = [blas_rate()], []
            for part in range(SLICES):  # so that a machine that others slow down for a while slows both
                parts.append(self.tfmt.ask("epoch", **tfmt, share=self.share / SLICES, epoch=epoch * SLICES + part))
                rates.append(blas_rate())
            ours = {name: sum(part[name] for part in parts) for name in parts[0]}
            second = ours["seconds"] / ours["tokens"]
            evaluation = self.tfmt.ask("evaluate", share=self.evaluated_share)
            if self.torch:
                theirs = self.torch.ask("epoch", **torch, share=self.share, epoch=epoch)
                found["torch"].append(theirs["seconds"] / theirs["tokens"] / second)
            plain = side.ask("plain", **tfmt, share=self.share / 2, epoch=epoch)
            found["plain"].append(plain["seconds"] / plain["tokens"] / second)
            # Forward and to the activations: 4 a weight and token; attention has 2 products forward and 4 backward.
            work = 4 * weights * ours["tokens"] + 12 * blocks * hidden * ours["squares"]
            found["cores"].append(work / ours["seconds"] / statistics.median(rates))
            found["evaluation"].append(evaluation["seconds"] / evaluation["tokens"] / second)
        side.end()
        self.add("1", "padded to 128, transformers' calls / tfmt, epoch", ">= 2.5", lambda v: v >= 2.5, found["plain"])
        self.add("2", "PyTorch, PEFT and Trainer / tfmt, epoch", ">= 1.5", lambda v: v >= 1.5, found["torch"])
        self.add(
            "3", "arithmetic of an epoch / NumPy's matrix products", ">= 0.65", lambda v: v >= 0.65, found["cores"]
        )
        self.add("7", "evaluation / training, per token", "<= 0.4", lambda v: v <= 0.4, found["evaluation"])

    def steps(self) -> None:
        """Goal 4, and what freezing the lower blocks saves."""
        for mode in ("layernorm", "bitfit", "full", "attention", "feedforward"):
            target = 1.1 if mode in ("layernorm", "bitfit") else 0.9
            for length in (64, 128):
                request = {"mode": mode, "rows": ROWS, "length": length}
                found = []
                if self.torch:
                    self.tfmt.ask("step", model="demo", **request, count=2)
                    self.torch.ask("step", folder=self.folder, **request, count=2)
                    for _ in range(2 * self.repetitions):
                        ours = min(self.tfmt.ask("step", model="demo", **request, count=2))
                        theirs = min(self.torch.ask("step", folder=self.folder, **request, count=2))
                        found.append(theirs / ours)
                self.add("4", f"step of 16 x {length}, {mode}: PyTorch / tfmt", f">= {target}",
                         lambda v, target=target: v >= target, found)  # fmt: skip
        request = {"model": "demo", "mode": "layernorm", "rows": ROWS, "length": 64}
        found = []
        for _ in range(self.repetitions + 1):
            every = min(self.tfmt.ask("step", **request, count=2))
            last = min(self.tfmt.ask("step", **request, count=2, layers="5"))
            found.append(last / every)
        self.add("", "step of 16 x 64, --layers=5 / all blocks", "<= 0.7", lambda v: v <= 0.7, found[1:])

    def memory(self) -> None:
        """Goal 5, in processes of their own: told as it is, without a target."""
        found: list[dict[str, float]] = []
        sides = [(Side(sys.executable, "speed_tfmt.py"), {"model": "demo"})]
        if self.torch:
            sides.append((Side(self.torch_python, "speed_torch.py"), {"folder": self.folder}))
        for side, request in sides:
            side.ask("epoch", **request, data=self.data, rows=ROWS, share=self.share, epoch=0)
            found.append(side.ask("memory"))
            side.end()
        for name, what in (("VmHWM", "peak memory of an epoch"), ("RssAnon", "memory after it that is no file's")):
            megabytes = [each[name] for each in found]
            told = " / PyTorch ".join(f"{value:.0f} MB" for value in megabytes)
            ratio = [megabytes[0] / megabytes[1]] if self.torch else None
            self.add("5", f"{what}, tfmt {told}", "", None, ratio)

    def starts(self, task: list[str]) -> None:
        """Goal 6, whole commands; the training command ends with its first step."""
        found: dict[str, list[float]] = {"train": [], "help": [], "dry": []}
        with tempfile.TemporaryDirectory() as output:
            small = ["--epochs=1", "--train_limit=16", "--validation_limit=16", "--mode=layernorm", "--model=demo"]
            for index in range(-1, self.repetitions):  # the first fills the caches
                train = [*task, *small, f"--seed={100 + index}", f"--output_dir={output}"]
                seconds = [run_command(["-c", FIRST_STEP, *train]), run_command(["-m", "tfmt.report", "--help"]),
                           run_command(["-m", "tfmt.train", *task, *small, "--dry_run"])]  # fmt: skip
                if index >= 0:
                    for name, value in zip(found, seconds, strict=True):
                        found[name].append(value)
        self.add("6", "tfmt-train to the end of its first step", "<= 15", lambda v: v <= 15, found["train"], " s")
        self.add("6", "tfmt-report --help", "<= 2", lambda v: v <= 2, found["help"], " s")
        self.add("6", "tfmt-train --dry_run", "<= 2", lambda v: v <= 2, found["dry"], " s")

    def growth(self) -> None:
        """Goal 8."""

        def near(value: float) -> bool:
            return value <= 2.2

        request = {"model": "demo", "data": self.data, "rows": ROWS}
        steps, examples, blocks = [], [], []
        small, share = self.share / 4, self.share / 2
        with tempfile.TemporaryDirectory() as folder:
            # From 12 blocks on, as BERT-base has: of the last one a sentence task computes next to nothing, which
            # would make 12 blocks cost 11/5 of 6.
            twelve = double_blocks(Path(self.folder), Path(folder) / "12")
            deep = double_blocks(twelve, Path(folder) / "24")
            doubled = double_examples(Path(self.data), Path(folder))
            for epoch in range(self.repetitions):
                one = self.tfmt.ask("epoch", **request, share=small, epoch=epoch)
                two = self.tfmt.ask("epoch", **request, share=share, epoch=epoch)
                per_token = two["seconds"] / two["padded"] / (one["seconds"] / one["padded"])
                steps.append(2 * per_token)
            before = self.tfmt.ask("memory")["VmRSS"]
            self.tfmt.ask("epoch", **request, share=self.share, epoch=0)
            grown = self.tfmt.ask("memory")["VmRSS"] - before
            for epoch in range(self.repetitions):
                one = self.tfmt.ask("epoch", **request, share=small, epoch=epoch)
                two = self.tfmt.ask("epoch", **request | {"data": str(doubled)}, share=small, epoch=epoch)
                examples.append(2 * two["seconds"] / two["padded"] / (one["seconds"] / one["padded"]))
            step = {"mode": "layernorm", "rows": ROWS, "length": 64}
            for _ in range(self.repetitions + 1):
                one = min(self.tfmt.ask("step", model=str(twelve), **step, count=2))
                two = min(self.tfmt.ask("step", model=str(deep), **step, count=2))
                blocks.append(two / one)
            peak = tokenising_peak(400_000)
        self.add("8", "twice the steps, time", "<= 2.2", near, steps)
        self.add("8", "twice the examples, time", "<= 2.2", near, examples)
        self.add("8", "twice the blocks (12, 24), time of a step", "<= 2.2", near, blocks[1:])
        self.add("8", "memory that an epoch's share of steps adds", "<= 20", lambda v: v <= 20, [grown], " MB")
        self.add("8", "tokenising 400,000 pairs, peak memory", "<= 2048", lambda v: v <= 2048, [peak], " MB")


# ---- measuring -----------------------------------------------------------------------------------------------------


def blas_rate() -> float:
    """FLOP/s of NumPy's float32 matrix products of an encoder's size, the median of a few."""
    a, b = np.random.default_rng(0).random((2, 1536, 1536), np.float32)
    out = np.empty_like(a)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return 2 * 1536**3 / statistics.median(seconds)


def run_command(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def double_blocks(folder: Path, target: Path) -> Path:
    """A copy of a model folder in which all blocks come twice."""
    from safetensors.numpy import load_file, save_file

    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    blocks = config["num_hidden_layers"]
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2 * blocks}))
    (target / "vocab.txt").write_bytes((folder / "vocab.txt").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        for block in range(blocks):
            if f"encoder.layer.{block}." in name:
                again = name.replace(f"encoder.layer.{block}.", f"encoder.layer.{blocks + block}.")
                tensors[again] = tensors[name]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def double_examples(data: Path, into: Path) -> Path:
    stored = dict(np.load(data))
    ends = stored["offsets"]
    stored["offsets"] = np.concatenate([ends, ends[1:] + ends[-1]])
    for name in ("ids", "first_lengths", "labels"):
        stored[name] = np.concatenate([stored[name]] * 2)
    path = into / "doubled.npz"
    np.savez(path, **stored)
    return path


def tokenising_peak(pairs: int) -> float:
    """Peak memory in MB of a process that reads and tokenises so many pairs of sentences from a file."""
    code = """
import os, resource, sys, tempfile
from pathlib import Path
os.environ["TFMT_CACHE"] = tempfile.mkdtemp()
from tfmt.bert.configs import demo_folder
from tfmt.bert.tokenizer import load_tokenizer, tokenizer_digest
from tfmt.data.demo_text import read_rotten_tomatoes
from tfmt.data.sources import read_dataset
from tfmt.data.tokens import tokenize
texts = read_rotten_tomatoes()[0]["train"].texts[0]
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "QQP").mkdir()
    for name, count in (("train", int(sys.argv[1])), ("dev", 16)):
        with (Path(folder) / "QQP" / f"{name}.tsv").open("w") as file:
            file.write("id\\tqid1\\tqid2\\tquestion1\\tquestion2\\tis_duplicate\\n")
            for i in range(count):
                one, two = (texts[(i * k) % len(texts)].replace("\\t", " ").replace('"', "") for k in (1, 7))
                file.write(f"{i}\\t{i}\\t{i}\\t{one} {i}\\t{two}\\t{i % 2}\\n")
    split = read_dataset("qqp", folder).splits["train"]
tokenizer = load_tokenizer(demo_folder())
tokens = tokenize(split, tokenizer, 128, tokenizer_digest(tokenizer), "train")
assert len(tokens) == int(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
"""
    done = subprocess.run([sys.executable, "-c", code, str(pairs)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def store_text(data_dir: str, path: Path) -> str:
    """Tokenises the training text into a file that both sides read; returns what it is."""
    from tfmt.bert.configs import demo_folder
    from tfmt.bert.tokenizer import load_tokenizer, tokenizer_digest
    from tfmt.data.sources import read_dataset
    from tfmt.data.tokens import tokenize

    task = "mrpc" if data_dir else "rotten_tomatoes"
    tokenizer = load_tokenizer(demo_folder())
    examples = read_dataset(task, data_dir).splits["train"]
    split = tokenize(examples, tokenizer, 128, tokenizer_digest(tokenizer), "train")
    np.savez(path, ids=split.ids, offsets=split.offsets, first_lengths=split.first_lengths, labels=split.labels)
    return f"{task}, {len(split):,} examples, {len(split.ids) / len(split):.0f} tokens each"


def describe_machine(bench: Bench) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line.split(":")[1].strip() for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": cpu, "load": round(os.getloadavg()[0], 1),
               "python": platform.python_version(), "tfmt side": bench.tfmt.ask("versions")}  # fmt: skip
    if bench.torch:
        machine["PyTorch side"] = bench.torch.ask("versions")
    return machine


def print_table(rows: list[dict[str, Any]]) -> None:
    names = ("goal", "what", "target", "measured", "holds", "repetitions")
    lines = [names, *(tuple(str(row[name]) for name in names) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for index, line in enumerate(lines):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch", default="", help="Python of an environment with torch, transformers, peft, accelerate"
    )
    parser.add_argument("--data_dir", default="", help="folder with GLUE's MRPC; empty for the packaged sentences")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions on a smaller share of an epoch")
    parser.add_argument("--goals", default=",".join(GOALS), help="which to measure (1 brings 2, 3 and 7)")
    parser.add_argument("--output", default="runs/bench/speed.json", help="where the numbers go")
    arguments = parser.parse_args()
    goals = arguments.goals.split(",")
    if not set(goals) <= set(GOALS):
        parser.error(f"--goals={arguments.goals}: give some of {','.join(GOALS)}")
    path = Path(arguments.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output={path}: {error.strerror}; give another file")
    torch = arguments.torch if arguments.torch and Path(arguments.torch).exists() else ""
    if not torch:
        print("speed.py: no PyTorch; `make bench-env` makes an environment for the comparisons", file=sys.stderr)
    from tfmt.bert.configs import demo_folder
    from tfmt.errors import RequestError

    started = time.strftime("%Y-%m-%d %H:%M")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "train.npz"
        try:
            text = store_text(arguments.data_dir, data)
        except RequestError as error:
            parser.error(str(error))
        bench = Bench(torch, data, str(demo_folder()), quick=arguments.quick)
        machine = describe_machine(bench)
        task = [f"--data_dir={arguments.data_dir}", "--task=mrpc"] if arguments.data_dir else ["--task=rotten_tomatoes"]
        measures = (bench.epochs, bench.steps, bench.memory, lambda: bench.starts(task), bench.growth)
        for goal, measure in zip(GOALS, measures, strict=True):
            if goal in goals:
                measure()
        bench.rows.sort(key=lambda row: row["goal"] or "4")
        print_table(bench.rows)
        print(f"\n{started}; {text}; {machine}")
        path.write_text(json.dumps({"date": started, "text": text, "machine": machine, "goals": bench.rows}, indent=1))
        for side in (bench.tfmt, bench.torch):
            if side:
                side.end()


if __name__ == "__main__":
    main()
