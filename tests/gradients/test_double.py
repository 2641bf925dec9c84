"""A model in float64 for a while: it computes more precisely, and is then what it was."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privtrain.gradients.double import in_double, widened

WEIGHT = torch.ones(4, 4)

INSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: x.float() + 0,
    "half": lambda x: x.bfloat16() @ torch.eye(4, dtype=torch.bfloat16),
    "zeros": lambda x: x @ torch.zeros(4, 4),
    "full": lambda x: x @ torch.full((4, 4), 0.5),
    "rand": lambda x: x @ torch.rand(4, 4),
    "a tensor of its own": lambda x: x @ WEIGHT,
    "a list": lambda x: x @ torch.tensor([[1.0] * 4] * 4),
}


@pytest.mark.parametrize("name", INSIDE)
def test_everything_is_in_float64(name: str) -> None:
    model = nn.Linear(4, 4)
    with in_double(model):
        made = INSIDE[name](model(widened(torch.ones(3, 4))))
        assert made.dtype is torch.float64
        (gradient,) = torch.autograd.grad(made.sum(), [model.weight])
        assert gradient.dtype is torch.float64
    assert torch.equal(WEIGHT, torch.ones(4, 4))
    assert WEIGHT.dtype is torch.float32


def test_rounding_is_that_of_float64() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 3)), torch.randn(20, 50)
    exact = nn.Sequential(nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 3)).double()
    exact.load_state_dict(model.state_dict())
    with in_double(model):
        torch.testing.assert_close(model(x.double()), exact(x.double()), rtol=1e-14, atol=1e-15)
    assert float((model(x) - exact(x.double())).detach().abs().max()) > 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_the_same_objects_and_get_their_bits_back(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(dtype)
    model.register_buffer("mean", torch.rand(4, dtype=dtype))
    model[1].weight = model[0].weight
    tensors = [*model.parameters(), *model.buffers()]
    bits, places = [each.detach().clone() for each in tensors], [t.data_ptr() for t in tensors]
    with pytest.raises(RuntimeError, match="stop"), in_double(model):
        assert all(each.dtype is torch.float64 for each in tensors)
        assert model[1].weight is model[0].weight
        raise RuntimeError("stop")
    after = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(tensors, after, strict=True))
    assert all(map(torch.equal, bits, after))
    assert places == [each.data_ptr() for each in after]


def test_what_is_written_to_keeps_its_type_and_whole_numbers_are_left_alone() -> None:
    into = torch.zeros(3)
    with in_double(nn.Linear(1, 1)):
        into.add_(torch.ones(3, dtype=torch.float64))
        assert torch.arange(3).dtype is torch.int64
    assert torch.equal(into, torch.ones(3))
    assert widened(torch.arange(3)).dtype is torch.int64
