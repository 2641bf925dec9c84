"""Data-dependent analysis of noisy-max votes: vectorised over queries against a plain loop.

    python benchmarks/gnmax.py [--quick] [--json]

1,000 queries x 10 classes over 400 orders. Both sides give the same curves to 1e-10, which is
checked before anything is timed. The largest of three settings should stay below 50 ms.

The exact cost of winners, against a loop over queries and moves that gives the same to 1e-6; and at
10,000 queries x 10 classes x 400 orders beside Theorem 6, which should take under 20 s and 1 s.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from harness import SEED, Row, compare, main
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from privtrain.accounting.exact_votes import exact_gnmax_rdp
from privtrain.accounting.gnmax import DEFAULT_ORDERS, gnmax_rdp, lnmax_rdp

Array = NDArray[np.float64]
Curves = Callable[[Array, float, Array], Array]


def gnmax_loop(votes: Array, sigma: float, orders: Array) -> Array:
    """Papernot et al. 2018, one query at a time: Theorem 6 with Propositions 7, 8 and 10."""
    return np.array([_gnmax_query(counts, sigma, orders) for counts in votes])


def _gnmax_query(counts: Array, sigma: float, orders: Array) -> Array:
    winner = int(np.argmax(counts))
    gaps = counts[winner] - np.delete(counts, winner)
    log_q = float(np.logaddexp.reduce(log_ndtr(-gaps / (math.sqrt(2) * sigma))))
    log_q = min(log_q, math.log(1 - 1 / len(counts)))
    curve: Array = orders / sigma**2
    mu2 = sigma * math.sqrt(-log_q)
    mu1, epsilon2 = mu2 + 1, mu2 / sigma**2
    if mu2 <= 1 or log_q + epsilon2 >= 0:
        return curve
    ceiling = (mu2 - 1) * epsilon2 - mu2 * math.log(mu1 / (mu1 - 1) * mu2 / (mu2 - 1))
    if log_q > ceiling:
        return curve
    log_p = _log1mexp(log_q)
    log_a = log_p - _log1mexp((log_q + epsilon2) * (mu2 - 1) / mu2)
    log_b = mu1 / sigma**2 - log_q / (mu1 - 1)
    log_sum = np.logaddexp(log_p + (orders - 1) * log_a, log_q + (orders - 1) * log_b)
    dependent: Array = np.maximum(log_sum / (orders - 1), 0)
    return np.where(orders <= mu1, np.minimum(curve, dependent), curve)


def _log1mexp(x: float) -> float:
    return math.log1p(-math.exp(x)) if x < -1 else math.log(-math.expm1(x))


def lnmax_loop(votes: Array, scale: float, orders: Array) -> Array:
    """Papernot et al. 2017, one query at a time: Theorems 2 and 3 with Lemma 4."""
    return np.array([_lnmax_query(counts, scale, orders) for counts in votes])


def _lnmax_query(counts: Array, scale: float, orders: Array) -> Array:
    winner = int(np.argmax(counts))
    gaps = (counts[winner] - np.delete(counts, winner)) / scale
    q = min(float(((2 + gaps) / 4 * np.exp(-gaps)).sum()), 1 - 1 / len(counts))
    pure, moments = 2 / scale, orders - 1
    curve = np.minimum(pure, orders * pure**2 / 2)
    if q >= 1 / (math.exp(pure) + 1):
        return curve
    log_p = math.log1p(-q)
    stays = log_p + moments * (log_p - math.log1p(-math.exp(pure) * q))
    dependent = np.logaddexp(stays, math.log(q) + moments * pure) / moments
    return np.minimum(curve, np.maximum(dependent, 0))


def exact_loop(votes: Array, sigma: float, orders: Array) -> Array:
    """The largest divergence from and to all neighbouring votes, one query and move at a time."""
    return np.array([_exact_query(counts, sigma, orders) for counts in votes])


def _exact_query(counts: Array, sigma: float, orders: Array) -> Array:
    classes, own, best = len(counts), _winner(counts, sigma), np.zeros(len(orders))
    for loses in range(classes + 1):
        for gains in range(classes + 1):
            if loses == gains or (loses < classes and counts[loses] < 1):
                continue
            moved = counts.copy()
            moved[loses : loses + 1] -= 1
            moved[gains : gains + 1] += 1
            other = _winner(moved, sigma)
            for first, second in ((own, other), (other, own)):
                logs = np.outer(orders, first) + np.outer(1 - orders, second)
                best = np.maximum(best, logsumexp(logs, axis=1) / (orders - 1))
    return best


def _winner(counts: Array, sigma: float) -> Array:
    """Logarithms of the chance of each class to win, by the trapezoidal rule."""
    scaled = counts / sigma
    y = np.arange(scaled.min() - 9, scaled.max() + 11, 0.2)
    z = y - scaled[:, np.newaxis]
    cdf = log_ndtr(z)
    logs = -(z**2) / 2 + cdf.sum(axis=0) - cdf + math.log(0.2 / math.sqrt(2 * math.pi))
    chances: Array = logsumexp(logs, axis=1)
    return chances


def same_curves(
    ours: Curves, loop: Curves, votes: Array, scale: float, orders: Array, apart: float = 1e-10
) -> None:
    """Stops the benchmark where both sides do not compute the same."""
    mine, plain = ours(votes, scale, orders), loop(votes, scale, orders)
    # The plain exact loop sums without complements: it has no digits below 1e-12.
    if not np.allclose(mine, plain, rtol=apart, atol=1e-300 if apart < 1e-6 else 1e-11):
        worst = float(np.max(np.abs(mine - plain) / np.maximum(plain, 1e-300)))
        raise SystemExit(f"The two sides differ by {worst:g}, relative: nothing to compare.")


def rows(quick: bool) -> list[Row]:
    """One row for each mechanism and setting."""
    generator = np.random.default_rng(SEED)
    chances = [0.91, *[0.01] * 9]
    queries = 100 if quick else 1000
    votes = generator.multinomial(250, chances, size=queries).astype(np.float64)
    orders = np.array(DEFAULT_ORDERS)
    settings: tuple[tuple[str, Curves, Curves, float], ...] = (
        ("GNMax sigma 4", gnmax_rdp, gnmax_loop, 4.0),
        ("GNMax sigma 40", gnmax_rdp, gnmax_loop, 40.0),
        ("LNMax scale 20", lnmax_rdp, lnmax_loop, 20.0),
    )
    measured = []
    for work, ours, loop, scale in settings:
        same_curves(ours, loop, votes, scale, orders)
        measured.append(
            compare(
                f"{work}, {queries} x 10 x {len(orders)}",
                partial(ours, votes, scale, orders),
                partial(loop, votes, scale, orders),
                ours_name="vectorised",
                against_name="loop over queries",
                repeats=7 if quick else 31,
                warmup=2,
            )
        )
    return [*measured, *exact_rows(generator, orders, quick)]


def exact_rows(generator: np.random.Generator, orders: Array, quick: bool) -> list[Row]:
    """The exact cost: against its loop, and at the largest size beside Theorem 6."""
    # No two queries are equal, nor are many counts of one: nothing is saved by that.
    size, fewest, repeats = (100, 3, 5) if quick else (10_000, 10, 5)
    shares = generator.dirichlet(np.full(10, 0.7), size=size)
    votes = np.array([generator.multinomial(250, share) for share in shares], dtype=np.float64)
    few = votes[:fewest]
    same_curves(exact_gnmax_rdp, exact_loop, few, 40.0, orders, apart=1e-6)
    against_loop = compare(
        f"exact GNMax sigma 40, {fewest} x 10 x {len(orders)}",
        partial(exact_gnmax_rdp, few, 40.0, orders),
        partial(exact_loop, few, 40.0, orders),
        ours_name="batches",
        against_name="loop over queries and moves",
        repeats=repeats,
    )
    beside = compare(
        f"votes of any shape, sigma 40, {size} x 10 x {len(orders)}",
        partial(exact_gnmax_rdp, votes, 40.0, orders),
        partial(gnmax_rdp, votes, 40.0, orders),
        ours_name="exact",
        against_name="Theorem 6",
        repeats=repeats,
        warmup=0,
    )
    return [against_loop, beside]


if __name__ == "__main__":
    main(rows)
