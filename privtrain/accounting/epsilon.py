"""The epsilon that releases promise, read from an event by one of two accountants.

**Their conventions differ, and only this package knows how:** for a replaced row the PLD accountant
doubles the sensitivity itself, the RDP accountant does not, so it is given half the noise.

The PLD accountant (privacy loss distributions) is tight. It rounds every distribution up, never
down: its epsilon is an upper bound, whatever the grid. The grid's step follows the size of the
answer, so that any epsilon from 0.01 to 1000 takes seconds and a bounded amount of memory.
The RDP accountant (Rényi) is looser, fast, and the only one for curves.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from privtrain.accounting.approximate import Approximate, exact_part
from privtrain.accounting.divergences import rdp_epsilon, stated_for_rdp, total_rdp
from privtrain.accounting.event import Event, of_group, terms_of
from privtrain.accounting.library import Kind, is_kind, pld_supports, rdp_supports
from privtrain.accounting.losses import FINE, pld_epsilon, pld_lower
from privtrain.accounting.renyi import CONVERSIONS, Conversion, RdpCurve
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, Relation
from privtrain.core.validate import check_delta, check_member

Accountant = Literal["pld", "rdp"]

ACCOUNTANTS: tuple[Accountant, ...] = ("pld", "rdp")
"""Both accountants, the tight one first."""


@dataclass(frozen=True)
class Evaluation:
    """An epsilon, and the accountant that computed it.

    Args:
        epsilon: By the best accountant of the event and the relation; infinity where the
            event is not private.
        accountant: "pld" or "rdp"; "none" where nothing had to be computed.
        cross_check: The other accountant's value; None where it has none.
    """

    epsilon: float
    accountant: str
    cross_check: float | None


def epsilon(
    event: Event,
    delta: float,
    *,
    relation: Relation = ADD_REMOVE,
    accountant: Accountant = "pld",
    conversion: Conversion = "improved",
) -> float:
    """The epsilon that an event promises at a delta.

    Args:
        event: Everything that was released; std / clipping_norm in each Gaussian.
        delta: In (0, 1).
        relation: Which data sets are neighbours. It says nothing to an `RdpCurve`, whose
            neighbours are its maker's.
        accountant: "pld" (tight; an upper bound) or "rdp".
        conversion: For "rdp": "improved", or "classic" as in papers before 2020.

    Returns:
        Epsilon in nats: zero where nothing was released, infinity where something was
        released without protection, or the distance of an `Approximate` takes up all of delta.

    Raises:
        ValueError: If an argument is out of its range.
        UnsupportedError: If the accountant cannot read the event under the relation, or cannot
            resolve the delta. Never an infinity in place of an answer.

    Source: Canonne et al. 2020 (arXiv:2004.00010) for the improved conversion; Doroshenko et al.
    2022 (arXiv:2207.04380) for the discretisation of privacy loss distributions.
    """
    check_delta(delta)
    check_member(ACCOUNTANTS, accountant=accountant)
    check_member(CONVERSIONS, conversion=conversion)
    relation = Relation(relation)
    if isinstance(event, Approximate):
        options: Any = {"relation": relation, "accountant": accountant, "conversion": conversion}
        return event.epsilon(delta, lambda rest: epsilon(event.event, rest, **options))
    terms = terms_of(event)
    if not terms:
        return 0.0
    # One release without protection tells everything, whatever noise the others carry.
    if any(is_kind(leaf, Kind.NON_PRIVATE) for leaf in terms):
        return math.inf
    for leaf in terms:
        if not reads(accountant, leaf, relation):
            raise _unreadable(accountant, leaf, relation)
    key = tuple(terms.items())
    if accountant == "pld":
        return pld_epsilon(key, delta, relation)
    return rdp_epsilon(key, delta, relation, conversion)


def epsilon_bracket(
    event: Event, delta: float, relation: Relation = ADD_REMOVE
) -> tuple[float, float]:
    """Two epsilons between which the event's true one lies.

    Args:
        event: Everything that was released: Gaussian or Laplace noise, Poisson sampled or not.
        delta: In (0, 1).
        relation: Which data sets are neighbours.

    Returns:
        The epsilon of privacy losses that were rounded down, and of losses that were rounded up;
        the second is what `epsilon` returns.

    Raises:
        UnsupportedError: If the PLD accountant cannot read the event under the relation, or the
            event is approximate.
    """
    if isinstance(event, Approximate):
        raise UnsupportedError(f"There is no lower bound for {event!r}; `epsilon` bounds it above.")
    high = epsilon(event, delta, relation=relation)
    if high == 0 or math.isinf(high):
        return high, high
    return pld_lower(tuple(terms_of(event).items()), delta, Relation(relation), high), high


def group_epsilon(event: Event, size: int, delta: float, relation: Relation = ADD_REMOVE) -> float:
    """The epsilon that an event promises to a group of units that joins or leaves together.

    Not for runs with correlated noise (`BandedMatrix`): their event counts the turns of one row,
    and nothing is proved for rows whose turns fall between each other's.

    Args:
        event: Everything that was released; its sensitivity is that to one unit.
        size: How many units the group has at most; at least 1.
        delta: In (0, 1).
        relation: Which data sets are neighbours where one unit changes.

    Returns:
        Epsilon by the group's own privacy losses where they are known, else by converting the
        guarantee of one unit, which is looser.

    Raises:
        UnsupportedError: If no accountant can read the event under the relation, or no finite
            epsilon follows.

    Source: Dwork and Roth 2014, Theorem 2.2; Vadhan 2017, Lemma 2.2, for the conversion.
    """
    check_delta(delta)
    best = best_accountant(event, relation)
    try:
        of_all = of_group(event, size)
        if supports(of_all, relation, "pld"):
            return epsilon(of_all, delta, relation=relation)
    except UnsupportedError:
        pass  # no losses of its own: the guarantee of one unit is converted
    converted = []
    # Vadhan 2017, the proof of Lemma 2.2: where one unit has (e, d), k units have k e and the sum
    # d (1 + exp(e) + ... + exp((k - 1) e)) = d (exp(k e) - 1) / (exp(e) - 1). Every d gives a valid
    # pair, so many are tried and the smallest epsilon is taken.
    for power in range(1, 120):
        small = delta / size * 10 ** (-power / 8)
        try:
            single = epsilon(event, small, relation=relation, accountant=best)
        except UnsupportedError:  # the grid leaves out more probability than that
            break
        whole = size * single
        growth = (
            size if single == 0 else math.expm1(min(whole, 700.0)) / math.expm1(min(single, 700))
        )
        if small * growth <= delta and whole < 700:
            converted.append(whole)
    if not converted:
        raise UnsupportedError(
            f"No finite epsilon at delta={delta!r} follows for a group of {size}: a single unit's "
            "epsilon is too large. Use more noise or a smaller group."
        )
    return min(converted)


def supports(event: Event, relation: Relation, accountant: Accountant) -> bool:
    """Whether an accountant can read an event under a relation."""
    leaves = terms_of(exact_part(event))
    return all(reads(accountant, leaf, Relation(relation)) for leaf in leaves)


@lru_cache(maxsize=4096)
def reads(accountant: Accountant, leaf: Event, relation: Relation) -> bool:
    """Whether an accountant can read one release under a relation."""
    if is_kind(leaf, Kind.NON_PRIVATE):
        return True
    if isinstance(leaf, RdpCurve):
        return accountant == "rdp"
    # The library reads it under more relations than decision 014 proves.
    if is_kind(leaf, Kind.TRUNCATED_GAUSSIAN):
        return accountant == "pld" and relation is Relation.ZERO_OUT
    if accountant == "pld" and is_kind(leaf, Kind.FIXED_SIZE_SAMPLED):
        # Decision 018 is about a replaced row, and a sum with Gaussian noise.
        return relation is Relation.REPLACE_ONE and is_kind(leaf.event, Kind.GAUSSIAN)
    if accountant == "pld":
        return pld_supports(leaf, relation)
    return stated_for_rdp(leaf, relation) is not None and rdp_supports(leaf, relation)


def _unreadable(accountant: Accountant, leaf: Event, relation: Relation) -> UnsupportedError:
    """Why one release cannot be read, and who could read it under which relation."""
    names = {known: known.value.replace("_", "-") for known in Relation}
    possible = [
        f"{other.upper()} under {names[under]}"
        for under in sorted(Relation, key=lambda under: under != relation)
        for other in ACCOUNTANTS
        if reads(other, leaf, under)
    ]
    way_out = f"Possible: {'; '.join(possible)}." if possible else "No accountant here can."
    return UnsupportedError(
        f"The {accountant.upper()} accountant cannot read {leaf!r} under "
        f"{names[relation]} neighbours. {way_out}"
    )


def best_accountant(event: Event, relation: Relation = ADD_REMOVE) -> Accountant:
    """The accountant to ask: PLD where it can read the event under the relation, else RDP.

    Args:
        event: What was released.
        relation: Which data sets are neighbours.

    Returns:
        "pld" or "rdp".

    Raises:
        UnsupportedError: If neither can.
    """
    for accountant in ACCOUNTANTS:
        if supports(event, relation, accountant):
            return accountant
    leaves = terms_of(exact_part(event))
    culprit = next(leaf for leaf in leaves if not reads("rdp", leaf, Relation(relation)))
    raise _unreadable("rdp", culprit, Relation(relation))


def tightest(
    event: Event, delta: float, relation: Relation = ADD_REMOVE
) -> tuple[float, Accountant]:
    """The smallest epsilon that an accountant proves, and that accountant.

    It is the PLD accountant's wherever that can read the event. At deltas near what its grid leaves
    out, which make it dearer, and at smaller ones the RDP accountant is asked, too.

    Args:
        event: Everything that was released.
        delta: In (0, 1).
        relation: Which data sets are neighbours.

    Returns:
        Epsilon in nats, and "pld" or "rdp".

    Raises:
        UnsupportedError: If no accountant can read the event under the relation, or none that can
            resolves the delta.
    """
    best = best_accountant(event, relation)
    others = [a for a in ACCOUNTANTS if a != best and supports(event, relation, a)]
    try:
        value = epsilon(event, delta, relation=relation, accountant=best)
    except UnsupportedError:
        if not others:
            raise
        value = math.inf
    if delta >= FINE and math.isfinite(value):
        return value, best
    # Every accountant's epsilon holds, so that the smallest does.
    found = [(value, best)]
    found += [(epsilon(event, delta, relation=relation, accountant=a), a) for a in others]
    return min(found, key=lambda pair: pair[0])


def evaluate(event: Event, delta: float, relation: Relation = ADD_REMOVE) -> Evaluation:
    """The epsilon by the best accountant, and by the other one where it can read the event too.

    Args:
        event: Everything that was released.
        delta: In (0, 1).
        relation: Which data sets are neighbours.

    Returns:
        The epsilon, which accountant gave it, and the cross-check; see `tightest`.

    Raises:
        UnsupportedError: If no accountant can read the event under the relation and the delta.
    """
    value, best = tightest(event, delta, relation)
    if not terms_of(exact_part(event)) or math.isinf(value):
        return Evaluation(value, "none", None)
    other: Accountant = "rdp" if best == "pld" else "pld"
    if not supports(event, relation, other):
        return Evaluation(value, best, None)
    try:
        check = epsilon(event, delta, relation=relation, accountant=other)
    except UnsupportedError:  # it reads the event, and does not resolve the delta
        return Evaluation(value, best, None)
    return Evaluation(value, best, check)


def rdp_curve(event: Event, orders: Iterable[float], relation: Relation = ADD_REMOVE) -> RdpCurve:
    """The Rényi curve of an event.

    Args:
        event: What was released.
        orders: Rényi orders, each above 1.
        relation: Which data sets are neighbours.

    Returns:
        The curve at these orders.

    Raises:
        UnsupportedError: If the RDP accountant cannot read the event under the relation, or
            the event is approximate: no Rényi divergence says anything of a distance.
        ValueError: If the event holds a curve at other orders.
    """
    if isinstance(event, Approximate):
        raise UnsupportedError(event.no_curve)
    grid = tuple(float(order) for order in orders)
    terms = terms_of(event)
    for leaf in terms:
        if not reads("rdp", leaf, Relation(relation)):
            raise _unreadable("rdp", leaf, Relation(relation))
    total = total_rdp(tuple(terms.items()), grid, Relation(relation))
    return RdpCurve(grid, tuple(total.tolist()))
