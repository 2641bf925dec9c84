"""Sigmoid, reciprocal and exponential of a masked value: public integers times dealt ones.

With X = x + r public and r the dealer's, the result is the sum of products of what `public_...`
gives for X with what `..._table` gives for r, modulo 2^64, `RESULT_BITS` bits after the point: one
opening, no product of shares. X and r count modulo a power of two, at most 2^44.

Two parties on different machines must compute the same public integers, or an honest one would be
accused. They come from additions, products and shifts of integers alone, and from tables that
integers or correctly rounded decimals give; no floating-point function is called for them. What a
fit or such a function gives, such as the factors of a series, is in the dealer's tables only.

Source: Boura, Chillotti, Gama, Jetchev, Peceny and Petric (FC 2018), Fourier series with a dealer;
the factors by weighted least squares (Lawson 1961), for the smallest largest error.
"""

import math
from collections.abc import Callable
from decimal import Context, Decimal
from functools import cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Factors = NDArray[np.complex128]

RESULT_BITS = 41
"""Bits of every result after the point: none reaches 2^42, as none exceeds 1 by 2^-9."""

MASKED_BITS = 44
"""Of a masked value, what is above these low bits never counts."""

SIGMOID_TERMS = 22
"""Odd sines, each of two dealt numbers."""

SIGMOID_OFFSET = 1 << (RESULT_BITS - 1)
"""1/2, which is to be added to the sum: the series is that of sigmoid - 1/2."""

SIGMOID_REACH = 56
"""Values of at most this magnitude have an error of at most `SIGMOID_ERROR`. Beyond, the result
stays within that error of 0..1, but is 1/2 again at 64, and the other side's after it."""

SIGMOID_ERROR = 4.4e-4
"""4.2e-4 of the series; the rest is rounding."""

_SIGMOID_TURN_BITS = 7

MOST_CLASSES = 255

RECIPROCAL_ERROR = 7e-5
"""For any number of classes; 4e-5 up to 16."""

RECIPROCAL_ERROR_OF_TEN = 2e-5
"""For ten classes; 1.2e-5 of the series, the rest is rounding."""

RECIPROCAL_SLACK = 2.0**-10, 2.0**-4
"""So far below 1, and above the number of classes, a sum may lie."""

EXPONENTIAL_RANGE = 8
"""The exponential is e^(d - 8) for d from 0 to 8."""

EXPONENTIAL_ERROR = 2.3e-5
"""All of it is rounding: half of 2^-26 times e^8 where X begins a half of its range, and half of
2^-15 where it ends one."""

MOST_EXPONENTIAL_BITS = 17

_PUBLIC_BITS, _TABLE_BITS = 21, 20
_EXPONENTIAL_PUBLIC_BITS, _EXPONENTIAL_TABLE_BITS = 26, 15

_WAVE_BITS = 30
"""Of a wave after the point: a sum of two products of such stays below 2^62."""

_PART_BITS = 10
"""Of an angle, or of an exponent, that one table holds."""

_EXACT_BITS = 128
_BLOCK = 1024
"""Values at a time, whose waves stay in cache."""


def public_sigmoid(masked: Integers, bits: int) -> Integers:
    """What `sigmoid_table` is multiplied by: `(2 * SIGMOID_TERMS, *shape)`, below 2^22.

    Args:
        masked: x + r, any shape; x at most `SIGMOID_REACH` in magnitude.
        bits: Bits of x after the point, 0..37.

    Raises:
        ValueError: If `bits` is out of range, or `masked` is not of int64.
    """
    return _public_waves(masked, bits, _SIGMOID_TURN_BITS, SIGMOID_TERMS)


def sigmoid_table(mask: Integers, bits: int) -> Integers:
    """What to deal for 1 / (1 + e^-x) - 1/2: `(2 * SIGMOID_TERMS, *shape)`, below 2^20.

    Args:
        mask: r, any shape.
        bits: As for `public_sigmoid`.
    """
    return _wave_table(mask, bits, _SIGMOID_TURN_BITS, _sigmoid_factors())


def reciprocal_terms(classes: int) -> int:
    """Odd harmonics in the series of 1 / s, each of two dealt numbers: 13 for ten classes.

    Raises:
        ValueError: If `classes` is not in 2..`MOST_CLASSES`.
    """
    return 7 * (1 << _half_turn_bits(classes)) // 16 + 6


def public_reciprocal(masked: Integers, bits: int, classes: int) -> Integers:
    """What `reciprocal_table` is multiplied by: `(2 * terms, *shape)`, below 2^22.

    Args:
        masked: s + r, any shape; s in 1..classes, or beyond by `RECIPROCAL_SLACK`.
        bits: Bits of s after the point, 0..34.
        classes: 2..`MOST_CLASSES`.

    Raises:
        ValueError: If an argument is out of range, or `masked` is not of int64.
    """
    return _public_waves(masked, bits, _half_turn_bits(classes) + 1, reciprocal_terms(classes))


