"""LiRA: Gaussians of the models that saw a row, and of those that did not.

Carlini, Chien, Nasr, Song, Terzis and Tramer 2022, Membership Inference Attacks From First
Principles (arXiv:2112.03570): Algorithm 1 and section V.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from privtrain.attacks.scores import Scores
from privtrain.attacks.scoring.design import Flags, Side, check_side, checked, side, usable
from privtrain.core.validate import check_member

SMALLEST_LOSS = float(np.finfo(np.float64).eps)
"""What a cross-entropy in float64 resolves, as 1 - p does; phi of it is 36.04."""

LARGEST_LOSS = 700.0
"""What is told apart from larger ones: beyond 708, float64 has no probability of full precision."""

SMALLEST_DEVIATION = 1e-30
"""Deviation of a side on which all values are equal, as in the authors' code."""


class Variance(StrEnum):
    """From which values the variance of a side is estimated; never from those of the other side.

    OWN: each row's. SHARED: all rows', each about its own mean; better where models are few.
    """

    OWN = "own"
    SHARED = "shared"


def phi_of_losses(losses: ArrayLike) -> Scores:
    """The logit of the probability of the true class, from the loss -log p of each row.

    Args:
        losses: Cross-entropy in float64, any shape; at least 0. Below 2.2e-16, 0 included, they are
            taken for 2.2e-16; above 700, infinity included, for 700. NaN stays.

    Returns:
        log p - log(1 - p), same shape, in [-700, 36.04].

    Raises:
        ValueError: If a loss is negative.

    Source: section V, equation for phi(p).
    """
    array = np.asarray(losses, dtype=np.float64)
    if array.size and np.nanmin(array, initial=np.inf) < 0:
        raise ValueError(
            f"Expected losses >= 0, as -log p is; the smallest is {np.nanmin(array)}. Other losses "
            "are scored as they are, with minus the loss in place of phi."
        )
    # p = e^-loss: log p - log(1 - p), where 1 - p = -expm1(-loss) cancels nothing.
    loss = np.clip(array, SMALLEST_LOSS, LARGEST_LOSS)
    return np.asarray(-loss - np.log(-np.expm1(-loss)))


def phi_of_logits(logits: ArrayLike, labels: ArrayLike) -> Scores:
    """The logit of the probability of the true class, from the logits of all classes.

    Args:
        logits: Shape `(..., candidates, classes)`; at least two classes.
        labels: True classes, shape `(candidates,)`.

    Returns:
        Shape `(..., candidates)`; finite where the logits are, however confident they are.

    Raises:
        ValueError: If a shape does not fit, or a label is no class.

    Source: section V, where the stable form is log p_y minus the log of the others' sum.
    """
    array, classes = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if array.ndim < 2 or array.shape[-1] < 2 or classes.shape != array.shape[-2:-1]:
        raise ValueError(
            f"Expected logits {array.shape} and labels {classes.shape} to be (..., candidates, "
            "classes), classes >= 2, and (candidates,)."
        )
    if classes.dtype.kind not in "iu" or not ((classes >= 0) & (classes < array.shape[-1])).all():
        raise ValueError(f"Expected labels to be whole numbers below {array.shape[-1]}.")
    true = np.arange(array.shape[-1]) == classes[:, None]
    others = np.where(true, -np.inf, array)
    highest = others.max(axis=-1)
    rest = np.log(np.exp(others - highest[..., None]).sum(axis=-1))
    return np.asarray(np.where(true, array, 0.0).sum(axis=-1) - highest - rest)


