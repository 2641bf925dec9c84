"""Pooled SGD against a plain loop, and against federated averaging with one client."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import BudgetExceededError, DataError
from privtrain.core.observers import CURATOR, PUBLIC
from privtrain.core.parameters import initial_model
from privtrain.core.parties import CURATOR_NAME
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.statement import Budget
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.data.models import MLP
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.fedavg import FedAvg
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import STAR, TASK, a_federation, module, some_rows, vector


def plain_loop(task: Task, rows: Rows, steps: int, learning_rate: float) -> Tensor:
    """Full-batch gradient descent, written out without an optimizer."""
    model = initial_model(task, Seeds(0)["initialisation", 0, ""])
    parameters = list(model.parameters())
    for _ in range(steps):
        losses = task.loss(model(rows.inputs), rows.labels)
        gradients = torch.autograd.grad(losses.mean(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient, alpha=-learning_rate)
    return vector(model)


@pytest.mark.parametrize("rounds", [1, 5])
def test_one_client_with_full_batches_is_sgd_to_the_bit(rounds: int) -> None:
    data = a_federation(17)
    sgd = fit(SGD(epochs=rounds, batch_size=None, learning_rate=0.3), TASK, data, runtimes=STAR)
    local = PlainSteps(epochs=1, batch_size=None, learning_rate=0.3)
    fedavg = fit(FedAvg(rounds=rounds, local=local), TASK, data, runtimes=STAR)
    written_out = plain_loop(TASK, data.train["p0"], rounds, 0.3)
    assert torch.equal(vector(module(sgd)), written_out)
    assert torch.equal(vector(module(fedavg)), written_out)


def test_minibatches_equal_a_plain_loop_to_the_bit() -> None:
    data = a_federation(9, 14)
    momentum = functools.partial(torch.optim.SGD, momentum=0.9)
    found = fit(SGD(epochs=3, batch_size=5, optimizer=momentum), TASK, data, runtimes=STAR)
    model = initial_model(TASK, Seeds(0)["initialisation", 0, ""])
    rows, optimizer = data.pooled(), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        order = torch.randperm(23, generator=Seeds(0)["order", epoch, CURATOR_NAME].torch())
        for index in order.split(5):
            optimizer.zero_grad()
            losses = TASK.loss(model(rows.inputs[index]), rows.labels[index])
            losses.mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert torch.equal(vector(module(found)), vector(model))


def test_the_model_is_looked_at_after_each_epoch() -> None:
    data = a_federation(9, 14)
    held_out = replace(data, validation=data.train["p1"])
    result = fit(SGD(epochs=3), TASK, held_out, runtimes=STAR)
    assert [epoch for epoch, _ in result.history.unprotected["validation_accuracy"]] == [1, 2, 3]


def test_dropout_repeats_bit_for_bit() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    data = a_federation(9, 14)
    found = [
        vector(module(fit(SGD(epochs=2), Task(model=make), data, runtimes=STAR, seed=seed)))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_batch_normalisation_keeps_its_statistics_and_predicts_with_them() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()

    found = fit(SGD(epochs=2, batch_size=8), Task(model=make), a_federation(32), runtimes=STAR)
    layer = module(found)[1]  # type: ignore[index]
    assert float(layer.running_mean.abs().sum()) > 0
    one = torch.ones(1, 5, dtype=torch.float64)
    both = found.predictor(torch.cat([one, -one]))
    torch.testing.assert_close(found.predictor(one), both[:1], rtol=1e-12, atol=1e-12)


def test_nothing_is_promised() -> None:
    found = fit(SGD(epochs=1), TASK, a_federation(8, 8), runtimes=STAR)
    assert [g.observer for g in found.statement.guarantees] == [PUBLIC, CURATOR]
    assert {g.epsilon for g in found.statement.guarantees} == {math.inf}
    assert found.history.epsilon == []
    with pytest.raises(BudgetExceededError, match="noise"):
        fit(SGD(epochs=1), TASK, a_federation(8), runtimes=STAR, budget=Budget(8.0))


def test_a_single_party_sends_nothing() -> None:
    found = fit(SGD(epochs=1), TASK, a_federation(8), runtimes=STAR)
    assert found.cost.bytes_sent == 0
    pooled = fit(SGD(epochs=1), TASK, a_federation(8, 4), runtimes=STAR)
    assert pooled.cost.bytes_sent == 12 * (5 * 8 + 8)


def test_columns_are_pooled_side_by_side() -> None:
    from privtrain.data.datasets import breast_cancer
    from privtrain.data.partition import ByColumn

    task, data = breast_cancer(parties=3, partition=ByColumn())
    assert isinstance(data, FederatedData)
    found = fit(SGD(epochs=10, learning_rate=0.5), task, data, runtimes=STAR)
    right = found.predictor(data.test.inputs).argmax(dim=1) == data.test.labels
    assert float(right.double().mean()) > 0.9


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SGD(**wrong)  # type: ignore[arg-type]


def test_a_run_that_diverged_names_the_widest_column() -> None:
    rows = some_rows(3, 20)
    wide = Rows(
        rows.inputs * torch.tensor([1.0, 1.0, 1e160, 1.0, 1.0], dtype=torch.float64), rows.labels
    )
    data = FederatedData(train={"a": wide}, test=wide)
    with pytest.raises(DataError, match=r"diverged.*Column 2 .*e\+160.*scale=.*learning rate"):
        fit(SGD(epochs=5, learning_rate=1.0), TASK, data)


@pytest.mark.parametrize("rows", [(9,), (9, 12, 9, 2, 31)])
def test_many_models_are_those_of_fit_to_the_bit(rows: tuple[int, ...]) -> None:
    """In single precision, of halves and of parts of any other size; one model is many, too."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 5, generator=generator)
    whole = Rows(inputs, inputs[:, :3].argmax(dim=1))
    included = torch.zeros(len(rows), 40, dtype=torch.bool)
    for number, count in enumerate(rows):
        included[number, torch.randperm(40, generator=generator)[:count]] = True
    momentum = functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.01)
    trainer, task = SGD(epochs=3, batch_size=4, optimizer=momentum), Task(model=MLP((5, 7, 3)))
    data = FederatedData(train={"p0": whole}, test=whole)
    draws = [Draws(Seeds(n), SeededEntropy(n), 0, CURATOR_NAME) for n in range(len(rows))]
    many = trainer.train_many(task, data, included, draws)
    for number, predictor in enumerate(many):
        own = replace(data, train={"p0": whole.take(included[number].nonzero().flatten())})
        alone = fit(trainer, task, own, runtimes=STAR, seed=number)
        assert torch.equal(vector(module(alone)), vector(predictor.module))


def test_many_models_that_diverge_are_refused() -> None:
    data = a_federation(9)
    draws = [Draws(Seeds(0), SeededEntropy(0), 0, CURATOR_NAME)]
    included = torch.ones(1, 9, dtype=torch.bool)
    with pytest.raises(DataError, match="diverged"):
        SGD(epochs=80, learning_rate=1e30).train_many(TASK, data, included, draws)
