"""Tuning: the choice is counted by theorem, noisy scores are noisy, leaks are refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privtrain.accounting.divergences import ORDERS
from privtrain.accounting.selection import RandomTrials
from privtrain.core.errors import BudgetExceededError, UnsoundReleaseError
from privtrain.core.statement import Budget
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs import tuning
from privtrain.runs.fitting import fit
from privtrain.runs.scoring import PrivateRows, PublicRows
from privtrain.runs.statements import TUNING_NOT_COUNTED
from privtrain.runs.tuning import TUNING_COUNTED, tune
from privtrain.sampling.batches import ShuffledEpochs
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation

DATA = replace(a_federation(12, 9, 15, public_rows=36), digest="ab" * 32)
OTHERS = a_federation(14, 7).pooled()
PUBLIC_ROWS = PublicRows(OTHERS)
NOISE, EPOCHS, DELTA = 3.0, 2, 1e-5


def setting(learning_rate: float = 0.5, noise: float = NOISE) -> DPSGD:
    return DPSGD(
        epochs=EPOCHS,
        expected_batch=12.0,
        learning_rate=learning_rate,
        sampling=ShuffledEpochs(),
        release=Release(Gaussian(1.0, noise)),
    )


def tuned(score: Any = PUBLIC_ROWS, mean: float = 3.0, **options: Any) -> tuning.Tuned:
    given: dict[str, Any] = {"trainers": {"slow": setting(1e-9), "fast": setting()}, **options}
    trials = RandomTrials(mean=mean)
    return tune(
        given.pop("trainers"), TASK, DATA, score=score, trials=trials, runtimes=STAR, **given
    )


def plain_epsilon(rdp_of_one: np.ndarray[Any, Any], mean: float) -> float:
    """Theorem 2 for the geometric distribution, and the improved conversion, written out."""
    orders = np.array(ORDERS)
    second = np.min((1 - 1 / orders) * rdp_of_one + math.log(mean) / orders)
    rdp = rdp_of_one + 2 * min(second, math.log(mean)) + math.log(mean) / (orders - 1)
    whole = rdp + np.log1p(-1 / orders) - (math.log(DELTA) + np.log(orders)) / (orders - 1)
    return float(whole.min())


@pytest.mark.parametrize("mean", [1.0, 3.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_the_choice_costs_what_the_theorem_says(mean: float) -> None:
    """Papernot and Steinke 2022, Theorem 2, over two Gaussians of noise multiplier 3."""
    one = np.array(ORDERS) * EPOCHS / (2 * NOISE**2)
    found = tuned(mean=mean).result.statement.epsilon("public")
    assert found == pytest.approx(plain_epsilon(one, mean), rel=1e-6)


def test_scores_on_private_rows_are_paid_for_in_each_trial() -> None:
    one = np.array(ORDERS) * (EPOCHS / (2 * NOISE**2) + 1 / (2 * 5.0**2))
    score = PrivateRows(OTHERS, Gaussian(1.0, 5.0))
    found = tuned(score).result.statement.epsilon("public")
    assert found == pytest.approx(plain_epsilon(one, 3.0), rel=1e-6)
    assert found > tuned().result.statement.epsilon("public")


def test_a_broken_twin_that_counts_one_run_says_less() -> None:
    result = fit(setting(), TASK, DATA, runtimes=STAR, delta=DELTA)
    assert tuned().result.statement.epsilon("public") > 1.3 * result.statement.epsilon("public")


@pytest.mark.slow
def test_settings_of_different_noise_cost_what_the_costliest_costs() -> None:
    one = np.array(ORDERS) * EPOCHS / (2 * 2.0**2)
    found = tuned(trainers={"quiet": setting(noise=2.0), "loud": setting(noise=9.0)})
    assert found.result.statement.epsilon("public") == pytest.approx(plain_epsilon(one, 3.0))


def test_statements_say_whether_the_choice_is_counted() -> None:
    statement = tuned().result.statement
    assert TUNING_COUNTED in statement.caveats
    assert TUNING_NOT_COUNTED not in statement.caveats
    assert TUNING_NOT_COUNTED in fit(setting(), TASK, DATA, runtimes=STAR).statement.caveats
    assert statement.epsilon("aggregator") == math.inf


def test_the_best_of_the_trials_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[float] = []
    plain = PublicRows.measure

    def measure(self: PublicRows, predictor: Any, generator: Any) -> float:
        scores.append(plain(self, predictor, generator))
        return scores[-1]

    monkeypatch.setattr(PublicRows, "measure", measure)
    best = tuned(mean=20.0)
    assert len(set(scores)) > 1
    assert best.score == max(scores)
    assert plain(PUBLIC_ROWS, best.result.predictor, np.random.default_rng(0)) == best.score
    assert tuned(mean=20.0).score == best.score


def test_nothing_runs_where_the_whole_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "fit", lambda *given, **options: pytest.fail("a trial was run"))
    one = fit(setting(), TASK, DATA, runtimes=STAR, delta=DELTA).statement.epsilon("public")
    with pytest.raises(BudgetExceededError):
        tuned(budget=Budget(one * 1.1, DELTA))
    study = StudyLedger(DATA, budget=Budget(one * 1.1, DELTA))
    with pytest.raises(BudgetExceededError):
        tuned(study_ledger=study)


def test_settings_that_promise_other_things_are_refused() -> None:
    other = replace(setting(), sampling=ShuffledEpochs(replace_one=True))
    with pytest.raises(UnsoundReleaseError, match="'other' promises"):
        tuned(trainers={"one": setting(), "other": other})
    with pytest.raises(ValueError, match="trainers="):
        tuned(trainers={})


def test_a_choice_that_includes_no_noise_promises_nothing() -> None:
    found = tuned(trainers={"plain": SGD(epochs=1)})
    assert found.result.statement.epsilon("public") == math.inf
