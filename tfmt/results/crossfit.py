"""Scores by examples that have not chosen anything: one half of the split chooses rate and epoch, the other scores.

The papers choose the learning rate and the epoch on the split that they report. What is then reported is the largest of
many numbers, whose luck is in it: the more tries, the more of it. Cross-fitting chooses by one half's examples and
scores by the other's, once each way round, and averages the two, so that every example is scored and none has chosen
what it is scored by. Which half an example is in hangs on its text alone (`Examples.halves`), so it is the same one in
all runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfmt.errors import RequestError
from tfmt.words import counted

if TYPE_CHECKING:
    import pandas as pd

PROTOCOLS = ("paper", "crossfit")


@dataclass(frozen=True)
class Fold:
    """A run as one choice sees it.

    Attributes:
      chooses: the score by which its learning rate competes; None where it is not defined.
      reports: the score that counts if that rate is chosen; None where it is not defined.
      collapsed: whether the epoch that it is of predicted one class only, or a constant.
      epoch: that epoch, from 1; 0 where it is not told.
    """

    chooses: float | None
    reports: float | None
    collapsed: bool
    epoch: int = 0


def cross_fit(
    half_scores: Sequence[tuple[float | None, float | None]], collapsed: Sequence[bool | None], epoch: str
) -> tuple[Fold, Fold]:
    """A run's two folds: the first half chooses and the second reports, and the other way round.

    Args:
      half_scores: the score on each half, epoch by epoch.
      collapsed: of each epoch, whether it collapsed.
      epoch: `best`: each fold takes the best epoch on its half that chooses, the earliest of equal ones; `last`: the
        last.
    """
    folds = []
    for half in (0, 1):
        known = [(pair[half], -at) for at, pair in enumerate(half_scores) if pair[half] is not None]
        if epoch == "last" or not known:
            at = len(half_scores) - 1
        else:
            at = -max(known)[1]
        chooses, reports = half_scores[at][half], half_scores[at][1 - half]
        folds.append(Fold(chooses, reports, collapsed[at] is True, at + 1))
    return folds[0], folds[1]


def has_halves(runs: pd.DataFrame) -> bool:
    """Whether any of these runs, as `annotate` leaves them, has scores on halves."""
    return any(folds is not None for folds in runs["folds"])


def protocols_of(runs: pd.DataFrame, protocol: str | None) -> tuple[str, ...]:
    """The protocols whose scores are shown of runs, as `annotate` leaves them: the one that is asked for, or both."""
    return (protocol,) if protocol else PROTOCOLS if has_halves(runs) else PROTOCOLS[:1]


def check_protocol(protocol: str | None) -> None:
    """Refuses a protocol that there is not."""
    if protocol is not None and protocol not in PROTOCOLS:
        raise RequestError(f"--protocol must be one of {', '.join(PROTOCOLS)}. Received: {protocol!r}")


def describe_paper_choice(epoch: str) -> str:
    """The caption line on what the papers' protocol chooses by."""
    what = "The rate (and the best epoch)" if epoch == "best" else "The rate"
    return f"{what} is chosen on the split that is reported, as in the paper."


def describe_crossfit(epoch: str, score_names: Iterable[str]) -> str:
    """The caption line on how cross-fitted scores are made.

    Args:
      epoch: whose scores.
      score_names: the scores that are shown.
    """
    what = "the rate, and the best epoch of each run, are" if epoch == "best" else "the rate is"
    line = (
        f"Cross-fitted: {what} chosen on one half of the split and scored on the other, both ways, averaged. Which half"
        " an example is in hangs on its text alone."
    )
    if others := sorted(set(score_names) - {"accuracy"}):
        line += (
            f" No means over examples, so computed on each half and averaged: {', '.join(others)}. A half on which one"
            " is not defined gives no score."
        )
    return line


def tell_uncertain_halves(runs: pd.DataFrame) -> list[str]:
    """Caption lines on the runs that have no scores on halves.

    Args:
      runs: with the columns of `annotate`.
    """
    ended = runs["outcome"].isin(("scored", "undefined"))
    count = int(sum(folds is None for folds in runs.loc[ended, "folds"]))
    if not count:
        return []
    return [f"Not cross-fitted: {counted(count, 'run')} without scores on halves, from before they were recorded."]
