"""Commands one after another in one process that has imported TensorFlow, which is most of what a command costs.

For those that nothing happens to while they run: what finishes a killed run, what reads a damaged file. They go the
way of the real ones from `main(arguments)` on.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from processes import LONGEST, Ended

COMMANDS = 40  # of one process, which keeps a little of each


class Warm:
    """Such a process, started when it is needed; for one thread.

    Args:
      folder: where what its commands say is kept while they run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._done = 0

    def run(self, command: list[str], environment: dict[str, str], folder: Path) -> Ended:
        """Runs `python -m MODULE FLAG...` to its end; a process that dies or hangs over it is no success."""
        if self._process is None or self._done >= COMMANDS:
            self.close()
            self._start()
        process, said = self._process, folder / f"said.{time.time_ns()}.txt"
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self._done += 1
        hangs = threading.Timer(LONGEST, process.kill)
        hangs.start()
        answer = ""
        with suppress(BrokenPipeError):
            asked = {"module": command[2], "arguments": command[3:], "environment": environment,
                     "folder": str(folder), "said": str(said)}  # fmt: skip
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        late = not hangs.is_alive()
        hangs.cancel()
        words = said.read_text(errors="replace") if said.exists() else ""
        if answer:
            return Ended(int(answer), words)
        status = process.wait()
        self.close()
        return Ended(status or 1, words + ("\nchaos: it hung" if late else "\nchaos: its process died"))

    def _start(self) -> None:
        self._done = 0
        with (self._folder / f"warm.{time.time_ns()}.txt").open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
                start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _serve() -> None:
    """Answers each line, a command, with its exit status."""
    questions, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    for line in questions:
        asked = json.loads(line)
        said = os.open(asked["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _point(said)
        os.close(said)
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        tempfile.tempdir = None  # TMPDIR is another
        status = _run(asked["module"], asked["arguments"])
        os.chdir("/")
        _point(nothing)
        answers.write(f"{status}\n")
        answers.flush()


def _run(module: str, arguments: list[str]) -> Any:
    try:
        return importlib.import_module(module).main(arguments)
    except SystemExit as error:
        return error.code
    except BaseException:  # a command's traceback is one of its ends
        traceback.print_exc()
        return 1


def _point(file: int) -> None:
    """Has all that is said go to a file from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)


if __name__ == "__main__":
    _serve()
