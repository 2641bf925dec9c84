"""Normal noise at the speed of the processor's vector units.

numpy draws normals one by one; for a model of 235,000 parameters that takes two thirds of a step of
training, and twice as long as here. A generator gives a key, AES gives the bits, and Box and
Muller's transform (1958) makes normals of whole blocks of them.
"""

import math

import numpy as np
import torch
from torch import Tensor

from privtrain.core.words import KEY_BYTES, Words

BLOCK = 2**16
"""Pairs that are worked on at a time: what fits into a processor's cache."""


def standard_normals(like: Tensor, generator: np.random.Generator, scale: float = 1.0) -> Tensor:
    """Independent normals of a tensor's shape, type and device.

    For float64 tensors every value is made of 64 random bits twice, for others of 32 twice, in
    float32. The largest values that can be drawn are 8.5 and 6.6 standard deviations; what a true
    normal puts beyond has probability below 1e-16 and 1e-10. Noise in floating point is for
    research use.

    Args:
        like: A floating-point tensor.
        generator: Where the key of the bits comes from.
        scale: Standard deviation; at least zero.

    Returns:
        The normals; on every device the same, since they are drawn on the processor.

    Source: Box and Muller 1958.
    """
    wide = like.dtype is torch.float64
    pairs = (like.numel() + 1) // 2
    drawn = torch.empty(2 * pairs, dtype=torch.float64 if wide else torch.float32)
    words = Words(generator.bytes(KEY_BYTES))
    room = drawn.new_empty(min(pairs, BLOCK))
    uniform, turn = (2.0**-53, 2.0**-64) if wide else (2.0**-32, 2.0**-32)
    for start in range(0, pairs, BLOCK):
        radius = room[: min(BLOCK, pairs - start)]
        cosines, sines = (drawn[at : at + len(radius)] for at in (start, pairs + start))
        radii, angles = (_wide if wide else _narrow)(len(radius), words)
        # Small whole numbers are exact in floating point: the tail keeps its relative precision.
        radius.copy_(radii).add_(1).mul_(uniform)
        radius.log_().mul_(-2).sqrt_().mul_(scale)
        sines.copy_(angles).mul_(2 * math.pi * turn)
        torch.cos(sines, out=cosines).mul_(radius)
        sines.sin_().mul_(radius)
    return drawn[: like.numel()].view(like.shape).to(dtype=like.dtype, device=like.device)


def _narrow(pairs: int, words: Words) -> tuple[Tensor, Tensor]:
    """32 bits for each radius, 32 signed ones for each angle."""
    bits = words.take(pairs).view(np.uint32)
    return torch.from_numpy(bits[:pairs]), torch.from_numpy(bits[pairs:].view(np.int32))


def _wide(pairs: int, words: Words) -> tuple[Tensor, Tensor]:
    """53 bits for each radius, 64 signed ones for each angle."""
    bits = words.take(2 * pairs)
    radii = torch.from_numpy((bits[:pairs] >> np.uint64(11)).view(np.int64))
    return radii, torch.from_numpy(bits[pairs:].view(np.int64))
