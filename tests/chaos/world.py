"""The toy that is tried on: model, text, commands, uninterrupted runs, and what an end is compared in."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import MARK, Ended, Victim, wait_for_none
from warm import Warm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conftest import write_toy_bert, write_toy_mrpc

# A run's kinds: whole small variables; a mask by Fisher information, which leaves a file of its own.
MODES = {"layernorm": ["--mode=layernorm"], "fisher": ["--mode=fisher", "--mask_fraction=0.25", "--fisher_examples=32"]}
FULL = {"full": ["--mode=full"]}  # alone keeps how its weights are distributed
EPOCHS = 24  # so that half of a run's life is training
TRIES = 4  # starts after which a command that does not come to its end has lost its work
PATIENCE = 20.0  # seconds in which every process has to be gone after its command's end
RECORDED = ("status", "parameters", "result", "proof", "change", "fisher", "tuned_sha256")


@dataclass
class Found:
    """What one trial found; each list holds a line for each trouble."""

    name: str
    what: str = ""
    done: int = 0
    identical: int = 0
    noticed: int = 0
    differing: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unnoticed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    folder: str = ""

    @property
    def troubles(self) -> list[str]:
        """All troubles, each with its kind."""
        kinds = {"differs": self.differing, "lost": self.lost, "left behind": self.left, "unnoticed": self.unnoticed}
        return [f"{kind}: {line}" for kind, lines in kinds.items() for line in lines]


class Trial:
    """A folder of its own, with its cache, its TMPDIR and its outputs, and commands in it.

    Args:
      world: the toy.
      name: `kind:number`, which with the seed decides what it does.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.found = world, Found(name)
        self.folder = world.folder / "trials" / name.replace(":", "-")
        self.found.folder = str(self.folder)
        self.random = random.Random(f"{world.seed} {name}")
        self.number = int(name.partition(":")[2]) if name.partition(":")[2].isdigit() else 0
        self.mark = f"{os.getpid()}-{name}"
        self.output, self.cache, self.temporary = (self.folder / part for part in ("runs", "cache", "tmp"))
        for made in (self.output, self.cache, self.temporary):
            made.mkdir(parents=True)

    def environment(self) -> dict[str, str]:
        """Of a command in this trial."""
        own = {"TFMT_CACHE": str(self.cache), "TMPDIR": str(self.temporary), MARK: self.mark}
        return os.environ | own

    def start(self, command: list[str]) -> Victim:
        """Starts a command."""
        with (self.folder / "commands.txt").open("a") as file:
            file.write(" ".join(command) + "\n")
        return Victim(command, self.environment(), self.folder)

    def run(self, command: list[str]) -> Ended:
        """Runs a command to its end."""
        ended = self.start(command).end()
        self.look_at(ended)
        return ended

    def run_warm(self, command: list[str]) -> Ended:
        """Runs a command to its end, to which nothing happens meanwhile, in a process that has TensorFlow already."""
        command = ["--workers=0" if flag.startswith("--workers=") else flag for flag in command]
        with (self.folder / "commands.txt").open("a") as file:
            file.write(" ".join(command) + "\n")
        ended = self.world.warm().run(command, self.environment(), self.folder)
        self.look_at(ended)
        return ended

    def look_at(self, ended: Ended) -> None:
        """Notes what no command may say."""
        if "Traceback (most recent call last)" in ended.said:
            self.found.unnoticed.append(f"a traceback instead of a line: {ended.last}")
        if "chaos: it hung" in ended.said:
            self.found.lost.append("a command hung")

    def finish(self, command: list[str]) -> Ended:
        """Gives the same command again until it ends well; each fifth trial in a process of its own, as a user does."""
        for again in range(TRIES):
            ended = (self.run if self.number % 5 == 0 else self.run_warm)(command)
            if ended.status == 0:
                break
            self.found.notes.append(f"start {again + 1} after it ended with {ended.status}: {ended.last}")
        else:
            self.found.lost.append(f"the same command ended {TRIES} times with {ended.status}: {ended.last}")
        return ended

    def compare(self, reference: Path, *, allowed: tuple[str, ...] = ()) -> None:
        """Compares every run with the uninterrupted one, and looks for what is left."""
        found, before = self.found, len(self.found.troubles)
        for whole in sorted(reference.iterdir()):
            _compare_run(whole, self.output / whole.name, found, allowed)
        if extra := sorted(set(os.listdir(self.output)) - set(os.listdir(reference))):
            found.left.append(f"below the output: {', '.join(extra)}")
        self.look_for_leftovers()
        found.identical += len(found.troubles) == before

    def look_for_failures(self) -> None:
        """Looks for runs that a record calls failed, though it was the surroundings that failed."""
        for path in sorted(self.output.glob("*/record.json")):
            with suppress(OSError, ValueError, KeyError, TypeError):
                if (record := json.loads(path.read_text()))["status"] == "failed":
                    self.found.lost.append(f"{path.parent.name}: recorded as failed, {record['error']}")

    def look_for_leftovers(self) -> None:
        """Looks for processes and temporary files after an end."""
        if pids := wait_for_none(self.mark, PATIENCE):
            self.found.left.append(f"{len(pids)} processes {PATIENCE:.0f} s after the end")
        if files := sorted(str(path.relative_to(self.folder)) for path in find_hidden(self.cache, self.output)):
            self.found.left.append(f"temporary files: {', '.join(files)}")
        if files := sorted(os.listdir(self.temporary)):
            self.found.left.append(f"in TMPDIR: {', '.join(files)}")


