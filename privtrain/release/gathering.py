"""At the aggregator: messages are admitted and become one total, before any noise of its own."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, UnsoundReleaseError, UnsupportedError
from privtrain.core.runtime import Reply
from privtrain.core.statement import ADD_REMOVE
from privtrain.core.trainer import Run
from privtrain.core.validate import all_finite
from privtrain.release.aggregation import BoundedSum, Gathering, Total
from privtrain.release.arrival import Arrival, Expected
from privtrain.release.parts import Parts
from privtrain.release.placement import Drawer
from privtrain.release.reduce import NONE

LOST = "lost"
"""Diagnostic: how many parties of a noised round were asked and did not contribute."""


def admit(
    release: Parts,
    replies: Mapping[str, Reply],
    run: Run,
    *,
    round: int,
    kind: str,
    expected: Expected,
) -> dict[str, Reply]:
    """At the aggregator: the replies that may be added up; see `Release.admit`."""
    if not release.readable:
        return dict(replies)
    own_noise = release.noise_at.fraction if release.parties_draw else None
    arrival = Arrival(mechanism=release.mechanism, own_noise=own_noise, expected=expected)
    received = {party: reply.message for party, reply in replies.items()}
    admitted = arrival.admit(received, run, round=round, kind=kind)
    return {party: replace(replies[party], message=kept) for party, kept in admitted.items()}


def gathered(
    release: Parts,
    replies: Mapping[str, Reply],
    run: Run,
    *,
    round: int,
    kind: str,
    expected: Expected,
    gathering: Gathering | None,
) -> Total:
    """At the aggregator: the admitted messages as one; see `Release.gathered`."""
    begun = gathering or Gathering(cohort=tuple(replies), round=round, kind=kind)
    begun = replace(begun, weighted=expected.largest_weight is not None)
    nothing = _nothing(release, expected) if not replies else None
    if nothing is not None:
        note_lost(begun.cohort, (), round, run, noisy=release.noisy)
        return nothing
    admitted = admit(release, replies, run, round=round, kind=kind, expected=expected)
    total = release.aggregation.gather(begun, admitted, run)
    # Some may have been lost after they replied, while the aggregation asked once more.
    parties = tuple(replies) if total.parties is None else total.parties
    strange = [party for party in parties if party not in replies]
    if strange:
        raise ValueError(
            f"Expected the total of {release.aggregation} to hold contributions of parties that "
            f"replied; it names {strange[0]!r}."
        )
    note_lost(begun.cohort, parties, round, run, noisy=release.noisy)
    if isinstance(total.value, Tensor) and not (
        all_finite(total.value) and math.isfinite(total.weight or 0.0)
    ):
        raise ProtocolError(
            f"Round {round}: the sum of messages {kind!r} is not finite, though each of "
            f"{len(parties)} is. Clip with Release(Gaussian(clipping_norm, 0.0))."
        )
    return replace(total, parties=parties)


def _nothing(release: Parts, expected: Expected) -> Total | None:
    """The total of no message, where noise is added to it all the same; else None."""
    # Whether a round was empty is a secret, so it is noised like any other. No aggregation is
    # asked: there is nobody to agree on keys with, and no message to open.
    if expected.shape is None or not release.aggregator_draws:
        return None
    sizes = [size for size in expected.shape if size is not None]
    if len(sizes) < len(expected.shape):
        return None
    weight = None if expected.largest_weight is None else 0.0
    return Total(torch.zeros(sizes, dtype=torch.float64), weight, ())


def note_lost(
    asked: Iterable[str], there: Collection[str], round: int, run: Run, *, noisy: bool
) -> None:
    """Notes who was asked and did not reply; under noise, where nobody publishes it."""
    lost = [party for party in asked if party not in there]
    if not lost:
        return
    if noisy:
        # Even a count tells of a party that never replies whether it was drawn, or is in the
        # data at all, which is what the noise hides.
        run.outcome.history.record(round + 1, **{LOST: float(len(lost))})
        return
    run.outcome.notes.append(f"round {round} went on without {', '.join(lost)}: lost on the way")


def check_sum(release: Parts, given: BoundedSum) -> None:
    """Refuses a sum, formed outside `leave`, that the noise does not cover."""
    if not release.noisy:
        return
    if release.reduce is not NONE:
        raise UnsupportedError(
            f"reduce={release.reduce.name} needs messages: how far one contribution to a sum that "
            "was formed elsewhere moves its largest value is not known."
        )
    if release.noise_at.drawer is not Drawer.AGGREGATOR:
        raise UnsoundReleaseError(
            f"noise_at={release.noise_at} leaves the noise to parties, but the aggregator formed "
            "this sum itself, so nobody would draw it. Use noise_at=AT_AGGREGATOR."
        )
    covered = release.mechanism.sensitivity(ADD_REMOVE)
    if covered is None or not given.bound <= covered:  # a NaN must fail, too
        raise UnsoundReleaseError(
            f"The contributions of this sum are bounded by {given.bound:g}, but "
            f"{release.mechanism} covers {covered}. Clip to the mechanism's own bound."
        )
