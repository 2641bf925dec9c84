"""Teachers trained together are those that are trained one by one."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.runtime import Draws
from privtrain.core.seeding import SeededEntropy, Seeds
from privtrain.core.task import Rows, Task
from privtrain.data.models import CNN, MLP
from privtrain.steps.plain import PlainSteps
from privtrain.steps.teaching import Teacher
from privtrain.steps.together import Grouped, Together
from tests.trainers.federations import some_rows

COUNTS = (9, 0, 4, 1, 8, 13, 0, 3)
"""Rows of the teachers: none, one, fewer than a batch, exactly so many, and more."""


def teachers(
    counts: Iterable[int] = COUNTS, shape: tuple[int, ...] = (5,), device: str = "cpu"
) -> list[Teacher]:
    made = []
    for number, count in enumerate(counts):
        rows = some_rows(20 + number, count)
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        draws = Draws(Seeds(3), SeededEntropy(3), 0, f"p/teacher-{number}", device=device)
        made.append(Teacher(Rows(inputs, rows.labels), draws))
    return made


def asked(shape: tuple[int, ...] = (5,)) -> Tensor:
    return torch.randn(7, *shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def both(
    model: Any, steps: PlainSteps, shape: tuple[int, ...] = (5,), loss: Any = None
) -> tuple[list[Tensor], list[Tensor], Any]:
    """Scores of the loop and of what `Together` makes of it."""
    task = Task(model=model) if loss is None else Task(model=model, loss=loss)
    group, queries = teachers(shape=shape), asked(shape)
    prepared = Together(steps=steps).prepared(task, queries, 3)
    alone = steps.teach(task, group, queries, 3)
    size = prepared.at_once
    grouped = [
        each
        for start in range(0, len(group), size)
        for each in prepared.teach(task, group[start : start + size], queries, 3)
    ]
    return alone, grouped, prepared


def far(alone: list[Tensor], others: list[Tensor]) -> float:
    assert len(alone) == len(others)
    return max(float((a - b).abs().max()) for a, b in zip(alone, others, strict=True))


def chained(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers).double()


class Gated(nn.Module):
    """Of its own forward, with a buffer and a frozen parameter that differ by teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)
        self.register_buffer("scale", torch.rand(5))
        self.shift = nn.Parameter(torch.rand(5), requires_grad=False)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = inputs * self.scale + self.shift
        gated: Tensor = self.one(scaled) * torch.sigmoid(self.other(scaled))
        return gated


def tied() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(5, 3)).double()


def one_activation() -> nn.Module:
    curve = nn.Tanh()
    return nn.Sequential(nn.Linear(5, 4), curve, nn.Linear(4, 4), curve, nn.Linear(4, 3)).double()


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2)),
        nn.ReLU(),
        nn.MaxPool2d((2, 3), stride=(1, 2), padding=(1, 1)),
        nn.Sequential(nn.Conv2d(4, 5, 2, bias=False), nn.Tanh()),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 3, bias=False),
    ).double()


STEPS = PlainSteps(epochs=3, batch_size=4, learning_rate=0.1)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (MLP((5, 4, 3), torch.float64), (5,)),
    "linear, flattened": (MLP((6, 3), torch.float64, flatten=True), (2, 3)),
    "linear over positions": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Flatten(), nn.Linear(8, 3)).double(),
        (2, 3),
    ),
    "of its own forward": (Gated, (5,)),
    "one activation twice": (one_activation, (5,)),
    "images": (images, (2, 7, 6)),
    "normalised by layer": (
        lambda: nn.Sequential(
            nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)
        ).double(),
        (5,),
    ),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_scores_are_those_of_the_loop(name: str) -> None:
    """Teachers that are not equally large, with batches that are not full, and without rows."""
    model, shape = MODELS[name]
    alone, together, prepared = both(model, STEPS, shape)
    assert isinstance(prepared, Grouped) and prepared.at_once > 1
    assert far(alone, together) < 1e-9
    # And something was learned that differs from teacher to teacher.
    assert len({tuple(scores.flatten().tolist()) for scores in together}) == len(COUNTS)


@pytest.mark.parametrize(
    "optimizer",
    [
        "SGD",
        "Adam",
        "AdamW",
        functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
        functools.partial(torch.optim.Adam, betas=(0.5, 0.9), amsgrad=True),
    ],
)
def test_optimizers_with_and_without_memory(optimizer: Any) -> None:
    """What ends early stays where it is, whatever momentum would do to it."""
    steps = PlainSteps(epochs=3, batch_size=4, learning_rate=0.05, optimizer=optimizer)
    alone, together, prepared = both(MLP((5, 4, 3), torch.float64), steps)
    assert isinstance(prepared, Grouped)
    assert far(alone, together) < 1e-9


