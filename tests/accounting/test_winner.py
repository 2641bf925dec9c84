"""The cost of a winner against brute force: exact divergences, draws, and the proof of its tables.

The oracle integrates densities of noised counts; it knows nothing of scores and of three outcomes.
"""

import itertools
import math
import time

import numpy as np
import pytest
from scipy import special, stats

from privtrain.accounting.gnmax import DEFAULT_ORDERS
from privtrain.accounting.renyi import RdpCurve, rdp_to_epsilon
from privtrain.accounting.winner import (
    GAUSSIAN,
    LAPLACE,
    gnmax_check_rdp,
    gnmax_winner_rdp,
    lnmax_winner_rdp,
)
from tests.accounting.winner_proof import (
    PAIRS,
    Array,
    gaussian_proven,
    gaussian_starts_proven,
    laplace_box,
    laplace_cells,
    laplace_pairs,
    laplace_proven,
    laplace_starts_proven,
    proven,
)

ORDERS = np.array([1.05, 1.5, 2.0, 5.0, 16.0, 64.0, 200.0, 500.0])


def gaussian_log_chances(counts: Array, sigma: float) -> Array:
    """Logarithms of the chance of each class to win, by the trapezoidal rule over its own count."""
    middle = np.asarray(counts, dtype=np.float64) / sigma
    y = np.arange(middle.min() - 40, middle.max() + 40, 0.05)
    # Far-off classes win only where the others are far off, too: 40 deviations to either side.
    below = special.log_ndtr(y - middle[:, None])
    density = stats.norm.logpdf(y - middle[:, None])
    integrand = density + below.sum(axis=0) - below
    return np.asarray(special.logsumexp(integrand, axis=1) + math.log(0.05))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


def laplace_log_chances(counts: Array, scale: float) -> Array:
    """The same for Laplace noise, by Gauss's rule in pieces that end where densities have kinks."""
    middle = np.asarray(counts, dtype=np.float64) / scale
    kinks = np.unique(middle)
    ends = np.unique(np.concatenate([kinks, np.arange(kinks[0] - 38, kinks[-1] + 38, 0.8)]))
    half = np.diff(ends)[:, None] / 2
    y = (ends[:-1, None] + half + half * _NODES).ravel()
    weight = np.log((half * _WEIGHTS).ravel())
    below, density = (
        stats.laplace.logcdf(y - middle[:, None]),
        stats.laplace.logpdf(y - middle[:, None]),
    )
    return np.asarray(special.logsumexp(density + below.sum(axis=0) - below + weight, axis=1))


def divergences(log_p: Array, log_q: Array, orders: Array = ORDERS) -> Array:
    """Rényi divergences of two laws of winners, shape `(orders,)`."""
    log_p, log_q = log_p - special.logsumexp(log_p), log_q - special.logsumexp(log_q)
    powers = orders[:, None] * log_p + (1 - orders[:, None]) * log_q
    return np.asarray(special.logsumexp(powers, axis=1) / (orders - 1))


def moved(counts: Array, loses: int, gains: int | None) -> Array:
    after = np.array(counts, dtype=np.float64)
    after[loses] -= 1
    if gains is not None:
        after[gains] += 1
    return after


CHANCES = {"normal": gaussian_log_chances, "laplace": laplace_log_chances}
BOUNDS = {"normal": gnmax_winner_rdp, "laplace": lnmax_winner_rdp}


@pytest.mark.parametrize("noise", ["normal", "laplace"])
@pytest.mark.parametrize("scale", [0.7, 3.0, 40.0])
def test_no_exact_divergence_exceeds_the_bound(noise: str, scale: float) -> None:
    """Random counts of 2 to 10 classes, votes that move, vanish or appear, in both directions."""
    generator, bound = np.random.default_rng(3), BOUNDS[noise](scale, ORDERS)
    closest = 0.0
    for number in range(18):
        classes = 2 + number % 9
        spread = scale * generator.choice([0.1, 1.0, 4.0])
        counts = np.round(60 + generator.normal(0, spread, classes), number % 2)
        before = CHANCES[noise](counts, scale)
        pairs = list(itertools.permutations(range(classes), 2))
        for chosen in generator.permutation(len(pairs))[:3]:
            for gains in (pairs[chosen][1], None):
                after = CHANCES[noise](moved(counts, pairs[chosen][0], gains), scale)
                for one, other in ((before, after), (after, before)):
                    exact = divergences(one, other)
                    assert (exact <= bound * (1 + 1e-9) + 1e-13).all(), (counts, exact / bound)
                    closest = max(closest, float((exact / bound).max()))
    assert closest > 0.75  # these are bounds of this mechanism, not of anything


