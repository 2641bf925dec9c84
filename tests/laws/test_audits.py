"""Law: what an attack proves stays below the stated epsilon, and a broken twin is caught.

Each attack fixes its threshold beforehand. The bounds hold with confidence 1 - 1e-4.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.attacks.scores import epsilon_lower_bound
from privtrain.core.runtime import Reply, Runtimes
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import Unit
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.core.trainer import RELEASE, PrivacyPlan, Run
from privtrain.core.transcript import Transcript
from privtrain.gradients.opacus import Opacus
from privtrain.ledgers.run import JournalLedger, epsilon_of
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.mechanisms.votes import GNMax
from privtrain.release.aggregation import BoundedSum
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.runs.fitting import fit
from privtrain.runtimes.in_process import InProcess
from privtrain.trainers.dp_sgd import DPSGD
from tests.statistics import normal_with_std

CONFIDENCE = 1 - 1e-4
DELTA = 1e-5
REPEATS = 6_000


def a_run(plans: tuple[PrivacyPlan, ...], seed: int) -> Run:
    from privtrain.core.seeding import OnceOnly

    return Run(
        ledger=JournalLedger(plans),
        transcript=Transcript(),
        seeds=Seeds(0),
        entropy=OnceOnly(SeededEntropy(seed)),
    )


def bound_of(inside: np.ndarray, outside: np.ndarray) -> float:
    return epsilon_lower_bound(
        int(inside.sum()),
        inside.size,
        int(outside.sum()),
        outside.size,
        delta=DELTA,
        confidence=CONFIDENCE,
    )


def released(mechanism: Mechanism, total: Tensor, seed: int) -> np.ndarray:
    """The same sum released again and again: its first coordinate over the clipping norm."""
    release = Release(mechanism)
    plans = release.plans(unit=Unit.EXAMPLE, count=REPEATS, parties=1)
    run = a_run(plans, seed)
    assert run.spend(REPEATS)
    found = [
        float(release.arrive(BoundedSum(total, 1.0), run, round=i, kind="gradient").value[0])
        for i in range(REPEATS)
    ]
    return np.array(found)


class Canary:
    """Makes one weight: the canary's gradient is along it."""

    def __call__(self) -> nn.Module:
        layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        return layer


def pull(logits: Tensor, targets: Tensor) -> Tensor:
    return -100.0 * logits[:, 0] * targets.to(logits.dtype)


OTHERS = Rows(torch.ones(5, 1, dtype=torch.float64), torch.zeros(5, dtype=torch.long))
WITH_CANARY = Rows(
    torch.ones(6, 1, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 0, 1], dtype=torch.long)
)


def sums(clipping_norm: float) -> tuple[Tensor, Tensor]:
    """Clipped sums of gradients without and with the canary."""
    engine = Opacus().engine(Canary()(), pull)
    return tuple(  # type: ignore[return-value]
        -engine.clipped_sum(rows, clipping_norm).value for rows in (OTHERS, WITH_CANARY)
    )


def audited(mechanism: Mechanism, totals: tuple[Tensor, Tensor]) -> float:
    without, with_canary = (released(mechanism, total, i) for i, total in enumerate(totals))
    return bound_of(with_canary > 2.5, without > 2.5)


def stated(mechanism: Mechanism) -> float:
    (plan, *_) = Release(mechanism).plans(unit=Unit.EXAMPLE, count=1, parties=1)
    return epsilon_of(plan, {RELEASE: 1}, DELTA)


class Silent(Gaussian):
    """The broken twin: its event speaks of noise that it does not draw."""

    def add(
        self, total: Tensor, state: object, stream: object, *, fraction: float = 1.0
    ) -> tuple[Tensor, object]:
        return total, state


