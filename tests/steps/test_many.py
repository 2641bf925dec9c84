"""Models trained at the same time are those that are trained alone, to the bit."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.parameters import trainable
from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds, global_generator
from privtrain.core.task import Loss, Rows, Task, binary_cross_entropy, cross_entropy
from privtrain.data.models import CNN, MLP
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.release.door import Release
from privtrain.report.progress import silent
from privtrain.steps import many
from privtrain.steps.many import (
    Models,
    in_parts,
    initial_models,
    optimizer_of_all,
    train_together,
)
from privtrain.steps.optimizers import OptimizerFactory, descend, make_optimizer
from privtrain.trainers.dp_sgd import DPSGD
from privtrain.trainers.sgd import SGD
from tests.trainers.federations import TASK as SMALL
from tests.trainers.federations import a_federation, vector

STREAM = Seeds(0)["dropout", 0, ""]
SIZES = ([5, 5, 2], [1], [32, 7], [16], [3, 3, 3, 1])
"""Rows of the steps of each model: fewer, as many, and more than what batches are filled up to."""


def made_rows(shape: tuple[int, ...] = (13,), classes: int = 3) -> Rows:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (60,), generator=generator)
    return Rows(torch.randn(60, *shape, generator=generator), targets)


def made_models(factory: Any) -> list[nn.Module]:
    models = []
    for number in range(len(SIZES)):
        with global_generator(Seeds(0)["model", number, ""]):
            models.append(factory().train())
    return models


def indices(number: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(number)
    for size in SIZES[number]:
        yield torch.randperm(60, generator=generator)[:size]


def alone(
    models: list[nn.Module], rows: Rows, loss: Loss, optimizer: str | OptimizerFactory
) -> None:
    for number, model in enumerate(models):
        own = make_optimizer(optimizer, trainable(model), 0.1)
        for index in indices(number):
            descend(model, own, loss, rows.inputs[index], rows.labels[index])


def at_once(
    models: list[nn.Module], rows: Rows, loss: Loss, optimizer: str | OptimizerFactory
) -> None:
    stacked = Models(models, loss)
    made = optimizer_of_all(stacked, models[0], optimizer, 0.1)
    batches = [indices(number) for number in range(len(models))]
    train_together(
        batches, lambda number, taken: stacked.step(made, taken, rows), stacked.take, STREAM
    )


def same(first: list[nn.Module], second: list[nn.Module]) -> bool:
    return all(
        torch.equal(one, other)
        for a, b in zip(first, second, strict=True)
        for one, other in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def both(
    factory: Any,
    rows: Rows | None = None,
    loss: Loss = cross_entropy,
    optimizer: str | OptimizerFactory = "SGD",
) -> bool:
    rows = made_rows() if rows is None else rows
    first, second, before = (made_models(factory) for _ in range(3))
    alone(first, rows, loss, optimizer)
    at_once(second, rows, loss, optimizer)
    assert not same(first, before)
    return same(first, second)


class Residual(nn.Module):
    """No chain, with a weight that is used twice, a frozen one, and a buffer that differs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(13, 13), nn.Linear(13, 3)
        self.norm = nn.LayerNorm(13)
        self.frozen = nn.Parameter(torch.randn(13), requires_grad=False)
        self.register_buffer("drawn", torch.randn(13))

    def forward(self, inputs: Tensor) -> Tensor:
        value = torch.tanh(self.inner(inputs * self.drawn)) + inputs
        made: Tensor = self.last(self.norm(self.inner(value)) + self.frozen)
        return made


def head() -> nn.Module:
    return nn.Linear(7, 3)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(13, 13), nn.ReLU(), nn.Linear(13, 13), nn.Linear(13, 3))
    model[2].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(13, 7), nn.ReLU(), head())
    model[0].register_forward_hook(lambda layer, inputs, outputs: outputs * 2)
    model[1].register_forward_hook(lambda layer, inputs, outputs: outputs - outputs.mean(dim=0))
    return model


def standing_twice() -> nn.Module:
    inner = nn.Linear(13, 13)
    return nn.Sequential(inner, nn.ReLU(), inner, nn.Linear(13, 3))


def partly_frozen() -> nn.Module:
    model = MLP((13, 7, 3))()
    model[0].bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "factory",
    [
        MLP((13, 3)),
        MLP((13, 7, 3)),
        MLP((13, 64, 32, 3)),
        lambda: nn.Sequential(nn.Linear(13, 7, bias=False), nn.GELU(), nn.Linear(7, 3)),
        lambda: nn.Sequential(nn.Linear(13, 9), nn.GroupNorm(3, 9), nn.ReLU(), nn.Linear(9, 3)),
        lambda: nn.Sequential(nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 7), nn.Softplus(), head()),
        Residual,
        tied,
        hooked,
        partly_frozen,
    ],
)
def test_models_have_the_bits_that_they_have_alone(factory: Any) -> None:
    assert both(factory)


def test_convolutions_have_the_bits_that_they_have_alone() -> None:
    assert both(CNN(), made_rows((1, 28, 28), 10))


