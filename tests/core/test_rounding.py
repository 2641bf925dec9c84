"""What is printed of a bound holds; what is printed of an interval holds it."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtrain.core.rounding import outwards, rounded_down, rounded_up

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@given(value=NUMBERS, digits=st.integers(1, 8))
def test_bounds_are_never_rounded_to_the_wrong_side(value: float, digits: int) -> None:
    up, down = rounded_up(value, digits), rounded_down(value, digits)
    assert down <= value <= up
    # As it is printed, too; and no further away than one unit of the last digit.
    assert float(f"{down:.{digits}g}") <= value <= float(f"{up:.{digits}g}")
    assert up - down <= max(abs(up), abs(down)) * 10.0 ** (1 - digits) * 1.001


@pytest.mark.parametrize(
    ("value", "digits", "up", "down"),
    [
        (2.272008, 3, 2.28, 2.27),
        (3.0, 3, 3.0, 3.0),
        (0.1, 3, 0.1, 0.1),
        (2.9999999999999996, 3, 3.0, 2.99),
        (9.991, 3, 10.0, 9.99),
        (284.4, 3, 285.0, 284.0),
        (1.2345e-9, 3, 1.24e-9, 1.23e-9),
        (0.0, 3, 0.0, 0.0),
        (math.inf, 3, math.inf, math.inf),
    ],
)
def test_values(value: float, digits: int, up: float, down: float) -> None:
    assert (rounded_up(value, digits), rounded_down(value, digits)) == (up, down)


def test_not_a_number_stays_one() -> None:
    assert math.isnan(rounded_up(math.nan, 3)) and math.isnan(rounded_down(math.nan, 3))


@given(
    low=st.floats(-1, 1, allow_subnormal=False),
    width=st.floats(0, 1, allow_subnormal=False),
    decimals=st.integers(1, 4),
)
def test_intervals_hold_what_they_are_about(low: float, width: float, decimals: int) -> None:
    ends = outwards(low, low + width, decimals, apart=(0.5,))
    # The decimals of the ends as `repr` prints them, which is what is rounded.
    assert Decimal(ends[0]) <= Decimal(repr(low)) <= Decimal(repr(low + width)) <= Decimal(ends[1])
    printed = Decimal(ends[0]) <= Decimal("0.5") <= Decimal(ends[1])
    true = low <= 0.5 <= low + width
    assert printed == true or 0 < min(abs(low - 0.5), abs(low + width - 0.5)) < 1e-11


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.5030, 0.5190, ("0.503", "0.519")),
        (0.5003, 0.5190, ("0.5003", "0.5190")),
        (0.4999, 0.5190, ("0.499", "0.519")),
        (0.48, 0.49996, ("0.48000", "0.49996")),
        (0.4, 0.4996, ("0.4000", "0.4996")),
        (-0.0211, 0.1, ("-0.022", "0.100")),
        (-0.00001, 0.1, ("-0.001", "0.100")),
        (0.0, 1.0, ("0.000", "1.000")),
        (0.5, 0.5, ("0.500", "0.500")),
    ],
)
def test_intervals_say_whether_a_coin_lies_inside(
    low: float, high: float, texts: tuple[str, str]
) -> None:
    assert outwards(low, high, 3, apart=(0.5,)) == texts


def test_percent_is_scaled_exactly() -> None:
    # 100 * 0.07 is 7.000000000000001 in floats, which would be rounded up.
    assert outwards(0.07, 0.57, 1, scale=100) == ("7.0", "57.0")
    assert outwards(0.9131, 0.9651, 1, scale=100) == ("91.3", "96.6")
