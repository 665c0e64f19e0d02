"""What is due in a searched study: by hand for the papers' numbers, and the same in whatever order runs end."""

import math
import random

import pytest

from tfmt import protocol
from tfmt.spec import RunSpec
from tfmt.study.grid import expand_grid
from tfmt.study.search import SEARCHES, Cost, Course, Search, cell_of, decide, find_rungs, foresee
from tfmt.training.epoch import Epoch

RATES, SEEDS = protocol.LEARNING_RATES, protocol.SEEDS
PLACES = [(rate, seed) for rate in RATES for seed in SEEDS]


def blank(rates=RATES, seeds=SEEDS):
    return {(rate, seed): Course() for rate in rates for seed in seeds}


def whole(score, loss=0.5, epochs=20, ended="completed"):
    return Course((score,) * epochs, (loss,) * epochs, ended)


def part(score, epochs, loss=0.5):
    return whole(score, loss, epochs, "")


class World:
    """What every run would show if it were run to its end, and what is run where a sweep asks `decide` alone.

    Attributes:
      whole: place to the course of the whole run.
      seen: what has been shown so far.
    """

    def __init__(self, search, epochs, runs):
        self.search, self.epochs, self.whole = search, epochs, runs
        self.seen = dict.fromkeys(runs, Course())

    def due(self):
        granted = decide(self.search, self.epochs, self.seen)
        return [place for place, until in granted.items()
                if until and not self.seen[place].ended and until > self.seen[place].epochs]  # fmt: skip

    def run(self, place):
        """Takes a run as far as it may go."""
        until, course = decide(self.search, self.epochs, self.seen)[place], self.whole[place]
        whole = course.epochs < self.epochs  # early stopping ended it
        ended = course.ended if course.epochs <= until and (course.lost or whole or until == self.epochs) else ""
        self.seen[place] = Course(course.scores[:until], course.losses[:until], ended)

    def finish(self, pick=lambda due: due[0]):
        while due := self.due():
            self.run(pick(due))
        return self.seen

    @property
    def cost(self):
        return sum(course.epochs > 0 for course in self.seen.values()), sum(c.epochs for c in self.seen.values())


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_all_runs_everything():
    assert decide("all", 20, blank()) == dict.fromkeys(PLACES, 20)


@pytest.mark.parametrize("search", SEARCHES)
def test_one_rate_is_no_search(search):
    assert decide(search, 20, blank(rates=(1e-3,))) == {(1e-3, seed): 20 for seed in SEEDS}


@pytest.mark.parametrize(("epochs", "rates", "rungs"), [
    (20, 7, [(4, 4), (10, 2)]), (10, 7, [(2, 4), (5, 2)]), (5, 7, [(1, 4), (2, 2)]), (3, 7, [(1, 4), (1, 2)]),
    (2, 7, [(1, 4), (1, 2)]), (1, 7, []), (20, 3, [(4, 2), (10, 2)]), (20, 2, []), (20, 8, [(4, 4), (10, 2)]),
])  # fmt: skip
def test_rungs(epochs, rates, rungs):
    assert find_rungs(epochs, rates) == rungs


def test_papers_cells_cost_what_arithmetic_says():
    """7 rates by 3 seeds: of 20, 10 and 5 epochs."""
    assert foresee("all", 20, blank()) == (21, 420)
    assert foresee("first_seed", 20, blank()) == (9, 9 * 20)
    assert foresee("first_seed", 20, blank(), close=True) == (11, 11 * 20)
    # Seven to 4 epochs, four of them 6 epochs more, two 10 more; two other seeds to the end.
    assert foresee("halving", 20, blank()) == (9, 7 * 4 + 4 * 6 + 2 * 10 + 2 * 20)
    assert foresee("halving", 20, blank(), close=True) == (11, 7 * 4 + 4 * 6 + 2 * 10 + 4 * 20)
    assert foresee("halving", 10, blank()) == (9, 7 * 2 + 4 * 3 + 2 * 5 + 2 * 10)
    assert foresee("halving", 5, blank()) == (9, 7 * 1 + 4 * 1 + 2 * 3 + 2 * 5)
    assert foresee("halving", 20, blank()).epochs / 420 == pytest.approx(0.267, abs=1e-3)
    assert foresee("halving", 20, blank(seeds=(0,))) == (7, 7 * 4 + 4 * 6 + 2 * 10)


