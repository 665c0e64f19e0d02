"""The right to write into a run's folder, held by one process at a time, also on a disk that machines share.

A lease is a file `lease.<n>` in the run's folder; the highest number names the owner. Whoever creates `lease.<n+1>`,
which the file system grants to one process alone, takes over from an owner that is dead or has been silent for so long
that it counts as dead, and removes its file. Such an owner may only have slept: so each looks before every write
whether it has been overtaken, and one that was silent itself has to win the next number first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from tfmt.errors import RunError
from tfmt.files import UnwritableError

# An owner that gave no sign for so long is dead. Network file systems may show another machine's files up to a minute
# late, so it is well above that.
LEASE_SECONDS = 180.0
BEAT_SECONDS = 20.0


class TakenError(RunError):
    """Another process holds the run, or has taken it over."""


class Lease:
    """A context manager: inside it this process may write into the folder.

    Args:
      folder: the run's folder; it exists.

    Raises:
      TakenError (on entering, and from `check`): another process holds it.
      UnwritableError: the folder cannot be written.

    Example:
      >>> with Lease(folder) as lease:
      ...     lease.check()
      ...     write(folder / "record.json")
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._beaten = 0.0
        self._ended = threading.Event()
        self._owner = {"host": _host(), "pid": os.getpid(), "token": secrets.token_hex(8)}

    def __enter__(self) -> Lease:
        number, owner, silent = _read_latest(self._folder)
        if number and not _is_dead(owner, silent):
            raise TakenError(f"{self._folder.name}: process {owner.get('pid', '?')} on {_shown(owner)} is at it")
        self._claim(number + 1)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._path(self._number).unlink()

    def check(self) -> None:
        """Raises `TakenError` unless the folder is still this process's; call it before each write."""
        if time.monotonic() - self._beaten > LEASE_SECONDS / 2:
            # The process was stopped, or the disk was away, for so long that another may be about to take over. Who
            # of the two creates the next number is the owner.
            old = self._number
            self._claim(old + 1)
            self._path(old).unlink(missing_ok=True)
        elif not self._path(self._number).exists() or self._path(self._number + 1).exists():
            raise self._lost()

    def _claim(self, number: int) -> None:
        path = self._path(number)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            raise self._lost() from None
        except OSError as error:
            raise UnwritableError.of(path, error) from None
        try:
            with os.fdopen(file, "w") as stream:
                stream.write(json.dumps(self._owner))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise UnwritableError.of(path, error) from None
        # A third process may have gone one further while this one hesitated.
        numbers = _numbers(self._folder)
        if max(numbers) > number:
            path.unlink(missing_ok=True)
            raise self._lost()
        self._number, self._beaten = number, time.monotonic()
        for lower in numbers:
            if lower < number:
                self._path(lower).unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            started = time.monotonic()
            with contextlib.suppress(OSError):  # gone: `check` will see that; the disk is away: it may come back
                os.utime(self._path(self._number))
                self._beaten = started

    def _path(self, number: int) -> Path:
        return self._folder / f"lease.{number}"

    def _lost(self) -> TakenError:
        return TakenError(f"{self._folder.name}: another process has taken this run over; this one discards its work")


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder's run."""
    number, owner, silent = _read_latest(folder)
    return bool(number) and not _is_dead(owner, silent)


def _numbers(folder: Path) -> list[int]:
    names = (re.fullmatch(r"lease\.(\d+)", name) for name in os.listdir(folder))
    return [int(match[1]) for match in names if match]


def _read_latest(folder: Path) -> tuple[int, dict[str, Any], float]:
    """(highest number or 0, its owner as far as it can be read, seconds since the owner's last sign)."""
    try:
        number = max(_numbers(folder), default=0)
        if not number:
            return 0, {}, 0.0
        with (folder / f"lease.{number}").open("rb") as file:
            # Both times come from the disk's own clock, so that machines need not agree on theirs.
            silent = _disk_time(folder) - os.fstat(file.fileno()).st_mtime
            try:
                owner = json.loads(file.read())
            except ValueError:
                owner = {}  # its owner has only just created it
        return number, owner if isinstance(owner, dict) else {}, silent
    except FileNotFoundError:
        return 0, {}, 0.0  # released meanwhile
    except OSError as error:
        raise UnwritableError.of(folder, error) from None


def _disk_time(folder: Path) -> float:
    probe = folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _is_dead(owner: dict[str, Any], silent: float) -> bool:
    if silent > LEASE_SECONDS:
        return True
    if owner.get("host") != _host():
        return False
    try:
        os.kill(int(owner.get("pid", 0)), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError, TypeError, OverflowError):
        return False
    return False


def _host() -> str:
    """This machine, or this container of it: where a process number means one process."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}".strip()


def _shown(owner: dict[str, Any]) -> str:
    return str(owner.get("host", "another machine")).split(" ")[0]
