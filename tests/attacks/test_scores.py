import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from privtrain.attacks import scores

# A coarse grid makes ties common.
values = st.one_of(st.integers(-5, 5).map(float), st.just(-math.inf))
samples = arrays(np.float64, st.integers(1, 30), elements=values)


def auc_by_loop(members: np.ndarray, non_members: np.ndarray) -> float:
    won = [(m > n) + 0.5 * (m == n) for m in members for n in non_members]
    return float(sum(won) / len(won))


def roc_by_loop(members: np.ndarray, non_members: np.ndarray) -> list[tuple[float, float]]:
    points = [(0.0, 0.0)]
    for threshold in sorted({*members, *non_members}, reverse=True):
        fpr = sum(n >= threshold for n in non_members) / len(non_members)
        tpr = sum(m >= threshold for m in members) / len(members)
        points.append((fpr, tpr))
    return points


def delong_by_loop(members: np.ndarray, non_members: np.ndarray) -> float:
    """DeLong's variance from its definition."""
    psi = np.array([[(m > n) + 0.5 * (m == n) for n in non_members] for m in members])
    area = psi.mean()
    rows, columns = psi.mean(axis=1), psi.mean(axis=0)
    s10 = sum((rows - area) ** 2) / (len(members) - 1)
    s01 = sum((columns - area) ** 2) / (len(non_members) - 1)
    return float(s10 / len(members) + s01 / len(non_members))


def tpr_by_loop(members: np.ndarray, non_members: np.ndarray, fpr: float) -> tuple[float, float]:
    best = (0.0, 0.0)
    for threshold in {*members, *non_members}:
        realised = sum(n >= threshold for n in non_members) / len(non_members)
        if realised <= fpr:
            tpr = sum(m >= threshold for m in members) / len(members)
            best = max(best, (tpr, realised))
    return best


@given(samples, samples)
def test_auc_equals_the_loop_over_pairs(members: np.ndarray, non_members: np.ndarray) -> None:
    area = scores.auc(members, non_members)
    assert area == pytest.approx(auc_by_loop(members, non_members), abs=1e-12)
    assert 0 <= area <= 1


@given(samples, samples)
def test_roc_equals_the_loop_over_thresholds(members: np.ndarray, others: np.ndarray) -> None:
    curve = scores.roc(members, others)
    points = list(zip(curve.false_positive_rate, curve.true_positive_rate, strict=True))
    assert points == roc_by_loop(members, others)
    assert np.trapezoid(curve.true_positive_rate, curve.false_positive_rate) == pytest.approx(
        scores.auc(members, others)
    )
    assert curve.thresholds[0] > max(members.max(), others.max())


@given(samples, samples)
def test_auc_does_not_change_under_a_rising_map(members: np.ndarray, others: np.ndarray) -> None:
    rising = scores.auc(np.arctan(members) * 3 + 1, np.arctan(others) * 3 + 1)
    assert rising == scores.auc(members, others)


@given(samples, samples)
def test_swapping_the_sides_mirrors_the_auc(members: np.ndarray, others: np.ndarray) -> None:
    assert scores.auc(members, others) == pytest.approx(1 - scores.auc(others, members))
    low, high = scores.auc_interval(members, others)
    mirrored = scores.auc_interval(others, members)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)


@given(samples, samples)
def test_interval_holds_the_auc(members: np.ndarray, others: np.ndarray) -> None:
    low, high = scores.auc_interval(members, others)
    area = scores.auc(members, others)
    assert 0 <= low <= area + 1e-12
    assert area - 1e-12 <= high <= 1
    assert low < high


@given(samples, samples, st.sampled_from([0.5, 0.9, 1.0]))
def test_tpr_equals_the_loop_and_never_exceeds_the_asked_rate(
    members: np.ndarray, others: np.ndarray, fpr: float
) -> None:
    point = scores.tpr_at_fpr(members, others, fpr)
    if point is None:
        assert len(others) * fpr < scores.FALSE_POSITIVES_NEEDED
        return
    assert point.fpr <= fpr
    assert (point.tpr, point.fpr) == tpr_by_loop(members, others, fpr)
    assert point.tpr == np.mean(members >= point.threshold)
    assert point.tpr_interval[0] <= point.tpr <= point.tpr_interval[1]


