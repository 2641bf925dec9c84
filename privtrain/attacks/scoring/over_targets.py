"""Figures of a trainer: over several target models that share their records.

The same record is a candidate of every target, and hard or easy in all of them: scores of one
record are no independent draws. So whole records are drawn, with all of their scores.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from privtrain.attacks.scores import Scores, auc, auc_interval, resolvable, tpr_at_fpr
from privtrain.attacks.scoring.design import Flags
from privtrain.core.seeding import Seeds
from privtrain.core.validate import check_count, check_fraction

BATCH = 32
"""How many resamples are measured at once: memory is that times the candidates, in doubles."""

Measure = Callable[[Scores, Flags, Scores], Scores]
"""From one target's scores and truth and weights `(resamples, candidates)`: a figure each."""


@dataclass(frozen=True, eq=False)
class OverTargets:
    """A figure of several targets.

    Args:
        value: The mean over the targets.
        interval: Of that mean, among records that these were drawn from, for these targets. How
            much models of other seeds would differ is seen in `each`.
        each: The figure of each target, shape `(targets,)`.
    """

    value: float
    interval: tuple[float, float]
    each: Scores


def auc_over_targets(
    scores: ArrayLike,
    truth: ArrayLike,
    *,
    seed: int,
    resamples: int = 1_000,
    confidence: float = 0.95,
) -> OverTargets:
    """The mean AUC of several targets; percentiles of the cluster bootstrap over records.

    Args:
        scores: Shape `(targets, candidates)`; larger means "more likely a member", no NaN or +inf.
        truth: True where the candidate is a member of the target, bool, same shape.
        seed: Public seed of the resamples.
        resamples: How often records are drawn anew, with replacement; at least 1.
        confidence: Of the interval, in [0, 1).

    Returns:
        The mean, its interval, and each target's AUC. Where all pairs of all targets agree the
        interval is the widest of the single targets'.

    Raises:
        ValueError: If a shape or type does not fit, or a target has no member or no non-member.

    Source: Davison and Hinkley 1997, section 3.8 (clusters are resampled whole); percentiles:
        section 5.3.
    """
    rows, flags = _checked(scores, truth)
    each = np.array([auc(s[m], s[~m]) for s, m in zip(rows, flags, strict=True)])
    draws = _resampled(rows, flags, _weighted_auc, seed, resamples)
    low, high = _percentiles(draws, confidence)
    # Perfect separation and nothing but ties look the same in every resample.
    if low == high:
        alone = [auc_interval(s[m], s[~m], confidence) for s, m in zip(rows, flags, strict=True)]
        low, high = min(low, *(a for a, _ in alone)), max(high, *(b for _, b in alone))
    return OverTargets(float(each.mean()), (low, high), each)


def tpr_over_targets(
    scores: ArrayLike,
    truth: ArrayLike,
    fpr: float,
    *,
    seed: int,
    resamples: int = 1_000,
    confidence: float = 0.95,
    spared: int = 0,
) -> OverTargets | None:
    """The mean true positive rate of several targets, each at its own threshold.

    Args:
        scores: As for `auc_over_targets`.
        truth: Likewise.
        fpr: The false positive rate asked for, in (0, 1].
        seed: As for `auc_over_targets`.
        resamples: Likewise.
        confidence: Likewise.
        spared: The low end allows so many false positives fewer. The rate is read just below the
            score of the next non-member, and so is too high by about one false positive's part,
            which more targets do not change: with 1 the interval holds it.

    Returns:
        As `auc_over_targets`; None where a target has fewer than `10 / fpr` non-members.

    Raises:
        ValueError: As `auc_over_targets`.

    Source: as `auc_over_targets`.
    """
    rows, flags = _checked(scores, truth)
    if not resolvable(int((~flags).sum(axis=1).min()), fpr):
        return None
    points = [tpr_at_fpr(s[m], s[~m], fpr) for s, m in zip(rows, flags, strict=True)]
    each = np.array([point.tpr for point in points if point is not None])

    def ends_at(fewer: int) -> tuple[float, float]:
        def measure(values: Scores, members: Flags, weights: Scores) -> Scores:
            return _weighted_tpr(values, members, weights, fpr, fewer)

        return _percentiles(_resampled(rows, flags, measure, seed, resamples), confidence)

    low, high = ends_at(0)
    if spared:
        low = min(low, ends_at(spared)[0])
    if low == high:
        ends = [point.tpr_interval for point in points if point is not None]
        low, high = min(low, *(a for a, _ in ends)), max(high, *(b for _, b in ends))
    return OverTargets(float(each.mean()), (low, high), each)


