"""The privacy losses of samples of a fixed or a bounded size, where the number of rows is public.

In such samples a row takes the place of another one, so that it may move a sum by more than its own
contribution. The proofs stand in docs/decisions: 014 for truncated, 018 for fixed-size samples.
"""

from enum import Enum

import numpy as np

from privtrain.accounting.event import Event
from privtrain.accounting.library import (
    GridLosses,
    Losses,
    from_removed,
    gaussian_losses,
    mixed_losses,
    no_losses,
)
from privtrain.core.statement import ADD_REMOVE


class Told(Enum):
    """What whoever sees a noisy sum over a truncated sample is told beside it, in either proof."""

    IF_FULL = "whether there was a free place, and the rows that did not depend on it"
    OTHERS = "all other rows of the sample"


def fixed_size_losses(
    rows: int, sample_size: int, noise_multiplier: float, step: float, *, pessimistic: bool
) -> Losses:
    """The losses of one Gaussian release about a sample without replacement; a row is replaced.

    Args:
        rows: How many there are.
        sample_size: How many of them are drawn.
        noise_multiplier: std / clipping norm, by twice which a replaced row moves a sum.
        step: Distance of the losses on the grid, in nats.
        pessimistic: Whether the losses bound those of all neighbours from above; else they are
            those of two neighbours that there are, rounded down.

    Returns:
        The losses.

    Source: docs/decisions/018; Balle, Barthe and Gaboardi 2018, Theorem 2 (arXiv:1807.01647); Zhu,
    Dong and Wang 2022 on dominating pairs (arXiv:2106.08567).
    """
    rate, half = sample_size / rows, noise_multiplier / 2
    once = gaussian_losses(half, rate, ADD_REMOVE, step, pessimistic=pessimistic)
    # Decision 018: where all other rows equal one of the two, these are the losses themselves.
    return from_removed(once, mirrored) if pessimistic else once


def truncated_losses(event: Event, step: float, told: Told) -> Losses:
    """The losses of one Gaussian release about a truncated Poisson sample; a row is zeroed out.

    Args:
        event: A `TRUNCATED_GAUSSIAN`.
        step: Distance of the losses on the grid, in nats.
        told: Which proof; either gives an upper bound.

    Returns:
        The losses, rounded up.

    Source: docs/decisions/014.
    """
    from scipy.stats import binom

    rows, largest = event.dataset_size, event.truncated_batch_size
    rate, noise = event.sampling_probability, event.noise_multiplier

    def sampled(chance: float, noise: float = noise) -> Losses:
        return gaussian_losses(noise, min(1.0, chance), ADD_REMOVE, step, pessimistic=True)

    # So many other rows are drawn that no place is left for one more; or but one place.
    full = float(binom.sf(largest - 1, rows - 1, rate))
    last = float(binom.pmf(largest - 1, rows - 1, rate))
    # No place is left, and the row is drawn and kept in place of another.
    pushed = largest / rows * float(binom.sf(largest, rows, rate))
    if pushed == 0:
        return sampled(rate)
    if told is Told.IF_FULL:
        in_place_of_another = from_removed(sampled(pushed / full, noise / 2), mirrored)
        return mixed_losses([(1 - full, sampled(rate)), (full, in_place_of_another)])
    # Of the others that are kept there is one less than places: so many were drawn, or the row was
    # pushed in. Where the others take all places, the row is not in the sample.
    missing = last + pushed
    return mixed_losses(
        [
            (full - pushed, no_losses(step)),
            (missing, sampled((rate * last + pushed) / missing)),
            (max(0.0, 1 - full - last), sampled(rate)),
        ]
    )


def mirrored(once: GridLosses) -> GridLosses:
    """Losses with the deltas of given ones at every epsilon >= 0, whichever neighbour comes first.

    A loss of -x has exp(-x) times the probability of a loss of x, as in any pair that looks the
    same from both sides; what is left is no loss at all.

    Source: docs/decisions/018.
    """
    # Deltas at epsilon >= 0 rest on the positive losses alone.
    first = max(1, once.lowest)
    above = once.probabilities[first - once.lowest :]
    numbers = np.arange(first, first + len(above))
    positive = np.concatenate([np.zeros(first - 1), above])
    negative = np.concatenate([np.zeros(first - 1), above * np.exp(-once.step * numbers)])
    none = max(0.0, 1 - once.infinite - float(positive.sum() + negative.sum()))
    probabilities = np.concatenate([negative[::-1], [none], positive])
    return once._replace(lowest=-len(positive), probabilities=probabilities)
