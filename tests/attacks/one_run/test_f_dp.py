"""The test of a whole trade-off curve: against its linear program, and on known mechanisms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import binom, norm

from privtrain.accounting.curves import gaussian_epsilon, smallest_miss, wide_pairs
from privtrain.accounting.event import gaussian_event
from privtrain.attacks.one_run import f_dp

PAIRS = [
    [(1e-3, 0.7)],
    [(1e-4, 1.0), (1e-2, 0.5), (0.1, 0.2)],
    [(1e-4, 2.0), (0.05, 1.0), (0.2, 0.3)],
]


def by_linear_program(
    pairs: list[tuple[float, float]], canaries: int, guesses: int, correct: int
) -> float:
    """The largest P[W >= correct] of any law that obeys the inequalities of the module."""
    counts = np.arange(guesses + 1)
    rows, limits = [], []
    for j in range(1, guesses + 1):
        right = np.where(counts >= j, counts, 0) / canaries
        wrong = np.where(counts >= j - 1, guesses - counts, 0) / canaries
        for delta, epsilon in pairs:
            growth = math.exp(epsilon)
            rows += [right - growth * wrong, growth * right - wrong]
            limits += [delta, growth - (1 - delta)]
    found = linprog(
        -(counts >= correct).astype(float),
        A_ub=np.array(rows),
        b_ub=np.array(limits),
        A_eq=np.ones((1, guesses + 1)),
        b_eq=[1.0],
    )
    assert found.status == 0
    return -float(found.fun)


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize(
    ("canaries", "guesses", "correct"),
    [(8, 8, 6), (20, 20, 15), (30, 12, 9), (30, 12, 12), (40, 40, 30), (10, 10, 4), (9, 1, 1)],
)
def test_the_recursion_solves_the_linear_program(
    pairs: list[tuple[float, float]], canaries: int, guesses: int, correct: int
) -> None:
    found = f_dp.p_value(
        f_dp.least_wrong(pairs), canaries=canaries, guesses=guesses, correct=correct
    )
    expected = by_linear_program(pairs, canaries, guesses, correct)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


@given(st.lists(st.tuples(st.floats(1e-9, 0.9), st.floats(0, 9)), min_size=1, max_size=5))
def test_the_least_wrong_is_the_trade_off_function_at_the_other_error(
    pairs: list[tuple[float, float]],
) -> None:
    right = np.linspace(0, 1, 101)
    expected = smallest_miss(pairs, 1 - right)
    np.testing.assert_allclose(f_dp.least_wrong(pairs)(right), expected, atol=1e-12)


def test_the_accountants_curve_of_a_gaussian_lies_just_below_the_gaussian_one() -> None:
    right = np.linspace(0, 1, 201)
    curve = f_dp.least_wrong(wide_pairs(gaussian_event(1.0)))(right)
    exact = f_dp.gaussian_least_wrong(1.0)(right)
    assert (curve <= exact + 1e-6).all()
    assert (curve >= exact - 0.01).all()


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("canaries", [50, 400])
def test_a_mechanism_that_keeps_the_curve_is_not_less_likely_than_the_p_value(
    mu: float, canaries: int
) -> None:
    """Each coin with Gaussian noise of its own: guessed right with probability Phi(mu / 2)."""
    right = float(norm.cdf(mu / 2))
    curve = f_dp.gaussian_least_wrong(mu)
    for tail in (0.3, 0.05, 1e-3, 1e-5):
        correct = int(binom.isf(tail, canaries, right))
        found = f_dp.p_value(curve, canaries=canaries, guesses=canaries, correct=correct)
        assert found >= binom.sf(correct - 1, canaries, right)


def test_a_mechanism_that_leaks_all_coins_at_once_is_not_rejected_too_often() -> None:
    """The worst that a curve allows: nothing as a rule, and everything with probability delta."""
    for delta in (0.01, 0.05, 0.3):
        curve = f_dp.least_wrong([(delta, 0.0)])
        for canaries in (20, 200):
            found = f_dp.p_value(curve, canaries=canaries, guesses=canaries, correct=canaries)
            # The coins are all told with probability delta, and guessed with 2^-canaries.
            assert found >= delta * (1 - 1e-6)
            assert found < 2.5 * delta + 0.01


def right_guesses(
    mu: float, canaries: int, guesses: int, rng: np.random.Generator
) -> int:  # the best guesses there are for a Gaussian of this mu
    coins = rng.random(canaries) < 0.5
    order = np.argsort(mu * coins + rng.normal(size=canaries))
    half = guesses // 2
    return int((~coins[order[:half]]).sum() + coins[order[-half:]].sum())


def test_the_true_curve_is_rejected_no_more_often_than_stated() -> None:
    rng = np.random.default_rng(0)
    curve = f_dp.gaussian_least_wrong(1.0)
    found = [right_guesses(1.0, 1_000, 100, rng) for _ in range(300)]
    p_values = {v: f_dp.p_value(curve, canaries=1_000, guesses=100, correct=v) for v in set(found)}
    rejected = sum(p_values[v] <= 0.05 for v in found)
    assert rejected <= 32  # Binomial(300, 0.05) exceeds it with probability 1e-4


def test_half_the_noise_is_rejected() -> None:
    """Power: noise multiplier 2 is stated, 1 is drawn; the p-value is about 5e-6."""
    rng = np.random.default_rng(1)
    curve = f_dp.gaussian_least_wrong(0.5)
    for _ in range(3):
        correct = right_guesses(1.0, 100_000, 1_000, rng)
        assert f_dp.p_value(curve, canaries=100_000, guesses=1_000, correct=correct) <= 1e-4


def test_the_gaussian_family_stays_below_the_truth_and_above_the_general_bound() -> None:
    from privtrain.attacks.one_run.bounds import epsilon_bound

    correct = right_guesses(1.0, 1_000, 1_000, np.random.default_rng(2))
    at = {"canaries": 1_000, "guesses": 1_000, "correct": correct, "delta": 1e-5}
    family = f_dp.gaussian_epsilon_bound(**at)  # type: ignore[arg-type]
    assert epsilon_bound(**at) < family <= gaussian_epsilon(1.0, 1e-5)  # type: ignore[arg-type]
    # What it reports is where the p-value crosses the false-alarm rate.
    for factor, rejects in ((0.99, True), (1.01, False)):
        mu = factor * _mu_of(family)
        found = f_dp.p_value(
            f_dp.gaussian_least_wrong(mu), canaries=1_000, guesses=1_000, correct=correct
        )
        assert (found <= 0.05) is rejects


def _mu_of(epsilon: float) -> float:
    from privtrain.accounting.curves import gaussian_mu

    found = gaussian_mu(epsilon, 1e-5)
    assert found is not None
    return found


def test_nothing_promised_and_nothing_guessed_reject_nothing() -> None:
    nothing = f_dp.least_wrong([(1e-5, math.inf)])
    assert f_dp.p_value(nothing, canaries=100, guesses=100, correct=100) == 1.0
    strict = f_dp.gaussian_least_wrong(0.1)
    assert f_dp.p_value(strict, canaries=100, guesses=100, correct=50) == 1.0
    assert f_dp.p_value(strict, canaries=100, guesses=100, correct=0) == 1.0
    assert f_dp.gaussian_epsilon_bound(canaries=9, guesses=9, correct=4, delta=1e-5) == 0.0


def test_the_epsilon_of_a_gaussian_is_the_published_one() -> None:
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.3772, abs=1e-4)
    assert gaussian_epsilon(1e-7, 0.1) == 0.0
