"""Law: the same seed gives the same bits in this process and through Flower's Grid."""

from dataclasses import replace

import pytest
import torch

from privtrain.core.runtime import Runtimes
from privtrain.core.trainer import Trainer
from privtrain.data.datasets import digits
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX
from privtrain.release.placement import AT_PARTY, SPLIT
from privtrain.runs.fitting import fit
from privtrain.runtimes.flower.grid import FlowerGrid
from privtrain.runtimes.in_process import InProcess
from privtrain.sampling.sampling import FixedSize, Poisson
from privtrain.steps.plain import PlainSteps
from privtrain.steps.private import DPSteps
from privtrain.steps.semi_supervised import SemiSupervised
from privtrain.steps.weights import ByExamples
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.pate import PATE
from tests.contracts.trainer import weights_of

TASK, DATA = digits(parties=5, hidden=16)
NOISY = Gaussian(1.0, 1.0)
QUICK = PlainSteps(epochs=2)


@pytest.mark.parametrize(
    "trainer",
    [
        FedAvg(rounds=3),
        FedAvg(rounds=3, weights=ByExamples(), sampling=FixedSize(3)),
        FedAvg(rounds=3, server_optimizer=torch.optim.Adam, sampling=Poisson(0.5)),
        FedAvg(rounds=3, release=Release(NOISY), sampling=FixedSize(3)),
        pytest.param(FedAvg(rounds=3, release=Release(NOISY, AT_PARTY)), marks=pytest.mark.slow),
        pytest.param(
            FedAvg(rounds=3, release=Release(NOISY, SPLIT(honest_survivors=5))),
            marks=pytest.mark.slow,
        ),
        pytest.param(FedAvg(rounds=2, local=DPSteps(NOISY)), marks=pytest.mark.slow),
        PATE(
            teachers=10,
            queries=20,
            release=Release(GNMax(2.0), finish=ARGMAX),
            steps=QUICK,
            student=QUICK,
        ),
        PATE(
            teachers=10,
            queries=20,
            release=Release(GNMax(2.0), finish=ARGMAX),
            student=SemiSupervised(steps=20, ridge=1.0, validation=0.2),
        ),
    ],
    ids=[
        *("plain", "weights", "server-adam", "client-dp", "local-dp", "split-dp", "silos", "pate"),
        "pate-semi-supervised",
    ],
)
def test_the_same_seed_gives_the_same_bits(trainer: Trainer) -> None:
    runs = [
        fit(trainer, TASK, DATA, runtimes=Runtimes(star=star), seed=4, keep_payloads=True)
        for star in (InProcess(), FlowerGrid())
    ]
    mine, other = runs
    assert torch.equal(weights_of(mine), weights_of(other))
    assert mine.statement == other.statement
    assert mine.cost.bytes_sent_by_party == other.cost.bytes_sent_by_party
    assert mine.cost.rounds == other.cost.rounds
    assert mine.history.unprotected == other.history.unprotected
    pairs = [
        {(e.sender, e.receiver, e.kind, e.round): e.payload for e in run.transcript.entries}
        for run in runs
    ]
    assert pairs[0].keys() == pairs[1].keys()
    for key, payload in pairs[0].items():
        found = pairs[1][key]
        assert payload is not None
        assert found is not None
        assert torch.equal(payload, found), key


def test_another_seed_gives_other_bits_through_flower_too() -> None:
    star = Runtimes(star=FlowerGrid())
    one, other = (fit(FedAvg(rounds=1), TASK, DATA, runtimes=star, seed=seed) for seed in (0, 1))
    assert not torch.equal(weights_of(one), weights_of(other))


def test_public_rows_do_not_change_what_is_trained() -> None:
    """A declared number of rows changes rates and statements, never bits of a plain run."""
    known = replace(DATA, public_rows=10_000)
    star = Runtimes(star=InProcess())
    one, other = (fit(FedAvg(rounds=1), TASK, data, runtimes=star) for data in (DATA, known))
    assert torch.equal(weights_of(one), weights_of(other))
