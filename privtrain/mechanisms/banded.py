"""DP-FTRL: Gaussian noise that is correlated over steps by a banded Toeplitz matrix.

Step t of training releases the clipped sum x_t plus noise. With independent noise the errors of
all steps add up in the model; here the noise of a step cancels part of the noise of earlier ones.
The noises of T steps are C^-1 z, with z independent and C lower triangular, banded and Toeplitz:

    noise_t = (z_t - c_1 noise_(t-1) - ... - c_(b-1) noise_(t-b+1)) / c_0

Publishing x + C^-1 z is publishing C x + z, from which it follows. A contribution to step t moves
C x by a column of C times the contribution; columns have an L2 norm of at most 1 (the last b - 1
of a finite run have less), so each time that a row takes part costs at most one Gaussian
mechanism. Columns that are b or more apart share no step, so a row whose turns are that far apart
pays a composition of Gaussians, each sampled where the row's turn was.
"""

import math
from dataclasses import InitVar, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privtrain.accounting.epsilon import gaussian_event, non_private_event
from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import Exposure
from privtrain.core.statement import REPLACE_ONE, Relation
from privtrain.core.validate import check_count, check_non_negative, check_positive
from privtrain.mechanisms.clipping import clip
from privtrain.mechanisms.mechanism import State
from privtrain.mechanisms.normals import standard_normals