def test_what_is_known_is_no_longer_foreseen():
    seen = blank() | {(rate, 0): part(0.5 + 10 * rate, 4) for rate in RATES}
    assert foresee("halving", 20, seen).epochs == 112
    seen |= {(1e-2, 0): whole(0.9), (5e-3, 0): whole(0.895)}  # so close that both run all seeds
    assert foresee("halving", 20, seen) == Cost(11, 3 * 4 + 2 * 10 + 2 * 20 + 4 * 20)


def test_first_seed_then_the_best_rate():
    seen = blank()
    assert decide("first_seed", 20, seen) == {(rate, seed): 0 if seed else 20 for rate, seed in PLACES}
    for rate in RATES:
        seen[rate, 0] = whole(0.7)
    seen[5e-4, 0] = whole(0.8)
    assert decide("first_seed", 20, seen) == {
        (rate, seed): 20 if seed == 0 or rate == 5e-4 else 0 for rate, seed in PLACES
    }
    for seed in (1, 2):
        seen[5e-4, seed] = whole(0.6)  # what other seeds score changes nothing
    granted = decide("first_seed", 20, seen)
    assert granted == {(rate, seed): 20 if seed == 0 or rate == 5e-4 else None for rate, seed in PLACES}


@pytest.mark.parametrize(("second", "third", "chosen"), [
    (0.79, 0.79, [1e-5, 5e-5]), (0.7899, 0.5, [1e-5]), (0.8, 0.8, [1e-5, 5e-5]), (None, 0.3, [1e-5]),
])  # fmt: skip
def test_second_rate_within_a_point_runs_its_seeds_too(second, third, chosen):
    seen = blank() | {(rate, 0): whole(0.2) for rate in RATES}
    seen |= {(1e-5, 0): whole(0.8), (5e-5, 0): whole(second), (1e-4, 0): whole(third, loss=0.6)}
    granted = decide("first_seed", 20, seen)
    assert [rate for rate in RATES if granted[rate, 1] == granted[rate, 2] == 20] == chosen


def test_second_rate_takes_the_place_of_one_whose_seeds_diverge():
    seen = blank() | {(rate, 0): whole(0.5 + rate) for rate in RATES} | {(1e-2, 0): whole(0.9)}
    assert decide("first_seed", 20, seen)[5e-3, 1] == 0
    seen[1e-2, 2] = whole(0.9, epochs=3, ended="diverged")
    granted = decide("first_seed", 20, seen)
    assert (granted[1e-2, 1], granted[5e-3, 1], granted[5e-3, 2], granted[1e-3, 1]) == (20, 20, 20, 0)
    seen[5e-3, 1] = whole(0.9, epochs=0, ended="failed")
    assert decide("first_seed", 20, seen)[1e-3, 1] == 20


def test_halving_rung_by_rung():
    order = list(RATES)
    seen = blank()
    assert decide("halving", 20, seen) == {(rate, seed): 0 if seed else 4 for rate, seed in PLACES}
    for rank, rate in enumerate(order[:-1]):
        seen[rate, 0] = part(0.8 - rank / 20, 4)
    assert set(decide("halving", 20, seen).values()) == {0, 4}  # all wait for the last
    seen[order[-1], 0] = part(0.1, 4)
    first = decide("halving", 20, seen)
    assert [first[rate, 0] for rate in order] == [10, 10, 10, 10, None, None, None]
    assert {first[rate, 1] for rate in order} == {0}
    for rank, rate in enumerate(order[:4]):
        seen[rate, 0] = part(0.8 + rank / 20, 10)  # the other way round by now
    second = decide("halving", 20, seen)
    assert [second[rate, 0] for rate in order] == [None, None, 20, 20, None, None, None]
    seen |= {(order[2], 0): whole(0.97), (order[3], 0): whole(0.95)}
    third = decide("halving", 20, seen)
    assert [third[rate, 1] for rate in order] == [0, 0, 20, 0, 0, 0, 0]
    assert [third[rate, 0] for rate in order] == [None, None, 20, 20, None, None, None]


