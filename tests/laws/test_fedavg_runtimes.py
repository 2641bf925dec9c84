"""FedAvg gives the same bits wherever its clients run."""

from functools import partial

import pytest
import torch

from privtrain.core.result import TrainResult
from privtrain.core.runtime import Runtimes, StarRuntime
from privtrain.core.transcript import Entry
from privtrain.data.datasets import digits
from privtrain.data.partition import Dirichlet
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.release.placement import AT_PARTY
from privtrain.runs.fitting import fit
from privtrain.runtimes.flower.grid import FlowerGrid, FlowerRay
from privtrain.runtimes.in_process import InProcess
from privtrain.sampling.sampling import FixedSize
from privtrain.steps.plain import PlainSteps
from privtrain.steps.weights import ByExamples
from privtrain.trainers.fedavg import FedAvg

TRAINERS = {
    "plain": FedAvg(rounds=3),
    "sampled": FedAvg(
        rounds=3, sampling=FixedSize(2), weights=ByExamples(), local=PlainSteps(optimizer="Adam")
    ),
    "server-optimizer": FedAvg(
        rounds=3, server_optimizer=partial(torch.optim.SGD, lr=1.0, momentum=0.9)
    ),
    "noise-at-aggregator": FedAvg(rounds=3, release=Release(Gaussian(1.0, 0.5))),
    "noise-at-party": FedAvg(rounds=3, release=Release(Gaussian(1.0, 0.5), AT_PARTY)),
}


def trained(trainer: FedAvg, star: StarRuntime, seed: int = 1) -> TrainResult:
    task, data = digits(parties=4, partition=Dirichlet(1.0), seed=0, hidden=8)
    return fit(
        trainer, task, data, runtimes=Runtimes(star=star), seed=seed, delta=1e-2, keep_payloads=True
    )


def bits(result: TrainResult) -> list[tuple[Entry, bytes]]:
    """Every message of a run with the bits of its tensor, the published model among them."""
    return sorted(
        (
            (e, e.payload.numpy().tobytes())
            for e in result.transcript.entries
            if e.payload is not None
        ),
        key=repr,
    )


def check_same(expected: TrainResult, found: TrainResult) -> None:
    assert bits(found) == bits(expected)
    assert len(bits(found)) == len(found.transcript.entries) > 0
    assert found.history == expected.history
    assert found.statement == expected.statement
    assert found.cost.bytes_sent == expected.cost.bytes_sent


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in TRAINERS if name != "noise-at-party"),
        pytest.param("noise-at-party", marks=pytest.mark.slow),
    ],
)
def test_the_grid_gives_the_bits_of_a_plain_loop_of_clients(name: str) -> None:
    expected = trained(TRAINERS[name], InProcess())
    check_same(expected, trained(TRAINERS[name], FlowerGrid()))
    assert bits(expected) != bits(trained(TRAINERS[name], FlowerGrid(), seed=2))


@pytest.mark.slow
def test_ray_gives_the_bits_of_the_grid() -> None:
    trainer = TRAINERS["noise-at-party"]
    check_same(trained(trainer, FlowerGrid()), trained(trainer, FlowerRay()))
