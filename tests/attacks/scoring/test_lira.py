import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from privtrain.attacks.scores import auc, auc_interval
from privtrain.attacks.scoring import lira
from privtrain.attacks.scoring.lira import Variance
from tests.attacks.scoring.planted import Flags, Floats, in_pairs, planted


def gaussians(shadows: Floats, included: Flags, variance: Variance) -> list[tuple[float, ...]]:
    """Algorithm 1, lines 10 to 13, row by row: mean and deviation IN, mean and deviation OUT."""
    rows = []
    pooled: dict[bool, list[float]] = {True: [], False: []}
    for row in range(shadows.shape[1]):
        for saw in (True, False):
            values = shadows[included[:, row] == saw, row]
            pooled[saw] += [(value - values.mean()) ** 2 for value in values]
    for row in range(shadows.shape[1]):
        found: list[float] = []
        for saw in (True, False):
            values = [
                v for v, flag in zip(shadows[:, row], included[:, row], strict=True) if flag == saw
            ]
            mean = sum(values) / len(values)
            own = sum((v - mean) ** 2 for v in values) / len(values)
            shared = sum(pooled[saw]) / len(pooled[saw])
            found += [mean, math.sqrt(own if variance is Variance.OWN else shared)]
        rows.append(tuple(found))
    return rows


def online_by_loop(target: Floats, shadows: Floats, included: Flags, variance: Variance) -> Floats:
    return np.array(
        [
            stats.norm.logpdf(x, m_in, s_in) - stats.norm.logpdf(x, m_out, s_out)
            for x, (m_in, s_in, m_out, s_out) in zip(
                target, gaussians(shadows, included, variance), strict=True
            )
        ]
    )


def offline_by_loop(target: Floats, shadows: Floats, included: Flags, variance: Variance) -> Floats:
    return np.array(
        [
            1 - stats.norm.sf(x, mean, deviation)
            for x, (_, _, mean, deviation) in zip(
                target, gaussians(shadows, included, variance), strict=True
            )
        ]
    )


@pytest.mark.parametrize("variance", [*Variance])
@pytest.mark.parametrize("models", [4, 16])
def test_scores_equal_the_paper_row_by_row(models: int, variance: Variance) -> None:
    run = planted(np.random.default_rng(models), models=models, candidates=60)
    arrays = (run.target, run.shadows, run.included)
    np.testing.assert_allclose(
        lira.online(*arrays, variance=variance), online_by_loop(*arrays, variance), rtol=1e-12
    )
    np.testing.assert_allclose(
        lira.offline(*arrays, variance=variance), offline_by_loop(*arrays, variance), atol=1e-12
    )


def test_scores_of_fixed_arrays_by_hand() -> None:
    included = np.array([[True, False], [False, True], [True, False], [False, True]])
    shadows = np.array([[3.0, 0.0], [0.0, 6.0], [5.0, 2.0], [2.0, 2.0]])
    # Row 0: IN 3, 5 (4, 1), OUT 0, 2 (1, 1). Row 1: IN 6, 2 (4, 4), OUT 0, 2 (1, 1).
    target = np.array([4.0, 2.0])
    own = lira.online(target, shadows, included, variance=Variance.OWN)
    assert own == pytest.approx([9 / 2, -math.log(2) - 1 / 2 + 1 / 2], abs=1e-12)
    # Shared: IN (1 + 1 + 4 + 4) / 4 = 2.5, OUT 1: one for each side, not one for both.
    shared = lira.online(target, shadows, included)
    log_ratio = -math.log(2.5) / 2
    assert shared == pytest.approx([log_ratio + 9 / 2, log_ratio - 4 / 5 + 1 / 2], abs=1e-12)
    deviations = lira.offline_deviations(target, shadows, included)
    assert deviations.tolist() == [3.0, 1.0]
    assert lira.offline(target, shadows, included) == pytest.approx(
        [0.99865010196837, 0.841344746068543], abs=1e-12
    )


def test_offline_is_one_sided() -> None:
    included = in_pairs(np.random.default_rng(1), 8, 3)
    shadows = np.random.default_rng(2).normal(size=(8, 3))
    low, middle, high = lira.offline(np.array([-9.0, 0.0, 9.0]), shadows, included)
    assert low < middle < high


def test_deviations_tell_apart_what_phi_rounds_to_one() -> None:
    included = in_pairs(np.random.default_rng(1), 4, 2)
    shadows = np.zeros((4, 2)) + np.array([[0.0], [0.0], [1.0], [1.0]])
    target = np.array([9.0, 20.0])
    assert lira.offline(target, shadows, included).tolist() == [1.0, 1.0]
    assert np.diff(lira.offline_deviations(target, shadows, included)) > 0


