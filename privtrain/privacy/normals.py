"""Normal noise at the speed of the processor's vector units.

numpy draws normals one by one; for a model of 235,000 parameters that takes longer than a step of
training. Here a secret stream gives the bits, and Box and Muller's transform (1958) makes normals
of whole blocks of them.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**16
"""Pairs that are worked on at a time: what fits into a processor's cache."""


def standard_normals(like: Tensor, generator: np.random.Generator) -> Tensor:
    """Independent standard normals of a tensor's shape, type and device.

    For float64 tensors every value is made of 64 random bits twice, for others of 32 twice, in
    float32. The largest values that can be drawn are 8.5 and 6.5 standard deviations; what a true
    normal puts beyond has probability below 1e-16 and 1e-10. Noise in floating point is for
    research use.

    Args:
        like: A floating-point tensor.
        generator: Where the bits come from.

    Returns:
        The normals; on every device the same, since they are drawn on the processor.

    Source: Box and Muller 1958.
    """
    wide = like.dtype is torch.float64
    pairs = (like.numel() + 1) // 2
    radii, angles = (_wide if wide else _narrow)(pairs, generator)
    drawn = torch.empty(2 * pairs, dtype=torch.float64 if wide else torch.float32)
    uniform, turn = (2.0**-53, 2.0**-64) if wide else (2.0**-31, 2.0**-32)
    for start in range(0, pairs, _BLOCK):
        stop = min(start + _BLOCK, pairs)
        # Small whole numbers are exact in floating point: the tail keeps its relative precision.
        radius = radii[start:stop].to(drawn.dtype).add_(1).mul_(uniform).clamp_max_(1)
        radius = radius.log_().mul_(-2).sqrt_()
        angle = angles[start:stop].to(drawn.dtype).mul_(2 * math.pi * turn)
        torch.cos(angle, out=drawn[start:stop]).mul_(radius)
        torch.sin(angle, out=drawn[pairs + start : pairs + stop]).mul_(radius)
    return drawn[: like.numel()].view(like.shape).to(dtype=like.dtype, device=like.device)


def _words(count: int, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    return generator.integers(0, 2**64, size=count, dtype=np.uint64)


def _narrow(pairs: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """31 bits for each radius, 32 signed ones for each angle."""
    words = torch.from_numpy(_words(pairs, generator).view(np.int32))
    return words[:pairs].bitwise_and(2**31 - 1), words[pairs:]


def _wide(pairs: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """53 bits for each radius, 64 signed ones for each angle."""
    words = _words(2 * pairs, generator)
    radii = torch.from_numpy((words[:pairs] >> np.uint64(11)).view(np.int64))
    return radii, torch.from_numpy(words[pairs:].view(np.int64))
