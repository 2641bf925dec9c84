import math
from collections.abc import Callable
from decimal import localcontext
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from privtrain.mpc.spdz2k import series

Integers = NDArray[np.int64]
Values = NDArray[np.float64]
Law = Callable[[Integers], Integers]
UNIT = 2.0**series.RESULT_BITS


def masks(count: int) -> Integers:
    """Over all 44 bits, and at both their ends."""
    drawn = np.random.default_rng(5).integers(0, 1 << series.MASKED_BITS, count)
    drawn[:2], drawn[-2:] = (0, (1 << series.MASKED_BITS) - 1), ((1 << series.MASKED_BITS) - 1, 0)
    return drawn


def summed(x: Integers, public: Law, table: Law, *, cut: int = 0) -> Integers:
    """The sum of products, modulo 2^64; of a table whose last `cut` bits are gone."""
    mask = masks(len(x))
    # Above bit 44 a masked value may hold anything.
    masked = (x + mask) ^ (np.arange(len(x)) << series.MASKED_BITS)
    result: Integers = (public(masked) * (table(mask) >> cut << cut)).sum(0)
    return result


def grid(low: float, high: float, bits: int, count: int = 40_001) -> Integers:
    """Evenly spaced, and spaced as 1 / s is steep, with both ends."""
    spaced = np.concatenate([np.linspace(low, high, count), low + np.geomspace(1e-4, 1, count)])
    points = np.clip(np.rint(spaced * 2.0**bits).astype(np.int64), int(low * 2**bits), None)
    return np.concatenate([points, [int(high * 2**bits), int(low * 2**bits)]])


def sigmoid(x: Integers, bits: int, cut: int = 0) -> Values:
    laws = partial(series.public_sigmoid, bits=bits), partial(series.sigmoid_table, bits=bits)
    integers = summed(x, *laws, cut=cut) + series.SIGMOID_OFFSET
    assert abs(integers).max() < 1 << 42
    return integers / UNIT


def reciprocal(s: Integers, bits: int, classes: int, cut: int = 0) -> Values:
    public = partial(series.public_reciprocal, bits=bits, classes=classes)
    table = partial(series.reciprocal_table, bits=bits, classes=classes)
    integers = summed(s, public, table, cut=cut)
    assert abs(integers).max() < 1 << 42
    return integers / UNIT


def exponential(d: Integers, bits: int, cut: int = 0) -> Values:
    public = partial(series.public_exponential, bits=bits)
    integers = summed(d, public, partial(series.exponential_table, bits=bits), cut=cut)
    assert abs(integers).max() < 1 << 42
    return integers / UNIT


def sigmoid_error(bits: int, cut: int = 0) -> float:
    x = grid(-series.SIGMOID_REACH, series.SIGMOID_REACH, bits)
    return float(abs(sigmoid(x, bits, cut) - 1 / (1 + np.exp(-x / 2.0**bits))).max())


def reciprocal_error(bits: int, classes: int, cut: int = 0, count: int = 40_001) -> float:
    low, high = 1 - series.RECIPROCAL_SLACK[0], classes + series.RECIPROCAL_SLACK[1]
    s = grid(low, high, bits, count)
    return float(abs(reciprocal(s, bits, classes, cut) - 2.0**bits / s).max())


def exponential_error(bits: int, cut: int = 0) -> float:
    d = grid(0, series.EXPONENTIAL_RANGE, bits)
    return float(abs(exponential(d, bits, cut) - np.exp(d / 2.0**bits - 8)).max())


@pytest.mark.parametrize("bits", [0, 12, 14, 26, 37])
def test_a_sigmoid_has_the_stated_error_under_any_mask(bits: int) -> None:
    assert sigmoid_error(bits) <= series.SIGMOID_ERROR


def test_beyond_its_reach_a_sigmoid_stays_within_its_error_of_0_to_1() -> None:
    values = sigmoid(grid(-200, 200, 14), 14)
    assert values.min() >= -series.SIGMOID_ERROR
    assert values.max() <= 1 + series.SIGMOID_ERROR


@pytest.mark.parametrize("bits", [14, 16, 34])
def test_a_reciprocal_for_ten_classes_has_the_stated_error_under_any_mask(bits: int) -> None:
    assert 2 * series.reciprocal_terms(10) == 26
    assert reciprocal_error(bits, 10) <= series.RECIPROCAL_ERROR_OF_TEN


@pytest.mark.parametrize("classes", [*range(2, 17), 25, 26, 51, 100, 102, 194])
def test_a_reciprocal_has_the_stated_error_for_any_number_of_classes(classes: int) -> None:
    stated = 4e-5 if classes <= 16 else series.RECIPROCAL_ERROR
    assert reciprocal_error(16, classes, count=40_001 if classes < 30 else 5_001) <= stated


