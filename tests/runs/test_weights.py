"""Parameters and buffers come back to the bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError, UnsupportedError
from privtrain.core.reachable import tensor_digest
from privtrain.runs.weights import check_weights, load_weights, read_weights, weights_of


class Tied(nn.Module):
    """Two names of one weight, and a scalar."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        if tied:
            self.other.weight = self.one.weight
        self.scale = nn.Parameter(torch.tensor(1.5))


class Odd(nn.Module):
    """Tensors that are easily lost."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.tensor([1, 2], dtype=torch.int64))
        self.register_buffer("hidden", torch.randn(2).bool(), persistent=False)
        self.register_buffer("none", None)
        whole = torch.randn(4, 2)
        self.part, self.rest = nn.Parameter(whole[:2]), nn.Parameter(whole[1:])
        self.turned = nn.Parameter(torch.randn(2, 3).T)
        self.frozen = nn.Parameter(torch.tensor([float("nan"), -0.0]), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 2))

    def get_extra_state(self) -> object:
        raise AssertionError("nobody asks for it")


class Complex(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, dtype=dtype))


def named(module: nn.Module) -> dict[str, str]:
    pairs = [*module.named_parameters(remove_duplicate=False)]
    pairs += [(name, nn.Parameter(b, False)) for name, b in module.named_buffers() if b is not None]
    return {name: tensor_digest(tensor) for name, tensor in pairs}


MODELS: list[Callable[[], nn.Module]] = [
    lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.LSTM(2, 2)),
    lambda: nn.Linear(3, 2, dtype=torch.float64),
    lambda: nn.Linear(3, 2).bfloat16(),
    lambda: nn.Linear(3, 2).half(),
    lambda: Complex(torch.complex64),
    lambda: Complex(torch.complex128),
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    Tied,
    Odd,
    nn.Identity,
]


@pytest.mark.parametrize("make", MODELS, ids=range(len(MODELS)))
def test_all_values_come_back_to_the_bit(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, other = make(), make()
    content, table = weights_of(model)
    tensors = read_weights(content, table)
    check_weights(other, tensors, "it")
    load_weights(other, tensors, "it")
    assert named(other) == named(model)
    assert {n: p.requires_grad for n, p in other.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def test_a_model_of_another_type_takes_the_type_that_was_trained() -> None:
    content, table = weights_of(nn.Linear(3, 2).double())
    other = nn.Linear(3, 2)
    load_weights(other, read_weights(content, table), "it")
    assert other.weight.dtype is torch.float64


def test_tied_weights_are_kept_once() -> None:
    content, table = weights_of(Tied())
    assert table["other.weight"]["same_as"] == "one.weight"
    assert content.count(b"weight") == 1
    # Untied in the new model: the same values under both names.
    loose = Tied(tied=False)
    load_weights(loose, read_weights(content, table), "it")
    assert torch.equal(loose.one.weight, loose.other.weight)


def test_a_model_that_ties_what_differed_is_refused() -> None:
    torch.manual_seed(0)
    content, table = weights_of(Tied(tied=False))
    with pytest.raises(DataError, match="ties it"):
        load_weights(Tied(), read_weights(content, table), "it")


def test_other_names_and_shapes_are_named() -> None:
    tensors = read_weights(*weights_of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))))
    with pytest.raises(DataError, match=r"'0\.weight' of shape \(2, 4\) and not \(2, 3\)"):
        check_weights(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), tensors, "model=")
    with pytest.raises(DataError, match=r"lacks '1\.weight', '1\.bias'"):
        check_weights(nn.Sequential(nn.Linear(3, 2)), tensors, "model=")
    with pytest.raises(DataError, match=r"has '2\.weight', '2\.bias', which was not kept"):
        layers = [nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)]
        check_weights(nn.Sequential(*layers), tensors, "model=")


def test_sparse_parameters_are_refused_by_name() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("graph", torch.eye(3).to_sparse())

    with pytest.raises(UnsupportedError, match="'graph'"):
        weights_of(Sparse())


def test_a_file_that_says_something_else_is_refused() -> None:
    content, table = weights_of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="cannot be read"):
        read_weights(content[:-1], table)
    with pytest.raises(ValueError, match="nobody named"):
        read_weights(content, {"weight": table["weight"]})
    with pytest.raises(KeyError):
        read_weights(content, {**table, "more": table["bias"]})
    with pytest.raises(ValueError, match="'bias' is of shape"):
        read_weights(content, {**table, "bias": {**table["bias"], "shape": [3]}})
    with pytest.raises(ValueError, match="'bias' is of shape"):
        read_weights(content, {**table, "bias": {**table["bias"], "dtype": "int32"}})


def test_what_is_kept_is_a_copy() -> None:
    model = nn.Linear(2, 2)
    tensors: dict[str, Tensor] = read_weights(*weights_of(model))
    tensors["bias"].add_(1)
    assert not torch.equal(tensors["bias"], model.bias)
