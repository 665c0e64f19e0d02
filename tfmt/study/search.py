"""Which runs of a study are due: a pure function of what its runs have shown, so that every sweep decides alike.

A *cell* holds the runs that differ in learning rate and seed alone, and is searched by itself. The first seed finds the
rate, the other seeds tell how sure its score is:

- `all` runs every rate with every seed.
- `first_seed` runs every rate with the first seed, and the other seeds at the best rate.
- `halving` also lets the rates of the first seed wait on two rungs, after a fifth and after a half of their epochs: the
  better half of the rates goes on from the first, the best two from the second.

Nothing is remembered but what lies in the runs' folders: records, and `paused.json` of runs that wait. What is granted
to a run only grows as others show more.

References:
  Successive halving: [Jamieson & Talwalkar, 2016](https://arxiv.org/abs/1502.07943).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from tfmt.spec import RunSpec
from tfmt.study.grid import Grid, HeldOutUnion
from tfmt.training.epoch import Epoch, headline_of

SEARCHES = ("all", "first_seed", "halving")
# A second rate whose score is at most a point of percent below the best runs its other seeds as well.
POINT = 0.01
_ROUNDING = 1e-9  # 0.80 - 0.79 is above 0.01 in floating point
_FINALISTS = 2

Place = tuple[float, int]  # (learning rate, seed): where a run stands in its cell
Slot = RunSpec | HeldOutUnion  # a run of a grid


@dataclass(frozen=True)
class Course:
    """What a run has shown so far.

    Attributes:
      scores: the score that tables show, a fraction, after each epoch that ended; None where it is not defined or the
        run predicts one class only.
      losses: the mean training loss of each of them.
      ended: `completed`, `diverged` or `failed`; empty while none of these.
    """

    scores: tuple[float | None, ...] = ()
    losses: tuple[float, ...] = ()
    ended: str = ""

    @classmethod
    def of(cls, epochs: Sequence[Epoch], score_name: str, ended: str = "") -> Course:
        """The course of a run, from what its record or its `paused.json` says."""
        scores = tuple(None if epoch.collapsed else headline_of(epoch, score_name) for epoch in epochs)
        return cls(scores, tuple(epoch.train_loss for epoch in epochs), ended)

    @property
    def epochs(self) -> int:
        """How many epochs have ended."""
        return len(self.losses)

    @property
    def lost(self) -> bool:
        """Whether it ended without a result."""
        return self.ended in ("diverged", "failed")

    def best(self, epoch: int) -> float | None:
        """The best score until an epoch; None if it has collapsed or undefined ones alone."""
        return max((score for score in self.scores[:epoch] if score is not None), default=None)


def find_rungs(epochs: int, rates: int) -> list[tuple[int, int]]:
    """Where `halving` lets the runs of the first seed wait.

    Args:
      epochs: of a whole run.
      rates: how many learning rates there are.

    Returns:
      (epoch after which they wait, how many go on from there), in order.
    """
    fifth, half = max(1, epochs // 5), max(1, epochs // 2)
    rungs = [(fifth, max(_FINALISTS, math.ceil(rates / 2))), (half, _FINALISTS)]
    return [(epoch, going) for epoch, going in rungs if epoch < epochs and going < rates]


def decide(search: str, epochs: int, courses: Mapping[Place, Course]) -> dict[Place, int | None]:
    """How far each run of a cell may go by now.

    Runs are ranked by their best score until the epoch in question; then by the training loss of that epoch, which
    also ranks those among themselves that collapsed, behind all that did not; then by the lower rate. A run that
    diverged or failed before that epoch is out; one that early stopping ended is ranked by what it has. Where all that
    went on are lost, the next one takes their place.

    Args:
      search: one of `SEARCHES`.
      epochs: of a whole run.
      courses: what every run of the cell has shown, in the order of the grid, whose first seed is the one that
        searches.

    Returns:
      For each run after how many of its epochs it stops for now: `epochs` is its end, 0 nothing yet; None where it is
      out, as others are better. A run that has come further than that stays where it is.
    """
    rates, seeds = list(dict.fromkeys(rate for rate, _ in courses)), list(dict.fromkeys(seed for _, seed in courses))
    if search == "all" or len(rates) < 2:
        return dict.fromkeys(courses, epochs)
    first = {rate: courses[rate, seeds[0]] for rate in rates if (rate, seeds[0]) in courses}
    granted: dict[Place, int | None] = dict.fromkeys(courses, 0)
    alive = list(first)
    for rung, going in find_rungs(epochs, len(rates)) if search == "halving" else []:
        if len(alive) <= going:
            continue
        granted |= {(rate, seeds[0]): rung for rate in alive}
        if not all(first[rate].epochs >= rung or first[rate].ended for rate in alive):
            return granted
        came = [rate for rate in alive if first[rate].epochs >= rung or first[rate].ended == "completed"]
        ranking = _rank({rate: first[rate] for rate in came}, rung)
        kept = _take(ranking, going, lambda rate: first[rate].lost)
        granted |= {(rate, seeds[0]): None for rate in alive if rate not in kept}
        alive = kept
    granted |= {(rate, seeds[0]): epochs for rate in alive}
    if all(first[rate].ended for rate in alive):
        ranking = _rank({rate: first[rate] for rate in alive if not first[rate].lost}, epochs)
        granted |= _grant_seeds(epochs, courses, ranking, seeds[0])
    return granted


def _rank(courses: Mapping[float, Course], epoch: int) -> list[float]:
    """Rates, the best first."""

    def standing(rate: float) -> tuple[bool, float, float, float]:
        best = courses[rate].best(epoch)
        return best is None, -(best or 0.0), courses[rate].losses[:epoch][-1] if courses[rate].losses else 0.0, rate

    return sorted(courses, key=standing)


def _take(ranking: list[float], number: int, lost: Callable[[float], bool]) -> list[float]:
    """The best of a ranking, and as many more as it takes for one that is not lost."""
    number = min(number, len(ranking))
    while number < len(ranking) and all(map(lost, ranking[:number])):
        number += 1
    return ranking[:number]


def _grant_seeds(
    epochs: int, courses: Mapping[Place, Course], ranking: list[float], first: int
) -> dict[Place, int | None]:
    """What the runs of the other seeds may do, once the first seed has ranked the rates."""
    others = [place for place in courses if place[1] != first]

    def seeds_of(rates: Iterable[float]) -> list[Course]:
        return [courses[place] for place in others if place[0] in rates]

    chosen = ranking[:1]
    if len(ranking) > 1:
        best, second = (courses[rate, first].best(epochs) for rate in ranking[:2])
        if best is not None and second is not None and best - second <= POINT + _ROUNDING:
            chosen = ranking[:2]
    while len(chosen) < len(ranking) and all(any(course.lost for course in seeds_of([rate])) for rate in chosen):
        chosen = ranking[: len(chosen) + 1]
    settled = len(chosen) == len(ranking) or all(course.ended for course in seeds_of(chosen))
    return {place: epochs if place[0] in chosen else None if settled else 0 for place in others}


class Cost(NamedTuple):
    """Runs that are begun, and the epochs that they train together."""

    runs: int
    epochs: int


def foresee(search: str, epochs: int, courses: Mapping[Place, Course], *, close: bool = False) -> Cost:
    """What the runs of a cell will have cost in the end, where none diverges and none is overtaken.

    Args:
      search, epochs, courses: as in `decide`.
      close: whether the rates of which nothing is known are as good as each other, so that a second one runs all seeds;
        else one is clearly the best.
    """
    courses = dict(courses)
    ranks = {rate: rank for rank, rate in enumerate(dict.fromkeys(rate for rate, _ in courses))}
    while True:
        granted = decide(search, epochs, courses)
        due = {
            place: until
            for place, until in granted.items()
            if until and not courses[place].ended and until > courses[place].epochs
        }
        if not due:
            break
        for place, until in due.items():
            courses[place] = _continue(courses[place], until, epochs, 0.5 if close else None, ranks[place[0]])
    return Cost(
        sum(course.epochs > 0 for course in courses.values()), sum(course.epochs for course in courses.values())
    )


def _continue(course: Course, until: int, epochs: int, score: float | None, rank: int) -> Course:
    """A course as it may go on: at its last score, or at one that is given."""
    more = until - course.epochs
    scores = course.scores + more * (course.scores[-1:] or (score,))
    losses = course.losses + more * (course.losses[-1:] or (1e9 + rank,))
    return replace(course, scores=scores, losses=losses, ended="completed" if until == epochs else "")


class Search:
    """What the runs of a grid have shown, and how far each may go by now.

    Args:
      grid: the runs.
      way: one of `SEARCHES`.
    """

    def __init__(self, grid: Grid, way: str) -> None:
        self.way = way
        self._courses: dict[Hashable, dict[Place, Course]] = {}
        self._granted: dict[Hashable, dict[Place, int | None]] = {}
        self._foreseen: dict[Hashable, tuple[RunSpec, int]] = {}
        self._slots: dict[Hashable, dict[Place, Slot]] = {}
        self._keys: dict[Slot, tuple[Hashable, Place]] = {}
        self._needed = grid.needed
        slots: tuple[Slot, ...] = (*grid.runs, *grid.unions)
        for slot in slots:
            cell, place = cell_of(slot)
            self._keys[slot] = cell, place
            self._slots.setdefault(cell, {})[place] = slot
            self._courses.setdefault(cell, {})[place] = Course()

    def note(self, slot: Slot, course: Course) -> None:
        """Takes what a run has shown; how it ended counts also where no epochs are told with it."""
        cell, place = self._keys[slot]
        known = self._courses[cell][place]
        if course.epochs < known.epochs:
            course = replace(known, ended=course.ended)
        self._courses[cell][place] = course
        self._granted.pop(cell, None)
        self._foreseen.pop(cell, None)

    def course(self, slot: Slot) -> Course:
        """What a run has shown."""
        cell, place = self._keys[slot]
        return self._courses[cell][place]

    def granted(self, slot: Slot) -> int | None:
        """After how many epochs a run stops for now; see `decide`."""
        if slot in self._needed:  # others compare with it
            return own_spec(slot).epochs
        cell, place = self._keys[slot]
        return self._decide(cell)[place]

    def _decide(self, cell: Hashable) -> dict[Place, int | None]:
        if cell not in self._granted:
            epochs = own_spec(next(iter(self._slots[cell].values()))).epochs
            self._granted[cell] = decide(self.way, epochs, self._courses[cell])
        return self._granted[cell]

    def like(self, slot: Slot) -> list[Slot]:
        """The runs of a run's cell that have its seed, by rate."""
        cell, (_, seed) = self._keys[slot]
        return [self._slots[cell][place] for place in sorted(self._slots[cell]) if place[1] == seed]

    def settled(self, slot: Slot) -> bool:
        """Whether nothing of a run's cell is left to run."""
        cell, _ = self._keys[slot]
        courses, granted = self._courses[cell], self._decide(cell)
        return all(courses[place].ended or granted[place] is None for place in courses)

    def left(self) -> list[tuple[RunSpec, float]]:
        """What is left to run, each with how much of a whole run it is: of runs, and of cells as yet undecided."""
        found: list[tuple[RunSpec, float]] = []
        for slot in self._keys:
            spec, course = own_spec(slot), self.course(slot)
            more = (self.granted(slot) or 0) - course.epochs
            if not course.ended and more > 0:
                found.append((spec, more / spec.epochs))
        return found + [(spec, epochs / spec.epochs) for spec, epochs in self.undecided()]

    def undecided(self) -> list[tuple[RunSpec, int]]:
        """(a run of it, epochs) of each cell that will probably train epochs that no run is granted yet."""
        for cell in self._courses.keys() - self._foreseen.keys():
            self._foreseen[cell] = self._foresee(cell)
        return [(spec, epochs) for spec, epochs in self._foreseen.values() if epochs > 0]

    def _foresee(self, cell: Hashable) -> tuple[RunSpec, int]:
        spec, courses = own_spec(next(iter(self._slots[cell].values()))), self._courses[cell]
        granted = {place: until or 0 for place, until in self._decide(cell).items()}
        known = sum(c.epochs if c.ended else max(c.epochs, granted[place]) for place, c in courses.items())
        return spec, foresee(self.way, spec.epochs, courses).epochs - known


def own_spec(slot: Slot) -> RunSpec:
    """The settings of a run of a grid; of a union those that it shares with the run of its own task's mask."""
    return slot.own if isinstance(slot, HeldOutUnion) else slot


def cell_of(slot: Slot) -> tuple[Hashable, Place]:
    """The cell of a run, and its place in it."""
    settings = own_spec(slot).model_dump(mode="json")
    rate, seed = settings.pop("learning_rate"), settings.pop("seed")
    return (isinstance(slot, HeldOutUnion), json.dumps(settings, sort_keys=True)), (rate, seed)
