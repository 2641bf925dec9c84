"""Events: what was released, without what it promises.

An event says: Gaussian noise of std / clipping_norm, sampled at a rate, so many times. It carries
no neighbouring relation and no delta.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from privtrain.accounting.approximate import Approximate, exact_part, holds_distance, total_distance
from privtrain.accounting.library import Kind, is_kind, make
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.errors import UnsupportedError
from privtrain.core.trainer import Charge
from privtrain.core.validate import check_count, check_non_negative, check_probability

Event: TypeAlias = Any
"""A dp_accounting event (an untyped package), an `RdpCurve`, an `Approximate`, or several."""

Terms: TypeAlias = tuple[tuple[Event, int], ...]
"""Distinct releases, and how often each was made."""


def non_private_event() -> Event:
    """A release without protection: its epsilon is infinite."""
    return make(Kind.NON_PRIVATE)


def no_event() -> Event:
    """No release at all: its epsilon is zero."""
    return make(Kind.NO_OP)


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
    return make(Kind.GAUSSIAN, float(noise_multiplier))


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
    return make(Kind.LAPLACE, float(noise_multiplier))


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
    if isinstance(event, Approximate):
        return event.map(lambda exact: poisson_sampled(rate, exact))
    if rate == 1 or _is_trivial(event):
        return event
    return make(Kind.POISSON_SAMPLED, float(rate), _inside_sample(event))


def fixed_size_sampled(source_size: int, sample_size: int, event: Event) -> Event:
    """A release about a sample of fixed size, drawn without replacement.

    It is read under replace-one only; by privacy losses where the noise is Gaussian.

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
    if isinstance(event, Approximate):
        return event.map(lambda exact: fixed_size_sampled(source_size, sample_size, exact))
    if _is_trivial(event):
        return event
    return make(Kind.FIXED_SIZE_SAMPLED, source_size, sample_size, _inside_sample(event))


def truncated_poisson_sampled(source_size: int, rate: float, largest: int, event: Event) -> Event:
    """A release about a Poisson sample that is cut to a largest size by a random choice.

    Only the PLD accountant reads it, and only under zero-out: how many units there are is public.

    Args:
        source_size: How many units there are.
        rate: Probability of taking part before the cut, in (0, 1].
        largest: How many units a sample has at most; at least 1.
        event: The release about the sample: one Gaussian, or several.

    Returns:
        The event.

    Raises:
        ValueError: If a figure is out of its range.
        UnsupportedError: If the event is not Gaussian.

    Source: arXiv:2508.15089; proved again in docs/decisions/014-truncated-samples.md.
    """
    check_count(source_size=source_size, largest=largest)
    check_probability(rate=rate)
    if isinstance(event, Approximate):
        return event.map(lambda exact: truncated_poisson_sampled(source_size, rate, largest, exact))
    if _is_trivial(event):
        return event
    inner = _inside_sample(event)
    if not is_kind(inner, Kind.GAUSSIAN):
        raise UnsupportedError(
            f"The cost of a truncated sample is known for Gaussian noise only, not for {event!r}. "
            "Use Poisson or fixed-size samples."
        )
    # A cut that cannot happen is a Poisson sample, which more readings and relations know.
    if largest >= source_size:
        return poisson_sampled(rate, inner)
    return make(Kind.TRUNCATED_GAUSSIAN, source_size, float(rate), largest, inner.noise_multiplier)


def of_group(event: Event, size: int) -> Event:
    """The same releases, as they look to a group of units that joins or leaves together.

    Args:
        event: Releases in which one unit's contribution is bounded.
        size: Upper bound on the units of a group; at least 1.

    Returns:
        Releases in which the group's contribution is bounded: the noise of one unit over the size,
        and under Poisson sampling a mixture over how many of the group take part.

    Raises:
        UnsupportedError: If a release is of a kind for which that is not known; `group_epsilon`
            finds a looser figure.

    Source: Choquette-Choo et al. 2023 (arXiv:2310.15526), mixtures of Gaussians.
    """
    check_count(size=size)
    if size == 1:
        return event
    if isinstance(event, Approximate):
        return event.map(lambda exact: of_group(exact, size))
    parts = [repeated(_leaf_of_group(leaf, size), n) for leaf, n in terms_of(event).items()]
    return composed(parts)