def _checked(scores: ArrayLike, truth: ArrayLike) -> tuple[Scores, Flags]:
    rows, flags = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"Expected scores with shape {rows.shape} to be (targets, candidates), at least one of "
            "each."
        )
    if flags.dtype != np.bool_ or flags.shape != rows.shape:
        raise ValueError(
            f"Expected truth of type {flags.dtype} with shape {flags.shape} to be bool "
            f"{rows.shape}, as scores are."
        )
    if (one_class := flags.all(axis=1) | ~flags.any(axis=1)).any():
        raise ValueError(
            "Expected truth to hold members and non-members of every target; of the targets "
            f"{np.flatnonzero(one_class).tolist()} it holds one kind alone. Leave them out."
        )
    return rows, flags


def _resampled(rows: Scores, flags: Flags, measure: Measure, seed: int, resamples: int) -> Scores:
    """The mean over targets in each resample; those without both kinds in a target are left out."""
    check_count(resamples=resamples)
    means = []
    for weights in _weights(rows.shape[1], seed, resamples):
        figures = [measure(s, m, weights) for s, m in zip(rows, flags, strict=True)]
        means.append(np.mean(figures, axis=0))
    drawn = np.concatenate(means)
    return np.asarray(drawn[~np.isnan(drawn)])


def _weights(records: int, seed: int, resamples: int) -> Iterator[Scores]:
    """How often each record is drawn, shape `(at most BATCH, records)`."""
    generator = Seeds(seed)["cluster bootstrap", 0, ""].numpy()
    for start in range(0, resamples, BATCH):
        yield np.stack(
            [
                np.bincount(generator.integers(records, size=records), minlength=records)
                for _ in range(min(BATCH, resamples - start))
            ]
        ).astype(np.float64)


def _percentiles(draws: Scores, confidence: float) -> tuple[float, float]:
    check_fraction(confidence=confidence)
    if not draws.size:
        return (0.0, 1.0)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return (float(low), float(high))


def _running(weights: Scores) -> Scores:
    """Sums of the first 0, 1, ... weights of each resample."""
    start = np.zeros((len(weights), 1))
    return np.concatenate([start, np.cumsum(weights, axis=1)], axis=1)


def _weighted_auc(values: Scores, members: Flags, weights: Scores) -> Scores:
    """The AUC in which each record counts by its weight; NaN where one side weighs nothing."""
    order = np.argsort(values[~members], kind="stable")
    others = values[~members][order]
    below = _running(weights[:, ~members][:, order])
    inside = values[members]
    first, last = (np.searchsorted(others, inside, side=end) for end in ("left", "right"))
    # Ties count half: the mean of the weights below and at most at a member's score.
    won = (below[:, first] + below[:, last]) / 2
    of_members = weights[:, members]
    with np.errstate(invalid="ignore"):
        return np.asarray((won * of_members).sum(axis=1) / (of_members.sum(axis=1) * below[:, -1]))


def _weighted_tpr(
    values: Scores, members: Flags, weights: Scores, fpr: float, fewer: int
) -> Scores:
    """The rate at the lowest threshold with at most `fpr` of the others, less `fewer`."""
    thresholds, place = np.unique(-values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    # Where each distinct score ends among the falling ones: tied records are accused together.
    ends = np.searchsorted(place[order], np.arange(len(thresholds)), side="right")
    ends = np.concatenate([[0], ends])
    right = _running((weights * members)[:, order])[:, ends]
    wrong = _running((weights * ~members)[:, order])[:, ends]
    allowed = np.maximum(np.floor(wrong[:, -1] * fpr * (1 + 1e-12)) - fewer, 0)
    # Both rise: the last threshold that is allowed is the number of those allowed, less one.
    last = (wrong <= allowed[:, None]).sum(axis=1) - 1
    with np.errstate(invalid="ignore"):
        return np.asarray(right[np.arange(len(right)), last] / right[:, -1])