def online(
    target: ArrayLike,
    shadows: ArrayLike,
    included: ArrayLike,
    *,
    variance: Variance = Variance.SHARED,
) -> Scores:
    """The log of the ratio of the IN Gaussian's density at the target's value to the OUT one's.

    A row whose side has no variance of its own (one model, equal values) takes the shared one of
    that side. Variances divide by the number of models (Algorithm 1, lines 10 to 13).

    Args:
        target: phi of the target, shape `(candidates,)`.
        shadows: phi of the shadow models, shape `(models, candidates)`; complementary pairs, in
            whose design the target has no part.
        included: True where the model was trained on the candidate, bool, same shape.
        variance: Each row's own or shared, for either side its own.

    Returns:
        Shape `(candidates,)`; -inf where the target or a shadow is not finite.

    Raises:
        ValueError: If a row has no IN or no OUT model, or no row has two on a side.

    Source: Algorithm 1, lines 10 to 15.
    """
    values, models, flags = checked(target, shadows, included)
    check_member([*Variance], variance=variance)
    rows = usable(values, models, np.ones_like(flags))
    inside = _gaussian(models, flags, rows, "IN", variance)
    outside = _gaussian(models, ~flags, rows, "OUT", variance)
    scores = np.full(len(values), -np.inf)
    scores[rows] = _log_density(values[rows], *inside) - _log_density(values[rows], *outside)
    return scores


def offline_deviations(
    target: ArrayLike,
    shadows: ArrayLike,
    included: ArrayLike,
    *,
    variance: Variance = Variance.SHARED,
) -> Scores:
    """By how many OUT deviations the target's value lies above the OUT mean.

    It orders rows as `offline` does, which is 1 for all rows beyond 8.3 deviations: true positive
    rates at low false positive rates are read off this score.

    Args and raises: as `online`, but that IN models are not used.

    Returns:
        Shape `(candidates,)`; -inf where the target or an OUT model is not finite.

    Source: section V, offline attack.
    """
    values, models, flags = checked(target, shadows, included)
    check_member([*Variance], variance=variance)
    rows = usable(values, models, ~flags)
    mean, deviation = _gaussian(models, ~flags, rows, "OUT", variance)
    scores = np.full(len(values), -np.inf)
    scores[rows] = (values[rows] - mean) / deviation
    return scores


def offline(
    target: ArrayLike,
    shadows: ArrayLike,
    included: ArrayLike,
    *,
    variance: Variance = Variance.SHARED,
) -> Scores:
    """The probability that an OUT model's value lies below the target's: one-sided.

    The OUT density in its place, as in published code, is low on both sides of the OUT mean, so
    that rows which the target predicts badly would pass for members.

    Args and raises: as `offline_deviations`.

    Returns:
        Shape `(candidates,)`, in [0, 1], or -inf where `offline_deviations` is.

    Source: section V, offline attack: 1 - Pr[Z > phi], Z the OUT Gaussian.
    """
    from scipy.special import ndtr

    deviations = offline_deviations(target, shadows, included, variance=variance)
    return np.asarray(np.where(np.isneginf(deviations), -np.inf, ndtr(deviations)))


def _gaussian(
    shadows: Scores, chosen: Flags, rows: Flags, name: str, variance: Variance
) -> tuple[Scores, Scores]:
    """Mean and standard deviation of a side for each row that is scored."""
    models = side(shadows[:, rows], chosen[:, rows])
    check_side(models, name, rows)
    if models.count.max() < 2:
        raise ValueError(
            f"Expected included to give a candidate two models that are {name} at least: one has "
            "no variance. Train four shadow models, in complementary pairs, or more."
        )
    shared = _shared(models)
    own = models.squares / models.count
    chosen_variance = own if variance == Variance.OWN else np.full_like(own, shared)
    deviation = np.sqrt(np.where(chosen_variance > 0, chosen_variance, shared))
    return models.mean, np.maximum(deviation, SMALLEST_DEVIATION)


def _shared(models: Side) -> float:
    """The variance about the rows' means, over all rows that have two models or more."""
    several = models.count > 1
    return float(models.squares[several].sum() / models.count[several].sum())


def _log_density(values: Scores, mean: Scores, deviation: Scores) -> Scores:
    """The log of Gaussian densities, without the constant that their ratio cancels."""
    return np.asarray(-np.log(deviation) - np.square((values - mean) / deviation) / 2)
