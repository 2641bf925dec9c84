"""Rényi divergences of events, against lower bounds of what is true."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from privtrain.accounting import divergences
from privtrain.accounting.curves import gaussian_epsilon
from privtrain.accounting.divergences import extends, leaf_rdp, least_epsilon
from privtrain.accounting.epsilon import (
    epsilon,
    rdp_curve,
)
from privtrain.accounting.event import (
    composed,
    gaussian_event,
    laplace_event,
    poisson_sampled,
    repeated,
)
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE

DELTA = 1e-5


# Shrinking takes minutes where one evaluation takes a second; a failing example is small enough.
PROPERTY = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


@pytest.mark.slow
@PROPERTY
@given(noise=st.floats(1.0, 30), rate=st.floats(0.001, 0.5), count=st.integers(1, 500))
def test_rdp_is_never_below_the_optimistic_value(noise: float, rate: float, count: int) -> None:
    import dp_accounting
    from dp_accounting import pld

    event = repeated(poisson_sampled(rate, gaussian_event(noise)), count)
    optimistic = pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=rate,
        pessimistic_estimate=False,
        use_connect_dots=False,
        value_discretization_interval=1e-3,
        neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    ).self_compose(count)
    assert epsilon(event, DELTA, accountant="rdp") >= optimistic.get_epsilon_for_delta(DELTA) - 1e-6


def test_rounding_errors_of_rdp_never_undercut() -> None:
    """At large noise the sums of the RDP accountant lose all digits and may turn negative."""
    for noise in (1e3, 1e5, 1e7):
        sampled = rdp_curve(poisson_sampled(0.5, gaussian_event(noise)), [1.5, 2.0, 32.0, 100.0])
        whole = rdp_curve(gaussian_event(noise), sampled.orders)
        for order, part, bound in zip(sampled.orders, sampled.rdp, whole.rdp, strict=True):
            exact = 0.25 * order / (2 * noise**2)  # leading term: rate^2 order / (2 z^2)
            assert 0.99 * exact <= part <= bound * (1 + 1e-12)


def test_no_number_is_no_small_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger of 1e-12 and not-a-number was 1e-12: next to no cost."""
    event = poisson_sampled(0.123, gaussian_event(1.7))

    def broken(leaf: Any, orders: tuple[float, ...], relation: Any) -> Any:
        return np.where(np.array(orders) == 2.0, math.nan, 1.0)

    monkeypatch.setattr(divergences, "rdp_of", broken)
    with pytest.raises(UnsupportedError, match=r"no number for .* at order 2"):
        rdp_curve(event, [1.5, 2.0])
    with pytest.raises(UnsupportedError, match="no number"):
        rdp_curve(laplace_event(1.7), [2.0])


def test_an_accountant_that_fails_at_huge_noise_is_an_error_of_ours() -> None:
    from privtrain.accounting.event import fixed_size_sampled

    with pytest.raises(UnsupportedError, match="less noise"):
        rdp_curve(fixed_size_sampled(100, 2, gaussian_event(1e9)), [3.0], REPLACE_ONE)


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 1.0), (0.01, 50.0), (0.3, 7.0)])
def test_large_orders_are_those_of_the_sum_term_by_term(rate: float, noise: float) -> None:
    """The library sums one term after the other, which takes seconds at order 10,000."""
    event = poisson_sampled(rate, gaussian_event(noise))
    for order in (1024, 2048):
        (oracle,) = leaf_rdp(event, (float(order),), ADD_REMOVE)
        found = divergences._gaussian_rdp(event, order, ADD_REMOVE)
        assert oracle * (1 - 1e-12) <= found <= oracle * (1 + 1e-7)


def test_epsilons_far_below_the_usual_orders_are_found() -> None:
    """1,024 is the largest usual order: at delta 1e-30 it shows 0.06 of nothing at all."""
    for target in (0.01, 1e-3):
        # Mu-Gaussian privacy of this epsilon, by bisection of the exact formula.
        low, high = 1e-9, 1.0
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (
                (middle, high) if gaussian_epsilon(middle, 1e-30) < target else (low, middle)
            )
        for event in (
            gaussian_event(1 / low),
            repeated(gaussian_event(10 / low), 100),
            poisson_sampled(0.5, gaussian_event(0.5 / low)),
        ):
            found = epsilon(event, 1e-30, accountant="rdp")
            assert 0.98 * target < found < 1.1 * target
        doubled = epsilon(gaussian_event(2 / low), 1e-30, accountant="rdp", relation=REPLACE_ONE)
        assert 0.98 * target < doubled < 1.1 * target


def test_only_gaussians_have_orders_without_end() -> None:
    curve = RdpCurve((2.0, 500.0), (0.1, 0.2))
    assert extends(
        composed([gaussian_event(1.0), poisson_sampled(0.1, gaussian_event(2.0))]), ADD_REMOVE
    )
    assert not extends(composed([gaussian_event(1.0), laplace_event(2.0)]), ADD_REMOVE)
    assert not extends(composed([gaussian_event(1.0), curve]), ADD_REMOVE)
    # Of a curve that costs next to nothing.
    nothing = RdpCurve(curve.orders, (1e-9, 1e-9))
    assert nothing.epsilon(1e-5) == pytest.approx(least_epsilon(curve, 1e-5), rel=1e-5)
    assert least_epsilon(gaussian_event(1.0), 1e-5) < 0.6 * least_epsilon(curve, 1e-5)
