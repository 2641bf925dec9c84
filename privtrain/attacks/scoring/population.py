"""Attack P: where a row's loss stands among the losses of population rows, under the same model.

Ye, Maddi, Murakonda, Bindschaedler and Shokri 2022, Enhanced Membership Inference Attacks against
Machine Learning Models (arXiv:2111.09679): the attack by population data.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privtrain.attacks.scores import Scores


def scores(losses: ArrayLike, population: ArrayLike) -> Scores:
    """The fraction of population rows with a larger loss: 1 - alpha of the threshold just reached.

    Args:
        losses: Of the target on the candidates, shape `(candidates,)`.
        population: Of the target on population rows, none of them trained on, shape `(rows,)`.

    Returns:
        A whole number of rows over their number, shape `(candidates,)`; -inf where a loss is NaN.
        A row of the population with the same loss is not counted.

    Raises:
        ValueError: If a shape does not fit or a loss of the population is NaN.

    Source: attack P: a row is called a member where its loss is at most c, and alpha is the
        fraction of population rows of which that is true.
    """
    rows, others, reached = _reached(losses, population)
    return np.asarray(np.where(np.isnan(rows), -np.inf, (others - reached) / others))


def p_values(losses: ArrayLike, population: ArrayLike) -> Scores:
    """The probability of a rank so low, if the row is a further row of the population.

    (1 + the number of population rows with a loss at most the row's) / (1 + their number). So it is
    at most alpha with probability alpha at most, for any number of rows; without the 1 it would be
    0 too often. Ties count against membership.

    Args and raises: as `scores`.

    Returns:
        Shape `(candidates,)`, in (0, 1]; 1 where a loss is NaN.

    Source: Phipson and Smyth 2010, section 2, of the rank of attack P.
    """
    rows, others, reached = _reached(losses, population)
    return np.asarray(np.where(np.isnan(rows), 1.0, (1 + reached) / (1 + others)))


def _reached(losses: ArrayLike, population: ArrayLike) -> tuple[Scores, int, NDArray[np.int64]]:
    """The losses, the number of population rows, and how many of those have at most each loss."""
    rows, others = (np.asarray(array, dtype=np.float64) for array in (losses, population))
    for name, array in (("losses", rows), ("population", others)):
        if array.ndim != 1 or not array.size:
            raise ValueError(f"Expected {name} with shape {array.shape} to be (rows,), rows >= 1.")
    if np.isnan(others).any():
        raise ValueError(
            f"Expected population without NaN; it holds {int(np.isnan(others).sum())}. Leave such "
            "rows out."
        )
    return rows, len(others), np.searchsorted(np.sort(others), rows, side="right")
