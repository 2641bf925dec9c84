"""What noisy-max votes cost: the data-dependent analysis of PATE, for many queries at once.

One changed example changes at most one teacher, and one teacher moves one vote from a class to
another. Both analyses below already contain that; their curves take no further factor, under any
relation. Numbers computed from vote counts are themselves private: they say how clearly the
teachers agreed.

Everything is computed in logarithms of probabilities, at float orders: with teachers in agreement
the probability of another answer is far below what a float can hold.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.accounting.renyi import RdpCurve, check_orders
from privtrain.core.validate import check_positive

Array = NDArray[np.float64]

DEFAULT_ORDERS: tuple[float, ...] = tuple(
    round(1 + float(step), 6) for step in np.geomspace(0.05, 499.0, 400)
)
"""400 Rényi orders from 1.05 to 500, each 2.3% further from 1 than the one before. Few orders floor
epsilon: eight moments never give less than log(1/delta) / 8."""


def gnmax_rdp(votes: Any, sigma: float, orders: ArrayLike) -> Array:
    """Rényi divergences of GNMax answers: the smaller of data-dependent and data-independent.

    GNMax answers with the class of the largest count after adding N(0, sigma^2) to each.

    Args:
        votes: Vote counts before the noise, array or tensor of shape `(queries, classes)`; finite,
            not negative, at least two classes.
        sigma: Standard deviation of the noise on each count, in votes; positive.
        orders: Rényi orders, shape `(orders,)`, each above 1.

    Returns:
        Upper bounds in nats, shape `(queries, orders)`. Add over queries to compose them. Where
        the votes decide, they hold in one direction: of the answers to these votes from those to
        neighbouring votes, not the reverse.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Papernot et al. 2018 (arXiv:1802.08908): Proposition 7 bounds the probability of
    another answer, Proposition 8 is data-independent, Theorem 6 with the orders of Proposition 10
    is data-dependent.
    """
    check_positive(sigma=sigma)
    return rdp_of_another(gnmax_log_q(votes, sigma), sigma, check_orders(orders))


def rdp_of_another(log_another: Array, sigma: float, grid: Array) -> Array:
    """Rényi divergences of GNMax answers, of bounds on the probability of another answer.

    Args:
        log_another: Logarithms of upper bounds on it, shape `(queries,)`.
        sigma: Standard deviation of the noise on each count, in votes.
        grid: Rényi orders, shape `(orders,)`.

    Returns:
        The smaller of Theorem 6 and Proposition 8, shape `(queries, orders)`. It holds whatever
        the bounds are: one that is larger than need be gives another figure that holds, too.
    """
    log_q = log_another[:, np.newaxis]
    # Proposition 8: GNMax is (order, order / sigma^2)-RDP, whatever the votes.
    rdp = np.tile(grid / sigma**2, (log_q.shape[0], 1))
    # No other answer even in logarithms: such an answer tells nothing of any single vote.
    certain = np.isneginf(log_q[:, 0])
    rdp[certain] = 0.0

    rows = np.flatnonzero(theorem_6_holds(log_q[:, 0], sigma) & ~certain)
    if rows.size:
        dependent = _theorem_6(log_q[rows], sigma, grid)
        rdp[rows] = np.minimum(dependent, grid / sigma**2, out=dependent)
    return rdp


def _proposition_10(log_q: Array, sigma: float) -> tuple[Array, Array, Array, Array]:
    """The orders mu1 and mu2 and, by Proposition 8, the divergences epsilon1 and epsilon2."""
    # mu2 = sigma sqrt(log(1/q)) and mu1 = mu2 + 1.
    mu2 = sigma * np.sqrt(-log_q)
    mu1 = mu2 + 1
    return mu1, mu2, mu1 / sigma**2, mu2 / sigma**2


def theorem_6_holds(log_q: Array, sigma: float) -> NDArray[np.bool_]:
    """Whether the conditions of Theorem 6 are met at the orders of Proposition 10.

    Args:
        log_q: Logarithms of bounds on the probability of another answer, any shape.
        sigma: Standard deviation of the noise on each count.

    Returns:
        Booleans, same shape.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        _, mu2, _, epsilon2 = _proposition_10(log_q, sigma)
        # With mu1 - 1 = mu2: q <= exp((mu2 - 1) epsilon2) / (mu1 / (mu1 - 1) mu2 / (mu2 - 1))^mu2.
        ceiling = (mu2 - 1) * epsilon2 - mu2 * (np.log1p(1 / mu2) + np.log1p(1 / (mu2 - 1)))
        return np.asarray((mu2 > 1) & (log_q + epsilon2 < 0) & (log_q <= ceiling))


