"""The Gaussian and the Laplace mechanism on sums of bounded contributions."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from privtrain.accounting.approximate import Approximate
from privtrain.accounting.event import gaussian_event, laplace_event, non_private_event
from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import REPLACE_ONE, Relation
from privtrain.core.validate import check_flag, check_non_negative, check_positive
from privtrain.mechanisms.clipping import clip, clip_again
from privtrain.mechanisms.discrete import (
    ASSUMPTION,
    RELEASE_DISTANCE,
    add_discrete,
    charged_multiplier,
    grid_of,
)
from privtrain.mechanisms.mechanism import (
    About,
    State,
    add_floats,
    check_whole,
    check_whole_noise,
    to_tensor,
    widened,
)
from privtrain.mechanisms.normals import standard_normals
from privtrain.mechanisms.reach import Reach, check_real, gaussian_reach, laplace_reach

_THEOREM = "Gaussian mechanism (Dwork and Roth 2014, Appendix A), composed numerically"
_SECURE_THEOREM = (
    f"{_THEOREM}; exact discrete noise on quantised sums (Canonne et al. 2020), in delta"
)


@dataclass(frozen=True)
class Gaussian:
    """Clips contributions in L2 norm and adds Gaussian noise to their sum.

    Args:
        clipping_norm: Upper bound on a contribution's L2 norm; positive.
        noise_multiplier: Standard deviation of the noise divided by the clipping norm; at least
            zero. Zero clips but promises nothing.
        secure: Whether sums are quantised and noised by the discrete Gaussian, sampled exactly
            from AES-256, so that no gap between floats tells anything. Otherwise noise is drawn
            in floating point, for research use.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Dwork and Roth 2014, Appendix A; Abadi et al. 2016 (arXiv:1607.00133); Canonne, Kamath
    and Steinke 2020 (arXiv:2004.00010) for secure noise.
    """

    clipping_norm: float
    noise_multiplier: float
    secure: bool = False

    def __post_init__(self) -> None:
        check_positive(clipping_norm=self.clipping_norm)
        check_non_negative(noise_multiplier=self.noise_multiplier)
        check_flag(secure=self.secure)
        # The grid is 2^-48 of the standard deviation, and has to be a normal number in float64.
        if self._discrete and not 1e-280 < self.standard_deviation < 1e280:
            raise ValueError(
                f"Expected clipping_norm x noise_multiplier={self.standard_deviation:g} to lie in "
                "(1e-280, 1e280) with secure=True."
            )

    @property
    def about(self) -> About:
        discrete = self._discrete
        return About(
            theorem=_SECURE_THEOREM if self.secure else _THEOREM,
            noisy=self.noise_multiplier > 0,
            assumptions=(ASSUMPTION,) if discrete else (),
            grid=grid_of(self.standard_deviation) if discrete else None,
            l2_bound=self.clipping_norm,
        )

    @property
    def _discrete(self) -> bool:
        """Whether integers are drawn, for a sum that is quantised."""
        return self.secure and self.noise_multiplier > 0

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of each coordinate of the noise."""
        return self.clipping_norm * self.noise_multiplier

    def bound(self, contribution: Tensor) -> Tensor:
        # Abadi et al. 2016, Algorithm 1, "Clip gradient".
        return clip(contribution, self.clipping_norm)

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return clip_again(total, self.clipping_norm, contributions)

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        # Secure noise, too: it is closer to a rounded Gaussian than beta, and its grid is fine.
        std = self.standard_deviation * math.sqrt(fraction)
        return gaussian_reach(message.reshape(1, -1), contributions * self.clipping_norm, std)

    def sensitivity(self, relation: Relation) -> float:
        # In L2: a replaced contribution may move from one end of the ball to the other.
        return self.clipping_norm * (2.0 if relation is REPLACE_ONE else 1.0)

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """Independent noise of variance `fraction` x standard deviation squared.

        Raises:
            UnsupportedError: If the sum is complex, or a part of secure noise is asked for: a sum
                of discrete Gaussians is not a discrete Gaussian.
            UnsoundReleaseError: If there are more values than secure noise is charged for.
        """
        if self.secure:
            check_real(total=total)
            check_whole_discrete(self, fraction)
            if not self._discrete:
                return total, state
            # Integers are added to integers, before anything becomes a float.
            return add_discrete(total, self.standard_deviation, stream), state
        # Abadi et al. 2016, Algorithm 1, "Add noise": N(0, sigma^2 C^2 I).
        scale = self.standard_deviation * math.sqrt(fraction)
        noise = standard_normals(widened(total), stream.numpy(), scale)
        return add_floats(total, noise), state

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        """A Gaussian event for the noise that the observer cannot subtract.

        The noise multiplier is std / clipping_norm; `privtrain.accounting.epsilon.epsilon` knows
        how a relation changes the sensitivity. Secure noise is charged at the sensitivity of the
        quantised sum, with its distance from the rounded continuous Gaussian.

        Raises:
            UnsupportedError: If less than one whole secure noise is hidden.
        """
        if self._discrete and exposure.hidden_variance > 0:
            # Several secure noises are charged as one: the other ones are post-processing of the
            # message that carries the changed contribution.
            check_whole_discrete(self, exposure.hidden_variance)
            charged = gaussian_event(charged_multiplier(self.noise_multiplier))
            return Approximate(charged, RELEASE_DISTANCE)
        # Independent Gaussians add up to a Gaussian, so the hidden variance is all that counts.
        hidden = self.noise_multiplier * math.sqrt(exposure.hidden_variance)
        return gaussian_event(hidden) if hidden > 0 else non_private_event()

    def realised(self, total: Tensor) -> None:
        return

    def with_scale(self, scale: float) -> "Gaussian":
        return replace(self, noise_multiplier=scale)


