"""Models without a formula for each parameter are taken one example at a time."""

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.parameters import to_vector, trainable
from privtrain.core.task import Rows, cross_entropy
from privtrain.gradients.bookkeeping.torch_func import TorchFuncEngine
from tests.gradients.bookkeeping.cases import C, Case, engine_of, equal, expected
from tests.gradients.loops import (
    Make,
    Outside,
    Own,
    example_gradients,
    in_float64,
    rows_for,
)


@pytest.mark.parametrize("make", [Own, Outside])
def test_a_weight_outside_of_layers_is_taken_one_example_at_a_time(make: Make) -> None:
    rows = rows_for(make)
    engine = engine_of(make)
    for _ in range(2):
        found = engine.clipped_sum(rows, C)
        equal(found, expected(make, rows))
        torch.testing.assert_close(
            found.norms, example_gradients(in_float64(make), rows).norm(dim=1)
        )
    assert len(engine.notes) == 1
    assert "torch.func" in engine.notes[0]
    bad = Rows(rows.inputs.clone(), rows.labels)
    bad.inputs[0, 0] = float("nan")
    found = engine.clipped_sum(bad, C)
    equal(found, expected(make, rows.take(torch.arange(1, 7))))
    assert found.non_finite == 1


class TimeFirst(nn.Module):
    """Gives its layers inputs of shape (time, batch, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.transpose(0, 1))
        return out.mean(dim=0)


class Places(nn.Module):
    """Adds what it learned of each place, looked up once for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(9, 4), nn.Embedding(7, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        placed = self.table(x.long().abs() % 9) + self.place(torch.arange(x.shape[1]))
        out: Tensor = self.head(torch.tanh(placed).mean(dim=1))
        return out


@pytest.mark.parametrize("count", [1, 5, 7, 20])
@pytest.mark.parametrize(("make", "shape"), [(TimeFirst, (7, 6)), (Places, (7,))])
def test_layers_that_do_not_see_one_row_each_are_taken_one_example_at_a_time(
    make: Make, shape: tuple[int, ...], count: int
) -> None:
    rows = Case(make, shape, 9 if make is Places else 0).rows(count)
    engine = engine_of(make)
    equal(engine.clipped_sum(rows, C), expected(make, rows))
    assert len(engine.notes) == 1
    assert "does not count the examples" in engine.notes[0]


def test_an_empty_batch_adds_up_to_zero() -> None:
    model, rows = in_float64(Own), rows_for(Own)
    found = TorchFuncEngine(model, cross_entropy).clipped_sum(rows.take(torch.arange(0)), C)
    assert torch.equal(found.value, torch.zeros_like(to_vector(trainable(model))))
    assert len(found.norms) == len(found.losses) == 0
