"""Kills, stops and signals: single runs, sweeps, and two processes in one folder."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from processes import Ended, Victim, computed, find_marked, wait_for_none
from world import PATIENCE, Changes, Trial, Whole, find_hidden

from tfmt.study.sweep import TRIES

KILLS = 3  # of one run, one after another
KILLS_OF_SWEEP = 2
LAST_CHANGES = 8  # of a folder, from the last checkpoint to the end
LEASE_SECONDS = 6.0
# The real command with a lease that a trial can outlast.
IMPATIENT = (
    f"import sys, tfmt.runs.lease as l; l.LEASE_SECONDS, l.BEAT_SECONDS = {LEASE_SECONDS}, 0.5; "
    "from tfmt.train import main; sys.exit(main())"
)
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
STARTED = 1.5  # seconds of computing after which a command has taken charge of signals


def kill_run(trial: Trial) -> None:
    """SIGKILL at moments drawn evenly from the whole life, by computing time or by the changes of its folder."""
    mode = _draw_mode(trial)
    whole, command = trial.world.whole(mode), trial.world.train(mode, trial)
    saved = False
    for _ in range(KILLS):
        victim = trial.start(command)
        if not _wait_for_moment(trial, victim, whole):
            trial.look_at(victim.end())
            break
        victim.send(signal.SIGKILL)
        trial.look_at(victim.end())
        trial.found.done += 1
        trial.found.notes.append(f"killed at {victim.seconds():.1f} of {whole.seconds:.1f} s")
        saved = saved or any(trial.output.glob("*/checkpoint/state*.safetensors"))
    recorded = any(trial.output.glob("*/record.json"))
    trial.finish(command)
    trial.compare(whole.output)
    if saved and not recorded and not _resumed(trial.output):
        trial.found.lost.append("its checkpoint was not taken up")


def _draw_mode(trial: Trial) -> str:
    return trial.random.choice(("layernorm", "layernorm", "fisher"))  # whose set-up takes twice as long


def _wait_for_moment(trial: Trial, victim: Victim, whole: Whole, part: float = 0.95) -> bool:
    """Waits for a moment of a command's life, or of its first part; False if it ended before.

    The last seconds of computing are as likely missed as met; the changes of the folder go to the last one, after
    which a run tidies up.
    """
    kind = trial.random.random()
    moment, late = trial.random.uniform(0.0, part * whole.seconds), trial.random.randint(1, LAST_CHANGES)
    delay = trial.random.choice((0.0, 0.0, 0.02))
    if kind < 0.5:
        return victim.wait_for_seconds(moment)
    wanted = trial.random.randint(1, whole.changes) if kind < 0.8 or part < 0.9 else whole.changes + 1 - late
    changes = Changes(trial.output)
    reached = victim.wait_until(lambda: changes.look() >= wanted, pause=0.001)
    time.sleep(delay)
    return reached and victim.lives


def _resumed(output: Path) -> bool:
    records = [json.loads(path.read_text()) for path in output.glob("*/record.json")]
    return bool(records) and all(record["cost"] and record["cost"]["resumed"] for record in records)


def kill_sweep(trial: Trial) -> None:
    """SIGKILL of a sweep's parent, of a worker, of both, or of parts of one of two sweeps on a folder."""
    what, kind = SWEEPS[trial.number % len(SWEEPS)]
    trial.found.what = f"kills, {what}"
    kind(trial)


def _kill_parent(trial: Trial) -> None:
    _kill_again(trial, "parent")


def _kill_both(trial: Trial) -> None:
    _kill_again(trial, "both")


def _kill_again(trial: Trial, who: str) -> None:
    """A sweep and then the one that goes on from it."""
    whole, command = trial.world.whole("sweep"), trial.world.sweep(trial)
    for _ in range(KILLS_OF_SWEEP):
        victim = trial.start(command)
        if not _wait_for_moment(trial, victim, whole):
            _expect(trial, victim.end(), (0,))
            break
        _kill(trial, victim, who)
        trial.look_at(victim.end())
        # Else the next sweep meets the workers of the last one.
        if trial.random.random() < 0.5 and (left := wait_for_none(trial.mark, PATIENCE)):
            trial.found.left.append(f"{len(left)} workers {PATIENCE:.0f} s after their sweep was killed")
    trial.finish(command)
    trial.compare(whole.output)


def _kill(trial: Trial, victim: Victim, who: str) -> None:
    """Kills a sweep, one of its workers, or both with all workers."""
    workers = victim.workers()
    trial.random.shuffle(workers)
    chosen = {"parent": [victim.pid], "worker": workers[:1], "both": [victim.pid, *workers]}[who]
    victim.send(signal.SIGKILL, chosen)
    trial.found.done += bool(chosen)
    trial.found.notes.append(f"killed: {who}, {len(workers)} workers, at {victim.seconds():.1f} s")


def _kill_workers(trial: Trial) -> None:
    """Workers of one sweep, which goes on with others; a run that dies of it twice in fresh processes has failed."""
    whole, command = trial.world.whole("sweep"), trial.world.sweep(trial)
    victim = trial.start(command)
    for moment in sorted(trial.random.uniform(0.0, 1.2 * whole.seconds) for _ in range(TRIES - 1)):
        if victim.wait_for_seconds(moment) and victim.wait_until(lambda: bool(victim.workers())):
            _kill(trial, victim, "worker")
    _expect(trial, victim.end(), (0, 1))
    trial.finish([*command, "--retry_failed"])
    trial.compare(whole.output)