def test_a_side_without_own_variance_takes_the_shared_one() -> None:
    # Row 0 has one IN model and two equal OUT models; row 1 has variance on both sides.
    included = np.array([[True, True], [False, True], [False, False], [True, False]])[:3]
    included = np.vstack([included, [[False, False]]])
    shadows = np.array([[5.0, 1.0], [2.0, 3.0], [2.0, 0.0], [2.0, 4.0]])
    found = lira.online(np.array([5.0, 2.0]), shadows, included, variance=Variance.OWN)
    # IN: only row 1 has two models, variance 1. OUT: (0 + 0 + 0 + 4 + 4) / 5 = 1.6.
    assert found[0] == pytest.approx(math.log(1.6) / 2 + 9 / 3.2, abs=1e-12)
    assert found[1] == pytest.approx(math.log(4 / 1) / 2, abs=1e-12)


def test_models_that_all_agree_give_finite_scores() -> None:
    included = in_pairs(np.random.default_rng(0), 4, 5)
    shadows = np.where(included, 1.0, 0.0)
    target = np.array([1.0, 0.0, 1.0, 0.0, 0.5])
    for variance in Variance:
        found = lira.online(target, shadows, included, variance=variance)
        assert np.isfinite(found).all()
        assert found[0] == found[2] > found[4] > found[1] == found[3]


def test_rows_that_cannot_be_scored_come_last() -> None:
    run = planted(np.random.default_rng(3), models=4, candidates=6)
    target, shadows = run.target.copy(), run.shadows.copy()
    target[0], target[1] = np.nan, np.inf
    shadows[run.included[:, 2].argmax(), 2] = np.nan
    shadows[run.included[:, 3].argmin(), 3] = -np.inf
    rest = slice(4, None)
    for score in (lira.online, lira.offline, lira.offline_deviations):
        found = score(target, shadows, run.included, variance=Variance.OWN)
        alone = score(target[rest], shadows[:, rest], run.included[:, rest], variance=Variance.OWN)
        np.testing.assert_array_equal(found[rest], alone)
        # Row 2 lacks an IN model alone, which the offline attack does not ask.
        of_in = score is lira.online
        assert np.isneginf(found[:4]).tolist() == [True, True, of_in, True]


def test_equal_scores_stay_equal() -> None:
    included = in_pairs(np.random.default_rng(0), 4, 1).repeat(3, axis=1)
    shadows = np.random.default_rng(1).normal(size=(4, 1)).repeat(3, axis=1)
    found = lira.online(np.ones(3), shadows, included)
    assert len(set(found.tolist())) == 1
    assert auc(found[:1], found[1:]) == 0.5


