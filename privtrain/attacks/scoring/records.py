"""What an attack says of each single record, beside the models that did not see it.

An AUC near 0.5 hides the few records of which membership is plain. What is computed here names
rows of private data and is as private as they are.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.attacks.scores import Scores, clopper_pearson
from privtrain.attacks.scoring.design import Side, checked, side
from privtrain.core.validate import check_fraction


@dataclass(frozen=True, eq=False)
class Records:
    """One value for each record, in the order of the candidates; shape `(candidates,)`.

    Args:
        scores: The attack's; larger means "more likely a member".
        ranks: 1 for the highest score; records with equal scores share the best rank.
        seen: How many shadow models were trained on the record.
        unseen: How many were not.
        separation: d', by how many pooled deviations the IN models' mean lies above the OUT
            models'. NaN where a side has no model, or no side has two; infinite where the models of
            both sides agree among themselves and not with each other.
        null_deviation: The standard deviation of d' where membership changes nothing and values are
            normal; inf with fewer than five models, where there is none.
        above: How many OUT models have a value at least the target's.
        p_values: (1 + above) / (1 + unseen): how often a model without the record would look as
            the target does, or more so. It cannot be below 1 / (1 + unseen).
        p_value_intervals: Exact intervals of that probability, shape `(candidates, 2)`.
    """

    scores: Scores
    ranks: NDArray[np.int64]
    seen: NDArray[np.int64]
    unseen: NDArray[np.int64]
    separation: Scores
    null_deviation: Scores
    above: NDArray[np.int64]
    p_values: Scores
    p_value_intervals: Scores


def of_records(
    scores: ArrayLike,
    target: ArrayLike,
    shadows: ArrayLike,
    included: ArrayLike,
    *,
    confidence: float = 0.95,
) -> Records:
    """The risk of each record under one target.

    Among many records some are extreme by chance: compare d' with `null_deviation`, and p-values
    with their number, before one of them is called at risk.

    Args:
        scores: Of any attack, shape `(candidates,)`; no NaN.
        target: A value of the target on each record that is higher for members, such as phi of
            LiRA, shape `(candidates,)`; finite.
        shadows: The same of the shadow models, shape `(models, candidates)`; finite.
        included: True where the model was trained on the record, bool, same shape.
        confidence: Of the intervals, in [0, 1).

    Raises:
        ValueError: If a shape does not fit or a value is not finite.

    Source: d' with the pooled variance, and its law: Hedges 1981; p-value: Phipson and Smyth 2010,
        section 2.
    """
    check_fraction(confidence=confidence)
    values, models, flags = checked(target, shadows, included)
    ranked = np.asarray(scores, dtype=np.float64)
    if ranked.shape != values.shape:
        raise ValueError(f"Expected scores with shape {ranked.shape} to be {values.shape}.")
    if np.isnan(ranked).any():
        raise ValueError("Expected scores without NaN. Give a row that cannot be scored -inf.")
    for name, array in (("target", values), ("shadows", models)):
        if not np.isfinite(array).all():
            raise ValueError(
                f"Expected {name} to be finite; {int((~np.isfinite(array)).sum())} values are not. "
                "Leave those models or records out; an infinite loss has a finite phi of LiRA."
            )
    inside, outside = side(models, flags), side(models, ~flags)
    separation, null_deviation = _separation(inside, outside)
    above = (~flags & (models >= values)).sum(axis=0)
    return Records(
        scores=ranked,
        ranks=1 + len(ranked) - np.searchsorted(np.sort(ranked), ranked, side="right"),
        seen=inside.count,
        unseen=outside.count,
        separation=separation,
        null_deviation=null_deviation,
        above=above,
        p_values=(1 + above) / (1 + outside.count),
        p_value_intervals=_intervals(above, outside.count, confidence),
    )


def precision(tpr: float, fpr: float, prior: float) -> float | None:
    """The fraction of members among those that are called members, at a declared prior.

    Half of the candidates of an audit are members; of the people whom an attacker wonders about it
    may be one in a thousand.

    Args:
        tpr: True positive rate, in [0, 1]; an end of its interval gives that of the precision.
        fpr: False positive rate, in [0, 1].
        prior: Fraction of members among the rows that are attacked, in [0, 1].

    Returns:
        In [0, 1]; None where nobody is called a member.

    Source: Jayaraman et al. 2021, positive predictive value (arXiv:2005.10881).
    """
    for name, value in (("tpr", tpr), ("fpr", fpr), ("prior", prior)):
        if not 0 <= value <= 1:
            raise ValueError(f"Expected {name}={value!r} in [0, 1].")
    called = prior * tpr + (1 - prior) * fpr
    return prior * tpr / called if called > 0 else None


def _separation(inside: Side, outside: Side) -> tuple[Scores, Scores]:
    """The d' of each record, and its deviation where d' sqrt(n m / (n + m)) is Student's t."""
    freedom = inside.count + outside.count - 2
    both = (inside.count > 0) & (outside.count > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = np.sqrt((inside.squares + outside.squares) / freedom)
        difference = inside.mean - outside.mean
        # Equal means that do not vary are not separated.
        ratio = np.where(difference == 0, 0.0, difference / pooled)
        # The variance of Student's law is f / (f - 2), for f above 2.
        spread = np.sqrt((1 / inside.count + 1 / outside.count) * freedom / (freedom - 2))
    separation = np.where(both & (freedom > 0), ratio, np.nan)
    return separation, np.where(both & (freedom > 2), spread, np.inf)


def _intervals(above: NDArray[np.int64], unseen: NDArray[np.int64], confidence: float) -> Scores:
    """Clopper-Pearson's for each record; [0, 1] where no model is OUT."""

    @cache
    def interval(count: int, models: int) -> tuple[float, float]:
        return clopper_pearson(count, models, confidence) if models else (0.0, 1.0)

    pairs = zip(above.tolist(), unseen.tolist(), strict=True)
    return np.asarray([interval(*pair) for pair in pairs], dtype=np.float64)
