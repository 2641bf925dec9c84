"""How much noise an epsilon needs: the smallest scale whose own evaluation meets the target."""

import math
from collections.abc import Callable

from privtrain.accounting.divergences import extends, least_epsilon
from privtrain.accounting.epsilon import best_accountant, tightest
from privtrain.accounting.event import Event, repeated
from privtrain.accounting.grid import rough_epsilon
from privtrain.core.errors import BudgetExceededError, UnsupportedError
from privtrain.core.rounding import printed_up
from privtrain.core.statement import ADD_REMOVE, Relation
from privtrain.core.validate import check_count, check_delta, check_positive

Excess = Callable[[float], float]
"""log(epsilon / target) of a log scale: above zero where there is too little noise."""

# exp(28) is 10^12: no sensible scale lies beyond, in whatever unit it is given.
_FARTHEST = 28.0
_ROUGH = 0.02
# With 1.5 times the smallest epsilon that orders show, a third of it is left to the noise.
_FROM_LEAST = 1.5
# So many times the target says no more than that it is missed.
_FAR = 1e6


def calibrate_scale(
    event_of: Callable[[float], Event],
    *,
    epsilon: float,
    delta: float,
    relation: Relation = ADD_REMOVE,
    count: int = 1,
    tolerance: float = 1e-3,
) -> float:
    """The smallest noise scale with which all releases stay within a target.

    Rényi divergences, which are fast, narrow the range down; the accountant that the guarantee will
    name then finds the scale, in a few evaluations.

    Args:
        event_of: One release as a function of the noise scale, such as the noise multiplier or
            the sigma of a vote; more noise must never cost more.
        epsilon: Target; positive. Any value from 0.01 to 1000 answers in seconds.
        delta: In (0, 1).
        relation: Which data sets are neighbours.
        count: How many releases are made.
        tolerance: How far above the smallest scale the answer may be, relative to it.

    Returns:
        A scale that was evaluated, by the best accountant, at or below the target.

    Raises:
        ValueError: If an argument is out of its range.
        UnsupportedError: If no accountant can read the event under the relation.
        BudgetExceededError: If no amount of noise meets the target.
    """
    check_positive(epsilon=epsilon, tolerance=tolerance)
    check_delta(delta)
    check_count(count=count)

    def event(log_scale: float) -> Event:
        return repeated(event_of(math.exp(log_scale)), count)

    def excess(log_scale: float) -> float:
        try:
            value, _ = tightest(event(log_scale), delta, relation)
        except UnsupportedError:
            # The accountant reads the event (that is asked before): the noise is too small.
            value = math.inf
        return _log_ratio(value, epsilon)

    def rough_excess(log_scale: float) -> float:
        return _log_ratio(rough_epsilon(event(log_scale), delta, relation), epsilon)

    start = 0.0
    if best_accountant(event(0.0), relation) == "rdp":
        _check_shown_by_orders(event(0.0), delta, relation, epsilon)
    else:
        # A start, no more: the estimate bounds nothing, so the search may go either way from it.
        start = _smallest(rough_excess, start, _ROUGH) or start
    log_scale = _smallest(excess, start, tolerance)
    if log_scale is None:
        raise BudgetExceededError(
            f"No amount of noise makes {count} releases ({epsilon:g}, {delta:g})-DP under "
            f"{relation.replace('_', '-')} neighbours. Part of the release, such as checks of "
            "queries, is not protected by the noise that is calibrated, or no accountant resolves "
            "the delta: protect it, make fewer releases, or ask for a larger epsilon or delta."
        )
    if tightest(event(log_scale), delta, relation)[1] == "rdp":
        _check_shown_by_orders(event(log_scale), delta, relation, epsilon)
    return math.exp(log_scale)


def _check_shown_by_orders(event: Event, delta: float, relation: Relation, target: float) -> None:
    """Refuses noise that is there for want of Rényi orders, not for the sake of privacy.

    A curve shows no less than what its largest order shows of nothing at all; near that a target
    would take many times the noise that it needs.

    Raises:
        BudgetExceededError: If the target is that small.
    """
    least = _FROM_LEAST * least_epsilon(event, delta)
    if target < least and not extends(event, relation):
        raise BudgetExceededError(
            f"Expected epsilon={target:g} >= {printed_up(least, 2)}: at delta={delta:g} the RDP "
            "accountant, the only one to read this release, shows little less, whatever the "
            "noise. Ask for that epsilon, or for a larger delta."
        )


def _log_ratio(value: float, target: float) -> float:
    # Bounded, so that one evaluation at no or far too little noise does not spoil a secant.
    return math.log(min(max(value / target, 1e-3), _FAR))


def _smallest(excess: Excess, start: float, tolerance: float) -> float | None:
    """The smallest log scale without excess, up to a tolerance; None where there is none."""
    bracket = _bracket(excess, start, tolerance)
    if bracket is None:
        return None
    (low, above), (high, below) = bracket
    side = 0
    while high - low > tolerance:
        # The secant in log-log coordinates, a third of the tolerance to either side in turn:
        # the bracket is closed from both ends.
        # A value at its bound says nothing of the slope: the bracket is halved instead.
        blind = above >= math.log(_FAR)
        part = 0.5 if blind else above / (above - below)
        guess = low + (high - low) * part + side * tolerance / 3
        # Never at an end, which was evaluated already.
        margin = min(tolerance / 4, (high - low) / 4)
        guess = min(max(guess, low + margin), high - margin)
        value = excess(guess)
        if value > 0:
            # Halving the other end keeps the secant from creeping along one side (Illinois).
            low, above, below = guess, value, below / 2 if side > 0 else below
            side = 1
        else:
            high, below, above = guess, value, above / 2 if side < 0 and not blind else above
            side = -1
    # The upper end: it was evaluated, and meets the target.
    return high


def _bracket(
    excess: Excess, start: float, tolerance: float
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Log scales with and without excess, each with its value; None where noise does not help."""
    last, value = start, excess(start)
    up = value > 0
    stride = tolerance
    while True:
        # Epsilon falls with the scale or its square: most of the way in one stride.
        stride = max(2 * stride, min(0.7 * abs(value), math.log(4.0)))
        here = last + stride if up else last - stride
        if abs(here) > _FARTHEST:
            return None if up else ((-_FARTHEST, 1.0), (last, value))
        there = excess(here)
        if (there > 0) != up:
            return ((last, value), (here, there)) if up else ((here, there), (last, value))
        last, value = here, there