@pytest.mark.slow
@pytest.mark.parametrize(("secure", "epsilon"), [(False, 4.377), (True, 4.397)])
def test_the_clipped_sum_stays_below_its_epsilon(secure: bool, epsilon: float) -> None:
    mechanism = Gaussian(1.0, 1.0, secure=secure)
    bound = audited(mechanism, sums(1.0))
    assert 1.2 < bound <= stated(mechanism)
    assert stated(mechanism) == pytest.approx(epsilon, abs=1e-3)


def test_a_sum_without_its_noise_is_caught() -> None:
    # At a threshold between 0 and 1 nothing but noise could be mistaken.
    for broken in (Silent(1.0, 1.0), Silent(1.0, 1.0, secure=True)):
        without, with_canary = (released(broken, total, 0) for total in sums(1.0))
        assert bound_of(with_canary > 0.5, without > 0.5) > stated(broken)


@pytest.mark.slow
def test_a_sum_that_was_not_clipped_is_caught() -> None:
    assert float(sums(1e9)[1][0]) == pytest.approx(100.0)
    assert audited(Gaussian(1.0, 1.0), sums(1e9)) > stated(Gaussian(1.0, 1.0))


@pytest.mark.slow
@pytest.mark.usefixtures("tried_once")
@pytest.mark.parametrize(
    ("mechanism", "sound"), [(Gaussian(1.0, 2.0), True), (Silent(1.0, 2.0), False)]
)
def test_whole_training_runs_stay_below_the_statement(mechanism: Gaussian, sound: bool) -> None:
    # Enough to prove 2.7 of a run without noise, which is more than is stated.
    repeats = 150
    trainer = DPSGD(
        epochs=1,
        sampling_rate=1.0,
        expected_batch=1.0,
        learning_rate=1.0,
        release=Release(mechanism),
    )
    found = []
    epsilon = 0.0
    for world, rows in enumerate((OTHERS, WITH_CANARY)):
        data = FederatedData(train={"a": rows}, test=OTHERS, public_rows=6)
        scores = []
        for repeat in range(repeats):
            result = fit(
                trainer,
                Task(model=Canary(), loss=pull),
                data,
                runtimes=Runtimes(star=InProcess()),
                seed=2 * repeat + world,
            )
            epsilon = result.statement.epsilon()
            scores.append(float(result.predictor(torch.ones(1, 1, dtype=torch.float64))))
        found.append(np.array(scores))
    bound = bound_of(found[1] > 0.5, found[0] > 0.5)
    assert epsilon == pytest.approx(1.993, abs=1e-3)
    assert (bound <= epsilon) == sound
    for world, center in enumerate((0.0, 1.0)):
        assert normal_with_std(found[world] - center, 2.0) == sound


class SilentVotes(GNMax):
    """The broken twin of votes."""

    def add(
        self, total: Tensor, state: object, stream: object, *, fraction: float = 1.0
    ) -> tuple[Tensor, object]:
        return total, state


@pytest.mark.parametrize(("mechanism", "sound"), [(GNMax(1.5), True), (SilentVotes(1.5), False)])
def test_answers_of_teachers_stay_below_their_epsilon(mechanism: GNMax, sound: bool) -> None:
    """One teacher moves its vote from a class to the other, and decides the vote."""
    release = Release(mechanism, finish=ARGMAX)
    plans = release.plans(unit=Unit.EXAMPLE, count=REPEATS, parties=1)
    epsilon = epsilon_of(plans[0], {RELEASE: 1}, DELTA)
    answers = []
    expected = Expected(contributions=5)
    for seed, counts in enumerate(([3.0, 2.0], [2.0, 3.0])):
        run = a_run(plans, seed)
        assert run.spend(REPEATS)
        votes = {"votes": torch.tensor([counts]).repeat(REPEATS, 1).double()}
        winners = release.arrive(
            {"a": Reply(votes)}, run, round=1, kind="votes", releases=REPEATS, expected=expected
        )
        answers.append(winners.value.numpy() == 1)
    bound = bound_of(answers[1], answers[0])
    assert bound > 0.5
    assert (bound <= epsilon) == sound
