"""Scores from one signal of the target alone: loss, gradient norm, labels of noisy copies."""

import numpy as np
from numpy.typing import ArrayLike

from privtrain.attacks.scores import Scores


def loss_scores(losses: ArrayLike) -> Scores:
    """Minus the loss of each row.

    Args:
        losses: Shape `(candidates,)`.

    Returns:
        Same shape; -inf where a loss is NaN or inf, the largest float where it is -inf.

    Source: Yeom et al. 2018, section 3.3 (arXiv:1709.01604).
    """
    largest = np.finfo(np.float64).max
    array = _rows("losses", losses)
    return np.nan_to_num(-array, nan=-np.inf, posinf=largest, neginf=-np.inf)


def gradient_norm_scores(norms: ArrayLike) -> Scores:
    """Minus the norm of each row's own gradient at the published weights.

    Training drives the gradients of members towards zero; who holds the weights can compute them.

    Args:
        norms: L2 norms of per-example gradients, shape `(candidates,)`; at least 0.

    Returns:
        Same shape; -inf where a norm is NaN or inf.

    Raises:
        ValueError: If a norm is negative.

    Source: Nasr, Shokri and Houmansadr 2019, section III (arXiv:1812.00910).
    """
    array = _rows("norms", norms)
    if (array < 0).any():
        raise ValueError(f"Expected norms >= 0; the smallest is {np.nanmin(array)}.")
    return loss_scores(array)


def robustness_scores(agreement: ArrayLike) -> Scores:
    """The fraction of a row's noisy copies that keep its true label: by labels alone.

    It takes as many values as there are copies, and one more: with few of them many rows tie, and
    a low false positive rate is not reached.

    Args:
        agreement: True where the label that the target gives a noisy copy is the row's true one,
            bool, shape `(copies, candidates)`; copies >= 1, each of which is a query.

    Returns:
        Shape `(candidates,)`, in [0, 1].

    Raises:
        ValueError: If the type or the shape does not fit.

    Source: Choquette-Choo et al. 2021, robustness to random noise (arXiv:2007.14321).
    """
    array = np.asarray(agreement)
    if array.dtype != np.bool_ or array.ndim != 2 or not array.size:
        raise ValueError(
            f"Expected agreement of type {array.dtype} with shape {array.shape} to be bool "
            "(copies, candidates), at least one of each."
        )
    return np.asarray(array.mean(axis=0))


def _rows(name: str, values: ArrayLike) -> Scores:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"Expected {name} with shape {array.shape} to be (candidates,), >= 1.")
    return array