@dataclass(frozen=True)
class BandedMatrix:
    """Clips contributions in L2 norm and adds Gaussian noise that is correlated over steps.

    It promises something only to rows that take part at least `bands` steps apart, which the
    sampling has to see to; with any other one it is refused. One band is the Gaussian mechanism.

    Args:
        clipping_norm: Upper bound on a contribution's L2 norm; positive.
        noise_multiplier: Standard deviation of z divided by the clipping norm; at least zero. It
            is the noise multiplier of the Gaussian that one participation is charged as; the
            noise of a single step is larger.
        bands: Over how many steps noise is correlated, the present one included; at least 1.
        steps: For how many steps the matrix is optimised; at least `bands`. The guarantee does
            not depend on it: a run of another length is as private, and less accurate.
        secure: Refused: what is proved of discrete noise holds for independent draws.

    Raises:
        ValueError: If a setting is out of its range.
        UnsupportedError: For `secure=True`.

    Source: Choquette-Choo et al. 2023 (arXiv:2306.08153); Kairouz et al. 2021 (arXiv:2103.00039)
    for DP-FTRL.
    """

    clipping_norm: float
    noise_multiplier: float
    bands: int
    steps: int
    secure: InitVar[bool] = False

    def __post_init__(self, secure: bool) -> None:
        if secure:
            raise UnsupportedError(
                f"Expected secure={secure} to be False: noise that is correlated over steps is no "
                "discrete Gaussian on a quantised sum. Use Gaussian(..., secure=True), whose "
                "noises are independent."
            )
        check_positive(clipping_norm=self.clipping_norm)
        check_non_negative(noise_multiplier=self.noise_multiplier)
        check_count(bands=self.bands)
        check_count(self.bands, steps=self.steps)

    @property
    def noisy(self) -> bool:
        """Whether noise is drawn at all."""
        return self.noise_multiplier > 0

    @property
    def theorem(self) -> str:
        """What the guarantee rests on."""
        return (
            "banded matrix factorisation (Choquette-Choo et al. 2023, arXiv:2306.08153): rows take "
            f"part at least {self.bands} steps apart, each time as in one Gaussian mechanism "
            "(Dwork and Roth 2014, Appendix A), composed numerically"
        )

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of each coordinate of z, before it is correlated."""
        return self.clipping_norm * self.noise_multiplier

    @property
    def l2_bound(self) -> float:
        """The L2 norm to which contributions are clipped."""
        return self.clipping_norm

    @property
    def minimum_separation(self) -> int:
        """How many steps have to lie between a row's turns at least."""
        return self.bands

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The first column of C, down to its last band; its L2 norm is 1. Public."""
        return optimise_bands(self.steps, self.bands)

    def bound(self, contribution: Tensor) -> Tensor:
        """The contribution, clipped to the clipping norm in L2; non-finite ones become zero."""
        return clip(contribution, self.clipping_norm)

    def sensitivity(self, relation: Relation) -> float:
        """L2 distance of the sums of neighbours in one step."""
        return self.clipping_norm * (2.0 if relation is REPLACE_ONE else 1.0)

    def init(self, like: Tensor) -> State:
        """No earlier noise; nothing to remember with one band."""
        return [] if self.bands > 1 else None

    def noise(
        self, like: Tensor, state: State, generator: np.random.Generator, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """The next row of C^-1 z.

        Args:
            like: What is noised.
            state: Noises of the last `bands` - 1 steps, the latest first; fewer at the start.
            generator: Where z comes from.
            fraction: Fraction of the variance of z to draw, in (0, 1].

        Returns:
            The noise, and the state with it; the given state is left as it is.
        """
        scale = self.standard_deviation * math.sqrt(fraction)
        drawn = standard_normals(like, generator, scale)
        if state is None:
            return drawn, None
        first, *others = self.coefficients
        for coefficient, earlier in zip(others, state, strict=False):
            drawn.sub_(earlier, alpha=coefficient)
        drawn.div_(first)
        # Whoever receives the noise may change it; later noise must not follow.
        return drawn, [drawn.clone(), *state[: self.bands - 2]]

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        """What one participation of a row means: a Gaussian of what the observer cannot subtract.

        How often a row takes part at most is the business of the sampling, which turns this into
        the event of a whole run.
        """
        hidden = self.noise_multiplier * math.sqrt(exposure.hidden_variance)
        return gaussian_event(hidden) if hidden > 0 else non_private_event()

    def with_scale(self, scale: float) -> "BandedMatrix":
        """The same mechanism with another noise multiplier."""
        return replace(self, noise_multiplier=scale)


def prefix_error(coefficients: tuple[float, ...], steps: int) -> float:
    """How much noise a model carries that has summed up noised gradients, averaged over steps.

    Args:
        coefficients: The first column of C; scaled to norm 1 here.
        steps: How many steps; at least 1.

    Returns:
        Root mean square, over steps, of the standard deviation of the sum of all noises so far,
        for a z of standard deviation 1. Independent noise has sqrt((steps + 1) / 2).
    """
    check_count(steps=steps)
    column = torch.tensor(coefficients, dtype=torch.float64)
    return math.sqrt(float(_mean_square(column, steps)))


@lru_cache(maxsize=64)
def optimise_bands(steps: int, bands: int) -> tuple[float, ...]:
    """The banded Toeplitz matrix whose noise does least harm to sums over steps.

    It minimises `prefix_error` over columns that do not increase and stay positive; C^-1 is then
    stable (Enestrom and Kakeya). Seconds for 2,000 steps; public, since it depends on its
    arguments alone.

    Args:
        steps: How many steps; at least `bands`.
        bands: How many coefficients; at least 1.

    Returns:
        The coefficients, the largest first, with L2 norm 1.

    Source: Choquette-Choo et al. 2023 (arXiv:2306.08153), section 4; started at the square root
    of the matrix of sums (Fichtenberger, Henzinger and Upadhyay 2022, arXiv:2202.11205).
    """
    check_count(bands=bands)
    check_count(bands, steps=steps)
    if bands == 1:
        return (1.0,)
    number = torch.arange(1, bands, dtype=torch.float64)
    free = torch.logit((2 * number - 1) / (2 * number)).requires_grad_()
    settings: dict[str, Any] = {"tolerance_grad": 1e-9, "tolerance_change": 1e-12}
    optimizer = torch.optim.LBFGS(
        [free], max_iter=300, history_size=20, line_search_fn="strong_wolfe", **settings
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        # The logarithm makes the tolerances relative ones.
        value = _mean_square(_column(free), steps).log()
        torch.autograd.backward(value)
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call] # torch leaves it untyped
    column = _column(free.detach())
    return tuple((column / column.norm()).tolist())


def _column(free: Tensor) -> Tensor:
    """A positive column that does not increase, of free parameters, shape `(bands - 1,)`."""
    return torch.cat([free.new_ones(1), torch.sigmoid(free).cumprod(dim=0)])


def _mean_square(column: Tensor, steps: int) -> Tensor:
    """Mean over steps of the variance of summed noise, times the squared norm of the column."""
    sums = _inverse(column, steps).cumsum(dim=0)
    left = torch.arange(steps, 0, -1, dtype=column.dtype) / steps
    return (left * sums.square()).sum() * column.square().sum()


def _inverse(column: Tensor, steps: int) -> Tensor:
    """First column of the inverse of a Toeplitz matrix: a reciprocal series, by Newton's steps."""
    found = column[:1].reciprocal()
    while len(found) < steps:
        size = min(2 * len(found), steps)
        rest = -_product(column[:size], found, size)
        rest = torch.cat([rest[:1] + 2, rest[1:]])
        found = _product(found, rest, size)
    return found


def _product(one: Tensor, other: Tensor, size: int) -> Tensor:
    """The first coefficients of the product of two series."""
    length = len(one) + len(other)
    product = torch.fft.rfft(one, length) * torch.fft.rfft(other, length)
    found = torch.fft.irfft(product, length)[:size]
    return torch.nn.functional.pad(found, (0, size - len(found)))