class World:
    """The toy's files, and the uninterrupted runs that every end is compared with.

    Args:
      folder: where everything goes.
      seed: decides all that is drawn.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.model = write_toy_bert(folder / "bert", seed=1)
        self.data = write_toy_mrpc(folder / "glue", train=160, validation=40)
        self._known: dict[str, Any] = {}
        self._locks: dict[str, threading.RLock] = {}
        self._warm = threading.local()
        self._all_warm: list[Warm] = []

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """What is made at its first use; lanes that want it meanwhile wait."""
        with self._locks.setdefault(key, threading.RLock()):
            if key not in self._known:
                self._known[key] = make()
            return self._known[key]

    def warm(self) -> Warm:
        """This lane's process that has TensorFlow."""
        if not hasattr(self._warm, "process"):
            self._warm.process = Warm(self.folder)
            self._all_warm.append(self._warm.process)
        process: Warm = self._warm.process
        return process

    def close(self) -> None:
        """Ends these processes."""
        for process in self._all_warm:
            process.close()

    def train(self, mode: str, trial: Trial, model: Path | None = None) -> list[str]:
        """The command of a single run."""
        how = (MODES | FULL)[mode]
        return [sys.executable, "-m", "tfmt.train", *self._shared(trial, model), *how, f"--epochs={EPOCHS}"]

    def sweep(self, trial: Trial, epochs: int = 12, workers: int = 2) -> list[str]:
        """The command of a sweep of four runs."""
        return [sys.executable, "-m", "tfmt.sweep", *self._shared(trial), "--mode=layernorm,frozen", "--seed=0,1",
                f"--epochs={epochs}", f"--workers={workers}"]  # fmt: skip

    def sweep_of_one(self, trial: Trial) -> list[str]:
        """The command of a sweep of one run, that of `train("layernorm", ...)`."""
        return [sys.executable, "-m", "tfmt.sweep", *self._shared(trial), *MODES["layernorm"], "--seed=0",
                f"--epochs={EPOCHS}", "--workers=0"]  # fmt: skip

    def _shared(self, trial: Trial, model: Path | None = None) -> list[str]:
        return [f"--model={model or self.model}", f"--data_dir={self.data}", "--task=mrpc", "--max_length=32",
                "--learning_rate=1e-2", f"--output_dir={trial.output}"]  # fmt: skip

    def whole(self, kind: str) -> Whole:
        """The uninterrupted run of a mode, or the uninterrupted sweep."""
        return self.once(f"whole {kind}", lambda: self._measure(kind))

    def _measure(self, kind: str) -> Whole:
        """Runs a command uninterrupted: its ends, and how long and of how many changes its life is."""
        trial = Trial(self, f"whole:{kind}")
        victim = trial.start(self.sweep(trial) if kind == "sweep" else self.train(kind, trial))
        changes = Changes(trial.output)
        while victim.lives:
            changes.look()
            if changes.looks % 20 == 0:
                victim.seconds()
            changes.pause()
        ended = victim.end()
        if ended.status != 0:
            raise SystemExit(f"chaos: an uninterrupted {kind} ended with {ended.status}:\n{ended.said}")
        return Whole(trial.output, trial.cache, victim.seconds(), changes.count)


