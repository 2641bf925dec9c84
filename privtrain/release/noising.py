"""At the aggregator: a total is noised and finished, and what it exactly cost is told."""

from functools import partial
from typing import Any

from torch import Tensor

from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.trainer import RELEASE, Run
from privtrain.mechanisms.mechanism import Exact
from privtrain.release.aggregation import Released, Sealed, Total, parted
from privtrain.release.finish import ARGMAX, Finish
from privtrain.release.parts import Parts
from privtrain.release.reduce import NONE, Reduced


def released(
    release: Parts,
    total: Total,
    run: Run,
    round: int,
    kind: str,
    charge: str,
    *,
    weighted: bool,
) -> Released:
    """The released value of a total: its noise, its finish, or the opening of both on shares."""
    parties = total.parties or ()
    if not isinstance(total.value, Tensor):
        # On shares noise and finish come before the opening: only their result is read.
        mechanism = release.mechanism if release.aggregator_draws else Exact()
        opened = total.value.open(finish_of_sum(release), mechanism)
        return Released(*parted(opened, weighted=weighted), parties)
    # A kind of release has noise of its own, also where two of them read the same messages.
    noise = kind if charge == RELEASE else f"{kind}/{charge}"
    # Third and fourth step: the finish sees the noised aggregate only.
    value = release.finish(_noised(release, release.reduce(total.value), run, round, noise))
    return Released(value, total.weight, parties)


def realised(release: Parts, total: Tensor | Sealed) -> Any | None:
    """What these very votes cost, where the exact sum tells; it is private itself."""
    # Proved of the winner alone: whoever sees noised counts, or the largest one, sees more. Of
    # messages that nobody could read it is not known that they are votes.
    if not isinstance(total, Tensor) or total.dim() != 2 or not release.aggregator_draws:
        return None
    winners = release.finish == ARGMAX and release.readable
    return release.mechanism.realised(total) if winners else None


def finish_of_sum(release: Parts) -> Finish:
    """What is opened of a sum that nobody reads, and that no noise is added to."""
    return release.finish if release.reduce is NONE else Reduced(release.reduce, release.finish)


def _noised(release: Parts, aggregate: Tensor, run: Run, round: int, kind: str) -> Tensor:
    if not release.aggregator_draws:
        return aggregate
    stream = run.entropy[f"noise/{kind}", round, AGGREGATOR_NAME]
    # A state for each kind: correlated noise of one kind says nothing of another's.
    return run.remember(kind, partial(release.mechanism.add, aggregate, stream=stream))
