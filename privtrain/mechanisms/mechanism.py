"""The protocol of mechanisms, and the one that adds no noise.

A mechanism is how a contribution is bounded and what noise is drawn. The noise and the event that
an accountant reads come out of one value, so they cannot disagree.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

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
"""What a mechanism remembers from release to release; None where it remembers nothing."""


class Mechanism(Protocol):
    """How a contribution is bounded, and what noise is drawn."""

    @property
    def noisy(self) -> bool:
        """Whether noise is drawn at all."""
        ...

    @property
    def theorem(self) -> str:
        """What its guarantee rests on, with its source."""
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

    def init(self, like: Tensor) -> State:
        """The state before the first release of tensors like this one."""
        ...

    def noise(
        self, like: Tensor, state: State, generator: np.random.Generator, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """Noise of a tensor's shape, type and device, and the next state.

        The noise is a new tensor: the caller adds to it what is noised.

        Args:
            like: What is noised.
            state: The state after the last release.
            generator: Where the noise comes from.
            fraction: Fraction of the mechanism's variance to draw, in (0, 1].
        """
        ...

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        """What one release means for an observer, as an event for an accountant.

        That only the largest value is seen may be ignored: it moves no further than the sum does.
        """
        ...

    def with_scale(self, scale: float) -> "Mechanism | None":
        """The same mechanism with another noise scale, or None where it draws no noise."""
        ...


@dataclass(frozen=True)
class Exact:
    """No bound and no noise: what is released is exact, and nothing is promised."""

    @property
    def noisy(self) -> bool:
        return False

    @property
    def theorem(self) -> str:
        return ""

    def bound(self, contribution: Tensor) -> Tensor:
        return contribution

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return total

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        return Reach(norm=0.0, radius=math.inf, bound=math.inf)

    def sensitivity(self, relation: Relation) -> float | None:
        return None

    def init(self, like: Tensor) -> State:
        return None

    def noise(
        self, like: Tensor, state: State, generator: np.random.Generator, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        return torch.zeros_like(like), state

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        return non_private_event()

    def with_scale(self, scale: float) -> None:
        return


def is_secure(mechanism: Mechanism) -> bool:
    """Whether a mechanism's noise is discrete, exact, and added to quantised sums.

    Such a mechanism has `secure=True` and `add(aggregate, state, stream, fraction=...)`, which
    gives the noised aggregate and the next state: the noise alone would not be what was proved.
    """
    return bool(getattr(mechanism, "secure", False))


def assumptions_of(mechanism: Mechanism) -> tuple[str, ...]:
    """What has to hold for a mechanism's guarantee; empty if the mechanism names nothing."""
    return tuple(getattr(mechanism, "assumptions", ()))


def noised(
    mechanism: Mechanism, aggregate: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
) -> tuple[Tensor, State]:
    """The aggregate with the mechanism's noise added, and the mechanism's next state.

    Args:
        mechanism: Draws the noise.
        aggregate: A sum of bounded contributions.
        state: The state after the last release.
        stream: Where the noise comes from; it serves nothing else.
        fraction: Fraction of the mechanism's variance to draw, in (0, 1].

    Returns:
        Same shape and type as the aggregate, and the state.

    Raises:
        UnsupportedError: If the aggregate is complex: its imaginary part would get no noise.
    """
    check_real(aggregate=aggregate)
    # Quantised sums and discrete noise are added as integers, before anything becomes a float.
    if is_secure(mechanism):
        added: tuple[Tensor, State] = mechanism.add(  # type: ignore[attr-defined] # see is_secure
            aggregate, state, stream, fraction=fraction
        )
        return added
    # Rounded once, behind the noise: the gaps of coarse noise would tell what it is added to.
    wide = aggregate
    if aggregate.is_floating_point():
        wide = aggregate.to(torch.promote_types(aggregate.dtype, torch.float32))
    noise, after = mechanism.noise(wide, state, stream.numpy(), fraction=fraction)
    # Added into the noise, which is a new tensor: the aggregate still belongs to the caller.
    return noise.add_(wide).to(aggregate.dtype), after


def l2_bound(mechanism: Mechanism) -> float:
    """The L2 norm to which a mechanism clips, for sums that are clipped while they are formed.

    Raises:
        UnsupportedError: If the mechanism does not clip in L2 norm.
    """
    bound = getattr(mechanism, "l2_bound", None)
    if bound is None:
        raise UnsupportedError(
            f"{mechanism} does not clip in L2 norm, which per-example gradients need; "
            "use Gaussian(clipping_norm, noise_multiplier)."
        )
    return float(bound)


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
