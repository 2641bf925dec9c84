"""The two readers of events, behind `privtrain.accounting.epsilon`.

Every function takes dp_accounting as its first argument: `events` alone imports it. Here events
are already taken apart into distinct releases, each with the number of times it was made.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from privtrain.accounting.convolution import self_composed
from privtrain.accounting.mixtures import mixture_losses
from privtrain.accounting.renyi import Conversion, RdpCurve, rdp_to_epsilon
from privtrain.core.errors import UnsupportedError
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, Relation

Array = NDArray[np.float64]

Event: TypeAlias = Any
"""A dp_accounting event (an untyped package), an `RdpCurve`, or a composition of both."""

Terms: TypeAlias = tuple[tuple[Event, int], ...]
"""Distinct releases, and how often each was made."""

Accountant = Literal["pld", "rdp"]

ACCOUNTANTS: tuple[Accountant, ...] = ("pld", "rdp")
"""Both readers, the tight one first."""

# Orders of the RDP accountant where no curve brings its own. The large ones serve small epsilons.
ORDERS = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *(float(order) for order in range(11, 64)),
    *(64.0, 80.0, 96.0, 128.0, 256.0, 384.0, 512.0, 768.0, 1024.0),
)


def _relation(dp: Any, relation: Relation) -> Any:
    names = dp.NeighboringRelation
    return {
        Relation.ADD_REMOVE: names.ADD_OR_REMOVE_ONE,
        Relation.REPLACE_ONE: names.REPLACE_ONE,
        Relation.ZERO_OUT: names.REPLACE_SPECIAL,
    }[relation]


@lru_cache(maxsize=4096)
def reads(dp: Any, accountant: Accountant, leaf: Event, relation: Relation) -> bool:
    """Whether an accountant can read one release under a relation."""
    if isinstance(leaf, dp.NonPrivateDpEvent):
        return True
    if isinstance(leaf, RdpCurve):
        return accountant == "rdp"
    if isinstance(leaf, dp.dp_event.TruncatedSubsampledGaussianDpEvent):
        return accountant == "pld" and relation is Relation.ZERO_OUT
    if accountant == "pld":
        reader = dp.pld.PLDAccountant(_relation(dp, relation))
        return bool(reader.supports(leaf))
    reader = dp.rdp.RdpAccountant([2.0], _relation(dp, relation))
    return _for_rdp(dp, leaf, relation) is not None and bool(reader.supports(leaf))


def unreadable(dp: Any, accountant: Accountant, leaf: Event, relation: Relation) -> str:
    """Why one release cannot be read, and who could read it under which relation."""
    names = {known: known.value.replace("_", "-") for known in Relation}
    possible = [
        f"accountant={other!r} under {names[under]}"
        for under in sorted(Relation, key=lambda under: under != relation)
        for other in ACCOUNTANTS
        if reads(dp, other, leaf, under)
    ]
    way_out = f"Possible: {'; '.join(possible)}." if possible else "No accountant here can."
    return (
        f"The {accountant.upper()} accountant cannot read {leaf!r} under "
        f"{names[relation]} neighbours. {way_out}"
    )


def _for_rdp(dp: Any, leaf: Event, relation: Relation) -> Event | None:
    """The event as the RDP accountant wants it, or None where it would misread it.

    A replaced row moves a sum by twice the clipping norm. The accountant takes the noise
    multiplier as std / sensitivity and ignores the relation, so the multiplier is halved.
    """
    if relation != REPLACE_ONE or isinstance(leaf, dp.RandomizedResponseDpEvent):
        return leaf
    if isinstance(leaf, (dp.GaussianDpEvent, dp.LaplaceDpEvent)):
        return type(leaf)(leaf.noise_multiplier / 2)
    if isinstance(leaf, dp.SampledWithoutReplacementDpEvent):
        inner = _for_rdp(dp, leaf.event, relation)
        size, sample = leaf.source_dataset_size, leaf.sample_size
        return None if inner is None else type(leaf)(size, sample, inner)
    return None


def rdp_epsilon(
    dp: Any,
    terms: Terms,
    delta: float,
    relation: Relation,
    conversion: Conversion,
) -> float:
    """Epsilon by Rényi divergences: at the orders of a curve, where there is one."""
    orders = next((leaf.orders for leaf, _ in terms if isinstance(leaf, RdpCurve)), ORDERS)
    total = np.zeros(len(orders))
    for leaf, count in terms:
        total += count * leaf_rdp(dp, leaf, orders, relation)
    value = rdp_to_epsilon(total, orders, delta, conversion)
    if math.isinf(value):
        raise UnsupportedError(
            "The RDP accountant found no finite epsilon at any order: the noise is too small "
            "for it. Use more noise."
        )
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the note that an order was left out: an order left out makes nothing smaller."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@lru_cache(maxsize=1024)
def leaf_rdp(dp: Any, leaf: Event, orders: tuple[float, ...], relation: Relation) -> Array:
    """Rényi divergences of one release, shape `(orders,)`. Cached: not to be written to."""
    if isinstance(leaf, RdpCurve):
        if leaf.orders != orders:
            raise ValueError(
                f"Expected orders={leaf.orders[0]:g}..{leaf.orders[-1]:g} to equal those of "
                "the other curve: curves are added order by order."
            )
        return np.array(leaf.rdp)
    reader = dp.rdp.RdpAccountant(orders, _relation(dp, relation))
    read = _for_rdp(dp, leaf, relation)
    with _quiet():
        reader.compose(read)
    return _settled(dp, np.asarray(reader.rdp), read, np.array(orders))


def _settled(dp: Any, rdp: Array, leaf: Event, orders: Array) -> Array:
    """Replaces values below the accountant's rounding error by a bound that is above it.

    Its sums carry an absolute error near 1e-14, which for large noise exceeds the value and may
    turn it negative; sampling never costs more than the release without it.
    """
    sampled = isinstance(leaf, (dp.PoissonSampledDpEvent, dp.SampledWithoutReplacementDpEvent))
    if not sampled or not isinstance(leaf.event, dp.GaussianDpEvent):
        return rdp
    unsampled = orders / (2 * leaf.event.noise_multiplier**2)
    return np.asarray(np.fmin(np.fmax(rdp, 1e-12), unsampled))


@lru_cache(maxsize=4096)
def pld_epsilon(dp: Any, terms: Terms, delta: float, relation: Relation) -> float:
    """Epsilon by privacy loss distributions: an upper bound whatever the grid."""
    try:
        value = _invert(_composed(dp, terms, relation), delta)
    except OverflowError:  # losses beyond the range of exp: epsilon is in the millions
        value = math.inf
    if not math.isfinite(value):
        raise UnsupportedError(
            f"The PLD accountant cannot resolve delta={delta!r} for this event: its grid leaves "
            "out more probability, or the noise is far too small. Use accountant='rdp', a larger "
            "delta, or more noise."
        )
    return max(0.0, value)


@lru_cache(maxsize=256)
def pld_lower(dp: Any, terms: Terms, delta: float, relation: Relation, high: float) -> float:
    """A lower bound of the true epsilon, near the upper one, `high`: all losses rounded down."""
    step = grid_step(dp, terms, relation)
    # Rounding takes half a step from each loss: 1% of epsilon in all, where the memory allows it.
    wanted = 0.02 * high / sum(count for _, count in terms)
    step *= min(1.0, max(wanted / step, 1 / 20))
    whole = _whole(dp, terms, relation, step, pessimistic=False)
    return max(0.0, _invert(_Reader(whole), delta))


@dataclass(frozen=True)
class _Reader:
    """A distribution of privacy losses under the names that an accountant has."""

    losses: Any

    def get_epsilon(self, delta: float) -> float:
        return float(self.losses.get_epsilon_for_delta(delta))

    def get_delta(self, bound: float) -> float:
        return float(self.losses.get_delta_for_epsilon(bound))


def _whole(dp: Any, terms: Terms, relation: Relation, step: float, *, pessimistic: bool) -> Any:
    """The privacy losses of all releases, rounded up or down to one grid."""
    parts = [_losses(dp, leaf, count, relation, step, pessimistic) for leaf, count in terms]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return whole


def _losses(
    dp: Any, leaf: Event, count: int, relation: Relation, step: float, pessimistic: bool
) -> Any:
    """The privacy losses of one release that is made several times."""
    if isinstance(leaf, dp.GaussianDpEvent):  # several are one of less noise
        leaf, count = dp.GaussianDpEvent(leaf.noise_multiplier / math.sqrt(count)), 1
    one = _losses_once(dp, leaf, relation, step, pessimistic)
    if one is not None:
        return self_composed(dp, one, count)
    if not pessimistic:
        raise UnsupportedError(f"There is no lower bound for {leaf!r}; `epsilon` bounds it above.")
    reader = dp.pld.PLDAccountant(_relation(dp, relation), step)
    reader.compose(leaf, count)
    return reader._pld


@lru_cache(maxsize=4)
def _losses_once(
    dp: Any, leaf: Event, relation: Relation, step: float, pessimistic: bool
) -> Any | None:
    """The privacy losses of one release; None where only the accountant knows them.

    They stay, since one run asks for several numbers of them.
    """
    how: dict[str, Any] = {
        "pessimistic_estimate": pessimistic,
        "value_discretization_interval": step,
        "use_connect_dots": pessimistic,  # it only rounds up
    }
    make, neighbours = dp.pld.privacy_loss_distribution, _relation(dp, relation)
    rate, inner = 1.0, leaf
    if isinstance(leaf, dp.PoissonSampledDpEvent) and leaf.sampling_probability > 0:
        rate, inner = leaf.sampling_probability, leaf.event
    if isinstance(inner, dp.GaussianDpEvent):
        return make.from_gaussian_mechanism(
            inner.noise_multiplier, sampling_prob=rate, neighboring_relation=neighbours, **how
        )
    if isinstance(inner, dp.LaplaceDpEvent):
        return make.from_laplace_mechanism(inner.noise_multiplier, sampling_prob=rate, **how)
    if isinstance(inner, dp.dp_event.MixtureOfGaussiansDpEvent):
        return mixture_losses(dp, inner, step, pessimistic=pessimistic)
    cut = isinstance(inner, dp.dp_event.TruncatedSubsampledGaussianDpEvent)
    if not cut or not pessimistic:
        return None
    return make.from_truncated_subsampled_gaussian_mechanism(
        *(inner.dataset_size, inner.sampling_probability, inner.truncated_batch_size),
        inner.noise_multiplier,
        value_discretization_interval=step,
        neighboring_relation=neighbours,
    )


@lru_cache(maxsize=1)
def _composed(dp: Any, terms: Terms, relation: Relation) -> _Reader:
    """The last composition stays: a curve asks it for one epsilon after the other."""
    step = grid_step(dp, terms, relation)
    return _Reader(_whole(dp, terms, relation, step, pessimistic=True))


def _invert(reader: Any, delta: float) -> float:
    """The epsilon of a delta."""
    try:
        with np.errstate(over="raise"):
            return float(reader.get_epsilon(delta))
    except FloatingPointError:
        # Its sum of exp(-loss) is no normal number for losses near 700. Its delta of an epsilon has
        # no such sum, so that is searched; the end that meets the delta is the answer.
        pass
    low, high = 0.0, 1.0
    while reader.get_delta(high) > delta:
        low, high = high, 2 * high
        if high > _FARTHEST_EPSILON:
            return math.inf
    while high - low > _STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if reader.get_delta(middle) > delta else (low, middle)
    return high


_FARTHEST_EPSILON = 1e9
_STEP = 1e-3
_STEP_PER_DEVIATION = 0.4
_GRID_POINTS = 5e5
_SEARCHED_POINTS = 1e4
_TAIL = 1e-15


def grid_step(dp: Any, terms: Terms, relation: Relation) -> float:
    """The step of the grid of privacy losses, in nats.

    0.001 as a rule. Finer where a single loss deviates less than that: rounding to a grid adds up
    to step^2 / 4 to the variance of each loss, here at most 4% (and 2% to epsilon). Coarser where
    the losses reach so far that the grid would fill the memory, and for mixtures, where each point
    is searched for, as far as the first rule lets it. No choice makes the answer too small.
    """
    variance, parts, reach, usual = 0.0, 0, 0.0, _STEP
    total = np.zeros(len(ORDERS))
    for leaf, count in terms:
        scaled, once = _as_scaled(dp, leaf, relation)
        rdp = count * leaf_rdp(dp, scaled, ORDERS, ADD_REMOVE)
        total += rdp
        variance += float(rdp[ORDERS.index(2.0)])
        parts += 1 if once else count
        reach = max(reach, _reach(scaled, count if once else 1))
        if isinstance(leaf, dp.dp_event.MixtureOfGaussiansDpEvent):
            widest = dp.GaussianDpEvent(leaf.standard_deviation / max(leaf.sensitivities))
            usual = max(usual, _reach(widest, 1) / _SEARCHED_POINTS)
    reach += rdp_to_epsilon(total, ORDERS, _TAIL, "improved")
    fine = _STEP_PER_DEVIATION * math.sqrt(variance / parts)
    return max(min(usual, fine), reach / _GRID_POINTS)


def _as_scaled(dp: Any, leaf: Event, relation: Relation) -> tuple[Event, bool]:
    """A stand-in of about the same size that RDP reads, and whether repeats become one release."""
    factor = 2.0 if relation == REPLACE_ONE else 1.0
    if isinstance(leaf, dp.PoissonSampledDpEvent):
        inner, _ = _as_scaled(dp, leaf.event, relation)
        if isinstance(inner, dp.GaussianDpEvent):
            return dp.PoissonSampledDpEvent(leaf.sampling_probability, inner), False
        return inner, False
    if isinstance(leaf, (dp.GaussianDpEvent, dp.LaplaceDpEvent)):
        gaussian = isinstance(leaf, dp.GaussianDpEvent)
        return type(leaf)(leaf.noise_multiplier / factor), gaussian
    if isinstance(leaf, dp.dp_event.TruncatedSubsampledGaussianDpEvent):
        inner = dp.GaussianDpEvent(leaf.noise_multiplier)
        return dp.PoissonSampledDpEvent(leaf.sampling_probability, inner), False
    if isinstance(leaf, dp.dp_event.MixtureOfGaussiansDpEvent):
        pairs = list(zip(leaf.sensitivities, leaf.sampling_probs, strict=True))
        present = max(1e-12, sum(chance for size, chance in pairs if size > 0))
        square = max(1e-12, sum(chance * size**2 for size, chance in pairs) / present)
        inner = dp.GaussianDpEvent(leaf.standard_deviation / (factor * math.sqrt(square)))
        return dp.PoissonSampledDpEvent(min(1.0, present), inner), False
    noise = getattr(leaf, "noise_multiplier", None) or getattr(leaf, "standard_deviation", None)
    return dp.GaussianDpEvent((noise or 1.0) / factor), False


def rough(dp: Any, terms: Terms, delta: float, relation: Relation) -> float:
    """Where to look for epsilon: by Rényi divergences of stand-ins. An estimate, no bound."""
    total = np.zeros(len(ORDERS))
    for leaf, count in terms:
        if isinstance(leaf, dp.NonPrivateDpEvent):
            return math.inf
        scaled, _ = _as_scaled(dp, leaf, relation)
        total += count * leaf_rdp(dp, scaled, ORDERS, ADD_REMOVE)
    return rdp_to_epsilon(total, ORDERS, delta, "improved")


def _reach(leaf: Event, count: int) -> float:
    """The largest loss that is not cut off, of one Gaussian or Laplace release."""
    released: Event = getattr(leaf, "event", leaf)
    noise = released.noise_multiplier / math.sqrt(count)
    return float(0.5 / noise**2 + 10 / noise)
