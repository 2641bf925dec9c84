"""Arithmetic in the ring of integers modulo 2^64, on int64 tensors, without any I/O.

int64 wraps around, which is this arithmetic; a negative number stands for itself plus 2^64.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from privtrain.mpc.keystream import Keystream

RING_BITS = 64


def uniform_bytes(stream: Keystream, shape: Sequence[int]) -> Tensor:
    """The next uniform bytes of a stream.

    Args:
        stream: The stream; whole words of it are used up.
        shape: Shape of the tensor.

    Returns:
        uint8.
    """
    count = prod(shape)
    words = stream.integers(((count + 7) // 8,))
    return words.view(torch.uint8)[:count].view(tuple(shape))


def shifted_right(integers: Tensor, bits: int) -> Tensor:
    """The quotient by 2^bits of ring elements read as 0..2^64-1, rounded down.

    Args:
        integers: int64, any shape.
        bits: From 1 to 63.
    """
    # torch's shift copies the sign into the high bits.
    return (integers >> bits) & ((1 << (RING_BITS - bits)) - 1)


def top_bit(integers: Tensor) -> Tensor:
    """The highest bit of ring elements, 0 or 1; int64, same shape."""
    return (integers < 0).long()
