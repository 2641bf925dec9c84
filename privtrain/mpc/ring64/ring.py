"""Arithmetic in the ring of integers modulo 2^64, on int64 tensors, without any I/O.

int64 wraps around, which is this arithmetic; a negative number stands for itself plus 2^64.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

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


def conv2d(inputs: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    """The cross-correlation of images and kernels, as `torch.nn.functional.conv2d`.

    Args:
        inputs: `(batch, channels, height, width)`.
        weight: `(out, channels, kernel height, kernel width)`.
        stride: Steps between windows.
        padding: Zeros at each side.
    """
    return functional.conv2d(inputs, weight, stride=stride, padding=padding)


def conv2d_inputs(
    weight: Tensor, gradient: Tensor, *, shape: Sequence[int], stride: int = 1, padding: int = 0
) -> Tensor:
    """The gradient of `conv2d` with respect to its inputs; bilinear in weight and gradient.

    Args:
        weight: `(out, channels, kernel height, kernel width)`.
        gradient: With respect to the outputs, `(batch, out, height, width)`.
        shape: Shape of the inputs, `(batch, channels, height, width)`.
        stride: As forward.
        padding: As forward.
    """
    # Rows and columns at the far side that no window reached.
    left = [
        shape[2 + axis]
        + 2 * padding
        - weight.shape[2 + axis]
        - (gradient.shape[2 + axis] - 1) * stride
        for axis in range(2)
    ]
    return functional.conv_transpose2d(
        gradient, weight, stride=stride, padding=padding, output_padding=left
    )


def conv2d_weight(
    inputs: Tensor, gradient: Tensor, *, kernel: Sequence[int], stride: int = 1, padding: int = 0
) -> Tensor:
    """The gradient of `conv2d` with respect to its weight; bilinear in inputs and gradient.

    Args:
        inputs: `(batch, channels, height, width)`.
        gradient: With respect to the outputs, `(batch, out, height, width)`.
        kernel: Kernel height and width.
        stride: As forward.
        padding: As forward.
    """
    # Batch and channels change places: the sum goes over the batch and over places of the output,
    # which lie `stride` apart in the inputs. torch's own gradient does not take int64.
    found = functional.conv2d(
        inputs.transpose(0, 1), gradient.transpose(0, 1), dilation=stride, padding=padding
    )
    return found[:, :, : kernel[0], : kernel[1]].transpose(0, 1)