def _leaf_of_group(leaf: Event, size: int) -> Event:
    if is_kind(leaf, Kind.NON_PRIVATE):
        return leaf
    if is_kind(leaf, Kind.GAUSSIAN, Kind.LAPLACE):
        # Each unit moves the sum by at most C, so the group moves it by at most `size` times that.
        return type(leaf)(leaf.noise_multiplier / size)
    sampled = is_kind(leaf, Kind.POISSON_SAMPLED)
    if sampled and is_kind(leaf.event, Kind.GAUSSIAN):
        from scipy.stats import binom

        # How many of the group take part is binomial; each of them moves the sum by one more.
        chances = [float(c) for c in binom.pmf(range(size + 1), size, leaf.sampling_probability)]
        present = [number for number, chance in enumerate(chances) if chance > 0]
        return make(
            Kind.GAUSSIAN_MIXTURE,
            leaf.event.noise_multiplier,
            tuple(float(number) for number in present),
            tuple(chances[number] for number in present),
        )
    raise UnsupportedError(
        f"What {leaf!r} shows of a group of {size} is not known exactly. Use Poisson batches with "
        "Gaussian noise, or group_epsilon, which is looser."
    )


def repeated(event: Event, count: int) -> Event:
    """The same release made several times, each with fresh noise and a fresh sample.

    Args:
        event: One release.
        count: How many there are; 0 costs nothing.

    Returns:
        The event; a curve stays a curve.
    """
    check_count(0, count=count)
    if isinstance(event, Approximate):
        # Distances of releases add up, adaptive ones included (decision 013).
        return Approximate(repeated(event.event, count), count * event.distance)
    if isinstance(event, RdpCurve):
        return event.repeated(count)
    if count == 0:
        return no_event()
    return event if count == 1 else make(Kind.REPEATED, event, count)


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
    if any(isinstance(part, Approximate) for part in parts):
        return Approximate(composed(map(exact_part, parts)), total_distance(parts))
    if parts and all(isinstance(part, RdpCurve) for part in parts):
        return sum(parts[1:], start=parts[0])
    if len(parts) == 1:
        return parts[0]
    return make(Kind.COMPOSED, parts) if parts else no_event()


def charged(charges: Mapping[str, Charge], counts: Mapping[str, int] | None = None) -> Event:
    """Everything that a run released, of all kinds.

    Args:
        charges: Kind of release to what one costs.
        counts: Kind to how many were made, 0 where it is not named; None for the planned numbers.

    Returns:
        One event; see `composed`.
    """
    made = {kind: charge.count for kind, charge in charges.items()} if counts is None else counts
    return composed(repeated(charge.event, made.get(kind, 0)) for kind, charge in charges.items())


def _is_trivial(event: Event) -> bool:
    """Whether sampling changes nothing: no release, or one without protection."""
    return is_kind(event, Kind.NO_OP, Kind.NON_PRIVATE)


def _inside_sample(event: Event) -> Event:
    """What is released about a sample; several Gaussians about one sample are one Gaussian."""
    terms = terms_of(event)
    if any(isinstance(leaf, RdpCurve) for leaf in terms):
        raise UnsupportedError(
            "A sample of an RdpCurve has no known cost: the curve does not say what was "
            "released. Charge the curve unsampled, or give the event behind it."
        )
    if terms and all(is_kind(leaf, Kind.GAUSSIAN) for leaf in terms):
        # One sum with noises z_i is as informative as one of precision sum 1 / z_i^2.
        precision = sum(count / leaf.noise_multiplier**2 for leaf, count in terms.items())
        return make(Kind.GAUSSIAN, 1 / math.sqrt(precision))
    return event


def terms_of(event: Event) -> dict[Event, int]:
    """What a composition consists of: each distinct release, and how often it was made."""
    counts: dict[Event, int] = {}
    # Equal releases are counted, however deep they stand: one convolution serves all of them.
    for leaf, count in _leaves(event, 1):
        counts[leaf] = counts.get(leaf, 0) + count
    return counts


def relies_on_sample(event: Event) -> bool:
    """Whether a guarantee for an event counts on a sample that its observer does not know.

    A curve does not say what was released: only exact sampled events are told.
    """
    kinds = (
        Kind.POISSON_SAMPLED,
        Kind.FIXED_SIZE_SAMPLED,
        Kind.TRUNCATED_GAUSSIAN,
        Kind.GAUSSIAN_MIXTURE,
    )
    return any(is_kind(leaf, *kinds) for leaf in terms_of(exact_part(event)))


def _leaves(event: Event, count: int) -> Iterator[tuple[Event, int]]:
    """Each release inside an event, and how often it is made there."""
    if count == 0 or is_kind(event, Kind.NO_OP):
        return
    if is_kind(event, Kind.REPEATED):
        yield from _leaves(event.event, count * event.count)
    elif is_kind(event, Kind.COMPOSED):
        for part in event.events:
            yield from _leaves(part, count)
    elif getattr(getattr(event, "event", event), "noise_multiplier", None) == 0:
        # Made by the library itself, not by the functions above: accountants would divide by it.
        yield make(Kind.NON_PRIVATE), count
    elif (is_kind(event, Kind.ANY) or isinstance(event, RdpCurve)) and not holds_distance(event):
        yield event, count
    else:
        raise ValueError(f"Expected event={event!r} to be an accounting event or an RdpCurve.")
