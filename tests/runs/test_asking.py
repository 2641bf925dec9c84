"""What a model cannot take is named by its row, and by its token where one is unknown."""

import pytest
import torch
from torch import nn

from privtrain.core.errors import DataError
from privtrain.runs.asking import AT_ONCE, asked

TOKENS = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(8, 2))


@pytest.mark.parametrize("row", [0, 1, 6, AT_ONCE + 2])
@pytest.mark.parametrize("token", [50, -3])
def test_an_unknown_token_is_named(row: int, token: int) -> None:
    inputs = torch.ones(AT_ONCE + 7, 2, dtype=torch.int64)
    assert asked(TOKENS, inputs).shape == (AT_ONCE + 7, 2)
    inputs[row:, 1] = token
    said = rf"row {row}, counted from 0, which holds {token}; its embedding knows 0 to 49: .*Index"
    with pytest.raises(DataError, match=said):
        asked(TOKENS, inputs)


def test_the_error_of_a_model_is_told() -> None:
    class Picky(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if bool((inputs > 3).any()):
                raise RuntimeError("too large")
            return inputs

    with pytest.raises(DataError, match="row 4, counted from 0: it raised RuntimeError: too large"):
        asked(Picky(), torch.arange(9.0).reshape(9, 1))


def test_no_rows_are_no_answers() -> None:
    assert asked(nn.Linear(2, 3), torch.zeros(0, 2)).shape == (0, 3)
