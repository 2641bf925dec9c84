"""Values of shadow models on the candidates, and which models each candidate was trained in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.attacks.scores import Scores

Flags = NDArray[np.bool_]
"""Yes or no for each value."""


@dataclass(frozen=True, eq=False)
class Side:
    """What the models that saw a row, or those that did not, say of it; one value a row.

    Args:
        count: The number of models, shape `(candidates,)`.
        mean: Their mean; NaN where there is none.
        squares: Sum of their squared deviations from that mean.
    """

    count: NDArray[np.int64]
    mean: Scores
    squares: Scores


def checked(
    target: ArrayLike, shadows: ArrayLike, included: ArrayLike
) -> tuple[Scores, Scores, Flags]:
    """The three arrays of an attack with shadow models, in float64 and bool.

    Args:
        target: Values of the target on the candidates, shape `(candidates,)`.
        shadows: Values of the shadow models, shape `(models, candidates)`.
        included: True where the model was trained on the candidate, same shape, of type bool.

    Raises:
        ValueError: If a shape or the type does not fit.
    """
    values = np.asarray(target, dtype=np.float64)
    models = np.asarray(shadows, dtype=np.float64)
    flags = np.asarray(included)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"Expected target with shape {values.shape} to be (candidates,), candidates >= 1."
        )
    if models.ndim != 2 or models.shape[1] != len(values) or not len(models):
        raise ValueError(
            f"Expected shadows with shape {models.shape} to be (models, {len(values)}), at least "
            "one model."
        )
    if flags.dtype != np.bool_ or flags.shape != models.shape:
        raise ValueError(
            f"Expected included of type {flags.dtype} with shape {flags.shape} to be bool "
            f"{models.shape}, as shadows are."
        )
    return values, models, flags


def side(shadows: Scores, chosen: Flags) -> Side:
    """The moments over the chosen models of each row.

    Args:
        shadows: Finite where they are chosen, shape `(models, candidates)`.
        chosen: `included` for the models that saw a row, `~included` for the others.
    """
    count = chosen.sum(axis=0)
    # From the first of them: the mean of equal values is that value, and their deviations are 0.
    first = np.take_along_axis(shadows, chosen.argmax(axis=0)[None], axis=0)[0]
    with np.errstate(invalid="ignore"):
        mean = first + np.where(chosen, shadows - first, 0.0).sum(axis=0) / count
    deviations = np.subtract(shadows, mean, out=np.zeros_like(shadows), where=chosen)
    return Side(count, mean, np.square(deviations).sum(axis=0))


def usable(target: Scores, shadows: Scores, needed: Flags) -> Flags:
    """Which rows have finite values in the target and in all models that are needed.

    Raises:
        ValueError: If no row has.
    """
    rows: Flags = np.isfinite(target) & (np.isfinite(shadows) | ~needed).all(axis=0)
    if not rows.any():
        broken = np.flatnonzero(~(np.isfinite(shadows) | ~needed).any(axis=1)).tolist()
        raise ValueError(
            "Expected target and shadows to be finite in one row at least; in each row one of them "
            f"is not, and of shadows the models {broken} are finite in none. Leave those out, or "
            "train them with a smaller learning rate."
        )
    return rows


def check_side(models: Side, name: str, rows: Flags) -> None:
    """Refuses rows that no model, or every model, was trained on.

    Args:
        models: Of the rows that are scored.
        name: "IN" or "OUT".
        rows: Which of the candidates these rows are.

    Raises:
        ValueError: If a row has no model on this side.
    """
    if without := int((models.count == 0).sum()):
        first = int(np.flatnonzero(rows)[models.count == 0][0])
        raise ValueError(
            f"Expected included to give every candidate a model that is {name}; {without} have "
            f"none, the first is candidate {first}. Train shadows in complementary pairs."
        )