def _kill_every_worker(trial: Trial) -> None:
    """Every worker soon after it begins, as a machine without memory does, until the sweep gives up."""
    whole, command = trial.world.whole("sweep"), trial.world.sweep(trial)
    victim = trial.start(command)
    lives = trial.random.uniform(0.5, 3.0)
    killed = 0
    while victim.wait_until(lambda: any(computed(pid) > lives for pid in victim.workers()), pause=0.2):
        old = [pid for pid in victim.workers() if computed(pid) > lives]
        victim.send(signal.SIGKILL, old)
        killed += len(old)
    trial.found.done += bool(killed)
    trial.found.notes.append(f"killed: {killed} workers after {lives:.1f} s each")
    _expect(trial, victim.end(), (1,), ("died", "same command"))
    trial.finish([*command, "--retry_failed"])  # what dies twice in fresh processes is recorded as failed
    trial.compare(whole.output)


def _kill_one_of_two(trial: Trial) -> None:
    """Parts of one of two sweeps on a folder; the other takes its runs over."""
    whole, command = trial.world.whole("sweep"), trial.world.sweep(trial)
    victim = trial.start(command)
    time.sleep(trial.random.uniform(0.0, 3.0))
    other = trial.start(trial.world.sweep(trial, workers=1))
    who = trial.random.choice(("parent", "worker", "both"))
    met = _wait_for_moment(trial, victim, whole, 0.6)
    if met and (who != "worker" or victim.wait_until(lambda: bool(victim.workers()))):
        _kill(trial, victim, who)
    ended = victim.end()
    trial.look_at(ended)
    if who == "worker":
        _expect(trial, ended, (0,))
    _expect(trial, other.end(), (0,))
    trial.finish(command)
    trial.compare(whole.output)


SWEEPS = (
    ("a sweep", _kill_parent),
    ("workers of a sweep", _kill_workers),
    ("a sweep with its workers", _kill_both),
    ("one of two sweeps on a folder", _kill_one_of_two),
    ("every worker, again and again", _kill_every_worker),
)


def orphan(trial: Trial) -> None:
    """SIGKILL of a sweep in the middle of long runs: its workers have to go as well."""
    victim = trial.start(trial.world.sweep(trial, epochs=5000))
    if not victim.wait_until(lambda: len({path.parent for path in trial.output.glob("*/checkpoint/state*")}) > 1):
        trial.found.lost.append(f"no checkpoints: {victim.end().last}")
        return
    workers = victim.workers()
    victim.send(signal.SIGKILL)
    victim.end()
    trial.found.done += 1
    if left := wait_for_none(trial.mark, PATIENCE):
        trial.found.left.append(
            f"{len(left)} processes {PATIENCE:.0f} s after a sweep of {len(workers)} workers was killed"
        )
    else:
        trial.found.identical += 1


def stop_run(trial: Trial) -> None:
    """SIGSTOP for longer than a lease, while another process takes the run over; then both go on."""
    mode = _draw_mode(trial)
    whole, patient = trial.world.whole(mode), trial.world.train(mode, trial)
    command = list(patient)
    command[1:3] = ["-c", IMPATIENT]
    first = trial.start(command)
    # Before its set-up is done there is no lease to outlast.
    moment = whole.seconds * trial.random.uniform(0.4, 1.0)
    if not first.wait_for_seconds(moment):
        trial.look_at(first.end())
        return
    first.send(signal.SIGSTOP)
    trial.found.done += 1
    time.sleep(LEASE_SECONDS + 1.0)
    second = trial.start(command)
    wakes = trial.random.uniform(0.0, whole.seconds) if trial.random.random() < 0.7 else float("inf")
    second.wait_for_seconds(wakes)
    first.send(signal.SIGCONT)
    for victim in (first, second):
        _expect(trial, victim.end(), (0, 1), ("taken", "is at it"))
    trial.finish(patient)
    trial.compare(whole.output)


def signal_run(trial: Trial) -> None:
    """SIGTERM, SIGHUP, SIGINT or SIGUSR1 to a run or a sweep: it ends with a word, and leaves nothing half-made."""
    number = trial.number
    kind = "sweep" if number % 5 == 4 else _draw_mode(trial)
    sent, whole = SIGNALS[number % len(SIGNALS)], trial.world.whole(kind)
    command = trial.world.sweep(trial) if kind == "sweep" else trial.world.train(kind, trial)
    victim = trial.start(command)
    moment = trial.random.uniform(0.0, whole.seconds)
    if not victim.wait_for_seconds(moment):
        trial.look_at(victim.end())
        return
    victim.send(sent)
    trial.found.done += 1
    ended = victim.end(120.0)
    trial.look_at(ended)
    if ended.status not in (0, -sent) or (ended.status and moment > STARTED and "stopped by" not in ended.said):
        trial.found.unnoticed.append(f"{sent.name} at {moment:.1f} s: status {ended.status}, {ended.last!r}")
    if left := find_marked(trial.mark) and wait_for_none(trial.mark, 2.0):
        trial.found.left.append(f"{len(left)} processes after {sent.name}")
    if files := [path.name for path in find_hidden(trial.output, trial.cache)]:
        trial.found.left.append(f"after {sent.name}: {', '.join(files)}")
    trial.finish(command)
    trial.compare(whole.output)


def _expect(trial: Trial, ended: Ended, statuses: tuple[int, ...], words: tuple[str, ...] = ()) -> None:
    """Notes an end that is none of those that may be; one that is no success has to say one of these words."""
    trial.look_at(ended)
    said = not words or not ended.status or any(word in ended.last for word in words)
    if ended.status not in statuses or not said:
        trial.found.unnoticed.append(f"ended with {ended.status}: {ended.last}")
