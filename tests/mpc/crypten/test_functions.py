"""The functions on plain tensors, which have what they ask of shared ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.mpc.crypten.functions import maximum, one_hot_argmax, reciprocal, softmax


class Plain(Tensor):
    """A tensor with the two methods that CrypTen's have and torch's have not."""

    @staticmethod
    def cat(tensors: list[Tensor], dim: int) -> Tensor:
        return torch.cat(tensors, dim=dim)

    def pad(self, by: tuple[int, int], value: float) -> Tensor:
        return torch.nn.functional.pad(self, by, value=value)


def plain(values: Tensor) -> Any:
    return values.double().as_subclass(Plain)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10])
def test_maximum_and_argmax_are_those_of_torch(count: int) -> None:
    if count == 1:
        assert maximum(plain(torch.ones(3, 1))).tolist() == [[1.0]] * 3
        return
    values = torch.randint(0, 4, (50, count), generator=torch.Generator().manual_seed(count))
    is_first = (values == values.max(1, keepdim=True).values).int().cumsum(1) == 1
    first = is_first.int() * (values == values.max(1, keepdim=True).values).int()
    assert one_hot_argmax(plain(values)).tolist() == first.tolist(), "the first one of equal ones"
    assert maximum(plain(values)).tolist() == values.max(1, keepdim=True).values.tolist()


@pytest.mark.parametrize("largest", [1, 2, 10, 100])
def test_reciprocals_are_exact_to_the_last_bit_of_fixed_point(largest: int) -> None:
    values = torch.linspace(1, largest, 200, dtype=torch.float64)
    if largest == 1:
        values = torch.ones(3)
    error = (reciprocal(plain(values), largest) - 1 / values).abs().max()
    assert float(error) <= 2.0**-18


def test_softmax_is_that_of_torch_for_gaps_up_to_160() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(60, 10, generator=generator).double() * 160 - 80
    assert float((softmax(plain(logits)) - logits.softmax(1)).abs().max()) < 2e-4
