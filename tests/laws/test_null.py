"""Law: where nothing can be found, intervals and bounds fail no more often than they say.

Scores are kept and the truth is permuted. A broken twin is caught by each test.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from privtrain.attacks.membership import LossThreshold
from privtrain.attacks.one_run.attack import OneRun
from privtrain.attacks.scores import Scores, auc_interval
from privtrain.core.observers import PUBLIC
from privtrain.core.result import Leakage
from privtrain.core.task import Canaries
from privtrain.runs.refereeing import (
    Candidates,
    coin_leakage,
    drawn,
    membership_leakage,
    scores_of,
)
from tests.contracts.attack import ByHeart, rows, target


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
