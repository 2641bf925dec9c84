"""Bounding one contribution: flat L2 and L1 clipping."""

import math

import torch
from torch import Tensor

from privtrain.core.validate import check_positive


def clip(update: Tensor, clipping_norm: float, *, order: float = 2.0) -> Tensor:
    """Scales an update so that its norm is at most the clipping norm.

    The sum of clipped updates has sensitivity `clipping_norm` when one is added or removed, twice
    that when one is replaced. A non-finite update becomes zero: it must not destroy the sum.

    Args:
        update: Model delta, shape `(parameters,)`.
        clipping_norm: Upper bound on the norm; positive, in the unit of the update.
        order: 2 for the L2 norm, 1 for the L1 norm.

    Returns:
        The scaled update, same shape. A zero update stays zero.

    Raises:
        ValueError: If `clipping_norm` is not positive.

    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """
    check_positive(clipping_norm=clipping_norm)
    norm = _norm(update, order)
    if not math.isfinite(norm):
        return torch.zeros_like(update)
    if norm <= clipping_norm:
        return update
    clipped = (update.double() * (clipping_norm / norm)).to(update.dtype)
    return _shrink_rounded(clipped, clipping_norm, order)


def _norm(update: Tensor, order: float) -> float:
    """The norm, relative to the largest value: squares of tiny or huge values leave float64."""
    peak = float(update.abs().max()) if update.numel() else 0.0
    if peak == 0 or not math.isfinite(peak):
        return peak
    return peak * float(torch.linalg.vector_norm(update.double() / peak, ord=order))


def _shrink_rounded(clipped: Tensor, clipping_norm: float, order: float) -> Tensor:
    """Takes back what rounding to the update's type added, so that the bound holds exactly."""
    while (norm := _norm(clipped, order)) > clipping_norm:
        # Two units in the last place: one would leave a value unchanged half of the time.
        factor = clipping_norm / norm * (1 - 2 * torch.finfo(clipped.dtype).eps)
        smaller = clipped * factor
        if torch.equal(smaller, clipped):
            # Only smallest numbers of the type are left: it cannot resolve the bound.
            return torch.zeros_like(clipped)
        clipped = smaller
    return clipped


def clip_factors(norms: Tensor, clipping_norm: float) -> Tensor:
    """Factors that bring each of many contributions to at most the clipping norm.

    Args:
        norms: Norms of the contributions, shape `(contributions,)`.
        clipping_norm: Upper bound on each norm; positive.

    Returns:
        Factors in [0, 1], shape `(contributions,)`. Zero for a non-finite norm, one for a zero one.
    """
    check_positive(clipping_norm=clipping_norm)
    # In float64, since float32 rounds a tiny clipping norm to zero; a tensor over a tensor, since
    # torch divides a number by multiplying with a rounded reciprocal.
    bound = torch.tensor(clipping_norm, dtype=torch.float64, device=norms.device)
    factors = (bound / norms.double().clamp_min(clipping_norm)).to(norms.dtype)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))
