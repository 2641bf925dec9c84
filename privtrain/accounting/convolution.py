"""The same release many times: its privacy losses added up, also where they are rare.

A convolution by Fourier transform carries an absolute error, which grows with the number of
releases: for 100,000 of them it is near 1e-12, of either sign. A small delta is a sum of
probabilities below that, so that epsilon would be noise, and no bound. Rare losses are therefore
added up a second time, under a tilted distribution in which they are common, and put in place of
the noise.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_CUT_OFF = 1e-15
"""How much probability windows leave out; it counts as infinite loss, or not at all from below."""

_RARE = 1e-5
"""The probability beyond which losses are taken from the tilted distribution."""

_NOISE = 1e-6
"""The part of its largest probability up to which the tilted distribution is not used."""

_RAREST = 1e-10
"""The probability around which the tilted distribution is centred."""


def self_composed(dp: Any, losses: Any, count: int) -> Any:
    """The privacy losses of a release that is made several times.

    Args:
        dp: dp_accounting.
        losses: The `PrivacyLossDistribution` of one release.
        count: How often it is made; at least 1.

    Returns:
        The `PrivacyLossDistribution` of all of them. Probabilities are exact to a relative 1e-6 or
        so, however small, down to the 1e-15 that are left out.

    Source: Koskela, Jälkö, Prediger and Honkela 2021 (arXiv:2006.07134) for the convolution;
    Esscher 1932 for the tilt.
    """
    if count == 1:
        return losses
    remove = _power(dp, losses._pmf_remove.to_dense_pmf(), count)
    if losses._symmetric:
        return type(losses)(remove)
    return type(losses)(remove, _power(dp, losses._pmf_add.to_dense_pmf(), count))


def _power(dp: Any, one: Any, count: int) -> Any:
    """The distribution of the sum of `count` losses of a dense distribution."""
    convolve = dp.pld.common.self_convolve
    first, summed = convolve(one._probs, count, _CUT_OFF)
    summed = np.maximum(summed, 0.0)
    beyond = np.cumsum(summed[::-1])[::-1]  # of each loss and all larger ones
    rare = first + int(np.searchsorted(-beyond, -_RARE))

    slope = _tilt(one._probs, count)
    tilted, log_mass = _tilted(one._probs, slope)
    start, common = convolve(tilted, count, _CUT_OFF)
    # Undone, the tilt multiplies the noise of what is rare under it from below.
    peak = int(np.argmax(common))
    noise = int(np.flatnonzero(common[: peak + 1] >= _NOISE * common[peak])[0])
    start, common = start + noise, common[noise:]
    numbers = start + np.arange(len(common))
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(common, 0.0)) + count * log_mass - slope * numbers
    rare = max(rare, start)
    tail = np.exp(np.minimum(logs[rare - start :], 0.0))
    tail = tail[: len(tail) - int(np.searchsorted(np.cumsum(tail[::-1]), _CUT_OFF / 2))]

    infinite = -math.expm1(count * math.log1p(-one._infinity_mass))
    if one._pessimistic_estimate:
        infinite += _CUT_OFF
    kept = summed[: max(0, rare - first)]
    lowest = count * one._lower_loss + first
    return type(one)(
        one._discretization,
        lowest,
        np.concatenate([kept, np.zeros(max(0, rare - first - len(kept))), tail]),
        infinite,
        one._pessimistic_estimate,
    )


def _tilted(probabilities: Array, slope: float) -> tuple[Array, float]:
    """Probabilities times exp(slope x number), scaled to one, and the log of what they sum to."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(probabilities, 0.0)) + slope * np.arange(len(probabilities))
    top = float(logs.max())
    raised = np.exp(logs - top)
    raised[raised < 1e-200] = 0.0  # dp_accounting divides by the smallest of them
    mass = float(raised.sum())
    return raised / mass, top + math.log(mass)


def _tilt(probabilities: Array, count: int) -> float:
    """The slope under which a sum of probability about 1e-10 is a common one.

    By Chernoff, a sum beyond the tilted mean m has at most the probability
    exp(count (log mass) - slope m), which falls with the slope.
    """
    numbers = np.arange(len(probabilities))
    low, high = math.log(1e-12), math.log(1e3)
    for _ in range(16):
        middle = (low + high) / 2
        slope = math.exp(middle)
        tilted, log_mass = _tilted(probabilities, slope)
        exponent = count * (log_mass - slope * float(tilted @ numbers))
        low, high = (middle, high) if exponent > math.log(_RAREST) else (low, middle)
    return math.exp(low)
