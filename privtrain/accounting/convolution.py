"""The same release many times: its privacy losses added up, also where they are rare.

A convolution by Fourier transform carries an absolute error, which grows with the number of
releases: for 100,000 of them it is near 1e-12, of either sign. A small delta is a sum of
probabilities below that, so that epsilon would be noise, and no bound. Rare losses are therefore
added up a second time, under a tilted distribution in which they are common, and put in place of
the noise.
"""

import math
from functools import partial

import numpy as np

from privtrain.accounting.library import Array, GridLosses, Losses, each_direction, self_convolved

_RARE = 1e-5
"""The probability beyond which losses are taken from the tilted distribution."""

_NOISE = 1e-6
"""The part of its largest probability up to which the tilted distribution is not used."""

_RAREST = 1e-10
"""The probability around which the tilted distribution is centred."""


def self_composed(losses: Losses, count: int, cut_off: float) -> Losses:
    """The privacy losses of a release that is made several times.

    Args:
        losses: Those of one release.
        count: How often it is made; at least 1.
        cut_off: How much probability is left out, from 1e-20; it counts as infinite loss, or not at
            all from below.

    Returns:
        The losses of all of them. Probabilities are exact to a relative 1e-6 or so, however small,
        down to those that are left out.

    Source: Koskela, Jälkö, Prediger and Honkela 2021 (arXiv:2006.07134) for the convolution;
    Esscher 1932 for the tilt.
    """
    if count == 1:
        return losses
    return each_direction(losses, partial(_power, count=count, cut_off=cut_off))


def _power(once: GridLosses, count: int, cut_off: float) -> GridLosses:
    """The distribution of the sum of `count` independent losses of one distribution."""
    first, summed = self_convolved(once.probabilities, count, cut_off)
    summed = np.maximum(summed, 0.0)
    beyond = np.cumsum(summed[::-1])[::-1]  # of each loss and all larger ones
    rare = first + int(np.searchsorted(-beyond, -_RARE))

    # Esscher's tilt: probabilities times exp(slope x number), scaled to one, convolve to the
    # tilted sum, since the exponents of independent numbers add up.
    slope = _tilt(once.probabilities, count)
    tilted, log_mass = _tilted(once.probabilities, slope)
    start, common = self_convolved(tilted, count, cut_off)
    # Undone, the tilt multiplies the noise of what is rare under it from below.
    peak = int(np.argmax(common))
    noise = int(np.flatnonzero(common[: peak + 1] >= _NOISE * common[peak])[0])
    start, common = start + noise, common[noise:]
    # The tilt is undone in logarithms: its factor leaves the range of floats on either side.
    numbers = start + np.arange(len(common))
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(common, 0.0)) + count * log_mass - slope * numbers
    rare = max(rare, start)
    tail = np.exp(np.minimum(logs[rare - start :], 0.0))
    # The largest losses, of half the cut-off's probability in all, would only lengthen the grid.
    tail = tail[: len(tail) - int(np.searchsorted(np.cumsum(tail[::-1]), cut_off / 2))]

    # One infinite loss among the releases makes the sum infinite: 1 - (1 - p)^count.
    infinite = -math.expm1(count * math.log1p(-once.infinite))
    if once.pessimistic:
        # What the windows left out may have been any loss: an upper bound counts it as infinite.
        infinite += cut_off
    ordinary = summed[: max(0, rare - first)]
    gap = np.zeros(max(0, rare - first - len(ordinary)))
    return once._replace(
        lowest=count * once.lowest + first,
        probabilities=np.concatenate([ordinary, gap, tail]),
        infinite=infinite,
    )


def _tilted(probabilities: Array, slope: float) -> tuple[Array, float]:
    """Probabilities times exp(slope x number), scaled to one, and the log of what they sum to."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(probabilities, 0.0)) + slope * np.arange(len(probabilities))
    top = float(logs.max())
    raised = np.exp(logs - top)
    # dp_accounting divides by the smallest of them.
    raised[raised < 1e-200] = 0.0
    mass = float(raised.sum())
    return raised / mass, top + math.log(mass)


def _tilt(probabilities: Array, count: int) -> float:
    """The slope under which a sum of probability about 1e-10 is a common one.

    By Chernoff, a sum beyond the tilted mean m has at most the probability
    exp(count (log mass) - slope m), which falls with the slope.
    """
    numbers = np.arange(len(probabilities))
    # Bisection of the logarithm of the slope; sixteen halvings leave it within 0.1%.
    low, high = math.log(1e-12), math.log(1e3)
    for _ in range(16):
        middle = (low + high) / 2
        slope = math.exp(middle)
        tilted, log_mass = _tilted(probabilities, slope)
        exponent = count * (log_mass - slope * float(tilted @ numbers))
        low, high = (middle, high) if exponent > math.log(_RAREST) else (low, middle)
    return math.exp(low)