def check_whole_discrete(mechanism: Gaussian, fraction: float) -> None:
    """Raises `UnsupportedError` if less than one whole secure noise is drawn or hidden."""
    # Variances are added up and divided again on the way, which costs some last digits.
    if fraction < 1 - 1e-9:
        raise UnsupportedError(
            f"{mechanism} cannot be split: {fraction:.3g} of its variance is not a discrete "
            "Gaussian whose sums have a known law. Use noise_at=AT_PARTY or AT_AGGREGATOR, or "
            "secure=False."
        )


@dataclass(frozen=True)
class Laplace:
    """Clips contributions in L1 norm and adds Laplace noise to their sum.

    Args:
        clipping_norm: Upper bound on a contribution's L1 norm; positive.
        noise_multiplier: Scale b of the Laplace noise divided by the clipping norm; at least zero.

    Source: Dwork et al. 2006.
    """

    clipping_norm: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        check_positive(clipping_norm=self.clipping_norm)
        check_non_negative(noise_multiplier=self.noise_multiplier)

    @property
    def about(self) -> About:
        theorem = "Laplace mechanism (Dwork et al. 2006), composed numerically"
        return About(theorem=theorem, noisy=self.noise_multiplier > 0)

    def bound(self, contribution: Tensor) -> Tensor:
        # In L1, the norm in which Laplace noise is calibrated.
        return clip(contribution, self.clipping_norm, order=1.0)

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return clip_again(total, self.clipping_norm, contributions, order=1.0)

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        check_whole(fraction)
        scale = self.clipping_norm * self.noise_multiplier
        return laplace_reach(message.reshape(1, -1), contributions * self.clipping_norm, scale)

    def sensitivity(self, relation: Relation) -> float:
        return self.clipping_norm * (2.0 if relation is REPLACE_ONE else 1.0)

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        check_whole(fraction)
        # Dwork and Roth 2014, Definition 3.3: scale b = sensitivity / epsilon in each coordinate.
        scale = self.clipping_norm * self.noise_multiplier
        drawn = stream.numpy().laplace(0.0, scale, tuple(total.shape))
        return add_floats(total, to_tensor(drawn, widened(total))), state

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        """A Laplace event, if at least one whole noise is hidden from the observer.

        Raises:
            UnsupportedError: If less than one whole noise is hidden.
        """
        if exposure.hidden_variance <= 0 or self.noise_multiplier == 0:
            return non_private_event()
        check_whole_noise(self, exposure)
        # A sum of several Laplace noises hides at least what one of them hides: the other ones are
        # post-processing of the message that carries the changed contribution.
        return laplace_event(self.noise_multiplier)

    def realised(self, total: Tensor) -> None:
        return

    def with_scale(self, scale: float) -> "Laplace":
        return replace(self, noise_multiplier=scale)
