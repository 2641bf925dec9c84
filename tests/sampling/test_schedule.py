"""Schedules: rows take part at regular steps, and broken schedules are caught."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privtrain.core.errors import UnsoundReleaseError
from privtrain.mechanisms.banded import BandedMatrix
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.sampling.cyclic import CyclicPoisson
from privtrain.sampling.sampling import Everyone, FixedSize, Poisson
from privtrain.sampling.schedule import (
    CyclicSample,
    FixedPasses,
    Schedule,
    check_separation,
    enforced,
)
from privtrain.steps.private import DPSteps
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from tests.mechanisms.test_banded import matrix
from tests.sampling.test_batches import pairs_are_uniform
from tests.sampling.test_cyclic import BANDED, run, trainer


@st.composite
def schedules(draw: Any) -> Schedule:
    parts, steps = draw(st.integers(1, 7)), draw(st.integers(1, 30))
    if draw(st.booleans()):
        return FixedPasses(parts, steps)
    return CyclicSample(Poisson(draw(st.floats(0.05, 1.0)), 5.0), parts, steps)


def turns(batches: list[list[int]], row: int) -> list[int]:
    return [step for step, batch in enumerate(batches) if row in batch]


@given(schedules(), st.integers(0, 25), st.integers(0, 2**32))
def test_turns_of_a_row_are_far_apart_and_few(schedule: Any, rows: int, seed: int) -> None:
    batches = list(enforced(schedule, rows, np.random.default_rng(seed)))
    assert len(batches) == schedule.steps
    for row in range(rows):
        steps = turns(batches, row)
        assert len(steps) <= schedule.maximum_participations
        # More than apart: all in one step class, so that no block of steps holds two turns.
        assert len({step % schedule.minimum_separation for step in steps}) <= 1
    again = schedule.choose(rows, np.random.default_rng(seed))
    assert again == sorted({row for batch in batches for row in batch})


@settings(deadline=None)  # a matrix is optimised for each length
@given(schedules(), st.integers(1, 12), st.integers(0, 2**32))
def test_a_row_moves_what_is_released_by_no_more_than_its_turns(
    schedule: Any, rows: int, seed: int
) -> None:
    """Worst case: every contribution of a row points the same way, with the clipping norm."""
    apart = schedule.minimum_separation
    column = BandedMatrix(1.0, 1.0, apart, apart + 20).coefficients
    moved = matrix(column, max(schedule.steps, apart))[: schedule.steps, : schedule.steps]
    for row in range(rows):
        taking = np.zeros(schedule.steps)
        taking[turns(list(schedule.batches(rows, np.random.default_rng(seed))), row)] = 1.0
        assert float(((moved @ taking) ** 2).sum()) <= taking.sum() + 1e-9


def test_turns_in_neighbouring_steps_move_it_by_more() -> None:
    taking = np.array([0, 1.0, 1.0, 0, 0, 0, 0, 0])
    assert float(((matrix(BANDED.coefficients, 8) @ taking) ** 2).sum()) > 1.5 * 2


@dataclass(frozen=True)
class Broken:
    """A schedule that claims what it does not keep."""

    wrong: str
    minimum_separation: int = 4
    maximum_participations: int = 3

    def batches(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        for step in range(20):
            if self.wrong == "ignores groups":
                yield Poisson(0.4).choose(population, generator)
            elif self.wrong == "too often":
                yield [step % 4]
            else:
                yield [step, step]


@pytest.mark.parametrize("wrong", ["ignores groups", "too often", "twice in a batch"])
def test_a_schedule_that_breaks_its_promise_is_stopped(wrong: str) -> None:
    with pytest.raises(UnsoundReleaseError, match="may not take part"):
        list(enforced(Broken(wrong), 20, np.random.default_rng(0)))


def test_a_broken_schedule_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CyclicSample, "batches", Broken("ignores groups").batches)
    with pytest.raises(UnsoundReleaseError, match="may not take part"):
        run(trainer(CyclicPoisson(4)))


def groups_are_independent(group_of: Callable[[np.random.Generator], Any]) -> bool:
    """Whether pairs of rows share a group as often as independent ones, and groups are uniform."""
    generator, same, counts, draws = np.random.default_rng(0), 0, np.zeros(3), 3000
    for _ in range(draws):
        groups = group_of(generator)
        same += groups[0] == groups[5]
        counts[groups[2]] += 1
    alone = float(stats.chisquare(counts).pvalue) >= 1e-4
    return alone and float(stats.binomtest(same, draws, 1 / 3).pvalue) >= 1e-4


def test_each_row_is_in_a_group_by_itself() -> None:
    """A partition into groups of equal size would tell rows of each other: it is caught."""

    def ours(generator: np.random.Generator) -> list[int]:
        first = list(CyclicSample(Poisson(1.0, 1.0), 3, 3).batches(6, generator))
        return [next(step for step in range(3) if row in first[step]) for row in range(6)]

    def balanced(generator: np.random.Generator) -> list[int]:
        return [int(number) // 2 for number in generator.permutation(6)]

    assert groups_are_independent(ours)
    assert not groups_are_independent(balanced)


def test_a_turn_is_a_coin_of_the_stated_rate() -> None:
    cycle = CyclicSample(Poisson(0.3, 1.0), groups=3, steps=3000)
    first, last = 0, 0
    for step, batch in enumerate(cycle.batches(300, np.random.default_rng(1))):
        first, last = first + len(batch) * (step < 3), last + len(batch)
    assert stats.binomtest(last, 300 * 1000, 0.3).pvalue >= 1e-4
    assert stats.binomtest(last, 300 * 1000, 0.2).pvalue < 1e-4
    assert first < last


def test_the_order_is_uniform_and_stays() -> None:
    passes = FixedPasses(cut=2, steps=6)
    batches = list(passes.batches(6, np.random.default_rng(0)))
    assert batches[0] == batches[2] == batches[4]
    assert sorted(batches[0] + batches[1]) == list(range(6))

    class First:
        def choose(self, population: int, generator: np.random.Generator) -> list[int]:
            return next(passes.batches(population, generator))

    assert pairs_are_uniform(First(), 3)  # type: ignore[arg-type] # only `choose` is looked at


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(release=Release(BANDED)),
        lambda: FedAvg(release=Release(BANDED), sampling=FixedSize(2)),
        lambda: FedAvg(release=Release(BANDED), sampling=Poisson(0.5)),
        lambda: DPSteps(BANDED),
        lambda: PATE(release=Release(BANDED, finish=ARGMAX)),
        lambda: Release(BANDED).plans(unit="client", count=3, parties=3),  # type: ignore[arg-type]
        lambda: check_separation(BANDED, 4, Everyone()),
    ],
)
def test_other_trainers_refuse_correlated_noise(make: Callable[[], Any]) -> None:
    with pytest.raises(UnsoundReleaseError, match="BandedMatrix"):
        make()
