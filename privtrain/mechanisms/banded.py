"""DP-FTRL: Gaussian noise that is correlated over steps by a banded Toeplitz matrix.

Step t of training releases the clipped sum x_t plus noise. With independent noise the errors of
all steps add up in the model; here the noise of a step cancels part of the noise of earlier ones.
The noises of T steps are C^-1 z, with z independent and C lower triangular, banded and Toeplitz:

    noise_t = (z_t - c_1 noise_(t-1) - ... - c_(b-1) noise_(t-b+1)) / c_0

Publishing x + C^-1 z is publishing C x + z, from which it follows. A contribution to step t moves
C x by a column of C times the contribution; columns have an L2 norm of at most 1 (the last b - 1
of a finite run have less), so each participation of a row costs at most one Gaussian mechanism.
Columns that are b or more apart share no step, so a row whose participations are that far apart
pays a composition of Gaussians, each sampled if the row's participation was.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from privtrain.accounting.event import gaussian_event, non_private_event
from privtrain.core.observers import Exposure
from privtrain.core.seeding import Stream
from privtrain.core.statement import REPLACE_ONE, Relation
from privtrain.core.validate import check_count, check_non_negative, check_positive
from privtrain.mechanisms.clipping import clip, clip_again
from privtrain.mechanisms.mechanism import About, State, add_floats, widened
from privtrain.mechanisms.normals import standard_normals
from privtrain.mechanisms.reach import Reach, gaussian_reach


@dataclass(frozen=True)
class BandedMatrix:
    """Clips contributions in L2 norm and adds Gaussian noise that is correlated over steps.

    It promises something only to rows that take part at least `bands` steps apart, which the
    sampling has to ensure; any other sampling is refused. One band is the Gaussian mechanism. There
    is no secure noise here: what is proved of discrete noise holds for independent draws.

    Args:
        clipping_norm: Upper bound on a contribution's L2 norm; positive.
        noise_multiplier: Standard deviation of z divided by the clipping norm; at least zero. It
            is the noise multiplier of the Gaussian that one participation is charged as; the
            noise of a single step is larger.
        bands: Number of steps over which noise is correlated, the present one included; at least 1.
        steps: Number of steps for which the matrix is optimised; at least `bands`. The guarantee
            does not depend on it: a run of another length is as private, and less accurate.

    Raises:
        ValueError: If a setting is out of its range.

    Source: Choquette-Choo et al. 2023 (arXiv:2306.08153); Kairouz et al. 2021 (arXiv:2103.00039)
    for DP-FTRL.
    """

    clipping_norm: float
    noise_multiplier: float
    bands: int
    steps: int

    def __post_init__(self) -> None:
        check_positive(clipping_norm=self.clipping_norm)
        check_non_negative(noise_multiplier=self.noise_multiplier)
        check_count(bands=self.bands)
        check_count(self.bands, steps=self.steps)

    @property
    def about(self) -> About:
        return About(
            theorem="banded matrix factorisation (Choquette-Choo et al. 2023, arXiv:2306.08153): "
            f"rows take part at least {self.bands} steps apart, each time as in one Gaussian "
            "mechanism (Dwork and Roth 2014, Appendix A), composed numerically",
            noisy=self.noise_multiplier > 0,
            l2_bound=self.clipping_norm,
            separation=self.bands,
        )

    @property
    def standard_deviation(self) -> float:
        """Standard deviation of each coordinate of z, before it is correlated."""
        return self.clipping_norm * self.noise_multiplier

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The first column of C, (c_0, ..., c_(b-1)); its L2 norm is 1. Public."""
        return optimise_bands(self.steps, self.bands)

    def bound(self, contribution: Tensor) -> Tensor:
        return clip(contribution, self.clipping_norm)

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return clip_again(total, self.clipping_norm, contributions)

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        # Parties draw noise of one band only, which is independent.
        std = self.standard_deviation * math.sqrt(fraction)
        return gaussian_reach(message.reshape(1, -1), contributions * self.clipping_norm, std)

    def sensitivity(self, relation: Relation) -> float:
        # L2 distance in one step; over the steps of one participation it is the same, since the
        # columns of C have a norm of at most 1.
        return self.clipping_norm * (2.0 if relation is REPLACE_ONE else 1.0)

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        """The sum plus the next row of C^-1 z.

        The state holds the noises of the last `bands` - 1 steps, the latest first (fewer at the
        start). One band has none: its noise is independent, and parties may draw it.
        """
        scale = self.standard_deviation * math.sqrt(fraction)
        drawn = standard_normals(widened(total), stream.numpy(), scale)
        if self.bands == 1:
            return add_floats(total, drawn), None
        # Forward substitution in C noise = z, one row a step:
        # noise_t = (z_t - c_1 noise_(t-1) - ... - c_(b-1) noise_(t-b+1)) / c_0.
        first, *others = self.coefficients
        before = state or []
        for coefficient, earlier in zip(others, before, strict=False):
            drawn.sub_(earlier, alpha=coefficient)
        drawn.div_(first)
        # A copy: the sum is added into the noise, and later noise must not follow it.
        after = [drawn.clone(), *before[: self.bands - 2]]
        return add_floats(total, drawn), after

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        """The Gaussian event of one participation of a row.

        The sampling, which knows how often a row takes part at most, turns it into the event of a
        whole run.
        """
        # Participations at least b steps apart touch disjoint rows of C (Choquette-Choo et al.
        # 2023, for banded C): the sensitivity of one is its column's norm, at most 1.
        hidden = self.noise_multiplier * math.sqrt(exposure.hidden_variance)
        return gaussian_event(hidden) if hidden > 0 else non_private_event()

    def realised(self, total: Tensor) -> None:
        return

    def with_scale(self, scale: float) -> "BandedMatrix":
        return replace(self, noise_multiplier=scale)