def test_a_teacher_that_went_on_while_others_train_would_differ() -> None:
    """The broken twin: the last weights of the group, and not those of each teacher's last step."""
    from privtrain.steps import together as module

    steps = PlainSteps(epochs=3, batch_size=4, learning_rate=0.05, optimizer="Adam")
    task, group = Task(model=MLP((5, 4, 3), torch.float64)), teachers()
    alone = steps.teach(task, group, asked(), 3)
    take = module._Plan.ending
    try:
        module._Plan.ending = lambda plan, step: (  # type: ignore[method-assign]
            list(range(len(plan.last))) if step == plan.steps - 1 else []
        )
        broken = Grouped(steps=steps, at_once=8).teach(task, group, asked(), 3)
    finally:
        module._Plan.ending = take  # type: ignore[method-assign]
    assert far(alone, broken) > 1e-4


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - functional.one_hot(targets, 3)).square().sum(dim=1)


def compared(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of a row that looks at the other rows of its batch."""
    return squared(outputs - outputs.mean(dim=0), targets)


def test_own_losses_are_kept_apart_and_those_that_look_at_their_batch_go_one_by_one() -> None:
    alone, together, prepared = both(MLP((5, 4, 3), torch.float64), STEPS, loss=squared)
    assert isinstance(prepared, Grouped) and far(alone, together) < 1e-9
    alone, together, prepared = both(MLP((5, 4, 3), torch.float64), STEPS, loss=compared)
    assert prepared is STEPS and far(alone, together) == 0


class Counting(nn.Module):
    """Draws nothing, and looks at how many rows there are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        made: Tensor = self.inner(inputs - inputs.mean(dim=0))
        return made


class Lazy(torch.optim.SGD):
    """An own optimizer."""


def by_dimensions(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Weights decay and biases do not: stacked ones have one dimension more."""
    own = list(parameters)
    groups = [
        {"params": [p for p in own if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in own if p.ndim == 1]},
    ]
    return torch.optim.SGD(groups, lr=lr)


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)).double(), STEPS),
        (Counting, STEPS),
        (tied, STEPS),
        (MLP((5, 3), torch.float64), PlainSteps(epochs=2, batch_size=None)),
        (MLP((5, 3), torch.float64), PlainSteps(epochs=2, batch_size=4, optimizer=Lazy)),
        (MLP((5, 3), torch.float64), PlainSteps(epochs=2, batch_size=4, optimizer="RMSprop")),
        (MLP((5, 4, 3), torch.float64), PlainSteps(batch_size=4, optimizer=by_dimensions)),
    ],
)
def test_what_cannot_be_computed_so_is_trained_one_by_one(model: Any, steps: PlainSteps) -> None:
    alone, together, prepared = both(model, steps)
    assert prepared is steps
    assert far(alone, together) == 0


def test_a_model_that_normalises_by_its_batch_goes_one_by_one() -> None:
    task = Task(model=lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double())
    steps = PlainSteps(batch_size=4)
    assert Together(steps=steps).prepared(task, asked(), 3) is steps
    model = task.model()  # type: ignore[operator]
    assert Together(steps=steps).fewest_rows(model.train()) == 2


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_no_bit_of_a_teacher_depends_on_the_rows_of_another(optimizer: str) -> None:
    """In float32, where another shape would round otherwise: which path runs is no leak."""
    steps = PlainSteps(epochs=2, batch_size=4, learning_rate=0.1, optimizer=optimizer)
    task = Task(model=MLP((5, 16, 3), torch.float32))
    queries = asked().float()

    def narrow(counts: tuple[int, ...], scale: float) -> list[Teacher]:
        made = teachers(counts)
        for number, teacher in enumerate(made):
            inputs = teacher.rows.inputs.float() * (scale if number else 1)
            made[number] = Teacher(Rows(inputs, teacher.rows.labels), teacher.draws)
        return made

    prepared = Together(steps=steps).prepared(task, queries, 3)
    assert isinstance(prepared, Grouped)
    first = prepared.teach(task, narrow((9, 3, 5), 1.0), queries, 3)[0]
    for counts, scale in [((9, 0, 0), 1.0), ((9, 40, 1), 1.0), ((9, 3, 5), 1e30)]:
        assert torch.equal(prepared.teach(task, narrow(counts, scale), queries, 3)[0], first)


def test_groups_follow_from_the_model_and_fit_into_memory() -> None:
    def size(model: Any, shape: tuple[int, ...], batch_size: int) -> int:
        steps = PlainSteps(batch_size=batch_size)
        queries = torch.rand(3, *shape)
        return Together(steps=steps).prepared(Task(model=model), queries, 10).at_once

    assert size(MLP((784, 64, 10)), (784,), 32) > 40
    assert 2 <= size(MLP((784, 2048, 10)), (784,), 32) < size(MLP((784, 512, 10)), (784,), 32)
    assert 2 <= size(CNN(), (1, 28, 28), 64) <= size(CNN(), (1, 28, 28), 16) < 40


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="steps"):
        Together(steps=3)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu() -> None:
    task = Task(model=MLP((5, 4, 3), torch.float64))
    prepared = Together(steps=STEPS).prepared(task, asked(), 3)
    here = prepared.teach(task, teachers(), asked(), 3)
    there = prepared.teach(task, teachers(device="cuda"), asked().cuda(), 3)
    assert all(scores.device.type == "cpu" for scores in there)
    assert far(here, there) < 1e-9