def reciprocal_table(mask: Integers, bits: int, classes: int) -> Integers:
    """What to deal for 1 / s: `(2 * terms, *shape)`.

    Args:
        mask: r, any shape.
        bits: As for `public_reciprocal`.
        classes: As for `public_reciprocal`.
    """
    return _wave_table(mask, bits, _half_turn_bits(classes) + 1, _reciprocal_factors(classes))


def public_exponential(masked: Integers, bits: int) -> Integers:
    """What `exponential_table` is multiplied by: `(2, *shape)`, at most 2^26, half of them 0.

    X and r count modulo 16, twice the range of d. Where X is below 8, d is X - r if r is below 8,
    else X - r + 16; where it is not, d is X - r. So no comparison is needed, but a d of one unit
    beyond the range may give up to e^8: if it may be off by a unit, shift it by that first.

    Args:
        masked: d + r, any shape; d in 0..`EXPONENTIAL_RANGE`, both included.
        bits: Bits of d after the point, 0..`MOST_EXPONENTIAL_BITS`.

    Raises:
        ValueError: If `bits` is out of range, or `masked` is not of int64.
    """
    place = _place(masked, bits, 4, MOST_EXPONENTIAL_BITS + 4)
    upper = place >> (bits + 3)
    exponent = (place & (1 << (bits + 3)) - 1) << (MOST_EXPONENTIAL_BITS - bits)
    coarse, fine = _exponentials()
    drop = 2 * _WAVE_BITS - _EXPONENTIAL_PUBLIC_BITS
    product = coarse[exponent >> _PART_BITS] * fine[exponent & (1 << _PART_BITS) - 1]
    value = (product + (1 << (drop - 1))) >> drop
    return np.stack([value * (1 - upper), value * upper])


def exponential_table(mask: Integers, bits: int) -> Integers:
    """What to deal for e^(d - 8), by the half that X is in: `(2, *shape)`, below 2^27.

    Args:
        mask: r, any shape.
        bits: As for `public_exponential`.
    """
    place = _place(mask, bits, 4, MOST_EXPONENTIAL_BITS + 4) / 2.0**bits
    exponents = np.stack([np.where(place < 8, -place, 16 - place), 8 - place])
    return _rounded(np.exp(exponents) * 2.0**_EXPONENTIAL_TABLE_BITS)


def _place(
    integers: Integers, bits: int, whole_bits: int, most_bits: int = MASKED_BITS
) -> Integers:
    """Integers modulo 2^(bits + whole_bits)."""
    if not 0 <= bits <= most_bits - whole_bits:
        raise ValueError(f"Expected 0 <= bits <= {most_bits - whole_bits}, got bits={bits}.")
    if integers.dtype != np.int64:
        raise ValueError(f"Expected integers of int64, got dtype={integers.dtype}.")
    place: Integers = integers & ((1 << (bits + whole_bits)) - 1)
    return place


