"""Commands in processes of their own: started, watched, stopped and killed, and what is left of them afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARK = "TFMT_CHAOS"
LONGEST = 600.0  # seconds after which a command hangs


@dataclass
class Ended:
    """How a command ended: its exit status (negative: the signal), and what it said."""

    status: int
    said: str

    @property
    def last(self) -> str:
        """The last line of what it said."""
        return (self.said.strip().splitlines() or [""])[-1]


class Victim:
    """A command in a session of its own.

    Args:
      command: what to run.
      environment: its environment, with the mark of its trial.
      folder: its working directory; what it says goes into files there.
    """

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.command = command
        self._said = folder / f"said.{time.time_ns()}.txt"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        self._most = 0.0
        self._family: list[int] = []
        self._looked = 0.0

    @property
    def lives(self) -> bool:
        """Whether the command's own process has not ended."""
        return self._process.poll() is None

    def seconds(self) -> float:
        """Seconds of computing of the command and its workers so far: a clock that other load does not change."""
        if time.monotonic() - self._looked > 0.5:  # looking through all processes costs more than reading of a few
            self._family, self._looked = self.family(), time.monotonic()
        self._most = max(self._most, sum(computed(pid) for pid in self._family))
        return self._most

    def wait_for_seconds(self, moment: float) -> bool:
        """Waits until it has computed for so long; False if it ended before or hangs."""
        ends = time.monotonic() + LONGEST
        while self.lives and time.monotonic() < ends:
            left = moment - self.seconds()
            if left <= 0.0:
                return True
            time.sleep(min(max(left / 4, 0.005), 0.25))  # four cores are as fast as its workers get
        return False

    def family(self) -> list[int]:
        """The living processes of its session."""
        return [pid for pid, fields in _processes() if int(fields[3]) == self.pid and fields[0] not in "ZX"]

    def workers(self) -> list[int]:
        """The processes that compute a sweep's runs."""
        found = []
        for pid in self.family():
            with suppress(OSError):
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def wait_until(self, condition: Callable[[], bool], pause: float = 0.03) -> bool:
        """Waits for a condition; False if the command ended before or hangs."""
        ends = time.monotonic() + LONGEST
        while self.lives and time.monotonic() < ends:
            if condition():
                return True
            time.sleep(pause)
        return False

    def send(self, number: int, pids: list[int] | None = None) -> None:
        """Sends a signal to the command itself, or to some of its processes."""
        for pid in [self.pid] if pids is None else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, seconds: float = LONGEST) -> Ended:
        """Waits for its end; one that hangs is killed, which its status tells."""
        try:
            status = self._process.wait(seconds)
            said = self._said.read_text(errors="replace")
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL, self.family())
            status = self._process.wait()
            said = self._said.read_text(errors="replace") + f"\nchaos: it hung for {seconds:.0f} s and was killed"
        return Ended(status, said)


def find_marked(mark: str) -> list[int]:
    """Living processes, whoever started them, whose environment holds a mark."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for pid, fields in _processes():
        with suppress(OSError):
            if fields[0] not in "ZX" and wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def wait_for_none(mark: str, seconds: float) -> list[int]:
    """Waits until no process has a mark; those that still live after so long, killed now."""
    ends = time.monotonic() + seconds
    while (left := find_marked(mark)) and time.monotonic() < ends:
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def _processes() -> list[tuple[int, list[str]]]:
    """(pid, fields of /proc/<pid>/stat from the state on) of all processes."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                found.append((int(name), Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()))
    return found


def computed(pid: int) -> float:
    """Seconds of computing of a process."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
