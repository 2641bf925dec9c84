"""Images that are moved, turned and resized a little, so that a network learns what stays."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from privtrain.core.errors import DataError
from privtrain.core.validate import check_count, check_non_negative


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Moves, turns, resizes and shears images by random amounts, each image by its own.

    What was outside of an image is zero.

    Args:
        shift: Largest move in either direction, as a fraction of the side; at least 0.
        rotation: Largest angle, in degrees.
        scale: By which fraction a side becomes longer or shorter at most; below 1.
        shear: Largest angle by which upright lines lean, in degrees.
        sides: Height and width of images whose pixels are one row of numbers; None for inputs of
            shape `(rows, channels, height, width)`.
    """

    shift: float = 0.08
    rotation: float = 12.0
    scale: float = 0.12
    shear: float = 8.0
    sides: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_non_negative(shift=self.shift, rotation=self.rotation, shear=self.shear)
        if not 0 <= self.scale < 1:
            raise ValueError(f"Expected scale={self.scale} to be in [0, 1).")
        if not self.shear < 90:
            raise ValueError(f"Expected shear={self.shear} to be below 90, in degrees.")
        if self.sides is not None:
            if len(self.sides) != 2:
                raise ValueError(f"Expected sides={self.sides} to be (height, width).")
            for side in self.sides:
                check_count(sides=side)

    def times(self, factor: float) -> "Affine":
        """One that moves so many times as far."""
        scale, shear = min(0.9, factor * self.scale), min(60.0, factor * self.shear)
        shift, rotation = factor * self.shift, factor * self.rotation
        return replace(self, shift=shift, rotation=rotation, scale=scale, shear=shear)

    def moves(self, inputs: Tensor) -> bool:
        """Whether inputs are images as this value knows them, shape `(rows, ...)`."""
        if not inputs.is_floating_point():
            return False
        if self.sides is None:
            return inputs.dim() == 4
        return inputs[0].numel() % math.prod(self.sides) == 0

    def check(self, inputs: Tensor) -> None:
        """Refuses inputs, shape `(rows, ...)`, that are no images of the stated sides.

        Raises:
            DataError: With both.
        """
        if self.sides is not None and not self.moves(inputs):
            raise DataError(
                f"Expected inputs of shape {('rows', *inputs.shape[1:])} and type {inputs.dtype} "
                f"to be images of sides={self.sides}, of floating point. Use other sides, or None."
            )

    def _images(self, inputs: Tensor) -> Tensor:
        images = inputs if self.sides is None else inputs.reshape(len(inputs), -1, *self.sides)
        return images.to(torch.promote_types(images.dtype, torch.float32))

    def __call__(self, inputs: Tensor, draws: torch.Generator) -> Tensor:
        """The images, each moved by amounts of its own.

        Args:
            inputs: Images that it `moves`, shape `(rows, ...)`.
            draws: Where amounts come from, on the CPU.

        Returns:
            Same shape and type, on the same device.
        """
        images = self._images(inputs)
        drawn = torch.rand(len(inputs), 6, generator=draws).to(images.device) * 2 - 1
        turn = drawn[:, 0] * math.radians(self.rotation)
        lean = torch.tan(drawn[:, 1] * math.radians(self.shear))
        wide, high = (1.0 / (1.0 + self.scale * drawn[:, axis]) for axis in (2, 3))
        cos, sin = torch.cos(turn), torch.sin(turn)
        # From places of the moved image to those of the original, whose sides run from -1 to 1:
        # resized, turned, leant, and moved by a fraction of a side of length 2.
        top = [wide * cos, wide * (lean * cos - sin), 2 * self.shift * drawn[:, 4]]
        low = [high * sin, high * (lean * sin + cos), 2 * self.shift * drawn[:, 5]]
        maps = torch.stack([torch.stack(top, 1), torch.stack(low, 1)], 1).to(images.dtype)
        grid = torch.nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
        moved = torch.nn.functional.grid_sample(images, grid, align_corners=False)
        return moved.reshape(inputs.shape).to(inputs.dtype)

    def erased(self, inputs: Tensor, side: float, draws: torch.Generator) -> Tensor:
        """The images, of each of which a rectangle somewhere is zero.

        Args:
            inputs: Shape `(rows, ...)`.
            side: Its sides, as a fraction of those of the image.
            draws: Where places come from, on the CPU.
        """
        images = self._images(inputs)
        places = torch.rand(len(inputs), 2, generator=draws).to(images.device)
        high, wide = (self._near(images.shape[2 + axis], places[:, axis], side) for axis in (0, 1))
        gone = high[:, None, :, None] & wide[:, None, None, :]
        return images.masked_fill(gone, 0.0).reshape(inputs.shape).to(inputs.dtype)

    def _near(self, length: int, places: Tensor, side: float) -> Tensor:
        """Which pixels along a side are near a place, boolean, shape `(rows, length)`."""
        at = (torch.arange(length, device=places.device) + 0.5) / length
        return (at - places[:, None]).abs() <= side / 2