def test_decision_is_the_same_whether_runs_wait_or_ended_long_ago():
    waiting = blank() | {(rate, 0): part(0.5 + rate, 4) for rate in RATES}
    ended = waiting | {(1e-5, 0): Course((0.5 + 1e-5,) * 4 + (0.99,) * 16, (0.5,) * 20, "completed")}
    one, other = decide("halving", 20, waiting), decide("halving", 20, ended)
    assert one == other  # what it scored later has no say on the rung
    assert one[1e-5, 0] is None


def test_diverged_in_a_rung_is_out_and_later_keeps_its_rank_there():
    seen = blank() | {(rate, 0): part(0.5 + rate, 4) for rate in RATES}
    seen[1e-2, 0] = whole(0.51, epochs=3, ended="diverged")
    granted = decide("halving", 20, seen)
    assert [rate for rate in RATES if granted[rate, 0] == 10] == [1e-4, 5e-4, 1e-3, 5e-3]
    seen[1e-2, 0] = whole(0.6, epochs=5, ended="diverged")  # it was the best on the rung
    granted = decide("halving", 20, seen)
    assert [rate for rate in RATES if granted[rate, 0] == 10] == [5e-4, 1e-3, 5e-3, 1e-2]


def test_next_ones_go_on_where_all_that_did_are_lost():
    seen = blank() | {(rate, 0): part(0.5 + rate, 4) for rate in RATES}
    for rate in (5e-4, 1e-3, 5e-3, 1e-2):
        assert decide("halving", 20, seen)[1e-4, 0] is None
        seen[rate, 0] = whole(0.5 + rate, epochs=6, ended="diverged")
    granted = decide("halving", 20, seen)
    assert (granted[1e-4, 0], granted[5e-5, 0]) == (10, None)
    seen[1e-4, 0] = part(0.5 + 1e-4, 10)
    assert decide("halving", 20, seen)[1e-4, 0] == 20


def test_all_lost_with_the_first_seed_leaves_nothing_to_do():
    seen = blank() | {(rate, 0): whole(0.5, epochs=0, ended="diverged") for rate in RATES}
    for search in ("first_seed", "halving"):
        granted = decide(search, 20, seen)
        assert {granted[rate, seed] for rate in RATES for seed in (1, 2)} == {None}


def test_collapsed_runs_rank_by_their_loss_behind_all_others_and_ties_by_loss_then_rate():
    rates = (1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5)
    seen = blank(rates, (0, 1))
    scores = {1e-5: (None, 0.1), 2e-5: (0.5, 0.9), 3e-5: (0.5, 0.3), 4e-5: (None, 0.05), 5e-5: (0.5, 0.3),
              6e-5: (0.4, 0.1)}  # fmt: skip
    for going in (1, 2, 3, 4, 5):
        ranking = [3e-5, 5e-5, 2e-5, 6e-5, 4e-5, 1e-5]
        for rate, (score, loss) in scores.items():
            seen[rate, 0] = whole(score, loss, epochs=20)
        for rate in ranking[: going - 1]:  # the best are gone
            seen[rate, 0] = whole(None, 0.0, epochs=0, ended="failed")
        granted = decide("first_seed", 20, seen)
        assert granted[ranking[going - 1], 1] == 20


def test_first_seed_is_the_first_that_is_given():
    granted = decide("first_seed", 20, blank(seeds=(7, 0)))
    assert {seed for (_, seed), until in granted.items() if until} == {7}


def test_course_of_epochs():
    def epoch(number, loss, collapsed, **metrics):
        return Epoch(epoch=number, train_loss=loss, metrics={"validation": metrics}, seconds=1, collapsed=collapsed)

    course = Course.of([epoch(1, 0.7, True, accuracy=0.6, f1=0.8), epoch(2, 0.6, False, accuracy=0.7, f1=None),
                        epoch(3, 0.5, None, accuracy=0.5, f1=0.4)], "f1", "completed")  # fmt: skip
    assert course == Course((None, None, 0.4), (0.7, 0.6, 0.5), "completed")
    assert [course.best(number) for number in (0, 2, 3)] == [None, None, 0.4]
    both = Course.of([epoch(1, 0.7, False, pearson=0.2, spearman=0.4)], "pearson_spearman_mean")
    assert both.best(1) == pytest.approx(0.3)


