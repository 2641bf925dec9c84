"""Rényi curves: how they add up, and the epsilon that they are worth."""

import math
import pickle

import numpy as np
import pytest

from privtrain.accounting.epsilon import (
    epsilon,
    evaluate,
    rdp_curve,
)
from privtrain.accounting.event import (
    composed,
    fixed_size_sampled,
    gaussian_event,
    poisson_sampled,
    repeated,
)
from privtrain.accounting.renyi import RdpCurve, rdp_to_epsilon
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation

DELTA = 1e-5


CURVE = RdpCurve((2.0, 4.0, 8.0, 32.0), (0.1, 0.2, 0.4, 1.6))


def test_curves_compose_by_adding() -> None:
    assert composed([CURVE, CURVE]) == repeated(CURVE, 2) == CURVE + CURVE
    assert composed([CURVE]) == CURVE == pickle.loads(pickle.dumps(CURVE))
    assert hash(CURVE) == hash(RdpCurve(CURVE.orders, CURVE.rdp))
    assert RdpCurve(np.array([2, 3]), np.array([0.5, 1])) == RdpCurve((2.0, 3.0), (0.5, 1.0))  # type: ignore[arg-type]
    assert math.inf == RdpCurve((2.0,), (math.inf,)).epsilon(DELTA)
    with pytest.raises(ValueError, match="orders"):
        composed([CURVE, RdpCurve((2.0,), (0.1,))])
    with pytest.raises(ValueError, match="orders"):
        evaluate(composed([CURVE, RdpCurve((2.0,), (0.1,)), gaussian_event(1.0)]), DELTA)
    for sampled in (
        lambda: poisson_sampled(0.1, CURVE),
        lambda: fixed_size_sampled(10, 1, composed([CURVE, gaussian_event(1.0)])),
    ):
        with pytest.raises(UnsupportedError, match="RdpCurve"):
            sampled()


def test_a_curve_takes_no_factor_under_any_relation_and_an_event_beside_it_does() -> None:
    alone = rdp_to_epsilon(CURVE.rdp, CURVE.orders, DELTA, "improved")
    for relation in Relation:
        assert epsilon(CURVE, DELTA, relation=relation, accountant="rdp") == alone
    orders = np.array(CURVE.orders)
    mixed = repeated(composed([CURVE, gaussian_event(3.0)]), 7)
    for relation, sensitivity in ((ADD_REMOVE, 1.0), (ZERO_OUT, 1.0), (REPLACE_ONE, 2.0)):
        total = 7 * (np.array(CURVE.rdp) + orders * sensitivity**2 / (2 * 3.0**2))
        expected = rdp_to_epsilon(total, orders, DELTA, "improved")
        assert evaluate(mixed, DELTA, relation).epsilon == pytest.approx(expected, rel=1e-12)
        assert rdp_curve(mixed, CURVE.orders, relation).rdp == pytest.approx(tuple(total))


def test_conversions() -> None:
    orders, curve = np.array([2.0, 10.0, 100.0]), np.array([0.1, 0.5, 5.0])
    classic = min(curve + math.log(1e5) / (orders - 1))
    assert rdp_to_epsilon(curve, orders, DELTA) == pytest.approx(classic, rel=1e-15)
    assert rdp_to_epsilon(curve, orders, DELTA, "improved") < classic
    assert rdp_to_epsilon(0 * curve, orders, DELTA) == 0.0
    assert rdp_to_epsilon(curve * 1e-14, orders, DELTA, "improved") == 0.0


def test_the_improved_conversion_is_that_of_dp_accounting() -> None:
    import dp_accounting

    orders = np.array([1.5, 2.0, 4.0, 16.0, 64.0, 256.0])
    for scale in (1e-6, 1e-3, 0.1, 3.0):
        curve = scale * orders
        theirs = dp_accounting.rdp.compute_epsilon(orders, curve, DELTA)[0]
        ours = rdp_to_epsilon(curve, orders, DELTA, "improved")
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-15)


# ------------------------------------------------------------------------------- groups of two


def test_a_curve_that_grows_with_the_order_is_four_times_as_large_for_two() -> None:
    orders = tuple(float(order) for order in np.geomspace(1.05, 500, 200))
    for noise in (0.5, 30.0):
        single = RdpCurve(orders, tuple(order / (2 * noise**2) for order in orders))
        both = single.of_two()
        assert both.orders == orders
        small = [order for order in orders if 2 * order <= orders[-1]]
        for order, rdp in zip(small, both.rdp, strict=False):
            # Chords of (order - 1) times the curve lie a little above it.
            assert 1.0 - 1e-12 <= rdp / (4 * order / (2 * noise**2)) < 1.002
        assert set(both.rdp[len(small) :]) == {math.inf}
        # By hand: one Gaussian release under half the noise.
        exact = epsilon(gaussian_event(noise / 2), DELTA, accountant="rdp")
        assert exact * (1 - 1e-2) <= both.epsilon(DELTA) <= exact * 1.05


def test_two_releases_of_bounded_loss_cost_no_more_than_twice_the_loss_and_a_bit() -> None:
    orders = (1.5, 2.0, 4.0, 8.0, 16.0)
    both = RdpCurve(orders, (0.1,) * 5).of_two()
    assert all(0.2 <= rdp <= 0.26 for rdp in both.rdp[:4])
    assert both.rdp[4] == math.inf


def test_of_two_takes_curves_of_any_orders() -> None:
    shuffled = RdpCurve((8.0, 2.0, 4.0), (0.8, 0.2, math.inf)).of_two()
    assert shuffled.rdp == (math.inf, math.inf, math.inf)
    assert RdpCurve((2.0,), (0.0,)).of_two().rdp == (math.inf,)
    assert RdpCurve((2.0, 9.0), (0.0, 0.0)).of_two().rdp == (0.0, math.inf)
    assert RdpCurve((3.0, 2.0, 9.0), (3.0, 2.0, 9.0)).of_two().rdp[1] == pytest.approx(
        4 / 3 * 3.0 + (3 / 6 * 0 + (5 / 6 * 2 * 3 + 1 / 6 * 8 * 9) / 3), rel=1e-9
    )
