"""dp_accounting, for all of privtrain: the only file that imports it, on first use.

Elsewhere events are made and told apart by `Kind`, and their fields are read by name. What the
library computes about them, its enumerations and its private members stay in this file.
"""

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import Relation

Array = NDArray[np.float64]


class Kind(Enum):
    """The kinds of events that privtrain makes or tells apart, under the library's names."""

    ANY = "DpEvent"
    NO_OP = "NoOpDpEvent"
    NON_PRIVATE = "NonPrivateDpEvent"
    GAUSSIAN = "GaussianDpEvent"
    LAPLACE = "LaplaceDpEvent"
    GAUSSIAN_MIXTURE = "MixtureOfGaussiansDpEvent"
    RANDOMIZED_RESPONSE = "RandomizedResponseDpEvent"
    POISSON_SAMPLED = "PoissonSampledDpEvent"
    FIXED_SIZE_SAMPLED = "SampledWithoutReplacementDpEvent"
    TRUNCATED_GAUSSIAN = "TruncatedSubsampledGaussianDpEvent"
    REPEATED = "SelfComposedDpEvent"
    COMPOSED = "ComposedDpEvent"


Losses: TypeAlias = Any
"""A distribution of privacy losses on a grid, in both directions of neighbours: a
`PrivacyLossDistribution` of the library, of which the public methods are called elsewhere."""


class GridLosses(NamedTuple):
    """Privacy losses in one direction: multiples of a step, each with its probability."""

    step: float
    lowest: int  # times the step: the loss of the first probability
    probabilities: Array
    infinite: float
    pessimistic: bool


@cache
def _library() -> Any:
    # A second to load: programs that account for nothing do not pay it.
    import dp_accounting

    return dp_accounting


@cache
def _class_of(kind: Kind) -> Any:
    return getattr(_library().dp_event, kind.value)


def make(kind: Kind, *fields: Any) -> Any:
    """An event of a kind, from its fields in the library's order."""
    return _class_of(kind)(*fields)


def is_kind(event: Any, *kinds: Kind) -> bool:
    """Whether an event is of one of several kinds."""
    return isinstance(event, tuple(map(_class_of, kinds)))


def event_class(name: str) -> Any | None:
    """The library's class of events under a name; None where no event has that name."""
    named = getattr(_library().dp_event, name, None)
    is_event = isinstance(named, type) and issubclass(named, _class_of(Kind.ANY))
    return named if is_event else None


def field_names(event: Any) -> tuple[str, ...]:
    """The names of an event's fields, in the order in which it is made; empty of anything else."""
    # Events are attrs classes, which none of privtrain's own values is.
    return tuple(field.name for field in getattr(event, "__attrs_attrs__", ()))


def _neighbours(relation: Relation) -> Any:
    names = _library().NeighboringRelation
    return {
        Relation.ADD_REMOVE: names.ADD_OR_REMOVE_ONE,
        Relation.REPLACE_ONE: names.REPLACE_ONE,
        Relation.ZERO_OUT: names.REPLACE_SPECIAL,
    }[relation]


# Rényi divergences


def rdp_supports(event: Any, relation: Relation) -> bool:
    """Whether the library's RDP accountant reads an event under a relation."""
    # Its answer does not depend on the orders.
    return bool(_library().rdp.RdpAccountant([2.0], _neighbours(relation)).supports(event))


def rdp_of(event: Any, orders: tuple[float, ...], relation: Relation) -> Array:
    """Rényi divergences of an event by the library's RDP accountant, shape `(orders,)`."""
    accountant = _library().rdp.RdpAccountant(orders, _neighbours(relation))
    # The note that an order was left out is silenced: an order left out makes nothing smaller.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        accountant.compose(event)
    except ValueError as error:  # a logarithm of nothing, where noise is 1e8 and more
        raise UnsupportedError(
            f"The RDP accountant fails on {event!r} ({error}). Use less noise, or another rate."
        ) from None
    finally:
        logger.setLevel(level)
    return np.asarray(accountant.rdp)


# Privacy loss distributions


def pld_supports(event: Any, relation: Relation) -> bool:
    """Whether the library's PLD accountant reads an event under a relation."""
    return bool(_library().pld.PLDAccountant(_neighbours(relation)).supports(event))


def pld_of(event: Any, count: int, relation: Relation, step: float) -> Losses:
    """The losses of an event that is repeated, rounded up by the library's PLD accountant."""
    accountant = _library().pld.PLDAccountant(_neighbours(relation), step)
    accountant.compose(event, count)
    return accountant._pld


def _rounding(step: float, pessimistic: bool) -> dict[str, Any]:
    return {
        "pessimistic_estimate": pessimistic,
        "value_discretization_interval": step,
        # Connecting the dots (Doroshenko et al. 2022) only rounds up.
        "use_connect_dots": pessimistic,
    }


