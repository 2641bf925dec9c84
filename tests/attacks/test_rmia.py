"""RMIA scores by ratios, which order candidates as the published score does."""

from dataclasses import replace

import numpy as np
import pytest

from privtrain.attacks.membership import row_losses
from privtrain.attacks.rmia import RMIA
from privtrain.attacks.scoring import rmia
from privtrain.core.observers import PUBLIC
from privtrain.core.task import Rows
from tests.contracts.attack import TASK, Lending, handed, rows


def test_scores_are_logs_of_the_ratios() -> None:
    candidates = rows(1)
    seen, models = handed(PUBLIC, candidates), Lending(candidates)(8)
    losses = row_losses(seen.predictor, TASK, candidates, 7).numpy()
    a = rmia.best_a(models.losses, models.included)
    for online, ratios in (
        (True, rmia.online_ratios(losses, models.losses, models.included)),
        (False, rmia.offline_ratios(losses, models.losses, models.included, a=a)),
    ):
        scores = RMIA(shadows=8, online=online).score(seen, candidates, seed=0)
        np.testing.assert_allclose(scores, np.log(ratios), rtol=1e-6)


def test_the_order_is_that_of_the_published_score_for_any_population() -> None:
    candidates = rows(1)
    seen, models = handed(PUBLIC, candidates), Lending(candidates)(8)
    losses = row_losses(seen.predictor, TASK, candidates, 64).numpy()
    ratios = rmia.online_ratios(losses, models.losses, models.included)
    published = rmia.untied_scores(ratios, np.random.default_rng(0).lognormal(size=50))
    scores = np.asarray(RMIA(shadows=8).score(seen, candidates, seed=0))
    assert np.array_equal(scores.argsort(), published.argsort())


def test_a_loss_that_is_of_no_probability_is_refused() -> None:
    candidates: Rows = rows(1)
    task = replace(TASK, loss=lambda logits, labels: -logits[:, 0].abs())
    asked: list[int] = []
    target = replace(handed(PUBLIC, candidates), task=task, shadows=asked.append)
    with pytest.raises(ValueError, match="losses"):
        RMIA(shadows=4).score(target, candidates, seed=0)
    assert asked == []  # before hours of training
    assert (RMIA().name, RMIA(online=False).name) == ("RMIA", "RMIA offline")
