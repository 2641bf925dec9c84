"""LiRA scores by the values of shadow models: as its formula says, on the values that it gets."""

from dataclasses import replace

import numpy as np
import pytest

from privtrain.attacks.lira import LiRA
from privtrain.attacks.membership import row_losses
from privtrain.attacks.scoring import lira
from privtrain.attacks.scoring.lira import Variance
from privtrain.core.observers import PUBLIC
from tests.contracts.attack import TASK, Lending, handed, rows


@pytest.mark.parametrize("variance", ["shared", "own"])
def test_scores_are_those_of_its_formula(variance: str) -> None:
    candidates = rows(1)
    seen = handed(PUBLIC, candidates)
    models = Lending(candidates)(8)
    own = lira.phi_of_losses(row_losses(seen.predictor, TASK, candidates, 7).numpy())
    theirs = lira.phi_of_losses(models.losses)
    for online, scored in ((True, lira.online), (False, lira.offline_deviations)):
        attack = LiRA(shadows=8, online=online, variance=variance)
        expected = scored(own, theirs, models.included, variance=Variance(variance))
        np.testing.assert_allclose(attack.score(seen, candidates, seed=0), expected, rtol=1e-6)


def test_losses_that_are_no_probabilities_are_compared_as_they_are() -> None:
    task = replace(TASK, loss=lambda logits, labels: -logits[:, 0])
    candidates = rows(1)
    seen = replace(handed(PUBLIC, candidates), task=task)
    models = Lending(candidates)(4)
    own = row_losses(seen.predictor, task, candidates, 64).numpy()
    expected = lira.online(-own, -models.losses, models.included)
    np.testing.assert_allclose(LiRA(shadows=4).score(seen, candidates, seed=0), expected)


def test_variants_have_rows_of_their_own_in_tables() -> None:
    assert (LiRA().name, LiRA(online=False).name) == ("LiRA", "LiRA offline")
    with pytest.raises(ValueError, match="variance='mine' to be one of own, shared"):
        LiRA(variance="mine")
