import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privtrain.report import cells


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (4.3774, "4.38"),
        (284.4, "284"),
        (12345.6, "12,346"),
        (1e-5, "1e-5"),
        (0.0, "0"),
        (-0.0, "0"),
        (0.0995, "0.0995"),
        (9.994, "9.99"),
        (9.996, "10"),
        (99.96, "100"),
        (999.4, "999"),
        (999.5, "1,000"),
        (999.6, "1,000"),
        (-999.6, "-1,000"),
        (1e6, "1,000,000"),
        (1e-9, "1e-9"),
        (-1.23456e-9, "-1.23e-9"),
        (-math.inf, "-inf"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert cells.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (12_345, "12.3 kB"), (1.31e9, "1.31 GB"),
     (999_600, "1 MB"), (None, "–"), (5e13, "50 TB"), (999.6, "1 kB"), (999.6e12, "1,000 TB"),
     (-2_000, "-2 kB"), (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_size(value: float | None, text: str) -> None:
    assert cells.size(value) == text


def test_percent_points_and_rates() -> None:
    assert cells.percent(0.9421) == "94.2%"
    assert cells.percent(None) == "–"
    assert cells.points(-0.0121) == "−1.2"
    assert cells.points(0.0121) == "+1.2"
    assert cells.points(-0.0001) == "0.0"
    assert cells.points(None) == "–"
    assert cells.rate(None) == "n/r"
    assert cells.rate(-0.0214) == "−0.021"
    for value, text in ((0.561, "0.561"), (0.0, "0.000"), (None, "n/r"), (-0.02, "−0.020")):
        assert cells.metric(value) == text
    for value, text in ((1e-5, "1e-5"), (100.0, "100"), (3.487, "3.487")):
        assert cells.metric(value) == text
    assert cells.rate_interval((0.48, 0.53)) == "0.480–0.530"
    assert cells.rate_interval((-0.02, 0.11)) == "−0.020 to 0.110"
    assert cells.percent_interval((0.91, 0.966)) == "91.0–96.6"
    # What rounds to zero has no sign, and what is no number no unit.
    assert (cells.percent(-1e-6), cells.rate(-1e-6)) == ("0.0%", "0.000")
    assert cells.percent_interval((1e-9, 1.0)) == "0.0–100.0"
    assert (cells.percent(math.nan), cells.points(math.nan)) == ("nan", "nan")
    for value, text in ((9999.6, "10,000"), (99999.6, "100,000"), (1e-9, "1e-9")):
        assert cells.metric(value) == text
    assert cells.percent_interval(None) == cells.rate_interval(None) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.4212, "0.421 s"),
        (42.13, "42.1 s"),
        (212, "3.53 min"),
        (9000, "2.5 h"),
        (1e-9, "1e-9 s"),
        (119.96, "120 s"),
        (7199.9, "120 min"),
        (999.6 * 3600, "1,000 h"),
        (0, "0 s"),
        (-7200, "-2 h"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_duration(value: float | None, text: str) -> None:
    assert cells.duration(value) == text


def test_count_keeps_the_fraction_of_a_mean() -> None:
    assert cells.count(42_000) == "42,000"
    assert cells.count(10.5) == "10.5"
    assert cells.count(-0.0) == "0"
    assert cells.count(1234.5) == "1,234.5"
    assert cells.count(12345.5) == "12,345.5"
    assert cells.count(99999.97) == "100,000.0"
    assert cells.count(-3.5) == "-3.5"
    assert (cells.count(math.nan), cells.count(math.inf)) == ("nan", "inf")
    assert cells.count(None) == "–"


def test_shortened() -> None:
    assert cells.shortened("a\n b", 5) == "a b"
    assert cells.shortened("abcdef", 4) == "abc…"


# 2.272008 is what DPSGD(epochs=20, Gaussian(1, 2)) promises on digits: 2.27 would be less.
@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (2.272008, "2.28", "2.27"),
        (3.0, "3", "3"),
        (2.998, "3", "2.99"),
        (284.4, "285", "284"),
        (12345.6, "12,346", "12,345"),
        (1e-5, "1e-5", "1e-5"),
        (1.2341e-5, "1.24e-5", "1.23e-5"),
        (999.1, "1,000", "999"),
        (0.0, "0", "0"),
        (None, "–", "–"),
        (math.inf, "inf", "inf"),
    ],
)
def test_bounds_are_rounded_to_their_safe_side(value: float | None, up: str, down: str) -> None:
    assert (cells.promised(value), cells.proved(value)) == (up, down)


@given(value=st.floats(1e-6, 1e6))
def test_no_printed_bound_says_more_than_its_value(value: float) -> None:
    printed = [
        float(text.replace(",", "")) for text in (cells.proved(value), cells.promised(value))
    ]
    assert printed[0] <= value <= printed[1]


def test_an_interval_shows_whether_a_coin_lies_inside() -> None:
    assert cells.rate_interval((0.5030, 0.5190)) == "0.503–0.519"
    assert cells.rate_interval((0.5003, 0.5190)) == "0.5003–0.5190"
    assert cells.rate_interval((0.4997, 0.5190)) == "0.499–0.519"
    assert cells.rate_interval((0.0002, 0.04)) == "0.0002–0.0400"
    assert cells.percent_interval((0.5003, 0.61)) == "50.03–61.00"
    assert cells.percent_interval((0.9131, 0.9651)) == "91.3–96.6"


def test_a_value_has_the_decimals_of_its_interval() -> None:
    assert cells.metric(0.50036, (0.5003, 0.5004)) == "0.5004"
    assert cells.metric(0.511, (0.503, 0.519)) == "0.511"


def test_what_was_asked_is_printed_as_it_was_given() -> None:
    assert (cells.asked(1.2345), cells.asked(3.0), cells.asked(None)) == ("1.2345", "3", "–")
