"""The vote analyses against plain loops in high precision, and against the exact mechanism."""

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats

from privtrain.accounting.epsilon import epsilon
from privtrain.accounting.gnmax import (
    DEFAULT_ORDERS,
    _log1mexp,
    gnmax_curve,
    gnmax_log_q,
    gnmax_rdp,
    lnmax_curve,
    lnmax_log_q,
    lnmax_rdp,
    theorem_6_holds,
)
from privtrain.accounting.renyi import rdp_to_epsilon
from privtrain.core.statement import Relation

Array = NDArray[np.float64]
ORDERS = np.array([1.05, 1.5, 2.0, 4.7, 16.0, 63.0, 64.5, 200.0, 499.5, 500.0])
PROPERTY = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
VOTES = arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(2, 10)),
    elements=st.integers(0, 250).map(float),
)
SCALES = st.floats(0.5, 200.0)


def gnmax_oracle(votes: Array, sigma: float, orders: Array) -> list[list[mpmath.mpf]]:
    """Papernot et al. 2018, as printed, one query and one order at a time, in 400 digits."""
    with mpmath.workdps(400):
        return [
            [_gnmax_one(row, mpmath.mpf(sigma), mpmath.mpf(a)) for a in orders] for row in votes
        ]


def _gnmax_one(counts: Array, sigma: mpmath.mpf, order: mpmath.mpf) -> mpmath.mpf:
    winner = int(np.argmax(counts))
    q = sum(
        mpmath.erfc((mpmath.mpf(counts[winner]) - mpmath.mpf(count)) / (2 * sigma)) / 2
        for index, count in enumerate(counts)
        if index != winner
    )  # Proposition 7
    q = min(q, 1 - mpmath.mpf(1) / len(counts))
    independent = order / sigma**2  # Proposition 8
    mu2 = sigma * mpmath.sqrt(mpmath.log(1 / q))  # Proposition 10
    mu1 = mu2 + 1
    if mu2 <= 1 or order > mu1:
        return independent
    epsilon1, epsilon2 = mu1 / sigma**2, mu2 / sigma**2
    ceiling = mpmath.exp((mu2 - 1) * epsilon2) / (mu1 / (mu1 - 1) * mu2 / (mu2 - 1)) ** mu2
    if q > ceiling or q * mpmath.exp(epsilon2) >= 1:
        return independent
    a = (1 - q) / (1 - (q * mpmath.exp(epsilon2)) ** ((mu2 - 1) / mu2))
    b = mpmath.exp(epsilon1) / q ** (1 / (mu1 - 1))
    dependent = mpmath.log((1 - q) * a ** (order - 1) + q * b ** (order - 1)) / (order - 1)
    return min(independent, dependent)


def lnmax_oracle(votes: Array, scale: float, orders: Array) -> list[list[mpmath.mpf]]:
    """Papernot et al. 2017, as printed, one query and one moment at a time, in 400 digits."""
    with mpmath.workdps(400):
        return [
            [_lnmax_one(row, mpmath.mpf(scale), mpmath.mpf(a)) for a in orders] for row in votes
        ]


def _lnmax_one(counts: Array, scale: mpmath.mpf, order: mpmath.mpf) -> mpmath.mpf:
    gamma, moment = 1 / scale, order - 1
    winner = int(np.argmax(counts))
    gaps = [gamma * mpmath.mpf(counts[winner] - c) for i, c in enumerate(counts) if i != winner]
    q = sum((2 + gap) / (4 * mpmath.exp(gap)) for gap in gaps)  # Lemma 4
    q = min(q, 1 - mpmath.mpf(1) / len(counts))
    bounds = [2 * gamma**2 * moment * (moment + 1), 2 * gamma * moment]  # Theorem 2; pure DP
    if q < (mpmath.exp(2 * gamma) - 1) / (mpmath.exp(4 * gamma) - 1):  # Theorem 3
        stays = (1 - q) * ((1 - q) / (1 - mpmath.exp(2 * gamma) * q)) ** moment
        bounds.append(mpmath.log(stays + q * mpmath.exp(2 * gamma * moment)))
    return min(bounds) / moment


