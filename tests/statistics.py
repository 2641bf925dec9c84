"""Statistical checks with a stated false-alarm rate, and a proof that they have power.

A check takes samples and the scale they should have, and answers whether they could have it. With
fixed seeds a check gives the same answer every time; the false-alarm rate says how lucky the seed
had to be.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALARM = 1e-4
"""Probability with which a check rejects samples that are as they should be."""

Check = Callable[[ArrayLike, float], bool]


def std_is(samples: ArrayLike, expected_std: float, alarm: float = ALARM) -> bool:
    """Whether normal samples of mean zero can have a standard deviation: two-sided chi-square.

    Args:
        samples: Any shape; independent.
        expected_std: The standard deviation they should have; positive.
        alarm: Probability of a wrong "no".
    """
    flat = _flat(samples)
    statistic = float((flat**2).sum()) / expected_std**2
    low, high = stats.chi2.ppf([alarm / 2, 1 - alarm / 2], flat.size)
    return bool(low <= statistic <= high)


def mean_is_zero(samples: ArrayLike, expected_std: float, alarm: float = ALARM) -> bool:
    """Whether samples of a known standard deviation can have mean zero: two-sided normal test."""
    flat = _flat(samples)
    bound = float(stats.norm.ppf(1 - alarm / 2)) * expected_std / np.sqrt(flat.size)
    return bool(abs(flat.mean()) <= bound)


def normal_with_std(samples: ArrayLike, expected_std: float, alarm: float = ALARM) -> bool:
    """Whether samples can be N(0, std^2): Kolmogorov-Smirnov, which sees the whole shape."""
    return float(stats.kstest(_flat(samples), stats.norm(0, expected_std).cdf).pvalue) >= alarm


def laplace_scale_is(samples: ArrayLike, expected_scale: float, alarm: float = ALARM) -> bool:
    """Whether samples can be Laplace noise of a scale.

    The sum of absolute values over the scale is Gamma distributed, which is tested on both sides;
    Kolmogorov-Smirnov tests the shape. Each has half of the false-alarm rate.
    """
    flat = _flat(samples)
    total = float(np.abs(flat).sum()) / expected_scale
    low, high = stats.gamma.ppf([alarm / 4, 1 - alarm / 4], flat.size)
    shape = stats.kstest(flat, stats.laplace(0, expected_scale).cdf).pvalue >= alarm / 2
    return bool(low <= total <= high and shape)


def uniform_over_ring(shares: ArrayLike, bits: int = 64, alarm: float = ALARM) -> bool:
    """Whether one party's shares look uniform over the integers modulo 2^bits.

    Every bit is tested against a fair coin and the top byte against a uniform one; all tests share
    the false-alarm rate (Bonferroni).

    Args:
        shares: Integers, any shape, signed or unsigned.
        bits: Width of the ring, from 8 to 64.
        alarm: Probability of a wrong "no".
    """
    plain = np.asarray(shares).reshape(-1)
    unsigned = plain.astype(np.int64).view(np.uint64) if plain.dtype.kind == "i" else plain
    words = unsigned.astype(np.uint64)
    each = alarm / (bits + 1)
    for bit in range(bits):
        ones = int(((words >> np.uint64(bit)) & np.uint64(1)).sum())
        if stats.binomtest(ones, words.size, 0.5).pvalue < each:
            return False
    top = ((words >> np.uint64(bits - 8)) & np.uint64(255)).astype(np.int64)
    return float(stats.chisquare(np.bincount(top, minlength=256)).pvalue) >= each


def independent(first: ArrayLike, second: ArrayLike, alarm: float = ALARM) -> bool:
    """Whether paired samples can be uncorrelated, as noise that is drawn twice must be."""
    return float(stats.pearsonr(_flat(first), _flat(second)).pvalue) >= alarm


def assert_power(check: Check, samples: ArrayLike, scale: float) -> None:
    """Asserts that a check passes at the right scale and fails at 2/3 and 3/2 of it.

    Args:
        check: Such as `std_is`.
        samples: As they should be, and enough of them.
        scale: Their scale.
    """
    assert check(samples, scale), f"the samples do not have scale {scale:g}"
    for factor in (2 / 3, 3 / 2):
        assert not check(samples, factor * scale), (
            f"the check has no power: it accepts {factor:.3g} x the scale {scale:g}"
        )


def _flat(samples: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(samples, dtype=np.float64).reshape(-1)