def test_auc_equals_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    rng = np.random.default_rng(3)
    inside, outside = rng.normal(0.4, 1, 700).round(1), rng.normal(0, 1, 500).round(1)
    truth = np.r_[np.ones(700), np.zeros(500)]
    both = np.r_[inside, outside]
    assert scores.auc(inside, outside) == pytest.approx(roc_auc_score(truth, both), abs=1e-12)
    fpr, tpr, _ = roc_curve(truth, both, drop_intermediate=False)
    curve = scores.roc(inside, outside)
    np.testing.assert_allclose(curve.false_positive_rate, fpr)
    np.testing.assert_allclose(curve.true_positive_rate, tpr)


def test_delong_variance_equals_its_definition() -> None:
    from scipy.special import logit

    rng = np.random.default_rng(4)
    inside, outside = rng.normal(0.5, 1, 60).round(1), rng.normal(0, 1, 40).round(1)
    low, high = scores.auc_interval(inside, outside)
    area = scores.auc(inside, outside)
    deviation = (logit(high) - logit(low)) / (2 * 1.959963984540054) * area * (1 - area)
    assert deviation**2 == pytest.approx(delong_by_loop(inside, outside), rel=1e-9)


def coverage(scale: float) -> int:
    """How many of 600 intervals, stretched by `scale`, hold the true AUC of two Gaussians."""
    from scipy.special import expit, logit
    from scipy.stats import norm

    rng = np.random.default_rng(5)
    truth = logit(norm.cdf(0.5 / math.sqrt(2)))
    held = 0
    for _ in range(600):
        inside, outside = rng.normal(0.5, 1, 80), rng.normal(0, 1, 80)
        low, high = (logit(bound) for bound in scores.auc_interval(inside, outside))
        middle, half = (low + high) / 2, (high - low) / 2 * scale
        held += abs(truth - middle) <= half
        assert 0 <= expit(middle) <= 1
    return held


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    # 600 trials at 95%: outside [545, 592] with probability below 1e-4 each side.
    from scipy.stats import binom

    low, high = binom.ppf(1e-4, 600, 0.95), binom.ppf(1 - 1e-4, 600, 0.95)
    assert low <= coverage(1.0) <= high
    assert coverage(2 / 3) < low
    assert coverage(3 / 2) > high


def test_perfect_separation_still_has_an_interval() -> None:
    low, high = scores.auc_interval(np.ones(20), np.zeros(30))
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 20))


def test_nothing_but_ties_proves_nothing_in_either_direction() -> None:
    low, high = scores.auc_interval(np.zeros(20), np.zeros(30))
    assert low < 0.5 < high
    assert low + high == pytest.approx(1)


def test_one_row_tells_nothing() -> None:
    assert scores.auc_interval([1.0], [0.0, 0.5]) == (0.0, 1.0)
    assert scores.advantage([1.0], [0.0, 0.5]) is None


@pytest.mark.parametrize(
    ("non_members", "fpr", "enough"),
    [(1_000, 0.01, True), (999, 0.01, False), (10_000, 0.001, True), (9_999, 0.001, False)],
)
def test_low_rates_need_ten_false_positives(non_members: int, fpr: float, enough: bool) -> None:
    assert scores.resolvable(non_members, fpr) is enough
    rng = np.random.default_rng(6)
    point = scores.tpr_at_fpr(rng.normal(1, 1, 50), rng.normal(0, 1, non_members), fpr)
    assert (point is not None) is enough
    if point is not None:
        assert point.fpr == fpr


def test_tied_non_members_are_let_through_together_or_not_at_all() -> None:
    others = np.r_[np.full(11, 5.0), np.zeros(989)]
    members = np.r_[np.full(30, 5.0), np.full(2, 9.0), np.zeros(8)]
    point = scores.tpr_at_fpr(members, others, 0.01)
    assert point is not None
    assert (point.fpr, point.tpr, point.threshold) == (0.0, 2 / 40, 9.0)


def test_advantage_of_a_useless_score_is_not_inflated() -> None:
    rng = np.random.default_rng(7)
    found = [scores.advantage(rng.normal(size=50), rng.normal(size=50)) for _ in range(400)]
    mean = np.mean([gain.value for gain in found if gain is not None])
    # Standard error of the mean: sqrt(2 * 0.25 / 25 / 400) = 0.0071 at most; 4 of them: 6e-5.
    assert abs(mean) < 0.0284
    held = sum(gain.interval[0] <= 0 <= gain.interval[1] for gain in found if gain is not None)
    assert held >= 370


