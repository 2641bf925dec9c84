"""Models of all layers that shares know, and one step of theirs by torch."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.parameters import to_vector, trainable


class Residual(nn.Module):
    """A residual connection whose layers are not registered in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.second = nn.Linear(5, 5, bias=False)
        self.first = nn.Linear(6, 5)

    def forward(self, rows: Tensor) -> Tensor:
        values = torch.relu(self.first(rows.flatten(1)))
        values = functional.relu(self.second(values) + values) + values
        values = values + values
        return self.head(values)  # type: ignore[no-any-return]


class OfRows(nn.Module):
    """Rows themselves enter twice; the first map is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)
        self.first.requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head((self.first(rows) + rows).relu())  # type: ignore[no-any-return]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def half_frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


class SmallResNet(nn.Module):
    """Convolutions with a residual connection and a strided one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, (3, 5), padding="same")
        self.first = nn.Conv2d(4, 4, (3, 1), stride=2, padding=(1, 0), groups=2)
        self.beside = nn.Conv2d(4, 4, 1, stride=2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, rows: Tensor) -> Tensor:
        values = torch.relu(self.stem(rows))
        values = functional.relu(self.first(values) + self.beside(values))
        values = functional.adaptive_avg_pool2d(values, 1)
        return self.head(torch.flatten(values, 1))  # type: ignore[no-any-return]


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2, dilation=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.AvgPool2d(3, stride=2, padding=1, divisor_override=8),
        nn.Conv2d(2, 3, 2, groups=1, bias=False),
        nn.AvgPool2d(2, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3, 3),
    )


def depthwise() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.ReLU(),
        nn.AvgPool2d((1, 2)),
        nn.Flatten(),
        nn.Linear(4 * 4 * 1, 3),
    )
    model[0].weight.requires_grad_(False)
    return model


PICTURE = (2, 6, 5)
OF_PICTURES: list[Callable[[], nn.Module]] = [SmallResNet, convolutional, pooled, depthwise]
FLAT: list[Callable[[], nn.Module]] = [Residual, OfRows, perceptron, half_frozen]


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A model in float64 whose weights fixed point holds exactly."""
    torch.manual_seed(1)
    model = make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 2**16).round() / 2**16)
    return model


def drawn(*shape: int) -> Tensor:
    """Values that fixed point holds exactly."""
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return (values * 2**16).round() / 2**16


def stepped(
    model: nn.Module, inputs: Tensor, loss: Callable[[Tensor], Tensor], rate: float, steps: int = 1
) -> Tensor:
    """The trained weights after steps by torch, with momentum 0.5."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trainable(model), lr=rate, momentum=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(inputs)).backward()
        optimizer.step()
    return to_vector(trainable(model))
