"""At the party: contributions are bounded, added up, noised where parties draw, and sealed."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from privtrain.core.errors import UnsoundReleaseError, UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.parameters import wide_type
from privtrain.core.runtime import Party, Reply
from privtrain.core.statement import REPLACE_ONE
from privtrain.core.validate import all_finite
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.release.arrival import with_weight
from privtrain.release.parts import Parts
from privtrain.release.placement import Placement

NON_FINITE = "non_finite"
"""Diagnostic: how many of a party's contributions were not finite and counted as zero."""


def leave(
    release: Parts,
    contributions: Iterable[Tensor],
    party: Party,
    *,
    kind: str,
    factor: float,
    weight: float | None,
) -> Reply:
    """At the party: the reply that leaves; see `Release.leave`."""
    if release.noisy and not 0 <= factor <= 1:  # a NaN must fail, too
        raise UnsoundReleaseError(
            f"factor={factor:g} would carry a contribution past the bound that "
            f"{release.mechanism} covers. Use weights in [0, 1]."
        )
    if weight is not None and release.noisy:
        raise UnsoundReleaseError(
            f"weight={weight:g} would leave without noise beside what {release.mechanism} covers. "
            "Divide by a public number."
        )
    bounded, non_finite, bounding = [], 0, release.bounding
    # First step, bound: each contribution by itself, since one unit changes one of them.
    for contribution in contributions:
        if bounding:
            non_finite += not all_finite(contribution)
        kept = release.mechanism.bound(contribution)
        # McMahan et al. 2018, Algorithm 1: w_k times the clipped update. The other way round,
        # weights would be clipped away. A factor up to 1 makes no value larger when rounded.
        bounded.append(kept if factor == 1 else _times(kept, factor, sealed=weight is not None))
    if not bounded:
        raise ValueError(
            f"Expected contributions=[] of {party.name!r} to hold at least one; a party "
            "without any sends zeros of the right shape, so that its noise is drawn."
        )
    # A party's own contributions are added before its noise: one noise hides all of them.
    total = bounded[0]
    if len(bounded) > 1:
        # Many terms in bfloat16 would be rounded by more than the bound on one of them.
        dtype = wide_type(bounded) if total.is_floating_point() else None
        total = torch.stack(bounded).sum(dim=0, dtype=dtype)
    if release.parties_draw:
        total = _with_own_noise(release, total, party, kind)
    if weight is not None:
        total = with_weight(total, weight)
    grid = release.mechanism.about.grid if release.parties_draw else None
    reply = release.aggregation.seal(total, party, kind=kind, grid=grid)
    # Computed from private values without noise, hence a diagnostic.
    if not non_finite:
        return reply
    numbers = {**reply.seen.numbers, NON_FINITE: float(non_finite)}
    return replace(reply, seen=replace(reply.seen, numbers=numbers))


def _with_own_noise(release: Parts, total: Tensor, party: Party, kind: str) -> Tensor:
    # A stream of its own for every kind, round and party: noise that is drawn twice cancels.
    stream = party.entropy[f"noise/{kind}", party.round, party.name]
    if release.mechanism.about.grid is not None and not release.readable:
        # What is shared or masked is encoded in multiples of the grid, which a coarser type
        # would round.
        total = total.double()
    released, after = release.mechanism.add(total, None, stream, fraction=release.noise_at.fraction)
    # The state would have to outlive the party's round, and the party may not be sampled again.
    if after is not None:
        raise UnsupportedError(remembers(release.mechanism))
    return released


def _times(contribution: Tensor, factor: float, *, sealed: bool) -> Tensor:
    """A contribution times a factor, in float32 at least where a sealed weight needs it anyhow."""
    dtype = contribution.dtype
    return contribution.to(torch.promote_types(dtype, torch.float32) if sealed else dtype) * factor


def remembers(mechanism: Mechanism) -> str:
    """Why parties cannot draw a noise that has to be remembered."""
    return (
        f"{mechanism} remembers its earlier noise, which parties do not keep; "
        "let the aggregator draw it (noise_at=AT_AGGREGATOR)."
    )


def check_part(mechanism: Mechanism, noise_at: Placement) -> None:
    """Refuses a part of the noise that a party cannot draw, or whose event is not known."""
    # Called for its refusal: the event of a part of the noise that cannot be drawn.
    alone = Exposure(
        single_messages=True,
        knows_sample=True,
        noise_known=0.0,
        variance=noise_at.fraction,
    )
    mechanism.event(alone, REPLACE_ONE)
