"""The value `Batches`, and the public figures of a training run on pooled rows.

Rates, batch sizes and numbers of steps are computed without looking at private counts where the
public number of rows is declared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from privtrain.core.errors import UnsupportedError
from privtrain.core.seeding import Streams
from privtrain.core.statement import Unit
from privtrain.core.task import FederatedData, Rows
from privtrain.sampling.sampling import Poisson, Sampling
from privtrain.sampling.schedule import Schedule, enforced
from privtrain.sampling.users import count_rows, limit_per_user

_MOST_STEPS = 2.0**53
SAMPLED_IN_SECRET = "the sample of each step is secret: it is drawn like noise, not from the seed"


@dataclass(frozen=True)
class Batches:
    """How batches are drawn, and the public figures that follow.

    Args:
        sampling: Which rows a draw takes, and what that adds to a guarantee.
        steps: Number of batches.
        assumptions: What the figures assume to be public.
        per_draw: Number of batches that a draw is cut into. They share no row, so that all of them
            cost what one of them costs (parallel composition, McSherry 2009, theorem 4).
        population: Number of rows if that is public, else 1.
        rows_per_user: Largest number of rows of one user; None if single rows are protected.
        notes: What the reader of a result should know of the size of batches, from public figures.
        schedule: Draws the batches if the whole run is one draw and a row takes part in several of
            its batches; None if the batches are parts of one sample.
    """

    sampling: Sampling
    steps: int
    assumptions: tuple[str, ...]
    per_draw: int = 1
    population: int = 1
    schedule: Schedule | None = None
    rows_per_user: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> Unit:
        """Whose contribution is bounded."""
        return Unit.EXAMPLE if self.rows_per_user is None else Unit.USER

    def eligible(self, rows: Rows, seeds: Streams) -> torch.Tensor:
        """Numbers of the rows that may take part: all, or at most `rows_per_user` of each user."""
        if self.rows_per_user is None:
            return torch.arange(len(rows))
        return limit_per_user(rows, self.rows_per_user, seeds)

    @property
    def draws(self) -> int:
        """Number of draws, each of which is one paid release."""
        return -(-self.steps // self.per_draw)

    def begins_draw(self, step: int) -> bool:
        """Whether a step is the first of a draw."""
        return step % self.per_draw == 0

    def ends_draw(self, step: int) -> bool:
        """Whether a step is the last of a draw, after which a run can be resumed."""
        return (step + 1) % self.per_draw == 0 or step + 1 == self.steps

    def draw(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        """The batches of one draw, in order, each as numbers of rows; a batch may be empty.

        Args:
            population: Number of rows.
            generator: Where they are drawn from, batch by batch under a schedule.

        Raises:
            UnsoundReleaseError: If a schedule breaks what it promises.
        """
        if self.schedule is not None:
            yield from enforced(self.schedule, population, generator)
            return
        drawn = self.sampling.choose(population, generator)
        # Consecutive cuts of one sample: no row is in two of them, which the price counts on.
        size = -(-len(drawn) // self.per_draw)
        for part in range(self.per_draw):
            yield drawn[part * size : (part + 1) * size]


def rows_at(rows: Rows, numbers: list[int]) -> Rows:
    """The rows with these numbers, in this order; empty for no number."""
    return rows.take(torch.tensor(numbers, dtype=torch.long, device=rows.inputs.device))


class BatchSampling(Protocol):
    """How DP-SGD on pooled rows draws its batches."""

    def batches(
        self,
        data: FederatedData,
        *,
        epochs: float,
        sampling_rate: float | None,
        expected_batch: float,
    ) -> Batches:
        """How batches are drawn and the number of steps, from public figures.

        Args:
            data: Who holds which rows.
            epochs: Expected number of passes over the rows; positive.
            sampling_rate: Each row's probability, or None.
            expected_batch: The public number by which noised sums are divided.

        Raises:
            ValueError: If the figures do not fit.
            UnsupportedError: If the sampling has no use for one of them.
        """
        ...


def poisson_figures(
    data: FederatedData,
    *,
    epochs: float,
    sampling_rate: float | None,
    expected_batch: float | None,
    parties: int = 1,
    rows_per_user: int | None = None,
) -> tuple[Poisson, int, tuple[str, ...]]:
    """Sampling rate, expected batch, number of steps, and the assumptions behind them.

    What is given is used as it is. What is missing follows from the data's declared public number
    of rows. Only if there is none, the rows are counted: the guarantee names that as an assumption
    and is stated under zero-out instead of add/remove.

    Args:
        data: Who holds which rows.
        epochs: Expected number of passes over the rows; positive.
        sampling_rate: Each example's probability, or None.
        expected_batch: The number by which noised sums are divided, or None.
        parties: Number of parties among which the rows are spread evenly; 1 if they are pooled.
        rows_per_user: Largest number of rows of a user, if users are protected.

    Returns:
        The sampling of a step, the number of steps, and what is assumed to be public.

    Raises:
        ValueError: If neither rate nor batch is given.
    """
    if sampling_rate is None and expected_batch is None:
        raise ValueError(
            "Expected sampling_rate=None or expected_batch=None to be given; both are missing."
        )
    counted = None
    if sampling_rate is None or expected_batch is None:
        declared = data.public_rows
        # A count of private rows, made only where it cannot be avoided (docs/decisions/004).
        counted = None if declared else count_rows(data, rows_per_user)
        rows = max(1.0, (declared or counted or 1) / parties)
        if sampling_rate is None:
            sampling_rate = min(1.0, (expected_batch or 1.0) / rows)
        expected_batch = expected_batch or sampling_rate * rows
    assumptions = [SAMPLED_IN_SECRET]
    if counted is not None:
        assumptions.append(rows_are_public(counted, rows_per_user))
    steps = whole_steps(epochs / sampling_rate, epochs)
    sampling = Poisson(sampling_rate, expected_batch, size_is_public=counted is not None)
    return sampling, steps, tuple(assumptions)


def whole_steps(steps: float, epochs: float) -> int:
    """A number of steps, rounded up; at least 1.

    Args:
        steps: The number before rounding.
        epochs: The setting that it was computed from, for the error.

    Raises:
        ValueError: If there are too many to be counted.
    """
    if not steps < _MOST_STEPS:
        raise ValueError(
            f"Expected epochs={epochs!r} to take fewer than 2^53 steps; it takes {steps:g}. Use "
            "fewer epochs, or a larger sampling_rate or expected_batch."
        )
    # Slightly less, so that epochs / rate = 60.000000001 is no 61st step.
    return max(1, math.ceil(steps - 1e-9))


def rows_are_public(rows: int, rows_per_user: int | None = None) -> str:
    """The assumption, in words, that the number of rows is public."""
    counted = f" counting at most {rows_per_user} of each user," if rows_per_user else ""
    return f"the number of training rows,{counted} {rows}, is public"


def mean_batch(sampling: Poisson, data: FederatedData, rows_per_user: int | None) -> float | None:
    """The mean size of a Poisson batch; None where the number of rows is not public.

    Args:
        sampling: How rows are drawn, as `poisson_figures` gives it.
        data: Who holds which rows.
        rows_per_user: Largest number of rows of a user, if users are protected.
    """
    rows = data.public_rows
    if rows is None and sampling.size_is_public:
        rows = count_rows(data, rows_per_user)
    return None if rows is None else sampling.rate * rows


def other_size(mean: float | None, expected_batch: float) -> tuple[str, ...]:
    """The note that batches are of another size than the number that sums are divided by.

    Args:
        mean: Public mean number of rows in a batch; None where it is not public.
        expected_batch: The public number by which noised sums are divided.

    Returns:
        Empty where the two differ by less than a tenth.
    """
    if mean is None or abs(mean / expected_batch - 1) < 0.1:
        return ()
    return (
        f"batches hold {mean:.3g} rows on average, and sums are divided by "
        f"expected_batch={expected_batch:g}: steps are {mean / expected_batch:.2g} times as long "
        "as those of a batch's mean",
    )


def exact_rows(sampling: BatchSampling, data: FederatedData) -> int:
    """The number of rows, which is public where a sampling depends on it.

    Raises:
        UnsupportedError: If coins decided how many rows there are: canaries were planted.
    """
    if data.canaries is not None:
        raise UnsupportedError(
            f"{sampling} makes the number of rows public, which tells how many canaries were "
            "planted. Use PoissonBatches() with declared public_rows."
        )
    return len(data.pooled())


def public_figures(
    sampling: BatchSampling, data: FederatedData, rate: float | None, expected_batch: float
) -> tuple[int, int]:
    """The number of rows, which is public here, and the number of rows in a batch.

    Raises:
        ValueError: If `expected_batch` is no whole number, or more than there are rows.
        UnsupportedError: If a sampling rate is given.
    """
    if rate is not None:
        raise UnsupportedError(
            f"{sampling} has no use for sampling_rate={rate!r}: its batches follow from "
            "expected_batch. Leave it out, or use PoissonBatches()."
        )
    rows = exact_rows(sampling, data)
    if expected_batch != int(expected_batch) or not 1 <= expected_batch <= max(1, rows):
        raise ValueError(
            f"Expected expected_batch={expected_batch!r} to be a whole number in 1..{rows}, the "
            f"number of rows: {sampling} draws batches of that size."
        )
    return max(1, rows), int(expected_batch)
