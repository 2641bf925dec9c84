"""Convolutions and sums over windows of pictures, for integers modulo 2^64 and floats alike.

Each is linear in every argument, so it works on shares and masks. torch's own gradients of
convolutions do not take int64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]
"""Of the height, then of the width."""


@dataclass(frozen=True)
class Windows:
    """Where windows lie in a picture; pairs are of height and width.

    Args:
        kernel: Size of a window.
        stride: Steps between windows.
        padding: Zeros at each side.
        dilation: Steps between the places of a window.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def count(self, shape: Sequence[int]) -> Pair:
        """How many windows a picture `(..., height, width)` has."""
        height, width = (
            (shape[axis - 2] + 2 * self.padding[axis] - self.reach(axis)) // self.stride[axis] + 1
            for axis in range(2)
        )
        return height, width

    def of(self, pictures: Tensor) -> Tensor:
        """All windows, `(batch, channels, rows, columns, kernel height, kernel width)`."""
        down, right = self.padding
        padded = functional.pad(pictures, (right, right, down, down))
        for axis in range(2):
            padded = padded.unfold(2 + axis, self.reach(axis), self.stride[axis])
        return padded[..., :: self.dilation[0], :: self.dilation[1]]

    def put_back(self, windows: Tensor, shape: Sequence[int]) -> Tensor:
        """Adds windows up where they lie: the adjoint of `of`.

        Args:
            windows: As `of` gives them; may be expanded.
            shape: Of the pictures, `(batch, channels, height, width)`.
        """
        (down, right), (rows, columns) = self.padding, windows.shape[2:4]
        padded = windows.new_zeros(shape[0], shape[1], shape[2] + 2 * down, shape[3] + 2 * right)
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                top, left = row * self.dilation[0], column * self.dilation[1]
                bottom = top + (rows - 1) * self.stride[0] + 1
                end = left + (columns - 1) * self.stride[1] + 1
                part = padded[:, :, top : bottom : self.stride[0], left : end : self.stride[1]]
                part += windows[..., row, column]
        return padded[:, :, down : down + shape[2], right : right + shape[3]]

    def reach(self, axis: int) -> int:
        """How far a window reaches along height (0) or width (1)."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1


def conv2d(inputs: Tensor, weight: Tensor, *, windows: Windows, groups: int = 1) -> Tensor:
    """The cross-correlation of pictures and kernels, as `torch.nn.functional.conv2d`.

    Args:
        inputs: `(batch, channels, height, width)`.
        weight: `(out, channels / groups, kernel height, kernel width)`.
        windows: Where the windows lie.
        groups: Groups of channels; outputs of one see its channels alone.
    """
    return functional.conv2d(
        inputs, weight, None, windows.stride, windows.padding, windows.dilation, groups
    )


def conv2d_inputs(
    gradient: Tensor, weight: Tensor, *, shape: Sequence[int], windows: Windows, groups: int = 1
) -> Tensor:
    """The gradient of `conv2d` with respect to its inputs; bilinear in gradient and weight.

    Args:
        gradient: With respect to the outputs, `(batch, out, rows, columns)`.
        weight: As forward.
        shape: Shape of the inputs, `(batch, channels, height, width)`.
        windows: As forward.
        groups: As forward.
    """
    # Rows and columns at the far side that no window reached.
    left = [
        (shape[2 + axis] + 2 * windows.padding[axis] - windows.reach(axis)) % windows.stride[axis]
        for axis in range(2)
    ]
    return functional.conv_transpose2d(
        gradient,
        weight,
        None,
        windows.stride,
        windows.padding,
        left,
        groups,
        windows.dilation,
    )


def conv2d_weight(inputs: Tensor, gradient: Tensor, *, windows: Windows, groups: int = 1) -> Tensor:
    """The gradient of `conv2d` with respect to its weight; bilinear in inputs and gradient.

    Args:
        inputs: As forward.
        gradient: With respect to the outputs, `(batch, out, rows, columns)`.
        windows: As forward.
        groups: As forward.
    """
    out = gradient.shape[1] // groups
    parts = zip(inputs.chunk(groups, 1), gradient.chunk(groups, 1), strict=True)
    weights = []
    # A product of matrices over batch and places: eight times as fast as a convolution of int64.
    for pictures, of_outputs in parts:
        seen = windows.of(pictures).permute(0, 2, 3, 1, 4, 5)
        columns = seen.reshape(seen.shape[:3].numel(), -1)
        rows = of_outputs.transpose(0, 1).reshape(out, -1)
        weights.append((rows @ columns).reshape(out, *seen.shape[3:]))
    return torch.cat(weights)


def sums(pictures: Tensor, *, windows: Windows) -> Tensor:
    """The sum of each window, `(batch, channels, rows, columns)`."""
    return windows.of(pictures).sum((-2, -1))


def sums_inputs(gradient: Tensor, *, shape: Sequence[int], windows: Windows) -> Tensor:
    """The gradient of `sums` with respect to its inputs.

    Args:
        gradient: With respect to the sums, `(batch, channels, rows, columns)`.
        shape: Shape of the pictures, `(batch, channels, height, width)`.
        windows: As forward.
    """
    every = gradient[..., None, None].expand(*gradient.shape, *windows.kernel)
    return windows.put_back(every, shape)
