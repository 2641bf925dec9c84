"""How batches are drawn from pooled rows: by coins, in a fixed size, or by shuffled epochs."""

from dataclasses import dataclass

from privtrain.core.task import FederatedData
from privtrain.core.validate import check_count, check_flag
from privtrain.sampling.figures import (
    SAMPLED_IN_SECRET,
    Batches,
    exact_rows,
    mean_batch,
    other_size,
    poisson_figures,
    public_figures,
    rows_are_public,
    whole_steps,
)
from privtrain.sampling.sampling import ByUser, FixedSize, Shuffled, TruncatedPoisson
from privtrain.sampling.users import users_of

_OF_ALL_ROWS = (
    "rows_per_user={}: the sampling rate, {:.3g}, is expected_batch over all public_rows. Where "
    "users have more rows, batches hold fewer than the expected_batch that sums are divided by, "
    "and steps are shorter. Give sampling_rate=, such as expected_batch over rows_per_user times a "
    "public number of users."
)


@dataclass(frozen=True)
class PoissonBatches:
    """Every row takes part in every batch independently; batches vary in size and may be empty.

    Args:
        rows_per_user: None to protect single rows. A number to protect users with all their rows:
            at most that many rows of each take part, chosen without looking at them, and the
            charge is for the number of them that a batch may hold. With declared `public_rows` give
            the trainer a `sampling_rate`: they count rows that take no part.

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
        if self.rows_per_user is not None:
            # Fails before anything is computed if it is not known whose rows these are.
            users_of(data.pooled())
        rows, steps, assumptions = poisson_figures(
            data,
            epochs=epochs,
            sampling_rate=sampling_rate,
            expected_batch=expected_batch,
            rows_per_user=self.rows_per_user,
        )
        mean = mean_batch(rows, data, self.rows_per_user)
        notes = other_size(mean, expected_batch)
        if self.rows_per_user is not None and data.public_rows is not None:
            # There is no public figure of how many rows the limit leaves, but that of all rows.
            if sampling_rate is None:
                notes = (_OF_ALL_ROWS.format(self.rows_per_user, rows.rate),)
            elif mean is not None and mean > expected_batch:
                notes = ()
        sampling = rows if self.rows_per_user is None else ByUser(rows, self.rows_per_user)
        return Batches(sampling, steps, assumptions, rows_per_user=self.rows_per_user, notes=notes)


@dataclass(frozen=True)
class TruncatedPoissonBatches:
    """Poisson batches, cut to a random choice of at most `largest` rows.

    Memory is bounded whatever is drawn. The number of rows is public, so the guarantee is for
    zeroing a row out; it costs a little more than Poisson batches if few batches are cut, and
    several times as much if many are.

    Args:
        largest: Largest number of rows in a batch; at least 1.

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
        # The expected batch is that before the cut; how often a batch is cut depends on the number
        # of rows (docs/decisions/014), so that number has to be counted and public.
        rows = max(1, exact_rows(self, data))
        rate = min(1.0, expected_batch / rows) if sampling_rate is None else sampling_rate
        steps = whole_steps(epochs / rate, epochs)
        sampling = TruncatedPoisson(rate, self.largest)
        assumptions = (SAMPLED_IN_SECRET, rows_are_public(rows))
        notes = other_size(sampling.expected(rows), expected_batch)
        return Batches(sampling, steps, assumptions, population=rows, notes=notes)


@dataclass(frozen=True)
class FixedSizeBatches:
    """Every batch has exactly the expected size, drawn without replacement.

    The guarantee is for replacing one row by another, which moves a sum by up to twice the clipping
    norm, even if a batch holds all rows: it costs about twice what Poisson batches cost under
    add/remove. The number of rows is public.

    Source: docs/decisions/018-samples-of-fixed-size.md; the cross-check is that of Wang, Balle and
    Kasiviswanathan 2019 (arXiv:1808.00087).
    """

    def batches(
        self,
        data: FederatedData,
        *,
        epochs: float,
        sampling_rate: float | None,
        expected_batch: float,
    ) -> Batches:
        rows, size = public_figures(self, data, sampling_rate, expected_batch)
        steps = whole_steps(epochs * rows / size, epochs)
        assumptions = (SAMPLED_IN_SECRET, rows_are_public(rows))
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
        rows, size = public_figures(self, data, sampling_rate, expected_batch)
        # McSherry 2009, theorem 4: the batches of an epoch share no row, so an epoch is one draw.
        cut = -(-rows // size)
        steps = whole_steps(epochs * cut, epochs)
        sampling = Shuffled(replace_one=self.replace_one)
        return Batches(
            sampling,
            steps,
            (rows_are_public(rows),),
            per_draw=cut,
            population=rows,
            notes=other_size(rows / cut, expected_batch),
        )
