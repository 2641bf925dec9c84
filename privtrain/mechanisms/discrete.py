"""The discrete Gaussian, sampled exactly, on sums that are quantised (`secure=True`).

Every decision is taken in integers: no rounded probability is compared with anything. The proof of
what is charged stands in docs/decisions/013-secure-noise.md.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.seeding import Stream

Integers = np.ndarray[Any, np.dtype[np.int64]]
Unsigned = np.ndarray[Any, np.dtype[np.uint64]]

BITS = 48
"""The standard deviation is 2^48 steps of the grid, for any noise multiplier."""

LARGEST_DIMENSION = 2**26
"""Values in one release, at most: what is charged holds for all smaller ones."""

FLOAT_ERROR = 2.0**-8
"""What rounding may add to the sensitivity of a floating-point sum, in clipping norms."""

# Steps of the grid. Noise stays below 2^52 of them, so that no sum reaches 2^63.
_LIMIT = 2.0**62
# Sensitivity of the rounding of both sums, in steps per coordinate: 2 (1/2 + 2^9), the second for
# the division, correctly rounded below 2^62. Over all coordinates, in standard deviations:
_LIMIT_ROUNDING = 1 + 2 * 2.0 ** (62 - 53)
_ROUNDING = math.sqrt(LARGEST_DIMENSION) * _LIMIT_ROUNDING * 2.0**-BITS

ASSUMPTION = (
    "one contribution more or less moves a floating-point sum by at most 1 + 2^-8 clipping norms: "
    "rounding of sums is allowed for, not proved"
)
"""What has to hold for the guarantee of secure noise."""

# 16 strips a standard deviation (Karney has one): 97% of proposals are accepted, most of them after
# one comparison.
_STRIP_BITS = 4
_STRIPS = 256  # 16 standard deviations
_BLOCK = 2**15  # proposals at a time, so that arrays stay in a processor's cache


class WordSource(Protocol):
    """A source of uniform 64-bit words."""

    def take(self, count: int) -> Unsigned:
        """The next words, uint64."""
        ...


def charged_multiplier(noise_multiplier: float) -> float:
    """Noise multiplier of the continuous Gaussian that the quantised release is charged as.

    The standard deviation over the sensitivity C + float error + rounding of both sums to the
    grid, whose step is the standard deviation / 2^48.

    Args:
        noise_multiplier: Standard deviation / clipping norm; positive.
    """
    return noise_multiplier / (1 + FLOAT_ERROR + noise_multiplier * _ROUNDING)


def distance(bits: int = BITS) -> float:
    """Total variation distance of one value of our noise from the rounded continuous Gaussian.

    Args:
        bits: The standard deviation is 2^bits; at least 0.

    Returns:
        An upper bound: Euler-Maclaurin's remainder, the normaliser, and the cut at 16 standard
        deviations. It falls with the square of the standard deviation.
    """
    s = 2.0**bits
    # Proved in docs/decisions/013: half of (0.9679 / s^2 + 1.5100 / s^3) / 24 for the rounding of a
    # density to integers, half of 2.01 exp(-2 pi^2 s^2) for the normaliser, the tail beyond 16 s.
    return 0.0202 / s**2 + 0.0315 / s**3 + 1.01 * math.exp(-2 * math.pi**2 * s**2) + math.exp(-128)


RELEASE_DISTANCE = LARGEST_DIMENSION * distance()
"""Total variation distance of a whole release of the largest dimension."""


def grid_of(standard_deviation: float) -> float:
    """The step of the grid on which sums are rounded and noise is drawn: 2^-48 of its deviation."""
    # A power of two away from the standard deviation, so the grid itself is not rounded.
    return math.ldexp(standard_deviation, -BITS)


def add_discrete(aggregate: Tensor, standard_deviation: float, stream: Stream) -> Tensor:
    """The sum, quantised, plus discrete Gaussian noise.

    Args:
        aggregate: A sum of bounded contributions, any shape.
        standard_deviation: Of the noise; positive.
        stream: Where the noise comes from.

    Returns:
        Same shape, type and device. Turning the integers into floats is post-processing.

    Raises:
        UnsoundReleaseError: If there are more values than are charged for.
    """
    if aggregate.numel() > LARGEST_DIMENSION:
        raise UnsoundReleaseError(
            f"Secure noise is charged for {LARGEST_DIMENSION} values a release, and this one has "
            f"{aggregate.numel()}. Use a smaller model, or secure=False."
        )
    grid = grid_of(standard_deviation)
    values = aggregate.detach().to(device="cpu", dtype=torch.float64).numpy().reshape(-1)
    # Integers are added to integers: the gaps between floats would tell the sum (Mironov 2012).
    noised = quantised(values, grid) + discrete_gaussian(values.size, stream.words())
    released = torch.from_numpy(noised.astype(np.float64) * grid)
    return released.view(aggregate.shape).to(dtype=aggregate.dtype, device=aggregate.device)


def quantised(values: np.ndarray[Any, np.dtype[np.float64]], grid: float) -> Integers:
    """Values in steps of a grid, clamped to 2^62 steps so that no sum with noise overflows.

    A sum of finite bounded contributions is finite; a value that is not a number counts as zero.

    Args:
        values: Any shape.
        grid: The step; positive.

    Returns:
        int64, same shape, within 2^9 + 1/2 steps of the clamped quotient.
    """
    # No error for large or broken values, since whether it occurs would tell something. Clamping
    # is 1-Lipschitz in each coordinate, so it costs no sensitivity.
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(np.asarray(values, dtype=np.float64) / grid)
    clamped: Integers = np.clip(np.nan_to_num(steps, nan=0.0), -_LIMIT, _LIMIT).astype(np.int64)
    return clamped


def discrete_gaussian(count: int, words: WordSource, bits: int = BITS) -> Integers:
    """Independent draws of the discrete Gaussian with parameter s = 2^bits.

    The law is exp(-y^2 / (2 s^2)) over integers y, given that abs(y) < 16 s: an event that fails
    with probability below exp(-128), which `distance` counts. A strip of width s / 16 is drawn
    with its largest weight, then a place in it uniformly; the proposal is rejected with
    probability 1 - exp(-gamma), gamma rational.

    Args:
        count: Number of draws.
        words: Where the bits come from.
        bits: s = 2^bits; from 4 to 48.

    Returns:
        int64, shape `(count,)`; magnitudes below 2^(bits + 4).

    Source: Canonne, Kamath and Steinke 2020, Algorithm 1 for exp(-gamma) (arXiv:2004.00010);
    strips as Karney 2016, Algorithm D, of which there are 16 a standard deviation here.
    """
    out, filled = np.empty(count, dtype=np.int64), 0
    while filled < count:
        # A few more than are missing, since about 3% are rejected.
        drawn = _proposed(min(_BLOCK, count - filled + (count - filled) // 16 + 8), words, bits)
        drawn = drawn[: count - filled]
        out[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    return out


def _proposed(count: int, words: WordSource, bits: int) -> Integers:
    """Accepted draws out of `count` proposals, at most `count` of them."""
    inner = bits - _STRIP_BITS
    # Of the first word 32 bits choose the strip and 32 the first coin; of the second the low bits
    # give the place and the highest one the sign. No bit serves twice.
    first, second = words.take(count), words.take(count)
    strips = strips_of(first >> np.uint64(32), words)
    places = second & np.uint64(2**inner - 1)
    accepted = _accepted(first & np.uint64(2**32 - 1), Heights.of(strips, places, inner), words)
    # y = strip x width + place.
    values: Integers = ((strips << np.uint64(inner)) + places).astype(np.int64)
    sign = second.view(np.int64) >> 63  # 0 or -1, of a bit that no place uses
    zeros = values == 0
    if zeros.any():
        # As in Algorithm 2: minus zero is rejected, or zero would be drawn twice as often.
        accepted &= ~zeros | (sign == 0)
    signed: Integers = ((values ^ sign) - sign)[accepted]
    return signed


# Strips, by inversion


@cache
def _cumulative(bits: int) -> tuple[tuple[int, int], ...]:
    """Bounds of 2^bits P(strip <= i), for every strip i but the last.

    Strip i has weight exp(-i^2 / 512).
    """
    # `Decimal.exp` is correctly rounded, so an error of 10^8 last places covers the sum of 256
    # weights and the division.
    with localcontext() as context:
        context.prec = bits // 3 + 40
        margin = Decimal(10) ** (8 - context.prec)
        context.Emin, context.Emax = -(10**6), 10**6
        weights = [(-Decimal(i * i) / 512).exp() for i in range(_STRIPS)]
        total, below, bounds = sum(weights), Decimal(0), []
        for weight in weights[:-1]:
            below += weight
            at = below / total
            high = min(int((at + margin) * 2**bits), 2**bits - 1)  # it is below 1
            bounds.append((int((at - margin) * 2**bits), high))
    return tuple(bounds)


@cache
def _guide() -> tuple[Unsigned, np.ndarray[Any, np.dtype[np.int16]]]:
    """The 32-bit cell in which each strip ends, and the strip of each 16-bit cell.

    A 16-bit cell in which a strip ends belongs to more than one strip and holds -1.

    Raises:
        ArithmeticError: If a bound could not be resolved, which a test excludes.
    """
    bounds = _cumulative(32)
    if any(low != high for low, high in bounds):
        raise ArithmeticError(f"Expected bounds={bounds} to name one cell each.")
    ends = np.array([low for low, _ in bounds], dtype=np.uint64)
    cells = np.arange(2**16, dtype=np.uint64) << np.uint64(16)
    guide = np.searchsorted(ends, cells, side="left").astype(np.int16)
    guide[ends >> np.uint64(16)] = -1
    return ends, guide


def strips_of(prefixes: Unsigned, words: WordSource) -> Unsigned:
    """The strip in which each uniform number lies.

    Args:
        prefixes: The first 32 bits of each number, shape `(draws,)`.
        words: Gives further bits if these do not decide.

    Returns:
        Numbers of strips from 0 to 255, uint64.
    """
    # 16 bits decide for nearly all numbers, 32 for nearly all others, integers for the rest.
    ends, guide = _guide()
    strips: Integers = guide[prefixes >> np.uint64(16)].astype(np.int64)
    undecided = np.flatnonzero(strips < 0)
    if len(undecided):
        prefix = prefixes[undecided]
        place = np.searchsorted(ends, prefix, side="left")
        ends_here = ends[np.minimum(place, len(ends) - 1)] == prefix
        strips[undecided] = place
        for index in undecided[ends_here].tolist():
            strips[index] = _strip_exactly(int(prefixes[index]), words)
    return strips.astype(np.uint64)


def _strip_exactly(prefix: int, words: WordSource) -> int:
    """The strip of a uniform number with these first 32 bits; more are drawn until they decide."""
    bits = 32
    while True:
        prefix, bits = (prefix << 64) | int(words.take(1)[0]), bits + 64
        bounds = _cumulative(bits)
        if all(prefix < low or prefix > high for low, high in bounds):
            return sum(prefix > high for _, high in bounds)


# Rejection


@dataclass(frozen=True)
class Heights:
    """Integer bounds of gamma = place (2 strip width + place) / (2 s^2) < 1 of many proposals.

    Args:
        low: At most 2^64 gamma, shape `(draws,)`.
        high: At least 2^64 gamma - 1.
        strips: Numbers of the strips.
        places: Places within strips, from 0 to 2^inner - 1.
        inner: A strip is 2^inner wide.
    """

    low: Unsigned
    high: Unsigned
    strips: Unsigned
    places: Unsigned
    inner: int

    @staticmethod
    def of(strips: Unsigned, places: Unsigned, inner: int) -> "Heights":
        """The bounds for proposals, from the upper 32 bits of both factors of gamma."""
        # Products of 32 bits by 32 fit into 64. What is cut off each factor is below one unit:
        # (left + 1) (right + 1) - 1 is the upper bound.
        reach = (strips << np.uint64(inner + 1)) + places
        left, right = _shifted(places, inner - 32), _shifted(reach, inner - 23)
        low = left * right
        return Heights(low, low + left + right, strips, places, inner)

    def below(self, prefixes: Unsigned, parts: int, words: WordSource) -> Any:
        """Whether uniform numbers lie below gamma / parts, decided exactly.

        Args:
            prefixes: The first 32 bits of each number, shape `(draws,)`.
            parts: At least 1.
            words: Gives further bits if these do not decide.

        Returns:
            bool, shape `(draws,)`.
        """
        low, high = self.cells(parts)
        below = prefixes < low
        # Undecided with probability below 2^-30: gamma as a rational, in integers without limit.
        for index in np.flatnonzero(~below & (prefixes <= high)).tolist():
            place, strip = int(self.places[index]), int(self.strips[index])
            numerator = place * ((strip << (self.inner + 1)) + place)
            denominator = parts << (2 * self.inner + 9)
            below[index] = _below_exactly(int(prefixes[index]), numerator, denominator, words)
        return below

    def cells(self, parts: int) -> tuple[Unsigned, Unsigned]:
        """Two 32-bit bounds: numbers below the first are below gamma / parts, above the second not.

        Args:
            parts: At least 1.
        """
        divisor, half = np.uint64(parts), np.uint64(32)
        if parts == 1:  # every proposal comes here, and divisions are slow
            return self.low >> half, self.high >> half
        return (self.low // divisor) >> half, (self.high // divisor) >> half

    def take(self, index: Any) -> "Heights":
        """The heights of the proposals with these numbers."""
        return Heights(
            self.low[index], self.high[index], self.strips[index], self.places[index], self.inner
        )


def _shifted(values: Unsigned, right: int) -> Unsigned:
    return values >> np.uint64(right) if right >= 0 else values << np.uint64(-right)


def _below_exactly(prefix: int, numerator: int, denominator: int, words: WordSource) -> bool:
    """Whether a uniform number with these first 32 bits is below a fraction; more are drawn."""
    bits = 32  # known so far: the number lies in [prefix, prefix + 1) / 2^bits
    while True:
        if (prefix + 1) * denominator <= numerator << bits:
            return True
        if prefix * denominator >= numerator << bits:
            return False
        prefix, bits = (prefix << 64) | int(words.take(1)[0]), bits + 64


def _accepted(prefixes: Unsigned, heights: Heights, words: WordSource) -> Any:
    """Coins of probability exp(-gamma), bool of shape `(draws,)`.

    Source: Canonne, Kamath and Steinke 2020, Algorithm 1, for gamma in [0, 1].
    """
    accepted = np.ones(len(prefixes), dtype=bool)
    # Algorithm 1: K is the first k at which a Bernoulli(gamma / k) fails; accepted if K is odd.
    # What fails at k = 1 stays accepted.
    going = np.flatnonzero(heights.below(prefixes, 1, words))
    k = 2
    while len(going):
        fresh = words.take(len(going)) >> np.uint64(32)
        succeeds = heights.take(going).below(fresh, k, words)
        accepted[going[~succeeds]] = k % 2 == 1
        going, k = going[succeeds], k + 1
    return accepted
