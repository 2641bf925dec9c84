"""Privacy losses against closed forms, from both sides."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from privtrain.accounting.curves import gaussian_delta
from privtrain.accounting.epsilon import (
    epsilon,
    epsilon_bracket,
    evaluate,
)
from privtrain.accounting.event import (
    gaussian_event,
    laplace_event,
    non_private_event,
    of_group,
    poisson_sampled,
    repeated,
    truncated_poisson_sampled,
)
from privtrain.accounting.grid import STEP
from privtrain.accounting.losses import _epsilon_at, pld_epsilon
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation

DELTA = 1e-5


# Shrinking takes minutes where one evaluation takes a second; a failing example is small enough.
PROPERTY = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


def solve_epsilon(delta_of: Callable[[float], float], delta: float) -> float:
    """The epsilon at which a decreasing delta(epsilon) reaches delta."""
    if delta_of(0.0) <= delta:
        return 0.0
    high = 1.0
    while delta_of(high) > delta:
        high *= 2
    return float(optimize.brentq(lambda value: delta_of(value) - delta, 0.0, high, xtol=1e-13))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Balle and Wang 2018, Theorem 8 (arXiv:1805.06530): the exact value."""

    def delta_of(value: float) -> float:
        shift, drift = 1 / (2 * noise_multiplier), value * noise_multiplier
        log_tail = value + stats.norm.logcdf(-shift - drift)
        return float(stats.norm.cdf(shift - drift) - math.exp(log_tail))

    return solve_epsilon(delta_of, delta)


def sampled_gaussian_epsilon(rate: float, noise_multiplier: float, delta: float) -> float:
    """The exact value of one Poisson-sampled Gaussian: hockey-stick divergence in both directions.

    P = (1 - rate) N(0, z^2) + rate N(1, z^2), Q = N(0, z^2); their ratio grows with x.
    """
    z = noise_multiplier

    def threshold(loss: float) -> float:
        """Where log(P/Q) equals a loss."""
        inner = math.expm1(loss) / rate + 1
        return -math.inf if inner <= 0 else z**2 * math.log(inner) + 0.5

    def remove(value: float) -> float:
        x = threshold(value)
        q = stats.norm.sf(x / z)
        p = (1 - rate) * q + rate * stats.norm.sf((x - 1) / z)
        return float(p - math.exp(value) * q)

    def add(value: float) -> float:
        x = threshold(-value)
        q = stats.norm.cdf(x / z)
        p = (1 - rate) * q + rate * stats.norm.cdf((x - 1) / z)
        return float(q - math.exp(value) * p)

    return max(solve_epsilon(remove, delta), solve_epsilon(add, delta))


@pytest.mark.slow
@PROPERTY
@given(noise=st.floats(0.5, 50), count=st.integers(1, 20), log_delta=st.floats(-18, -5))
def test_pld_is_the_exact_gaussian_from_above(noise: float, count: int, log_delta: float) -> None:
    delta = math.exp(log_delta)
    event = repeated(gaussian_event(noise), count)
    exact = gaussian_epsilon(noise / math.sqrt(count), delta)
    twice = gaussian_epsilon(noise / math.sqrt(count) / 2, delta)
    assert exact - 1e-9 <= epsilon(event, delta) <= exact * 1.01 + 1e-3
    replaced = epsilon(event, delta, relation=REPLACE_ONE)
    assert twice - 1e-9 <= replaced <= twice * 1.01 + 1e-3


@pytest.mark.slow
def test_losses_near_the_end_of_exp() -> None:
    """Here dp_accounting divides by a number below the smallest normal float."""
    for noise, count in ((0.3, 24), (0.3, 27), (0.0265, 1)):
        exact = gaussian_epsilon(noise / math.sqrt(count), 1.5e-8)
        value = epsilon(repeated(gaussian_event(noise), count), 1.5e-8)
        assert exact - 1e-9 <= value <= 1.002 * exact


class Overflowing:
    """Losses of which only the delta of an epsilon can be told: delta = exp(-epsilon)."""

    asked = 0

    def get_epsilon_for_delta(self, delta: float) -> float:
        raise FloatingPointError

    def get_delta_for_epsilon(self, value: float) -> float:
        self.asked += 1
        assert self.asked < 100, "a search that never ends"
        return math.exp(-value)


@pytest.mark.parametrize("exact", [0.3, 5.3, 700.0])
def test_where_the_losses_overflow_epsilon_is_searched_from_above(exact: float) -> None:
    found = _epsilon_at(Overflowing(), math.exp(-exact))  # type: ignore[arg-type]
    assert exact - 1e-9 <= found <= exact + STEP


@pytest.mark.slow
@PROPERTY
@given(rate=st.floats(0.001, 0.9), noise=st.floats(0.4, 20), log_delta=st.floats(-16, -6))
def test_pld_is_the_exact_sampled_gaussian_from_above(
    rate: float, noise: float, log_delta: float
) -> None:
    delta = math.exp(log_delta)
    exact = sampled_gaussian_epsilon(rate, noise, delta)
    value = epsilon(poisson_sampled(rate, gaussian_event(noise)), delta)
    assert exact - 1e-9 <= value <= exact * 1.02 + 2e-3