def gaps(scale: float) -> Array:
    """Differences of two counts: by the noise's scale, and as far as large orders look."""
    return np.concatenate([np.linspace(-2, 1, 31) * scale, -np.geomspace(0.3, 2_000, 50)])


@pytest.mark.parametrize("scale", [0.7, 3.0, 40.0])
def test_the_bound_is_nearly_reached_and_a_tenth_less_is_exceeded(scale: float) -> None:
    """Two classes at the worst gap, at every order."""
    bound, worst = gnmax_winner_rdp(scale, ORDERS), np.zeros(len(ORDERS))
    for gap in gaps(scale):
        pair = np.array([0.0, -gap]), np.array([-1.0, 1.0 - gap])
        exact = divergences(*(gaussian_log_chances(counts, scale) for counts in pair))
        worst = np.maximum(worst, exact)
    assert (worst > 0.96 * bound).all()
    assert (worst <= bound * (1 + 1e-9)).all()


def test_a_third_class_makes_an_answer_dearer_than_two_alone() -> None:
    """The supremum is over three outcomes: that of two classes is no bound of many."""
    sigma, many = 100.0, 1e30
    # So many other classes that their largest noised count hardly varies; its median is -0.74.
    distance = special.ndtri_exp(math.log(math.log(2) / many))
    y = np.arange(-6, 9, 0.005)
    rest = np.exp(-many * special.ndtr(distance - (y + 0.74)))

    def winners(u: float, v: float) -> Array:
        i, j = (
            float((stats.norm.pdf(y - mine) * special.ndtr(y - other) * rest).sum() * 0.005)
            for mine, other in ((u, v), (v, u))
        )
        return np.log([i, j, 1 - i - j])

    half = 0.5 / sigma
    (exact,) = divergences(winners(half, -half), winners(-half, half), np.array([2.0]))
    two = 2 * 2 / math.pi / sigma**2  # order x 2 / (pi sigma^2)
    assert 1.004 * two < exact <= float(gnmax_winner_rdp(sigma, [2.0])[0])


def test_a_check_costs_no_more_than_its_bound_whatever_the_threshold() -> None:
    for sigma in (0.7, 3.0, 150.0):
        bound, worst = gnmax_check_rdp(sigma, ORDERS), np.zeros(len(ORDERS))
        for offset in np.concatenate([gaps(sigma), -gaps(sigma)]):
            here, there = (
                np.array([special.log_ndtr(x / sigma), special.log_ndtr(-x / sigma)])
                for x in (offset, offset - 1)
            )
            for pair in ((here, there), (there, here)):
                worst = np.maximum(worst, divergences(*pair))
        assert (worst <= bound * (1 + 1e-9)).all()
        assert (worst > 0.96 * bound).all()
        assert (bound <= ORDERS / (2 * sigma**2)).all()


def test_two_votes_cost_no_more_than_the_curve_of_a_group_of_two() -> None:
    """A replaced row may move two votes: from one class, to one class, or between four."""
    generator = np.random.default_rng(5)
    orders = tuple(DEFAULT_ORDERS)
    shown = [orders.index(min(orders, key=lambda o: abs(o - want))) for want in (1.1, 2, 8, 60)]
    grid = np.array(orders)[shown]
    for sigma in (2.0, 20.0):
        curve = RdpCurve(orders, tuple(gnmax_winner_rdp(sigma, orders))).of_two()
        bound = np.array(curve.rdp)[shown]
        # Decision 022: the same shift twice is half the noise.
        np.testing.assert_allclose(gnmax_winner_rdp(sigma / 2, grid), bound, rtol=2e-3)
        largest = 0.0
        for number in range(12):
            counts = 50 + generator.normal(0, sigma, 4)
            first = (0, 1)
            second = ((0, 1), (2, 3), (0, 2), (2, 1))[number % 4]
            after = moved(moved(counts, *first), *second)
            pair = gaussian_log_chances(counts, sigma), gaussian_log_chances(after, sigma)
            for one, other in (pair, pair[::-1]):
                exact = divergences(one, other, grid)
                assert (exact <= bound).all()
                largest = max(largest, float((exact / bound).max()))
        # One vote's curve would not do.
        assert largest > 0.5


