"""Ring arithmetic against Python's integers and against torch in float64."""

import pytest
import torch
from torch.nn import functional

from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.ring import (
    conv2d,
    conv2d_inputs,
    conv2d_weight,
    shifted_right,
    top_bit,
    uniform_bytes,
)

EDGES = [0, 1, -1, 2**16 - 1, 2**16, 2**62, 2**63 - 1, -(2**63), -(2**62), 12345678901234567]


@pytest.mark.parametrize("bits", [1, 16, 37, 63])
def test_a_shift_is_that_of_unsigned_integers(bits: int) -> None:
    expected = [(edge % 2**64) >> bits for edge in EDGES]
    assert shifted_right(torch.tensor(EDGES), bits).tolist() == expected


def test_the_top_bit_is_the_sign() -> None:
    assert top_bit(torch.tensor(EDGES)).tolist() == [(edge % 2**64) >> 63 for edge in EDGES]


def test_bytes_of_a_stream_are_its_words() -> None:
    drawn = uniform_bytes(Keystream(bytes(32)), (3, 7))
    words = Keystream(bytes(32)).integers((3,))
    assert drawn.shape == (3, 7)
    assert torch.equal(drawn.reshape(-1), words.view(torch.uint8)[:21])


@pytest.mark.parametrize(("stride", "padding", "side"), [(1, 0, 7), (2, 1, 8), (3, 2, 10)])
def test_convolutions_and_their_gradients_are_those_of_torch(
    stride: int, padding: int, side: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-50, 50, (2, 3, side, side), generator=generator)
    w = torch.randint(-50, 50, (4, 3, 3, 3), generator=generator)
    inputs, weight = x.double().requires_grad_(), w.double().requires_grad_()
    outputs = functional.conv2d(inputs, weight, stride=stride, padding=padding)
    g = torch.randint(-50, 50, tuple(outputs.shape), generator=generator)
    outputs.backward(g.double())
    assert inputs.grad is not None
    assert weight.grad is not None
    found = conv2d(x, w, stride=stride, padding=padding)
    assert torch.equal(found.double(), outputs.detach())
    of_inputs = conv2d_inputs(w, g, shape=x.shape, stride=stride, padding=padding)
    assert torch.equal(of_inputs.double(), inputs.grad)
    of_weight = conv2d_weight(x, g, kernel=(3, 3), stride=stride, padding=padding)
    assert torch.equal(of_weight.double(), weight.grad)


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
    found = conv2d(x, w).reshape(2, 2).tolist()
    assert [[value % 2**64 for value in row] for row in found] == products
