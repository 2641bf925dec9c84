"""Privacy losses of Gaussian mixtures, each grid point of which has to be searched for.

dp_accounting looks for the places of all losses by bisection, in a Python loop of a million steps,
and between bounds that do not always hold a single one. Here Newton's method finds all places at
once; the rest is dp_accounting's.
"""

import numpy as np
from numpy.typing import NDArray

from privtrain.core.errors import UnsupportedError

Array = NDArray[np.float64]

_STEPS = 2_000


def inverses(
    constants: Array,
    slopes: Array,
    losses: Array,
    bounds: tuple[float, float],
    *,
    added: bool,
    precision: float = 1e-6,
) -> Array:
    """The places at which a mixture's privacy loss has given values.

    The loss at x is log sum exp(c - s x) where a unit is removed, and minus the same at -x where
    one is added. It is convex and falls, so that Newton's steps from the left never go too far.

    Args:
        constants: c, one a Gaussian of the mixture, shape `(gaussians,)`.
        slopes: s, its sensitivity over the variance, shape `(gaussians,)`.
        losses: Shape `(losses,)`.
        bounds: Near the smallest and the largest place, where the search begins.
        added: Whether a unit is added.
        precision: How far they may be off, at most; they are a hundred times as precise.

    Returns:
        The places, shape `(losses,)`.

    Raises:
        UnsupportedError: If they are not found.

    Source: the loss is that of Choquette-Choo et al. 2023 (arXiv:2310.15526).
    """
    # Adding is removing mirrored: one search, on the negative axis, serves both.
    targets = -losses if added else losses
    places = np.full(len(losses), (-bounds[1] if added else bounds[0]) - precision)
    moving = np.arange(len(losses))
    for _ in range(_STEPS):
        terms = constants - np.multiply.outer(places[moving], slopes)
        # The largest term is taken out of the sum: exp of the others cannot overflow then.
        top = terms.max(axis=1, keepdims=True)
        weights = np.exp(terms - top)
        total = weights.sum(axis=1)
        excess = top[:, 0] + np.log(total) - targets[moving]
        # Newton: the derivative of log sum exp is minus the mean slope under the weights.
        steps = excess / (weights @ slopes / total)
        places[moving] += steps
        # Convergence is quadratic: a step this small leaves an error far below it.
        moving = moving[np.abs(steps) > precision / 100]
        if len(moving) == 0:
            return -places if added else places
    raise UnsupportedError(
        f"The privacy losses of a mixture of {len(slopes)} Gaussians could not be found in "
        f"{_STEPS} steps. Use fewer rows a user, or more noise."
    )
