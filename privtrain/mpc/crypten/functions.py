"""Maximum, softmax and what they need, on CrypTen's tensors, in fewer rounds than its own.

Nothing here opens a value or imports CrypTen: a shared tensor is whatever has `gt`, products, sums
and indexing. Comparisons give bits without a binary point, so their products are exact.
"""

import math
from itertools import accumulate, combinations

import torch
from torch import Tensor

from privtrain.mpc.engine import Shared

DEEPEST = 16.0
"""A gap between logits counts as at most this: e^-16 is below what fixed point resolves."""

# The number of pairs grows with the square: six in a group of four, 45 among ten values.
_GROUP = 4


def one_hot_argmax(shared: Shared) -> Shared:
    """1 at the first largest value along the last dimension and 0 elsewhere.

    All pairs are compared at once: as many rounds as one comparison, and log2(values) products.

    Args:
        shared: Shape `(..., values)`.

    Returns:
        Bits, same shape.
    """
    # The largest value is the larger one of all its pairs.
    return _product(_larger_of_pairs(_differences(shared).gt(0), shared.size(-1)))


def _differences(shared: Shared) -> Shared:
    """The right value less the left one for each pair, shape `(..., pairs)`."""
    left, right = torch.tensor(list(combinations(range(shared.size(-1)), 2))).unbind(1)
    return shared[..., right] - shared[..., left]


def _larger_of_pairs(right_is_larger: Shared, count: int) -> Shared:
    """Whether each value is the larger one of each of its pairs, `(..., values, values - 1)`."""
    # Strictly above: on a tie the left value, which comes first, counts as the larger one.
    pairs = _pairs_of_each_value(count)
    outcome = right_is_larger[..., pairs.abs() - 1]
    # The right value of a pair is the larger one where the bit is 1, the left one where it is 0.
    side = pairs.sign()
    return outcome * (-side) + (side > 0).long()


def _pairs_of_each_value(count: int) -> Tensor:
    """The pairs that hold each value, `(values, values - 1)`, as signed numbers from 1.

    The sign is negative where the value is the right one of the pair.
    """
    pairs: list[list[int]] = [[] for _ in range(count)]
    for number, (left, right) in enumerate(combinations(range(count), 2), start=1):
        pairs[left].append(number)
        pairs[right].append(-number)
    return torch.tensor(pairs)


def _product(shared: Shared) -> Shared:
    """The product along the last dimension, by halves: log2(values) rounds."""
    while shared.size(-1) > 1:
        half = shared.size(-1) // 2
        rest = shared[..., 2 * half :]
        shared = shared[..., :half] * shared[..., half : 2 * half]
        if rest.size(-1):
            shared = type(shared).cat([shared, rest], dim=-1)
    return shared[..., 0]


def below_largest(shared: Shared) -> Shared:
    """How far each value lies below the largest one, in steps that count as at most `DEEPEST`.

    The largest is found by groups of four, then among the largest of the groups, and so on. A value
    lies below that of its group, which lies below that of the next group: each of these gaps is
    clamped. Their sum is the exact gap where it is at most `DEEPEST`, and at least that elsewhere.

    Args:
        shared: Shape `(batch, values)`.

    Returns:
        Shape `(batch, values)`, in `[-DEEPEST * levels(values), 0]`.
    """
    if shared.size(-1) == 1:
        return shared - shared
    if shared.size(-1) == 2:
        return _below_other(shared)
    cat = type(shared).cat
    gaps: list[Shared] = []
    near: list[Shared] = []
    largest = shared
    while (count := largest.size(-1)) > 1:
        largest, gap, bits = _level(largest, gaps[-1] if gaps else None)
        gaps.append(gap[:, :count])
        near += bits
    every = cat(gaps, dim=-1) + DEEPEST
    clamped = every * cat(near, dim=-1)
    total, start = shared - shared, 0
    for level, gap in enumerate(gaps):
        place = start + torch.arange(shared.size(-1)) // _GROUP**level
        total = total + clamped[:, place] - DEEPEST
        start += gap.size(-1)
    return total


def _below_other(shared: Shared) -> Shared:
    """`below_largest` of two values, by one product rather than two in turn."""
    gaps = shared - shared[:, torch.tensor([1, 0])]
    bits: Shared = type(shared).cat([gaps[:, 1:], gaps + DEEPEST], dim=-1).gt(0)
    larger = _larger_of_pairs(bits[:, :1], 2)[..., 0]
    # The larger value lies near, so that what the bits differ by is a bit: near and not the larger.
    return (gaps + DEEPEST) * (larger * -1 + bits[:, 1:]) + larger * DEEPEST - DEEPEST


