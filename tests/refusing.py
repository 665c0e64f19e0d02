"""Runs command lines that are to be refused, one after the other in a folder of its own each, without TensorFlow.

A program for `test_refusals.py`: takes the rows in a pickle, and a folder to copy for each; writes what came of them.
"""

import contextlib
import io
import os
import pickle
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

from tfmt import streams

USUAL = ("--model=model", "--task=mrpc", "--data_dir=glue", "--mode=layernorm", "--max_length=32", "--epochs=1")


def call(command: str, arguments: list[str]) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command; of a traceback -1."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = import_module(f"tfmt.{command}").main(arguments)
        except BaseException as error:  # whatever escapes is what the test is after
            status = -1
            err.write(f"{type(error).__name__}: {error}"[:2000])
    return status, out.getvalue(), err.getvalue()


def contents(folder: Path) -> dict[str, bytes | None]:
    """What lies in a folder, by path."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def main(rows_file: str, pattern: str, work: str) -> None:
    """Runs the rows."""
    os.environ["MPLCONFIGDIR"] = work  # what matplotlib keeps is no part of a request's folder
    streams.SLOW_SECONDS = 600.0  # a machine under load is no reason for a second line
    rows = pickle.loads(Path(rows_file).read_bytes())
    results = []
    os.chdir(pattern)
    run_id = re.search(r"folder +runs/(\S+)", call("train", [*USUAL, "--dry_run"])[1])[1]
    for number, (command, arguments, files) in enumerate(rows):
        folder = Path(work) / str(number)
        shutil.copytree(pattern, folder)
        os.chdir(folder)
        os.environ["HOME"] = str(folder / "home")
        for name, content in files.items():
            path = Path(name.replace("RUN_ID", run_id))
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:  # a folder instead of the file
                path.unlink(missing_ok=True)
                path.mkdir()
            else:
                path.write_bytes(content)
        before = contents(folder)
        result = call(command, arguments)
        os.chdir(pattern)
        after = contents(folder)
        changed = [path for path in {**before, **after} if path not in before or before[path] != after.get(path)]
        results.append((*result, changed, "tensorflow" in sys.modules))
    print(len(rows))
    Path(rows_file).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