def test_a_reciprocal_for_the_most_classes_has_the_stated_error() -> None:
    assert reciprocal_error(14, series.MOST_CLASSES, count=9_001) <= series.RECIPROCAL_ERROR


@pytest.mark.parametrize("bits", [0, 3, 14, 17])
def test_an_exponential_has_the_stated_error_under_any_mask(bits: int) -> None:
    assert exponential_error(bits) <= series.EXPONENTIAL_ERROR


def test_an_exponential_is_right_wherever_mask_and_value_meet() -> None:
    # All pairs for a coarse d: the ends of the halves of X, and of r, among them.
    d, mask = (axis.reshape(-1) for axis in np.meshgrid(np.arange(33), np.arange(64)))
    products = series.public_exponential(d + mask, 2) * series.exponential_table(mask, 2)
    assert abs(products.sum(0) / UNIT - np.exp(d / 4 - 8)).max() <= series.EXPONENTIAL_ERROR


def test_a_coarser_table_would_exceed_the_stated_errors() -> None:
    assert sigmoid_error(14, cut=6) > series.SIGMOID_ERROR
    assert reciprocal_error(16, 10, cut=6) > series.RECIPROCAL_ERROR_OF_TEN
    assert reciprocal_error(16, 102, cut=6, count=5_001) > series.RECIPROCAL_ERROR
    assert exponential_error(14, cut=6) > series.EXPONENTIAL_ERROR


def exact_exponential(exponent: Fraction) -> Fraction:
    """e^exponent to 2^-100, by its power series."""
    term = total = Fraction(1)
    number = 0
    while abs(term) > Fraction(1, 1 << 110) or number < abs(exponent):
        number += 1
        term = Fraction(round(term * exponent / number * (1 << 140)), 1 << 140)
        total += term
    return total


def exact_wave(turn: Fraction) -> tuple[Fraction, Fraction]:
    """Cosine and sine to 2^-100, by their power series and Machin's formula."""

    def arc(inverse: int) -> Fraction:
        terms = (Fraction((-1) ** k, (2 * k + 1) * inverse ** (2 * k + 1)) for k in range(80))
        return Fraction(round(sum(terms) * (1 << 160)), 1 << 160)

    angle = 2 * 4 * (4 * arc(5) - arc(239)) * turn
    real = imaginary = Fraction(0)
    term = Fraction(1)
    for number in range(1, 60):
        if number % 2:
            real += term if number % 4 == 1 else -term
        else:
            imaginary += term if number % 4 == 2 else -term
        term = Fraction(round(term * angle / number * (1 << 160)), 1 << 160)
    return real, imaginary


def places(bits: int) -> list[int]:
    """A few of that many bits, with both ends."""
    drawn = np.random.default_rng(7).integers(0, 1 << bits, 6).tolist()
    return [0, 1, (1 << bits) - 1, 1 << (bits - 1), *drawn]


def rounded(value: Fraction, bits: int) -> int:
    return round(value * (1 << bits))


def plain_waves(place: int, period_bits: int, terms: int) -> list[int]:
    """The public factors in Python's integers, whose tables come from exact waves."""
    angle = (place << 30) >> period_bits
    parts = [Fraction(angle >> 20, 1 << 10), Fraction(angle >> 10 & 1023, 1 << 20)]
    parts.append(Fraction(angle & 1023, 1 << 30))
    high, middle, low = ([rounded(wave, 30) for wave in exact_wave(part)] for part in parts)

    def product(left: list[int], right: list[int]) -> list[int]:
        (a, b), (c, d) = left, right
        return [(a * c - b * d) >> 30, (a * d + b * c) >> 30]

    waves = [product(product(high, middle), low)]
    step = product(waves[0], waves[0])
    while len(waves) < terms:
        waves.append(product(waves[-1], step))
    return [(wave[half] + 256) >> 9 for half in (0, 1) for wave in waves]


