"""The plain loops that the tests of this folder hold the package against."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from privtrain.core.task import Loss, Rows, cross_entropy
from privtrain.gradients.draws import HeldDraws
from privtrain.gradients.gradients import GradientEngine

Make = Callable[[], nn.Module]


def example_gradients(model: nn.Module, rows: Rows, loss: Loss = cross_entropy) -> Tensor:
    """Gradients one example after the other, shape `(rows, parameters)`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for i in range(len(rows)):
        value = loss(model(rows.inputs[i : i + 1]), rows.labels[i : i + 1]).sum()
        parts = torch.autograd.grad(value, parameters, allow_unused=True)
        full = [
            torch.zeros_like(p) if part is None else part
            for p, part in zip(parameters, parts, strict=True)
        ]
        found.append(torch.cat([part.reshape(-1) for part in full]))
    return torch.stack(found)


def clipped(gradients: Tensor, clipping_norm: float) -> Tensor:
    """Each row clipped by Algorithm 1's own formula; a row that is not finite becomes zero."""
    kept = []
    for gradient in gradients:
        norm = gradient.norm()
        if not bool(torch.isfinite(norm)):
            kept.append(torch.zeros_like(gradient))
        else:
            kept.append(gradient / max(1.0, float(norm) / clipping_norm))
    return torch.stack(kept)


class Shared(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(torch.tanh(self.body(x))))
        return out


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.second(torch.tanh(self.first(x))))
        return out


class Outside(nn.Module):
    """A weight that is used outside its layer, where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.linear(torch.tanh(self.body(x)), self.body.weight)
        out: Tensor = self.head(hidden)
        return out


class Own(nn.Module):
    """A parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))
        self.body = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.body(x)) @ self.weight
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def frozen_mlp() -> nn.Module:
    model = mlp()
    next(model.parameters()).requires_grad_(False)
    return model


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)
    )


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def in_float64(make: Make, seed: int = 0) -> nn.Module:
    """A model in float64; torch's global generator is put back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()


def rows_for(make: Make, count: int = 7, seed: int = 1) -> Rows:
    """Random rows in the shape that a model of this file takes, float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 1, 6, 6) if make in (cnn, group_norm) else (count, 6)
    inputs = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Rows(inputs, torch.randint(3, (count,), generator=generator))


def coupled_sum(
    engine: GradientEngine, rows: Rows, chosen: Tensor, clipping_norm: float, seed: int = 0
) -> Tensor:
    """The clipped sum of chosen rows, each of which draws what it draws among any others.

    Args:
        engine: Of a model that may draw; it sees all rows of a sum at once.
        rows: All rows there are.
        chosen: Places of the rows of this sum, `(chosen,)`.
        clipping_norm: Bound on each gradient.
        seed: Of all draws.

    Returns:
        Shape `(parameters,)`, float64.
    """
    with HeldDraws(chosen.tolist(), seed):
        return engine.clipped_sum(rows.take(chosen), clipping_norm).value.double()
