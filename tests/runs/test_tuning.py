"""Tuning: the choice is counted by theorem, noisy scores are noisy, leaks are refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from privtrain.accounting.divergences import ORDERS
from privtrain.accounting.event import charged
from privtrain.accounting.selection import RandomTrials
from privtrain.accounting.winner import gnmax_check_rdp
from privtrain.core.errors import (
    BudgetExceededError,
    DataError,
    PrivacyError,
    UnsoundReleaseError,
)
from privtrain.core.measures import Metric
from privtrain.core.metrics import accuracy, auc
from privtrain.core.result import TrainResult
from privtrain.core.seeding import SEEDED, SYSTEM, EntropyKind
from privtrain.core.statement import SIMULATED, Budget
from privtrain.core.task import Rows, Task
from privtrain.core.trainer import RELEASE
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.reduce import MAX
from privtrain.runs import tuning
from privtrain.runs.fitting import fit
from privtrain.runs.publishing import STUDY_START
from privtrain.runs.scoring import PrivateRows, PublicRows
from privtrain.runs.statements import TUNING_NOT_COUNTED
from privtrain.runs.tuning import TUNING_COUNTED, selection_plans, tune
from privtrain.sampling.batches import ShuffledEpochs
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation, module, vector


def no_signal(logits: Tensor, targets: Tensor) -> Tensor:
    return 0.0 * logits.sum(dim=1)


class Silent(nn.Linear):
    """A layer that starts at zero: what it ends as is noise."""

    def __init__(self) -> None:
        super().__init__(5, 200, dtype=torch.float64)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


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
    task = given.pop("task", TASK)
    return tune(
        given.pop("trainers"), task, DATA, score=score, trials=trials, runtimes=STAR, **given
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
    assert statement.epsilon("curator") == math.inf


def test_the_best_of_the_trials_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: list[float] = []
    plain = PublicRows.measure

    def measure(self: PublicRows, predictor: Any, stream: Any) -> float:
        scores.append(plain(self, predictor, stream))
        return scores[-1]

    monkeypatch.setattr(PublicRows, "measure", measure)
    # A seed of which several trials are drawn, with other scores.
    for seed in range(10):
        scores.clear()
        best = tuned(mean=6.0, seed=seed)
        if len(set(scores)) > 1:
            break
    assert len(set(scores)) > 1
    assert best.score == max(scores)
    assert plain(PUBLIC_ROWS, best.result.predictor, np.random.default_rng(0)) == best.score
    assert tuned(mean=6.0, seed=seed).score == best.score


def log_loss(logits: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("best", ["high", "low"])
def test_the_best_is_the_lowest_where_less_is_better(
    best: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[float] = []
    plain = PublicRows.measure

    def measure(self: PublicRows, predictor: Any, stream: Any) -> float:
        scores.append(plain(self, predictor, stream))
        return scores[-1]

    monkeypatch.setattr(PublicRows, "measure", measure)
    task = replace(TASK, metrics={"how sure": Metric(log_loss, best=best)})
    for seed in range(10):
        scores.clear()
        found = tuned(mean=6.0, seed=seed, task=task)
        if len(set(scores)) > 1:
            break
    assert len(set(scores)) > 1
    assert found.score == (max(scores) if best == "high" else min(scores))
    assert found.score == pytest.approx(
        log_loss(found.result.predictor(OTHERS.inputs), OTHERS.labels)
    )


def test_a_trial_without_a_score_loses_to_every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(10):
        given = iter([math.nan, 0.25, math.nan, 0.5, *[math.nan] * 100])
        made: list[float] = []

        def measure(
            self: Any, predictor: Any, stream: Any, given: Any = given, made: Any = made
        ) -> float:
            made.append(next(given))
            return made[-1]

        monkeypatch.setattr(PublicRows, "measure", measure)
        found = tuned(mean=6.0, seed=seed)
        if len(made) > 3:
            break
    assert len(made) > 3 and found.score == 0.5


def test_a_main_metric_without_a_value_is_refused_before_a_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        tuning, "fit_trial", lambda *given, **options: pytest.fail("a trial was run")
    )
    for broken in (lambda o, t: 1 / 0, lambda o, t: math.nan, lambda o, t: o):
        task = replace(TASK, metrics={"accuracy": accuracy, "own": broken}, main="own")
        with pytest.raises(DataError, match=r"main metric 'own'.*on score\.rows"):
            tuned(task=task)
    task = replace(TASK, metrics={"auc": auc})
    with pytest.raises(DataError, match=r"main metric 'auc'"):
        tuned(PublicRows(Rows(OTHERS.inputs, torch.zeros_like(OTHERS.labels))), task=task)


def test_nothing_runs_where_the_whole_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tuning, "fit_trial", lambda *given, **options: pytest.fail("a trial was run")
    )
    one = fit(setting(), TASK, DATA, runtimes=STAR, delta=DELTA).statement.epsilon("public")
    with pytest.raises(BudgetExceededError):
        tuned(budget=Budget(one * 1.1, DELTA))
    study = StudyLedger(DATA, budget=Budget(one * 1.1, DELTA))
    with pytest.raises(BudgetExceededError):
        tuned(study_ledger=study)


class Frozen(nn.Module):
    """Frozen random features, which a published model shows as they started.

    Args:
        numpy: Whether they are drawn by numpy.
    """

    def __init__(self, numpy: bool) -> None:
        super().__init__()
        self.features = nn.Linear(5, 16, dtype=torch.float64).requires_grad_(False)
        self.last = nn.Linear(16, 3, dtype=torch.float64)
        if numpy:
            self.features.weight.copy_(torch.from_numpy(np.random.randn(16, 5)))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(torch.relu(self.features(x)))
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("entropy", [SEEDED, SYSTEM])
@pytest.mark.parametrize("numpy", [False, True])
def test_a_published_start_does_not_tell_which_trial_won(
    entropy: EntropyKind, numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the trials is the best."""
    winners = []
    for winner in range(6):
        scores = iter(range(-winner, 100))
        monkeypatch.setattr(PublicRows, "measure", lambda *_, left=scores: -abs(next(left)))
        monkeypatch.setattr(RandomTrials, "draw", lambda *_: 6)
        result = tuned(
            task=Task(model=lambda: Frozen(numpy)), trainers={"one": setting()}, entropy=entropy
        ).result
        winners.append(result)
    modules: list[Any] = [winner.predictor.module for winner in winners]  # type: ignore[attr-defined]
    # Each is another trial, whose noise is its own.
    assert len({tuple(m.last.weight.flatten().tolist()) for m in modules}) == 6
    assert len({tuple(m.features.weight.flatten().tolist()) for m in modules}) == 1
    # Nor does anything else that was not trained tell it.
    public = [
        (
            *(
                winner.statement,
                winner.notes,
                winner.halted,
                winner.history.epsilon,
            ),
            *(
                winner.transcript.entries,
                winner.transcript.setups,
                list(winner.history.unprotected),
            ),
            (winner.cost.bytes_sent, winner.cost.rounds, dict(winner.cost.bytes_sent_by_party)),
        )
        for winner in winners
    ]
    assert all(one == public[0] for one in public)
    assert all(math.isnan(w.cost.seconds) and math.isnan(w.cost.peak_memory_bytes) for w in winners)


