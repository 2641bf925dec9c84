"""One figure for several seeds: means of what is measured, and never a mean of bounds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from privtrain.report import cells
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
        metric: Its name, which says whether it is a bound.
    """

    value: float | None
    interval: Interval | None
    metric: str = ""

    @property
    def text(self) -> str:
        """The value: a lower bound rounded down, a p-value up."""
        if self.value is None or self.metric not in _ROUNDED:
            return cells.metric(self.value, self.interval)
        return _ROUNDED[self.metric](self.value, _digits(self.value))

    @property
    def interval_text(self) -> str:
        """The interval, or the range of bounds, rounded outwards."""
        if self.interval is None or self.metric not in _ROUNDED:
            return cells.rate_interval(self.interval)
        low, high = self.interval
        return f"{cells.proved(low, _digits(low))}–{cells.promised(high, _digits(high))}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """The mean and the range of values over seeds; None where there are none, or one is missing."""
    of_seeds = list(values)
    present = [value for value in of_seeds if value is not None]
    # A mean of the seeds that have a value would be one of chosen seeds.
    if not present or len(present) < len(of_seeds):
        return None
    low, high = min(present), max(present)
    # Rounding can put the mean of equal values beside them.
    return Spread(min(max(math.fsum(present) / len(present), low), high), low, high)


def hull(intervals: Sequence[Interval | None]) -> Interval | None:
    """The smallest interval that holds all; None where there are none, or one is missing."""
    # No mean of ends, which would be an interval at no stated confidence.
    present = [interval for interval in intervals if interval is not None]
    if not present or len(present) < len(intervals):
        return None
    return (min(low for low, _ in present), max(high for _, high in present))


def bonferroni(p_values: Sequence[float]) -> float:
    """A p-value for all seeds together, whatever they have in common: the least times their number.

    Source: Bonferroni 1936; Dunn 1961.
    """
    return min(1.0, len(p_values) * min(p_values))


_OVER_SEEDS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "epsilon_lower_bound": min,
    "gaussian_family_epsilon": min,
    "f_dp_p_value": bonferroni,
}
"""By metric, how the values of all seeds become one that holds at the confidence of each.

The least of several lower bounds lies below that of the first seed, which nobody chose; their mean
and their largest hold at no stated confidence.
"""


def _digits(value: float) -> int:
    return 3 if abs(value) < 1 else 4


_ROUNDED: Mapping[str, Callable[[float | None, int], str]] = {
    "epsilon_lower_bound": cells.proved,
    "gaussian_family_epsilon": cells.proved,
    "f_dp_p_value": cells.promised,
}
"""By metric, how a bound is written so that what is printed holds, too."""


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
    figures = spread(values)
    if figures is None:
        return Measured(None, hull(intervals), metric)
    rule = _OVER_SEEDS.get(metric)
    if rule is None:
        return Measured(figures.mean, hull(intervals), metric)
    # The range of the seeds: a bound has no interval of its own, its confidence is stated.
    across = (figures.low, figures.high) if figures.low < figures.high else None
    return Measured(rule([value for value in values if value is not None]), across, metric)
