"""Law: where nothing can be found, intervals and bounds fail no more often than they say.

Scores are kept and the truth is permuted. A broken twin is caught by each test.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from privtrain.attacks.attack import MembershipAttack
from privtrain.attacks.lira import LiRA
from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.one_run.attack import OneRun
from privtrain.attacks.rmia import RMIA
from privtrain.attacks.scores import Scores, auc_interval
from privtrain.core.observers import PUBLIC
from privtrain.core.result import Leakage
from privtrain.core.task import Canaries, FederatedData
from privtrain.report.progress import silent
from privtrain.runs import auditing_trainers
from privtrain.runs.auditing_trainers import Trained, judged, train_pairs
from privtrain.runs.refereeing import (
    Candidates,
    coin_leakage,
    drawn,
    membership_leakage,
    scores_of,
)
from privtrain.runs.shadows import complementary_halves
from privtrain.trainers.sgd import SGD
from tests.contracts.attack import ByHeart, rows, target
from tests.trainers.federations import STAR, TASK, some_rows


def most(times: int, error: float) -> int:
    """So often an event of this probability happens at most, but for one time in ten thousand."""
    return int(binom.ppf(1 - 1e-4, times, error))


PERMUTATIONS = 200
NULL = {"auc": 0.5, "advantage": 0.0, "tpr_at_1%_fpr": 0.01}


def permuted(seed: int, included: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return included[torch.randperm(len(included), generator=generator)]


def misses(found: Leakage) -> list[str]:
    """The intervals that do not hold what a score without any power has."""
    return [n for n, v in NULL.items() if not found.intervals[n][0] <= v <= found.intervals[n][1]]


@pytest.fixture(scope="module")
def kept() -> tuple[Scores, Candidates]:
    """Scores of a model that knows half of 2,000 rows by heart, of which many tie."""
    sides = rows(1, 1_000), rows(2, 1_000)
    known = drawn(*sides, LossThreshold(), seed=0)
    seen = target(PUBLIC, ByHeart(sides[0].take(torch.arange(500))))
    return scores_of(LossThreshold(), seen, known, seed=0), known


def test_intervals_miss_nothing_no_more_often_than_they_say(
    kept: tuple[Scores, Candidates],
) -> None:
    scores, known = kept
    assert "auc" in misses(membership_leakage(LossThreshold(), scores, known))
    # Once as they are, and once with ties broken by chance.
    chance = np.random.default_rng(0).normal(size=len(scores))
    for values in (scores, scores + 1e-3 * chance):
        missed = [
            name
            for seed in range(PERMUTATIONS)
            for name in misses(
                membership_leakage(
                    LossThreshold(), values, replace(known, included=permuted(seed, known.included))
                )
            )
        ]
        for name in NULL:
            assert missed.count(name) <= most(PERMUTATIONS, 0.05)


def test_intervals_that_are_too_narrow_are_caught(kept: tuple[Scores, Candidates]) -> None:
    scores, known = kept
    missed = 0
    for seed in range(PERMUTATIONS):
        members = permuted(seed, known.included).numpy()
        low, high = auc_interval(scores[members], scores[~members], confidence=0.8)
        missed += not low <= 0.5 <= high
    assert missed > most(PERMUTATIONS, 0.05)


def test_lower_bounds_exceed_0_no_more_often_than_they_say() -> None:
    attack = OneRun(guesses=100, delta=1e-6)
    canaries = Canaries(rows=rows(3, 200), included=torch.arange(200) % 2 == 0)
    scores = np.random.default_rng(1).normal(size=200)

    def positive_bounds(shift: float, times: int) -> int:
        positive = 0
        for seed in range(times):
            coins = replace(canaries, included=permuted(seed, canaries.included))
            shifted = scores + shift * coins.included.numpy()
            found = coin_leakage(attack, shifted, coins, (), seed=seed).metrics
            positive += (found["epsilon_lower_bound"] or 0.0) > 0
        return positive

    assert positive_bounds(0.0, PERMUTATIONS) <= most(PERMUTATIONS, 0.05)
    assert positive_bounds(1.0, 40) > most(40, 0.05)


# Several targets


class WithinTheDesign(Trained):
    """A broken twin: the model that has what the target lacks is among its shadows."""

    def shadows_of(self, target: int) -> list[int]:
        first, _, third, fourth = super().shadows_of(target)[:4]
        return [2 * target + 1, first, third, fourth]


@pytest.fixture(scope="module")
def models() -> Trained:
    """Two targets and two further pairs, on halves of 100 rows."""
    data = FederatedData(train={"p": some_rows(1, 100)}, test=some_rows(2))
    return train_pairs(
        SGD(epochs=5, learning_rate=0.5), TASK, data, targets=2, shadows=6, seed=0, where=STAR,
        device="cpu", progress=silent,
    )  # fmt: skip


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the resamples: ends of 95% intervals move by little."""
    short = partial(auditing_trainers.auc_over_targets, resamples=100)
    monkeypatch.setattr(auditing_trainers, "auc_over_targets", short)


def over_designs(
    trained: Trained, attack: MembershipAttack, times: int = PERMUTATIONS
) -> tuple[Scores, int]:
    """AUCs where membership is drawn again for the same models, and how many intervals miss 0.5."""
    count, rows_of_all = trained.included.shape
    areas, missed = [], 0
    for seed in range(times):
        again = complementary_halves([rows_of_all], count, seed).numpy()
        found = judged(replace(trained, included=again), attack, seed=seed)
        assert found.failure is None, found.failure
        low, high = found.intervals["auc"]
        areas.append(found.metrics["auc"] or 0.0)
        missed += not low <= 0.5 <= high
    return np.array(areas), missed


def deviations(areas: Scores) -> float:
    """By how many of its standard errors the mean lies away from 0.5."""
    return abs(float(areas.mean() - 0.5) / float(areas.std(ddof=1)) * len(areas) ** 0.5)


@pytest.mark.usefixtures("fewer_resamples")
@pytest.mark.parametrize(
    "attack", [RMIA(shadows=4), LiRA(shadows=4, variance="own")], ids=["RMIA", "LiRA"]
)
def test_figures_of_a_trainer_miss_nothing_no_more_often_than_they_say(
    attack: MembershipAttack, models: Trained
) -> None:
    areas, missed = over_designs(models, attack)
    assert deviations(areas) < 3.9  # once in ten thousand
    # Percentiles of few records are a little too narrow: 6.5%, as in test_over_targets.
    assert missed <= most(PERMUTATIONS, 0.065)


@pytest.mark.usefixtures("fewer_resamples")
def test_a_target_within_the_design_of_its_shadows_is_caught(models: Trained) -> None:
    twin = WithinTheDesign(**vars(models))
    areas, _ = over_designs(twin, LiRA(shadows=4, variance="own"), 100)
    assert deviations(areas) > 3.9
