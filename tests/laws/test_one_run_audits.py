"""Law: what one run proves of a mechanism or a training run stays below what is stated.

Bounds hold with confidence 1 - 1e-4 and are compared at the same delta, unit and relation. Guesses
are fixed beforehand. Every audit must also find something, or it would hold of a broken one, too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor

from privtrain.attacks.one_run.attack import OneRun
from privtrain.core.statement import ADD_REMOVE
from privtrain.data.canaries import mislabelled_rows, with_canaries
from privtrain.data.datasets import digits
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import Gradients
from privtrain.gradients.opacus import Opacus
from privtrain.mechanisms.banded import BandedMatrix
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.door import Release
from privtrain.runs.auditing import audit
from privtrain.runs.calibrating import calibrate
from privtrain.runs.fitting import fit
from privtrain.sampling.cyclic import CyclicPoisson
from privtrain.trainers.dp_sgd import DPSGD
from tests.laws import dirac
from tests.trainers.federations import STAR


@dataclass(frozen=True)
class Case:
    """A mechanism, and the least bound that an audit of it must reach."""

    mechanism: Mechanism
    least: float
    votes: bool = False
    sampling_rate: float | None = None
    count: int = 1


SLOW = pytest.mark.slow
CASES = [
    Case(Gaussian(1.0, 0.5), 1.5),
    Case(Gaussian(0.3, 1.0), 0.8),
    Case(Gaussian(1.0, 2.0), 0.15),
    Case(Gaussian(1.0, 3.0), 0.2, count=9),
    pytest.param(Case(Gaussian(1.0, 1.0), 0.2, sampling_rate=0.2, count=20), marks=SLOW),
    pytest.param(Case(Gaussian(1.0, 0.5), 0.5, sampling_rate=0.5, count=2), marks=SLOW),
    pytest.param(Case(Gaussian(1.0, 0.5, secure=True), 1.5), marks=SLOW),
    pytest.param(
        Case(Gaussian(1.0, 1.0, secure=True), 0.2, sampling_rate=0.2, count=20), marks=SLOW
    ),
    Case(Laplace(1.0, 0.5), 1.0),
    Case(Laplace(2.0, 2.0), 0.05),
    Case(GNMax(1.0), 1.0, votes=True),
    Case(LNMax(1.0), 0.8, votes=True),
    Case(LNMax(4.0), 0.05, votes=True),
]


def total_of(released: Tensor) -> Tensor:
    return released.sum(dim=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mechanism_keeps_its_epsilon_and_its_curve(case: Case) -> None:
    votes: dict[str, Callable[[Tensor], Tensor]] = (
        {"contributed": dirac.move_a_vote, "score": dirac.by_votes}
        if case.votes
        else {"score": total_of}
    )
    found = dirac.audit_release(
        case.mechanism, canaries=4_000, guesses=800, seed=3,
        sampling_rate=case.sampling_rate, count=case.count, **votes,
    )  # fmt: skip
    assert case.least < found.bound <= found.stated
    assert not found.rejected


@pytest.mark.parametrize("gradients", [BookKeeping(), Opacus()], ids=str)
@pytest.mark.parametrize(
    ("noise_multiplier", "sampling_rate", "steps"),
    [
        (1.0, 1.0, 1),
        pytest.param(1.0, 0.5, 6, marks=SLOW),
        pytest.param(0.6, 0.25, 4, marks=SLOW),
    ],
)
def test_training_keeps_its_epsilon_and_its_curve(
    gradients: Gradients, noise_multiplier: float, sampling_rate: float, steps: int
) -> None:
    task, data = dirac.planted(600, seed=5)
    trainer = DPSGD(
        epochs=sampling_rate * steps, sampling_rate=sampling_rate, expected_batch=1.0,
        learning_rate=1.0, release=Release(Gaussian(1.0, noise_multiplier)), gradients=gradients,
    )  # fmt: skip
    result = fit(trainer, task, data, runtimes=STAR, delta=dirac.DELTA)
    (promise, *_) = result.statement.guarantees
    assert (promise.unit, promise.relation) == ("example", ADD_REMOVE)
    assert promise.releases == steps
    attack = OneRun(guesses=200, delta=dirac.DELTA, confidence=dirac.CONFIDENCE)
    found = dict(audit(result, attack, task, data).metrics)
    assert 0.05 < dirac.metric(found, "epsilon_lower_bound") <= promise.epsilon
    assert dirac.metric(found, "f_dp_rejected") == 0.0


@pytest.mark.parametrize(("noise_multiplier", "groups", "steps"), [(1.5, 4, 8), (1.0, 2, 6)])
def test_correlated_noise_keeps_its_epsilon_and_its_curve(
    noise_multiplier: float, groups: int, steps: int
) -> None:
    task, data = dirac.planted(600, seed=6)
    trainer = DPSGD(
        epochs=0.25 * steps, sampling_rate=0.25, expected_batch=1.0, learning_rate=1.0,
        release=Release(BandedMatrix(1.0, noise_multiplier, groups, steps)),
        sampling=CyclicPoisson(groups),
    )  # fmt: skip
    result = fit(trainer, task, data, runtimes=STAR, delta=dirac.DELTA)
    (promise, *_) = result.statement.guarantees
    assert promise.relation == ADD_REMOVE
    attack = OneRun(guesses=200, delta=dirac.DELTA, confidence=dirac.CONFIDENCE)
    found = dict(audit(result, attack, task, data).metrics)
    assert 0.2 < dirac.metric(found, "epsilon_lower_bound") <= promise.epsilon
    assert dirac.metric(found, "f_dp_rejected") == 0.0


@pytest.mark.slow
def test_digits_at_epsilon_3_stay_below_it() -> None:
    task, data = digits(parties=1, seed=0)
    planted = with_canaries(data, mislabelled_rows(data, 500), seed=0)
    trainer = calibrate(
        DPSGD(epochs=30, expected_batch=64, sampling_rate=0.05), planted, epsilon=3.0
    )
    result = fit(trainer, task, planted, runtimes=STAR)
    assert result.statement.epsilon() <= 3.0
    for confidence in (0.95, dirac.CONFIDENCE):
        attack = OneRun(guesses=100, confidence=confidence)
        found = dict(audit(result, attack, task, planted).metrics)
        assert dirac.metric(found, "epsilon_lower_bound") <= 3.0
    assert dirac.metric(found, "f_dp_rejected") == 0.0
