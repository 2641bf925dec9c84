"""Maximum, softmax and what they need, on CrypTen's tensors, in fewer rounds than its own.

Nothing here opens a value or imports CrypTen: a shared tensor is whatever has `gt`, products, sums
and indexing. Comparisons give bits without a binary point, so their products are exact.
"""

import math
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

FLOOR = -(2.0**13)
"""Below every value of a maximum: what short groups are filled up with."""

_GROUP = 4


def champion(shared: Any) -> Any:
    """1 at the first largest value along the last dimension and 0 elsewhere.

    All pairs are compared at once: as many rounds as one comparison, and log2(values) products.

    Args:
        shared: Shape `(..., values)`.

    Returns:
        Bits, same shape.
    """
    count = shared.size(-1)
    left, right = torch.tensor(list(combinations(range(count), 2))).unbind(1)
    loses = (shared[..., right] - shared[..., left]).gt(0)  # on a tie the first one wins
    duels = _duels(count)
    against = loses[..., duels.abs() - 1]
    # The loser's bit is 1; the winner's is its complement.
    sign = duels.sign()
    wins = against * (-sign) + (sign > 0).long()
    return _product(wins)


def _duels(count: int) -> Tensor:
    """For each value, the duels it is in: number + 1, negative where it is on the right."""
    rows: list[list[int]] = [[] for _ in range(count)]
    for number, (left, right) in enumerate(combinations(range(count), 2), start=1):
        rows[left].append(number)
        rows[right].append(-number)
    return torch.tensor(rows)


def _product(shared: Any) -> Any:
    while shared.size(-1) > 1:
        half = shared.size(-1) // 2
        rest = shared[..., 2 * half :]
        shared = shared[..., :half] * shared[..., half : 2 * half]
        if rest.size(-1):
            shared = type(shared).cat([shared, rest], dim=-1)
    return shared[..., 0]


def maximum(shared: Any) -> Any:
    """Largest value along the last dimension, by groups of four.

    Args:
        shared: Shape `(batch, values)`; values above `FLOOR`.

    Returns:
        Shape `(batch, 1)`.
    """
    while (count := shared.size(-1)) > 1:
        group = min(_GROUP, count)
        missing = -count % group
        if missing:
            shared = shared.pad((0, missing), value=FLOOR)
        groups = shared.reshape(shared.size(0), -1, group)
        shared = (groups * champion(groups)).sum(-1)
    return shared


def exponential(shared: Any) -> Any:
    """e^x of values in [-160, 0].

    (p(x / 64))^64, where the cubic p interpolates e^y on [-1/4, 0] at Chebyshev nodes (error
    1.2e-6): 8 rounds, as many as CrypTen's (1 + x / 256)^256.
    """
    small = shared.div(64)
    result = small * 0.99985 + 1 + small.square() * (small * 0.14720 + 0.49702)
    for _ in range(6):
        result = result.square()
    return result


def reciprocal(shared: Any, largest: int) -> Any:
    """1 / d of values in [1, largest], by Newton's iteration from the best straight line.

    Args:
        shared: The denominators.
        largest: Upper end of their public range.
    """
    if largest == 1:
        return shared
    bottom = largest**2 + 6 * largest + 1
    result = shared * (-8 / bottom) + 8 * (1 + largest) / bottom
    error = (largest - 1) ** 2 / bottom
    for _ in range(math.ceil(math.log2(math.log(2.0**-18) / math.log(error)))):
        result = result * (2 - result * shared)
    return result


def softmax(logits: Any) -> Any:
    """Probabilities along the last dimension; gaps between logits of up to 160.

    Args:
        logits: Shape `(batch, classes)`.

    Returns:
        Shape `(batch, classes)`.
    """
    numerators = exponential(logits - maximum(logits))
    return numerators * reciprocal(numerators.sum(-1, keepdim=True), logits.size(-1))