@pytest.mark.parametrize(
    "optimizer",
    [
        "Adam",
        functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
        functools.partial(torch.optim.AdamW, amsgrad=True),
    ],
)
def test_optimizers_with_memory(optimizer: Any) -> None:
    assert both(MLP((13, 7, 3)), optimizer=optimizer)


def compared(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of a row that looks at the other rows of its batch."""
    wanted = functional.one_hot(targets, 3)
    return (outputs - outputs.mean(dim=0) - wanted).square().sum(dim=1)


def test_losses_see_the_batch_of_their_own_model() -> None:
    assert both(MLP((13, 7, 3)), loss=compared)
    assert both(MLP((13, 7, 1)), made_rows(classes=2), binary_cross_entropy)


def test_a_model_that_goes_on_while_others_do_would_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broken twin: weights are taken when all are through."""
    take, through = Models.take, list[int]()

    def late(self: Models, number: int) -> None:
        through.append(number)
        if len(through) == len(SIZES):
            for each in through:
                take(self, each)

    monkeypatch.setattr(Models, "take", late)
    momentum = functools.partial(torch.optim.SGD, momentum=0.9)
    assert not both(MLP((13, 7, 3)), optimizer=momentum)


def by_dimensions(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    own = list(parameters)
    groups = [{"params": [p], "weight_decay": 0.1 * p.ndim} for p in own]
    return torch.optim.SGD(groups, lr=lr)


def by_first_shape(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    own = list(parameters)
    return torch.optim.SGD(own, lr=lr / own[0].shape[0])


@pytest.mark.parametrize("optimizer", ["RMSprop", by_dimensions, by_first_shape])
def test_optimizers_that_look_at_more_than_a_number_are_refused(optimizer: Any) -> None:
    models = made_models(MLP((13, 3)))
    with pytest.raises(UnsupportedError, match="one by one"):
        optimizer_of_all(Models(models, cross_entropy), models[0], optimizer, 0.1)


def test_models_that_draw_are_refused_and_leave_the_generator() -> None:
    models = made_models(lambda: nn.Sequential(nn.Linear(13, 7), nn.Dropout(0.5), head()))
    before = torch.get_rng_state()
    with pytest.raises(UnsupportedError, match="dropout"):
        at_once(models, made_rows(), cross_entropy, "SGD")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "factory", [lambda: nn.Sequential(nn.BatchNorm1d(13), nn.Linear(13, 3)), standing_twice]
)
def test_models_whose_parts_cannot_be_told_apart_are_refused(factory: Any) -> None:
    with pytest.raises(UnsupportedError, match="one by one"):
        Models(made_models(factory), cross_entropy)


def test_rows_that_are_not_finite_where_they_are_zero_do_no_harm() -> None:
    """What fills a batch up is a row of it, whose logarithm is finite."""

    class Logarithm(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.log()

    rows = made_rows()
    rows = Rows(rows.inputs.abs() + 0.1, rows.labels)
    assert both(lambda: nn.Sequential(Logarithm(), nn.Linear(13, 3)), rows)


def test_a_model_without_rows_is_refused() -> None:
    included = torch.tensor([[True, False], [False, False]])
    draws = [Draws(Seeds(n), SeededEntropy(n), 0, "curator") for n in range(2)]
    with pytest.raises(DataError, match=r"included\[1\]"):
        initial_models(Task(model=MLP((2, 2))), included, draws)


def test_models_are_cut_by_the_memory_of_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[tuple[int, int]]()
    rows = made_rows()
    monkeypatch.setattr(many, "MEMORY", 3 * many.OF_INPUTS * 4 * 13 * 8)
    made = []
    for part, shown in in_parts(7, rows, 8, lambda *seen: told.append(seen)):
        made.append(part)
        shown(1, 2)
        shown(2, 2)
    assert [list(range(7))[part] for part in made] == [[0, 1, 2], [3, 4, 5], [6]]
    assert told == [(done, 6) for done in range(1, 7)]
    # One is trained however large it is.
    parts = [part for part, _ in in_parts(2, rows, 1_000, silent)]
    assert parts == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize(
    "trainer",
    [
        SGD(epochs=2, batch_size=4),
        SGD(epochs=2, batch_size=None),
        DPSGD(epochs=2, expected_batch=4.0, release=Release(Gaussian(1.0, 1.0))),
    ],
)
def test_parts_are_trained_to_the_same_bits(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, told = a_federation(8, 9), list[tuple[int, int]]()
    included = torch.rand(5, 17, generator=torch.Generator().manual_seed(0)) < 0.5

    def trained() -> list[Tensor]:
        draws = [Draws(Seeds(n), SeededEntropy(n), 0, "curator") for n in range(5)]
        made = trainer.train_many(SMALL, data, included, draws, lambda *seen: told.append(seen))
        return [vector(each.module) for each in made]

    whole, alone = trained(), list(told)
    told.clear()
    monkeypatch.setattr(many, "MEMORY", 1)
    assert all(map(torch.equal, whole, trained()))
    # Five parts, of which each may take another number of steps.
    assert len(told) > len(alone)
    for seen in (alone, told):
        fractions = [done / total for done, total in seen]
        assert fractions == sorted(set(fractions)) and fractions[-1] == 1