def test_results_are_cached_across_equal_plans() -> None:
    pld_epsilon.cache_clear()
    for _ in range(5):
        evaluate(repeated(poisson_sampled(0.02, gaussian_event(1.7)), 50), DELTA)
    assert pld_epsilon.cache_info().misses == 1


Density = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def exact(p: Density, q: Density, delta: float = DELTA, reach: float = 60.0) -> float:
    """The epsilon of one pair of densities, in both directions, by summing over a fine grid."""
    x = np.linspace(-reach, reach, 1_200_001)
    a, b, step = p(x), q(x), x[1] - x[0]

    def miss(bound: float) -> float:
        over = [np.maximum(u - math.exp(bound) * v, 0).sum() * step for u, v in ((a, b), (b, a))]
        return math.log(max(*over, 1e-300)) - math.log(delta)

    return float(optimize.brentq(miss, 0.0, 40.0, xtol=1e-9))


def normal(center: float, deviation: float) -> Density:
    return lambda x: np.asarray(stats.norm.pdf(x, center, deviation))


def mixed(chances: list[float], parts: list[Density]) -> Density:
    return lambda x: np.asarray(sum(c * p(x) for c, p in zip(chances, parts, strict=True)))


def of_binomial(size: int, rate: float, deviation: float) -> Density:
    chances = [float(c) for c in stats.binom.pmf(range(size + 1), size, rate)]
    return mixed(chances, [normal(i, deviation) for i in range(size + 1)])


def gaussian_exactly(mu: float, delta: float) -> float:
    def miss(bound: float) -> float:
        return math.log(max(gaussian_delta(bound, mu), 1e-300)) - math.log(delta)

    return float(optimize.brentq(miss, 0.0, 500.0, xtol=1e-10))


@pytest.mark.parametrize("relation", [ADD_REMOVE, ZERO_OUT, REPLACE_ONE])
@pytest.mark.parametrize(
    ("noise", "count"),
    [(1.0, 1), (5.0, 100), (0.7, 3), pytest.param(40.0, 2_000, marks=pytest.mark.slow)],
)
def test_the_bracket_holds_the_closed_form(noise: float, count: int, relation: Relation) -> None:
    factor = 2.0 if relation is REPLACE_ONE else 1.0
    truth = gaussian_exactly(factor * math.sqrt(count) / noise, DELTA)
    low, high = epsilon_bracket(repeated(gaussian_event(noise), count), DELTA, relation)
    assert low <= truth * (1 + 1e-9) and truth <= high * (1 + 1e-9)
    assert high - low <= 0.15 * truth + 0.02


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.01), (0.6, 0.2), (2.0, 0.5)])
def test_the_bracket_holds_one_sampled_step(noise: float, rate: float) -> None:
    truth = exact(of_binomial(1, rate, noise), normal(0, noise))
    low, high = epsilon_bracket(poisson_sampled(rate, gaussian_event(noise)), DELTA)
    assert low <= truth * (1 + 1e-6) and truth <= high * (1 + 1e-6)
    assert high - low < 0.01


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    noise=st.floats(0.6, 20.0),
    rate=st.floats(0.001, 1.0),
    count=st.integers(1, 2_000),
    power=st.floats(2.0, 9.0),
)
def test_rdp_is_never_below_the_lower_end(
    noise: float, rate: float, count: int, power: float
) -> None:
    event, delta = repeated(poisson_sampled(rate, gaussian_event(noise)), count), 10**-power
    try:
        low, high = epsilon_bracket(event, delta)
        other = epsilon(event, delta, accountant="rdp")
    except UnsupportedError:
        return  # far too little noise
    assert low <= high * (1 + 1e-9)
    assert other >= low * (1 - 1e-9)


def test_the_bracket_of_many_steps_stays_narrow() -> None:
    # On the grid of the upper end the lower one would lose a seventh.
    many = repeated(poisson_sampled(0.1, gaussian_event(10.0)), 100)
    low, high = epsilon_bracket(many, DELTA)
    assert 0.98 * high < low < high


@pytest.mark.slow
def test_brackets_of_what_is_trivial_or_unknown() -> None:
    assert epsilon_bracket(non_private_event(), DELTA) == (math.inf, math.inf)
    low, high = epsilon_bracket(laplace_event(2.0), 1e-3)
    assert low <= high <= 0.5 + 1e-9
    low, high = epsilon_bracket(of_group(poisson_sampled(0.1, gaussian_event(1.0)), 3), DELTA)
    assert low <= exact(of_binomial(3, 0.1, 1.0), normal(0, 1.0)) * (1 + 1e-6) <= high * (1 + 1e-5)
    with pytest.raises(UnsupportedError, match="lower bound"):
        cut = truncated_poisson_sampled(100, 0.1, 12, gaussian_event(1.0))
        epsilon_bracket(cut, DELTA, ZERO_OUT)
