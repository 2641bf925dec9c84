"""How far the message of an honest party reaches, with noise of its own in it.

A message that carries its party's own noise is never scaled, since that would bias the sum. It is
refused beyond a radius that an honest one stays within but with probability `BETA`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from privtrain.core.errors import UnsupportedError

BETA = 2.0**-40
"""Probability with which an honest message lies beyond its radius, at most."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The norm of a message, and what it may be.

    Args:
        norm: Largest norm of the parts that are noised as a release each; NaN where a value is.
        radius: What honest norms stay within.
        bound: Norm of the party's contributions before the noise, at most.
    """

    norm: float
    radius: float
    bound: float

    @property
    def kept(self) -> bool:
        """Whether the message may be an honest one."""
        return self.norm <= self.radius  # false for a NaN

    @property
    def times(self) -> float:
        """How many times its bound a party may move the sum without being refused."""
        return self.radius / self.bound


def gaussian_reach(parts: Tensor, bound: float, standard_deviation: float) -> Reach:
    """The reach in L2 norm of bounded contributions with Gaussian noise.

    Args:
        parts: What is noised as a release each, shape `(parts, values)`.
        bound: Upper bound on the L2 norm of a part before the noise.
        standard_deviation: Of the noise on each value.

    Returns:
        Radius bound + standard deviation (sqrt(values) + sqrt(2 ln(parts / beta))).

    Source: Boucheron, Lugosi and Massart 2013, Theorem 5.6: the norm of standard normals is
    1-Lipschitz, with a mean of at most sqrt(values).
    """
    count, values = parts.shape
    tail = math.sqrt(values) + math.sqrt(2 * _log_of_odds(count))
    return _reach(parts, bound, bound + standard_deviation * tail, order=2.0)


def laplace_reach(parts: Tensor, bound: float, scale: float) -> Reach:
    """The reach in L1 norm of bounded contributions with Laplace noise.

    Args:
        parts: What is noised as a release each, shape `(parts, values)`.
        bound: Upper bound on the L1 norm of a part before the noise.
        scale: Scale b of the noise on each value.

    Returns:
        Radius bound + b (values + sqrt(2 values t) + t), t = ln(parts / beta).

    Source: Boucheron, Lugosi and Massart 2013, section 2.4: the L1 norm of the noise is b times a
    gamma variable of shape `values`, whose upper tail is sub-gamma.
    """
    count, values = parts.shape
    t = _log_of_odds(count)
    return _reach(parts, bound, bound + scale * (values + math.sqrt(2 * values * t) + t), order=1.0)


def _log_of_odds(count: int) -> float:
    # A union bound over the parts: one message has a chance of beta, however many it holds.
    return math.log(max(count, 1)) - math.log(BETA)


def _reach(parts: Tensor, bound: float, radius: float, *, order: float) -> Reach:
    # A sum that was rounded to the message's type may lie outside by so much.
    slack = 1 + 8 * torch.finfo(parts.dtype).eps
    norms = part_norms(parts, order)
    largest = float(norms.max()) if norms.numel() else 0.0
    return Reach(norm=largest, radius=radius * slack, bound=bound)


def check_real(**tensors: Tensor) -> None:
    """Refuses complex numbers: norms and noise here are those of real ones.

    Raises:
        UnsupportedError: With the name and the type.
    """
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise UnsupportedError(
                f"Expected {name} of type {tensor.dtype} to be real: torch would drop the "
                "imaginary part. Use torch.view_as_real, whose values are both parts."
            )


def part_norms(parts: Tensor, order: float) -> Tensor:
    """Norms of the rows of a matrix, relative to the largest value of each, so that none overflows.

    Args:
        parts: Shape `(parts, values)`.
        order: 1 or 2.

    Returns:
        Float64, shape `(parts,)`; NaN or infinite where a value is.
    """
    check_real(parts=parts)
    exact = parts.double()
    if exact.numel() == 0:
        return exact.new_zeros(len(parts))
    peaks = exact.abs().amax(dim=1, keepdim=True)
    scales = torch.where((peaks > 0) & torch.isfinite(peaks), peaks, torch.ones_like(peaks))
    norms: Tensor = torch.linalg.vector_norm(exact / scales, ord=order, dim=1)
    return norms * scales.squeeze(1)
