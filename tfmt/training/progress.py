"""What a person sees while a run trains: one line that updates, or now and then a plain line without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

_PLAIN_SECONDS = 30.0
_TELL_SECONDS = 1.0  # between two standings of one epoch


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
      epoch: the epoch it is in, from 1, or that has just ended.
      epochs: epochs of the run.
      step: steps taken of the run.
      steps: steps of the run.
      loss: mean training loss of that epoch so far.
      examples: training examples of an epoch.
      timed: epochs that have ended since its process took it up.
      seconds: what these took, evaluation included.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    examples: int
    timed: int
    seconds: float


class Progress:
    """Epoch, step, loss, examples a second and time left of one run.

    Args:
      total: steps of the whole run.
      done: steps that an earlier process took.
      batch_size: examples a step.
      epochs: epochs of the run.
      quiet: print nothing (a sweep shows its own line).
      tell: is told where the run stands, about once a second and after each epoch.
    """

    def __init__(
        self, total: int, done: int, batch_size: int, epochs: int, *, quiet: bool = False,
        tell: Callable[[Standing], None] | None = None,
    ) -> None:  # fmt: skip
        self._total, self._batch_size, self._epochs = total, batch_size, epochs
        self._quiet, self._tell_standing = quiet, tell
        self._timed, self._seconds, self._told = 0, 0.0, 0.0
        self._step = done
        self._interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=total, initial=done, file=sys.stderr, dynamic_ncols=True, leave=False,
            disable=quiet or not self._interactive, unit="step",
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
        )  # fmt: skip
        self._first, self._start = done, time.perf_counter()
        self._last_line = self._start
        self._score = ""

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Shows the state after `step` steps; `loss` is the mean of the epoch so far."""
        self._step = step
        if loss is not None and time.monotonic() - self._told > _TELL_SECONDS:
            self._tell(epoch, loss)
        if self._quiet:
            return
        seconds = time.perf_counter() - self._start
        rate = (step - self._first) * self._batch_size / seconds if seconds else 0.0
        shown = "" if loss is None else f" loss {loss:.4f}"
        if self._interactive:
            self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(f"{shown.strip()} {rate:.0f} examples/s{self._score}", refresh=False)
            self._bar.update(step - self._bar.n)
        elif time.perf_counter() - self._last_line > _PLAIN_SECONDS:
            self._last_line = time.perf_counter()
            left = (self._total - step) / max(step - self._first, 1) * seconds
            where = f"epoch {epoch}/{self._epochs} step {step}/{self._total}"
            print(f"{where}{shown} {rate:.0f} examples/s, {left:.0f} s left", file=sys.stderr, flush=True)

    def epoch(self, epoch: int, loss: float, score_name: str, score: float | None, seconds: float) -> None:
        """Shows an epoch that ended."""
        self._timed, self._seconds = self._timed + 1, self._seconds + seconds
        self._step = epoch * (self._total // self._epochs)
        self._tell(epoch, loss)
        if self._quiet:
            return
        shown = "undefined" if score is None else f"{100 * score:.2f}"
        self._score = f" {score_name} {shown}"
        line = f"epoch {epoch}/{self._epochs}  loss {loss:.4f}  {score_name} {shown}  {seconds:.1f} s"
        tqdm.write(line, file=sys.stderr) if self._interactive else print(line, file=sys.stderr, flush=True)

    def _tell(self, epoch: int, loss: float) -> None:
        if self._tell_standing is None:
            return
        self._told = time.monotonic()
        examples = self._total // self._epochs * self._batch_size
        self._tell_standing(
            Standing(epoch, self._epochs, self._step, self._total, loss, examples, self._timed, self._seconds)
        )

    def close(self) -> None:
        """Clears the line."""
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
