"""Splitting and sharing a table: by the number of rows alone, and every row once."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.task import FederatedData, Rows
from privtrain.data import from_arrays
from privtrain.data.federation import Layout, federate

Y = np.arange(100) % 3


def numbered(rows: int = 100) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.arange(rows, dtype=np.float64)[:, None]


def first_columns(data: FederatedData) -> list[list[float]]:
    held: list[Rows | None] = [data.test, data.validation, data.public, data.pooled()]
    return [[] if part is None else part.inputs[:, 0].tolist() for part in held]


def test_the_cut_depends_on_the_number_of_rows_only() -> None:
    _, first = from_arrays(numbered(), Y, parties=3, public_fraction=0.1)
    _, other = from_arrays(numbered(), np.roll(Y, 1)[::-1], parties=3, public_fraction=0.1, seed=7)
    assert first_columns(first)[:3] == first_columns(other)[:3]
    assert sorted(first_columns(first)[3]) == sorted(first_columns(other)[3])
    assert sorted(number for part in first_columns(first) for number in part) == list(range(100))
    _, wider = from_arrays(numbered(), Y, parties=3, validation_fraction=0.3)
    assert first_columns(wider)[0] == first_columns(first)[0]
    assert first.digest != other.digest  # other labels


class Lossy:
    """A partition that does what its user asks: here, something wrong."""

    def __init__(self, index: list[list[int]]) -> None:
        self.index = [torch.tensor(held, dtype=torch.int64) for held in index]
        self.split = Layout().partition.split
        self.label_holder = None

    def __call__(self, targets: Tensor, parties: int, generator: object) -> list[Tensor]:
        return self.index


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([[0, 1, 2], []], "leaves party-1 empty"),
        ([[0, 1], [3]], "each of 4 rows to one party"),
        ([[0, 1, 2], [2, 3]], "each of 4 rows to one party"),
        ([[0, 1, 2, 3]], "returned 1"),
    ],
)
def test_a_wrong_partition_is_caught(index: list[list[int]], message: str) -> None:
    rows = Rows(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    layout = Layout(parties=2, partition=Lossy(index), validation_fraction=0.0)
    with pytest.raises(DataError, match=message):
        federate(rows, layout, name="x", test=rows)
