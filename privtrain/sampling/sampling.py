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
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation
from privtrain.core.validate import check_count, check_flag, check_positive, check_probability


class Sampling(Protocol):
    """Which of a population take part in a round."""

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """Who takes part, as ascending numbers below the population."""
        ...

    def expected(self, population: int) -> float:
        """A public number by which a noised sum is divided."""
        ...

    def at_least(self, population: int) -> int:
        """How many take part in any case."""
        ...

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random."""
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
        """All numbers."""
        return list(range(population))

    def expected(self, population: int) -> float:
        """The population."""
        return float(population)

    def at_least(self, population: int) -> int:
        """The population."""
        return population

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random; it is not."""
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """Replace-one for a reader of single messages; zero-out for a reader of the sum.

        Who takes part is public, so nobody can be added or removed unseen.
        """
        return REPLACE_ONE if exposure.single_messages else ZERO_OUT

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """The event as it is."""
        return event


@dataclass(frozen=True)
class FixedSize:
    """As many as said take part, drawn without replacement.

    Args:
        size: How many take part in a round; at least 1.
        replace_one: Whether the guarantee is for replacing one, and by RDP, also where everybody
            takes part; else zeroing one out is what is promised there.
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
        """A uniform subset of the stated size."""
        self._check(population)
        if self.size == population:
            return list(range(population))
        return sorted(generator.choice(population, self.size, replace=False).tolist())

    def expected(self, population: int) -> float:
        """The stated size."""
        return float(self.size)

    def at_least(self, population: int) -> int:
        """The stated size."""
        self._check(population)
        return self.size

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random; it is not."""
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """Zero-out for a reader of sums over everybody, unless told otherwise; else replace-one."""
        everybody = self.size >= population and not self.replace_one
        return ZERO_OUT if everybody and not exposure.single_messages else REPLACE_ONE

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """Sampling without replacement, for an observer who does not know the sample.

        Corrupted parties know whether they took part themselves; in the worst case none did, and
        the sample was drawn from the others.
        """
        others = population - corrupted
        everybody = self.size > others or (self.size == others and not self.replace_one)
        if exposure.knows_sample or everybody:
            return event
        return fixed_size_sampled(others, self.size, event)


def heads(
    population: int, rate: float, generator: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The numbers whose coin shows heads, each with at most the stated probability.

    A drawn number stands for all numbers up to the next multiple of 2^-53. Only where all of them
    are below the rate is it heads: otherwise the least rate would be charged as less than is drawn.

    Args:
        population: How many coins there are.
        rate: Probability of heads, in (0, 1].
        generator: Where the coins come from.

    Returns:
        Ascending numbers below the population.
    """
    return np.flatnonzero(generator.random(population) + 2.0**-53 <= rate)


@dataclass(frozen=True)
class Poisson:
    """Each takes part independently with the same probability; a round may be empty.

    Args:
        rate: Probability of taking part, in (0, 1].
        expected_size: A public number by which noised sums are divided; None for the rate times
            the number of parties, which is then part of what is public.
        size_is_public: Whether the given number follows from how many there really are, so that
            this count is public too.
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
        """An independent coin for every number."""
        drawn: list[int] = heads(population, self.rate, generator).tolist()
        return drawn

    def expected(self, population: int) -> float:
        """The public number by which a noised sum is divided."""
        return self.rate * population if self.expected_size is None else self.expected_size

    def at_least(self, population: int) -> int:
        """One: where the changed party does not take part, there is nothing to hide."""
        return 1

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random; it is, unless everybody does."""
        return self.rate < 1

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """Replace-one for a reader of single messages, else add/remove or zero-out.

        Where the number of parties sets the scale, it is public, and nobody can be added unseen.
        """
        if exposure.single_messages:
            return REPLACE_ONE
        public = self.expected_size is None or self.size_is_public
        return ZERO_OUT if public else ADD_REMOVE

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """Poisson sampling, for an observer who does not know the sample."""
        return event if exposure.knows_sample else poisson_sampled(self.rate, event)


@dataclass(frozen=True)
class TruncatedPoisson:
    """Like Poisson, but where more than a largest number take part, a random choice of them does.

    How many there are is public.

    Args:
        rate: Probability of taking part before the cut, in (0, 1].
        largest: How many take part at most; at least 1.
    """

    rate: float
    largest: int

    def __post_init__(self) -> None:
        check_probability(rate=self.rate)
        check_count(largest=self.largest)

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """An independent coin for every number, then a random order that is cut off."""
        drawn = heads(population, self.rate, generator)
        if len(drawn) > self.largest:
            drawn = np.sort(generator.permutation(drawn)[: self.largest])
        return [int(number) for number in drawn]

    def expected(self, population: int) -> float:
        """The public number by which a noised sum is divided."""
        return min(float(self.largest), self.rate * population)

    def at_least(self, population: int) -> int:
        """One: where the changed party does not take part, there is nothing to hide."""
        return 1

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random."""
        return self.rate < 1

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """Zero-out: the number there are decides how often samples are cut."""
        return REPLACE_ONE if exposure.single_messages else ZERO_OUT

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """Amplified for who knows nothing of the sample; the cut tells members about others."""
        if exposure.knows_sample or exposure.single_messages or corrupted > 0:
            return event
        return truncated_poisson_sampled(population, self.rate, self.largest, event)


@dataclass(frozen=True)
class ByUser:
    """Samples of rows, charged for all rows of one user together.

    Args:
        rows: How rows are drawn; each of them independently.
        rows_per_user: How many rows a user has at most; at least 1.
    """

    rows: Poisson
    rows_per_user: int

    def __post_init__(self) -> None:
        check_count(rows_per_user=self.rows_per_user)

    def choose(self, population: int, generator: np.random.Generator) -> list[int]:
        """Rows, not users."""
        return self.rows.choose(population, generator)

    def expected(self, population: int) -> float:
        """The public number by which a noised sum is divided."""
        return self.rows.expected(population)

    def at_least(self, population: int) -> int:
        """As for rows."""
        return self.rows.at_least(population)

    @property
    def varies(self) -> bool:
        """Whether how many rows take part is itself random."""
        return self.rows.varies

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """As for rows: a user's rows are added together, or zeroed out together."""
        return self.rows.relation(exposure, population)

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """What a draw of rows shows of as many as a user may have."""
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
        """The population."""
        return float(population)

    def at_least(self, population: int) -> int:
        """The population."""
        return population

    @property
    def varies(self) -> bool:
        """Whether how many take part is itself random; it is not."""
        return False

    def relation(self, exposure: Exposure, population: int) -> Relation:
        """Zero-out or replace-one: how many there are is public, so nobody can be added unseen."""
        return REPLACE_ONE if self.replace_one or exposure.single_messages else ZERO_OUT

    def amplified(self, event: Any, exposure: Exposure, population: int, corrupted: int) -> Any:
        """The event as it is."""
        return event


def check_delta_below(delta: float, population: int | None, unit: str) -> None:
    """Refuses a delta under which publishing one unit in the clear would count as private.

    Raises:
        UnsoundReleaseError: If delta is at least 1 / population.
    """
    if population is not None and population > 1 and delta >= 1.0 / population:
        raise UnsoundReleaseError(
            f"delta={delta:g} is not below 1 / {population}, the number of {unit}s: publishing a "
            f"random {unit} in the clear would satisfy it. Choose delta below {1 / population:.2g}."
        )