def _theorem_6(log_q: Array, sigma: float, grid: Array) -> Array:
    """Divergences of votes that decide, shape `(queries, orders)`; infinite beyond order mu1."""
    mu1, mu2, epsilon1, epsilon2 = _proposition_10(log_q, sigma)
    log_p = _log1mexp(log_q)
    # Theorem 6: A = (1 - q) / (1 - (q exp(epsilon2))^((mu2 - 1) / mu2)),
    # B = exp(epsilon1) / q^(1 / (mu1 - 1)), and the divergence of order l + 1 is
    # log((1 - q) A^l + q B^l) / l.
    log_a = log_p - _log1mexp((log_q + epsilon2) * (1 - 1 / mu2))
    log_b = epsilon1 - log_q / (mu1 - 1)
    moments = grid - 1
    dependent: Array = np.logaddexp(log_p + moments * log_a, log_q + moments * log_b)
    dependent /= moments
    np.maximum(dependent, 0.0, out=dependent)
    # Theorem 6 holds for orders up to mu1; beyond, Proposition 8 alone does.
    np.copyto(dependent, np.inf, where=grid > mu1)
    return dependent


def lnmax_rdp(votes: Any, scale: float, orders: ArrayLike) -> Array:
    """Rényi divergences of LNMax answers: the smallest of the data-dependent and -independent.

    LNMax answers with the class of the largest count after adding Laplace noise of scale b to
    each; an answer is (2 / b)-DP. The paper's gamma is 1 / b, and its moment of order l is l times
    the divergence of order l + 1.

    Args:
        votes: Vote counts before the noise, array or tensor of shape `(queries, classes)`; finite,
            not negative, at least two classes.
        scale: Scale b of the noise on each count, in votes; positive.
        orders: Rényi orders, shape `(orders,)`, each above 1.

    Returns:
        Upper bounds in nats, shape `(queries, orders)`. Add over queries to compose them.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Papernot et al. 2017 (arXiv:1610.05755), Theorems 2 and 3 and Lemma 4.
    """
    check_positive(scale=scale)
    grid = check_orders(orders)
    log_q = lnmax_log_q(votes, scale)[:, np.newaxis]
    pure = 2.0 / scale
    # An answer is (2 gamma)-DP, and its moments are bounded by Theorem 2: 2 gamma^2 l (l + 1).
    independent = np.minimum(pure, grid * pure**2 / 2)
    rdp = np.tile(independent, (log_q.shape[0], 1))

    # Theorem 3 asks for q < (e^pure - 1) / (e^(2 pure) - 1), which is 1 / (e^pure + 1).
    rows = np.flatnonzero(log_q[:, 0] < -np.logaddexp(pure, 0.0))
    log_q = log_q[rows]
    log_p = _log1mexp(log_q)
    moments = grid - 1
    # Theorem 3: log((1 - q) ((1 - q) / (1 - q e^(2 gamma)))^l + q e^(2 gamma l)).
    stays = log_p + moments * (log_p - _log1mexp(log_q + pure))
    dependent = np.logaddexp(stays, log_q + moments * pure)
    dependent /= moments
    np.maximum(dependent, 0.0, out=dependent)
    rdp[rows] = np.minimum(dependent, independent, out=dependent)
    return rdp


