"""Plain steps against loops written out."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.data.models import MLP
from privtrain.ledgers.study import StudyLedger
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps, check_not_alone
from privtrain.trainers.fedavg import FedAvg

TASK = Task(model=MLP((5, 4, 3), torch.float64))


def held(rows: Rows, seed: int = 0, round: int = 0) -> tuple[Rows, Draws]:
    return rows, Draws(Seeds(seed), SeededEntropy(seed), round, "a")


def some_rows(count: int = 11) -> Rows:
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return Rows(inputs, torch.randint(3, (count,), generator=generator))


def a_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return TASK.model()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        ("SGD", torch.optim.SGD),
        ("Adam", torch.optim.Adam),
        (
            functools.partial(torch.optim.SGD, momentum=0.9),
            functools.partial(torch.optim.SGD, momentum=0.9),
        ),
    ],
    ids=["sgd", "adam", "momentum"],
)
def test_epochs_equal_a_plain_loop_to_the_bit(optimizer: object, by_hand: object) -> None:
    rows = some_rows()
    steps = PlainSteps(epochs=2, batch_size=4, learning_rate=0.05, optimizer=optimizer)  # type: ignore[arg-type]
    model = a_model().train()
    seen = steps(model, TASK, *held(rows, seed=3, round=2))

    twin = a_model()
    order = Seeds(3)["order", 2, "a"].torch()
    loop = by_hand(twin.parameters(), lr=0.05)  # type: ignore[operator]
    losses = []
    for _ in range(2):
        for index in torch.randperm(11, generator=order).split(4):
            loss = nn.functional.cross_entropy(twin(rows.inputs[index]), rows.labels[index])
            loop.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            loop.step()
            losses.append(float(loss.detach()))
    assert torch.equal(weights(model), weights(twin))
    assert not torch.equal(weights(model), weights(a_model()))
    assert seen.numbers["training_loss"] == pytest.approx(sum(losses) / 6, rel=1e-6)


def test_the_same_round_repeats_and_another_one_differs() -> None:
    def run(round: int, seed: int = 0) -> Tensor:
        model = nn.Sequential(a_model(), nn.Dropout(0.5)).train()
        PlainSteps(batch_size=4)(model, TASK, *held(some_rows(), seed=seed, round=round))
        return weights(model)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert not torch.equal(run(0), run(0, seed=1))


def test_global_generators_stay_as_they_were() -> None:
    before = torch.get_rng_state()
    PlainSteps()(nn.Sequential(a_model(), nn.Dropout(0.5)).train(), TASK, *held(some_rows()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_row_is_enough() -> None:
    model = a_model()
    PlainSteps()(model, TASK, *held(some_rows(1)))
    assert not torch.equal(weights(model), weights(a_model()))


def test_frozen_parameters_stay() -> None:
    model = a_model()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = first.clone()
    PlainSteps(epochs=2)(model, TASK, *held(some_rows()))
    assert torch.equal(first, before)
    assert not torch.equal(weights(model), weights(a_model()))


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}],
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PlainSteps(**wrong)  # type: ignore[arg-type]


NORMALISING = Task(
    model=lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
)


def test_a_last_row_before_a_layer_that_normalises_is_trained_on() -> None:
    PlainSteps(batch_size=5)(NORMALISING.model(), NORMALISING, *held(some_rows(11)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("rows", "steps", "message"),
    [
        (1, PlainSteps(), "Expected a, which holds a single row,.*Unprotected"),
        (9, PlainSteps(batch_size=1), r"Expected batch_size=1 to give .*nn\.GroupNorm"),
    ],
)
def test_a_row_alone_is_refused_beforehand(rows: int, steps: PlainSteps, message: str) -> None:
    data = FederatedData(train={"a": some_rows(rows), "b": some_rows(8)}, test=some_rows(9))
    study = StudyLedger(replace(data, digest="ab" * 32), delta=1e-3)
    trainer = FedAvg(rounds=1, local=steps, release=Release(Gaussian(1.0, 9.0)))
    with pytest.raises(DataError, match=message):
        fit(trainer, NORMALISING, study.data, study_ledger=study, delta=1e-3)
    assert study.charges == ()
    with pytest.raises(DataError, match=message):
        steps(NORMALISING.model(), NORMALISING, *held(some_rows(rows)))  # type: ignore[operator]
    # Other layers do not mind, nor one that is not trained.
    steps(a_model(), TASK, *held(some_rows(rows)))
    check_not_alone(NORMALISING.model().eval(), 1, 1, "a")  # type: ignore[operator]
