"""Rounding that keeps a statement true: bounds away from what was not proved, intervals outwards.

Numbers are read as their shortest decimal, as `repr` prints them, so that 0.1 stays 0.1.
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

MOST_DECIMALS = 12
"""An interval that needs more to be told from a point is printed as if it held the point."""


def rounded_up(value: float, digits: int) -> float:
    """The smallest number of so many significant digits that is not below a value.

    For what holds as an upper bound: a promised epsilon, its delta, a p-value.

    Args:
        value: Any number; infinity and "not a number" stay as they are.
        digits: Significant digits, at least 1.
    """
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int) -> float:
    """The largest number of so many significant digits that is not above a value.

    For what holds as a lower bound: an epsilon that an audit proves, what is left of a budget.
    """
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, way: str) -> float:
    if not math.isfinite(value):
        return value
    return float(Context(prec=digits, rounding=way).create_decimal(repr(float(value))))


def printed_up(value: float, digits: int = 4) -> str:
    """A number as a sentence prints it, rounded up; infinity is "inf"."""
    return f"{rounded_up(value, digits):.{digits}g}"


def printed_down(value: float, digits: int = 4) -> str:
    """A number as a sentence prints it, rounded down."""
    return f"{rounded_down(value, digits):.{digits}g}"


def outwards(
    low: float, high: float, decimals: int, *, scale: int = 1, apart: tuple[float, ...] = ()
) -> tuple[str, str]:
    """An interval as texts, rounded outwards, so that what is printed holds what is meant.

    Args:
        low: Its lower end, finite.
        high: Its upper end, finite.
        decimals: Digits behind the point, more where they are needed.
        scale: What the ends are multiplied by, such as 100 for percent.
        apart: Points, before scaling, that the printed interval holds only if the true one does.

    Returns:
        Both ends, with equally many decimals.
    """
    ends = tuple(scale * Decimal(repr(float(end))) for end in (low, high))
    outside = [scale * Decimal(repr(point)) for point in apart if not low <= point <= high]
    for places in range(decimals, MOST_DECIMALS + 1):
        unit = Decimal(1).scaleb(-places)
        printed = (ends[0].quantize(unit, ROUND_FLOOR), ends[1].quantize(unit, ROUND_CEILING))
        if not any(printed[0] <= point <= printed[1] for point in outside):
            break
    # Zero has no sign.
    down, up = (f"{end if end else abs(end):f}" for end in printed)
    return down, up
