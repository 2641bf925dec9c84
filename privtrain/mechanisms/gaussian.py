"""The Gaussian and the Laplace mechanism on sums of bounded contributions."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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
)
from privtrain.mechanisms.mechanism import State, check_whole, check_whole_noise, to_tensor
from privtrain.mechanisms.normals import standard_normals
from privtrain.mechanisms.reach import Reach, gaussian_reach, laplace_reach


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
        if self.secure and self.noisy and not 1e-280 < self.standard_deviation < 1e280:
            raise ValueError(
                f"Expected clipping_norm x noise_multiplier={self.standard_deviation:g} to lie in "
                "(1e-280, 1e280) with secure=True."
            )

    @property
    def noisy(self) -> bool:
        return self.noise_multiplier > 0

    @property
    def theorem(self) -> str:
        plain = "Gaussian mechanism (Dwork and Roth 2014, Appendix A), composed numerically"
        if not self.secure:
            return plain
        return f"{plain}; exact discrete noise on quantised sums (Canonne et al. 2020), in delta"

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What has to hold for the guarantee."""
        return (ASSUMPTION,) if self.secure and self.noisy else ()

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of each coordinate of the noise."""
        return self.clipping_norm * self.noise_multiplier

    @property
    def l2_bound(self) -> float:
        """The L2 norm to which contributions are clipped."""
        return self.clipping_norm

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

    def init(self, like: Tensor) -> State:
        return None

    def noise(
        self, like: Tensor, state: State, generator: np.random.Generator, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """Independent Gaussian noise of variance `fraction` x standard deviation squared.

        Raises:
            UnsupportedError: If the noise is secure: it is added to integers, by `add`.
        """
        if self.secure:
            raise UnsupportedError(
                f"{self} draws no noise apart from the sum that it is added to. Use "
                "privtrain.mechanisms.mechanism.noised, or secure=False."
            )
        # Abadi et al. 2016, Algorithm 1, "Add noise": N(0, sigma^2 C^2 I).
        scale = self.standard_deviation * math.sqrt(fraction)
        return standard_normals(like, generator, scale), state

    def add(
        self, aggregate: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """The aggregate, quantised, with secure noise; same shape, type and device.

        Raises:
            UnsupportedError: If a part of the noise is asked for: a sum of discrete Gaussians
                is not a discrete Gaussian.
            UnsoundReleaseError: If there are more values than are charged for.
        """
        check_whole_discrete(self, fraction)
        if not self.noisy:
            return aggregate, state
        return add_discrete(aggregate, self.standard_deviation, stream), state

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        """A Gaussian event for the noise that the observer cannot subtract.

        The noise multiplier is std / clipping_norm; `privtrain.accounting.epsilon.epsilon` knows
        how a relation changes the sensitivity. Secure noise is charged at the sensitivity of the
        quantised sum, with its distance from the rounded continuous Gaussian.

        Raises:
            UnsupportedError: If less than one whole secure noise is hidden.
        """
        if self.secure and self.noisy and exposure.hidden_variance > 0:
            # Several secure noises are charged as one: the other ones are post-processing of the
            # message that carries the changed contribution.
            check_whole_discrete(self, exposure.hidden_variance)
            charged = gaussian_event(charged_multiplier(self.noise_multiplier))
            return Approximate(charged, RELEASE_DISTANCE)
        # Independent Gaussians add up to a Gaussian, so the hidden variance is all that counts.
        hidden = self.noise_multiplier * math.sqrt(exposure.hidden_variance)
        return gaussian_event(hidden) if hidden > 0 else non_private_event()

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
    def noisy(self) -> bool:
        return self.noise_multiplier > 0

    @property
    def theorem(self) -> str:
        return "Laplace mechanism (Dwork et al. 2006), composed numerically"

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

    def init(self, like: Tensor) -> State:
        return None

    def noise(
        self, like: Tensor, state: State, generator: np.random.Generator, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """Independent Laplace noise of scale clipping_norm x noise_multiplier.

        Raises:
            UnsupportedError: For a fraction other than 1: parts of Laplace noise are not Laplace.
        """
        check_whole(fraction)
        # Dwork and Roth 2014, Definition 3.3: scale b = sensitivity / epsilon in each coordinate.
        scale = self.clipping_norm * self.noise_multiplier
        return to_tensor(generator.laplace(0.0, scale, tuple(like.shape)), like), state

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

    def with_scale(self, scale: float) -> "Laplace":
        return replace(self, noise_multiplier=scale)
