"""Small federations in float64 for tests of trainers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from privtrain.core.result import TrainResult
from privtrain.core.runtime import Runtimes
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.data.models import MLP
from privtrain.runtimes.in_process import InProcess

STAR = Runtimes(star=InProcess())
TASK = Task(model=MLP((5, 4, 3), torch.float64))


def some_rows(seed: int, count: int = 12) -> Rows:
    """Rows that follow from a seed; the class is the largest of three features."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return Rows(inputs, inputs[:, :3].argmax(dim=1))


def a_federation(*counts: int, public_rows: int | None = None) -> FederatedData:
    """One party a number, with so many rows."""
    train = {f"p{i}": some_rows(100 + i, count) for i, count in enumerate(counts)}
    return FederatedData(train=train, test=some_rows(1), public_rows=public_rows)


def a_task(model: Callable[[], nn.Module]) -> Task:
    return Task(model=model)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def module(result: TrainResult) -> nn.Module:
    found: nn.Module = getattr(result.predictor, "module")  # noqa: B009
    return found