# ---- whatever comes -------------------------------------------------------------------------------------------------


def draw_world(search, seed):
    chance = random.Random(seed)
    epochs = chance.choice([1, 2, 3, 5, 10, 20])
    rates = sorted(chance.sample([1e-5 * 2**k for k in range(12)], chance.randint(1, 8)))
    seeds = list(range(chance.randint(1, 4)))
    runs = {}
    for rate in rates:
        for number in seeds:
            lost = chance.random() < chance.choice([0.0, 0.2, 0.9])
            length = chance.randint(0, epochs - 1) if lost else epochs
            scores = tuple(chance.choice([None, round(chance.random(), 1), chance.random()]) for _ in range(length))
            losses = tuple(round(chance.random(), 1) for _ in range(length))
            runs[rate, number] = Course(scores, losses, chance.choice(["diverged", "failed"]) if lost else "completed")
    return World(search, epochs, runs), chance


@pytest.mark.parametrize("search", ["first_seed", "halving"])
def test_end_is_the_same_in_whatever_order_runs_end(search):
    for seed in range(300):
        world, chance = draw_world(search, seed)
        expected = world.finish()
        for _ in range(3):
            other, _ = draw_world(search, seed)
            assert other.finish(lambda due, chance=chance: chance.choice(due)) == expected, seed


@pytest.mark.parametrize("search", ["first_seed", "halving"])
def test_every_cell_comes_to_an_end_with_the_best_of_its_rates_on_all_seeds(search):
    for number in range(300):
        world, _ = draw_world(search, number)
        seen = world.finish()
        granted = decide(search, world.epochs, seen)
        rates = list(dict.fromkeys(rate for rate, _ in seen))
        assert all(course.ended or (len(rates) > 1 and granted[place] is None) for place, course in seen.items())
        # Nothing is cut short that would have ended, and nothing is run that was not asked for.
        assert all(course.epochs in (world.whole[place].epochs, *(rung for rung, _ in find_rungs(world.epochs, 9)), 0)
                   for place, course in seen.items())  # fmt: skip
        done = [rate for rate in rates if seen[rate, 0].ended == "completed"]
        if len(rates) > 1 and done:
            best = min(done, key=lambda rate: (seen[rate, 0].best(99) is None, -(seen[rate, 0].best(99) or 0),
                                               seen[rate, 0].losses[-1], rate))  # fmt: skip
            assert all(seen[best, seed].ended for _, seed in seen)
        # A run that could have ended well is there wherever the first seed has one.
        assert bool(done) == any(world.whole[rate, 0].ended == "completed" for rate in rates)


def test_grants_only_grow_but_for_runs_that_are_out():
    for number in range(200):
        world, chance = draw_world("halving", number)
        before = decide(world.search, world.epochs, world.seen)
        while due := world.due():
            world.run(chance.choice(due))
            after = decide(world.search, world.epochs, world.seen)
            assert all(after[place] is None or after[place] >= (before[place] or 0)
                       for place in after if not world.seen[place].ended)  # fmt: skip
            before = after


def test_searches_cost_no_more_than_all():
    for number in range(200):
        costs = []
        for search in ("all", "first_seed", "halving"):
            world, _ = draw_world(search, number)
            world.finish()
            costs.append(world.cost[1])
        assert costs[0] >= max(costs[1:])


# ---- grids ----------------------------------------------------------------------------------------------------------


def make_grid(**axes):
    settings = {"model": "m", "epochs": 10}
    return expand_grid({"learning_rate": (1e-4, 1e-3, 1e-2), "seed": (0, 1)} | axes, settings,
                       fisher_union="held_out" if axes["mode"] == ("fisher",) else "none")  # fmt: skip


