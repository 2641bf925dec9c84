"""What a noisy winner costs whoever sees nothing but the winner, whatever the votes.

A vote that moves shifts two counts. Given the largest noised count of the other classes there are
three outcomes: the class that lost the vote, the one that gained it, and that other class. Along
the shift the log-likelihood of the outcome changes by its score, and where

    log E exp(x score) <= x^2 c(x)    for all x > 0, whatever the counts,

the Rényi divergence of order a of a shift by s standard deviations is at most a s times the
integral of c from (a - 1) s to a s. Of the noised counts themselves c = 1, which gives
order / sigma^2; of the winner it is 0.64 while order << sigma, and tends to 1.

docs/decisions/022-cost-of-the-winner.md has the proof, for any number of classes, both directions,
a vote that only appears or vanishes, and several votes. The tables of c are upper bounds, proved
cell by cell in tests/accounting/winner_proof.py.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.accounting.renyi import check_orders
from privtrain.core.validate import check_positive

Array = NDArray[np.float64]

FIRST, PER_OCTAVE = 2.0**-4, 8
"""The tables' first argument, and how many there are until it doubles."""

# fmt: off
GAUSSIAN = (
    0.6427, 0.6427, 0.6427, 0.6427, 0.6428, 0.6428, 0.6428, 0.6429,
    0.6429, 0.6430, 0.6431, 0.6432, 0.6433, 0.6434, 0.6436, 0.6437,
    0.6440, 0.6442, 0.6445, 0.6449, 0.6454, 0.6459, 0.6465, 0.6473,
    0.6482, 0.6492, 0.6505, 0.6521, 0.6539, 0.6562, 0.6588, 0.6621,
    0.6660, 0.6707, 0.6765, 0.6836, 0.6937, 0.7044, 0.7174, 0.7331,
    0.7514, 0.7720, 0.7935, 0.8149, 0.8352, 0.8540, 0.8711, 0.8865,
    0.9004, 0.9120, 0.9231, 0.9330, 0.9418, 0.9497, 0.9567, 0.9628,
    0.9682, 0.9729, 0.9771, 0.9807, 0.9839, 0.9867, 0.9892, 0.9913,
    0.9931, 0.9947, 0.9961, 0.9974, 0.9984, 0.9993, 1.0000, 1.0000,
    1.0000,
)
"""Upper bounds of c for normal noise, at x = 2^(-4 + n / 8); the first holds for smaller x, too."""

LAPLACE = (
    0.6694, 0.6688, 0.6687, 0.6686, 0.6684, 0.6682, 0.6680, 0.6678,
    0.6675, 0.6671, 0.6667, 0.6662, 0.6655, 0.6648, 0.6640, 0.6630,
    0.6618, 0.6604, 0.6587, 0.6568, 0.6545, 0.6518, 0.6486, 0.6449,
    0.6406, 0.6356, 0.6299, 0.6233, 0.6161, 0.6083, 0.5997, 0.5904,
    0.5802, 0.5691, 0.5570, 0.5440, 0.5299, 0.5148, 0.4987, 0.4817,
    0.4639, 0.4453, 0.4262, 0.4068, 0.3871, 0.3674, 0.3478, 0.3285,
    0.3096, 0.2912, 0.2734, 0.2562, 0.2398, 0.2242, 0.2093, 0.1951,
    0.1818, 0.1692, 0.1573, 0.1462, 0.1358, 0.1260, 0.1168, 0.1083,
    0.1003,
)
"""The same for Laplace noise."""
# fmt: on

# Floats of the formulas below keep nine digits and more.
_ROUNDING = 1 + 1e-8


class _Growth(NamedTuple):
    """The integral of c from zero, in parts of which each has a closed form."""

    ends: Array
    offsets: Array  # of the line that bounds x^2 c(x) from there on
    slopes: Array
    integrals: Array  # from zero to each end

    def __call__(self, x: Array) -> Array:
        part = np.maximum(np.searchsorted(self.ends, x, side="right") - 1, 0)
        start, offset, slope = self.ends[part], self.offsets[part], self.slopes[part]
        inside = np.maximum(x, start)
        # A cumulant generating function is convex: between two ends it lies below the chord.
        beyond = offset * (1 / start - 1 / inside) + slope * np.log(inside / start)
        # Up to the first end c itself is bounded by a constant.
        return np.asarray(self.integrals[part] * np.minimum(x / self.ends[0], 1) + beyond)


