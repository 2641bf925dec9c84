"""The Rényi divergences of releases: what the RDP accountant reads of an event.

Looser than privacy losses, fast, and the only reading of curves.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from privtrain.accounting.approximate import exact_part
from privtrain.accounting.event import Event, Terms, terms_of
from privtrain.accounting.library import Array, Kind, is_kind, rdp_of
from privtrain.accounting.renyi import Conversion, RdpCurve, rdp_to_epsilon
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import REPLACE_ONE, Relation

# Where no curve brings its own orders. Small ones serve large epsilons, where the divergence grows
# with the order; the large ones serve small epsilons, where log(1/delta) / (order - 1) rules.
ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(64.0, 80.0, 96.0, 128.0, 256.0, 384.0, 512.0, 768.0, 1024.0),
)


_LARGE_ORDERS = tuple(round(part * 2**power) for power in range(11, 21) for part in (1, 1.5))
"""Beyond those, for epsilons that are small beside log(1/delta) / 1024."""


def stated_for_rdp(leaf: Event, relation: Relation) -> Event | None:
    """The event as the RDP accountant wants it, or None where it would misread it.

    A replaced row moves a sum by twice the clipping norm. The accountant takes the noise
    multiplier as std / sensitivity and ignores the relation, so the multiplier is halved.
    """
    if relation != REPLACE_ONE or is_kind(leaf, Kind.RANDOMIZED_RESPONSE):
        return leaf
    if is_kind(leaf, Kind.GAUSSIAN, Kind.LAPLACE):
        return type(leaf)(leaf.noise_multiplier / 2)
    if is_kind(leaf, Kind.FIXED_SIZE_SAMPLED):
        inner = stated_for_rdp(leaf.event, relation)
        size, sample = leaf.source_dataset_size, leaf.sample_size
        return None if inner is None else type(leaf)(size, sample, inner)
    # A Poisson sample, above all: its formula knows a row that is there or not, no replaced one.
    return None


def rdp_epsilon(terms: Terms, delta: float, relation: Relation, conversion: Conversion) -> float:
    """Epsilon by Rényi divergences: at the orders of a curve, where there is one."""
    orders = _orders_of(terms)
    total = total_rdp(terms, orders, relation)
    value = rdp_to_epsilon(total, orders, delta, conversion)
    if orders is ORDERS and value < rdp_to_epsilon(total[:-1], orders[:-1], delta, conversion):
        value = _at_large_orders(terms, delta, relation, conversion, value)
    if math.isinf(value):
        raise UnsupportedError(
            "The RDP accountant found no finite epsilon at any order: the noise is too small "
            "for it. Use more noise."
        )
    return value


def _at_large_orders(
    terms: Terms, delta: float, relation: Relation, conversion: Conversion, value: float
) -> float:
    """Epsilon where the largest of the usual orders is the best: as far up as more of it helps."""
    if not _extends(terms, relation):
        return value
    for order in _LARGE_ORDERS:
        rdp = sum(count * _gaussian_rdp(leaf, order, relation) for leaf, count in terms)
        at_order = rdp_to_epsilon([rdp], [float(order)], delta, conversion)
        if at_order >= value:
            return value
        value = at_order
    return value


def _gaussian_rdp(leaf: Event, order: int, relation: Relation) -> float:
    """The divergence of one Gaussian, Poisson-sampled or not, at a whole order."""
    stated: Any = stated_for_rdp(leaf, relation)
    if is_kind(stated, Kind.GAUSSIAN):
        # Mironov 2017, Corollary 3.
        return float(order / (2 * stated.noise_multiplier**2))
    rate, noise = stated.sampling_probability, stated.event.noise_multiplier
    return _sampled_gaussian_rdp(rate, noise, order)


def _extends(terms: Terms, relation: Relation) -> bool:
    """Whether divergences of all releases are known at any whole order, in little time."""
    stated: list[Any] = [stated_for_rdp(leaf, relation) for leaf, _ in terms]
    inner = [s.event if is_kind(s, Kind.POISSON_SAMPLED) else s for s in stated]
    return all(is_kind(release, Kind.GAUSSIAN) for release in inner)


def extends(event: Event, relation: Relation) -> bool:
    """Whether an event's Rényi orders have no end: it holds Gaussians, Poisson-sampled or not."""
    return _extends(tuple(terms_of(exact_part(event)).items()), Relation(relation))


