"""A machine's worst day, made on purpose: `make chaos`. What is lost, left behind or not noticed makes the status 1.

    python tests/chaos/chaos.py [--runs=100] [--sweeps=40] [--orphans=2] [--stops=20] [--signals=20] [--disks=24]
                                [--bits=60] [--seed=0] [--only=KIND[:NUMBER]] [--keep]

Kills single runs and sweeps, stops them for longer than a lease, sends them signals, fills their disks, takes their
permissions and flips bits of their files; then gives the same command again until it ends, and compares the end, bit
for bit, with an uninterrupted one. Commands are the real ones, in processes of their own, on a toy BERT. Moments are
counted in seconds of computing, so that other load does not shift them. For the same --seed trial n of a kind is the
same, up to the moment that a machine's timing leaves open.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bits import bit_trial
from deaths import kill_run, kill_sweep, orphan, signal_run, stop_run
from disks import disk_trial
from processes import wait_for_none
from world import Found, Trial, World

KINDS: dict[str, tuple[str, Callable[[Trial], None]]] = {
    "runs": ("kills of single runs", kill_run),
    "sweeps": ("kills of sweeps, of their workers, of both", kill_sweep),
    "orphans": ("kills of sweeps in long runs", orphan),
    "stops": ("stops for longer than a lease", stop_run),
    "signals": ("signals", signal_run),
    "disks": ("full disks, lost permissions", disk_trial),
    "bits": ("flipped bits", bit_trial),
}
COUNTS = {"runs": 100, "sweeps": 40, "orphans": 2, "stops": 20, "signals": 20, "disks": 24, "bits": 60}


def main() -> int:
    """The command; returns its exit status."""
    flags = _parse()
    folder = Path(tempfile.mkdtemp(prefix="tfmt-chaos-"))
    world = World(folder, flags.seed)
    print(f"chaos: seed {flags.seed}, in {folder}", flush=True)
    began, schedule, stopped = time.monotonic(), _Schedule(flags), threading.Event()
    try:
        with ThreadPoolExecutor(flags.lanes) as lanes:
            try:
                for lane in [lanes.submit(_work, world, schedule, stopped, flags.keep) for _ in range(flags.lanes)]:
                    lane.result()
            finally:
                stopped.set()
    except KeyboardInterrupt:
        print("chaos: interrupted; what was found until then:")
    finally:
        world.close()
    print(_table(schedule.trials))
    minutes, computed = (time.monotonic() - began) / 60, sum(os.times()[:4]) / 60
    print(f"{minutes:.1f} min, of which {computed:.1f} min of computing on {flags.lanes} lanes; seed {flags.seed}")
    troubled = [trial for trials in schedule.trials.values() for trial in trials if trial.troubles]
    for trial in troubled:
        print(f"\n{trial.name}: {trial.folder}\n  python {sys.argv[0]} --only={trial.name} --seed={flags.seed}")
        print("".join(f"  {line}\n" for line in (*trial.troubles, *trial.notes)), end="")
    if not troubled and not flags.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if troubled else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for kind, (what, _) in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=COUNTS[kind], help=f"how many {what} (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is drawn")
    parser.add_argument("--only", default="", metavar="KIND[:NUMBER]", help="one kind alone, or one trial of it")
    parser.add_argument("--lanes", type=int, default=os.cpu_count() or 1, help="trials side by side (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of trials without trouble, too")
    flags = parser.parse_args()
    kind, _, number = flags.only.partition(":")
    if (kind and kind not in KINDS) or (number and not number.isdigit()):
        parser.error(f"--only={flags.only}: give one of {', '.join(KINDS)}, or one with a number as in runs:3")
    return flags


class _Schedule:
    """Which trial comes next: of each kind until so much was done; moments missed are drawn again, within limits.

    Args:
      flags: the command's.
    """

    def __init__(self, flags: argparse.Namespace) -> None:
        self.trials: dict[str, list[Found]] = {}
        self._lock, self._doing = threading.Lock(), dict.fromkeys(KINDS, 0)
        self._left: dict[str, list[int]] = {}
        self._wanted: dict[str, int] = {}
        kind, _, number = flags.only.partition(":")
        for each in KINDS:
            count = int(getattr(flags, each)) if kind in ("", each) else 0
            if count or (kind == each and number):
                self.trials[each], self._wanted[each] = [], count
                self._left[each] = [int(number)] if number else list(range(2 * count))
        self._single = bool(number)

    def next(self) -> str | None:
        """`kind:number`; None when all is done or under way."""
        with self._lock:
            for kind, left in self._left.items():
                trials = self.trials[kind]
                done = sum(trial.done or bool(trial.skipped) for trial in trials)
                # What is under way will do as much as the others did.
                doing = self._doing[kind] * max(1.0, done / max(len(trials), 1))
                if left and (self._single or done + doing < self._wanted[kind]):
                    self._doing[kind] += 1
                    return f"{kind}:{left.pop(0)}"
        return None

    def book(self, found: Found) -> None:
        """Takes what a trial found."""
        with self._lock:
            kind = found.name.partition(":")[0]
            self._doing[kind] -= 1
            self.trials[kind].append(found)


def _work(world: World, schedule: _Schedule, stopped: threading.Event, keep: bool) -> None:
    """One lane: a trial after another."""
    while not stopped.is_set() and (name := schedule.next()):
        kind, _, number = name.partition(":")
        schedule.book(_try(world, kind, number, keep))


def _try(world: World, kind: str, number: str, keep: bool) -> Found:
    started = time.monotonic()
    trial = Trial(world, f"{kind}:{number}")
    found = trial.found
    try:
        KINDS[kind][1](trial)
    except (Exception, SystemExit) as error:  # one trial that cannot be judged must not hide what the others found
        found.lost.append(f"the trial itself failed: {type(error).__name__}: {error}")
    finally:
        wait_for_none(trial.mark, 0.0)
    told = found.skipped or "; ".join(found.troubles) or "well"
    print(f"{found.name:<12} {time.monotonic() - started:6.1f} s  {told}", flush=True)
    if not found.troubles and not keep:
        shutil.rmtree(trial.folder, ignore_errors=True)
    return found


def _table(found: dict[str, list[Found]]) -> str:
    """What was done, how often, and what came of it."""
    heads = ("done", "trials", "identical", "noticed", "differing", "lost", "left", "unnoticed", "skipped")
    rows: list[tuple[str, ...]] = [("", *heads)]
    every = [trial for trials in found.values() for trial in trials]
    names = dict.fromkeys(what for kind, trials in found.items() for what in sorted({_what(kind, t) for t in trials}))
    for name in names:
        trials = [trial for trial in every if _what(trial.name.partition(":")[0], trial) == name]
        rows.append((name, *_count(trials)))
    rows.append(("all", *_count(every)))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[at].rjust(widths[at]) for at in range(1, len(row)))]) for row in rows
    ]
    skipped = {trial.skipped for trial in every if trial.skipped}
    return "\n".join(["", *lines, *(f"skipped: {reason}" for reason in sorted(skipped))])


def _what(kind: str, trial: Found) -> str:
    return trial.what or KINDS[kind][0]


def _count(trials: list[Found]) -> tuple[str, ...]:
    lists = ("differing", "lost", "left", "unnoticed")
    numbers = [
        sum(trial.done for trial in trials), len(trials), sum(trial.identical for trial in trials),
        sum(trial.noticed for trial in trials), *(sum(len(getattr(trial, name)) for trial in trials) for name in lists),
        sum(bool(trial.skipped) for trial in trials),
    ]  # fmt: skip
    return tuple(map(str, numbers))


if __name__ == "__main__":
    sys.exit(main())
