"""One run from Python: what `tfmt-train` does, without a command's words and settings of the process."""

from __future__ import annotations

import time
from pathlib import Path

from tfmt.errors import RequestError
from tfmt.files import check_path
from tfmt.quiet import import_bars
from tfmt.runs.folder import finished, open_folder, tidy_finished
from tfmt.runs.records import Record
from tfmt.runs.runner import execute, make_bench, prepare
from tfmt.spec import RunSpec


def fine_tune(spec: RunSpec, output_dir: str | Path = "runs", *, quiet: bool = False) -> Record:
    """Trains one run, as `tfmt-train` does, and gives its record; a run that is done is not run again.

    An interrupted run goes on where it stopped. TensorFlow's deterministic operations are on afterwards, and the
    process's memory stays as it is kept (a command keeps freed memory, which is a little faster).

    Args:
      spec: what to do.
      output_dir: the folder of the runs' folders.
      quiet: show no progress.

    Returns:
      The record, completed or diverged, which lies in `<output_dir>/<run id>/record.json`.

    Raises:
      RequestError: no spec or no folder is given, or the model or the data cannot be had, or do not fit the spec.
      RunError: the run failed, or another process is at it.

    Example:
      >>> import tfmt
      >>> limits = {"train_limit": 32, "validation_limit": 32, "max_length": 16, "epochs": 1}
      >>> spec = tfmt.RunSpec.make(model="demo", task="rotten_tomatoes", mode="layernorm", **limits)
      >>> tfmt.fine_tune(spec, "runs", quiet=True).status
      'completed'
    """
    started = time.perf_counter()
    if not isinstance(spec, RunSpec):
        raise RequestError(f"spec must be a RunSpec: make one with tfmt.RunSpec.make(...). Received: spec={spec!r}")
    folder = check_path(output_dir, "output_dir")
    import_bars()
    request = prepare(spec, folder)
    record = finished(request)
    if record is None:
        open_folder(request)  # what is wrong with it is told before the text is tokenised
        record = execute(request, make_bench(request), started=started, quiet=quiet)
    else:
        tidy_finished(request.folder, record)
    return record
