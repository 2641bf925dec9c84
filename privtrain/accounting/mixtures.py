"""Privacy losses of Gaussian mixtures, each grid point of which has to be searched for.

dp_accounting looks for the places of all losses by bisection, in a Python loop of a million steps,
and between bounds that do not always hold a single one. Here Newton's method finds them together;
the rest is dp_accounting's.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privtrain.core.errors import UnsupportedError

Array = NDArray[np.float64]

_STEPS = 2_000


def mixture_losses(dp: Any, event: Any, step: float, *, pessimistic: bool) -> Any:
    """The privacy losses of one release whose sensitivity is drawn at random.

    Args:
        dp: dp_accounting.
        event: A `MixtureOfGaussiansDpEvent`.
        step: Distance of the losses on the grid, in nats; positive.
        pessimistic: Whether losses are rounded up; else down.

    Returns:
        A `PrivacyLossDistribution`.
    """
    parts = dp.pld.privacy_loss_mechanism

    def one_way(kind: Any) -> Any:
        mixture = parts.MixtureGaussianPrivacyLoss(
            event.standard_deviation,
            event.sensitivities,
            event.sampling_probs,
            pessimistic_estimate=pessimistic,
            adjacency_type=kind,
        )
        add = kind is parts.AdjacencyType.ADD
        mixture._inverse_privacy_losses_with_range = partial(_inverses, mixture, add)
        return dp.pld.privacy_loss_distribution._create_pld_pmf_from_monotone_privacy_loss(
            mixture,
            pessimistic_estimate=pessimistic,
            value_discretization_interval=step,
            use_connect_dots=pessimistic,  # it only rounds up
        )

    ways = one_way(parts.AdjacencyType.REMOVE), one_way(parts.AdjacencyType.ADD)
    return dp.pld.privacy_loss_distribution.PrivacyLossDistribution(*ways)


def _inverses(
    mixture: Any,
    add: bool,
    losses: Array,
    bounds: tuple[float, float],
    precision: float = 1e-6,
) -> Array:
    """Where a mixture's privacy loss has given values.

    The loss at x is log sum exp(c - s x) where a unit is removed, and minus the same at -x where
    one is added. It is convex and falls, so that Newton's steps from the left never go too far.

    Args:
        mixture: dp_accounting's mixture.
        add: Whether a unit is added.
        losses: Shape `(losses,)`.
        bounds: Near the smallest and the largest of them, where the search begins.
        precision: How far they may be off, at most; they are a hundred times as precise.

    Returns:
        The places, shape `(losses,)`.

    Raises:
        UnsupportedError: If they are not found.
    """
    constants: Array = mixture._precompute_privacy_loss_constants
    slopes: Array = mixture.sensitivities / mixture._variance
    targets = -losses if add else losses
    found = np.full(len(losses), (-bounds[1] if add else bounds[0]) - precision)
    moving = np.arange(len(losses))
    for _ in range(_STEPS):
        terms = constants - np.multiply.outer(found[moving], slopes)
        top = terms.max(axis=1, keepdims=True)
        weights = np.exp(terms - top)
        total = weights.sum(axis=1)
        excess = top[:, 0] + np.log(total) - targets[moving]
        steps = excess / (weights @ slopes / total)
        found[moving] += steps
        moving = moving[np.abs(steps) > precision / 100]
        if len(moving) == 0:
            return -found if add else found
    raise UnsupportedError(
        f"The privacy losses of {mixture!r} could not be found in {_STEPS} steps. Use fewer rows a "
        "user, or more noise."
    )
