"""Training with secure noise: what is promised, that no stream is used twice, what is refused."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import privtrain as pt
from privtrain.accounting.approximate import Approximate
from privtrain.core.observers import AGGREGATOR
from privtrain.core.seeding import Stream, Words
from privtrain.core.trainer import RELEASE
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.mechanisms.discrete import FLOAT_ERROR
from privtrain.runs.statements import FLOAT_NOISE
from tests.contracts.aggregation import a_party
from tests.trainers.federations import STAR, TASK, a_federation, some_rows

SECURE = pt.Gaussian(1.0, 2.0, secure=True)
DATA = a_federation(12, 9, 15, public_rows=36)


class StopError(Exception):
    """Stands for a crash."""


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[bytes]]:
    """How often each key started a generator of noise: AES by all of it, Philox by its half."""
    found: Counter[bytes] = Counter()
    words, plain = Stream.words, Stream.numpy

    def counted_words(self: Stream) -> Words:
        found[self.key] += 1
        found[self.key[:16]] += 1
        return words(self)

    def counted_numpy(self: Stream) -> np.random.Generator:
        found[self.key[:16]] += 1
        return plain(self)

    monkeypatch.setattr(Stream, "words", counted_words)
    monkeypatch.setattr(Stream, "numpy", counted_numpy)
    yield found


def stopping(at: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == at:
            raise StopError

    return progress


TRAINERS = [
    pt.DPSGD(epochs=2, expected_batch=6, release=pt.Release(SECURE)),
    pt.FedAvg(rounds=6, release=pt.Release(SECURE)),
    pt.FedAvg(rounds=6, release=pt.Release(SECURE, pt.AT_PARTY)),
    pt.FedAvg(rounds=6, local=pt.DPSteps(SECURE, sampling_rate=0.5)),
]
NAMES = ["steps", "rounds", "parties", "silos"]


@pytest.mark.parametrize("entropy", [pytest.param(pt.SEEDED, marks=pytest.mark.slow), pt.SYSTEM])
@pytest.mark.parametrize("trainer", TRAINERS, ids=NAMES)
def test_no_stream_is_used_twice_over_steps_parties_and_resumes(
    trainer: Any, entropy: Any, used: Counter[bytes], tmp_path: Path
) -> None:
    options = {"runtimes": STAR, "folder": tmp_path, "entropy": entropy}
    for stop in (3, 5):
        with pytest.raises(StopError):
            pt.fit(trainer, TASK, DATA, progress=stopping(stop), **options)
    result = pt.fit(trainer, TASK, DATA, **options)
    releases = [key for key in used if len(key) == 32]
    assert len(releases) >= 6
    assert max(used.values()) == 1
    assert result.halted is None or "budget" in result.halted


def test_a_stream_that_is_used_twice_is_noticed(used: Counter[bytes]) -> None:
    stream = Stream(bytes(32))
    one, _ = SECURE.add(torch.zeros(9), None, stream)
    two, _ = SECURE.add(torch.zeros(9), None, stream)
    assert torch.equal(one, two), "which is why it must not happen"
    assert max(used.values()) == 2


@pytest.mark.parametrize("trainer", TRAINERS, ids=NAMES)
def test_statements_name_what_is_assumed_and_no_float_noise(trainer: Any) -> None:
    statement = pt.fit(trainer, TASK, DATA, runtimes=STAR).statement
    assert FLOAT_NOISE not in statement.caveats
    promised = [g for g in statement.guarantees if g.epsilon < float("inf")]
    assert promised
    for guarantee in promised:
        assert any("2^-8 clipping norms" in text for text in guarantee.assumptions)
        assert any("simulated" in text for text in guarantee.assumptions)
        assert "Canonne" in guarantee.theorem
    plans = trainer.plan(DATA, STAR)
    assert any(isinstance(plan.charges[RELEASE].event, Approximate) for plan in plans)


def _distance(plans: Any) -> float:
    return float(plans[0].charges[RELEASE].event.distance)


def test_steps_in_silos_charge_every_step() -> None:
    plans = TRAINERS[3].plan(DATA, STAR)
    one = pt.FedAvg(local=pt.DPSteps(SECURE, sampling_rate=1.0)).plan(DATA, STAR)
    assert _distance(plans) == 2 * _distance(one) > 0


@pytest.mark.slow
def test_training_on_digits_and_calibration() -> None:
    task, data = pt.data.digits(parties=1, seed=0)
    plain = pt.DPSGD(epochs=5, release=pt.Release(pt.Gaussian(1.0, 1.0)))
    secure = replace(plain, release=pt.Release(pt.Gaussian(1.0, 1.0, secure=True)))
    results = [pt.fit(trainer, task, data) for trainer in (plain, secure)]
    accuracy = [
        float((r.predictor(data.test.inputs).argmax(1) == data.test.labels).float().mean())
        for r in results
    ]
    assert accuracy[1] > 0.7
    assert abs(accuracy[0] - accuracy[1]) < 0.08
    epsilons = [r.statement.epsilon() for r in results]
    assert epsilons[0] < epsilons[1] < epsilons[0] * 1.01
    calibrated = pt.calibrate(secure, data, epsilon=3.0)
    assert calibrated.release.mechanism.secure  # type: ignore[attr-defined]
    assert 2.9 < pt.fit(calibrated, task, data).statement.epsilon() <= 3.0


def test_float_sums_of_neighbours_stay_far_within_the_allowance() -> None:
    """Not a proof: what rounding really adds to a sum of 300 float32 gradients of an MLP."""
    generator = torch.Generator().manual_seed(0)
    inputs = 30 * torch.randn(301, 20, generator=generator)
    labels = torch.randint(3, (301,), generator=generator)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
    ).float()
    engine = BookKeeping().engine(model, pt.data.digits()[0].loss)
    rows = type(some_rows(0))(inputs, labels)
    whole = engine.clipped_sum(rows, 1.0).value.double()
    for left_out in (0, 150, 300):
        kept = torch.tensor([i for i in range(301) if i != left_out])
        moved = float((whole - engine.clipped_sum(rows.take(kept), 1.0).value.double()).norm())
        assert moved <= 1 + FLOAT_ERROR / 30


def test_what_secure_noise_cannot_do_is_refused() -> None:
    with pytest.raises(pt.UnsupportedError, match="cannot be split"):
        pt.Release(SECURE, pt.SPLIT(honest_survivors=2))
    with pytest.raises(pt.UnsupportedError, match=r"SharedSum|shares"):
        pt.Release(SECURE, aggregation=pt.SharedSum()).leave([torch.ones(3)], a_party())
    with pytest.raises((pt.UnsupportedError, pt.UnsoundReleaseError)):
        pt.PATE(release=pt.Release(SECURE, finish=pt.ARGMAX))


def test_noise_at_parties_protects_from_the_aggregator() -> None:
    plans = pt.FedAvg(release=pt.Release(SECURE, pt.AT_PARTY)).plan(DATA, STAR)
    events = {plan.observer: plan.charges[RELEASE].event for plan in plans}
    assert events[AGGREGATOR] == events[pt.PUBLIC], "charged as one noise, whoever looks"


def test_a_study_file_keeps_it(tmp_path: Path) -> None:
    from privtrain.command.tables import from_table, to_table

    table = to_table(SECURE)
    assert from_table(table) == SECURE
    plain = {key: value for key, value in table.items() if key != "secure"}
    assert from_table(plain) == pt.Gaussian(1.0, 2.0)
