import math

import numpy as np
import pytest
from scipy import stats

from privtrain.attacks.scores import auc, auc_interval, tpr_at_fpr
from privtrain.attacks.scoring import over_targets
from privtrain.attacks.scoring.over_targets import auc_over_targets, tpr_over_targets
from privtrain.core.seeding import Seeds
from tests.attacks.scoring.planted import Flags, Floats

TARGETS, RECORDS = 6, 120


def shared_records(rng: np.random.Generator, records: int = RECORDS) -> tuple[Floats, Flags]:
    """Scores of targets that agree on which records leak."""
    leak = np.where(rng.random(records) < 0.3, 2.5, 0.0)
    truth = rng.random((TARGETS, records)) < 0.5
    return leak * truth + rng.normal(size=truth.shape) * 0.7, truth


def tied(rng: np.random.Generator) -> tuple[Floats, Flags]:
    scores, truth = shared_records(rng, 60)
    scores = scores.round()
    scores[0, :3] = -np.inf
    return scores, truth


def drawn(records: int, seed: int, resamples: int) -> list[list[int]]:
    """Which records are in each resample, from the stream that is documented."""
    generator = Seeds(seed)["cluster bootstrap", 0, ""].numpy()
    return [generator.integers(records, size=records).tolist() for _ in range(resamples)]


def test_auc_equals_the_loop_over_resamples() -> None:
    scores, truth = tied(np.random.default_rng(0))
    found = auc_over_targets(scores, truth, seed=3, resamples=70, confidence=0.9)
    each = [auc(s[m], s[~m]) for s, m in zip(scores, truth, strict=True)]
    assert found.each.tolist() == each
    assert found.value == pytest.approx(sum(each) / TARGETS, abs=1e-12)
    means = []
    for rows in drawn(60, 3, 70):
        again = [(s[rows], m[rows]) for s, m in zip(scores, truth, strict=True)]
        means.append(np.mean([auc(s[m], s[~m]) for s, m in again]))
    assert found.interval == pytest.approx(np.quantile(means, [0.05, 0.95]), abs=1e-12)


def tpr_by_loop(members: Floats, others: Floats, fpr: float) -> float:
    best = 0.0
    for threshold in {*members.tolist(), *others.tolist()}:
        if sum(other >= threshold for other in others) <= fpr * len(others):
            best = max(best, sum(member >= threshold for member in members) / len(members))
    return best


@pytest.mark.parametrize("fpr", [0.5, 1.0])
def test_tpr_equals_the_loop_over_resamples(fpr: float) -> None:
    scores, truth = tied(np.random.default_rng(1))
    found = tpr_over_targets(scores, truth, fpr, seed=3, resamples=40)
    assert found is not None
    points = [tpr_at_fpr(s[m], s[~m], fpr) for s, m in zip(scores, truth, strict=True)]
    assert found.each.tolist() == [point.tpr for point in points if point is not None]
    means = []
    for rows in drawn(60, 3, 40):
        again = [(s[rows], m[rows]) for s, m in zip(scores, truth, strict=True)]
        means.append(np.mean([tpr_by_loop(s[m], s[~m], fpr) for s, m in again]))
    expected = np.quantile(means, [0.025, 0.975])
    if fpr == 1.0:
        # All rates are 1 in every resample: the interval is that of the single targets.
        assert found.interval[0] < 1.0 == found.interval[1]
    else:
        assert found.interval == pytest.approx(expected, abs=1e-12)


def test_memory_does_not_change_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, truth = shared_records(np.random.default_rng(2))
    whole = auc_over_targets(scores, truth, seed=0, resamples=100)
    monkeypatch.setattr(over_targets, "BATCH", 7)
    assert auc_over_targets(scores, truth, seed=0, resamples=100).interval == whole.interval
    assert auc_over_targets(scores, truth, seed=1, resamples=100).interval != whole.interval


