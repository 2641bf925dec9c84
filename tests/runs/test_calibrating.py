"""Calibrating: the least noise that keeps a promise."""

import pytest

from privtrain.accounting.curves import gaussian_mu
from privtrain.core.errors import (
    BudgetExceededError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.observers import AGGREGATOR, CURATOR, DEALER, PUBLIC
from privtrain.core.trainer import Trainer
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.placement import AT_PARTY
from privtrain.release.reduce import MAX
from privtrain.runs.calibrating import calibrate
from privtrain.sampling.batches import TruncatedPoissonBatches
from privtrain.sampling.sampling import FixedSize, Poisson
from privtrain.steps.private import DPSteps
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, a_federation

DATA = a_federation(12, 9, 15, public_rows=36)
NOISY = Release(Gaussian(1.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [3.0, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "trainer",
    [
        DPSGD(epochs=2, expected_batch=9.0),
        FedAvg(rounds=3, release=NOISY),
        FedAvg(rounds=3, release=NOISY, sampling=FixedSize(2)),
        FedAvg(rounds=3, local=DPSteps(Gaussian(1.0, 1.0))),
        PATE(teachers=6, queries=9, release=Release(GNMax(2.0), finish=ARGMAX)),
        PATE(teachers=6, queries=9, release=Release(LNMax(2.0), finish=ARGMAX)),
    ],
    ids=["dp_sgd", "fedavg", "fixed", "silos", "gnmax", "lnmax"],
)
def test_a_calibrated_trainer_stays_within_its_own_epsilon(
    trainer: Trainer, epsilon: float
) -> None:
    found = calibrate(trainer, DATA, epsilon=epsilon, runtimes=STAR)
    (plan, *_) = found.plan(DATA, STAR)
    value = epsilon_of(plan, plan.counts, 1e-5)
    assert 0.97 * epsilon < value <= epsilon


@pytest.mark.parametrize(
    ("trainer", "needed"),
    [
        (FedAvg(rounds=3, release=NOISY), 1.0),
        pytest.param(
            FedAvg(rounds=3, release=NOISY, sampling=Poisson(0.5)), 0.7, marks=pytest.mark.slow
        ),
        (PATE(teachers=6, queries=9, release=Release(GNMax(2.0), finish=ARGMAX)), 6**0.5),
        pytest.param(DPSGD(epochs=2, expected_batch=9.0), 1.0, marks=pytest.mark.slow),
    ],
    ids=["fedavg", "clients by coins", "gnmax", "dp_sgd"],
)
@pytest.mark.parametrize("delta", [1e-15, 1e-30])
def test_a_tiny_delta_takes_the_noise_that_it_needs(
    trainer: Trainer, needed: float, delta: float
) -> None:
    """At 1e-15 the multiplier was 167,286, without a word; at 1e-30 an option was advised."""
    found = calibrate(trainer, DATA, epsilon=2.0, delta=delta, runtimes=STAR)
    (plan, *_) = found.plan(DATA, STAR)
    assert 1.9 < epsilon_of(plan, plan.counts, delta) <= 2.0
    # mu-Gaussian privacy (Balle and Wang 2018): sqrt(releases) x sensitivity / mu unsampled.
    mu = gaussian_mu(2.0, delta)
    assert mu is not None
    assert _scale_of(found) < 1.1 * needed * 3**0.5 / mu


def _scale_of(trainer: Trainer) -> float:
    mechanism = trainer.release.mechanism  # type: ignore[attr-defined]
    return float(mechanism.sigma if isinstance(mechanism, GNMax) else mechanism.noise_multiplier)


@pytest.mark.parametrize(
    ("trainer", "epsilon", "delta"),
    [
        (DPSGD(epochs=2, sampling=TruncatedPoissonBatches(12), expected_batch=9.0), 1.0, 1e-30),
        (PATE(teachers=6, queries=9, release=Release(GNMax(2.0), finish=ARGMAX)), 0.1, 1e-30),
        (PATE(teachers=6, queries=9, release=Release(GNMax(2.0), finish=ARGMAX)), 1e-4, 1e-5),
    ],
)
def test_what_no_accountant_shows_is_refused_with_a_way_out_that_there_is(
    trainer: Trainer, epsilon: float, delta: float
) -> None:
    with pytest.raises((UnsupportedError, BudgetExceededError), match="larger delta") as caught:
        calibrate(trainer, DATA, epsilon=epsilon, delta=delta, runtimes=STAR)
    assert "accountant=" not in str(caught.value)


def test_where_noise_is_drawn_twice_the_scaled_one_is_calibrated() -> None:
    trainer = FedAvg(rounds=3, local=DPSteps(Gaussian(1.0, 0.5)), release=NOISY)
    found = calibrate(trainer, DATA, epsilon=2.0, runtimes=STAR)
    assert isinstance(found, FedAvg)
    assert found.local == trainer.local
    client = [p for p in found.plan(DATA, STAR) if p.observer == PUBLIC][1]
    assert 1.9 < epsilon_of(client, client.counts, 1e-5) <= 2.0


def test_an_observer_that_reads_messages_can_be_promised_local_noise() -> None:
    trainer = FedAvg(rounds=2, release=Release(Gaussian(1.0, 1.0), AT_PARTY))
    found = calibrate(trainer, DATA, epsilon=4.0, observer=AGGREGATOR, runtimes=STAR)
    plan = next(p for p in found.plan(DATA, STAR) if p.observer == AGGREGATOR)
    assert 3.8 < epsilon_of(plan, plan.counts, 1e-5) <= 4.0


def test_what_cannot_be_calibrated_is_refused() -> None:
    for plain in (SGD(), FedAvg(), PATE(release=Release(finish=ARGMAX))):
        with pytest.raises(UnsupportedError, match="draws no noise"):
            calibrate(plain, DATA, epsilon=1.0, runtimes=STAR)
    both = FedAvg(rounds=3, local=DPSteps(Gaussian(1.0, 1.0)), release=NOISY)
    knowing = ((DPSGD(), CURATOR), (FedAvg(release=NOISY), AGGREGATOR), (both, AGGREGATOR))
    for trainer, observer in knowing:
        with pytest.raises(UnsoundReleaseError, match=observer.name):
            calibrate(trainer, DATA, epsilon=1.0, observer=observer, runtimes=STAR)
    for nobody in (DEALER, AGGREGATOR):
        with pytest.raises(ValueError, match=nobody.name):
            calibrate(DPSGD(), DATA, epsilon=1.0, observer=nobody, runtimes=STAR)
    with pytest.raises(ValueError, match="epsilon"):
        calibrate(DPSGD(), DATA, epsilon=-1.0, runtimes=STAR)


def test_answers_get_the_noise_that_their_checks_leave_room_for() -> None:
    """Checks are part of the promise; their noise is a setting and stays."""
    check = Release(GNMax(40.0), reduce=MAX, finish=Threshold(4.0))
    plain = PATE(teachers=6, queries=9, release=Release(GNMax(2.0), finish=ARGMAX))
    checked = PATE(teachers=6, queries=9, release=plain.release, consensus=check)
    made, alone = (calibrate(each, DATA, epsilon=2.0, runtimes=STAR) for each in (checked, plain))
    assert isinstance(made, PATE)
    assert isinstance(alone, PATE)
    assert made.consensus == check
    plan = made.plan(DATA, STAR)[0]
    assert 1.99 < epsilon_of(plan, plan.counts, 1e-5) <= 2.0
    assert made.release.mechanism.sigma > alone.release.mechanism.sigma  # type: ignore[attr-defined]
    # Nine checks alone cost more: no noise of answers helps.
    loud = Release(GNMax(1.0), reduce=MAX, finish=Threshold(4.0))
    with pytest.raises(BudgetExceededError, match="not protected by the noise that is calibrated"):
        calibrate(
            PATE(teachers=6, queries=9, release=plain.release, consensus=loud),
            DATA,
            epsilon=2.0,
            runtimes=STAR,
        )