def _half_turn_bits(classes: int) -> int:
    """The series of 1 / s turns its sign after a power of two, 5/4 of the classes or more."""
    if not 2 <= classes <= MOST_CLASSES:
        raise ValueError(f"Expected 2 <= classes <= {MOST_CLASSES}, got classes={classes}.")
    return (-(-5 * classes // 4) - 1).bit_length()


def _public_waves(masked: Integers, bits: int, turn_bits: int, terms: int) -> Integers:
    """Cosines, then sines, of the odd multiples of an angle; `(2 * terms, *shape)`."""
    drop = _WAVE_BITS - _PUBLIC_BITS
    return _by_blocks(
        lambda place: (_waves(place, bits + turn_bits, terms) + (1 << (drop - 1))) >> drop,
        _place(masked, bits, turn_bits),
        terms,
    )


def _wave_table(mask: Integers, bits: int, turn_bits: int, factors: Factors) -> Integers:
    """What the public cosines and sines are multiplied by; `(2 * terms, *shape)`.

    cos(X - r) = cos X cos r + sin X sin r, and sin(X - r) = -cos X sin r + sin X cos r.
    """
    scaled = factors.reshape(-1, 1) * 2.0 ** (_TABLE_BITS - _WAVE_BITS)

    def table(place: Integers) -> Integers:
        cosines, sines = _waves(place, bits + turn_bits, len(factors))
        products = scaled * (cosines + 1j * sines)
        return _rounded(np.stack([products.real, products.imag]))

    return _by_blocks(table, _place(mask, bits, turn_bits), len(factors))


def _by_blocks(function: Callable[[Integers], Integers], place: Integers, terms: int) -> Integers:
    """`(2 * terms, *shape)`, by a function that gives `(2, terms, values)` for `(values,)`."""
    flat = place.reshape(-1)
    result = np.empty((2, terms, len(flat)), np.int64)
    for first in range(0, len(flat), _BLOCK):
        block = slice(first, first + _BLOCK)
        result[..., block] = function(flat[block])
    return result.reshape(2 * terms, *place.shape)


def _waves(place: Integers, period_bits: int, terms: int) -> Integers:
    """Cosines and sines of the odd multiples, 30 bits after the point: `(2, terms, values)`."""
    more = _WAVE_BITS - period_bits
    angle = place << more if more >= 0 else place >> -more
    waves = np.empty((2, terms, len(place)), np.int64)
    first, step = np.empty((2, 2, len(place)), np.int64)
    high, middle, low = (
        table[:, angle >> number * _PART_BITS & (1 << _PART_BITS) - 1]
        for number, table in zip((2, 1, 0), _circles(), strict=True)
    )
    _multiply(high, middle, first)
    _multiply(first, low, waves[:, 0])
    _multiply(waves[:, 0], waves[:, 0], step)
    for number in range(1, terms):
        _multiply(waves[:, number - 1], step, waves[:, number])
    return waves


def _multiply(left: Integers, right: Integers, product: Integers) -> None:
    """Complex numbers `(2, values)`, 30 bits after the point, rounded down."""
    np.subtract(left[0] * right[0], left[1] * right[1], out=product[0])
    np.add(left[0] * right[1], left[1] * right[0], out=product[1])
    product >>= _WAVE_BITS


@cache
def _circles() -> Integers:
    """Cosines and sines of j / 2^10, j / 2^20 and j / 2^30 of a turn: `(3, 2, 2^10)`."""
    cosine, sine = 0, 1 << _EXACT_BITS
    tables = []
    for halving in range(3, 3 * _PART_BITS + 1):
        # From a quarter of a turn on: cos(a/2)^2 = (1 + cos a) / 2, 2 sin(a/2) = sin a / cos(a/2).
        cosine = math.isqrt(((1 << _EXACT_BITS) + cosine) << (_EXACT_BITS - 1))
        sine = (sine << (_EXACT_BITS - 1)) // cosine
        if halving % _PART_BITS == 0:
            tables.append(_circle(cosine, sine))
    return np.array(tables)


def _circle(cosine: int, sine: int) -> Integers:
    """The first 2^10 powers of e^(ia), computed with 128 bits after the point: `(2, 2^10)`."""
    powers = [(1 << _EXACT_BITS, 0)]
    while len(powers) < 1 << _PART_BITS:
        real, imaginary = powers[-1]
        products = real * cosine - imaginary * sine, real * sine + imaginary * cosine
        powers.append((products[0] >> _EXACT_BITS, products[1] >> _EXACT_BITS))
    drop = _EXACT_BITS - _WAVE_BITS
    rows = [[(part + (1 << (drop - 1))) >> drop for part in power] for power in powers]
    return np.array(rows, np.int64).T


@cache
def _exponentials() -> Integers:
    """e^(8 j / 2^10 - 8) and e^(8 j / 2^20), 30 bits after the point: `(2, 2^10)`."""
    exact, unit = Context(prec=40), Decimal(1 << _WAVE_BITS)
    places = np.arange(1 << _PART_BITS) / 2.0**_PART_BITS * EXPONENTIAL_RANGE
    rows = [
        # A float that is a short sum of powers of two is such a decimal exactly.
        [round(exact.multiply(exact.exp(Decimal(exponent)), unit)) for exponent in exponents]
        for exponents in ((places - EXPONENTIAL_RANGE).tolist(), (places / 1024).tolist())
    ]
    return np.array(rows, np.int64)


@cache
def _sigmoid_factors() -> Factors:
    points = np.linspace(-SIGMOID_REACH, SIGMOID_REACH, 4096)
    values = 1 / (1 + np.exp(-points)) - 0.5
    return _fitted(points, values, 2.0**_SIGMOID_TURN_BITS, SIGMOID_TERMS)


@cache
def _reciprocal_factors(classes: int) -> Factors:
    """Factors by which the waves of s give 1 / s, what they give below 1 being free."""
    terms = reciprocal_terms(classes)
    low, high = 1 - RECIPROCAL_SLACK[0], classes + RECIPROCAL_SLACK[1]
    # Closer to each other where 1 / s is steep, and at both ends.
    ends = (1 - np.cos(np.linspace(0, math.pi, 8 * terms))) / 2
    points = np.concatenate([low + (high - low) * ends, np.geomspace(low, high, 8 * terms)])
    return _fitted(points, 1 / points, 2.0 ** (_half_turn_bits(classes) + 1), terms)


def _fitted(
    points: NDArray[np.float64], values: NDArray[np.float64], period: float, terms: int
) -> Factors:
    """Factors a + ib of a series of a cos + b sin, of the odd multiples, with the least error.

    Lawson's iteration: each point counts by what it was off. A small ridge keeps the factors small,
    by which the rounding of what they multiply counts.
    """
    angles = 2 * math.pi / period * np.outer(points, 2 * np.arange(terms) + 1)
    waves = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    weights = np.full(len(points), 1 / len(points))
    least, best = math.inf, np.empty(2 * terms)
    for _ in range(16):
        weighted = waves.T * weights
        factors = np.linalg.solve(weighted @ waves + 1e-11 * np.eye(2 * terms), weighted @ values)
        errors = abs(waves @ factors - values)
        if errors.max() < least:
            least, best = errors.max(), factors
        weights *= errors / errors.max() + 1e-3
        weights /= weights.sum()
    result: Factors = best[:terms] + 1j * best[terms:]
    return result


def _rounded(values: NDArray[np.float64]) -> Integers:
    return np.rint(values).astype(np.int64)