def test_intervals_hold_the_truth_as_often_as_they_say_and_independent_ones_do_not() -> None:
    # A third of the members is shifted by 2.5: the AUC is a mixture of two.
    shift = 2.5 / (0.7 * math.sqrt(2))
    truth_value = 0.3 * stats.norm.cdf(shift) + 0.7 * 0.5
    trials, held, short, naive = 300, 0, 0, 0
    for trial in range(trials):
        scores, truth = shared_records(np.random.default_rng(trial))
        found = auc_over_targets(scores, truth, seed=trial, resamples=200)
        low, high = found.interval
        held += low <= truth_value <= high
        low, high = ((end - found.value) * 2 / 3 + found.value for end in found.interval)
        short += low <= truth_value <= high
        # The twin that takes all scores of all targets for independent.
        low, high = auc_interval(scores[truth], scores[~truth])
        naive += low <= truth_value <= high
    assert stats.binom.ppf(1e-4, trials, 0.95) <= held <= stats.binom.ppf(1 - 1e-4, trials, 0.95)
    assert max(short, naive) < stats.binom.ppf(1e-4, trials, 0.95)


def test_one_target_is_an_ordinary_bootstrap() -> None:
    rng = np.random.default_rng(4)
    truth = rng.random((1, 400)) < 0.5
    scores = truth + rng.normal(size=truth.shape)
    found = auc_over_targets(scores, truth, seed=0)
    plain = auc_interval(scores[truth], scores[~truth])
    assert found.interval == pytest.approx(plain, abs=0.012)


def test_unanimous_targets_have_the_interval_of_one_of_them() -> None:
    truth = np.array([[True] * 10 + [False] * 10, [False] * 5 + [True] * 15])
    found = auc_over_targets(truth.astype(float), truth, seed=0, resamples=50)
    assert found.value == 1.0
    assert found.interval == (auc_interval(np.ones(15), np.zeros(5))[0], 1.0)
    found = auc_over_targets(np.zeros(truth.shape), truth, seed=0, resamples=50)
    assert found.value == 0.5
    assert found.interval[0] < 0.5 < found.interval[1]


def test_resamples_without_members_are_left_out() -> None:
    truth = np.array([[True, False, False]])
    found = auc_over_targets(np.array([[1.0, 0.0, 2.0]]), truth, seed=0, resamples=100)
    assert found.value == 0.5
    assert found.interval == (0.0, 1.0)


def test_rates_that_few_non_members_cannot_tell_are_none() -> None:
    rng = np.random.default_rng(5)
    truth = np.arange(2_000) % 2 == 0
    scores = rng.normal(size=(2, 2_000)) + truth
    both = np.stack([truth, truth])
    found = tpr_over_targets(scores, both, 0.01, seed=0, resamples=20)
    assert found is not None and found.interval[0] < found.value < found.interval[1]
    both[1, 1] = True
    assert tpr_over_targets(scores, both, 0.01, seed=0, resamples=20) is None


def test_permuted_truth_is_a_coin() -> None:
    rng = np.random.default_rng(6)
    scores, truth = shared_records(rng, 60)
    missed = 0
    for number in range(200):
        # Targets keep their own membership, and rows change places in all of them at once.
        low, high = auc_over_targets(
            scores, rng.permuted(truth, axis=1), seed=number, resamples=200
        ).interval
        missed += not low <= 0.5 <= high
    assert missed <= stats.binom.isf(1e-4, 200, 0.065)


@pytest.mark.parametrize(
    ("scores", "truth", "match"),
    [
        ([1.0], [True], "scores with shape"),
        ([[1.0, 0.0]], [[1, 0]], "truth of type"),
        ([[1.0, 0.0]], [[True]], "truth of type"),
        ([[1.0, 0.0], [1.0, 0.0]], [[True, False], [True, True]], r"truth .* targets \[1\]"),
        ([[np.nan, 0.0]], [[True, False]], "members without NaN"),
    ],
)
def test_what_does_not_fit_is_refused(scores: object, truth: object, match: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)Expected {match}"):
        auc_over_targets(scores, truth, seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resamples=0"):
        auc_over_targets([[1.0, 0.0]], [[True, False]], seed=0, resamples=0)


def test_a_rate_is_not_too_high_by_the_last_false_positive() -> None:
    """Where nothing leaks, many targets make the interval narrow, and the rate stays too high."""
    missed = {0: 0, 1: 0}
    for trial in range(20):
        rng = np.random.default_rng(trial)
        truth = rng.random((60, 500)) < 0.5
        scores = rng.normal(size=truth.shape)
        for spared in missed:
            found = tpr_over_targets(scores, truth, 0.05, seed=trial, resamples=40, spared=spared)
            assert found is not None
            missed[spared] += found.interval[0] > 0.05
    # Of 20 intervals 2.5% may lie above the truth: four or more have a probability of 0.0015.
    assert missed[1] < 4 <= missed[0]