def test_an_attacker_who_counts_winners_stays_below_the_stated_epsilon() -> None:
    """25 answers at the worst counts, 100,000 runs: refuted if the cost were half of it."""
    answers, sigma, runs, delta = 25, 5.0, 100_000, 0.01
    generator = np.random.default_rng(11)
    wins = []
    for counts in ((0.0, 1.0), (1.0, 0.0)):
        # Drawn as the mechanism does: noise on each count, and the place of the largest.
        made = np.zeros(runs, dtype=np.int64)
        for _ in range(answers):
            noised = np.array(counts) + sigma * generator.standard_normal((runs, 2))
            made += noised.argmax(axis=1)
        wins.append(made)
    curve = answers * gnmax_winner_rdp(sigma, DEFAULT_ORDERS)
    stated, smaller = (
        rdp_to_epsilon(part * curve, DEFAULT_ORDERS, delta, "improved") for part in (1.0, 0.5)
    )

    def shown(epsilon: float) -> float:
        """The delta that is certain (error 1e-5 each) at an epsilon: the best of all thresholds."""
        best = 0.0
        # Chosen by the laws, not by the draws: more wins of the second class mean the first counts.
        for threshold in range(8, 25):
            often, seldom = int((wins[0] >= threshold).sum()), int((wins[1] >= threshold).sum())
            low = stats.beta.ppf(1e-5, often, runs - often + 1) if often else 0.0
            high = stats.beta.ppf(1 - 1e-5, seldom + 1, runs - seldom)
            best = max(best, low - math.exp(epsilon) * high)
        return best

    assert shown(stated) < delta
    assert shown(smaller) > delta


# ------------------------------------------------------------------------------- published figures


@pytest.mark.parametrize(
    ("answers", "sigma", "least", "most", "plain"),
    [(1_000, 96.14, 1.42, 1.60, 1.9993), (286, 50.0, 1.45, 1.66, 2.0620)],
)
def test_golden_epsilons(
    answers: int, sigma: float, least: float, most: float, plain: float
) -> None:
    """Delta 1e-5: 1.57 and 1.62, where order / sigma^2 gives 2.00 and 2.06.

    All gaps zero, two classes: a Gaussian with mu = sqrt(2 / pi) sqrt(2 answers) / sigma is at
    least as well hidden as many such answers, so that no bound may state less.
    """
    grid = np.array(DEFAULT_ORDERS)
    found = rdp_to_epsilon(answers * gnmax_winner_rdp(sigma, grid), grid, 1e-5, "improved")
    assert least < found < most
    before = rdp_to_epsilon(answers * grid / sigma**2, grid, 1e-5, "improved")
    assert before == pytest.approx(plain, abs=1e-3)

    mu = math.sqrt(2 / math.pi) * math.sqrt(2 * answers) / sigma
    from privtrain.accounting.epsilon import epsilon
    from privtrain.accounting.event import gaussian_event

    assert epsilon(gaussian_event(1 / mu), 1e-5) < found


def test_small_orders_cost_two_thirds_and_large_ones_what_the_histogram_does() -> None:
    grid = np.array(DEFAULT_ORDERS)
    ratio = gnmax_winner_rdp(2_000.0, grid) * 2_000.0**2 / grid
    assert (np.abs(ratio - 0.641) < 0.008).all()
    ratio = gnmax_winner_rdp(10.0, grid) * 100 / grid
    assert (np.diff(ratio) > -2e-3).all()
    assert ratio[grid > 300].min() > 0.98
    assert (ratio <= 1 + 1e-12).all()
    # Beyond the table's end the bound is that of the histogram.
    assert gnmax_winner_rdp(0.5, [500.0])[0] == 500 / 0.25
    # LNMax: two thirds of order / b^2, and never above 2 / b.
    ratio = lnmax_winner_rdp(2_000.0, grid) * 2_000.0**2 / grid
    assert (np.abs(ratio - 2 / 3) < 0.02).all()
    assert (lnmax_winner_rdp(5.0, grid) <= 2 / 5).all()
    assert lnmax_winner_rdp(5.0, [500.0])[0] > 0.37


@pytest.mark.parametrize("bound", [gnmax_winner_rdp, gnmax_check_rdp, lnmax_winner_rdp])
def test_more_noise_never_costs_more_and_larger_orders_never_less(bound: object) -> None:
    assert callable(bound)
    scales = np.geomspace(0.3, 1e8, 500)
    curves = np.array([bound(float(scale), DEFAULT_ORDERS) for scale in scales])
    assert (np.diff(curves, axis=0) <= 1e-12 * curves[:-1]).all()
    # Chords between the figures of a table lie up to 0.2% above what they bound.
    assert (np.diff(curves, axis=1) >= -2e-3 * curves[:, 1:]).all()
    assert (curves > 0).all()


def test_ten_thousand_answers_take_no_time() -> None:
    began = time.process_time()
    for _ in range(20):
        10_000 * gnmax_winner_rdp(40.0, DEFAULT_ORDERS)
    assert (time.process_time() - began) / 20 < 0.1


