"""Convolutions and sums over windows of int64 against torch in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from privtrain.mpc.convolution import (
    Windows,
    conv2d,
    conv2d_inputs,
    conv2d_weight,
    sums,
    sums_inputs,
)
from privtrain.mpc.keystream import Keystream

WINDOWS = [
    Windows((3, 3)),
    Windows((3, 2), stride=(2, 3), padding=(1, 0)),
    Windows((2, 3), stride=(1, 2), padding=(0, 2), dilation=(3, 2)),
    Windows((1, 1), stride=(3, 2)),
]


def drawn(*shape: int) -> Tensor:
    return torch.randint(-50, 50, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize(("inside", "out", "groups"), [(3, 4, 1), (4, 6, 2), (3, 6, 3)])
def test_convolutions_and_their_gradients_are_those_of_torch(
    windows: Windows, inside: int, out: int, groups: int
) -> None:
    x, w = drawn(2, inside, 9, 8), drawn(out, inside // groups, *windows.kernel)
    inputs, weight = x.double().requires_grad_(), w.double().requires_grad_()
    outputs = functional.conv2d(
        inputs, weight, None, windows.stride, windows.padding, windows.dilation, groups
    )
    assert windows.count(x.shape) == outputs.shape[2:]
    g = drawn(*outputs.shape)
    outputs.backward(g.double())
    found = conv2d(x, w, windows=windows, groups=groups)
    of_inputs = conv2d_inputs(g, w, shape=x.shape, windows=windows, groups=groups)
    of_weight = conv2d_weight(x, g, windows=windows, groups=groups)
    for integers, wanted in (
        (found, outputs.detach()),
        (of_inputs, inputs.grad),
        (of_weight, weight.grad),
    ):
        assert wanted is not None
        assert torch.equal(integers.double(), wanted)


@pytest.mark.parametrize("windows", [replace(each, dilation=(1, 1)) for each in WINDOWS])
def test_sums_and_their_gradient_are_those_of_torch(windows: Windows) -> None:
    x = drawn(2, 3, 9, 8)
    # More padding than half a window is refused by torch's own pooling.
    ones = torch.ones(3, 1, *windows.kernel, dtype=torch.float64)
    inputs = x.double().requires_grad_()
    outputs = functional.conv2d(inputs, ones, None, windows.stride, windows.padding, 1, 3)
    g = drawn(*outputs.shape)
    outputs.backward(g.double())
    assert torch.equal(sums(x, windows=windows).double(), outputs.detach())
    assert inputs.grad is not None
    assert torch.equal(sums_inputs(g, shape=x.shape, windows=windows).double(), inputs.grad)


def test_putting_windows_back_is_the_adjoint_of_taking_them() -> None:
    for windows in WINDOWS:
        x = drawn(2, 3, 9, 8)
        taken = windows.of(x)
        other = drawn(*taken.shape)
        assert int((taken * other).sum()) == int((x * windows.put_back(other, x.shape)).sum())


def test_a_convolution_wraps_around_modulo_2_64() -> None:
    x, w = (Keystream(bytes([number] * 32)).integers((2, 3, 6, 6)) for number in range(2))
    windows = x.unfold(2, 6, 1).unfold(3, 6, 1).reshape(2, -1)
    products = [
        [
            sum(a * b for a, b in zip(row, kernel, strict=True)) % 2**64
            for kernel in w.reshape(2, -1).tolist()
        ]
        for row in windows.tolist()
    ]
    found = conv2d(x, w, windows=Windows((6, 6))).reshape(2, 2).tolist()
    assert [[value % 2**64 for value in row] for row in found] == products