def test_cells_are_all_but_rate_and_seed():
    grid = make_grid(task=("mrpc", "rte"), mode=("full", "outliers"), mask_size=(4, 16))
    cells = {}
    for spec in grid.runs:
        cells.setdefault(cell_of(spec)[0], []).append(spec)
    assert [len(runs) for runs in cells.values()] == [6] * 6
    for runs in cells.values():
        assert len({(run.task, run.mode, run.mask_size) for run in runs}) == 1
    search = Search(grid, "first_seed")
    (rate,) = {run.learning_rate for run in grid.runs if run.learning_rate == 1e-3}
    for spec in grid.runs:
        if (spec.task, spec.mode, spec.seed) == ("rte", "full", 0):
            search.note(spec, whole(0.9 if spec.learning_rate == rate else 0.5, epochs=10))
    granted = {(s.task, s.mode, s.learning_rate) for s in grid.runs if s.seed == 1 and search.granted(s) == 10}
    assert granted == {("rte", "full", 1e-3)}


def test_unions_are_cells_of_their_own():
    grid = make_grid(task=("mrpc", "rte"), mode=("fisher",), mask_fraction=(0.1,))
    search = Search(grid, "halving")
    assert len({cell_of(slot)[0] for slot in (*grid.runs, *grid.unions)}) == 4
    union = grid.unions[0]
    assert search.granted(union) == 2
    assert [run.learning_rate for run in search.like(union.sources[0])] == [1e-4, 1e-3, 1e-2]
    assert not search.settled(union)


def test_what_is_not_granted_yet_is_foreseen():
    grid = make_grid(task=("mrpc",), mode=("full",))
    assert Search(grid, "all").undecided() == []
    search = Search(grid, "halving")
    granted = sum(search.granted(run) for run in grid.runs)
    assert granted == 3 * 2
    ((spec, more),) = search.undecided()
    assert (spec.task, more) == ("mrpc", 2 * 8 + 10)
    for run in grid.runs:
        search.note(run, whole(0.5, epochs=10))
    assert search.undecided() == []


def test_failure_without_epochs_keeps_what_the_run_showed_before():
    spec = RunSpec.make(model="m", task="mrpc", mode="full", epochs=10)
    search = Search(expand_grid({"task": ("mrpc",), "mode": ("full",)}, {"model": "m", "epochs": 10}), "halving")
    search.note(spec, part(0.6, 2))
    search.note(spec, Course(ended="failed"))
    assert search.course(spec) == Course((0.6, 0.6), (0.5, 0.5), "failed")
    assert math.isclose(search.course(spec).best(1), 0.6)


@pytest.mark.parametrize("search", ["first_seed", "halving"])
@pytest.mark.parametrize("epochs", [3, 4, 7, 10])
def test_a_run_that_early_stopping_ended_competes_with_what_it_has(search, epochs):
    # Before the first rung (4 of 20), on it, between, and on the second: the best of the first seed's runs.
    runs = {place: whole(0.5 + 0.01 * RATES.index(place[0])) for place in PLACES}
    best = RATES[2]
    runs |= {(best, seed): whole(0.9, epochs=epochs) for seed in SEEDS}
    seen = World(search, 20, runs).finish()
    assert [seen[best, seed].ended for seed in SEEDS] == ["completed"] * 3
    assert all(seen[best, seed].epochs == epochs for seed in SEEDS)
    begun = {rate for rate, seed in PLACES if seed != SEEDS[0] and seen[rate, seed].epochs}
    assert begun == {best}


def test_a_run_that_early_stopping_ended_is_left_behind_by_better_ones():
    runs = {place: whole(0.9 - 0.05 * RATES.index(place[0])) for place in PLACES}
    worst = RATES[-1]
    runs |= {(worst, seed): whole(0.1, epochs=3) for seed in SEEDS}
    world = World("halving", 20, runs)
    seen = world.finish()
    assert (seen[worst, SEEDS[0]].ended, seen[worst, SEEDS[1]].ended) == ("completed", "")
    assert decide("halving", 20, seen)[worst, SEEDS[1]] is None
    assert seen[RATES[0], SEEDS[2]].ended == "completed"
