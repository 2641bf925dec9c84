"""How one value looks in a table. Nothing is ever filled in: what is missing is a dash.

What is promised is rounded up, what was proved from below down, an interval outwards: a reader who
trusts the printed figure is never told more than holds.
"""

import math
from collections.abc import Callable

from privtrain.core.rounding import outwards, rounded_down, rounded_up

MISSING = "–"
"""What was not measured, or does not exist."""

NOT_RESOLVABLE = "n/r"
"""What was measured on too few rows to be a number."""

FAILED = "failed"
"""What could not be measured, since an error stopped it."""

Interval = tuple[float, float]


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; infinity is "inf".

    Args:
        value: The number, or None where there is none.
        digits: Significant digits; whole parts are never cut.

    Returns:
        Such as "4.38", "284", "0.00012", "inf" or "–".
    """
    return _number(value, digits, _nearest, round)


def promised(value: float | None, digits: int = 3) -> str:
    """A figure that holds as an upper bound, such as a promised epsilon: never below its value."""
    return _number(value, digits, rounded_up, math.ceil)


def proved(value: float | None, digits: int = 3) -> str:
    """A figure that holds as a lower bound, such as an audit's epsilon: never above its value."""
    return _number(value, digits, rounded_down, math.floor)


def asked(value: float | None) -> str:
    """A figure that somebody gave: as it was given, up to six digits."""
    return number(value, 6)


def _nearest(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _number(
    value: float | None,
    digits: int,
    rounding: Callable[[float, int], float],
    whole: Callable[[float], int],
) -> str:
    if value is None:
        return MISSING
    # "inf" is a promise of nothing and no missing figure: docs/report.md, "What a cell says".
    if not math.isfinite(value):
        return str(value)
    # Rounded first: beyond its digits, which 999.6 reaches by rounding, `g` would write 1e+03.
    rounded = rounding(value, digits)
    if abs(rounded) >= 10**digits:
        return f"{whole(value):,}"
    # Zero has no sign.
    return f"{rounded or 0.0:.{digits}g}".replace("e-0", "e-")


def percent(value: float | None) -> str:
    """A fraction as percent with one digit, such as "94.2%"."""
    if value is None:
        return MISSING
    # One row of a thousand is a tenth of a percent: test sets are too small for a further digit.
    return f"{_fixed(100 * value, 1)}%" if math.isfinite(value) else str(value)


def percent_interval(interval: Interval | None) -> str:
    """An interval of fractions in percent, rounded outwards, such as "91.0–96.6"."""
    if interval is None:
        return ""
    if not all(map(math.isfinite, interval)):
        return _between(*map(str, interval))
    return _between(*outwards(*interval, 1, scale=100, apart=(0.5,)))


def _fixed(value: float, decimals: int) -> str:
    """A number with so many decimals; what rounds to zero has no sign."""
    # Adding zero turns -0.0 into 0.0.
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def points(value: float | None) -> str:
    """A difference of fractions in percentage points with its sign, such as "−1.2"."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    # Rounded first: a tiny loss must not read "−0.0". The sign is U+2212, as wide as a plus.
    rounded = round(100 * value, 1)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "−")


def rate(value: float | None, decimals: int = 3) -> str:
    """A measured rate, with three decimals or more; None is not resolvable."""
    return NOT_RESOLVABLE if value is None else _fixed(value, decimals).replace("-", "−")


def metric(value: float | None, interval: Interval | None = None) -> str:
    """A figure of an attack: a rate with the decimals of its interval, or else a number.

    Args:
        value: The figure; None where it was not resolvable.
        interval: The interval that is printed beside it.
    """
    # Attacks name their metrics freely: 0.000 for a delta, or three decimals of a count of guesses,
    # would hide the figure.
    if value is None or value == 0 or 0.0005 <= abs(value) <= 1:
        # With fewer decimals than its interval a value could be printed outside of it.
        return rate(value, max(3, len(rate_interval(interval).rpartition(".")[2])))
    return number(value, 4)


COINS = (0.0, 0.5)
"""Where an advantage and an AUC lie that nothing was learned by."""


def rate_interval(interval: Interval | None) -> str:
    """An interval of rates, rounded outwards, such as "0.481–0.530", or "−0.021 to 0.112".

    It has as many decimals as show whether a coin lies inside.
    """
    if interval is None:
        return ""
    if not all(map(math.isfinite, interval)):
        return _between(*map(str, interval))
    return _between(*outwards(*interval, 3, apart=COINS))


def _between(low: str, high: str) -> str:
    # A dash beside a minus sign cannot be read.
    joint = " to " if "-" in low else "–"
    return f"{low}{joint}{high}".replace("-", "−")


def size(value: float | None) -> str:
    """Bytes in decimal units, such as "12.3 kB"."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    for unit in ("B", "kB", "MB", "GB"):
        # What would be printed as 1,000 belongs to the next unit.
        if abs(value) < 999.5:
            return f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} TB"


def duration(value: float | None) -> str:
    """Seconds in a readable unit, such as "42.1 s" or "3.1 min"."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 120:
        return f"{number(value)} s"
    return f"{number(value / 60)} min" if abs(value) < 7200 else f"{number(value / 3600)} h"


def count(value: float | None) -> str:
    """A number of things; a mean over seeds may have a fraction."""
    if value is None:
        return MISSING
    # 10.5 rounds is a mean over seeds; written as 10 it would look like a count.
    if value % 1 == 0:
        return f"{value + 0.0:,.0f}"
    return number(value, 4) if abs(value) < 1000 else f"{value:,.1f}"


def shortened(text: str, length: int) -> str:
    """Text on one line, cut with an ellipsis where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"
