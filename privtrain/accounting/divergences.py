"""The Rényi divergences of releases: what the RDP accountant reads of an event.

Looser than privacy losses, fast, and the only reading of fixed-size samples and of curves.
"""

import math
from functools import lru_cache

import numpy as np

from privtrain.accounting.event import Event, Terms
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
    orders = next((leaf.orders for leaf, _ in terms if isinstance(leaf, RdpCurve)), ORDERS)
    value = rdp_to_epsilon(total_rdp(terms, orders, relation), orders, delta, conversion)
    if math.isinf(value):
        raise UnsupportedError(
            "The RDP accountant found no finite epsilon at any order: the noise is too small "
            "for it. Use more noise."
        )
    return value


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
    sampled = is_kind(leaf, Kind.POISSON_SAMPLED, Kind.FIXED_SIZE_SAMPLED)
    if not sampled or not is_kind(leaf.event, Kind.GAUSSIAN):
        return rdp
    # Mironov 2017, Corollary 3: order / (2 z^2) of a Gaussian that is not sampled.
    unsampled = orders / (2 * leaf.event.noise_multiplier**2)
    return np.asarray(np.fmin(np.fmax(rdp, 1e-12), unsampled))