@pytest.mark.slow
def test_twelve_tunes_publish_one_start() -> None:
    """Secret trials, drawn and scored as they come."""
    results = [
        tuned(task=Task(model=lambda: Frozen(False)), entropy=SYSTEM, mean=10.0).result
        for _ in range(12)
    ]
    starts = [result.predictor.module.features.weight for result in results]  # type: ignore[attr-defined]
    assert len({tuple(start.flatten().tolist()) for start in starts}) == 1


class Hooked(nn.Module):
    """A model with a number that counts in the whole process: that of its hook."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3, dtype=torch.float64)
        self.last.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x)
        return logits


def test_what_counts_in_the_process_does_not_tell_which_trial_won(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = set()
    for winner in (0, 3):
        scores = iter(range(-winner, 100))
        monkeypatch.setattr(PublicRows, "measure", lambda *_, left=scores: -abs(next(left)))
        monkeypatch.setattr(RandomTrials, "draw", lambda *_: 4)
        before = RemovableHandle.next_id
        made: Any = module(tuned(task=Task(model=Hooked), trainers={"one": setting()}).result)
        (key,) = made.last._forward_hooks
        numbers.add(key - before)
    assert len(numbers) == 1


def test_a_study_counts_a_tuning_and_what_goes_on_from_it() -> None:
    study = StudyLedger(DATA)
    first = fit(setting(), TASK, DATA, runtimes=STAR, study_ledger=study)
    task = replace(TASK, model=module(first))
    with pytest.raises(PrivacyError, match="study_ledger="):
        tuned(task=task, trainers={"one": setting()})
    second = tuned(task=task, trainers={"one": setting()}, study_ledger=study).result
    assert STUDY_START in second.statement.guarantees[0].assumptions
    task = replace(TASK, model=module(second))
    with pytest.raises(PrivacyError, match="study_ledger="):
        fit(setting(), task, DATA, runtimes=STAR)
    third = fit(setting(), task, DATA, runtimes=STAR, study_ledger=study)
    assert STUDY_START in third.statement.guarantees[0].assumptions


def test_trials_of_one_trainer_share_no_noise_though_they_start_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[TrainResult] = []
    plain = tuning.fit_trial

    def kept(*given: Any, **options: Any) -> TrainResult:
        seen.append(plain(*given, **options))
        return seen[-1]

    monkeypatch.setattr(tuning, "fit_trial", kept)
    monkeypatch.setattr(RandomTrials, "draw", lambda *_: 5)
    study = StudyLedger(DATA)
    # A round without signal: what a model moved is noise alone.
    for options in ({}, {"study_ledger": study}, {"study_ledger": study}):
        tuned(task=Task(model=Silent, loss=no_signal), trainers={"one": setting()}, **options)
    # The first fit of a study draws what it would draw outside of one.
    moved = torch.stack([vector(module(result)) for result in [*seen[:5], *seen[10:]]])
    correlation = torch.corrcoef(moved) - torch.eye(len(moved))
    # Of 1,200 coordinates each: six standard errors.
    assert float(correlation.abs().max()) < 0.2


def test_a_tuned_statement_keeps_what_data_and_trial_assume() -> None:
    data = replace(DATA, assumptions=("the classes are public",))
    trials = RandomTrials(mean=1.0)
    one = {"one": setting()}
    found = tune(one, TASK, data, score=PUBLIC_ROWS, trials=trials, runtimes=STAR)
    public = found.result.statement.guarantees[0]
    assert public.assumptions.count("the classes are public") == 1
    assert public.assumptions.count(SIMULATED) == 1
    assert len(set(public.assumptions)) == len(public.assumptions)


def test_settings_that_promise_other_things_are_refused() -> None:
    other = replace(setting(), sampling=ShuffledEpochs(replace_one=True))
    with pytest.raises(UnsoundReleaseError, match="'other' promises"):
        tuned(trainers={"one": setting(), "other": other})
    with pytest.raises(ValueError, match="trainers="):
        tuned(trainers={})


def test_a_choice_that_includes_no_noise_promises_nothing() -> None:
    found = tuned(trainers={"plain": SGD(epochs=1)})
    assert found.result.statement.epsilon("public") == math.inf


def test_a_trial_costs_all_kinds_of_what_it_releases() -> None:
    """Checks and answers as often as planned, not as often as one of them."""
    data = replace(DATA, public=Rows(DATA.test.inputs))
    check = Release(GNMax(9.0), reduce=MAX, finish=Threshold(4.0))
    release = Release(GNMax(12.0), finish=ARGMAX)
    plain = PATE(teachers=6, queries=9, release=release)
    trainers = (plain, replace(plain, consensus=check))
    costs = []
    for trainer in trainers:
        (plan, *_) = selection_plans(
            {"pate": trainer}, data, STAR, score=PUBLIC_ROWS, trials=RandomTrials(mean=3.0)
        )
        assert plan.counts == {RELEASE: 1}
        costs.append(np.array(plan.charges[RELEASE].event.rdp))
    assert (costs[1] > costs[0]).all()
    # Of one trial: nine checks more.
    curves = [charged(trainer.plan(data, STAR)[0].charges) for trainer in trainers]
    added = np.array(curves[1].rdp) - np.array(curves[0].rdp)
    assert np.allclose(added, 9 * gnmax_check_rdp(9.0, curves[0].orders))