def levels(count: int) -> int:
    """How often the largest of a number of values is looked for in groups."""
    return 0 if count == 1 else 1 + levels(-(-count // _GROUP))


def _level(values: Shared, below: Shared | None) -> tuple[Shared, Shared, list[Shared]]:
    """One round of comparisons within groups.

    Args:
        values: Shape `(batch, values)`.
        below: Gaps of the level before, `(batch, gaps)`, or None; they are compared along.

    Returns:
        The largest of each group `(batch, groups)`, the gaps to them `(batch, places)`, and bits of
        which gaps are smaller than `DEEPEST`: those of `below`, and in the last level its own.
    """
    cat, batch, count = type(values).cat, values.size(0), values.size(-1)
    group = min(_GROUP, count)
    # A short group is filled by values that lose to its own, whatever they are.
    missing = -count % group
    filled = cat([values, values[:, :missing]], dim=-1) if missing else values
    groups = filled.reshape(batch, -1, group)
    differences = _differences(groups)
    asked, places = _real_pairs(count, group)
    questions = [differences.reshape(batch, -1)[:, asked]]
    last = groups.size(1) == 1
    if last:
        # Nothing is compared after it: whether a value lies near to the largest follows from
        # whether it lies near to every other one. A difference, and no product with signs: CrypTen
        # encodes a tensor of whole numbers, too, and the product is then truncated.
        each = torch.arange(group)
        others = torch.stack([each[each != value] for value in each])
        own = groups[..., each.unsqueeze(1).expand_as(others)] - groups[..., others] + DEEPEST
        questions.append(own.reshape(batch, -1))
    if below is not None:
        questions.append(below + DEEPEST)
    answers = _split(cat(questions, dim=-1).gt(0), [part.size(-1) for part in questions])
    known = cat([answers[0], answers[0][:, :1] * 0], dim=-1)[:, places] if missing else answers[0]
    larger = _larger_of_pairs(known.reshape(batch, groups.size(1), -1), group)
    near = answers[len(answers) - 1 :] if below is not None else []
    if last:
        ones = _product(cat([larger, answers[1].reshape(batch, 1, group, -1)], dim=2))
        one_hot, near = ones[..., :group], [*near, ones[:, 0, group:]]
    else:
        one_hot = _product(larger)
    # One-hot bits select each group's largest value without telling where it is.
    largest = (groups * one_hot).sum(-1)
    gaps = groups - largest.reshape(batch, groups.size(1), 1)
    return largest, gaps.reshape(batch, -1), near


def _real_pairs(count: int, group: int) -> tuple[Tensor, Tensor]:
    """Which pairs of all groups have no filler on their right, `(asked,)`.

    And for each pair its place among them, `(pairs,)`; where it has a filler, the place after them.
    """
    right = torch.tensor(list(combinations(range(group), 2)))[:, 1]
    starts = torch.arange(0, count, group)
    real = (starts.unsqueeze(1) + right < count).reshape(-1)
    asked = real.nonzero().squeeze(1)
    return asked, torch.where(real, real.cumsum(0) - 1, len(asked))


def _split(shared: Shared, sizes: list[int]) -> list[Shared]:
    ends = list(accumulate(sizes))
    return [shared[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]


def exponential(shared: Shared, least: float) -> Shared:
    """e^x of values in [least, 0], with an error of at most 5e-5 beside that of fixed point.

    (p(x / n))^n, where the cubic p interpolates e^y on [-1/4, 0] at Chebyshev nodes (error 1.2e-6).

    Args:
        shared: Exponents.
        least: Lower end of their public range.
    """
    # Below -1/4 the cubic is not e^y, but between -1/4 and -1 its power still is, within 1e-5, and
    # between -1 and -5/2 its magnitude stays below 0.7. Beyond that it grows without a bound.
    squarings = max(4, math.ceil(math.log2(-least / 2.5)) if least else 0)
    small = shared.div(2**squarings)
    result = small * 0.99985 + 1 + small.square() * (small * 0.14720 + 0.49702)
    for _ in range(squarings):
        result = result.square()
    return result


def reciprocal(shared: Shared, largest: int) -> Shared:
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


def softmax(logits: Shared) -> Shared:
    """Probabilities along the last dimension, whatever the gaps between logits.

    Args:
        logits: Shape `(batch, classes)`.

    Returns:
        Shape `(batch, classes)`.
    """
    # The largest logit becomes zero, so that no power overflows and the sum of the exponentials
    # lies in [1, classes], which is the public range that the reciprocal needs.
    least = -DEEPEST * levels(logits.size(-1))
    numerators = exponential(below_largest(logits), least)
    return numerators * reciprocal(numerators.sum(-1, keepdim=True), logits.size(-1))
