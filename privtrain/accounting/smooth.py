"""Smooth sensitivity of the data-dependent cost of votes, and what it costs to publish that.

A figure computed from votes is as private as these. It may leave with noise in proportion to how
far it could move near these votes; how far is itself private, so that a smooth bound is taken.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.accounting.gnmax import counts_of, rdp_of_another
from privtrain.core.validate import check_non_negative, check_positive

Array = NDArray[np.float64]

STEPS = 64
"""Of the table for a change of two votes."""

_NEGLIGIBLE = 1e-10
"""The table ends where the figure is this fraction of its largest value."""

_DEEPEST = 40.0
"""Standard deviations of a gap's noise at which the table ends at the latest."""


@dataclass(frozen=True)
class SmoothCost:
    """A data-dependent cost and its smooth sensitivity; both are private.

    Args:
        rdp: Rényi divergence of all answers at the order, in nats: by Theorem 6, in its direction.
        sensitivity: Upper bound on how far `rdp` lies from that of any neighbour. From one to the
            next it changes by a factor of at most exp(smoothness).
    """

    rdp: float
    sensitivity: float


def gnmax_smooth_cost(
    votes: ArrayLike, *, sigma: float, order: float, smoothness: float
) -> SmoothCost:
    """The cost of GNMax answers by Theorem 6 at one order, with its smooth sensitivity.

    All arguments but the votes are given by name: two of them in the wrong order are two numbers
    that look right. Proof of what is returned: docs/privacy_accounting.md, "Publishing".

    Args:
        votes: Vote counts before the noise, shape `(queries, classes)`. Between neighbours one vote
            may move in every query, vanish or appear.
        sigma: Standard deviation of the noise on each count, in votes; positive.
        order: Rényi order, above 1; chosen without looking at the votes.
        smoothness: How fast the bound may change, in nats a neighbour; positive.

    Returns:
        The cost and its smooth sensitivity.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Papernot et al. 2018 (arXiv:1802.08908), Theorem 6 and Section 3.2; smooth sensitivity:
    Nissim, Raskhodnikova and Smith 2007, Definition 2.2 and Section 3.1.
    """
    check_positive(sigma=sigma, smoothness=smoothness)
    check_order(order)
    counts = counts_of(votes)
    table = _table(counts.shape[1], sigma, order)
    last = len(table) - 1
    places = np.minimum(_effective_gaps(counts, sigma) * (STEPS / 2), last).astype(np.intp)
    # One more than a neighbour moves: a place is rounded, as gaps are.
    far = STEPS + 1
    near = np.arange(len(table) + far)
    up, down = table[np.maximum(near - far, 0)], table[np.minimum(near + far, last)]
    here = table[np.minimum(near, last)]
    local = np.maximum(up - here, here - down)
    each, times = np.unique(places, return_counts=True)
    return SmoothCost(
        rdp=float(table[places].sum()),
        sensitivity=_smooth(local, each, times, far, smoothness),
    )


def check_order(order: float) -> None:
    """Refuses what is no Rényi order."""
    if not (math.isfinite(order) and order > 1):
        raise ValueError(f"Expected order={order!r} to be finite and > 1.")


def _effective_gaps(counts: Array, sigma: float) -> Array:
    """The gap that all other classes would have if they were equal, shape `(queries,)`, in votes.

    Equal in the bound of Proposition 7 on the probability of another answer. One vote that moves
    changes each gap by at most two votes, and so this one.
    """
    from scipy.special import log_ndtr, ndtri_exp

    ascending = np.sort(counts, axis=1)
    gaps = ascending[:, -1:] - ascending[:, :-1]
    tails = log_ndtr(-gaps / (math.sqrt(2.0) * sigma))
    mean = np.logaddexp.reduce(tails, axis=1) - math.log(gaps.shape[1])
    # Of a gap of zero the tail is one half; rounding must not make it more.
    made: Array = np.maximum(-math.sqrt(2.0) * sigma * ndtri_exp(mean), 0.0)
    return made


def _table(classes: int, sigma: float, order: float) -> Array:
    """The cost of a query by its effective gap in steps of 2 / STEPS votes; it never rises."""
    from scipy.special import log_ndtr

    deviation = math.sqrt(2.0) * sigma
    gaps = np.arange(int(_DEEPEST * deviation * STEPS / 2) + 2) * (2 / STEPS)
    # Proposition 7 at that gap; nothing is likelier than the largest count.
    log_q = math.log(classes - 1) + log_ndtr(-gaps / deviation)
    log_q = np.minimum(log_q, math.log1p(-1 / classes))
    costs = rdp_of_another(log_q, sigma, np.array([order]))[:, 0]
    # Theorem 6 holds for any bound on that probability: what holds at a smaller gap holds here.
    falling = np.minimum.accumulate(costs)
    end = int(np.argmax(falling <= _NEGLIGIBLE * falling[0]))
    return falling[: end + 1] if end else falling


def _smooth(
    local: Array, places: NDArray[np.intp], times: NDArray[np.intp], far: int, smoothness: float
) -> float:
    """The largest over all distances of the sum of local sensitivities there, discounted.

    Args:
        local: Bound on the local sensitivity of one query at each place.
        places: Distinct places of the queries.
        times: How many queries are there.
        far: How many places one neighbour moves.
        smoothness: The discount of a distance, in nats.
    """
    from scipy.ndimage import maximum_filter1d

    most, best, distance, widest = float(local.max() * times.sum()), 0.0, 0, local
    # From a distance on not even the largest local sensitivity everywhere would be more.
    while math.exp(-smoothness * distance) * most > best:
        total = float(widest[places] @ times)
        best = max(best, math.exp(-smoothness * distance) * total)
        widest = maximum_filter1d(widest, 2 * far + 1, mode="nearest")
        distance += 1
    return best


def publishing_rdp(
    *, order: float, smoothness: float, noise_multiplier: float, margin: float = 0.0
) -> float:
    """The Rényi divergence of a figure that is published with noise of its smooth sensitivity.

    What is published is figure + s (margin + N(0, 1)) with s = noise_multiplier x sensitivity.

    Args:
        order: Rényi order, above 1 and below 1 / (1 - exp(-2 smoothness)).
        smoothness: That of the sensitivity; positive.
        noise_multiplier: Standard deviation of the noise over the sensitivity; positive.
        margin: What is added to the figure, in standard deviations of the noise; at least zero.

    Returns:
        An upper bound in nats, in both directions.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Papernot et al. 2018, Section 3.2 (the Gaussian noise smooth sensitivity mechanism);
    derived in docs/privacy_accounting.md, "Publishing", since a margin moves with the scale.
    """
    check_positive(smoothness=smoothness, noise_multiplier=noise_multiplier)
    check_non_negative(margin=margin)
    check_order(order)
    costs = []
    # The neighbour's scale over this one's lies between both ratios, and is worst at one of them.
    for ratio in (math.exp(-smoothness), math.exp(smoothness)):
        # D(N(m1, s1^2) || N(m2, s2^2)) has the variance (1 - order) s1^2 + order s2^2 in it.
        mixed = 1 + order * (ratio**2 - 1)
        if mixed <= 0:
            raise ValueError(
                f"Expected smoothness={smoothness!r} < {-math.log1p(-1 / order) / 2:.6g}, which "
                f"order={order!r} asks for: else noise of two scales is infinitely far apart."
            )
        shift = 1 / noise_multiplier + margin * abs(ratio - 1)
        scales = (order * math.log(ratio) - math.log(mixed) / 2) / (order - 1)
        costs.append(order * shift**2 / (2 * min(mixed, 1.0)) + scales)
    return max(costs)
