"""Publishing what votes cost: a data-dependent figure with noise, and the price of saying it."""

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike

from privtrain.accounting.renyi import rdp_to_epsilon
from privtrain.accounting.smooth import (
    SmoothCost,
    check_order,
    gnmax_smooth_cost,
    publishing_rdp,
)
from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.rounding import printed_up
from privtrain.core.seeding import SYSTEM, Entropy, Stream, SystemEntropy
from privtrain.core.validate import check_delta, check_non_negative
from privtrain.mechanisms.normals import standard_normals

_GRID = 1000
"""Figures are rounded up to multiples of its inverse, so that the last bits tell nothing."""


@dataclass(frozen=True, kw_only=True)
class PublishedEpsilon:
    """A data-dependent epsilon that may leave, the price of saying it included.

    For each number fixed beforehand: among all outcomes with an epsilon of at most that number,
    answers and figure together are (number, delta)-DP. Over all outcomes the data-independent
    guarantee holds, and the figure's own cost on top of it.

    Args:
        epsilon: The published figure; infinite where the noise says nothing.
        delta: The delta that belongs to it.
        order: The Rényi order at which the answers were charged, chosen beforehand.
        price: Rényi divergence at that order of the figure itself, in nats: what publishing it
            adds to the data-independent guarantee. Nothing here charges a ledger with it.
    """

    epsilon: float
    delta: float
    order: float
    price: float

    def __str__(self) -> str:
        return (
            f"epsilon {printed_up(self.epsilon)} at delta {printed_up(self.delta, 6)}, published "
            f"with noise of its smooth sensitivity (GNMax, order {self.order:g})"
        )


def published_epsilon(
    votes: ArrayLike,
    *,
    sigma: float,
    order: float,
    delta: float = 1e-5,
    smoothness: float | None = None,
    noise_multiplier: float = 8.0,
    beside: float = 0.0,
    entropy: Entropy | None = None,
) -> PublishedEpsilon:
    """Publishes the data-dependent epsilon of GNMax answers, with noise, at a price.

    This is a release of its own: every call draws new noise and costs anew, and no ledger counts
    it. All settings have to be chosen without looking at the votes or at figures computed from
    them, the order too. It speaks of one vote that moves in each query: under replace-one, where a
    row may change its teacher, nothing is known to publish.

    Args:
        votes: Vote counts before the noise of all answered queries, shape `(queries, classes)`.
        sigma: Standard deviation of the noise that the answers had, in votes; positive.
        order: The Rényi order at which the answers are charged, above 1.
        delta: Of the whole, in (0, 1).
        smoothness: Of the smooth sensitivity, in nats a neighbour; None for 0.2 / order.
        noise_multiplier: Standard deviation of the noise over the smooth sensitivity; positive.
        beside: Rényi divergence at this order of what else was released and costs the same for all
            votes, such as checks of queries; at least zero.
        entropy: Where the noise comes from; None for the system's, the only one that is taken.

    Returns:
        The epsilon to publish. Where it is above the data-independent one, publish that alone:
        what this call draws must then not leave.

    Raises:
        UnsoundReleaseError: If the noise would follow from a seed.
        ValueError: If an argument is out of its range, or the order too large for the smoothness.

    Source: Papernot et al. 2018 (arXiv:1802.08908), Section 3.2; the meaning of the figure and its
    margin are derived in docs/privacy_accounting.md, "Publishing".
    """
    source = SystemEntropy() if entropy is None else entropy
    if source.kind is not SYSTEM:
        raise UnsoundReleaseError(
            f"Expected entropy={source!r} to be the system's: noise that follows from a seed can "
            "be subtracted from what is published. Leave entropy out."
        )
    check_delta(delta)
    check_order(order)
    check_non_negative(beside=beside)
    smooth = 0.2 / order if smoothness is None else smoothness
    # A figure is either as large as the true one, or it was that unlikely; which votes are answered
    # may follow from noisy checks, so that either may meet the other: half of delta pays for each.
    margin = _margin(delta / 2)
    # Before the votes are looked at: whether the settings fit each other is public.
    price = publishing_rdp(
        order=order, smoothness=smooth, noise_multiplier=noise_multiplier, margin=margin
    )
    cost = gnmax_smooth_cost(votes, sigma=sigma, order=order, smoothness=smooth)
    stream = source["published epsilon", 0, ""]
    figure = noised(cost, noise_multiplier, margin, stream)
    epsilon = rdp_to_epsilon([figure + price + beside], [order], delta / 2, "improved")
    rounded = math.ceil(epsilon * _GRID) / _GRID
    return PublishedEpsilon(epsilon=rounded, delta=delta, order=order, price=price)


def noised(cost: SmoothCost, noise_multiplier: float, margin: float, stream: Stream) -> float:
    """A cost with noise of its smooth sensitivity, raised by so many of its standard deviations.

    Args:
        cost: The figure and its smooth sensitivity.
        noise_multiplier: Standard deviation of the noise over the sensitivity.
        margin: What is added, in standard deviations.
        stream: Where the noise comes from; used once.

    Returns:
        The figure; zero where noise took it below, which is no more than it tells anyway.
    """
    deviation = noise_multiplier * cost.sensitivity
    drawn = float(standard_normals(torch.zeros(1, dtype=torch.float64), stream.numpy())[0])
    return max(0.0, cost.rdp + deviation * (margin + drawn))


def _margin(missed: float) -> float:
    """The number of standard deviations that a normal falls below with that probability."""
    from scipy.special import ndtri

    return float(-ndtri(missed))