def test_advantage_of_a_perfect_score_is_one() -> None:
    gain = scores.advantage(np.ones(40), np.zeros(40))
    assert gain is not None
    assert gain.value == 1.0
    assert 0.6 < gain.interval[0] < gain.interval[1] == 1.0


# Closed forms at the ends: 1 - (alpha / 2)^(1 / n); inside: tables of Clopper and Pearson.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.3084971),
        (10, 10, 0.6915029, 1.0),
        (5, 10, 0.1870860, 0.8129140),
        (1, 20, 0.0012651, 0.2487328),
    ],
)
def test_clopper_pearson(successes: int, trials: int, low: float, high: float) -> None:
    assert scores.clopper_pearson(successes, trials) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 60), st.data())
def test_clopper_pearson_inverts_the_binomial_tails(trials: int, data: st.DataObject) -> None:
    from scipy.stats import binom

    successes = data.draw(st.integers(0, trials))
    low, high = scores.clopper_pearson(successes, trials, 0.9)
    if successes:
        assert binom.sf(successes - 1, trials, low) == pytest.approx(0.05, rel=1e-6)
    if successes < trials:
        assert binom.cdf(successes, trials, high) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((1, 0), "trials=0"), ((-1, 3), "successes=-1"), ((4, 3), "successes=4"), ((1, 3, 1.0), "")],
)
def test_clopper_pearson_names_a_wrong_argument(arguments: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"Expected.*{name}"):
        scores.clopper_pearson(*arguments)


