"""Which clients or examples take part, and what sampling adds to a guarantee.

Sampling amplifies only for an observer who does not know the sample.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from privtrain.accounting.event import (
    fixed_size_sampled,
    of_group,
    poisson_sampled,
    truncated_poisson_sampled,
)
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.observers import Exposure
from privtrain.core.rounding import printed_down
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation
from privtrain.core.validate import check_count, check_flag, check_positive, check_probability


class Sampling(Protocol):
    """Which members of a population take part in a round."""

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """The members that take part, as ascending numbers below the population."""
        ...

    def expected(self, population: int) -> float:
        """The public number by which a noised sum is divided."""
        ...

    def at_least(self, population: int) -> int:
        """Lower bound on the sample's size, if the member that is protected takes part."""
        ...

    @property
    def minimum_separation(self) -> int:
        """Smallest distance, in rounds, of two participations of a member; 1: no restriction."""
        ...

    @property
    def varies(self) -> bool:
        """Whether the size of the sample is random."""
        ...

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """The relation under which an observer's guarantee is stated."""
        ...

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """The event of one round for an observer, sampling included."""
        ...


@dataclass(frozen=True)
class Everyone:
    """Everybody takes part in every round."""

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        return list(range(population))

    def expected(self, population: int) -> float:
        return float(population)

    def at_least(self, population: int) -> int:
        return population

    @property
    def minimum_separation(self) -> int:
        return 1

    @property
    def varies(self) -> bool:
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        # An absent message is seen, so a reader of single messages is owed replace-one. Who takes
        # part is public, so that a reader of sums is owed zero-out, not add/remove.
        return REPLACE_ONE if exposure.single_messages else ZERO_OUT

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        return event


@dataclass(frozen=True)
class FixedSize:
    """A fixed number takes part, drawn without replacement.

    Args:
        size: Number of those that take part in a round; at least 1.
        replace_one: Whether the guarantee is for replacing one even if everybody takes part;
            otherwise it is then for zeroing one out.
    """

    size: int
    replace_one: bool = False

    def __post_init__(self) -> None:
        check_count(size=self.size)
        check_flag(replace_one=self.replace_one)

    def _check(self, population: int) -> None:
        if self.size > population:
            raise ValueError(f"Expected size={self.size} <= {population}, the number of parties.")

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        self._check(population)
        if self.size == population:
            return list(range(population))
        return sorted(generator.choice(population, self.size, replace=False).tolist())

    def expected(self, population: int) -> float:
        return float(self.size)

    def at_least(self, population: int) -> int:
        self._check(population)
        return self.size

    @property
    def minimum_separation(self) -> int:
        return 1

    @property
    def varies(self) -> bool:
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        # Samples of a fixed size have no add/remove: who leaves is replaced by another. Where
        # everybody takes part there is nobody to take the place, so that zero-out can be promised.
        everybody = self.size >= population and not self.replace_one
        return ZERO_OUT if everybody and not exposure.single_messages else REPLACE_ONE

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        # Corrupted parties know whether they took part themselves; in the worst case none did, and
        # the sample was drawn from the others.
        others = population - corrupted
        everybody = self.size > others or (self.size == others and not self.replace_one)
        if exposure.knows_sample or everybody:
            return event
        return fixed_size_sampled(others, self.size, event)


