"""Batches in which a row takes part at regular steps only, as correlated noise needs it.

A whole run is one draw: it is paid for before its first step, and an interrupted one is lost.
"""

from dataclasses import dataclass, replace

from privtrain.core.task import FederatedData
from privtrain.core.validate import check_count, check_flag
from privtrain.sampling.figures import (
    Batches,
    mean_batch,
    other_size,
    poisson_figures,
    public_figures,
    rows_are_public,
    whole_steps,
)
from privtrain.sampling.schedule import CyclicSample, FixedPasses


@dataclass(frozen=True)
class CyclicPoisson:
    """Each row belongs to one of several groups; step t draws coins in group t modulo their number.

    The coins have rate min(1, groups x sampling rate), so that batches have the size of Poisson
    batches. A run of T steps costs ceil(T / groups) Poisson-sampled Gaussians at that rate, all of
    them paid for before the first step. Each row's group is drawn from entropy, once a run.

    Args:
        groups: Number of groups; at least the number of bands of the mechanism.

    Source: Choquette-Choo et al. 2023, algorithm 2 (arXiv:2306.08153).
    """

    groups: int

    def __post_init__(self) -> None:
        check_count(groups=self.groups)

    def batches(
        self,
        data: FederatedData,
        *,
        epochs: float,
        sampling_rate: float | None,
        expected_batch: float,
    ) -> Batches:
        # As many steps as Poisson batches have; see `poisson_figures`.
        plain, steps, assumptions = poisson_figures(
            data, epochs=epochs, sampling_rate=sampling_rate, expected_batch=expected_batch
        )
        # Algorithm 2: a group holds 1 / groups of the rows, so its coins have a larger rate.
        coin = replace(plain, rate=min(1.0, self.groups * plain.rate))
        cycle = CyclicSample(coin, self.groups, steps)
        known = (
            f"each row belongs to one of {self.groups} groups, drawn for it alone, and takes part "
            "in its group's steps only",
        )
        # The proof is about all steps at once, so the whole run is one draw and one payment.
        # The coins end at 1: with as many groups as batches in an epoch, more make them smaller.
        mean = mean_batch(coin, data, None) if sampling_rate is None else None
        return Batches(
            cycle,
            steps,
            assumptions + known,
            per_draw=steps,
            schedule=cycle,
            notes=other_size(None if mean is None else mean / self.groups, expected_batch),
        )


@dataclass(frozen=True)
class FixedOrder:
    """One random order of all rows, cut into batches of nearly the expected size, in every epoch.

    A row takes part once an epoch, always in the same place, so that its participations lie as many
    steps apart as an epoch has batches. Nothing is amplified: a run that begins E epochs costs E
    Gaussians, all of them paid for before the first step. The number of rows is public, so a row
    can be zeroed out or replaced, not added.

    Args:
        replace_one: Whether the guarantee is for replacing one row by another, with twice the
            sensitivity, instead of zeroing its contributions out.

    Source: Choquette-Choo et al. 2022 for several participations (arXiv:2211.06530); 2023 for
    banded matrices (arXiv:2306.08153).
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
        cut = -(-rows // size)
        steps = whole_steps(epochs * cut, epochs)
        passes = FixedPasses(cut, steps, self.replace_one)
        known = (rows_are_public(rows),)
        return Batches(
            passes,
            steps,
            known,
            per_draw=steps,
            population=rows,
            schedule=passes,
            notes=other_size(rows / cut, expected_batch),
        )
