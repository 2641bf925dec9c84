"""Federations trained at the same time are those that are trained alone."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from privtrain.core.errors import UnsupportedError
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Task
from privtrain.runs.fitting import fit
from privtrain.sampling.sampling import Everyone, FixedSize, Poisson, Sampling
from privtrain.steps import many_rounds
from privtrain.steps.many_rounds import train_federations
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.fedavg import FedAvg
from tests.trainers.federations import STAR, TASK, a_federation, module, vector

COUNTS = (9, 5, 12)
DATA = a_federation(*COUNTS)


def parts(models: int) -> torch.Tensor:
    """Some rows of each client, another number in each federation."""
    included = torch.zeros(models, sum(COUNTS), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for number in range(models):
        start = 0
        for count in COUNTS:
            most = int(torch.randint(1, count + 1, (), generator=generator))
            included[number, start + torch.randperm(count, generator=generator)[:most]] = True
            start += count
    return included


def drawn(models: int) -> list[Draws]:
    return [Draws(Seeds(n), SeededEntropy(n), 0, CURATOR_NAME) for n in range(models)]


def farthest(trainer: FedAvg, task: Task = TASK, models: int = 4) -> float:
    """The largest difference of a weight from that of the federation by itself."""
    included = parts(models)
    made = trainer.train_many(task, DATA, included, drawn(models))
    far = 0.0
    for number, predictor in enumerate(made):
        marks = included[number].split(COUNTS)
        train = {
            name: DATA.train[name].take(own.nonzero().flatten())
            for name, own in zip(DATA.parties, marks, strict=True)
        }
        alone = fit(trainer, task, replace(DATA, train=train), seed=number, runtimes=STAR)
        difference = vector(module(alone)) - vector(predictor.module)
        far = max(far, float(difference.abs().max()))
    return far


@pytest.mark.parametrize("sampling", [Everyone(), FixedSize(2), Poisson(0.3)])
@pytest.mark.parametrize(
    "local",
    [
        PlainSteps(epochs=2, batch_size=4),
        PlainSteps(batch_size=None, learning_rate=0.5),
        PlainSteps(
            epochs=2, batch_size=2, optimizer=functools.partial(torch.optim.SGD, momentum=0.9)
        ),
        PlainSteps(batch_size=4, optimizer="Adam", learning_rate=0.01),
    ],
)
def test_federations_are_those_of_fit(local: PlainSteps, sampling: Sampling) -> None:
    assert farthest(FedAvg(rounds=3, local=local, sampling=sampling)) < 1e-12


def test_federations_are_cut_by_the_memory_of_their_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_weights = many_rounds._COPIES * 8 * (5 * 4 + 4 + 4 * 3 + 3)
    of_batches = many_rounds.OF_INPUTS * 8 * 5 * max(COUNTS)
    of_one = (of_weights + of_batches) * len(COUNTS)
    monkeypatch.setattr(many_rounds, "MEMORY", 2 * of_one)
    assert farthest(FedAvg(rounds=2), models=5) < 1e-12
    monkeypatch.setattr(many_rounds, "MEMORY", of_weights * len(COUNTS) - 1)
    with pytest.raises(UnsupportedError, match="3 clients"):
        FedAvg(rounds=2).train_many(TASK, DATA, parts(1), drawn(1))


def test_another_order_of_clients_would_differ() -> None:
    """The broken twin: streams of other clients."""
    included = parts(2)
    data = replace(DATA, train={f"q{name}": rows for name, rows in DATA.train.items()})
    what: dict[str, Any] = {"rounds": 2, "sampling": Everyone(), "local": PlainSteps(batch_size=2)}
    right = train_federations(TASK, DATA, included, drawn(2), **what)
    wrong = train_federations(TASK, data, included, drawn(2), **what)
    assert float((vector(right[0]) - vector(wrong[0])).abs().max()) > 1e-4


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()


def test_what_cannot_be_averaged_at_once_is_refused() -> None:
    everyone = torch.ones(1, sum(COUNTS), dtype=torch.bool)
    with pytest.raises(UnsupportedError, match="buffers"):
        FedAvg(rounds=1).train_many(Task(model=normalised), DATA, everyone, drawn(1))
    nobody = everyone.clone()
    nobody[0, 9:14] = False
    with pytest.raises(UnsupportedError, match="'p1' has no row"):
        FedAvg(rounds=1).train_many(TASK, DATA, nobody, drawn(1))
    averaged = FedAvg(rounds=1, server_optimizer=functools.partial(torch.optim.SGD, lr=1.0))
    with pytest.raises(UnsupportedError, match="plain average"):
        averaged.train_many(TASK, DATA, everyone, drawn(1))
