"""Bounding one contribution: L2 and L1 clipping, as a whole or layer by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from privtrain.core.validate import check_count, check_list, check_positive
from privtrain.mechanisms.reach import check_real

RECLIPPING_SLACK = 1e-9
"""By how much a norm that is measured again may exceed the bound, as a fraction of it."""


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
    # Zero, not an error: whether a private update is finite would tell something about it.
    if not math.isfinite(norm):
        return torch.zeros_like(update)
    if norm <= clipping_norm:
        return update
    # Algorithm 1, "Clip gradient": g / max(1, |g| / C). In float64, as the norm was computed.
    clipped = (update.double() * (clipping_norm / norm)).to(update.dtype)
    return _shrink_rounded(clipped, clipping_norm, order)


def clip_again(
    total: Tensor, clipping_norm: float, contributions: int, *, order: float = 2.0
) -> Tensor:
    """A sum of clipped contributions that somebody else formed, clipped as a whole.

    Args:
        total: What arrived, any shape.
        clipping_norm: Upper bound on the norm of each contribution; positive.
        contributions: How many of them may be in the sum; at least 1.
        order: 2 for the L2 norm, 1 for the L1 norm.

    Returns:
        The same tensor where its norm is at most `contributions` x `clipping_norm`, to within
        rounding; else one that is scaled to it. A non-finite one becomes zero.
    """
    check_count(contributions=contributions)
    limit = contributions * clipping_norm
    # How many threads form a norm decides its last digits, and sums of several contributions are
    # rounded: what an honest party clipped must keep its bits.
    rounding = contributions * torch.finfo(total.dtype).eps if contributions > 1 else 0.0
    if _norm(total, order) <= limit * (1 + RECLIPPING_SLACK + rounding):
        return total
    return clip(total, limit, order=order)


def _norm(update: Tensor, order: float) -> float:
    """The norm, computed relative to the largest absolute value."""
    check_real(update=update)
    # Squares of values below 1e-162 or above 1e154 would leave the range of float64.
    peak = float(update.abs().max()) if update.numel() else 0.0
    if peak == 0 or not math.isfinite(peak):
        return peak
    return peak * float(torch.linalg.vector_norm(update.double() / peak, ord=order))


def _shrink_rounded(clipped: Tensor, clipping_norm: float, order: float) -> Tensor:
    """The clipped update, shrunk until its rounded values keep the bound exactly."""
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
    # Algorithm 1, "Clip gradient", as min(1, C / |g|) for many norms at a time.
    # In float64, since float32 rounds a tiny clipping norm to zero; a tensor over a tensor, since
    # torch divides a number by multiplying with a rounded reciprocal. Infinity gives zero.
    bound = torch.tensor(clipping_norm, dtype=torch.float64, device=norms.device)
    factors = bound / norms.double().clamp_min(clipping_norm)
    return factors.nan_to_num_(nan=0.0).to(norms.dtype)


class Clipping(Protocol):
    """How the bound on a contribution is shared out among the layers of a model.

    Whatever the style, a contribution's L2 norm stays at or below the clipping norm, so that the
    sensitivity of a sum does not depend on it.
    """

    def groups(self, parameters: Sequence[str]) -> tuple[int, ...]:
        """The group of each parameter, numbered from zero; each group has one norm and factor."""
        ...

    def factors(self, norms: Tensor, clipping_norm: float) -> Tensor:
        """Factors in [0, 1], one for each group of each contribution; `scale` is still to come.

        Args:
            norms: Upper bounds of the groups' L2 norms, shape `(groups, contributions)`, float64.
            clipping_norm: Upper bound on the L2 norm of a whole contribution; positive.

        Returns:
            Shape `(groups, contributions)`.
        """
        ...

    def scale(self, clipping_norm: float) -> float:
        """The number that the weighted sum is multiplied by."""
        ...


@dataclass(frozen=True)
class FlatClipping:
    """One factor for a whole contribution: the clipping norm over its norm, at most 1.

    Source: Abadi et al. 2016, Algorithm 1 (arXiv:1607.00133).
    """

    def groups(self, parameters: Sequence[str]) -> tuple[int, ...]:
        return (0,) * len(parameters)

    def factors(self, norms: Tensor, clipping_norm: float) -> Tensor:
        return clip_factors(norms, clipping_norm)

    def scale(self, clipping_norm: float) -> float:
        return 1.0


@dataclass(frozen=True)
class PerLayerClipping:
    """Each layer's gradient is clipped to a bound of its own.

    The squares of the bounds add up to the square of the clipping norm, C. A parameter that
    several layers share is clipped with the first of them.

    Args:
        weights: A positive number for each layer with trained parameters, in the model's order;
            the layer's bound is C times its weight over the L2 norm of all weights. Empty for
            equal bounds, C over the square root of the number of layers.

    Source: McMahan et al. 2018, section 3.2 (arXiv:1710.06963).
    """

    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_list("(1.0, 2.0)", weights=self.weights)
        for place, weight in enumerate(self.weights):
            check_positive(**{f"weights[{place}]": weight})

    def groups(self, parameters: Sequence[str]) -> tuple[int, ...]:
        """One group for each layer, in the order of the layers' first parameters.

        Raises:
            ValueError: If the number of weights is not that of layers.
        """
        layers: dict[str, int] = {}
        # A parameter is called "<layer>.<name>".
        groups = tuple(
            layers.setdefault(name.rpartition(".")[0], len(layers)) for name in parameters
        )
        if self.weights and len(self.weights) != len(layers):
            raise ValueError(
                f"Expected weights={self.weights} to hold {len(layers)} numbers, one for each of "
                f"the layers with trained parameters: {', '.join(layers)}."
            )
        return groups

    def factors(self, norms: Tensor, clipping_norm: float) -> Tensor:
        weights = self.weights or (1.0,) * len(norms)
        # Per-layer clipping: bounds C_l with C = sqrt(sum over layers of C_l^2).
        # A little less, so that the bounds' own rounding does not add up to more than C.
        unit = clipping_norm / math.hypot(*weights) * (1 - 1e-14)
        return torch.stack([clip_factors(n, w * unit) for n, w in zip(norms, weights, strict=True)])

    def scale(self, clipping_norm: float) -> float:
        return 1.0


@dataclass(frozen=True)
class AutomaticClipping:
    """Every contribution is normalised: its factor is C / (norm + gamma), AUTO-S.

    Small gradients grow, so the clipping norm only scales the learning rate.

    Args:
        gamma: What keeps small gradients apart from large ones, in the unit of the norms; at
            least 1e-6, below which rounding could matter.

    Source: Bu et al. 2022, section 4 (arXiv:2206.07136).
    """

    gamma: float = 0.01

    def __post_init__(self) -> None:
        check_positive(gamma=self.gamma)
        if self.gamma < 1e-6:
            raise ValueError(f"Expected gamma={self.gamma!r} >= 1e-6.")

    def groups(self, parameters: Sequence[str]) -> tuple[int, ...]:
        return (0,) * len(parameters)

    def factors(self, norms: Tensor, clipping_norm: float) -> Tensor:
        # AUTO-S: C / (norm + gamma). As gamma / (norm + gamma) here and C / gamma in
        # `scale`, so that factors stay in [0, 1] and no product overflows.
        factors = self.gamma / (norms.double() + self.gamma)
        return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))

    def scale(self, clipping_norm: float) -> float:
        """The clipping norm over gamma.

        Raises:
            ValueError: If that is beyond what float32 can multiply by.
        """
        check_positive(clipping_norm=clipping_norm)
        if clipping_norm / self.gamma > 1e30:
            raise ValueError(
                f"Expected clipping_norm={clipping_norm!r} <= 1e30 x gamma={self.gamma!r}."
            )
        return clipping_norm / self.gamma
