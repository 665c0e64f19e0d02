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
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
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
    found: dict[str, list[Found]] = {}
    try:
        for kind in KINDS:
            if count := _wanted(flags, kind):
                _try_all(world, kind, count, flags, found.setdefault(kind, []))
    except KeyboardInterrupt:
        print("chaos: interrupted; what was found until then:")
    print(_table(found))
    troubled = [trial for trials in found.values() for trial in trials if trial.troubles]
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
    parser.add_argument("--keep", action="store_true", help="keep the folders of trials without trouble, too")
    flags = parser.parse_args()
    kind, _, number = flags.only.partition(":")
    if (kind and kind not in KINDS) or (number and not number.isdigit()):
        parser.error(f"--only={flags.only}: give one of {', '.join(KINDS)}, or one with a number as in runs:3")
    return flags


def _wanted(flags: argparse.Namespace, kind: str) -> int:
    return int(getattr(flags, kind)) if flags.only.partition(":")[0] in ("", kind) else 0


def _try_all(world: World, kind: str, count: int, flags: argparse.Namespace, trials: list[Found]) -> None:
    """Trials of a kind until so much was done; moments that came after the end are drawn again, within limits."""
    only = flags.only.partition(":")[2]
    for number in [int(only)] if only else range(2 * count):
        if sum(trial.done or bool(trial.skipped) for trial in trials) >= count:
            break
        trials.append(_try(world, kind, number, flags.keep))


def _try(world: World, kind: str, number: int, keep: bool) -> Found:
    started = time.monotonic()
    trial = Trial(world, f"{kind}:{number}")
    found = trial.found
    try:
        KINDS[kind][1](trial)
    except Exception as error:  # one trial that cannot be judged must not hide what the others found
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
    heads = ("done", "trials", "identical", "refused", "differing", "lost", "left", "unnoticed", "skipped")
    rows: list[tuple[str, ...]] = [("", *heads)]
    for kind, trials in found.items():
        counted = [
            sum(trial.done for trial in trials), len(trials), sum(trial.identical for trial in trials),
            sum(trial.noticed for trial in trials), *(sum(len(getattr(trial, name)) for trial in trials)
            for name in ("differing", "lost", "left", "unnoticed")), sum(bool(trial.skipped) for trial in trials),
        ]  # fmt: skip
        rows.append((KINDS[kind][0], *map(str, counted)))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[at].rjust(widths[at]) for at in range(1, len(row)))]) for row in rows
    ]
    skipped = {trial.skipped for trials in found.values() for trial in trials if trial.skipped}
    return "\n".join(["", *lines, *(f"skipped: {reason}" for reason in sorted(skipped))])


if __name__ == "__main__":
    sys.exit(main())