@pytest.mark.parametrize(
    ("included", "match"),
    [
        (
            [[True, True], [True, False]],
            "a model that is OUT; 1 have none, the first is candidate 0",
        ),
        ([[False, True], [False, False]], "a model that is IN; 1 have none"),
        ([[True, False], [False, True]], "two models that are IN.*four shadow models"),
    ],
)
def test_too_few_models_are_refused(included: list[list[bool]], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lira.online(np.zeros(2), np.zeros((2, 2)), np.array(included))


def test_a_variance_may_be_named() -> None:
    run = planted(np.random.default_rng(0), models=4, candidates=20)
    arrays = (run.target, run.shadows, run.included)
    by_name = lira.online(*arrays, variance="own")  # type: ignore[arg-type]
    np.testing.assert_array_equal(by_name, lira.online(*arrays, variance=Variance.OWN))


def test_an_unknown_variance_is_refused() -> None:
    run = planted(np.random.default_rng(0), models=4, candidates=4)
    with pytest.raises(ValueError, match=r"variance='owm'.*own"):
        lira.online(run.target, run.shadows, run.included, variance="owm")  # type: ignore[arg-type]


def test_phi_is_the_logit_of_the_probability() -> None:
    probabilities = np.array([1e-9, 0.2, 0.5, 0.999])
    np.testing.assert_allclose(
        lira.phi_of_losses(-np.log(probabilities)),
        [math.log(p / (1 - p)) for p in probabilities],
        rtol=1e-12,
        atol=1e-12,
    )


def test_phi_of_extreme_losses_is_finite_and_rises_as_they_fall() -> None:
    losses = np.array([np.inf, 700.0, 40.0, 1.0, 1e-3, 1e-15, 0.0])
    phi = lira.phi_of_losses(losses)
    assert phi[0] == phi[1] == -700.0
    assert (np.diff(phi[1:]) > 0).all()
    assert phi[2] == -40.0
    assert phi[-1] == pytest.approx(36.0437, abs=1e-4)
    assert np.isnan(lira.phi_of_losses(np.array([np.nan]))).all()
    with pytest.raises(ValueError, match="losses >= 0"):
        lira.phi_of_losses(np.array([1.0, -0.1]))


def test_phi_of_logits_equals_the_loop_and_phi_of_losses() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (2, 20, 5)), rng.integers(0, 5, 20)
    expected = [
        [
            logits[m, i, y]
            - math.log(sum(math.exp(v) for j, v in enumerate(logits[m, i]) if j != y))
            for i, y in enumerate(labels)
        ]
        for m in range(2)
    ]
    found = lira.phi_of_logits(logits, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    losses = np.log(np.exp(logits).sum(-1)) - logits[:, np.arange(20), labels]
    np.testing.assert_allclose(lira.phi_of_losses(losses), found, rtol=1e-9, atol=1e-9)


def test_phi_of_confident_logits_is_exact() -> None:
    logits = np.array([[1000.0, 0.0, 0.0], [0.0, 1000.0, 0.0]])
    found = lira.phi_of_logits(logits, np.array([0, 0]))
    assert found == pytest.approx([1000 - math.log(2), -1000.0], abs=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "match"),
    [
        (np.zeros((3, 1)), [0, 0, 0], "classes >= 2"),
        (np.zeros((3, 2)), [0, 0], "logits"),
        (np.zeros((2, 2)), [0, 2], "below 2"),
        (np.zeros((2, 2)), [0.0, 1.0], "whole numbers"),
    ],
)
def test_wrong_logits_are_refused(logits: Floats, labels: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lira.phi_of_logits(logits, np.array(labels))


Score = Callable[[Floats, Floats, Flags], Floats]
NULLS: dict[str, Score] = {
    "online, own": lambda t, s, i: lira.online(t, s, i, variance=Variance.OWN),
    "online, shared": lira.online,
    "offline, own": lambda t, s, i: lira.offline_deviations(t, s, i, variance=Variance.OWN),
    "offline, shared": lira.offline,
}
PERMUTATIONS, CANDIDATES = 200, 300


def null_aucs(score: Score, models: int, inside: bool) -> tuple[Floats, Floats, int]:
    """AUCs under permuted membership, their exact deviations, and how many intervals miss 0.5.

    Rows of the membership matrix change places, and values stay: who was trained on what no longer
    goes with any value. A target within the design keeps its place beside the shadows' membership;
    one outside of it has coins of its own.
    """
    rng = np.random.default_rng(7)
    run = planted(rng, models=models + 2, candidates=CANDIDATES)
    areas, deviations, missed = [], [], 0
    for _ in range(PERMUTATIONS):
        moved = run.included[:, rng.permutation(CANDIDATES)]
        # Models 0 and 1 are complements. Within: model 0 is the target, and 1 one of its shadows.
        if inside:
            truth, target, used = moved[0], run.shadows[0], slice(1, models + 1)
        else:
            truth, target, used = rng.permutation(run.truth), run.target, slice(2, models + 2)
        found = score(target, run.shadows[used], moved[used])
        low, high = auc_interval(found[truth], found[~truth])
        missed += not low <= 0.5 <= high
        areas.append(auc(found[truth], found[~truth]))
        pairs = truth.sum() * (~truth).sum()
        deviations.append(math.sqrt((CANDIDATES + 1) / (12 * pairs)))
    return np.array(areas), np.array(deviations), missed


def off_by(areas: Floats, deviations: Floats) -> float:
    """By how many standard deviations the mean AUC is away from 0.5."""
    return float((areas.mean() - 0.5) * len(areas) / math.sqrt((deviations**2).sum()))


@pytest.mark.parametrize("models", [4, 16])
@pytest.mark.parametrize("name", [*NULLS])
def test_a_target_outside_of_the_design_is_a_coin_where_membership_is_permuted(
    name: str, models: int
) -> None:
    areas, deviations, missed = null_aucs(NULLS[name], models, inside=False)
    # Two-sided 1e-4; intervals of 95% miss as a binomial law allows.
    assert abs(off_by(areas, deviations)) < stats.norm.isf(5e-5)
    assert missed <= stats.binom.isf(1e-4, PERMUTATIONS, 0.05)


def test_a_target_within_the_design_is_told_by_how_many_shadows_saw_a_row() -> None:
    # The same scores, models and values, but for whose membership is guessed: mean AUC 0.53.
    areas, deviations, _ = null_aucs(NULLS["online, own"], 4, inside=True)
    assert abs(off_by(areas, deviations)) > 10


@pytest.mark.parametrize("models", [4, 16])
@pytest.mark.parametrize("name", [*NULLS])
def test_a_planted_leak_is_found(name: str, models: int) -> None:
    run = planted(np.random.default_rng(5), models=models, candidates=1_000)
    found = NULLS[name](run.target, run.shadows, run.included)
    low, _ = auc_interval(found[run.truth], found[~run.truth], 1 - 1e-4)
    assert low > 0.5
    # Two values tell too little of a variance to gain by it: that is what a shared one is for.
    if (name, models) != ("online, own", 4):
        assert auc(found[run.truth], found[~run.truth]) > auc(
            run.target[run.truth], run.target[~run.truth]
        )
