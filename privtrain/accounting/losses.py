"""The privacy losses of releases: what the PLD accountant reads of an event.

A privacy loss distribution is rounded to a grid, up for an upper bound of epsilon and down for a
lower one, and convolved: losses of independent releases add up. Tight, whatever the noise.

Source: Koskela, Jälkö and Honkela 2020 (arXiv:1906.03049) for the accountant; Doroshenko et al.
2022 (arXiv:2207.04380) for the rounding.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from privtrain.accounting import library
from privtrain.accounting.convolution import self_composed
from privtrain.accounting.event import Event, Terms
from privtrain.accounting.grid import STEP, grid_step
from privtrain.accounting.library import Kind, Losses, is_kind, make
from privtrain.accounting.mixtures import inverses
from privtrain.accounting.samples import Told, fixed_size_losses, truncated_losses
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import Relation

_FARTHEST_EPSILON = 1e9

FINE = 1e-12
"""The delta below which less probability is left out, and the RDP accountant is asked, too."""

_FINEST, _FINEST_OF_SEVERAL = 1e-21, 1e-14
"""The smallest deltas: a single loss is cut off where exp(-50) is left, and a convolution of losses
of several kinds has noise near 1e-16."""


@dataclass(frozen=True)
class _Reading:
    """How losses are put on a grid: its step, up or down, by which proof, and what is left out."""

    relation: Relation
    step: float
    pessimistic: bool = True
    told: Told = Told.OTHERS
    left_out: float = 1e-15


@lru_cache(maxsize=4096)
def pld_epsilon(terms: Terms, delta: float, relation: Relation) -> float:
    """Epsilon by privacy loss distributions: an upper bound whatever the grid."""
    if delta < (_FINEST if len(terms) == 1 else _FINEST_OF_SEVERAL):
        raise _unresolved(delta)
    step, left_out = grid_step(terms, relation), 1e-15 if delta >= FINE else 1e-20
    readings = [_Reading(relation, step, told=t, left_out=left_out) for t in _proofs(terms)]
    value = math.inf
    for reading in readings:
        # Beyond the range of exp, epsilon is in the millions.
        with suppress(OverflowError):
            losses = _composed(terms, reading)
            # A delta that is mostly spent on what was left out shows an epsilon that is mostly so.
            if delta >= 2 * library.infinite_part(losses):
                value = min(value, _epsilon_at(losses, delta))
    if not math.isfinite(value):
        raise _unresolved(delta)
    return max(0.0, value)


def _unresolved(delta: float) -> UnsupportedError:
    return UnsupportedError(
        f"The PLD accountant cannot resolve delta={delta!r} for this event: its grid leaves out "
        "more probability, or the noise is far too small. Use a larger delta, or more noise."
    )


@lru_cache(maxsize=256)
def pld_lower(terms: Terms, delta: float, relation: Relation, high: float) -> float:
    """A lower bound of the true epsilon, near the upper one, `high`: all losses rounded down."""
    step = grid_step(terms, relation)
    # Rounding takes half a step from each loss: 1% of epsilon in all, where the memory allows it.
    wanted = 0.02 * high / sum(count for _, count in terms)
    step *= min(1.0, max(wanted / step, 1 / 20))
    whole = _whole(terms, _Reading(relation, step, pessimistic=False))
    return max(0.0, _epsilon_at(whole, delta))


def _proofs(terms: Terms) -> tuple[Told, ...]:
    """The proofs by which releases can be read; every one gives an upper bound."""
    cut = any(is_kind(leaf, Kind.TRUNCATED_GAUSSIAN) for leaf, _ in terms)
    return tuple(Told) if cut else (Told.OTHERS,)


@lru_cache(maxsize=len(Told))
def _composed(terms: Terms, reading: _Reading) -> Losses:
    """The losses of all releases, rounded up.

    The last composition stays: a curve asks it for one epsilon after the other.
    """
    return _whole(terms, reading)


def _whole(terms: Terms, reading: _Reading) -> Losses:
    """The privacy losses of all releases, rounded up or down to one grid."""
    parts = [_losses(leaf, count, reading) for leaf, count in terms]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return whole


def _losses(leaf: Event, count: int, reading: _Reading) -> Losses:
    """The privacy losses of one release that is made several times."""
    if is_kind(leaf, Kind.GAUSSIAN):
        # Several Gaussians are one of less noise: exact, and no convolution at all.
        leaf, count = make(Kind.GAUSSIAN, leaf.noise_multiplier / math.sqrt(count)), 1
    once = _losses_once(leaf, reading)
    if once is not None:
        return self_composed(once, count, reading.left_out)
    if not reading.pessimistic:
        raise UnsupportedError(f"There is no lower bound for {leaf!r}; `epsilon` bounds it above.")
    return library.pld_of(leaf, count, reading.relation, reading.step)


@lru_cache(maxsize=4)
def _losses_once(leaf: Event, reading: _Reading) -> Losses | None:
    """The privacy losses of one release; None where only the accountant knows them.

    They stay, since one run asks for several numbers of them.
    """
    step, pessimistic = reading.step, reading.pessimistic
    rate, inner = 1.0, leaf
    if is_kind(leaf, Kind.POISSON_SAMPLED) and leaf.sampling_probability > 0:
        rate, inner = leaf.sampling_probability, leaf.event
    if is_kind(inner, Kind.GAUSSIAN):
        noise = inner.noise_multiplier
        return library.gaussian_losses(noise, rate, reading.relation, step, pessimistic=pessimistic)
    if is_kind(inner, Kind.LAPLACE):
        # No relation: replace-one is not read for it, and the other two are the same.
        return library.laplace_losses(inner.noise_multiplier, rate, step, pessimistic=pessimistic)
    if is_kind(inner, Kind.GAUSSIAN_MIXTURE):
        return library.mixture_losses(inner, step, inverses, pessimistic=pessimistic)
    if is_kind(inner, Kind.FIXED_SIZE_SAMPLED):
        sizes, noise = (inner.source_dataset_size, inner.sample_size), inner.event.noise_multiplier
        return fixed_size_losses(*sizes, noise, step, pessimistic=pessimistic)
    # A truncated sample's losses are known from above only (decision 014).
    if is_kind(inner, Kind.TRUNCATED_GAUSSIAN) and pessimistic:
        return truncated_losses(inner, step, reading.told)
    return None


def _epsilon_at(losses: Losses, delta: float) -> float:
    """The epsilon of a delta; infinity where none meets it."""
    try:
        with np.errstate(over="raise"):
            return float(losses.get_epsilon_for_delta(delta))
    except FloatingPointError:
        # Its sum of exp(-loss) is no normal number for losses near 700. Its delta of an epsilon has
        # no such sum, so that is searched; the end that meets the delta is the answer.
        pass
    low, high = 0.0, 1.0
    while losses.get_delta_for_epsilon(high) > delta:
        low, high = high, 2 * high
        if high > _FARTHEST_EPSILON:
            return math.inf
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (
            (middle, high) if losses.get_delta_for_epsilon(middle) > delta else (low, middle)
        )
    return high
