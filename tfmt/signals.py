"""How a signal ends a command: where its work is whole, with a word on what is kept, by that signal's own death.

A command heeds signals while it runs (`heeded`). Where nothing would be lost a signal raises `Stop` at once. Inside of
`held` it only leaves a note, which the loops of training ask for between two steps or batches (`asked`, `check`). A
library call installs nothing, and there `asked` is always 0.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

# What a terminal, a batch system or a person ends a command with. Slurm sends SIGTERM, or SIGUSR1 where sbatch is told
# so (--signal=USR1@120).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# A second signal ends a command at once. `timeout` and wrappers that pass signals on send one twice within moments.
REPEAT_SECONDS = 1.0


class Stop(BaseException):
    """A signal asks this process to end. No Exception, so that nothing takes it for something that went wrong.

    Args:
      number: the signal.
      kept: what of the work is kept, for the command's last line.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name


@dataclass
class _Note:
    asked: int = 0
    since: float = 0.0
    held: bool = False
    patient: bool = False
    terminal: bool = False


_note = _Note()


@contextmanager
def heeded(numbers: Sequence[int] = SIGNALS, *, patient: bool = False) -> Iterator[None]:
    """Inside, these signals stop the process; those that it was started to ignore (nohup) stay ignored.

    SIGHUP because the terminal is gone is no reason to stop: nobody looks any more, that is all.

    Args:
      numbers: the signals.
      patient: a second signal changes nothing; else it ends the process at once.
    """
    global _note
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _note = _Note(patient=patient, terminal=_has_terminal())
    before = {}
    try:
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _heed)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _note = _Note()


def _heed(number: int, _: Any) -> None:
    if number == signal.SIGHUP and _note.terminal and not _has_terminal():
        return
    if not _note.asked:
        _note.asked, _note.since = number, time.monotonic()
        if not _note.held:
            raise Stop(number)
    elif not _note.patient and time.monotonic() - _note.since > REPEAT_SECONDS:
        die_of(number)


def _has_terminal() -> bool:
    """Whether the process has a terminal that could be closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


@contextmanager
def held() -> Iterator[None]:
    """Inside, a signal raises nothing and waits to be asked for: there is work to be made whole first."""
    with _holding(True):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, also inside of `held`, a signal raises `Stop` at once, as does one that has come before."""
    with _holding(False):
        check()
        yield


@contextmanager
def _holding(value: bool) -> Iterator[None]:
    note, before = _note, _note.held
    note.held = value
    try:
        yield
    finally:
        note.held = before


def asked() -> int:
    """The signal that asks this process to end, or 0."""
    return _note.asked


def check(kept: str = "") -> None:
    """Raises `Stop` if a signal asks this process to end.

    Args:
      kept: what of the work is kept.
    """
    if _note.asked:
        raise Stop(_note.asked, kept)


def end_by(number: int) -> None:
    """Ends this process in order and as the signal does, which tells a shell's loop or a batch system what happened."""
    with suppress(Exception):  # what dies of a signal runs none of these, and leaves semaphores behind
        atexit._run_exitfuncs()
    die_of(number)


def die_of(number: int) -> None:
    """Ends this process at once, as the signal does."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)  # where the signal is blocked