def agree(ours: Array, oracle: list[list[mpmath.mpf]]) -> None:
    for row, expected in zip(ours, oracle, strict=True):
        for value, exact in zip(row, expected, strict=True):
            # Below the smallest normal float there are no ten digits to compare.
            assert abs(value - exact) <= 1e-10 * exact + mpmath.mpf("1e-300"), (value, exact)


CASES = np.array(
    [
        [250.0, 0.0, 0.0],
        [249.0, 1.0, 0.0],
        [200.0, 30.0, 20.0],
        [130.0, 120.0, 0.0],
        [84.0, 83.0, 83.0],
        [100.0, 100.0, 50.0],
        [0.0, 0.0, 0.0],
        [10_000.0, 0.0, 0.0],
        [12.5, 3.25, 0.5],
    ]
)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0, 20.0, 40.0, 150.0, 1000.0])
def test_both_equal_the_formulas_as_printed(scale: float) -> None:
    agree(gnmax_rdp(CASES, scale, ORDERS), gnmax_oracle(CASES, scale, ORDERS))
    agree(lnmax_rdp(CASES, scale, ORDERS), lnmax_oracle(CASES, scale, ORDERS))


def conditions(log_q: float, sigma: float) -> tuple[bool, bool, bool]:
    """The conditions of Theorem 6 as printed, at the orders of Proposition 10, in 60 digits."""
    with mpmath.workdps(60):
        q, s = mpmath.exp(log_q), mpmath.mpf(sigma)
        mu2 = s * mpmath.sqrt(mpmath.log(1 / q))
        if mu2 <= 1:
            return False, False, False
        mu1, epsilon2 = mu2 + 1, mu2 / s**2
        ceiling = mpmath.exp((mu2 - 1) * epsilon2) / (mu1 / (mu1 - 1) * mu2 / (mu2 - 1)) ** mu2
        return True, bool(q * mpmath.exp(epsilon2) < 1), bool(q <= ceiling)


def test_theorem_6_is_used_where_its_conditions_hold_and_nowhere_else() -> None:
    log_q, refused = -np.geomspace(1e-3, 1e3, 200), 0
    for sigma in (0.4, 0.8, 1.2, 2.0, 5.0, 30.0):
        expected = [conditions(float(value), sigma) for value in log_q]
        assert theorem_6_holds(log_q, sigma).tolist() == [all(three) for three in expected]
        refused += sum(three == (True, True, False) for three in expected)
    # The bound on q decides alone often enough for a wrong sign in it to show.
    assert refused > 100


def test_the_probability_of_the_winner_is_exact_at_either_end() -> None:
    x = np.array([-1e-15, -1e-9, -1e-3, -0.5, -1.0, -2.0, -40.0, -700.0])
    with mpmath.workdps(400):
        exact = [float(mpmath.log(1 - mpmath.exp(mpmath.mpf(float(value))))) for value in x]
    np.testing.assert_allclose(_log1mexp(x), exact, rtol=1e-14)


@pytest.mark.slow
@PROPERTY
@given(votes=VOTES, scale=SCALES)
def test_any_votes_equal_the_formulas_as_printed(votes: Array, scale: float) -> None:
    orders = ORDERS[::3]
    agree(gnmax_rdp(votes, scale, orders), gnmax_oracle(votes, scale, orders))
    agree(lnmax_rdp(votes, scale, orders), lnmax_oracle(votes, scale, orders))


@PROPERTY
@given(votes=VOTES, scale=SCALES)
def test_the_data_dependent_bound_is_never_worse(votes: Array, scale: float) -> None:
    assert (gnmax_rdp(votes, scale, ORDERS) <= ORDERS / scale**2 * (1 + 1e-15)).all()
    pure = 2 / scale
    independent = np.minimum(pure, ORDERS * pure**2 / 2)
    assert (lnmax_rdp(votes, scale, ORDERS) <= independent * (1 + 1e-15)).all()
    for rdp in (gnmax_rdp(votes, scale, ORDERS), lnmax_rdp(votes, scale, ORDERS)):
        assert np.isfinite(rdp).all()
        assert (rdp >= 0).all()
        assert rdp.shape == (len(votes), len(ORDERS))


