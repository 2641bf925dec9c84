"""The grid to which privacy losses are rounded, and where to look for an epsilon.

Both follow from the size of the answer, which Rényi divergences of stand-ins estimate in
milliseconds. Nothing here bounds anything: a poor estimate costs time, memory or tightness.
"""

import math

import numpy as np

from privtrain.accounting.approximate import exact_part
from privtrain.accounting.divergences import ORDERS, leaf_rdp, total_rdp
from privtrain.accounting.event import Event, Terms, terms_of
from privtrain.accounting.library import Kind, is_kind, make
from privtrain.accounting.renyi import rdp_to_epsilon
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, Relation

STEP = 1e-3
"""The step of the grid as a rule, in nats."""

_STEP_PER_DEVIATION = 0.4
"""The largest step, in standard deviations of a single loss: a variance of 0.4^2 / 4 = 4% more."""

_GRID_POINTS = 5e5
"""How many losses a grid may hold before its step grows."""

_SEARCHED_POINTS = 1e4
"""How many losses of one mixture are searched for, as a rule."""

_TAIL = 1e-15
"""The probability beyond which losses are cut off."""


def grid_step(terms: Terms, relation: Relation) -> float:
    """The step of the grid of privacy losses, in nats.

    0.001 as a rule. Finer where a single loss deviates less than that: rounding to a grid adds up
    to step^2 / 4 to the variance of each loss, here at most 4% (and 2% to epsilon). Coarser where
    the losses reach so far that the grid would fill the memory, and for mixtures, where each point
    is searched for, as far as the first rule lets it. No choice makes the answer too small.
    """
    variance, roundings, reach, usual = 0.0, 0, 0.0, STEP
    total = np.zeros(len(ORDERS))
    for leaf, count in terms:
        scaled, merges = _as_scaled(leaf, relation)
        rdp = count * leaf_rdp(scaled, ORDERS, ADD_REMOVE)
        total += rdp
        # At order 2 a Gaussian's divergence is the variance of its loss, 1 / z^2.
        variance += float(rdp[ORDERS.index(2.0)])
        roundings += 1 if merges else count
        reach = max(reach, _reach(scaled, count if merges else 1))
        if is_kind(leaf, Kind.GAUSSIAN_MIXTURE):
            widest = make(Kind.GAUSSIAN, leaf.standard_deviation / max(leaf.sensitivities))
            usual = max(usual, _reach(widest, 1) / _SEARCHED_POINTS)
    # The sum of all losses reaches about as far as their epsilon where delta is the tail.
    reach += rdp_to_epsilon(total, ORDERS, _TAIL, "improved")
    fine = _STEP_PER_DEVIATION * math.sqrt(variance / roundings)
    return max(min(usual, fine), reach / _GRID_POINTS)


def rough_epsilon(event: Event, delta: float, relation: Relation = ADD_REMOVE) -> float:
    """An estimate of an event's epsilon, in milliseconds: where to look for it, never a bound.

    Args:
        event: Everything that was released, readable by the PLD accountant.
        delta: In (0, 1).
        relation: Which data sets are neighbours.

    Returns:
        Epsilon by Rényi divergences of Gaussians of about the same size.
    """
    terms = tuple(terms_of(exact_part(event)).items())
    if any(is_kind(leaf, Kind.NON_PRIVATE) for leaf, _ in terms):
        return math.inf
    stand_ins = tuple((_as_scaled(leaf, Relation(relation))[0], count) for leaf, count in terms)
    # The stand-ins carry the factor of the relation in their noise.
    return rdp_to_epsilon(total_rdp(stand_ins, ORDERS, ADD_REMOVE), ORDERS, delta, "improved")


def _as_scaled(leaf: Event, relation: Relation) -> tuple[Event, bool]:
    """A stand-in of about the same size that RDP reads, and whether repeats become one release."""
    factor = 2.0 if relation == REPLACE_ONE else 1.0
    if is_kind(leaf, Kind.POISSON_SAMPLED):
        inner, _ = _as_scaled(leaf.event, relation)
        if is_kind(inner, Kind.GAUSSIAN):
            return make(Kind.POISSON_SAMPLED, leaf.sampling_probability, inner), False
        return inner, False
    if is_kind(leaf, Kind.GAUSSIAN, Kind.LAPLACE):
        return type(leaf)(leaf.noise_multiplier / factor), is_kind(leaf, Kind.GAUSSIAN)
    if is_kind(leaf, Kind.FIXED_SIZE_SAMPLED):
        inner, rate = (
            _as_scaled(leaf.event, relation)[0],
            leaf.sample_size / leaf.source_dataset_size,
        )
        return make(Kind.POISSON_SAMPLED, rate, inner), False
    if is_kind(leaf, Kind.TRUNCATED_GAUSSIAN):
        inner = make(Kind.GAUSSIAN, leaf.noise_multiplier)
        return make(Kind.POISSON_SAMPLED, leaf.sampling_probability, inner), False
    if is_kind(leaf, Kind.GAUSSIAN_MIXTURE):
        # A Gaussian of the root mean square of the sensitivities, sampled as often as any is > 0.
        pairs = list(zip(leaf.sensitivities, leaf.sampling_probs, strict=True))
        present = max(1e-12, sum(chance for size, chance in pairs if size > 0))
        square = max(1e-12, sum(chance * size**2 for size, chance in pairs) / present)
        inner = make(Kind.GAUSSIAN, leaf.standard_deviation / (factor * math.sqrt(square)))
        return make(Kind.POISSON_SAMPLED, min(1.0, present), inner), False
    noise = getattr(leaf, "noise_multiplier", None) or getattr(leaf, "standard_deviation", None)
    return make(Kind.GAUSSIAN, (noise or 1.0) / factor), False


def _reach(leaf: Event, count: int) -> float:
    """The largest loss that is not cut off, of one Gaussian or Laplace release."""
    released: Event = getattr(leaf, "event", leaf)
    noise = released.noise_multiplier / math.sqrt(count)
    # A Gaussian's loss is normal: mean 1 / (2 z^2), deviation 1 / z; ten of them are below 1e-15.
    return float(0.5 / noise**2 + 10 / noise)