def gaussian_losses(
    noise_multiplier: float, rate: float, relation: Relation, step: float, *, pessimistic: bool
) -> Losses:
    """The losses of one Gaussian release about a Poisson sample; everybody's at rate 1."""
    return _library().pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=rate,
        neighboring_relation=_neighbours(relation),
        **_rounding(step, pessimistic),
    )


def laplace_losses(
    noise_multiplier: float, rate: float, step: float, *, pessimistic: bool
) -> Losses:
    """The losses of one Laplace release about a Poisson sample, under add/remove or zero-out."""
    return _library().pld.privacy_loss_distribution.from_laplace_mechanism(
        noise_multiplier, sampling_prob=rate, **_rounding(step, pessimistic)
    )


def no_losses(step: float) -> Losses:
    """The losses of a release that shows nothing, rounded up."""
    return _library().pld.privacy_loss_distribution.identity(step)


def mixed_losses(parts: Sequence[tuple[float, Losses]]) -> Losses:
    """The losses of a release that is one of several, by a public draw; weights add up to one."""
    total, mixed = 0.0, parts[0][1]
    for weight, losses in parts:
        total += weight
        mixed = losses.compute_mixture(mixed, weight / total) if weight > 0 else mixed
    return mixed


def mixture_losses(
    event: Any, step: float, inverses: Callable[..., Array], *, pessimistic: bool
) -> Losses:
    """The losses of one mixture of Gaussians, whose places another search finds.

    Args:
        event: A `GAUSSIAN_MIXTURE`.
        step: Distance of the losses on the grid, in nats; positive.
        inverses: The search; see `privtrain.accounting.mixtures.inverses`.
        pessimistic: Whether losses are rounded up; else down.

    Returns:
        The losses where a unit is removed, and where it is added.
    """
    mechanisms = _library().pld.privacy_loss_mechanism
    distributions = _library().pld.privacy_loss_distribution

    def one_way(direction: Any) -> Any:
        mixture = mechanisms.MixtureGaussianPrivacyLoss(
            event.standard_deviation,
            event.sensitivities,
            event.sampling_probs,
            pessimistic_estimate=pessimistic,
            adjacency_type=direction,
        )
        constants = mixture._precompute_privacy_loss_constants
        slopes = mixture.sensitivities / mixture._variance
        added = direction is mechanisms.AdjacencyType.ADD

        def search(losses: Array, bounds: tuple[float, float], precision: float = 1e-6) -> Array:
            return inverses(constants, slopes, losses, bounds, added=added, precision=precision)

        # The library's own search is replaced on this one object; its class stays as it is.
        mixture._inverse_privacy_losses_with_range = search
        return distributions._create_pld_pmf_from_monotone_privacy_loss(
            mixture, **_rounding(step, pessimistic)
        )

    directions = mechanisms.AdjacencyType.REMOVE, mechanisms.AdjacencyType.ADD
    return distributions.PrivacyLossDistribution(*map(one_way, directions))


def infinite_part(losses: Any) -> float:
    """The probability of an infinite loss, in the direction where it is larger."""
    return float(max(losses._pmf_remove._infinity_mass, losses._pmf_add._infinity_mass))


def each_direction(losses: Any, change: Callable[[GridLosses], GridLosses]) -> Losses:
    """Losses whose distribution was changed, in each direction of neighbours."""
    remove = _changed(losses._pmf_remove, change)
    # Of symmetric losses only one direction is stored.
    both = (remove,) if losses._symmetric else (remove, _changed(losses._pmf_add, change))
    return type(losses)(*both)


def from_removed(losses: Any, change: Callable[[GridLosses], GridLosses]) -> Losses:
    """The losses of both directions, from those where a unit is removed."""
    return type(losses)(_changed(losses._pmf_remove, change))


def _changed(direction: Any, change: Callable[[GridLosses], GridLosses]) -> Any:
    dense = direction.to_dense_pmf()
    fields = dense._discretization, dense._lower_loss, dense._probs, dense._infinity_mass
    return type(dense)(*change(GridLosses(*fields, dense._pessimistic_estimate)))


def self_convolved(probabilities: Array, count: int, cut_off: float) -> tuple[int, Array]:
    """Probabilities of the sums of independent numbers, by Fourier transform.

    Args:
        probabilities: Those of 0, 1, 2, ..., shape `(numbers,)`.
        count: How many numbers are added.
        cut_off: How much probability may be left out at the ends.

    Returns:
        The first sum, and the probabilities from there on; some may be negative by rounding.
    """
    first, summed = _library().pld.common.self_convolve(probabilities, count, cut_off)
    return int(first), summed