def least_epsilon(event: Event, delta: float) -> float:
    """What an event's orders prove where it costs nearly nothing; see `rdp_to_epsilon`."""
    last = max(_orders_of(tuple(terms_of(exact_part(event)).items())))
    return max(0.0, math.log1p(-1 / last) - math.log(delta * last) / (last - 1))


def _orders_of(terms: Terms) -> tuple[float, ...]:
    """The orders of a curve among the releases; the usual ones where there is none."""
    return next((leaf.orders for leaf, _ in terms if isinstance(leaf, RdpCurve)), ORDERS)


@lru_cache(maxsize=256)
def _sampled_gaussian_rdp(rate: float, noise_multiplier: float, order: int) -> float:
    """The Rényi divergence of a whole order of one Poisson-sampled Gaussian, all terms at once.

    Source: Mironov, Talwar and Zhang 2019, section 3.3 (arXiv:1908.10530).
    """
    from scipy.special import gammaln, logsumexp

    chosen = np.arange(order + 1.0)
    # log of (order over k) (1 - q)^(order - k) q^k exp(k (k - 1) / (2 z^2)).
    binomials = gammaln(order + 1) - gammaln(chosen + 1) - gammaln(order + 1 - chosen)
    chances = chosen * math.log(rate) + (order - chosen) * math.log1p(-rate)
    terms = binomials + chances + chosen * (chosen - 1) / (2 * noise_multiplier**2)
    # Digits of the logarithms of factorials get lost: 2^-50 of the largest one bounds that.
    lost = 2.0**-50 * float(gammaln(order + 1))
    unsampled = order / (2 * noise_multiplier**2)
    return min(max(0.0, float(logsumexp(terms)) + lost) / (order - 1), unsampled)


def total_rdp(terms: Terms, orders: tuple[float, ...], relation: Relation) -> Array:
    """Rényi divergences of all releases, shape `(orders,)`.

    Source: Mironov 2017, Proposition 1 (arXiv:1702.07476): divergences of one order add up.
    """
    total = np.zeros(len(orders))
    for leaf, count in terms:
        total += count * leaf_rdp(leaf, orders, relation)
    return total


@lru_cache(maxsize=1024)
def leaf_rdp(leaf: Event, orders: tuple[float, ...], relation: Relation) -> Array:
    """Rényi divergences of one release, shape `(orders,)`. Cached: not to be written to."""
    if isinstance(leaf, RdpCurve):
        if leaf.orders != orders:
            raise ValueError(
                f"Expected orders={leaf.orders[0]:g}..{leaf.orders[-1]:g} to equal those of "
                "the other curve: curves are added order by order."
            )
        # No factor for the relation: a curve was computed for its own neighbours.
        return np.array(leaf.rdp)
    stated = stated_for_rdp(leaf, relation)
    return _above_rounding(rdp_of(stated, orders, relation), stated, np.array(orders))


def _above_rounding(rdp: Array, leaf: Event, orders: Array) -> Array:
    """Replaces values below the accountant's rounding error by a bound that is above it.

    Its sums carry an absolute error near 1e-14, which for large noise exceeds the value and may
    turn it negative; sampling never costs more than the release without it.
    """
    if np.isnan(rdp).any():
        raise UnsupportedError(
            f"The RDP accountant gave no number for {leaf!r} at order "
            f"{orders[np.isnan(rdp)][0]:g}. Use more noise, or another rate."
        )
    sampled = is_kind(leaf, Kind.POISSON_SAMPLED, Kind.FIXED_SIZE_SAMPLED)
    if not sampled or not is_kind(leaf.event, Kind.GAUSSIAN):
        return rdp
    # Mironov 2017, Corollary 3: order / (2 z^2) of a Gaussian that is not sampled.
    unsampled = orders / (2 * leaf.event.noise_multiplier**2)
    return np.asarray(np.minimum(np.maximum(rdp, 1e-12), unsampled))
