"""Rényi differential privacy as plain numbers: curves over orders, and what they are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.core.validate import check_count, check_delta, check_member

Conversion = Literal["classic", "improved"]
"""How a curve becomes an epsilon; see `rdp_to_epsilon`."""

CONVERSIONS = ("classic", "improved")


@dataclass(frozen=True)
class RdpCurve:
    """What a release costs in Rényi differential privacy, at a grid of orders.

    For mechanisms that no accounting event describes, such as votes with data-dependent
    analysis. Its neighbours are fixed by whoever computed it: it is converted without any further
    factor, under every relation.

    Args:
        orders: Rényi orders, each above 1.
        rdp: The Rényi divergence of each order, never negative; infinity where nothing is
            promised at that order.
    """

    orders: tuple[float, ...]
    rdp: tuple[float, ...]

    def __post_init__(self) -> None:
        orders, rdp = _checked(self.orders, self.rdp)
        # Tuples of floats, whatever was given: a curve is hashable, so that results are cached.
        object.__setattr__(self, "orders", tuple(orders.tolist()))
        object.__setattr__(self, "rdp", tuple(rdp.tolist()))

    def __add__(self, other: "RdpCurve") -> "RdpCurve":
        """The curve of both releases (Mironov 2017, Proposition 1: orders add up one by one).

        Raises:
            ValueError: If the orders differ.
        """
        if self.orders != other.orders:
            raise ValueError(
                f"Expected orders={_brief(other.orders)} to equal those of the other curve, "
                f"{_brief(self.orders)}: curves are added order by order."
            )
        return RdpCurve(self.orders, tuple(map(sum, zip(self.rdp, other.rdp, strict=True))))

    def repeated(self, count: int) -> "RdpCurve":
        """The curve of the same release made several times."""
        check_count(0, count=count)
        return RdpCurve(self.orders, tuple(count * value if count else 0.0 for value in self.rdp))

    def of_two(self) -> "RdpCurve":
        """The curve of a group of two: of neighbours of neighbours.

        Returns:
            The curve at the same orders; infinite where twice the order is beyond the last.

        Source: The weak triangle inequality of Mironov 2017 (arXiv:1702.07476), which makes a curve
        that grows with the order four times as large.
        """
        grid = np.asarray(self.orders)
        # By Hölder's inequality, with p = 2 - 1 / a:
        # D(a) <= (a - 1 / p) / (a - 1) D(p a) + D((p a - 1) / (p - 1)).
        with np.errstate(invalid="ignore"):
            rdp = 2 * grid / (2 * grid - 1) * self._between(2 * grid - 1) + self._between(2 * grid)
        return RdpCurve(self.orders, tuple(np.where(np.isnan(rdp), math.inf, rdp).tolist()))

    def _between(self, wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Upper bounds of the divergence at orders between those of the curve."""
        ascending = np.argsort(self.orders)
        orders, rdp = np.asarray(self.orders)[ascending], np.asarray(self.rdp)[ascending]
        # (order - 1) times the divergence is convex in the order: it lies below its chords.
        # Divergences never fall with the order: below the first, the first is a bound.
        last = np.minimum(np.searchsorted(orders, wanted), len(orders) - 1)
        before = np.maximum(last - 1, 0)
        width = np.where(last > before, orders[last] - orders[before], 1.0)
        part = np.clip((wanted - orders[before]) / width, 0, 1)
        with np.errstate(invalid="ignore"):
            chords = (1 - part) * (orders[before] - 1) * rdp[before]
            chords = (chords + part * (orders[last] - 1) * rdp[last]) / (wanted - 1)
        chords = np.where((wanted <= orders[0]) | (last == before), rdp[last], chords)
        return np.where((wanted > orders[-1]) | np.isnan(chords), math.inf, chords)

    def epsilon(self, delta: float, conversion: Conversion = "improved") -> float:
        """The smallest epsilon that the curve proves at a delta; see `rdp_to_epsilon`."""
        return rdp_to_epsilon(self.rdp, self.orders, delta, conversion)

    def __repr__(self) -> str:
        return f"RdpCurve({len(self.orders)} orders from {_brief(self.orders)})"


def rdp_to_epsilon(
    rdp: ArrayLike, orders: ArrayLike, delta: float, conversion: Conversion = "classic"
) -> float:
    """The smallest epsilon that a curve proves at a delta.

    Every order gives a valid bound, so the smallest of them is taken.

    Args:
        rdp: Rényi divergences, shape `(orders,)`; never negative, infinity allowed.
        orders: Their orders, shape `(orders,)`, each above 1.
        delta: In (0, 1).
        conversion: "classic" is rdp + log(1/delta) / (order - 1); "improved" is never larger:
            rdp + log(1 - 1/order) - log(delta order) / (order - 1).

    Returns:
        Epsilon in nats; zero where the curve is zero, infinity where every order is infinite.

    Raises:
        ValueError: If shapes differ, or a value is out of its range.

    Source: Mironov 2017, Proposition 3 (arXiv:1702.07476); Canonne, Kamath and Steinke 2020,
    Proposition 12 (arXiv:2004.00010). Where 1 - exp(-rdp) < delta^2, delta alone covers the
    total variation distance (Bretagnolle and Huber), and epsilon is zero.
    """
    check_delta(delta)
    check_member(CONVERSIONS, conversion=conversion)
    grid, curve = _checked(orders, rdp)
    if not curve.any():
        return 0.0
    # Mironov 2017, Proposition 3.
    if conversion == "classic":
        return float(np.min(curve + math.log(1 / delta) / (grid - 1)))
    # Canonne, Kamath and Steinke 2020, Proposition 12.
    bounds = curve + np.log1p(-1 / grid) - (math.log(delta) + np.log(grid)) / (grid - 1)
    # Divergences grow with the order, so each of them bounds that of order 1, on which this rests.
    bounds = np.where(-np.expm1(-curve) < delta**2, 0.0, bounds)
    return max(0.0, float(np.min(bounds)))


def check_orders(orders: ArrayLike) -> NDArray[np.float64]:
    """Rényi orders as float64: integer orders overflow in exponents.

    Args:
        orders: Shape `(orders,)`, each finite and above 1.

    Returns:
        The orders, shape `(orders,)`.

    Raises:
        ValueError: If there is none, or one is out of range.
    """
    grid = np.asarray(orders, dtype=np.float64)
    if grid.ndim != 1 or grid.size == 0:
        raise ValueError(f"Expected orders of shape {grid.shape} to be a non-empty vector.")
    if not (np.isfinite(grid) & (grid > 1)).all():
        worst = float(grid[~(np.isfinite(grid) & (grid > 1))][0])
        raise ValueError(f"Expected orders to be finite and > 1; one is {worst!r}.")
    return grid


def _checked(orders: ArrayLike, rdp: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    grid = check_orders(orders)
    curve = np.asarray(rdp, dtype=np.float64)
    if curve.shape != grid.shape:
        raise ValueError(f"Expected rdp of shape {curve.shape} to have shape {grid.shape}.")
    if not (curve >= 0).all():
        raise ValueError(f"Expected rdp to be >= 0; one is {float(np.min(curve))!r}.")
    return grid, curve


def _brief(orders: Sequence[float]) -> str:
    return f"{orders[0]:g} to {orders[-1]:g}"
