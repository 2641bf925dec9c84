"""The protocol of mechanisms, and the one that adds no noise.

A mechanism is how a contribution is bounded and what noise is added to a sum of them. The noise and
the event that an accountant reads come out of one value, so they cannot disagree.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from privtrain.accounting.event import non_private_event
from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import Relation
from privtrain.mechanisms.reach import Reach, check_real

State = Any
"""What a mechanism remembers from release to release; None before the first, or for nothing."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What is asked of a mechanism by those who do not know which one it is.

    Args:
        theorem: What the guarantee rests on, with its source; empty where nothing is promised.
        noisy: Whether noise is drawn at all.
        assumptions: What has to hold for the guarantee.
        of_winner: What rests on another theorem for whoever sees only the place of the largest
            noised value, and which; empty where that changes nothing.
        of_check: The same for whoever sees only whether a noised value reaches a threshold.
        grid: None for noise in floating point. Else sums are rounded to whole multiples of this
            number, what is drawn are such multiples, and they are added as whole numbers. What
            `add` gives for float64 is a multiple, rounded to float64, so that an aggregation on
            shares or masks may encode it in multiples (`privtrain.mechanisms.discrete.quantised`)
            without rounding a second time, up to 2^51 of them.
        l2_bound: The L2 norm to which contributions are clipped, where that is all that the
            guarantee needs: sums may then be clipped while they are formed. Else None.
        separation: How many steps have to lie between two contributions of a unit; one event is
            charged for each. Above 1 noise is correlated over steps, and remembered.
    """

    theorem: str
    noisy: bool
    assumptions: tuple[str, ...] = ()
    grid: float | None = None
    l2_bound: float | None = None
    separation: int = 1
    of_winner: str = ""
    of_check: str = ""


class Mechanism(Protocol):
    """How a contribution is bounded, and what noise is added."""

    @property
    def about(self) -> About:
        """What its guarantee rests on, and what kind of noise it is."""
        ...

    def bound(self, contribution: Tensor) -> Tensor:
        """The contribution, bounded as the guarantee needs it; same shape."""
        ...

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        """What a party sent without noise of its own, as the sum of bounded contributions.

        Args:
            total: What arrived; any finite or non-finite floating-point values.
            contributions: How many bounded contributions the party may have added up; at least 1.

        Returns:
            The same tensor where it may be such a sum, to within rounding; else one that is.
        """
        ...

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        """How far a message goes that carries noise of its own, and how far it may go.

        Args:
            message: What arrived; any finite or non-finite floating-point values.
            contributions: How many bounded contributions the party may have added up; at least 1.
            fraction: Fraction of the mechanism's variance that the party drew, in (0, 1].
        """
        ...

    def sensitivity(self, relation: Relation) -> float | None:
        """How far the sum of bounded contributions moves between neighbours; None: no bound."""
        ...

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """A sum of bounded contributions with noise added, and the next state.

        Args:
            total: The sum, any shape; left as it is.
            state: The state after the last release; None before the first one. Left as it is.
            stream: Where the noise comes from; it serves nothing else.
            fraction: Fraction of the mechanism's variance to draw, in (0, 1].

        Returns:
            Same shape, type and device as the sum; and the state, None where nothing is remembered.

        Raises:
            UnsupportedError: If the sum is complex, whose imaginary part would get no noise; or the
                noise cannot be split into such parts.
        """
        ...

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        """What one release means for an observer, as an event for an accountant.

        That only the largest value is seen, or only what the finish leaves, may be ignored: who
        sees less is promised no less.
        """
        ...

    def realised(self, total: Tensor) -> Any:
        """What a release of this sum cost, as an event that depends on the data; or None.

        Args:
            total: The sum before the noise.

        Returns:
            The event, which is private itself; None where the charge does not depend on the data.
        """
        ...

    def with_scale(self, scale: float) -> "Mechanism | None":
        """The same mechanism with another noise scale, or None where it draws no noise."""
        ...


@runtime_checkable
class TellingExactly(Protocol):
    """A mechanism that can say what the winners of its noised votes exactly tell."""

    def exact(self, total: Tensor) -> Any:
        """The divergence between these votes and all neighbouring ones, in both directions.

        Args:
            total: Vote counts before the noise, shape `(queries, classes)`.

        Returns:
            An event, which is private itself; None where it cannot be computed.
        """
        ...


@dataclass(frozen=True)
class Exact:
    """No bound and no noise: what is released is exact, and nothing is promised."""

    @property
    def about(self) -> About:
        return About(theorem="", noisy=False)

    def bound(self, contribution: Tensor) -> Tensor:
        return contribution

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return total

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        return Reach(norm=0.0, radius=math.inf, bound=math.inf)

    def sensitivity(self, relation: Relation) -> float | None:
        return None

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        return total, state

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        return non_private_event()

    def realised(self, total: Tensor) -> None:
        return

    def with_scale(self, scale: float) -> None:
        return


def widened(total: Tensor) -> Tensor:
    """A sum in the type in which its noise is drawn: float32 at least.

    Raises:
        UnsupportedError: If it is complex.
    """
    check_real(total=total)
    if not total.is_floating_point():
        return total
    # The gaps of coarse noise would tell what it is added to.
    return total.to(torch.promote_types(total.dtype, torch.float32))


def add_floats(total: Tensor, noise: Tensor) -> Tensor:
    """A sum with noise in floating point, rounded once, behind the noise.

    Args:
        total: The sum.
        noise: What was drawn for the widened sum, same shape; overwritten.

    Returns:
        Same shape, type and device as the sum.
    """
    # Into the noise, which is a new tensor: the sum still belongs to the caller.
    return noise.add_(total).to(total.dtype)


def l2_bound_of(mechanism: Mechanism) -> float:
    """The L2 norm to which a mechanism clips, for sums that are clipped while they are formed.

    Raises:
        UnsupportedError: If the mechanism does not clip in L2 norm.
    """
    bound = mechanism.about.l2_bound
    if bound is None:
        raise UnsupportedError(
            f"{mechanism} does not clip in L2 norm, which per-example gradients need; "
            "use Gaussian(clipping_norm, noise_multiplier)."
        )
    return bound


def check_whole(fraction: float) -> None:
    """Raises `UnsupportedError` if less than the whole of a Laplace noise is to be drawn."""
    # Laplace variables do not add up to a Laplace variable, as Gaussian ones do.
    if fraction != 1.0:
        raise UnsupportedError(
            f"Laplace noise cannot be split into parts (fraction={fraction}); use a Gaussian one."
        )


def check_whole_noise(mechanism: Mechanism, exposure: Exposure) -> None:
    """Raises `UnsupportedError` if an observer can subtract a part of a Laplace noise."""
    # Variances are added up and divided again on the way, which costs some last digits.
    if exposure.hidden_variance < 1 - 1e-9:
        raise UnsupportedError(
            f"{mechanism} cannot be split: {exposure.hidden_variance:.3g} of its variance is "
            "hidden, and parts of Laplace noise are not Laplace. Use a Gaussian mechanism."
        )


def to_tensor(values: np.ndarray[Any, Any], like: Tensor) -> Tensor:
    """Drawn values in a tensor's type, which is real, and on its device."""
    check_real(like=like)
    # numpy turns a drawn array without dimensions into a number.
    return torch.from_numpy(np.asarray(values)).to(dtype=like.dtype, device=like.device)