@pytest.mark.parametrize(("bits", "turn_bits", "terms"), [(14, 7, 22), (16, 5, 13), (37, 7, 22)])
def test_public_waves_are_those_of_exact_integers_bit_by_bit(
    bits: int, turn_bits: int, terms: int
) -> None:
    if turn_bits == 7:
        public = partial(series.public_sigmoid, bits=bits)
    else:
        public = partial(series.public_reciprocal, bits=bits, classes=10)
    period_bits = bits + turn_bits
    drawn = places(period_bits)
    factors = public(np.array(drawn)).T.tolist()
    assert factors == [plain_waves(place, period_bits, terms) for place in drawn]
    for row, place in zip(factors, drawn, strict=True):
        for number in (0, terms - 1):
            # What is below 2^-30 of a turn is dropped, the more visibly the higher the multiple.
            angle = Fraction((place << 30) >> period_bits, 1 << 30)
            wave = exact_wave((2 * number + 1) * angle % 1)
            assert abs(row[number] - wave[0] * (1 << 21)) < 0.65
            assert abs(row[terms + number] - wave[1] * (1 << 21)) < 0.65


@pytest.mark.parametrize("bits", [14, 17])
def test_public_exponentials_are_those_of_exact_integers_bit_by_bit(bits: int) -> None:
    drawn = places(bits + 4)
    lower, upper = series.public_exponential(np.array(drawn), bits).tolist()
    for place, below, above in zip(drawn, lower, upper, strict=True):
        half, exponent = divmod(place << (17 - bits), 1 << 20)
        high, low = divmod(exponent, 1 << 10)
        coarse = rounded(exact_exponential(Fraction(high, 128) - 8), 30)
        fine = rounded(exact_exponential(Fraction(low, 1 << 17)), 30)
        expected = (coarse * fine + (1 << 33)) >> 34
        assert (below, above) == ((0, expected) if half else (expected, 0))
        assert abs(expected - exact_exponential(Fraction(exponent, 1 << 17) - 8) * 2**26) < 0.6


def test_all_tables_of_public_factors_are_rounded_correctly() -> None:
    for number in range(0, 1 << 10, 11):
        for part, table in enumerate(series._circles()):
            wave = exact_wave(Fraction(number, 1 << 10 * (part + 1)))
            assert table[:, number].tolist() == [rounded(value, 30) for value in wave]
        coarse, fine = series._exponentials()[:, number].tolist()
        assert coarse == rounded(exact_exponential(Fraction(number, 128) - 8), 30)
        assert fine == rounded(exact_exponential(Fraction(number, 1 << 17)), 30)


def test_public_factors_call_no_function_that_differs_between_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masked = masks(100)
    laws: list[Law] = [
        partial(series.public_sigmoid, bits=14),
        partial(series.public_reciprocal, bits=14, classes=10),
        partial(series.public_exponential, bits=14),
    ]
    expected = [law(masked) for law in laws]
    for name in ("cos", "sin", "exp", "rint", "linspace", "geomspace", "outer"):
        monkeypatch.delattr(np, name)
    for name in ("cos", "sin", "exp", "sqrt", "pi"):
        monkeypatch.delattr(math, name)
    series._circles.cache_clear()
    series._exponentials.cache_clear()
    # Nor does a caller's setting of decimals count.
    with localcontext(prec=3):
        for law, values in zip(laws, expected, strict=True):
            assert np.array_equal(law(masked), values)
    with pytest.raises(AttributeError):
        series.exponential_table(masked, 14)


def test_values_keep_their_shape_in_blocks_of_any_size() -> None:
    x = masks(2 * series._BLOCK + 6)
    flat = series.public_sigmoid(x, 14), series.sigmoid_table(x, 14)
    for function, values in zip((series.public_sigmoid, series.sigmoid_table), flat, strict=True):
        shaped = function(x.reshape(2, -1), 14)
        assert shaped.shape == (2 * series.SIGMOID_TERMS, 2, len(x) // 2)
        assert np.array_equal(shaped.reshape(len(values), -1), values)
        assert np.array_equal(function(x[-1:], 14), values[:, -1:])
        assert function(x[:0], 14).shape == (2 * series.SIGMOID_TERMS, 0)
    assert series.exponential_table(x.reshape(2, -1), 14).shape == (2, 2, len(x) // 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: series.public_sigmoid(x, 38), "0 <= bits <= 37, got bits=38"),
        (lambda x: series.sigmoid_table(x, -1), "got bits=-1"),
        (lambda x: series.public_reciprocal(x, 40, 10), "0 <= bits <= 39, got bits=40"),
        (lambda x: series.public_reciprocal(x, 14, 1), "2 <= classes <= 255, got classes=1"),
        (lambda x: series.reciprocal_table(x, 14, 256), "got classes=256"),
        (lambda x: series.public_exponential(x, 18), "0 <= bits <= 17, got bits=18"),
        (lambda x: series.exponential_table(x, -1), "got bits=-1"),
        (lambda x: series.public_sigmoid(x.astype(np.int32), 14), "int64, got dtype=int32"),
    ],
)
def test_wrong_arguments_are_named(call: Law, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.zeros(3, np.int64))
