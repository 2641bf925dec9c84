"""The Rényi filter: closed forms, adaptive choices, and twins that choose afterwards."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privtrain.accounting import filter as filters
from privtrain.accounting.divergences import ORDERS
from privtrain.accounting.epsilon import epsilon, rdp_curve
from privtrain.accounting.event import (
    composed,
    gaussian_event,
    non_private_event,
    poisson_sampled,
    repeated,
)
from privtrain.accounting.filter import RdpFilter, order_for, rdp_allowance
from privtrain.accounting.renyi import RdpCurve, rdp_to_epsilon
from privtrain.core.errors import BudgetExceededError, UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, Budget
from tests.threads import meeting, outcomes

BUDGET = Budget(3.0, 1e-5)


@pytest.mark.parametrize("order", [2.0, 8.0, 64.0])
@pytest.mark.parametrize("budget", [Budget(20.0, 1e-5), Budget(20.0, 1e-8)])
def test_the_allowance_is_what_converts_back_to_the_budget(order: float, budget: Budget) -> None:
    allowance = rdp_allowance(budget, order)
    if allowance > 0:
        assert rdp_to_epsilon([allowance], [order], budget.delta, "improved") == pytest.approx(
            budget.epsilon, rel=1e-12
        )


def test_a_gaussian_costs_order_over_twice_its_variance() -> None:
    spent = RdpFilter(BUDGET, order=10.0)
    spent.spend(gaussian_event(5.0))
    assert spent.spent == pytest.approx(10.0 / (2 * 5.0**2), rel=1e-12)
    replaced = RdpFilter(BUDGET, order=10.0, relation=REPLACE_ONE)
    replaced.spend(gaussian_event(5.0))
    assert replaced.spent == pytest.approx(4 * spent.spent, rel=1e-12)


def test_the_chosen_order_pays_for_the_most_gaussians() -> None:
    def releases(order: float) -> int:
        return math.floor(rdp_allowance(BUDGET, order) / (order / (2 * 30.0**2)))

    best = order_for(BUDGET)
    assert releases(best) == max(releases(order) for order in ORDERS)
    assert RdpFilter(BUDGET).fixed_order == best


def test_it_refuses_before_the_release_and_a_smaller_one_still_fits() -> None:
    spent = RdpFilter(BUDGET, order=10.0)
    spent.spend(gaussian_event(3.0))
    before = spent.spent
    assert not spent.fits(gaussian_event(0.5))
    with pytest.raises(BudgetExceededError, match="at order 10"):
        spent.spend(gaussian_event(0.5))
    assert spent.spent == before
    spent.spend(gaussian_event(30.0))
    assert before < spent.spent <= spent.allowance
    assert spent.remaining == pytest.approx(spent.allowance - spent.spent)


def test_what_promises_nothing_never_fits() -> None:
    spent = RdpFilter(BUDGET)
    with pytest.raises(BudgetExceededError):
        spent.spend(non_private_event())


def test_an_order_too_low_for_delta_is_refused_with_a_better_one() -> None:
    with pytest.raises(ValueError, match=r"Expected order=1.5 to leave room.*such as"):
        RdpFilter(BUDGET, order=1.5)
    with pytest.raises(ValueError, match="orders to be finite and > 1"):
        RdpFilter(BUDGET, order=1.0)


def test_a_curve_is_read_at_the_next_order_above() -> None:
    curve = RdpCurve((2.0, 8.0, 16.0), (0.02, 0.08, 0.16))
    spent = RdpFilter(BUDGET, order=10.0)
    spent.spend(curve)
    assert spent.spent == 0.16
    with pytest.raises(UnsupportedError, match="end at 16, below order=20"):
        RdpFilter(BUDGET, order=20.0).spend(curve)


EVENTS = st.one_of(
    st.floats(0.5, 60.0).map(gaussian_event),
    st.tuples(st.sampled_from([0.01, 0.1]), st.floats(0.7, 10.0)).map(
        lambda pair: poisson_sampled(pair[0], gaussian_event(pair[1]))
    ),
)


@pytest.mark.slow
@given(events=st.lists(EVENTS, max_size=8), epsilon_of_all=st.floats(0.5, 10.0))
@settings(max_examples=25, deadline=None)
def test_whatever_is_asked_the_budget_holds(events: list[object], epsilon_of_all: float) -> None:
    """What was let through never exceeds the budget by any accountant, and spending never falls."""
    spent = RdpFilter(Budget(epsilon_of_all, 1e-5))
    made, last = [], 0.0
    for event in events:
        fitted = spent.fits(event)
        try:
            spent.spend(event)
        except BudgetExceededError:
            assert not fitted
            continue
        made.append(event)
        assert fitted
        assert last < spent.spent <= spent.allowance
        last = spent.spent
    assert epsilon(composed(made), 1e-5, accountant="rdp") <= epsilon_of_all * (1 + 1e-9)


@given(scales=st.lists(st.floats(0.5, 50.0), min_size=1, max_size=6), extra=st.floats(0.5, 50.0))
@settings(max_examples=25, deadline=None)
def test_another_release_never_leaves_more(scales: list[float], extra: float) -> None:
    budget = Budget(1e4, 1e-5)
    few, many = RdpFilter(budget, order=4.0), RdpFilter(budget, order=4.0)
    for scale in scales:
        few.spend(gaussian_event(scale))
        many.spend(gaussian_event(scale))
    many.spend(gaussian_event(extra))
    assert many.remaining < few.remaining


@dataclass
class BrokenFilter:
    """Twin: adds up at all orders, and takes afterwards the order that suits what was spent."""

    budget: Budget
    spent: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(ORDERS)))

    def fits(self, event: object) -> bool:
        after = self.spent + np.array(rdp_curve(event, ORDERS, ADD_REMOVE).rdp)
        return bool(rdp_to_epsilon(after, ORDERS, 1e-5, "improved") <= self.budget.epsilon)

    def spend(self, event: object) -> None:
        """No refusal: an odometer, read after the release."""
        self.spent = self.spent + np.array(rdp_curve(event, ORDERS, ADD_REMOVE).rdp)


def order_is_fixed(kind: Callable[[Budget], Any], budget: Budget) -> bool:
    """Whether what fits is judged at one order, whatever is asked: by two kinds of release.

    At one order, what fits is a half-line of divergences: two releases of equal divergence at that
    order fit or fail together. Here they differ at every other order.
    """
    order = order_for(budget)
    allowance = rdp_allowance(budget, order)
    verdicts = set()
    for steep in (0.25, 1.0, 4.0):
        curve = tuple(1.02 * allowance * (known / order) ** steep for known in ORDERS)
        verdicts.add(kind(budget).fits(RdpCurve(tuple(ORDERS), curve)))
    return verdicts == {False}


def refuses_beforehand(kind: Callable[[Budget], Any], budget: Budget) -> bool:
    """Whether a release over the budget raises instead of being counted."""
    try:
        kind(budget).spend(repeated(gaussian_event(1.0), 1000))
    except BudgetExceededError:
        return True
    return False


def test_a_twin_that_chooses_the_order_afterwards_is_caught() -> None:
    assert order_is_fixed(RdpFilter, BUDGET)
    assert not order_is_fixed(BrokenFilter, BUDGET)


def test_a_twin_that_only_sums_is_caught() -> None:
    assert refuses_beforehand(RdpFilter, BUDGET)
    assert not refuses_beforehand(BrokenFilter, BUDGET)


def test_threads_do_not_spend_one_gap_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    paid = RdpFilter(BUDGET, order=10.0)
    release = gaussian_event((10.0 / (2 * 0.7 * paid.allowance)) ** 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(filters, "rdp_at", meeting(3, filters.rdp_at))
        made = outcomes(3, lambda: paid.spend(release))
    assert sorted(type(one).__name__ for one in made) == ["BudgetExceededError"] * 2 + ["NoneType"]
    assert paid.spent <= paid.allowance
    # A filter with its lock is a value still.
    other = pickle.loads(pickle.dumps(paid))
    assert other == paid
    assert copy.deepcopy(paid).spent == paid.spent
