"""One figure for several seeds: means of what is measured, and never a mean of bounds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from privtrain.report.cells import Interval


@dataclass(frozen=True)
class Spread:
    """Some values, one for each seed.

    Args:
        mean: Their mean.
        low: The smallest.
        high: The largest.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """A metric of an attack over seeds.

    Args:
        value: The mean, or for a bound or a p-value what holds for all seeds together; None where
            it was not resolvable for some seed.
        interval: Holds the 95% intervals of all seeds, or for a bound or a p-value the values of
            all seeds; None where there is none.
    """

    value: float | None
    interval: Interval | None


def spread(values: Iterable[float | None]) -> Spread | None:
    """Values over the seeds; None where there are none, or where one is missing."""
    found = list(values)
    present = [value for value in found if value is not None]
    if not present or len(present) < len(found):
        return None
    low, high = min(present), max(present)
    # Rounding can put the mean of equal values beside them.
    return Spread(min(max(math.fsum(present) / len(present), low), high), low, high)


def hull(intervals: Sequence[Interval | None]) -> Interval | None:
    """The smallest interval that holds all; None where there are none, or one is missing."""
    present = [interval for interval in intervals if interval is not None]
    if not present or len(present) < len(intervals):
        return None
    return (min(low for low, _ in present), max(high for _, high in present))


def bonferroni(p_values: Sequence[float]) -> float:
    """A p-value for all seeds together, whatever they have in common: the least times their number.

    Source: Bonferroni 1936; Dunn 1961.
    """
    return min(1.0, len(p_values) * min(p_values))


_TOGETHER: Mapping[str, Callable[[Sequence[float]], float]] = {
    "epsilon_lower_bound": min,
    "gaussian_family_epsilon": min,
    "f_dp_p_value": bonferroni,
}
"""What holds at the confidence of one seed. The least of some lower bounds lies below the first of
them, which nobody chose; their mean and their largest do not hold at any stated confidence."""


def over_seeds(
    metric: str, values: Sequence[float | None], intervals: Sequence[Interval | None]
) -> Measured:
    """A metric of an attack over seeds.

    Args:
        metric: Its name.
        values: One for each seed, at least one; None where it was not resolvable.
        intervals: Its 95% interval for each seed, where it has one.

    Returns:
        A mean; for a lower bound the least, for a p-value Bonferroni's, both with their range.
    """
    found = spread(values)
    if found is None:
        return Measured(None, hull(intervals))
    together = _TOGETHER.get(metric)
    if together is None:
        return Measured(found.mean, hull(intervals))
    across = (found.low, found.high) if found.low < found.high else None
    return Measured(together([value for value in values if value is not None]), across)
