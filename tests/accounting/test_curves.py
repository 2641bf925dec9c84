"""Curves of an event: held against closed forms of the Gaussian mechanism."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from privtrain.accounting.curves import (
    DELTAS,
    epsilon_curve,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_mu,
    smallest_miss,
    trade_off,
)
from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.event import (
    fixed_size_sampled,
    gaussian_event,
    non_private_event,
    poisson_sampled,
    repeated,
)
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE

RATES = np.linspace(0, 1, 41)


def gaussian_trade_off(mu: float) -> np.ndarray:
    """Dong, Roth and Su 2022, equation (6)."""
    return np.asarray(stats.norm.cdf(stats.norm.ppf(1 - RATES) - mu))


def test_every_point_is_the_epsilon_of_its_delta() -> None:
    event = repeated(poisson_sampled(0.01, gaussian_event(1.1)), 500)
    found = epsilon_curve(event)
    assert [delta for delta, _ in found] == sorted(DELTAS)
    for delta, bound in found[::5]:
        assert bound == epsilon(event, delta)
    assert all(a > b for (_, a), (_, b) in itertools.pairwise(found))


@pytest.mark.parametrize("mu", [0.3, 1.0, pytest.param(3.0, marks=pytest.mark.slow)])
def test_the_trade_off_of_a_gaussian_is_its_closed_form_from_below(mu: float) -> None:
    exact = gaussian_trade_off(mu)
    found = np.array(trade_off(gaussian_event(1 / mu), false_positives=RATES))[:, 1]
    assert (found <= exact + 1e-12).all()
    assert np.abs(found - exact).max() < 0.01


def test_a_replaced_row_is_a_gaussian_of_twice_the_distance() -> None:
    found = np.array(trade_off(gaussian_event(2.0), REPLACE_ONE, false_positives=RATES))[:, 1]
    assert (found <= gaussian_trade_off(1.0) + 1e-12).all()
    assert np.abs(found - gaussian_trade_off(1.0)).max() < 0.01


def test_without_a_promise_no_error_is_needed() -> None:
    assert all(missed == 0 for _, missed in trade_off(non_private_event()))


@pytest.mark.parametrize(
    ("event", "relation"),
    [
        (fixed_size_sampled(100, 10, gaussian_event(2.0)), REPLACE_ONE),
        (RdpCurve((1.5, 2.0, 8.0, 64.0), (0.1, 0.14, 0.6, 5.0)), ADD_REMOVE),
    ],
)
def test_what_only_rdp_reads_has_curves_too(event: object, relation: object) -> None:
    found = epsilon_curve(event, (1e-3, 1e-5), relation)  # type: ignore[arg-type]
    assert found[0][1] > found[1][1] > 0
    misses = [missed for _, missed in trade_off(event, relation)]  # type: ignore[arg-type]
    assert all(a >= b for a, b in itertools.pairwise(misses))
    assert 0 < misses[0] <= 1 - 1e-10


def test_a_test_that_beats_the_curve_refutes_the_promise() -> None:
    # Noise of half the stated scale: the best test misses fewer than the promise allows.
    promised = np.array(trade_off(gaussian_event(1.0), false_positives=RATES))[:, 1]
    assert (gaussian_trade_off(2.0) < promised - 0.05).any()
    assert (gaussian_trade_off(1.0) >= promised - 1e-12).all()


@pytest.mark.parametrize("bound", [0.0, 0.5, 4.377, 50.0])
def test_delta_of_a_gaussian_is_its_integral(bound: float) -> None:
    mu = 1.7
    losses = np.linspace(-12, 14, 400_001)
    # The loss of N(mu, 1) against N(0, 1) at x is mu x - mu^2 / 2.
    density = stats.norm.pdf(losses, mu) - math.exp(bound) * stats.norm.pdf(losses)
    integral = np.trapezoid(np.clip(density, 0, None), losses)
    assert gaussian_delta(bound, mu) == pytest.approx(integral, rel=1e-4, abs=1e-15)


def test_mu_of_a_gaussian_is_one_over_its_noise() -> None:
    bound = epsilon(gaussian_event(2.0), 1e-5)
    assert gaussian_mu(bound, 1e-5) == pytest.approx(0.5, rel=1e-3)
    assert gaussian_mu(math.inf, 1e-5) is None
    assert gaussian_mu(0.0, 1e-5) is None
    # As far out as it is searched, and further: of hardly any noise, and of far too much.
    for mu in (2e-6, 5e5):
        far = gaussian_epsilon(mu, 1e-9)
        assert gaussian_mu(far, 1e-9) == pytest.approx(mu, rel=1e-3)
    assert gaussian_mu(1e18, 1e-2) is None
    assert gaussian_mu(1e-15, 1e-9) is None


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"delta=2"):
        epsilon_curve(gaussian_event(1.0), (2.0,))
    with pytest.raises(ValueError, match="false_positives"):
        smallest_miss([(1e-5, 1.0)], [1.5])