def chosen_by_coin(
    population: int, rate: float, generator: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The members chosen by independent coins, each with at most the stated probability.

    Args:
        population: Number of members.
        rate: Probability of being chosen, in (0, 1].
        generator: Where the coins come from.

    Returns:
        Ascending numbers below the population.
    """
    # A drawn number stands for all numbers up to the next multiple of 2^-53, and chooses only if
    # all of them are below the rate: a rate below 2^-53 would be charged as less than is drawn.
    return np.flatnonzero(generator.random(population) + 2.0**-53 <= rate)


@dataclass(frozen=True)
class Poisson:
    """Each takes part independently with the same probability; a round may be empty.

    Args:
        rate: Probability of taking part, in (0, 1].
        expected_size: A public number by which noised sums are divided; None for the rate times
            the number of parties, which then is public.
        size_is_public: Whether `expected_size` was computed from the true population, so that the
            population is public, too.
    """

    rate: float
    expected_size: float | None = None
    size_is_public: bool = False

    def __post_init__(self) -> None:
        check_probability(rate=self.rate)
        if self.expected_size is not None:
            check_positive(expected_size=self.expected_size)
        check_flag(size_is_public=self.size_is_public)

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        drawn: list[int] = chosen_by_coin(population, self.rate, generator).tolist()
        return drawn

    def expected(self, population: int) -> float:
        return self.rate * population if self.expected_size is None else self.expected_size

    def at_least(self, population: int) -> int:
        # Only the changed party is sure to be there: without it there is nothing to hide.
        return 1

    @property
    def minimum_separation(self) -> int:
        return 1

    @property
    def varies(self) -> bool:
        return self.rate < 1

    def relation(self, exposure: Exposure, population: int) -> Relation:
        if exposure.single_messages:
            return REPLACE_ONE
        # If the number of parties sets the scale, it is public, and nobody can be added unseen.
        public = self.expected_size is None or self.size_is_public
        return ZERO_OUT if public else ADD_REMOVE

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        # Amplification holds only for an observer who does not know the sample.
        return event if exposure.knows_sample else poisson_sampled(self.rate, event)


@dataclass(frozen=True)
class TruncatedPoisson:
    """Poisson sampling, cut to a random choice of at most `largest` members.

    The population is public.

    Args:
        rate: Probability of taking part before the cut, in (0, 1].
        largest: Largest number of those that take part; at least 1.
    """

    rate: float
    largest: int

    def __post_init__(self) -> None:
        check_probability(rate=self.rate)
        check_count(largest=self.largest)

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        drawn = chosen_by_coin(population, self.rate, generator)
        if len(drawn) > self.largest:
            drawn = np.sort(generator.permutation(drawn)[: self.largest])
        return [int(number) for number in drawn]

    def expected(self, population: int) -> float:
        return min(float(self.largest), self.rate * population)

    def at_least(self, population: int) -> int:
        return 1

    @property
    def minimum_separation(self) -> int:
        return 1

    @property
    def varies(self) -> bool:
        return self.rate < 1

    def relation(self, exposure: Exposure, population: int) -> Relation:
        # Not add/remove: the population decides how often samples are cut.
        return REPLACE_ONE if exposure.single_messages else ZERO_OUT

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        # docs/decisions/014: the cut ties members to each other, so that who knows whether one was
        # in the sample knows something of the others.
        if exposure.knows_sample or exposure.single_messages or corrupted > 0:
            return event
        return truncated_poisson_sampled(population, self.rate, self.largest, event)


@dataclass(frozen=True)
class ByUser:
    """Samples of rows, with a guarantee for all rows of one user.

    Args:
        rows: How rows are drawn, each of them independently.
        rows_per_user: Largest number of rows of a user; at least 1.
    """

    rows: Poisson
    rows_per_user: int

    def __post_init__(self) -> None:
        check_count(rows_per_user=self.rows_per_user)

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        # Rows are drawn, not users.
        return self.rows.choose(population, generator)

    def expected(self, population: int) -> float:
        return self.rows.expected(population)

    def at_least(self, population: int) -> int:
        return self.rows.at_least(population)

    @property
    def minimum_separation(self) -> int:
        return self.rows.minimum_separation

    @property
    def varies(self) -> bool:
        return self.rows.varies

    def relation(self, exposure: Exposure, population: int) -> Relation:
        # As for rows: a user's rows are added all at once, or zeroed out all at once.
        return self.rows.relation(exposure, population)

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        # Each row by a coin of its own: Binomial(rows_per_user, rate) of a user's rows take part
        # (Choquette-Choo et al. 2023, arXiv:2310.15526).
        of_rows = self.rows.amplified(event, exposure, population, corrupted)
        return of_group(of_rows, self.rows_per_user)


@dataclass(frozen=True)
class Shuffled:
    """Everybody takes part once, in a random order.

    Args:
        replace_one: Whether the guarantee is for replacing one, instead of zeroing one out.
    """

    replace_one: bool = False

    def __post_init__(self) -> None:
        check_flag(replace_one=self.replace_one)

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """All numbers in a random order, which has no effect on the guarantee."""
        return [int(number) for number in generator.permutation(population)]

    def expected(self, population: int) -> float:
        return float(population)

    def at_least(self, population: int) -> int:
        return population

    @property
    def minimum_separation(self) -> int:
        return 1

    @property
    def varies(self) -> bool:
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        # The population is public, so nobody can be added unseen.
        return REPLACE_ONE if self.replace_one or exposure.single_messages else ZERO_OUT

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        return event


def check_delta_below(delta: float, population: int | None, unit: str) -> None:
    """Refuses a delta that is not below one over the population.

    Raises:
        UnsoundReleaseError: If delta is at least 1 / population.
    """
    # Publishing one unit in the clear, drawn at random, is (0, 1 / population)-DP.
    if population is not None and population > 1 and delta >= 1.0 / population:
        raise UnsoundReleaseError(
            f"delta={delta:g} is not below 1 / {population}, the number of {unit}s: publishing a "
            f"random {unit} in the clear would satisfy it. Choose delta below "
            f"{printed_down(1 / population, 2)}."
        )
