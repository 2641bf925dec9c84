"""Events and their readers: what one release costs, and what many of them promise.

An event says what was released: Gaussian noise of std / clipping_norm, sampled at a rate, so many
times. It carries no neighbouring relation and no delta. `epsilon` reads it with one of two
accountants. **Their conventions differ, and only this file knows how:** for a replaced row the
PLD accountant doubles the sensitivity itself, the RDP accountant does not, so here it is given half
the noise. This is also the only file that imports dp_accounting, on first use.

The PLD accountant (privacy loss distributions) is tight. It rounds every distribution up, never
down: its epsilon is an upper bound, whatever the grid. The grid's step follows the size of the
answer, so that any epsilon from 0.01 to 1000 takes seconds and a bounded amount of memory.
The RDP accountant (Rényi) is looser, fast, and the only one for fixed-size samples and for curves.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, Relation
from privtrain.core.validate import (
    check_count,
    check_delta,
    check_member,
    check_non_negative,
    check_probability,
)
from privtrain.privacy.accountants import (
    Accountant,
    Event,
    leaf_rdp,
    pld_epsilon,
    rdp_epsilon,
    reads,
)
from privtrain.privacy.renyi import CONVERSIONS, Conversion, RdpCurve

__all__ = [
    "Accountant",
    "Conversion",
    "Evaluation",
    "Event",
    "RdpCurve",
    "best_accountant",
    "composed",
    "epsilon",
    "evaluate",
    "fixed_size_sampled",
    "gaussian_event",
    "laplace_event",
    "no_event",
    "non_private_event",
    "poisson_sampled",
    "rdp_curve",
    "repeated",
    "supports",
]

ACCOUNTANTS: tuple[Accountant, ...] = ("pld", "rdp")


@dataclass(frozen=True)
class Evaluation:
    """An epsilon, and how it was found.

    Args:
        epsilon: By the best accountant of the event and the relation; infinity where the
            event is not private.
        accountant: "pld" or "rdp"; "none" where nothing had to be computed.
        cross_check: The other accountant's value; None where it has none.
    """

    epsilon: float
    accountant: str
    cross_check: float | None


@cache
def _dp() -> Any:
    """dp_accounting, imported on first use: that takes a second."""
    import dp_accounting

    return dp_accounting


def non_private_event() -> Event:
    """A release without protection: its epsilon is infinite."""
    return _dp().NonPrivateDpEvent()


def no_event() -> Event:
    """No release at all: its epsilon is zero."""
    return _dp().NoOpDpEvent()


def gaussian_event(noise_multiplier: float) -> Event:
    """One sum with Gaussian noise.

    Args:
        noise_multiplier: Standard deviation of the noise / clipping norm; 0 is not private.

    Returns:
        The event.

    Raises:
        ValueError: If the multiplier is negative or not finite.
    """
    check_non_negative(noise_multiplier=noise_multiplier)
    if noise_multiplier == 0:
        return non_private_event()
    return _dp().GaussianDpEvent(float(noise_multiplier))


def laplace_event(noise_multiplier: float) -> Event:
    """One sum with Laplace noise.

    Args:
        noise_multiplier: Scale b of the noise / bound on the L1 norm; 0 is not private.

    Returns:
        The event.

    Raises:
        ValueError: If the multiplier is negative or not finite.
    """
    check_non_negative(noise_multiplier=noise_multiplier)
    if noise_multiplier == 0:
        return non_private_event()
    return _dp().LaplaceDpEvent(float(noise_multiplier))


def poisson_sampled(rate: float, event: Event) -> Event:
    """A release about a sample in which each unit takes part independently.

    Args:
        rate: Probability of taking part, in (0, 1]; at 1 the event itself is returned.
        event: The release about the sample.

    Returns:
        The event.

    Raises:
        ValueError: If the rate is not a probability.
        UnsupportedError: If the event holds an `RdpCurve`.
    """
    check_probability(rate=rate)
    if rate == 1 or _is_trivial(event):
        return event
    return _dp().PoissonSampledDpEvent(float(rate), _inside_sample(event))


def fixed_size_sampled(source_size: int, sample_size: int, event: Event) -> Event:
    """A release about a sample of fixed size, drawn without replacement.

    Only the RDP accountant reads it, and only under replace-one.

    Args:
        source_size: How many units there are.
        sample_size: How many of them are drawn.
        event: The release about the sample.

    Returns:
        The event.

    Raises:
        ValueError: If the sample is larger than its source.
        UnsupportedError: If the event holds an `RdpCurve`.
    """
    check_count(sample_size=sample_size)
    check_count(sample_size, source_size=source_size)
    if _is_trivial(event):
        return event
    return _dp().SampledWithoutReplacementDpEvent(source_size, sample_size, _inside_sample(event))


def repeated(event: Event, count: int) -> Event:
    """The same release made several times, each with fresh noise and a fresh sample.

    Args:
        event: One release.
        count: How many there are; 0 costs nothing.

    Returns:
        The event; a curve stays a curve.
    """
    check_count(0, count=count)
    if isinstance(event, RdpCurve):
        return event.repeated(count)
    if count == 0:
        return no_event()
    return event if count == 1 else _dp().SelfComposedDpEvent(event, count)


def composed(events: Iterable[Event]) -> Event:
    """Several releases, one after the other, each free to depend on what the earlier ones gave.

    Args:
        events: The releases; events and curves may be mixed.

    Returns:
        One event; curves alone become one curve.

    Raises:
        ValueError: If curves have different orders.
    """
    parts = tuple(events)
    if parts and all(isinstance(part, RdpCurve) for part in parts):
        return sum(parts[1:], start=parts[0])
    if len(parts) == 1:
        return parts[0]
    return _dp().ComposedDpEvent(parts) if parts else no_event()


def _is_trivial(event: Event) -> bool:
    """Whether sampling changes nothing: no release, or one without protection."""
    return isinstance(event, (_dp().NoOpDpEvent, _dp().NonPrivateDpEvent))


def _inside_sample(event: Event) -> Event:
    """What is released about a sample; several Gaussians about one sample are one Gaussian."""
    terms = _terms(event)
    if any(isinstance(leaf, RdpCurve) for leaf in terms):
        raise UnsupportedError(
            "A sample of an RdpCurve has no known cost: the curve does not say what was "
            "released. Charge the curve unsampled, or give the event behind it."
        )
    if terms and all(isinstance(leaf, _dp().GaussianDpEvent) for leaf in terms):
        precision = sum(count / leaf.noise_multiplier**2 for leaf, count in terms.items())
        return _dp().GaussianDpEvent(1 / math.sqrt(precision))
    return event


def _terms(event: Event) -> dict[Event, int]:
    """What a composition consists of: each distinct release, and how often it was made."""
    terms: dict[Event, int] = {}
    for leaf, count in _leaves(event, 1):
        terms[leaf] = terms.get(leaf, 0) + count
    return terms


def _leaves(event: Event, count: int) -> Iterator[tuple[Event, int]]:
    dp = _dp()
    if count == 0 or isinstance(event, dp.NoOpDpEvent):
        return
    if isinstance(event, dp.SelfComposedDpEvent):
        yield from _leaves(event.event, count * event.count)
    elif isinstance(event, dp.ComposedDpEvent):
        for part in event.events:
            yield from _leaves(part, count)
    elif getattr(getattr(event, "event", event), "noise_multiplier", None) == 0:
        yield dp.NonPrivateDpEvent(), count
    elif isinstance(event, (dp.DpEvent, RdpCurve)):
        yield event, count
    else:
        raise ValueError(f"Expected event={event!r} to be an accounting event or an RdpCurve.")


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
        released without protection.

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
    terms = _terms(event)
    if not terms:
        return 0.0
    if any(isinstance(leaf, _dp().NonPrivateDpEvent) for leaf in terms):
        return math.inf
    for leaf in terms:
        if not reads(_dp(), accountant, leaf, relation):
            raise UnsupportedError(_unsupported(accountant, leaf, relation))
    key = tuple(terms.items())
    if accountant == "pld":
        return pld_epsilon(_dp(), key, delta, relation)
    return rdp_epsilon(_dp(), key, delta, relation, conversion)


def supports(event: Event, relation: Relation, accountant: Accountant) -> bool:
    """Whether an accountant can read an event under a relation."""
    return all(reads(_dp(), accountant, leaf, Relation(relation)) for leaf in _terms(event))


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
    culprit = next(e for e in _terms(event) if not reads(_dp(), "rdp", e, Relation(relation)))
    raise UnsupportedError(_unsupported("rdp", culprit, Relation(relation)))


def evaluate(event: Event, delta: float, relation: Relation = ADD_REMOVE) -> Evaluation:
    """The epsilon by the best accountant, and by the other one where it can read the event too.

    Args:
        event: Everything that was released.
        delta: In (0, 1).
        relation: Which data sets are neighbours.

    Returns:
        The epsilon, which accountant gave it, and the cross-check.

    Raises:
        UnsupportedError: If no accountant can read the event under the relation.
    """
    best = best_accountant(event, relation)
    value = epsilon(event, delta, relation=relation, accountant=best)
    if not _terms(event) or math.isinf(value):
        return Evaluation(value, "none", None)
    other: Accountant = "rdp" if best == "pld" else "pld"
    if not supports(event, relation, other):
        return Evaluation(value, best, None)
    return Evaluation(value, best, epsilon(event, delta, relation=relation, accountant=other))


def rdp_curve(event: Event, orders: Iterable[float], relation: Relation = ADD_REMOVE) -> RdpCurve:
    """The Rényi curve of an event.

    Args:
        event: What was released.
        orders: Rényi orders, each above 1.
        relation: Which data sets are neighbours.

    Returns:
        The curve at these orders.

    Raises:
        UnsupportedError: If the RDP accountant cannot read the event under the relation.
        ValueError: If the event holds a curve at other orders.
    """
    grid = tuple(float(order) for order in orders)
    total = np.zeros(len(grid))
    for leaf, count in _terms(event).items():
        if not reads(_dp(), "rdp", leaf, Relation(relation)):
            raise UnsupportedError(_unsupported("rdp", leaf, Relation(relation)))
        total += count * leaf_rdp(_dp(), leaf, grid, Relation(relation))
    return RdpCurve(grid, tuple(total.tolist()))


_RELATION_NAMES = {relation: relation.value.replace("_", "-") for relation in Relation}


def _unsupported(accountant: Accountant, leaf: Event, relation: Relation) -> str:
    possible = [
        f"accountant={other!r} under {_RELATION_NAMES[under]}"
        for under in sorted(Relation, key=lambda under: under != relation)
        for other in ACCOUNTANTS
        if reads(_dp(), other, leaf, under)
    ]
    way_out = f"Possible: {'; '.join(possible)}." if possible else "No accountant here can."
    return (
        f"The {accountant.upper()} accountant cannot read {leaf!r} under "
        f"{_RELATION_NAMES[relation]} neighbours. {way_out}"
    )