def gnmax_curve(votes: Any, sigma: float, orders: ArrayLike = DEFAULT_ORDERS) -> RdpCurve:
    """The curve of all answers of GNMax; see `gnmax_rdp`."""
    grid = check_orders(orders)
    return RdpCurve(tuple(grid.tolist()), tuple(gnmax_rdp(votes, sigma, grid).sum(axis=0)))


def lnmax_curve(votes: Any, scale: float, orders: ArrayLike = DEFAULT_ORDERS) -> RdpCurve:
    """The curve of all answers of LNMax; see `lnmax_rdp`."""
    grid = check_orders(orders)
    return RdpCurve(tuple(grid.tolist()), tuple(lnmax_rdp(votes, scale, grid).sum(axis=0)))


def gnmax_log_q(votes: Any, sigma: float) -> Array:
    """Logarithm of an upper bound on the probability that GNMax answers another class.

    Args:
        votes: Vote counts, shape `(queries, classes)`.
        sigma: Standard deviation of the noise on each count; positive.

    Returns:
        Natural logarithms, shape `(queries,)`. Never above log(1 - 1/classes), since the largest
        count is also the likeliest answer.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Papernot et al. 2018, Proposition 7: half the sum of erfc(gap / (2 sigma)).
    """
    from scipy.special import log_ndtr

    check_positive(sigma=sigma)
    gaps = _gaps(votes)
    # erfc(x / sqrt 2) / 2 is the normal distribution's upper tail at x.
    with np.errstate(over="ignore"):
        log_tails: Array = log_ndtr(-gaps / (np.sqrt(2.0) * sigma))
    return _log_union(log_tails)


def lnmax_log_q(votes: Any, scale: float) -> Array:
    """Logarithm of an upper bound on the probability that LNMax answers another class.

    Args:
        votes: Vote counts, shape `(queries, classes)`.
        scale: Scale b of the noise on each count; positive.

    Returns:
        Natural logarithms, shape `(queries,)`.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Papernot et al. 2017, Lemma 4: the sum of (2 + gap/b) / (4 exp(gap/b)).
    """
    check_positive(scale=scale)
    gaps = _gaps(votes) / scale
    return _log_union(np.log((2.0 + gaps) / 4.0) - gaps)


def counts_of(votes: Any) -> Array:
    """Vote counts as float64, shape `(queries, classes)`.

    Raises:
        ValueError: If they have another shape, or one is negative or not finite.
    """
    plain = votes.detach().cpu().numpy() if hasattr(votes, "detach") else votes
    counts: Array = np.asarray(plain, dtype=np.float64)
    if counts.ndim != 2 or counts.shape[1] < 2:
        raise ValueError(
            f"Expected votes of shape {counts.shape} to be (queries, classes), at least 2 classes."
        )
    if not (np.isfinite(counts) & (counts >= 0)).all():
        worst = counts[~(np.isfinite(counts) & (counts >= 0))][0]
        raise ValueError(f"Expected votes to be finite and >= 0; one is {float(worst)!r}.")
    return counts


def _gaps(votes: Any) -> Array:
    """By how much each other class trails the largest, shape `(queries, classes - 1)`."""
    # Of equal largest counts one stays as a gap of zero.
    ascending = np.sort(counts_of(votes), axis=1)
    gaps: Array = ascending[:, -1:] - ascending[:, :-1]
    return gaps


def _log_union(log_tails: Array) -> Array:
    """Logarithm of the sum over classes, at most log(1 - 1 / classes): that of a uniform answer."""
    peak = log_tails.max(axis=1)
    # Shifted by the largest: single probabilities are far below the smallest float.
    shift = np.where(np.isfinite(peak), peak, 0.0)[:, np.newaxis]
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(log_tails - shift).sum(axis=1)) + shift[:, 0]
    classes = log_tails.shape[1] + 1
    bounded: Array = np.minimum(total, np.log1p(-1.0 / classes))
    return bounded


def _log1mexp(x: Array) -> Array:
    """log(1 - e^x) of negative x, without cancellation at either end."""
    result: Array = np.where(x < -1.0, np.log1p(-np.exp(x)), np.log(-np.expm1(x)))
    return result
