"""The logistic function as a series of sines of the masked value: one opening, no product.

sin(k x) = sin(k (x + r)) cos(k r) - cos(k (x + r)) sin(k r), where the first factors are public and
the second ones are dealt. The period divides 2^64, so that masks wrap around without an error.

Source: Boura, Chillotti, Gama, Jetchev, Peceny and Petric (FC 2018), Fourier series with a dealer.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.mpc.ring64.wires import Wires

PERIOD_BITS = 7
"""The series repeats after 2^7 = 128."""

TERMS = 32
REACH = 56.0
"""Values of at most this magnitude have an error of at most `ERROR`. Beyond, the result stays
within 0..1, to 3e-4, but falls back: to 1/2 at 64, and to the other side after it."""

ERROR = 5.5e-4
"""e^-8 of the series at 56, where the next arch begins; the rest is rounding."""

BITS = 32
LARGEST = (1 << BITS) + (1 << BITS - 12)
"""No integer of the result is larger. The series stays within 1e-5 of 0..1 at every x. Rounding
adds 1.7e-4 at most for 64 public factors, 2^-18 each, and 4e-5 for what they multiply."""

_MASK_BITS = 15
_PUBLIC_BITS = BITS - _MASK_BITS


def coefficients(period: float, terms: int) -> NDArray[np.float64]:
    """Factors of sin(2 pi k x / period), k = 1, 3, 5, ..., in the series of sigmoid - 1/2.

    It is the series of the alternating sum of (-1)^n (sigmoid(x - n period / 2) - 1/2), which has
    odd sines only. Their factors fall by e^(-4 pi^2 / period) each, so that the sum stays within
    1e-5 of 0..1 at every x; a fit by least squares on a part of the period does not.

    Args:
        period: The period.
        terms: How many.
    """
    odd = 2 * np.arange(terms) + 1
    result: NDArray[np.float64] = 4 * math.pi / period / np.sinh(2 * math.pi**2 * odd / period)
    return result


def sigmoid(wires: Wires, masked: Tensor, mask: Tensor, bits: int) -> Tensor:
    """A share of 1 / (1 + e^-x) with 32 bits after the point; no round, 512 bytes a value.

    Args:
        wires: This role's.
        masked: x + r, opened, any shape; x at most `REACH` in magnitude.
        mask: r at the dealer, anything elsewhere.
        bits: Bits of x after the point, at most 32.
    """
    shape = (2 * TERMS, *masked.shape)
    period = 1 << (bits + PERIOD_BITS)
    waves_share = wires.dealt(lambda: _rounded(waves(mask, period), _MASK_BITS), shape)
    if wires.deals:
        return waves_share[0]
    share = (public_factors(masked, period) * waves_share).sum(0)
    return share + (1 << (BITS - 1)) if wires.leader else share


def waves(integers: Tensor, period: int) -> NDArray[np.float64]:
    """Cosines, then sines, of the odd multiples of an angle; `(2 * terms, *shape)`.

    Args:
        integers: Any shape.
        period: Integers to a full turn, a power of two.
    """
    turns = (integers.numpy() & (period - 1)) * (2 * math.pi / period)
    first = np.exp(1j * turns)
    powers = np.empty((TERMS, *turns.shape), np.complex128)
    powers[0], step = first, first * first
    for number in range(1, TERMS):
        np.multiply(powers[number - 1], step, out=powers[number])
    return np.concatenate([powers.real, powers.imag])


def public_factors(masked: Tensor, period: int) -> Tensor:
    """What the dealt cosines and sines of the mask are multiplied by; `(2 * terms, *shape)`."""
    cosines, sines = np.split(waves(masked, period), 2)
    factors = coefficients(2.0**PERIOD_BITS, TERMS).reshape(-1, *[1] * masked.dim())
    return _rounded(np.concatenate([factors * sines, -factors * cosines]), _PUBLIC_BITS)


def _rounded(values: NDArray[np.float64], bits: int) -> Tensor:
    return torch.from_numpy(np.rint(values * 2.0**bits).astype(np.int64))
