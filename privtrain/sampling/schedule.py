"""When a row takes part in a run of many steps: how far apart, and how often at most.

Noise that is correlated over steps hides only rows whose turns lie far enough apart. Here a whole
run is one release: what it costs follows from how often a row takes part at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np

from privtrain.accounting.epsilon import repeated
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.observers import Exposure
from privtrain.core.statement import Relation
from privtrain.core.validate import check_count
from privtrain.sampling.sampling import Poisson, Shuffled


class Schedule(Protocol):
    """Which rows take part in each step of a run."""

    @property
    def minimum_separation(self) -> int:
        """How many steps lie between a row's turns at least; 1: it may take part in the next."""
        ...

    @property
    def maximum_participations(self) -> int:
        """How often a row takes part at most."""
        ...

    def batches(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        """The rows of each step, in order, drawn as they are asked for."""
        ...


@dataclass(frozen=True)
class CyclicSample:
    """Rows belong to groups; each step draws a Poisson sample of the group whose turn it is.

    Every row's group is drawn independently of its values and of all other rows, so that adding a
    row moves no other one. Given its group, a row can only take part in every `groups`-th step,
    each time by a coin of its own: a run is as many sampled releases as a group has turns,
    whatever the group, and a mixture over groups costs no more than the worst of them.

    Args:
        poisson: The coin of a row whose group's turn it is.
        groups: How many groups there are; at least 1.
        steps: How many steps the run has.

    Source: Choquette-Choo et al. 2023, algorithm 2 (arXiv:2306.08153).
    """

    poisson: Poisson
    groups: int
    steps: int

    def __post_init__(self) -> None:
        check_count(groups=self.groups, steps=self.steps)

    @property
    def minimum_separation(self) -> int:
        """The number of groups: so many steps pass until it is a group's turn again."""
        return self.groups

    @property
    def maximum_participations(self) -> int:
        """How many turns the first group has; later ones have as many, or one less."""
        return -(-self.steps // self.groups)

    def batches(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        """The rows of each step; may be none."""
        group_of = generator.integers(self.groups, size=population)
        members = [np.flatnonzero(group_of == group) for group in range(self.groups)]
        for step in range(self.steps):
            group = members[step % self.groups]
            yield group[self.poisson.choose(len(group), generator)].tolist()

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """Who takes part in any step of the run."""
        return sorted(set(chain.from_iterable(self.batches(population, generator))))

    def expected(self, population: int) -> float:
        """The public number by which the noised sum of a step is divided."""
        return self.poisson.expected(population)

    def at_least(self, population: int) -> int:
        """One: where the changed row does not take part, there is nothing to hide."""
        return 1

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random; it is."""
        return True

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """That of Poisson samples: add/remove, or zero-out where the number of rows is public."""
        return self.poisson.relation(exposure, population)

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """The event of a whole run: a sampled release for each turn of a row's group."""
        once = self.poisson.amplified(event, exposure, population, corrupted)
        return repeated(once, self.maximum_participations)


@dataclass(frozen=True)
class FixedPasses:
    """One random order of all rows, cut into batches, gone through again and again.

    Nothing is amplified: each pass costs one release about every row.

    Args:
        cut: How many batches a pass is cut into; at least 1.
        steps: How many steps the run has.
        replace_one: Whether the guarantee is for replacing one, instead of zeroing one out.
    """

    cut: int
    steps: int
    replace_one: bool = False

    def __post_init__(self) -> None:
        check_count(cut=self.cut, steps=self.steps)

    @property
    def minimum_separation(self) -> int:
        """The number of batches in a pass: a row keeps its place."""
        return self.cut

    @property
    def maximum_participations(self) -> int:
        """How many passes are begun."""
        return -(-self.steps // self.cut)

    def batches(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        """The rows of each step, all of nearly the same number."""
        order = generator.permutation(population)
        size = -(-population // self.cut)
        for step in range(self.steps):
            first = step % self.cut * size
            yield order[first : first + size].tolist()

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """Who takes part in any step of the run."""
        return sorted(set(chain.from_iterable(self.batches(population, generator))))

    def expected(self, population: int) -> float:
        """How many rows a batch has."""
        return float(-(-population // self.cut))

    def at_least(self, population: int) -> int:
        """The population."""
        return population

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random; it is not."""
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """Zero-out or replace-one: how many there are is public, so nobody can be added unseen."""
        return Shuffled(self.replace_one).relation(exposure, population)

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """The event of a whole run: a release for each pass."""
        return repeated(event, self.maximum_participations)


def enforced(
    schedule: Schedule, population: int, generator: np.random.Generator
) -> Iterator[list[int]]:
    """The batches of a schedule, each of them held against what it promises before it is used.

    Args:
        schedule: Draws the batches.
        population: How many rows there are.
        generator: Where they are drawn from.

    Yields:
        The rows of each step.

    Raises:
        UnsoundReleaseError: If a row is in a batch twice, comes again too early or too often.
    """
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


def check_separation(mechanism: object, sampling: object) -> None:
    """Refuses noise that is correlated over more steps than lie between a row's turns.

    What says nothing of itself has independent noise, or may let a row take part in every step.

    Args:
        mechanism: Draws the noise.
        sampling: Says who takes part.

    Raises:
        UnsoundReleaseError: If a row may take part again too early.
    """
    needed = getattr(mechanism, "minimum_separation", 1)
    found = getattr(sampling, "minimum_separation", 1)
    if found < needed:
        raise UnsoundReleaseError(
            f"{mechanism} promises something to rows that take part at least {needed} steps "
            f"apart; under {sampling} it may be {found}. Use DPSGD with "
            f"sampling=CyclicPoisson(groups={needed}), or FixedOrder() with at least {needed} "
            "batches in an epoch; or Gaussian noise, which is independent."
        )
