"""Small models and federations for training on shares."""

import torch
from torch import nn

from privtrain.core.task import COLUMNS, FederatedData, Rows

FEATURES, CLASSES, ROWS_EACH = 12, 4, 30


def logistic() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


def binary() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 2, bias=False))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(FEATURES, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU()),
        nn.Linear(8, CLASSES),
    )


def table(classes: int = CLASSES) -> Rows:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(3 * ROWS_EACH, FEATURES, generator=generator)
    truth = torch.randn(FEATURES, classes, generator=generator)
    return Rows(inputs, (inputs @ truth).argmax(1))


def by_rows(classes: int = CLASSES) -> FederatedData:
    rows = table(classes)
    parts = torch.arange(len(rows)).split(ROWS_EACH)
    train = {f"party-{number}": rows.take(part) for number, part in enumerate(parts)}
    return FederatedData(train=train, test=rows)


def by_columns(classes: int = CLASSES) -> FederatedData:
    rows = table(classes)
    train = {
        "bank": Rows(rows.inputs[:, :5]),
        "shop": Rows(rows.inputs[:, 5:], rows.targets),
    }
    return FederatedData(train=train, test=rows, split=COLUMNS, label_holder="shop")
