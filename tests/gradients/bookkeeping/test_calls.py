"""Calls of layers must cover every use of a parameter, in every batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError
from privtrain.gradients.bookkeeping.calls import one_row_each
from tests.gradients.bookkeeping.cases import C, engine_of, equal, expected
from tests.gradients.loops import (
    mlp,
    rows_for,
)


class Later(nn.Module):
    """A weight that is used outside of its layer from some time on."""

    def __init__(self) -> None:
        super().__init__()
        self.later = False
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        if self.later:
            hidden = nn.functional.linear(hidden, self.body.weight)
        out: Tensor = self.head(hidden)
        return out


def test_a_weight_outside_of_layers_is_noticed_in_any_batch() -> None:
    engine, rows = engine_of(Later), rows_for(mlp)
    equal(engine.clipped_sum(rows, C), expected(Later, rows))
    assert engine.notes == ()
    engine.model.later = True
    equal(engine.clipped_sum(rows, C), expected(later, rows))
    assert len(engine.notes) == 1


def later() -> nn.Module:
    model = Later()
    model.later = True
    return model


class Aside(nn.Module):
    """A layer whose output is dropped, and whose weight is used outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        out: Tensor = self.head(torch.tanh(nn.functional.linear(x, self.body.weight)))
        return out


def test_a_call_that_leads_nowhere_does_not_hide_a_use_outside() -> None:
    engine = engine_of(Aside)
    equal(engine.clipped_sum(rows_for(mlp), C), expected(Aside, rows_for(mlp)))
    assert len(engine.notes) == 1


def test_inputs_that_are_overwritten_are_refused() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x) * 1.0
            out: Tensor = self.head(hidden)
            hidden.mul_(2.0)
            return out

    with pytest.raises(UnsupportedError, match="written to afterwards"):
        engine_of(Overwrites).clipped_sum(rows_for(mlp), C)


@pytest.mark.parametrize("count", [1, 1000])
def test_one_row_for_each_example_however_many_there_are(count: int) -> None:
    # The number of rows is computed, so that it is another object than the length.
    call: Any = SimpleNamespace(inputs=torch.zeros(count, 2))
    assert one_row_each(call, int(str(count)))
    assert not one_row_each(call, count + 1)
    assert not one_row_each(SimpleNamespace(inputs=torch.tensor(1.0)), count)  # type: ignore[arg-type]
