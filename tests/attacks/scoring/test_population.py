import numpy as np
import pytest
from scipy import stats

from privtrain.attacks.scoring import population


def test_ranks_equal_the_loop_exactly() -> None:
    rng = np.random.default_rng(0)
    # On a coarse grid, so that losses tie with each other and with the population's.
    losses, others = rng.integers(0, 20, 100) / 4, rng.integers(0, 20, 37) / 4
    scores, p_values = population.scores(losses, others), population.p_values(losses, others)
    for row, loss in enumerate(losses):
        reached = sum(1 for other in others if other <= loss)
        assert scores[row] == (37 - reached) / 37
        assert p_values[row] == (1 + reached) / 38


def test_fixed_arrays() -> None:
    losses, others = [0.5, 1.0, 3.0, 9.0, 0.0], [1.0, 2.0, 3.0, 4.0]
    assert population.scores(losses, others).tolist() == [1.0, 0.75, 0.25, 0.0, 1.0]
    assert population.p_values(losses, others).tolist() == [0.2, 0.4, 0.8, 1.0, 0.2]


def test_infinite_losses_have_ranks_and_nan_has_none() -> None:
    losses, others = [-np.inf, np.inf, np.nan], [0.0, np.inf]
    assert population.scores(losses, others).tolist() == [1.0, 0.0, -np.inf]
    assert population.p_values(losses, others).tolist() == [1 / 3, 1.0, 1.0]


@pytest.mark.parametrize("tied", [False, True])
def test_p_values_are_small_no_more_often_than_they_say(tied: bool) -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4_000, 20))
    draws = draws.round() if tied else draws
    found = np.array([population.p_values(row[:1], row[1:])[0] for row in draws])
    plain = np.array([1 - population.scores(row[:1], row[1:])[0] for row in draws])
    for alpha in (0.05, 0.1, 0.5):
        assert (found <= alpha).sum() <= stats.binom.isf(1e-4, 4_000, alpha)
    # Without the 1, which counts the row itself, a p-value of 0 would be common.
    if not tied:
        assert (plain <= 0.01).sum() > stats.binom.isf(1e-4, 4_000, 0.01)


@pytest.mark.parametrize(
    ("losses", "others", "match"),
    [([], [1.0], "losses"), ([1.0], [], "population"), ([1.0], [np.nan], "population without NaN")],
)
def test_what_does_not_fit_is_refused(losses: list[float], others: list[float], match: str) -> None:
    for score in (population.scores, population.p_values):
        with pytest.raises(ValueError, match=f"Expected {match}"):
            score(losses, others)
