import math

import numpy as np
import pytest
from scipy import stats

from privtrain.attacks.scores import clopper_pearson
from privtrain.attacks.scoring.records import of_records, precision
from tests.attacks.scoring.planted import in_pairs, planted
from tests.statistics import assert_power, std_is


def test_figures_equal_the_loop_over_records() -> None:
    run = planted(np.random.default_rng(0), models=10, candidates=40)
    scores = np.random.default_rng(1).integers(0, 9, 40).astype(float)
    found = of_records(scores, run.target, run.shadows, run.included, confidence=0.9)
    for row in range(40):
        inside = run.shadows[run.included[:, row], row]
        outside = run.shadows[~run.included[:, row], row]
        n, m = len(inside), len(outside)
        assert (found.seen[row], found.unseen[row]) == (n, m)
        assert found.ranks[row] == 1 + sum(score > scores[row] for score in scores)
        pooled = ((n - 1) * inside.var(ddof=1) + (m - 1) * outside.var(ddof=1)) / (n + m - 2)
        separation = (inside.mean() - outside.mean()) / math.sqrt(pooled)
        assert found.separation[row] == pytest.approx(separation, abs=1e-12)
        # Student's t of the two samples is d' over sqrt(1 / n + 1 / m).
        t = stats.ttest_ind(inside, outside).statistic
        assert separation == pytest.approx(t * math.sqrt(1 / n + 1 / m), abs=1e-12)
        null = stats.t(n + m - 2).std() * math.sqrt(1 / n + 1 / m)
        assert found.null_deviation[row] == pytest.approx(null, rel=1e-12)
        above = sum(value >= run.target[row] for value in outside)
        assert found.above[row] == above
        assert found.p_values[row] == (1 + above) / (1 + m)
        assert tuple(found.p_value_intervals[row]) == clopper_pearson(above, m, 0.9)
    assert (found.scores == scores).all()


def test_null_deviation_is_that_of_values_without_a_leak() -> None:
    run = planted(np.random.default_rng(2), models=16, candidates=4_000, leak=0.0)
    found = of_records(run.target, run.target, run.shadows, run.included)
    assert set(np.round(found.null_deviation, 12)) == {round(math.sqrt(2 / 8 * 14 / 12), 12)}
    # Student's values are mapped onto normal ones by their quantiles, which the check is for.
    law = stats.t(14)
    normal = stats.norm.ppf(law.cdf(found.separation / math.sqrt(2 / 8)))
    assert_power(std_is, normal * found.null_deviation[0], float(found.null_deviation[0]))


def test_planted_records_stand_out() -> None:
    rng = np.random.default_rng(3)
    included = in_pairs(rng, 16, 1_000)
    leak = np.zeros(1_000)
    leak[:20] = 8.0
    shadows = leak * included + rng.normal(size=included.shape)
    target = leak + rng.normal(size=1_000)
    found = of_records(target, target, shadows, included)
    assert (found.separation[:20] > 8 * found.null_deviation[:20]).all()
    assert (np.abs(found.separation[20:]) < 8 * found.null_deviation[20:]).all()
    assert (found.p_values[:20] == 1 / 9).all()
    # Of the others p-values are uniform over nine values.
    counts = np.bincount(np.rint(found.p_values[20:] * 9).astype(int), minlength=10)[1:]
    assert stats.chisquare(counts).pvalue > 1e-4


def test_records_that_say_nothing() -> None:
    # Of four records: equal values on both sides, one value a side, no IN model, no OUT model.
    included = np.array([[True, True, False, True], [True, True, False, True], [False] * 4])
    included[2, 3] = True
    shadows = np.array([[1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 1.0, 1.0], [1.0, 0.0, 3.0, 2.0]])
    found = of_records(np.zeros(4), np.ones(4), shadows, included)
    assert found.separation[:2].tolist() == [0.0, np.inf]
    assert np.isnan(found.separation[2:]).all()
    assert found.null_deviation.tolist() == [np.inf] * 4
    assert found.p_values.tolist() == [1.0, 0.5, 0.75, 1.0]
    assert found.p_value_intervals[3].tolist() == [0.0, 1.0]
    assert found.ranks.tolist() == [1, 1, 1, 1]
    alone = of_records(np.zeros(4), np.ones(4), shadows[:2], included[:2] & [[True], [False]])
    # One model on each side: no deviation at all.
    assert np.isnan(alone.separation).all()


@pytest.mark.parametrize(
    ("place", "match"),
    [(0, "scores without NaN"), (1, "target to be finite"), (2, "shadows to be finite")],
)
def test_values_that_are_no_numbers_are_refused(place: int, match: str) -> None:
    arrays = [np.zeros(3), np.zeros(3), np.zeros((2, 3))]
    arrays[place][..., 0] = np.nan
    with pytest.raises(ValueError, match=f"Expected {match}"):
        of_records(*arrays, in_pairs(np.random.default_rng(0), 2, 3))


def test_as_many_scores_as_records() -> None:
    with pytest.raises(ValueError, match="scores with shape"):
        of_records([0.0], np.zeros(3), np.zeros((1, 3)), np.ones((1, 3), dtype=bool))


def test_precision_at_a_prior() -> None:
    assert precision(0.05, 0.01, 0.5) == pytest.approx(5 / 6)
    # Of 1,000 people one is a member: 0.05 right accusations among 10.04.
    assert precision(0.05, 0.01, 0.001) == pytest.approx(0.05 / (0.05 + 9.99))
    assert precision(0.3, 0.0, 0.01) == 1.0
    assert precision(0.0, 0.0, 0.5) is None
    assert precision(0.5, 0.0, 0.0) is None
    for name, rates in (("tpr", (2, 0, 0)), ("fpr", (0, -1, 0)), ("prior", (0, 0, math.nan))):
        with pytest.raises(ValueError, match=f"Expected {name}="):
            precision(*rates)