@PROPERTY
@given(votes=VOTES, scale=SCALES, seed=st.integers(0, 1000))
def test_the_names_of_classes_do_not_matter(votes: Array, scale: float, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(votes.shape[1])
    for rdp in (gnmax_rdp, lnmax_rdp):
        renamed = rdp(votes[:, order], scale, ORDERS)
        np.testing.assert_allclose(renamed, rdp(votes, scale, ORDERS), rtol=1e-12)


@pytest.mark.parametrize("rdp", [gnmax_rdp, lnmax_rdp])
@pytest.mark.parametrize("scale", [5.0, 40.0])
def test_clearer_votes_cost_less(rdp: Callable[..., Array], scale: float) -> None:
    gaps = np.arange(0, 251, 5, dtype=np.float64)
    votes = np.stack([(250 + gaps) / 2, (250 - gaps) / 2], axis=1)
    costs = rdp(votes, scale, ORDERS)
    assert (np.diff(costs, axis=0) <= 1e-12 * costs[:-1]).all()
    assert (costs[-1] < costs[0]).any()


def bernoulli_divergence(log_p: tuple[float, float], log_q: tuple[float, float], a: float) -> float:
    """The Rényi divergence of two binary answers, from logarithms of their probabilities."""
    terms = [a * p + (1 - a) * q for p, q in zip(log_p, log_q, strict=True)]
    return float(np.logaddexp(*terms)) / (a - 1)


def gnmax_answers(gap: float, sigma: float) -> tuple[float, float]:
    """Log Pr of the first and of the second of two classes, exactly."""
    shift = gap / (math.sqrt(2) * sigma)
    return float(stats.norm.logcdf(shift)), float(stats.norm.logsf(shift))


def lnmax_answers(gap: float, scale: float) -> tuple[float, float]:
    """The difference of two Laplace variables: Pr[D > x] = (2 + x/b) exp(-x/b) / 4 for x >= 0."""
    x = abs(gap) / scale
    tail = (2 + x) / 4 * math.exp(-x)
    pair = (math.log1p(-tail), math.log(tail))
    return pair if gap >= 0 else (pair[1], pair[0])


@pytest.mark.parametrize("scale", [2.0, 5.0, 20.0])
@pytest.mark.parametrize(
    ("rdp", "answers"), [(gnmax_rdp, gnmax_answers), (lnmax_rdp, lnmax_answers)]
)
def test_the_exact_mechanism_stays_below_the_bound(
    rdp: Callable[..., Array],
    answers: Callable[[float, float], tuple[float, float]],
    scale: float,
) -> None:
    """With two classes the answer is one biased coin; one vote moved changes the gap by 2."""
    votes = np.stack([np.arange(50.0, 101.0), np.arange(50.0, -1.0, -1.0)], axis=1)
    orders = ORDERS[ORDERS < 100]
    bounds = rdp(votes, scale, orders)
    closest = math.inf
    for (first, second), row in zip(votes, bounds, strict=True):
        here = answers(first - second, scale)
        for moved in (-2.0, 2.0):
            there = answers(first - second + moved, scale)
            for order, bound in zip(orders, row, strict=True):
                exact = bernoulli_divergence(here, there, order)
                assert exact <= bound * (1 + 1e-9)
                closest = min(closest, bound / max(exact, 1e-300))
    assert closest < 20  # the bounds are bounds of this mechanism, not of anything


def test_log_q_bounds_the_probability_of_another_answer() -> None:
    votes = np.array([[60.0, 50.0, 40.0, 10.0]])
    generator = np.random.default_rng(7)
    draws = 400_000
    gauss = votes + generator.normal(0, 10.0, (draws, 4))
    laplace = votes + generator.laplace(0, 10.0, (draws, 4))
    for noisy, log_q in ((gauss, gnmax_log_q(votes, 10.0)), (laplace, lnmax_log_q(votes, 10.0))):
        measured = float((noisy.argmax(axis=1) != 0).mean())
        # 4 standard deviations of the measurement: a false alarm rate below 1e-4.
        assert measured <= math.exp(log_q[0]) + 4 * math.sqrt(0.25 / draws)
        assert measured >= 0.5 * math.exp(log_q[0])


def test_probabilities_far_below_a_float_still_count() -> None:
    agreed = np.array([[1e6, 0.0], [1e160, 0.0], [1e300, 0.0]])
    for rdp in (gnmax_rdp(agreed, 1.0, ORDERS), lnmax_rdp(agreed, 1.0, ORDERS)):
        assert np.isfinite(rdp).all()
        assert (rdp[:, :4] < 1e-100).all()
    assert gnmax_log_q(agreed[:1], 1.0)[0] == pytest.approx(-1e12 / 4, rel=1e-9)


def test_tensors_lists_and_integers_are_votes_too() -> None:
    expected = gnmax_rdp(CASES, 4.0, ORDERS)
    tensor = torch.tensor(CASES, requires_grad=True)
    np.testing.assert_array_equal(gnmax_rdp(tensor, 4.0, ORDERS), expected)
    np.testing.assert_array_equal(gnmax_rdp(CASES.tolist(), 4.0, ORDERS.tolist()), expected)
    whole = np.array([[250, 0, 0], [100, 90, 60]])
    np.testing.assert_array_equal(
        gnmax_rdp(whole, 4.0, [2, 500]), gnmax_rdp(whole.astype(float), 4.0, [2.0, 500.0])
    )
    assert gnmax_rdp(np.zeros((0, 3)), 4.0, ORDERS).shape == (0, len(ORDERS))


@pytest.mark.parametrize(
    ("votes", "scale", "orders"),
    [
        ([[1.0, math.nan]], 1.0, [2.0]),
        ([[1.0, math.inf]], 1.0, [2.0]),
        ([[1.0, -1.0]], 1.0, [2.0]),
        ([[1.0]], 1.0, [2.0]),
        ([1.0, 2.0], 1.0, [2.0]),
        ([[1.0, 2.0]], 0.0, [2.0]),
        ([[1.0, 2.0]], math.nan, [2.0]),
        ([[1.0, 2.0]], 1.0, [1.0]),
        ([[1.0, 2.0]], 1.0, [math.inf]),
        ([[1.0, 2.0]], 1.0, []),
    ],
)
def test_wrong_arguments(votes: list[list[float]], scale: float, orders: list[float]) -> None:
    for rdp in (gnmax_rdp, lnmax_rdp):
        with pytest.raises(ValueError, match="Expected"):
            rdp(votes, scale, orders)


def test_curves_add_queries_and_take_no_factor() -> None:
    votes = np.array([[200.0, 30.0, 20.0], [130.0, 120.0, 0.0]])
    pairs = ((gnmax_curve, gnmax_rdp), (lnmax_curve, lnmax_rdp))
    for curve_of, rdp in pairs:
        curve = curve_of(votes, 20.0)
        assert curve.orders == DEFAULT_ORDERS
        total = rdp(votes, 20.0, DEFAULT_ORDERS).sum(axis=0)
        np.testing.assert_allclose(curve.rdp, total)
        for relation in Relation:
            value = epsilon(curve, 1e-5, relation=relation, accountant="rdp")
            assert value == rdp_to_epsilon(total, DEFAULT_ORDERS, 1e-5, "improved")


def test_default_orders_are_dense_floats_up_to_500() -> None:
    steps = np.array(DEFAULT_ORDERS)
    assert steps[0] > 1
    assert steps[-1] == 500.0
    assert (np.diff(steps) > 0).all()
    assert (np.diff(steps - 1) / (steps[:-1] - 1) < 0.024).all()