@dataclass
class Whole:
    """What an uninterrupted command left, the seconds of computing that it took, and the changes that it made."""

    output: Path
    cache: Path
    seconds: float
    changes: int


class Changes:
    """Counts how often the names and files below a folder change."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._seen = folder, set(_inodes(folder))
        self.count = self.looks = 0

    def look(self) -> int:
        """Counts anew; the number so far."""
        now = set(_inodes(self._folder))
        self.count += now != self._seen
        self._seen = now
        self.looks += 1
        return self.count

    def pause(self) -> None:
        """Between two looks."""
        time.sleep(0.002)


def _inodes(folder: Path) -> Iterator[tuple[str, int]]:
    try:
        for entry in os.scandir(folder):
            yield entry.path, entry.inode()
            if entry.is_dir(follow_symlinks=False):
                yield from _inodes(Path(entry.path))
    except OSError:
        return


def find_hidden(*folders: Path) -> Iterator[Path]:
    """Temporary files below folders."""
    for folder in folders:
        yield from (path for path in folder.rglob(".*") if path.is_file())


def _compare_run(whole: Path, folder: Path, found: Found, allowed: tuple[str, ...]) -> None:
    name = folder.name
    if not (folder / "record.json").exists():
        found.lost.append(f"{name}: no record")
        return
    try:
        record, expected = (json.loads((path / "record.json").read_text()) for path in (folder, whole))
    except ValueError as error:
        found.unnoticed.append(f"{name}: record.json is broken after a good end ({error})")
        return
    if record["status"] != expected["status"]:
        found.lost.append(f"{name}: {record['status']}, {record['error']}")
        return
    for part in RECORDED:
        if _timeless(record.get(part)) != _timeless(expected.get(part)):
            found.differing.append(f"{name}: record.json's {part}")
    names, wanted = (_names(path) for path in (folder, whole))
    for file in sorted(wanted - names):
        found.lost.append(f"{name}: no {file}")
    for file in sorted(wanted & names - {"record.json", "spec.json"}):
        if (whole / file).is_file() and (folder / file).read_bytes() != (whole / file).read_bytes():
            found.differing.append(f"{name}: {file}")
    extra = sorted(file for file in names - wanted if not any(word in file for word in allowed))
    if extra:
        found.left.append(f"{name}: {', '.join(extra)}")


def _timeless(part: Any) -> Any:
    """A part of a record without its times."""
    if isinstance(part, dict):
        return {key: _timeless(value) for key, value in part.items() if not key.endswith("seconds")}
    return [_timeless(value) for value in part] if isinstance(part, list) else part


def _names(folder: Path) -> set[str]:
    """What lies in a run's folder, without TensorBoard's files, of which each start makes one."""
    return {name for name in os.listdir(folder) if not name.startswith("events.")}


def copy(source: Path, target: Path) -> None:
    """Puts a copy of a folder's content into another."""
    shutil.copytree(source, target, dirs_exist_ok=True)
