"""Normal noise, drawn in blocks by Box and Muller's transform from AES words.

numpy draws normals one by one; for a model of 235,000 parameters that takes two thirds of a step of
training, and twice as long as here.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtrain.core.seeding import KEY_BYTES, Words
from privtrain.mechanisms.reach import check_real

BLOCK = 2**16
"""Pairs that are computed at a time: what fits into a processor's cache."""

COARSE = 2**10
"""Whole numbers below it get 64 further bits: a uniform number is then right to a thousandth."""


def standard_normals(like: Tensor, generator: np.random.Generator, scale: float = 1.0) -> Tensor:
    """Independent normals of a tensor's shape, type and device.

    For float64 tensors a pair of values takes two times 64 random bits, for others two times 32
    and is computed in float32. Where those of the radius are nearly all zero, 64 more are drawn:
    tails have the law of a normal to within a thousandth, up to 12.7 and 11.5 standard deviations,
    beyond which a true one has probability below 1e-30. Noise in floating point is for research
    use.

    Args:
        like: A floating-point tensor, which is not complex.
        generator: Where the key of the bits comes from.
        scale: Standard deviation; at least zero.

    Returns:
        The normals; the same on every device, since they are drawn on the processor.

    Source: Box and Muller 1958.
    """
    check_real(like=like)
    wide = like.dtype is torch.float64
    pairs = (like.numel() + 1) // 2
    drawn = torch.empty(2 * pairs, dtype=torch.float64 if wide else torch.float32)
    # The generator only gives a key: AES in counter mode then fills whole blocks at a time.
    words = Words(generator.bytes(KEY_BYTES))
    radius_buffer = drawn.new_empty(min(pairs, BLOCK))
    uniform, turn = (2.0**-53, 2.0**-64) if wide else (2.0**-32, 2.0**-32)
    for start in range(0, pairs, BLOCK):
        radius = radius_buffer[: min(BLOCK, pairs - start)]
        cosines, sines = (drawn[at : at + len(radius)] for at in (start, pairs + start))
        # Cosines fill the first half of what is drawn and sines the second.
        radii, angles = (_wide if wide else _narrow)(len(radius), words)
        # One more than a whole number, so that no logarithm is infinite. Small whole numbers are
        # exact in floating point: the tail keeps its relative precision.
        radius.copy_(radii).add_(1).mul_(uniform)
        _refine(radius, radii.numpy(), uniform, words)
        # Box and Muller 1958: sqrt(-2 log u1) cos(2 pi u2) and sqrt(-2 log u1) sin(2 pi u2).
        radius.log_().mul_(-2).sqrt_().mul_(scale)
        sines.copy_(angles).mul_(2 * math.pi * turn)
        # The angles are stored where the sines will be; the cosines come first.
        torch.cos(sines, out=cosines).mul_(radius)
        sines.sin_().mul_(radius)
    return drawn[: like.numel()].view(like.shape).to(dtype=like.dtype, device=like.device)


def _refine(radius: Tensor, radii: np.ndarray[Any, Any], unit: float, words: Words) -> None:
    """Draws further bits of the smallest uniform numbers, which become the largest normals.

    With 32 bits alone no normal is larger than sqrt(64 log 2), 6.66 standard deviations.

    Args:
        radius: The uniform numbers, shape `(pairs,)`; written to.
        radii: Their first bits as whole numbers, shape `(pairs,)`.
        unit: What a whole number is multiplied by.
        words: Where the bits come from.
    """
    if radii.min() >= COARSE:
        return
    places = np.flatnonzero(radii < COARSE)
    further = (words.take(len(places)) + 1.0) * 2.0**-64  # in (0, 1]
    radius[torch.from_numpy(places)] = torch.from_numpy((radii[places] + further) * unit).to(radius)


def _narrow(pairs: int, words: Words) -> tuple[Tensor, Tensor]:
    """32-bit whole numbers for radii and signed ones for angles, shape `(pairs,)` each."""
    bits = words.take(pairs).view(np.uint32)
    return torch.from_numpy(bits[:pairs]), torch.from_numpy(bits[pairs:].view(np.int32))


def _wide(pairs: int, words: Words) -> tuple[Tensor, Tensor]:
    """53-bit whole numbers for radii and signed 64-bit ones for angles, shape `(pairs,)` each."""
    bits = words.take(2 * pairs)
    # 53 bits: what float64 holds exactly.
    radii = torch.from_numpy((bits[:pairs] >> np.uint64(11)).view(np.int64))
    return radii, torch.from_numpy(bits[pairs:].view(np.int64))
