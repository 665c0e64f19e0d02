"""The right to write into a run's folder, held by one process at a time, also on a disk that machines share.

A lease is a file `lease.<n>` in the run's folder; the highest number names the owner. Whoever creates `lease.<n+1>`,
which the file system grants to one process alone, takes over from an owner that is dead or has been silent for so long
that it counts as dead, and removes its file. Such an owner may only have slept: so each looks before every write
whether it has been overtaken, and one that was silent itself has to win the next number first.

An owner knows its lease by the open file and not by the name, so that it neither takes another's file of the same name
for its own nor renews or removes it. A number is not given twice either: a lease that was given back says so and stays
until the run has a record.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import random
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfmt.errors import RunError
from tfmt.files import UnreadableError, UnwritableError, exists, parse_json
from tfmt.runs.records import RECORD_FILE

# An owner that gave no sign for so long is dead. Network file systems may show another machine's files up to a minute
# late, so it is well above that.
LEASE_SECONDS = 180.0
BEAT_SECONDS = 20.0
# Between two looks at what others hold: a server answers many processes, which are not to ask it in step.
LOOK_SECONDS = 10.0, 30.0
SILENT_SECONDS = 3 * BEAT_SECONDS  # a living owner has missed beats: it may be frozen, or its machine gone

_random = random.SystemRandom()  # that no seed makes the same in all of them
_RELEASED = {"released": True}


class TakenError(RunError):
    """Another process holds the run, or has taken it over."""


class Lease:
    """A context manager: inside it this process may write into the folder.

    Args:
      folder: the run's folder; it exists.
      node: the machine that computes the run, where that is another one.

    Raises:
      TakenError (on entering, and from `check`): another process holds it.
      UnwritableError: the folder cannot be written.

    Example:
      >>> folder = Path("runs/mrpc-layernorm-lr0.001-s0-d9e29dc098")
      >>> with Lease(folder) as lease:
      ...     lease.check()
      ...     written = (folder / "note.txt").write_text("mine")
    """

    def __init__(self, folder: Path, node: str = "") -> None:
        self._folder = folder
        self._number = 0
        self._file = -1
        self._beaten = 0.0
        self._ended = threading.Event()
        self._renewing = threading.Lock()  # a number that is closed may become another file's
        self._thread: threading.Thread | None = None
        self._owner = {**_this_process(), "token": secrets.token_hex(8)} | ({"node": node} if node else {})

    def __enter__(self) -> Lease:
        number, owner, silent = _read_latest(self._folder)
        if number and not _is_free(owner, silent):
            raise TakenError(f"{self._folder.name}: process {owner.get('pid', '?')} on {_shown(owner)} is at it")
        self._claim(number + 1)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join(timeout=BEAT_SECONDS)
        with contextlib.suppress(OSError):
            _write(self._file, _RELEASED)
            followed = self._path(self._number + 1).exists() or (self._folder / RECORD_FILE).exists()
            if followed and self._is_mine():
                self._path(self._number).unlink()
        if not self._thread.is_alive():  # else it hangs on a disk that is away, with the file in its hand
            os.close(self._file)

    def check(self) -> None:
        """Raises `TakenError` unless the folder is still this process's; call it before each write."""
        if not self._is_mine():
            raise self._lost()
        if time.monotonic() - self._beaten > LEASE_SECONDS / 2:
            # The process was stopped, or the disk was away, for so long that another may be about to take over. Who
            # of the two creates the next number is the owner.
            self._claim(self._number + 1)
        elif exists(self._path(self._number + 1)):
            raise self._lost()

    def _is_mine(self) -> bool:
        """Whether the file of this number is the one that this process created."""
        try:
            return os.path.samestat(os.stat(self._path(self._number)), os.fstat(self._file))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UnwritableError.of(self._path(self._number), error) from None

    def _claim(self, number: int) -> None:
        path = self._path(number)
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            raise self._lost() from None
        except OSError as error:
            raise UnwritableError.of(path, error) from None
        try:
            _write(file, self._owner)
            # A third process may have gone one further while this one hesitated.
            numbers = _numbers(self._folder)
        except OSError as error:
            os.close(file)
            with contextlib.suppress(OSError):
                path.unlink()
            raise UnwritableError.of(path, error) from None
        if max(numbers, default=0) > number:
            os.close(file)
            path.unlink(missing_ok=True)
            raise self._lost()
        with self._renewing:
            if self._file >= 0:
                os.close(self._file)
            self._number, self._file, self._beaten = number, file, time.monotonic()
        for lower in numbers:
            if lower < number:
                with contextlib.suppress(OSError):  # it names nobody any more
                    self._path(lower).unlink()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            started = time.monotonic()
            with contextlib.suppress(OSError), self._renewing:  # the disk is away: it may come back
                os.utime(self._file)  # the disk's own time, on a network file system the server's
                self._beaten = started

    def _path(self, number: int) -> Path:
        return self._folder / f"lease.{number}"

    def _lost(self) -> TakenError:
        return TakenError(f"{self._folder.name}: another process has taken this run over; this one discards its work")