@pytest.mark.parametrize(
    ("bad", "match"),
    [([], "members"), ([[1.0]], "members"), ([math.nan], "NaN"), ([math.inf], "inf")],
)
def test_bad_scores_are_refused(bad: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scores.auc(bad, [0.0])


def guesses(noise: float, trials: int = 20_000) -> tuple[int, int, int, int]:
    """A likelihood-ratio test of a Gaussian mechanism whose answer is 1 or 0, plus noise."""
    rng = np.random.default_rng(8)
    threshold = 0.5 + 2 * noise
    inside = (1 + noise * rng.normal(size=trials) >= threshold).sum()
    outside = (noise * rng.normal(size=trials) >= threshold).sum()
    return int(inside), trials, int(outside), trials


def test_lower_bound_stays_below_the_true_epsilon_and_catches_too_little_noise() -> None:
    # One Gaussian, z = 1, sensitivity 1, delta 1e-5: epsilon 4.377 by the closed form
    # of Balle and Wang 2018.
    bound = scores.epsilon_lower_bound(*guesses(1.0), delta=1e-5, confidence=1 - 1e-4)
    assert 0.5 < bound <= 4.377
    broken = scores.epsilon_lower_bound(*guesses(0.2), delta=1e-5, confidence=1 - 1e-4)
    assert broken > 4.377


def test_lower_bound_by_hand() -> None:
    # 100 right, none wrong, each bound at 97.5%: 1 - high = 0.025^(1/100).
    high = 1 - 0.025 ** (1 / 100)
    assert scores.epsilon_lower_bound(100, 100, 0, 100, delta=1e-5) == pytest.approx(
        math.log((1 - high - 1e-5) / high)
    )
    assert scores.epsilon_lower_bound(50, 100, 50, 100, delta=1e-5) == 0.0
    found = scores.epsilon_lower_bound(50, 100, 0, 100, delta=1e-3)
    assert found == pytest.approx(2.395, abs=5e-4)


def worst_miss(trials: int, delta: float, spent: float) -> float:
    """How often the bound exceeds epsilon, at the worst of the rates that epsilon and delta allow.

    By enumeration of all pairs of counts, for bounds that are asked for at `spent`.
    """
    from scipy.stats import binom

    counts = np.arange(trials + 1)
    bounds = np.array(
        [
            [
                scores.epsilon_lower_bound(t, trials, f, trials, delta=delta, confidence=spent)
                for f in counts
            ]
            for t in counts
        ]
    )
    worst = 0.0
    for epsilon in (0.0, 0.1, 0.5, 1.0, 2.0, 3.0):
        grown = math.exp(epsilon)
        for fpr in (0.0, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7):
            # The largest true rate that both inequalities allow: one of them is an equation.
            tpr = min(grown * fpr + delta, 1 - (1 - fpr - delta) / grown)
            law = np.multiply.outer(binom.pmf(counts, trials, tpr), binom.pmf(counts, trials, fpr))
            worst = max(worst, float(law[bounds > epsilon + 1e-12].sum()))
    return worst


@pytest.mark.parametrize(("trials", "delta"), [(20, 1e-3), (40, 0.05)])
def test_lower_bound_exceeds_epsilon_no_more_often_than_it_says(trials: int, delta: float) -> None:
    assert worst_miss(trials, delta, 0.9) <= 0.1
    # The broken twin spends its whole error on either end, by one-sided bounds of 60%.
    assert worst_miss(trials, delta, 0.2) > 0.1


def tpr_coverage(shift: float, fpr: float, tied: bool, repeats: int) -> tuple[float, float]:
    """How often the interval, and that at the realised threshold, hold the population's rate."""
    from scipy.stats import norm

    rng = np.random.default_rng(11)
    # Scores that are rounded tie; the largest set with a rate below `fpr` starts at a whole tenth.
    start = norm.isf(fpr)
    edge = math.ceil(round(start * 10 + 0.5, 9)) / 10 - 0.05 if tied else start
    truth, held, at_realised = norm.sf(edge - shift), 0, 0
    for _ in range(repeats):
        drawn = rng.normal(shift, 1, 1_000), rng.normal(0, 1, 1_000)
        point = scores.tpr_at_fpr(*(x.round(1) if tied else x for x in drawn), fpr)
        assert point is not None
        held += point.tpr_interval[0] <= truth <= point.tpr_interval[1]
        low, high = scores.clopper_pearson(round(point.tpr * 1_000), 1_000)
        at_realised += low <= truth <= high
    return held / repeats, at_realised / repeats


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("shift", "fpr"), [(0.0, 0.01), (0.5, 0.01), (2.0, 0.01), (1.0, 0.1)])
def test_tpr_intervals_hold_at_the_rate_of_the_population(
    shift: float, fpr: float, tied: bool
) -> None:
    held, at_realised = tpr_coverage(shift, fpr, tied, 200)
    # 95% of 200 is 190; fewer than 178 has a probability below 1e-4.
    assert held >= 178 / 200
    # The twin that takes the realised threshold for the population's covers half at shift 2.
    if shift == 2.0 and not tied:
        assert at_realised < 0.6


def test_tpr_intervals_reach_zero_and_one_where_order_statistics_run_out() -> None:
    others, members = np.arange(10.0), np.arange(10.0) + 0.5
    point = scores.tpr_at_fpr(members, others, 1.0)
    assert point is not None and point.tpr_interval[1] == 1.0
    point = scores.tpr_at_fpr(members, np.arange(20.0), 0.5, confidence=1 - 1e-7)
    assert point is not None and point.tpr_interval[0] == 0.0
    wide, narrow = (
        scores.tpr_at_fpr(members, np.arange(40.0), 0.5, confidence=c) for c in (0.99, 0.5)
    )
    assert wide is not None and narrow is not None
    assert wide.tpr_interval[0] <= narrow.tpr_interval[0] <= narrow.tpr_interval[1]
    assert narrow.tpr_interval[1] <= wide.tpr_interval[1]


def test_the_curve_has_no_rate_below_ten_false_positives() -> None:
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(0.5, 1, 1_500), draw.normal(0, 1, 1_500)
    curve = scores.low_rates(inside, outside)
    rates = [rate for rate, _ in curve]
    assert rates == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    for rate, found in curve:
        point = scores.tpr_at_fpr(inside, outside, rate)
        assert point is not None and found == round(point.tpr, 3)
    assert curve[-1] == (1.0, 1.0)


def test_tied_rows_are_on_the_curve_together_or_not_at_all() -> None:
    assert scores.low_rates(np.ones(50), np.ones(50)) == ((0.2, 0.0), (0.5, 0.0), (1.0, 1.0))


def test_so_few_rows_have_no_curve() -> None:
    assert scores.low_rates([1.0, 2.0], [0.0] * 9) == ()
