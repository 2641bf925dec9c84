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
