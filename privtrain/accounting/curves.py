"""One event at every delta: epsilon as a curve, and what a test of its neighbours can achieve.

A single pair (epsilon, delta) is one point of what an event promises. All pairs together say which
errors a test must make that tells two neighbouring data sets apart (Dong, Roth and Su 2022,
arXiv:1905.02383).
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.accounting.epsilon import best_accountant, tightest
from privtrain.accounting.event import Event
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, Relation
from privtrain.core.validate import check_delta

Pairs = Sequence[tuple[float, float]]
"""Pairs `(delta, epsilon)`, each of which an event promises."""

DELTAS = tuple(10.0 ** (-power / 2) for power in range(4, 21))
"""From 1e-2 to 1e-10: where epsilon is stated."""

# Up to nearly 1: the middle of a trade-off function is drawn by pairs of large delta.
_WIDE = (*DELTAS, *(0.0125 * part for part in range(1, 80)))


def epsilon_curve(
    event: Event, deltas: Iterable[float] = DELTAS, relation: Relation = ADD_REMOVE
) -> tuple[tuple[float, float], ...]:
    """Epsilon at many deltas, by the best accountant for the event.

    Args:
        event: Everything that was released.
        deltas: Each in (0, 1).
        relation: Which data sets are neighbours.

    Returns:
        Pairs `(delta, epsilon)` by ascending delta. Every pair holds; a delta that the accountant
        cannot resolve is left out. Epsilons are infinite where nothing is promised.

    Raises:
        ValueError: If a delta is out of its range.
        UnsupportedError: If no accountant can read the event under the relation.
    """
    grid = sorted(set(deltas))
    for delta in grid:
        check_delta(delta)
    best_accountant(event, relation)  # an event that nobody reads is no matter of its deltas
    pairs = []
    for delta in grid:
        try:
            pairs.append((delta, tightest(event, delta, relation)[0]))
        except UnsupportedError:
            # The event is readable: whoever reads it does not resolve this delta.
            continue
    return tuple(pairs)


def smallest_miss(pairs: Pairs, false_positives: ArrayLike) -> NDArray[np.float64]:
    """The false negative rate below which no test comes, at given rates of false positives.

    Each pair bounds every test by two lines, one for each neighbour as the null hypothesis; the
    result is the largest of all bounds. It lies at or below the event's true trade-off function,
    so that a test that beats it refutes the promise.

    Args:
        pairs: Pairs `(delta, epsilon)` that are promised, such as `epsilon_curve` gives.
        false_positives: Rates in [0, 1], any shape.

    Returns:
        Rates in [0, 1], same shape; zero where nothing is promised.

    Raises:
        ValueError: If a rate is out of its range.

    Source: Wasserman and Zhou 2010, Theorem 2.4; Dong, Roth and Su 2022, Proposition 2.5.
    """
    rates = np.asarray(false_positives, dtype=np.float64)
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"Expected false_positives={false_positives!r} in [0, 1].")
    best = np.zeros_like(rates)
    for delta, bound in pairs:
        if math.isfinite(bound):
            # Proposition 2.5: max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a)). The
            # second line is the first one with the neighbours exchanged.
            rest = 1 - delta
            best = np.maximum(best, rest - math.exp(min(bound, 700.0)) * rates)
            best = np.maximum(best, math.exp(-bound) * (rest - rates))
    return best


def trade_off(
    event: Event,
    relation: Relation = ADD_REMOVE,
    *,
    false_positives: ArrayLike | None = None,
) -> tuple[tuple[float, float], ...]:
    """A lower bound of an event's trade-off function.

    Args:
        event: Everything that was released.
        relation: Which data sets are neighbours.
        false_positives: Rates in [0, 1], shape `(points,)`; None for a grid that is fine at both
            ends.

    Returns:
        Points `(false positive rate, smallest false negative rate)`; see `smallest_miss`.

    Raises:
        UnsupportedError: If no accountant can read the event under the relation.
    """
    return from_pairs(wide_pairs(event, relation), false_positives=false_positives)


def wide_pairs(
    event: Event, relation: Relation = ADD_REMOVE, *, also: float | None = None
) -> tuple[tuple[float, float], ...]:
    """Epsilon at deltas from 1e-10 to nearly 1: what a trade-off function is drawn from.

    Args:
        event: Everything that was released.
        relation: Which data sets are neighbours.
        also: One more delta, in (0, 1).

    Returns:
        Pairs `(delta, epsilon)` by ascending delta; see `epsilon_curve`.
    """
    return epsilon_curve(event, _WIDE if also is None else (*_WIDE, also), relation)


def from_pairs(
    pairs: Pairs, *, false_positives: ArrayLike | None = None
) -> tuple[tuple[float, float], ...]:
    """A lower bound of the trade-off function of every event that keeps all given pairs.

    Args:
        pairs: Pairs `(delta, epsilon)` that are promised.
        false_positives: As in `trade_off`.

    Returns:
        Points `(false positive rate, smallest false negative rate)`; see `smallest_miss`.
    """
    # Finest at small rates: an attack that names few members surely is judged there.
    ends = np.logspace(-4, math.log10(0.05), 20)
    grid = np.concatenate([[0.0], ends, np.linspace(0.075, 1.0, 38)])
    rates = grid if false_positives is None else np.asarray(false_positives, dtype=np.float64)
    missed = smallest_miss(pairs, rates)
    return tuple(zip(rates.tolist(), missed.tolist(), strict=True))


def gaussian_delta(bound: float, mu: float) -> float:
    """The delta of mu-Gaussian differential privacy at an epsilon.

    Args:
        bound: Epsilon; at least zero.
        mu: Sensitivity over standard deviation; positive.

    Returns:
        Delta, in [0, 1].

    Source: Balle and Wang 2018, Theorem 8 (arXiv:1805.06530).
    """
    from scipy.special import log_ndtr

    # Theorem 8: delta = Phi(-epsilon/mu + mu/2) - e^epsilon Phi(-epsilon/mu - mu/2), in logarithms.
    first = float(log_ndtr(-bound / mu + mu / 2))
    second = bound + float(log_ndtr(-bound / mu - mu / 2))
    # The difference of the exponentials, without losing the digits of two large ones.
    return 0.0 if second >= first else math.exp(first) * -math.expm1(second - first)


def gaussian_mu(bound: float, delta: float) -> float | None:
    """The mu whose Gaussian trade-off passes through one pair: a summary, never a bound.

    An event that keeps one pair of a Gaussian need not keep the others.

    Args:
        bound: Epsilon.
        delta: In (0, 1).

    Returns:
        Mu; None where epsilon is zero or infinite, or mu is beyond 1e-6 to 1e6.

    Source: Dong, Roth and Su 2022, Corollary 2.13.
    """
    from scipy.optimize import brentq

    check_delta(delta)
    if not 0 < bound < math.inf:
        return None

    def excess(log_mu: float) -> float:
        return math.log(max(gaussian_delta(bound, math.exp(log_mu)), 1e-300)) - math.log(delta)

    # The logarithm of mu is searched for: mu spans twelve powers of ten.
    low, high = math.log(1e-6), math.log(1e6)
    if not excess(low) < 0 < excess(high):
        return None
    return math.exp(brentq(excess, low, high, xtol=1e-12))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of mu-Gaussian differential privacy at a delta.

    Args:
        mu: Sensitivity over standard deviation; positive.
        delta: In (0, 1).

    Returns:
        Epsilon; 0 where delta alone is enough.

    Source: Balle and Wang 2018, Theorem 8 (arXiv:1805.06530).
    """
    from scipy.optimize import brentq

    check_delta(delta)
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    high = 1.0
    while gaussian_delta(high, mu) > delta:
        high *= 2
    return float(brentq(lambda bound: gaussian_delta(bound, mu) - delta, 0.0, high, xtol=1e-12))
