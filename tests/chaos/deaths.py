"""Kills, stops and signals: single runs, sweeps, and two processes in one folder."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from processes import Ended, Victim, find_marked, wait_for_none
from world import MODES, PATIENCE, Changes, Trial, Whole, _hidden

KILLS = 2  # of one run, one after another
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
    mode = trial.random.choice(list(MODES))
    whole, command = trial.world.whole(mode), trial.world.train(mode, trial)
    saved = False
    for _ in range(KILLS):
        victim = trial.start(command)
        if not _wait_for_moment(trial, victim, whole):
            break
        victim.send(signal.SIGKILL)
        trial.look_at(victim.end())
        trial.found.done += 1
        saved = saved or any(trial.output.glob("*/checkpoint/state*.safetensors"))
    recorded = any(trial.output.glob("*/record.json"))
    trial.finish(command)
    trial.compare(whole.output)
    if saved and not recorded and not _resumed(trial.output):
        trial.found.lost.append("its checkpoint was not taken up")


def _wait_for_moment(trial: Trial, victim: Victim, whole: Whole, part: float = 0.95) -> bool:
    """Waits for a moment of a command's life, or of its first part; False if it ended before.

    The last seconds of computing are as likely missed as met; the changes of the folder go to the last one.
    """
    if trial.random.random() < 0.5:
        moment = trial.random.uniform(0.0, part * whole.seconds)
        return victim.wait_until(lambda: victim.seconds() >= moment)
    changes, wanted = Changes(trial.output), trial.random.randint(1, whole.changes)
    delay = trial.random.choice((0.0, 0.0, 0.02))
    reached = victim.wait_until(lambda: changes.look() >= wanted, pause=0.001)
    time.sleep(delay)
    return reached and victim.lives


def _resumed(output: Path) -> bool:
    records = [json.loads(path.read_text()) for path in output.glob("*/record.json")]
    return bool(records) and all(record["cost"] and record["cost"]["resumed"] for record in records)


def kill_sweep(trial: Trial) -> None:
    """SIGKILL of a sweep's parent, of a worker, of both, or of parts of one of two sweeps on a folder."""
    number = int(trial.found.name.partition(":")[2])
    who = ("parent", "worker", "both", "two")[number % 4]
    whole, command = trial.world.whole("sweep"), trial.world.sweep(trial)
    victim = trial.start(command)
    other = None
    if who == "two":
        time.sleep(trial.random.uniform(0.0, 3.0))
        other = trial.start(command)
        who = trial.random.choice(("parent", "worker", "both"))
    met = _wait_for_moment(trial, victim, whole, 0.6 if other else 0.95)
    if met and (who != "worker" or victim.wait_until(lambda: bool(victim.workers()))):
        workers = victim.workers()
        trial.random.shuffle(workers)
        chosen = {"parent": [victim.pid], "worker": workers[:1], "both": [victim.pid, *workers]}[who]
        victim.send(signal.SIGKILL, chosen)
        trial.found.done += bool(chosen)
        trial.found.notes.append(f"killed: {who}, {len(workers)} workers, at {victim.seconds():.1f} s")
    if who != "worker":
        trial.look_at(victim.end())
        if other is None and trial.random.random() < 0.5 and (left := wait_for_none(trial.mark, PATIENCE)):
            trial.found.left.append(f"{len(left)} workers {PATIENCE:.0f} s after their sweep was killed")
    for sweep in filter(None, (victim if who == "worker" else None, other)):
        _expect(trial, sweep.end(), (0,))
    trial.finish(command)
    trial.compare(whole.output)


def orphan(trial: Trial) -> None:
    """SIGKILL of a sweep in the middle of long runs: its workers have to go as well."""
    victim = trial.start(trial.world.sweep(trial, epochs=5000))
    if not victim.wait_until(lambda: len(list(trial.output.glob("*/checkpoint/state*.safetensors"))) > 1):
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
    mode = trial.random.choice(list(MODES))
    whole = trial.world.whole(mode)
    command = trial.world.train(mode, trial)
    command[1:3] = ["-c", IMPATIENT]
    first = trial.start(command)
    # Before its set-up is done there is no lease to outlast.
    moment = whole.seconds * trial.random.uniform(0.4, 1.0)
    if not first.wait_until(lambda: first.seconds() >= moment):
        trial.look_at(first.end())
        return
    first.send(signal.SIGSTOP)
    trial.found.done += 1
    time.sleep(LEASE_SECONDS + 1.0)
    second = trial.start(command)
    wakes = trial.random.uniform(0.0, whole.seconds) if trial.random.random() < 0.7 else float("inf")
    second.wait_until(lambda: second.seconds() >= wakes)
    first.send(signal.SIGCONT)
    for victim in (first, second):
        _expect(trial, victim.end(), (0, 1), ("taken", "is at it"))
    trial.finish(command)
    trial.compare(whole.output)


def signal_run(trial: Trial) -> None:
    """SIGTERM, SIGHUP, SIGINT or SIGUSR1 to a run or a sweep: it ends with a word, and leaves nothing half-made."""
    number = int(trial.found.name.partition(":")[2])
    kind = "sweep" if number % 5 == 4 else trial.random.choice(list(MODES))
    sent, whole = SIGNALS[number % len(SIGNALS)], trial.world.whole(kind)
    command = trial.world.sweep(trial) if kind == "sweep" else trial.world.train(kind, trial)
    victim = trial.start(command)
    moment = trial.random.uniform(0.0, whole.seconds)
    if not victim.wait_until(lambda: victim.seconds() >= moment):
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
    if files := [path.name for path in _hidden(trial.output, trial.cache)]:
        trial.found.left.append(f"after {sent.name}: {', '.join(files)}")
    trial.finish(command)
    trial.compare(whole.output)


def _expect(trial: Trial, ended: Ended, statuses: tuple[int, ...], words: tuple[str, ...] = ()) -> None:
    """Notes an end that is none of those that may be; one that is no success has to say one of these words."""
    trial.look_at(ended)
    said = not words or not ended.status or any(word in ended.last for word in words)
    if ended.status not in statuses or not said:
        trial.found.unnoticed.append(f"ended with {ended.status}: {ended.last}")