@pytest.mark.parametrize("bound", [gnmax_winner_rdp, gnmax_check_rdp, lnmax_winner_rdp])
@pytest.mark.parametrize(
    ("scale", "orders"), [(0.0, [2.0]), (math.nan, [2.0]), (1.0, [1.0]), (1.0, [])]
)
def test_wrong_arguments(bound: object, scale: float, orders: list[float]) -> None:
    assert callable(bound)
    with pytest.raises(ValueError, match="Expected"):
        bound(scale, orders)


# ----------------------------------------------------------------------------- the tables' proof


@pytest.mark.parametrize("place", range(0, len(LAPLACE), 16))
def test_figures_for_laplace_noise_are_proved_again(place: int) -> None:
    assert laplace_proven(place)


def test_a_figure_for_normal_noise_is_proved_again_with_room() -> None:
    """5% more than the figure, which takes a second; the figures themselves are slow."""
    assert gaussian_proven(40, 1.05)


def test_what_is_false_is_not_proved() -> None:
    """However fine the cells: the supremum for Laplace noise at zero is two thirds."""
    box = laplace_box(0.0)
    assert proven(laplace_cells, box, 0.0, 0.67)
    assert not proven(laplace_cells, box, 0.0, 0.6666, most=100_000)
    assert proven(laplace_pairs, PAIRS, 0.0, 0.502)
    assert not proven(laplace_pairs, PAIRS, 0.0, 0.499, levels=4)


@pytest.mark.slow
def test_the_first_figures_hold_for_all_smaller_arguments() -> None:
    assert gaussian_starts_proven()
    assert laplace_starts_proven()


@pytest.mark.slow
@pytest.mark.parametrize("place", range(0, len(GAUSSIAN), 18))
def test_some_figures_for_normal_noise_are_proved_again(place: int) -> None:
    """All of them by `python -m tests.accounting.winner_proof`."""
    assert gaussian_proven(place)


@pytest.mark.slow
def test_every_figure_for_laplace_noise_is_proved_again() -> None:
    assert all(laplace_proven(place) for place in range(len(LAPLACE)))


def test_the_scores_of_the_proof_are_those_of_the_mechanism() -> None:
    """By the oracle: derivatives of log-probabilities, at points between the corners of cells."""
    from tests.accounting.winner_proof import gaussian_tails, laplace_win

    for d, w in ((0.3, 1.0), (-2.0, 0.5), (-7.0, 4.0)):
        u, v = (w + d) / math.sqrt(2), (w - d) / math.sqrt(2)
        y = np.arange(0, 20, 1e-3)

        def win(u: float, v: float, y: Array = y) -> float:
            parts = stats.norm.pdf(y - u) * special.ndtr(y - v)
            return float(np.trapezoid(parts, y))

        low, high, score = (float(part[0, 0]) for part in gaussian_tails(d, 2, 0.01, np.array([w])))
        assert low <= math.log(win(u, v)) + 1e-6
        assert high >= math.log(win(u, v)) - 1e-6
        assert high - low < 1e-4
        slope = (win(u + 1e-4, v - 1e-4) - win(u - 1e-4, v + 1e-4)) / 2e-4
        assert score == pytest.approx(math.log(slope / win(u, v)), abs=1e-4)

    for u, v in ((0.5, -0.5), (-2.0, 1.0), (2.0, 3.0), (3.0, -1.0)):
        others = np.exp(laplace_log_chances(np.array([u, v]), 1.0))
        assert others.sum() == pytest.approx(1)
        y = np.arange(0, 45, 1e-3)
        parts = stats.laplace.pdf(y - u) * stats.laplace.cdf(y - v)
        chance, slope = laplace_win(np.array(u), np.array(v))
        assert float(chance) == pytest.approx(float(np.trapezoid(parts, y)), abs=1e-6)
        ends = [float(laplace_win(np.array(u + h), np.array(v - h))[0]) for h in (-1e-6, 1e-6)]
        assert float(slope) == pytest.approx((ends[1] - ends[0]) / 2e-6, abs=1e-6)


def test_log_psi_is_what_it_says() -> None:
    import mpmath

    from tests.accounting.winner_proof import log_psi

    x = np.array([-40.0, -0.71, -0.69, -1e-6, 1e-6, 0.69, 0.71, 30.0, 800.0])
    with mpmath.workdps(60):
        exact = [float(mpmath.log(mpmath.exp(v) - 1 - v)) for v in map(mpmath.mpf, x.tolist())]
    np.testing.assert_allclose(log_psi(x), exact, rtol=1e-9)
