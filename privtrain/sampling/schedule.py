"""Schedules: how far apart the participations of a row in a run lie, and how many there are.

Noise that is correlated over steps hides only rows whose participations lie far enough apart. Here
a whole run is one release, and its cost follows from the largest number of participations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np

from privtrain.accounting.event import repeated
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.observers import Exposure
from privtrain.core.statement import Relation
from privtrain.core.validate import check_count
from privtrain.sampling.sampling import Poisson, Sampling, Shuffled


class Schedule(Protocol):
    """Which rows take part in each step of a run."""

    @property
    def minimum_separation(self) -> int:
        """Smallest distance, in steps, of two participations of a row; 1: no restriction."""
        ...

    @property
    def maximum_participations(self) -> int:
        """Largest number of participations of a row."""
        ...

    def batches(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        """The rows of each step, in order, drawn step by step."""
        ...


@dataclass(frozen=True)
class CyclicSample:
    """Each step draws a Poisson sample of one group of rows; the groups take turns.

    Given its group, a row can only take part in every `groups`-th step, each time by a coin of its
    own: a run is as many sampled releases as a group has turns.

    Args:
        poisson: The coin of a row in the group whose turn it is.
        groups: Number of groups; at least 1.
        steps: Number of steps of the run.

    Source: Choquette-Choo et al. 2023, algorithm 2 (arXiv:2306.08153).
    """

    poisson: Poisson
    groups: int
    steps: int

    def __post_init__(self) -> None:
        check_count(groups=self.groups, steps=self.steps)

    @property
    def minimum_separation(self) -> int:
        return self.groups

    @property
    def maximum_participations(self) -> int:
        # The turns of the first group; later groups have as many, or one less.
        return -(-self.steps // self.groups)

    def batches(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        # Algorithm 2, the partition. Every row's group is drawn by itself, so that adding a row
        # moves no other one: groups of equal size would tie rows to each other.
        group_of = generator.integers(self.groups, size=population)
        members = [np.flatnonzero(group_of == group) for group in range(self.groups)]
        for step in range(self.steps):
            # Algorithm 2, step t: the group t mod groups, of which each row takes part by a coin.
            group = members[step % self.groups]
            yield group[self.poisson.choose(len(group), generator)].tolist()

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """The rows that take part in any step of the run."""
        return sorted(set(chain.from_iterable(self.batches(population, generator))))

    def expected(self, population: int) -> float:
        return self.poisson.expected(population)

    def at_least(self, population: int) -> int:
        return 1

    @property
    def varies(self) -> bool:
        return True

    def relation(self, exposure: Exposure, population: int) -> Relation:
        return self.poisson.relation(exposure, population)

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        # The event of a whole run: a sampled release for each turn of a row's group. A mixture
        # over groups costs no more than the worst of them.
        once = self.poisson.amplified(event, exposure, population, corrupted)
        return repeated(once, self.maximum_participations)


@dataclass(frozen=True)
class FixedPasses:
    """Passes over all rows in one random order, cut into the same batches every time.

    Nothing is amplified: each pass costs one release about every row.

    Args:
        cut: Number of batches in a pass; at least 1.
        steps: Number of steps of the run.
        replace_one: Whether the guarantee is for replacing one, instead of zeroing one out.
    """

    cut: int
    steps: int
    replace_one: bool = False

    def __post_init__(self) -> None:
        check_count(cut=self.cut, steps=self.steps)

    @property
    def minimum_separation(self) -> int:
        # A row keeps its place in every pass.
        return self.cut

    @property
    def maximum_participations(self) -> int:
        # A pass that is begun counts as a whole.
        return -(-self.steps // self.cut)

    def batches(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        order = generator.permutation(population)
        size = -(-population // self.cut)
        for step in range(self.steps):
            first = step % self.cut * size
            yield order[first : first + size].tolist()

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """The rows that take part in any step of the run."""
        return sorted(set(chain.from_iterable(self.batches(population, generator))))

    def expected(self, population: int) -> float:
        return float(-(-population // self.cut))

    def at_least(self, population: int) -> int:
        return population

    @property
    def varies(self) -> bool:
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        return Shuffled(self.replace_one).relation(exposure, population)

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        # The event of a whole run: a release for each pass.
        return repeated(event, self.maximum_participations)


def enforced(
    schedule: Schedule, population: int, generator: np.random.Generator
) -> Iterator[list[int]]:
    """The batches of a schedule, each checked against what the schedule promises.

    Args:
        schedule: Draws the batches.
        population: Number of rows.
        generator: Where they are drawn from.

    Yields:
        The rows of each step.

    Raises:
        UnsoundReleaseError: If a row is in a batch twice, comes again too early or too often.
    """
    # The cost of correlated noise is proved for such schedules only, so that a schedule with a
    # fault must not reach a model: it is checked while it runs, not only in tests.
    apart, most = schedule.minimum_separation, schedule.maximum_participations
    last = np.full(population, -apart, dtype=np.int64)
    turns = np.zeros(population, dtype=np.int64)
    for step, batch in enumerate(schedule.batches(population, generator)):
        rows = np.asarray(batch, dtype=np.int64)
        early = bool((step - last[rows] < apart).any())
        if early or bool((turns[rows] >= most).any()) or len(set(batch)) < len(batch):
            raise UnsoundReleaseError(
                f"Step {step} of {schedule} takes a row that may not take part: the guarantee "
                f"counts on turns at least {apart} steps apart, and on {most} of them at most. "
                "Use CyclicPoisson() or FixedOrder()."
            )
        last[rows] = step
        turns[rows] += 1
        yield batch


def check_separation(mechanism: object, needed: int, sampling: Sampling) -> None:
    """Refuses noise that is correlated over more steps than a row's participations lie apart.

    Args:
        mechanism: Draws the noise; named in the error.
        needed: How many steps have to lie between two participations of a row.
        sampling: Decides who takes part.

    Raises:
        UnsoundReleaseError: If a row may take part again too early.
    """
    separation = sampling.minimum_separation
    if separation < needed:
        raise UnsoundReleaseError(
            f"{mechanism} promises something to rows that take part at least {needed} steps "
            f"apart; under {sampling} it may be {separation}. Use DPSGD with "
            f"sampling=CyclicPoisson(groups={needed}), or FixedOrder() with at least {needed} "
            "batches in an epoch; or Gaussian noise, which is independent."
        )
