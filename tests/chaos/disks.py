"""Disks that fill up and folders whose permission goes away, as output, as cache and as TMPDIR."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import Ended
from world import MODES, Trial, Whole

PAGE = 4096
# root reads and writes everything, unless it gives that up.
HUMBLE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


class CannotMountError(Exception):
    """Mounting is not allowed here."""


def disk_trial(trial: Trial) -> None:
    """One of the kinds below, in turn."""
    number = int(trial.found.name.partition(":")[2])
    what, kind = KINDS[number % len(KINDS)]
    trial.found.what = what
    try:
        kind(trial)
    except CannotMountError as error:
        trial.found.skipped = f"no tmpfs can be mounted here ({error})"


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mounts an empty tmpfs on a folder."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise CannotMountError(done.stderr.strip())
    try:
        yield
        # What lay there is kept for whoever looks into the trial's folder.
        shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"), dirs_exist_ok=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def make_space(folder: Path) -> None:
    """Gives a small disk 64 MiB."""
    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)


def _used(folder: Path) -> int:
    """Bytes that a folder's files take on a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE + PAGE for path in folder.rglob("*") if path.is_file())


def _full_output(trial: Trial) -> None:
    mode = trial.random.choice(list(MODES))
    _fill_output(trial, trial.world.train(mode, trial), trial.world.whole(mode))


def _full_output_of_sweep(trial: Trial) -> None:
    _fill_output(trial, trial.world.sweep(trial), trial.world.whole("sweep"))


def _fill_output(trial: Trial, command: list[str], whole: Whole) -> None:
    # The end takes about as much as the middle, where the checkpoint lies beside what will stay.
    size = PAGE * trial.random.randint(1, max(2, _used(whole.output) // PAGE))
    with small_disk(trial.output, size):
        # Half of the sweeps are to tell of their workers' full disk; a run needs no process of its own to meet one.
        ended = (trial.run if trial.random.random() < 0.5 and "--workers=2" in command else trial.run_warm)(command)
        trial.found.done += 1
        _look_at_refusal(trial, ended, "disk is full", size)
        make_space(trial.output)
        trial.finish(command)
        trial.compare(whole.output)


def _full_cache(trial: Trial) -> None:
    mode = trial.random.choice(list(MODES))
    whole, size = trial.world.whole(mode), PAGE * trial.random.randint(1, 12)
    with small_disk(trial.cache, size):
        ended = trial.run_warm(trial.world.train(mode, trial))
        trial.found.done += 1
        if ended.status:
            trial.found.lost.append(f"a cache of {size:,} bytes ended a run with {ended.status}: {ended.last}")
        else:
            trial.compare(whole.output)


def _full_tmpdir(trial: Trial) -> None:
    mode = trial.random.choice(list(MODES))
    command, whole = trial.world.train(mode, trial), trial.world.whole(mode)
    with small_disk(trial.temporary, PAGE):
        (trial.temporary / "full").write_bytes(b"x" * PAGE)
        ended = trial.run(command)
        trial.found.done += 1
        _look_at_refusal(trial, ended, str(trial.temporary), PAGE)
        (trial.temporary / "full").unlink()
        make_space(trial.temporary)
        trial.finish(command)
        trial.compare(whole.output)


def _no_permission(trial: Trial) -> None:
    mode = trial.random.choice(list(MODES))
    _take_permission(trial, trial.world.train(mode, trial), trial.world.whole(mode))


def _no_permission_in_sweep(trial: Trial) -> None:
    _take_permission(trial, trial.world.sweep(trial), trial.world.whole("sweep"))


def _take_permission(trial: Trial, command: list[str], whole: Whole) -> None:
    """Takes the right to write away from the folders that there are at some moment, and gives it back later."""
    humble: list[str] = []
    if os.geteuid() == 0:
        if subprocess.run([*HUMBLE, "true"], capture_output=True).returncode:
            trial.found.skipped = "root writes everywhere, and setpriv is not allowed here"
            return
        humble = HUMBLE
    victim = trial.start([*humble, *command])
    moment = whole.seconds * trial.random.uniform(0.05, 0.95)
    if not victim.wait_for_seconds(moment):
        trial.look_at(victim.end())
        return
    victim.send(signal.SIGSTOP, victim.family())
    folders = [path for path in (trial.output, *sorted(trial.output.rglob("*"))) if path.is_dir()]
    taken = folders if trial.random.random() < 0.5 else folders[-1:]
    for folder in taken:
        folder.chmod(0o555)
    victim.send(signal.SIGCONT, victim.family())
    trial.found.done += 1
    ended = victim.end()
    for folder in taken:
        folder.chmod(0o755)
    trial.look_at(ended)
    _look_at_refusal(trial, ended, "cannot be written", 0)
    trial.finish(command)
    trial.compare(whole.output)


def _look_at_refusal(trial: Trial, ended: Ended, words: str, size: int) -> None:
    """A command that met a disk that refuses says so, with the place; or it never met it."""
    about = f"disk of {size:,} bytes" if size else "no permission"
    if ended.status not in (0, 1, 2):
        trial.found.unnoticed.append(f"{about}: ended with {ended.status}: {ended.last}")
    elif ended.status and (words not in ended.said or str(trial.folder) not in ended.said):
        trial.found.unnoticed.append(f"{about}: ended with {ended.status} and does not say why: {ended.last}")
    else:
        trial.found.notes.append(f"{about}: ended with {ended.status}: {ended.last}")
    trial.look_for_failures()


KINDS = (
    ("full disk, as output of a run", _full_output),
    ("permission lost, in a run", _no_permission),
    ("full disk, as output of a sweep", _full_output_of_sweep),
    ("full disk, as cache", _full_cache),
    ("permission lost, in a sweep", _no_permission_in_sweep),
    ("full disk, as TMPDIR", _full_tmpdir),
)