@dataclass(frozen=True)
class Holder:
    """Who holds a run's folder.

    Attributes:
      state: `none`; `living`; `silent`, which holds others off too, and may be dead.
      host: the owner's, or the node that it computes on; empty where it cannot be told.
      pid: number of its process there, None where it cannot be told.
      seconds: since its last sign.
    """

    state: Literal["none", "living", "silent"] = "none"
    host: str = ""
    pid: int | None = None
    seconds: float = 0.0


def find_holder(folder: Path, clock: Callable[[], float] | None = None) -> Holder:
    """Who holds the folder's run.

    Args:
      folder: the run's folder.
      clock: tells the disk's time, as `disk_clock` of a folder beside it, for who looks at many; None to ask this
        folder's disk, which takes a file made and deleted.

    Raises:
      UnreadableError: that cannot be told now, as of a folder that only its owner may enter.
    """
    number, owner, silent = _read_latest(folder, clock)
    if not number or _is_free(owner, silent):
        return Holder()
    pid = None if owner.get("node") else owner.get("pid")  # which is one of the machine that wrote the lease
    state: Literal["living", "silent"] = "silent" if silent > SILENT_SECONDS else "living"
    host = str(owner.get("node") or owner.get("host") or "")
    return Holder(state, host, pid if isinstance(pid, int) else None, max(silent, 0.0))


def is_held(folder: Path, clock: Callable[[], float] | None = None) -> bool:
    """Whether a living process holds the folder's run.

    Args:
      folder, clock: as of `find_holder`.

    Raises:
      UnreadableError: that cannot be told now, as of a folder that only its owner may enter.
    """
    return find_holder(folder, clock).state != "none"


def disk_clock(folder: Path) -> Callable[[], float]:
    """Tells a disk's time however often it is asked, and writes one probe for that, once it is asked first.

    Args:
      folder: on that disk; of one that cannot be written this machine's time is told.
    """

    @functools.cache
    def ahead() -> float:
        return _disk_time(folder) - time.monotonic()

    return lambda: ahead() + time.monotonic()


def time_to_look() -> float:
    """When to look again at what others hold, by the monotonic clock."""
    return time.monotonic() + _random.uniform(*LOOK_SECONDS)


def is_lease(name: str) -> bool:
    """Whether a file of this name in a run's folder is a lease."""
    return re.fullmatch(r"lease\.[1-9]\d*", name) is not None


def _numbers(folder: Path) -> list[int]:
    return [int(name.removeprefix("lease.")) for name in os.listdir(folder) if is_lease(name)]


def _read_latest(folder: Path, clock: Callable[[], float] | None = None) -> tuple[int, dict[str, Any], float]:
    """(highest number or 0, its owner as far as it can be read, seconds since the owner's last sign)."""
    try:
        number = max(_numbers(folder), default=0)
        if not number:
            return 0, {}, 0.0
        with (folder / f"lease.{number}").open("rb") as file:
            sign = os.fstat(file.fileno()).st_mtime
            try:
                owner = parse_json(file.read())
            except ValueError:
                owner = {}  # its owner has only just created it
        owner = owner if isinstance(owner, dict) else {}
        if owner.get("released"):  # then nobody asks for the time
            return number, owner, 0.0
        # Both times come from the disk's own clock, so that machines need not agree on theirs.
        return number, owner, (clock() if clock else _disk_time(folder)) - sign
    except FileNotFoundError:
        return 0, {}, 0.0  # released meanwhile
    except OSError as error:
        raise UnreadableError.of(folder, error) from None


def _disk_time(folder: Path) -> float:
    """The time by the clock of the disk on which a folder lies."""
    probe = folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except PermissionError:  # who only looks, as at another user's run, has to trust this machine's clock
        return time.time()
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):  # whoever wants to write will meet it
            return time.time()
        raise
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _is_free(owner: dict[str, Any], silent: float) -> bool:
    """Whether a lease holds no one off: it was given back, or its owner is dead or silent for as long as the dead."""
    if owner.get("released") or silent > LEASE_SECONDS:
        return True
    return owner.get("place") == _place() and not _lives(owner)


def _lives(owner: dict[str, Any]) -> bool:
    """Whether a process of this place lives; one that started at another time only has the same number."""
    try:
        pid = int(owner.get("pid", 0))
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, TypeError, OverflowError):
        return True
    return owner.get("start") == start_of(pid)


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "place": _place(), "pid": os.getpid(), "start": start_of(os.getpid())}


def _place() -> str:
    """This start of this machine, or of this container: where a process number means one process.

    Names do not tell machines apart: in clouds and containers many have the same.
    """
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def start_of(pid: int) -> str | None:
    """When a process started, in the system's ticks since the boot; None where the system does not tell."""
    try:
        # The second field is the program's name in brackets, which may hold blanks and brackets itself.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _write(file: int, content: dict[str, Any]) -> None:
    """Replaces the content of an open file in place: that needs no space, so that it works on a full disk."""
    os.pwrite(file, json.dumps(content).encode().ljust(os.fstat(file).st_size), 0)


def _shown(owner: dict[str, Any]) -> str:
    return str(owner.get("host", "another machine"))
