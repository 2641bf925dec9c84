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
"""The padding of short groups, below every value whose maximum is taken."""

# The number of pairs grows with the square: six in a group of four, 45 among ten values.
_GROUP = 4


def one_hot_argmax(shared: Any) -> Any:
    """1 at the first largest value along the last dimension and 0 elsewhere.

    All pairs are compared at once: as many rounds as one comparison, and log2(values) products.

    Args:
        shared: Shape `(..., values)`.

    Returns:
        Bits, same shape.
    """
    count = shared.size(-1)
    left, right = torch.tensor(list(combinations(range(count), 2))).unbind(1)
    # Strictly above: on a tie the left value, which comes first, counts as the larger one.
    right_is_larger = (shared[..., right] - shared[..., left]).gt(0)
    pairs = _pairs_of_each_value(count)
    outcome = right_is_larger[..., pairs.abs() - 1]
    # The right value of a pair is the larger one where the bit is 1, the left one where it is 0.
    side = pairs.sign()
    is_larger = outcome * (-side) + (side > 0).long()
    # The largest value is the larger one of all its pairs.
    return _product(is_larger)


def _pairs_of_each_value(count: int) -> Tensor:
    """The pairs that hold each value, `(values, values - 1)`, as signed numbers from 1.

    The sign is negative where the value is the right one of the pair.
    """
    pairs: list[list[int]] = [[] for _ in range(count)]
    for number, (left, right) in enumerate(combinations(range(count), 2), start=1):
        pairs[left].append(number)
        pairs[right].append(-number)
    return torch.tensor(pairs)


def _product(shared: Any) -> Any:
    """The product along the last dimension, by halves: log2(values) rounds."""
    while shared.size(-1) > 1:
        half = shared.size(-1) // 2
        rest = shared[..., 2 * half :]
        shared = shared[..., :half] * shared[..., half : 2 * half]
        if rest.size(-1):
            shared = type(shared).cat([shared, rest], dim=-1)
    return shared[..., 0]


def maximum(shared: Any) -> Any:
    """The largest value along the last dimension, by groups of four.

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
        # One-hot bits select each group's largest value without telling where it is.
        shared = (groups * one_hot_argmax(groups)).sum(-1)
    return shared


def exponential(shared: Any) -> Any:
    """e^x of values in [-160, 0].

    (p(x / 64))^64, where the cubic p interpolates e^y on [-1/4, 0] at Chebyshev nodes (error
    1.2e-6): 8 rounds, as many as CrypTen's (1 + x / 256)^256.
    """
    small = shared.div(64)
    result = small * 0.99985 + 1 + small.square() * (small * 0.14720 + 0.49702)
    # Six squarings make the 64th power. Below -1/4 the cubic is not e^y, but its magnitude stays
    # below 0.78, the 64th power of which is 1e-7.
    for _ in range(6):
        result = result.square()
    return result


def reciprocal(shared: Any, largest: int) -> Any:
    """1 / d of values d in [1, largest], by Newton's iteration from the best straight line.

    Args:
        shared: The denominators.
        largest: Upper end of their public range.
    """
    if largest == 1:
        return shared
    # Of all lines r(d), this one has the smallest largest |1 - d r(d)|: the error is attained with
    # alternating signs at 1, (1 + largest) / 2 and largest.
    bottom = largest**2 + 6 * largest + 1
    result = shared * (-8 / bottom) + 8 * (1 + largest) / bottom
    error = (largest - 1) ** 2 / bottom
    # Newton's step r <- r (2 - d r) squares 1 - d r; 2^-18 is below what fixed point resolves.
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
    # The largest logit becomes zero, so that no power overflows and the sum of the exponentials
    # lies in [1, classes], which is the public range that the reciprocal needs.
    numerators = exponential(logits - maximum(logits))
    return numerators * reciprocal(numerators.sum(-1, keepdim=True), logits.size(-1))