@cache
def _growth(table: tuple[float, ...]) -> _Growth:
    ends = FIRST * 2 ** (np.arange(len(table)) / PER_OCTAVE)
    cumulants = np.array(table) * ends**2
    slopes = np.diff(cumulants) / np.diff(ends)
    offsets = cumulants[:-1] - slopes * ends[:-1]
    parts = offsets * (1 / ends[:-1] - 1 / ends[1:]) + slopes * np.log(ends[1:] / ends[:-1])
    first = table[0] * ends[0]
    # The last end begins no part; a value for it keeps the look-up in range.
    return _Growth(
        ends,
        np.append(offsets, offsets[-1]),
        np.append(slopes, slopes[-1]),
        np.concatenate([[first], first + np.cumsum(parts)]),
    )


def _along(table: tuple[float, ...], shift: float, grid: Array) -> Array:
    """The divergence of a shift by so many scales of the noise; infinite where the table ends."""
    growth, high = _growth(table), grid * shift
    known = high <= growth.ends[-1]
    rdp = np.full(len(grid), np.inf)
    # Decision 022, the theorem: a s times the integral of c from (a - 1) s to a s.
    low, high, order = (grid[known] - 1) * shift, high[known], grid[known]
    rdp[known] = order * shift * (growth(high) - growth(low)) * _ROUNDING
    return rdp


def gnmax_winner_rdp(sigma: float, orders: ArrayLike) -> Array:
    """Rényi divergences of one answer of GNMax to whoever sees only the winner, whatever the votes.

    Args:
        sigma: Standard deviation of the noise on each count, in votes; positive.
        orders: Rényi orders, shape `(orders,)`, each above 1.

    Returns:
        Upper bounds in nats, shape `(orders,)`, in both directions; never above order / sigma^2,
        which holds for whoever reads the noised counts, too. Counts may be any real numbers, so
        that known noise, or that of other parties, changes nothing.

    Raises:
        ValueError: If an argument is out of its range.

    Source: docs/decisions/022-cost-of-the-winner.md.
    """
    check_positive(sigma=sigma)
    grid = check_orders(orders)
    # Papernot et al. 2018, Proposition 8, also where the table ends.
    return np.minimum(_along(GAUSSIAN, 1 / sigma, grid), grid / sigma**2)


def gnmax_check_rdp(sigma: float, orders: ArrayLike) -> Array:
    """Rényi divergences of a noised threshold check to whoever sees only whether it is passed.

    Args:
        sigma: Standard deviation of the noise on a value that one vote moves by at most 1.
        orders: Rényi orders, shape `(orders,)`, each above 1.

    Returns:
        Upper bounds in nats, shape `(orders,)`, whatever value and threshold; never above
        order / (2 sigma^2).

    Raises:
        ValueError: If an argument is out of its range.

    Source: docs/decisions/022-cost-of-the-winner.md.
    """
    # Of two classes the winner is a check of their difference, which has the noise sqrt(2) sigma
    # and moves by 2: the check of 1 under sigma is the answer under sqrt(2) sigma.
    return gnmax_winner_rdp(np.sqrt(2.0) * sigma, orders)


def lnmax_winner_rdp(scale: float, orders: ArrayLike) -> Array:
    """Rényi divergences of one answer of LNMax to whoever sees only the winner, whatever the votes.

    Args:
        scale: Scale b of the Laplace noise on each count, in votes; positive.
        orders: Rényi orders, shape `(orders,)`, each above 1.

    Returns:
        Upper bounds in nats, shape `(orders,)`, in both directions; never above 2 / b. Below that
        about 0.67 order / b^2, where (2 / b)-DP alone gives 2 order / b^2.

    Raises:
        ValueError: If an argument is out of its range.

    Source: docs/decisions/022-cost-of-the-winner.md; Papernot et al. 2017 (arXiv:1610.05755),
    Section 3.2, for 2 / b.
    """
    check_positive(scale=scale)
    grid = check_orders(orders)
    pure = 2 / scale
    # Bun and Steinke 2016, Proposition 3.3: a pure epsilon gives RDP order x epsilon^2 / 2.
    of_pure = np.minimum(pure, grid * pure**2 / 2)
    return np.minimum(_along(LAPLACE, 1 / scale, grid), of_pure)
