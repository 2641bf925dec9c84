"""Small federations, on whose messages attacks that read them are tried."""

from functools import cache

import torch
from torch import nn

from privtrain.core.result import TrainResult
from privtrain.core.task import FederatedData, Rows, Task
from privtrain.runs.fitting import fit
from privtrain.steps.plain import PlainSteps
from privtrain.trainers.fedavg import FedAvg

FEATURES, CLIENTS, EACH = 400, 12, 10
"""Far more features than rows of a client: nothing of a row is like another one."""


def wide_rows(seed: int, count: int = CLIENTS * EACH) -> Rows:
    """Rows whose labels are coin flips: whoever knows a label has seen the row."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 3, (count,), generator=generator)
    return Rows(torch.randn(count, FEATURES, generator=generator), targets)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 3))


FEDERATED = Task(model=perceptron)


def clients(seed: int) -> FederatedData:
    """Clients that hold `wide_rows(seed)`."""
    rows = wide_rows(seed)
    numbers = torch.arange(len(rows)).split(EACH)
    train = {f"client-{n:02}": rows.take(own) for n, own in enumerate(numbers)}
    return FederatedData(train=train, test=wide_rows(99))


@cache
def federation(seed: int) -> TrainResult:
    """A run of these clients, with its tensors."""
    trainer = FedAvg(rounds=12, local=PlainSteps(epochs=2, learning_rate=0.2))
    return fit(trainer, FEDERATED, clients(seed), keep_payloads=True)