def prefix_error(coefficients: tuple[float, ...], steps: int) -> float:
    """Root mean square error of the sums of noised gradients, for a z of standard deviation 1.

    Args:
        coefficients: The first column of C; scaled to norm 1 here.
        steps: Number of steps; at least 1.

    Returns:
        Root mean square, over steps, of the standard deviation of the sum of all noises so far.
        Independent noise has sqrt((steps + 1) / 2).
    """
    check_count(steps=steps)
    column = torch.tensor(coefficients, dtype=torch.float64)
    return math.sqrt(float(_mean_square(column, steps)))


@lru_cache(maxsize=64)
def optimise_bands(steps: int, bands: int) -> tuple[float, ...]:
    """The first column of the banded Toeplitz matrix that minimises `prefix_error`.

    The minimum is over positive columns that do not increase. It is public, since it depends on
    the arguments alone, and takes seconds for 2,000 steps.

    Args:
        steps: Number of steps; at least `bands`.
        bands: Number of coefficients; at least 1.

    Returns:
        The coefficients, the largest first, with L2 norm 1.

    Source: Choquette-Choo et al. 2023 (arXiv:2306.08153), section 4; started at the square root
    of the matrix of sums (Fichtenberger, Henzinger and Upadhyay 2022, arXiv:2202.11205).
    """
    check_count(bands=bands)
    check_count(bands, steps=steps)
    if bands == 1:
        return (1.0,)
    # Start at the square root of the matrix of sums, whose first column is binom(2k, k) / 4^k:
    # the ratio of neighbouring coefficients is (2k - 1) / (2k).
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

    # The caller may train under torch.no_grad().
    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call] # torch leaves it untyped
    column = _column(free.detach())
    return tuple((column / column.norm()).tolist())


def _column(free: Tensor) -> Tensor:
    """A positive column that does not increase, from free parameters of shape `(bands - 1,)`."""
    # For such columns C^-1 is stable (Enestrom and Kakeya): its noise does not grow with steps.
    return torch.cat([free.new_ones(1), torch.sigmoid(free).cumprod(dim=0)])


def _mean_square(column: Tensor, steps: int) -> Tensor:
    """Mean over steps of the variance of summed noise, times the squared norm of the column."""
    # A run's summed noises are A C^-1 z, A the matrix of sums: Toeplitz, too, with this column.
    sums = _inverse(column, steps).cumsum(dim=0)
    # Entry k of the column stands in steps - k rows.
    left = torch.arange(steps, 0, -1, dtype=column.dtype) / steps
    return (left * sums.square()).sum() * column.square().sum()


def _inverse(column: Tensor, steps: int) -> Tensor:
    """First column of the inverse of a lower triangular Toeplitz matrix, shape `(steps,)`."""
    # These matrices multiply as power series, so the inverse is the reciprocal series 1 / c. Each
    # Newton step, y <- y (2 - c y), doubles the number of right coefficients.
    inverse = column[:1].reciprocal()
    while len(inverse) < steps:
        size = min(2 * len(inverse), steps)
        rest = -_product(column[:size], inverse, size)
        rest = torch.cat([rest[:1] + 2, rest[1:]])
        inverse = _product(inverse, rest, size)
    return inverse


def _product(left: Tensor, right: Tensor, size: int) -> Tensor:
    """The first coefficients of the product of two series, padded with zeros to `size`."""
    # Long enough that the circular convolution of the transforms does not wrap around.
    length = len(left) + len(right)
    spectrum = torch.fft.rfft(left, length) * torch.fft.rfft(right, length)
    product = torch.fft.irfft(spectrum, length)[:size]
    return torch.nn.functional.pad(product, (0, size - len(product)))
