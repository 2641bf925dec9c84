"""Attack P: where a loss stands among those of rows that nobody trained on."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

from privtrain.attacks.membership import LossThreshold, row_losses
from privtrain.attacks.population import PopulationLoss
from privtrain.core.errors import NotApplicableError, Reason
from privtrain.core.observers import PUBLIC
from privtrain.core.result import Target
from privtrain.core.task import Rows
from tests.contracts.attack import TASK, rows, target

SEEN = target(PUBLIC)


def population_of(seen: Target) -> Rows:
    assert seen.population is not None
    return seen.population


def by_hand(seen: Target, candidates: Rows, *, by_class: bool) -> list[float]:
    """One comparison after another."""
    others = population_of(seen)
    theirs = row_losses(seen.predictor, TASK, others, 64).tolist()
    scores = []
    for own, label in zip(
        row_losses(seen.predictor, TASK, candidates, 64).tolist(), candidates.labels, strict=True
    ):
        compared = [
            loss
            for loss, other in zip(theirs, others.labels, strict=True)
            if not by_class or other == label
        ]
        larger = sum(loss > own for loss in compared)
        scores.append(larger / len(compared) if compared else np.nan)
    return scores


@pytest.mark.parametrize("by_class", [False, True])
def test_scores_are_fractions_of_population_rows_with_larger_losses(by_class: bool) -> None:
    candidates = rows(1)
    scores = PopulationLoss(by_class=by_class, batch_size=7).score(SEEN, candidates, seed=0)
    assert np.array_equal(scores, by_hand(SEEN, candidates, by_class=by_class))


def test_a_class_without_population_rows_gets_no_score() -> None:
    others = population_of(SEEN)
    seen = replace(SEEN, population=others.take((others.labels != 4).nonzero().flatten()))
    candidates = rows(1)
    scores = np.asarray(PopulationLoss(by_class=True).score(seen, candidates, seed=0))
    assert np.array_equal(np.isnan(scores), (candidates.labels == 4).numpy())
    assert np.isnan(scores).any()


def test_candidates_are_ordered_as_by_their_losses() -> None:
    candidates = rows(1)
    scores = np.asarray(PopulationLoss().score(SEEN, candidates, seed=0))
    plain = np.asarray(LossThreshold().score(SEEN, candidates, seed=0))
    assert (np.diff(scores[plain.argsort()]) >= 0).all()


def test_who_accuses_from_a_score_on_accuses_as_many_as_it_says() -> None:
    """Of rows that nobody trained on, but for one time in ten thousand."""
    seen = replace(SEEN, population=rows(5, 5_000))
    scores = np.asarray(PopulationLoss().score(seen, rows(6, 2_000), seed=0))
    # The margin of the population's own quantile is added.
    accused, margin = int((scores >= 0.95).sum()), 4 * (0.05 * 0.95 / 5_000) ** 0.5
    low, high = binom.ppf(5e-5, 2_000, 0.05 - margin), binom.isf(5e-5, 2_000, 0.05 + margin)
    assert low <= accused <= high


def test_what_is_no_number_is_left_out_of_the_population_and_gets_no_score() -> None:
    def broken(inputs: Tensor) -> Tensor:
        return torch.where(inputs[:, :1] > 0, torch.nan, SEEN.predictor(inputs))

    candidates, others = rows(1), population_of(SEEN)
    numbers = (others.inputs[:, 0] <= 0).nonzero().flatten()
    expected = PopulationLoss().score(
        replace(SEEN, population=others.take(numbers)), candidates, seed=0
    )
    scores = PopulationLoss().score(replace(SEEN, predictor=broken), candidates, seed=0)
    lost = (candidates.inputs[:, 0] > 0).numpy()
    assert np.isnan(scores[lost]).all() and np.array_equal(scores[~lost], expected[~lost])


def test_why_it_does_not_apply() -> None:
    with pytest.raises(NotApplicableError, match="Set validation rows aside") as without:
        PopulationLoss().score(replace(SEEN, population=None), rows(1), seed=0)
    assert without.value.reason is Reason.NO_POPULATION
    real = Rows(torch.randn(6, 8), torch.rand(6))
    task = replace(TASK, loss=lambda outputs, targets: (outputs[:, 0] - targets).square())
    seen = replace(SEEN, task=task, population=real)
    assert np.isfinite(PopulationLoss().score(seen, real, seed=0)).all()
    with pytest.raises(NotApplicableError, match="class numbers") as classless:
        PopulationLoss(by_class=True).score(seen, real, seed=0)
    assert classless.value.reason is Reason.NO_CLASSES


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"batch_size": 0}, {"by_class": "yes"}])
def test_wrong_settings_are_named(wrong: Mapping[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PopulationLoss(**wrong)  # type: ignore[arg-type]
