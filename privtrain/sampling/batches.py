"""How batches are drawn from pooled rows, and which figures that makes public."""

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
from privtrain.core.validate import check_count, check_flag
from privtrain.sampling.sampling import (
    ByUser,
    FixedSize,
    Poisson,
    Sampling,
    Shuffled,
    TruncatedPoisson,
)
from privtrain.sampling.schedule import Schedule, enforced
from privtrain.sampling.users import count_kept, some_of_each_user, users_of

_MOST_STEPS = 2.0**53
SAMPLED_IN_SECRET = "the sample of each step is secret: it is drawn like noise, not from the seed"


@dataclass(frozen=True)
class Batches:
    """How batches are drawn, and the public figures that follow.

    Args:
        sampling: Which rows a draw takes, and what that adds to a guarantee.
        steps: How many batches.
        assumptions: What the figures assume to be public.
        per_draw: How many batches a draw is cut into. They share no row, so that together they
            cost what one of them costs (parallel composition, McSherry 2009, theorem 4).
        population: How many rows there are where that is public, else 1.
        rows_per_user: How many rows of one user are kept; None where rows are protected one by one.
        schedule: Draws the batches of the one draw that a run then is, where a row takes part in
            several of them; None where they are parts of one sample.
    """

    sampling: Sampling
    steps: int
    assumptions: tuple[str, ...]
    per_draw: int = 1
    population: int = 1
    schedule: Schedule | None = None
    rows_per_user: int | None = None

    @property
    def unit(self) -> Unit:
        """Whose contribution is bounded."""
        return Unit.EXAMPLE if self.rows_per_user is None else Unit.USER

    def kept(self, rows: Rows, seeds: Streams) -> Rows:
        """The rows that may take part: all, or at most so many of each user."""
        if self.rows_per_user is None:
            return rows
        return rows.take(some_of_each_user(rows, self.rows_per_user, seeds).to(rows.inputs.device))

    @property
    def draws(self) -> int:
        """How often is drawn: as many releases are paid for."""
        return -(-self.steps // self.per_draw)

    def opens(self, step: int) -> bool:
        """Whether a step is the first of a draw."""
        return step % self.per_draw == 0

    def closes(self, step: int) -> bool:
        """Whether a step is the last of a draw, after which a run can be resumed."""
        return (step + 1) % self.per_draw == 0 or step + 1 == self.steps

    def parts(self, population: int, generator: np.random.Generator) -> Iterator[list[int]]:
        """The batches of one draw, in order, each as numbers of rows; may be none.

        Args:
            population: How many rows there are.
            generator: Where they are drawn from, as they are asked for.

        Raises:
            UnsoundReleaseError: If a schedule breaks what it promises.
        """
        if self.schedule is not None:
            yield from enforced(self.schedule, population, generator)
            return
        drawn = self.sampling.choose(population, generator)
        size = -(-len(drawn) // self.per_draw)
        for part in range(self.per_draw):
            yield drawn[part * size : (part + 1) * size]


def plan_batches(
    data: FederatedData,
    *,
    epochs: float,
    sampling_rate: float | None,
    expected_batch: float | None,
    parties: int = 1,
    rows_per_user: int | None = None,
) -> Batches:
    """Poisson batches of public figures; see `poisson_figures`."""
    sampling, steps, assumptions = poisson_figures(
        data,
        epochs=epochs,
        sampling_rate=sampling_rate,
        expected_batch=expected_batch,
        parties=parties,
        rows_per_user=rows_per_user,
    )
    if rows_per_user is None:
        return Batches(sampling, steps, assumptions)
    by_user = ByUser(sampling, rows_per_user)
    return Batches(by_user, steps, assumptions, rows_per_user=rows_per_user)


def poisson_figures(
    data: FederatedData,
    *,
    epochs: float,
    sampling_rate: float | None,
    expected_batch: float | None,
    parties: int = 1,
    rows_per_user: int | None = None,
) -> tuple[Poisson, int, tuple[str, ...]]:
    """Settles sampling rate, expected batch and number of steps without looking at private counts.

    What is given is used as it is. What is missing follows from the data's declared public number
    of rows; only where there is none are the rows counted, which the guarantee then names as an
    assumption, and it is stated under zero-out instead of add/remove.

    Args:
        data: Who holds which rows.
        epochs: Expected number of passes over the rows; positive.
        sampling_rate: Each example's probability, or None.
        expected_batch: The number by which noised sums are divided, or None.
        parties: Among how many the rows are spread evenly; 1 where they are pooled.
        rows_per_user: How many rows of a user are kept, where users are protected.

    Returns:
        The sampling of a step, the number of steps, and what is assumed to be public.

    Raises:
        ValueError: If neither rate nor batch is given.
    """
    if sampling_rate is None and expected_batch is None:
        raise ValueError(
            "Expected sampling_rate=None or expected_batch=None to be given; both are missing."
        )
    found = None
    if sampling_rate is None or expected_batch is None:
        declared = data.public_rows
        found = None if declared else count_kept(data, rows_per_user)
        rows = max(1.0, (declared or found or 1) / parties)
        if sampling_rate is None:
            sampling_rate = min(1.0, (expected_batch or 1.0) / rows)
        expected_batch = expected_batch or sampling_rate * rows
    assumptions = [SAMPLED_IN_SECRET]
    if found is not None:
        assumptions.append(counted(found))
    steps = whole_steps(epochs / sampling_rate, epochs)
    sampling = Poisson(sampling_rate, expected_batch, size_is_public=found is not None)
    return sampling, steps, tuple(assumptions)


def whole_steps(steps: float, epochs: float) -> int:
    """A number of steps, rounded up; at least 1.

    Args:
        steps: How many there are, up to rounding.
        epochs: Where they come from, for the error.

    Raises:
        ValueError: If there are too many to be counted.
    """
    if not steps < _MOST_STEPS:
        raise ValueError(
            f"Expected epochs={epochs!r} to take fewer than 2^53 steps; it takes {steps:g}. Use "
            "fewer epochs, or a larger sampling_rate or expected_batch."
        )
    return max(1, math.ceil(steps - 1e-9))


def taken(rows: Rows, chosen: list[int]) -> Rows:
    """The rows with these numbers, in their order; may be none."""
    return rows.take(torch.tensor(chosen, dtype=torch.long, device=rows.inputs.device))


def poisson_batch(rows: Rows, sampling: Poisson, generator: np.random.Generator) -> Rows:
    """The rows that an independent coin each picks; may be none."""
    return taken(rows, sampling.choose(len(rows), generator))


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
        """Settles how is drawn, and how many steps there are.

        Args:
            data: Who holds which rows.
            epochs: Expected number of passes over the rows; positive.
            sampling_rate: Each row's probability, or None.
            expected_batch: The public number by which noised sums are divided.

        Returns:
            The batches.

        Raises:
            ValueError: If the figures do not fit.
            UnsupportedError: If the sampling has no use for one of them.
        """
        ...


@dataclass(frozen=True)
class PoissonBatches:
    """Every row takes part in every batch independently; batches vary in size and may be empty.

    Args:
        rows_per_user: None to protect single rows. A number to protect users with all their rows:
            at most so many rows of each are kept, chosen without looking at them, and the charge
            is for how many of them a batch may hold.

    Source: Abadi et al. 2016 (arXiv:1607.00133); for users Charles et al. 2024, example-level
    sampling (arXiv:2407.07737), accounted by Choquette-Choo et al. 2023 (arXiv:2310.15526).
    """

    rows_per_user: int | None = None

    def __post_init__(self) -> None:
        if self.rows_per_user is not None:
            check_count(rows_per_user=self.rows_per_user)

    def batches(
        self,
        data: FederatedData,
        *,
        epochs: float,
        sampling_rate: float | None,
        expected_batch: float,
    ) -> Batches:
        """Poisson batches; see `plan_batches`."""
        if self.rows_per_user is not None:
            users_of(data.pooled())
        return plan_batches(
            data,
            epochs=epochs,
            sampling_rate=sampling_rate,
            expected_batch=expected_batch,
            rows_per_user=self.rows_per_user,
        )


@dataclass(frozen=True)
class TruncatedPoissonBatches:
    """Poisson batches of at most so many rows: a random choice where more are drawn.

    Memory is bounded whatever is drawn. The number of rows is public, so the guarantee is for
    zeroing a row out; it costs a little more than Poisson batches, and much more where many
    batches are cut.

    Args:
        largest: How many rows a batch has at most; at least 1.

    Source: arXiv:2508.15089; proved again in docs/decisions/014-truncated-samples.md.
    """

    largest: int

    def __post_init__(self) -> None:
        check_count(largest=self.largest)

    def batches(
        self,
        data: FederatedData,
        *,
        epochs: float,
        sampling_rate: float | None,
        expected_batch: float,
    ) -> Batches:
        """Batches of `expected_batch` rows before the cut."""
        rows = max(1, len(data.pooled()))
        rate = min(1.0, expected_batch / rows) if sampling_rate is None else sampling_rate
        steps = whole_steps(epochs / rate, epochs)
        sampling = TruncatedPoisson(rate, self.largest)
        return Batches(sampling, steps, (SAMPLED_IN_SECRET, counted(rows)), population=rows)


@dataclass(frozen=True)
class FixedSizeBatches:
    """Every batch has exactly the expected size, drawn without replacement.

    The guarantee is for replacing one row by another, where a sum moves by twice the clipping
    norm, and accounted by RDP, batches of all rows included: it costs more than twice what Poisson
    batches cost under add/remove. The number of rows is public.

    Source: Wang, Balle and Kasiviswanathan 2019 (arXiv:1808.00087).
    """

    def batches(
        self,
        data: FederatedData,
        *,
        epochs: float,
        sampling_rate: float | None,
        expected_batch: float,
    ) -> Batches:
        """Batches of `expected_batch` rows.

        Raises:
            ValueError: If that is no whole number, or more than there are rows.
            UnsupportedError: If a sampling rate is given.
        """
        rows, size = public_figures(self, data, sampling_rate, expected_batch)
        steps = whole_steps(epochs * rows / size, epochs)
        assumptions = (SAMPLED_IN_SECRET, counted(rows))
        sampling = FixedSize(size, replace_one=True)
        return Batches(sampling, steps, assumptions, population=rows)


@dataclass(frozen=True)
class ShuffledEpochs:
    """Each epoch cuts a new random order of all rows into batches of nearly the expected size.

    Nothing is amplified: the batches of an epoch share no row, so an epoch costs one Gaussian, and
    E epochs cost E. The number of rows is public, so a row can be zeroed out or replaced, not
    added.

    Args:
        replace_one: Whether the guarantee is for replacing one row by another, with twice the
            sensitivity, instead of zeroing its contribution out.

    Source: parallel composition, McSherry 2009, theorem 4; Chua et al. 2024 on why shuffled
    batches must not be accounted as Poisson batches (arXiv:2403.17673).
    """

    replace_one: bool = False

    def __post_init__(self) -> None:
        check_flag(replace_one=self.replace_one)

    def batches(
        self,
        data: FederatedData,
        *,
        epochs: float,
        sampling_rate: float | None,
        expected_batch: float,
    ) -> Batches:
        """Batches that are paid for an epoch at a time.

        Raises:
            ValueError: If `expected_batch` is no whole number, or more than there are rows.
            UnsupportedError: If a sampling rate is given.
        """
        rows, size = public_figures(self, data, sampling_rate, expected_batch)
        cut = -(-rows // size)
        steps = whole_steps(epochs * cut, epochs)
        sampling = Shuffled(replace_one=self.replace_one)
        return Batches(sampling, steps, (counted(rows),), per_draw=cut, population=rows)


def counted(rows: int) -> str:
    """The assumption that the number of rows is public."""
    return f"the number of training rows, {rows}, is public"


def public_figures(
    sampling: BatchSampling, data: FederatedData, rate: float | None, expected_batch: float
) -> tuple[int, int]:
    """The number of rows and of those in a batch, where the number of rows is public.

    Raises:
        ValueError: If `expected_batch` is no whole number, or more than there are rows.
        UnsupportedError: If a sampling rate is given.
    """
    if rate is not None:
        raise UnsupportedError(
            f"{sampling} has no use for sampling_rate={rate!r}: its batches follow from "
            "expected_batch. Leave it out, or use PoissonBatches()."
        )
    rows = len(data.pooled())
    if expected_batch != int(expected_batch) or not 1 <= expected_batch <= max(1, rows):
        raise ValueError(
            f"Expected expected_batch={expected_batch!r} to be a whole number in 1..{rows}, the "
            f"number of rows: {sampling} draws batches of that size."
        )
    return max(1, rows), int(expected_batch)
