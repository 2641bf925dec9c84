"""Choosing the best of a random number of runs, and what the choice costs.

The best of many private runs leaks more than one of them: a run is chosen because of the data. If
the number of runs is drawn at random, independently of the data, and only the best one is
released, the whole costs little more than one run (Papernot and Steinke 2022, arXiv:2110.03620).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privtrain.accounting.renyi import RdpCurve
from privtrain.core.validate import check_non_negative

THEOREMS = "Papernot and Steinke 2022, Theorem 2 (Theorem 6 where Poisson)"
_MOST = 1e6
_FLATTEST = 1e-3


@dataclass(frozen=True, kw_only=True)
class RandomTrials:
    """How many runs there are to choose from: a random number, drawn independently of the data.

    Args:
        mean: Expected number of runs, from 1 to a million.
        shape: Shape of the truncated negative binomial distribution: 1 is the geometric one, 0 the
            logarithmic one, larger ones are more concentrated and cost more. Infinity is the
            Poisson distribution, which draws no run at all with probability exp(-mean).

    Source: Papernot and Steinke 2022, Definition 1 (arXiv:2110.03620).
    """

    mean: float = 10.0
    shape: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.mean <= _MOST:
            raise ValueError(f"Expected mean={self.mean!r} in [1, {_MOST:g}].")
        if self.shape != math.inf:
            check_non_negative(shape=self.shape)
            if 0 < self.shape < _FLATTEST:
                raise ValueError(f"Expected shape={self.shape!r} to be 0 or >= {_FLATTEST:g}.")

    @property
    def poisson(self) -> bool:
        """Whether the number follows the Poisson distribution."""
        return math.isinf(self.shape)

    @property
    def gamma(self) -> float:
        """The parameter of the truncated negative binomial distribution that has this mean."""
        low, high = -60.0, 0.0  # of its logarithm; the mean falls as gamma grows
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean_of(middle) > self.mean else (low, middle)
        return math.exp(low)

    def _mean_of(self, log_gamma: float) -> float:
        if log_gamma == 0:
            return 1.0
        odds = math.expm1(-log_gamma)
        # Definition 1: the mean is odds / log(1/gamma) at shape 0, and else shape odds /
        # (1 - gamma^shape).
        if self.shape == 0:
            return odds / -log_gamma
        return self.shape * odds / -math.expm1(self.shape * log_gamma)

    def draw(self, generator: np.random.Generator) -> int:
        """A number of runs; zero only where it is Poisson.

        Args:
            generator: Entropy that nobody who reads the result knows.
        """
        if self.poisson:
            return int(generator.poisson(self.mean))
        if self.mean == 1:
            return 1
        gamma = self.gamma
        if self.shape == 0:
            return int(generator.logseries(1 - gamma))
        count = 0
        while count == 0:  # truncated: the distribution given that there is a run
            count = int(generator.negative_binomial(self.shape, gamma))
        return count

    def cost(self, one: RdpCurve) -> RdpCurve:
        """What releasing the best of the runs costs.

        Args:
            one: The curve of one run with its score, at its orders.

        Returns:
            The curve of the choice, at the same orders. It holds while neither the number of runs
            nor any other run is released.

        Source: Papernot and Steinke 2022, Theorems 2 and 6 (arXiv:2110.03620).
        """
        orders, rdp = np.array(one.orders), np.array(one.rdp)
        # Both theorems: log E[K] / (order - 1).
        raised = math.log(self.mean) / (orders - 1)
        if self.poisson:
            # Theorem 6, at epsilon = log(1 + 1 / (order - 1)): E[K] times the delta there.
            spread = self.mean * _deltas(orders, rdp, np.log1p(1 / (orders - 1)))
            return RdpCurve(one.orders, tuple((rdp + spread + raised).tolist()))
        # Theorem 2: (1 + shape) ((1 - 1/second) rdp(second) + log(1/gamma) / second).
        log_gamma = math.log(self.gamma)
        # The second order of the theorem is free, 1 included, where the divergence drops out.
        second = min(float(np.min((1 - 1 / orders) * rdp - log_gamma / orders)), -log_gamma)
        return RdpCurve(one.orders, tuple((rdp + (1 + self.shape) * second + raised).tolist()))


def _deltas(
    orders: NDArray[np.float64], rdp: NDArray[np.float64], epsilons: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The delta that a curve proves at each epsilon, shape `(epsilons,)`.

    Source: Canonne, Kamath and Steinke 2020, Proposition 12 (arXiv:2004.00010).
    """
    # delta = exp((order - 1) (rdp - epsilon)) (1 - 1/order)^order / (order - 1), the smallest one.
    constant = orders * np.log1p(-1 / orders) - np.log(orders - 1)
    exponents = (orders - 1) * (rdp - epsilons[:, None]) + constant
    return np.asarray(np.minimum(1.0, np.exp(np.minimum(exponents.min(axis=1), 0.0))))


def costliest(curves: list[RdpCurve]) -> RdpCurve:
    """The curve of a run whose settings are drawn at random, without looking at data.

    Args:
        curves: One for each setting, at the same orders; at least one.

    Returns:
        The largest divergence at each order: the draw is public, so no run costs more.

    Raises:
        ValueError: If the orders differ.
    """
    first = curves[0]
    for other in curves[1:]:
        _ = first + other  # checks the orders
    largest = np.max([curve.rdp for curve in curves], axis=0)
    return RdpCurve(first.orders, tuple(largest.tolist()))
