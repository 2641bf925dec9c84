"""A client's round: what it may change, what it carries over, and how far it moves the sum."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.parameters import initial_model
from privtrain.core.result import TrainResult
from privtrain.core.runtime import Party
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.steps.weights import ByExamples, Uniform
from privtrain.trainers.clients import ClientStep
from privtrain.trainers.fedavg import FedAvg
from tests.trainers.federations import (
    STAR,
    TASK,
    a_federation,
    a_task,
    module,
    some_rows,
    vector,
)

LOCAL = PlainSteps(epochs=2, batch_size=5, learning_rate=0.2)


def run(trainer: FedAvg, data: FederatedData, task: Task = TASK, seed: int = 0) -> TrainResult:
    return fit(trainer, task, data, runtimes=STAR, seed=seed, delta=1e-5, keep_payloads=True)


def start(task: Task = TASK, seed: int = 0) -> nn.Module:
    return initial_model(task, Seeds(seed)["initialisation", 0, ""])


class Frozen:
    """Makes a model whose first layer is frozen as it was drawn."""

    def __call__(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
        for parameter in model[0].parameters():
            parameter.requires_grad_(False)
        return model


def test_frozen_layers_stay_and_are_the_same_everywhere() -> None:
    task, data = a_task(Frozen()), a_federation(17)
    local = PlainSteps(batch_size=None, learning_rate=0.3)
    found = module(run(FedAvg(rounds=3, local=local), data, task))
    model, rows = start(task), data.train["p0"]
    drawn = model[0].weight.clone()  # type: ignore[index,union-attr]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        task.loss(model(rows.inputs), rows.labels).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert torch.equal(found[0].weight, drawn)  # type: ignore[index,union-attr]
    assert torch.equal(vector(found), vector(model))


class Counts(nn.Module):
    """Remembers in a buffer how often it was called, and adds it to its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        out: Tensor = self.layer(x * float(self.calls))
        return out


def test_buffers_carry_nothing_from_one_client_to_the_next() -> None:
    rows = some_rows(5)
    data = FederatedData(train={"a": rows, "b": rows, "c": rows}, test=rows)
    local = PlainSteps(batch_size=None, learning_rate=0.1)
    result = run(FedAvg(rounds=1, local=local), data, a_task(Counts))
    updates = [e.payload for e in result.transcript.entries if e.kind == "update"]
    assert updates[0] is not None
    assert all(torch.equal(updates[0], other) for other in updates if other is not None)


def test_dropout_repeats_bit_for_bit() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    data = a_federation(12, 9)
    one, two, other = (
        vector(module(run(FedAvg(rounds=2, local=LOCAL), data, a_task(make), seed=seed)))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("weights", [Uniform(), ByExamples(bound=8)])
def test_one_clients_data_moves_the_sum_by_at_most_the_sensitivity(
    weights: Uniform | ByExamples,
) -> None:
    release = Release(Gaussian(0.3, 1.0))
    step = ClientStep(TASK, LOCAL, release, weights, True)

    def update(rows: Rows) -> Tensor:
        party = Party(
            name="a",
            round=0,
            train={"a": rows},
            state={},
            seeds=Seeds(0),
            entropy=SeededEntropy(0),
        )
        return step({"model": vector(start())}, party).message["update"]

    huge = Rows(1e6 * some_rows(3, 30).inputs, some_rows(3, 30).labels)
    found = [update(rows) for rows in (some_rows(1), some_rows(2, 3), huge)]
    for one in found:
        assert float(one.norm()) <= 0.3
        for other in found:
            assert float((one - other).norm()) <= 0.6
