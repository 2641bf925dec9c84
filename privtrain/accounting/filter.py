"""A Rényi filter: a budget for releases that are chosen after looking at earlier ones.

Adding up what was spent and converting the sum afterwards is only proved for releases that were
fixed beforehand. Where each one may depend on what the earlier ones gave, the order and the budget
have to stand before the first release, and a release that would exceed the budget is not made.
"""

import math
from dataclasses import dataclass, field

from privtrain.accounting.divergences import ORDERS
from privtrain.accounting.epsilon import rdp_curve
from privtrain.accounting.event import Event
from privtrain.accounting.renyi import RdpCurve, check_orders
from privtrain.core.errors import BudgetExceededError, UnsupportedError
from privtrain.core.locks import Lock
from privtrain.core.rounding import printed_down, printed_up
from privtrain.core.statement import ADD_REMOVE, Budget, Relation

THEOREM = "Rényi filter at one order fixed beforehand (Feldman and Zrnic 2021; Lécuyer 2021)"
"""What the guarantee of a filter rests on."""


def rdp_allowance(budget: Budget, order: float) -> float:
    """The Rényi divergence at one order that a budget is worth.

    Args:
        budget: Epsilon and delta.
        order: A Rényi order, above 1.

    Returns:
        The largest divergence whose epsilon at the budget's delta is the budget's; zero or
        negative where the order is too low for the delta.

    Source: Canonne, Kamath and Steinke 2020, Proposition 12 (arXiv:2004.00010), solved for it.
    """
    check_orders([order])
    # Proposition 12: epsilon = rdp + log(1 - 1/order) - log(delta order) / (order - 1).
    penalty = math.log1p(-1 / order) - (math.log(budget.delta) + math.log(order)) / (order - 1)
    return budget.epsilon - penalty


def order_for(budget: Budget) -> float:
    """The order at which a budget pays for the most Gaussian releases.

    A Gaussian's divergence grows in proportion to the order, so the allowance over the order is
    what counts. It follows from the budget alone and never from data.

    Args:
        budget: Epsilon and delta.

    Returns:
        One of the accountant's orders.
    """
    return max(ORDERS, key=lambda order: rdp_allowance(budget, order) / order)


def rdp_at(event: Event, order: float, relation: Relation) -> float:
    """The Rényi divergence of an event at one order.

    Args:
        event: An event, or an `RdpCurve`, of which the nearest order above is taken: divergences
            never fall with the order.
        order: Above 1.
        relation: Which data sets are neighbours.

    Returns:
        At least zero; infinity where nothing is promised.

    Raises:
        UnsupportedError: If the curve ends below the order, or no Rényi accountant reads the
            event under the relation.
    """
    if not isinstance(event, RdpCurve):
        return float(rdp_curve(event, [order], relation).rdp[0])
    # A further order would have to be computed by the curve's maker: the next one is a bound.
    points = sorted(zip(event.orders, event.rdp, strict=True))
    fitting = [rdp for known, rdp in points if known >= order]
    if not fitting:
        raise UnsupportedError(
            f"The curve's orders end at {max(event.orders):g}, below order={order:g} of the "
            "filter. Give the curve at that order, or choose a lower one beforehand."
        )
    return fitting[0]


@dataclass
class RdpFilter:
    """Pays for adaptively chosen releases out of a budget that was fixed beforehand.

    Everything that is released after `spend` returned keeps the budget as a whole, however it was
    chosen: the number of releases, their noise and the moment to stop may depend on everything
    that was released before.

    Args:
        budget: Epsilon and delta of all releases.
        order: The Rényi order, above 1, fixed before the first release. None for the one at which
            the budget pays for the most Gaussian releases.
        relation: Which data sets are neighbours.

    Raises:
        ValueError: If the order leaves nothing of the budget.

    Source: Feldman and Zrnic 2021 (arXiv:2008.11193); Lécuyer 2021 (arXiv:2103.01379).
    """

    budget: Budget
    order: float | None = None
    relation: Relation = ADD_REMOVE
    _order: float = field(init=False, repr=False)
    _allowance: float = field(init=False, repr=False)
    _spent: float = field(default=0.0, init=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # The theorems hold at one order that was fixed beforehand: no smallest over orders here.
        self._order = order_for(self.budget) if self.order is None else float(self.order)
        self._allowance = rdp_allowance(self.budget, self._order)
        if self._allowance <= 0:
            raise ValueError(
                f"Expected order={self._order:g} to leave room in epsilon={self.budget.epsilon:g} "
                f"at delta={self.budget.delta:g}: converting at that order alone costs more. Use "
                f"a higher order, such as {order_for(self.budget):g}, or a larger epsilon."
            )

    @property
    def fixed_order(self) -> float:
        """The order at which everything is counted."""
        return self._order

    @property
    def allowance(self) -> float:
        """The Rényi divergence that may be spent altogether."""
        return self._allowance

    @property
    def spent(self) -> float:
        """The Rényi divergence that was spent so far."""
        return self._spent

    @property
    def remaining(self) -> float:
        """The Rényi divergence that is left; never negative."""
        return max(0.0, self._allowance - self._spent)

    def fits(self, event: Event) -> bool:
        """Whether a release may still be made. It depends on no data but earlier releases."""
        return self._after(event) <= self._allowance

    def spend(self, event: Event) -> None:
        """Pays for one release, before it is made.

        Args:
            event: What will be released: an event, or an `RdpCurve`.

        Raises:
            BudgetExceededError: If it would exceed the budget. Nothing is spent then, and a
                smaller release may still fit.
            UnsupportedError: If no Rényi accountant reads the event.
        """
        with self._lock:  # from the check to the sum: two threads must not fill one gap
            # `not <=`, so that a NaN is refused, too.
            after = self._after(event)
            if not after <= self._allowance:
                raise BudgetExceededError(
                    f"This release costs {printed_up(after - self._spent)} at order "
                    f"{self._order:g}, and {printed_down(self.remaining)} of "
                    f"{self._allowance:.4g} is left of "
                    f"epsilon={self.budget.epsilon:g}, delta={self.budget.delta:g}. Use more noise "
                    "or fewer steps; the budget of a filter cannot be raised afterwards."
                )
            self._spent = after

    def _after(self, event: Event) -> float:
        return self._spent + rdp_at(event, self._order, self.relation)
