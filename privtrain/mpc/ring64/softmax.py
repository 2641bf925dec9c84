"""One-hot maximum and softmax, by tables and public functions of masked values.

All pairs are compared to the last bit of what is compared, so that near ties cannot go in a circle:
a maximum is exact, that of a softmax to 2^-17.
"""

import math
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.ring64.comparison import (
    Borrow,
    below_zero,
    coarse_bits,
    digit_tables,
    read_digits,
    window_of,
)
from privtrain.mpc.ring64.rectifier import bit_share, chosen, dealt_mask
from privtrain.mpc.ring64.ring import RING_BITS, shifted_right, top_bit
from privtrain.mpc.ring64.tables import (
    Bits,
    MaskedBits,
    Places,
    all_ones,
    digit_count,
    every,
    masked_bits,
    opened_octets,
    packed,
    random_octets,
)
from privtrain.mpc.ring64.wires import Wires

DEEPEST_BITS = 4
"""A value 2^4 = 16 or more below the largest counts as e^-infinity: e^-16 is 1e-7."""

GAP_BITS = 17
"""Bits of a gap after the point that count, an error of 2^-17 of its exponential at most; with the
four before it they are three digits of seven."""

_PUBLIC_BITS = 40
_MASK_BITS = 16
"""Bits of e^-(d + r) and of e^r: the first is as small as e^-16 where the second is e^16."""

NUMERATOR_BITS = 20
"""Bits of an exponential after it is cut, so that the errors of many do not add up in their sum."""

MOST_CLASSES = 255
"""The sum of so many exponentials stays below 2^28 as an integer, see `_cut`."""

SEGMENTS = 4
"""Segments between one whole number and the next in which 1 / sum is a polynomial."""

DEGREE = 4
"""Of that polynomial, whose error is 5e-6 at 1, where it is largest. A quadratic needs sixteen
segments for it, and more than twice the material."""

RECIPROCAL_BITS = 36
_TABLE_BITS = 20
_PLACE_BITS = RECIPROCAL_BITS - _TABLE_BITS


def largest(wires: Wires, masked: Tensor, mask: Tensor, *, limit: int | None = None) -> Tensor:
    """A share of 1 at the first largest element along the last dimension, else 0, as integers.

    Rounds: three for up to ten elements, one more for up to 82.

    Args:
        wires: This role's.
        masked: x + r, opened, `(..., values)`; integers x below 2^62 in magnitude.
        mask: r at the dealer, anything elsewhere.
        limit: A magnitude that no x exceeds; None where none is known.
    """
    window = window_of(None if limit is None else 2 * limit)
    bits = one_hot_largest(wires, _columns(masked), _columns(mask), window=window)
    share = bit_share(wires, bits, dealt_mask(wires, bits))
    return share.t().reshape(masked.shape)


def maximum(
    wires: Wires, share: Tensor, masked: Tensor, mask: Tensor, *, limit: int | None = None
) -> Tensor:
    """A share of the largest element along the last dimension, which goes; rounds as `largest`.

    Args:
        wires: This role's.
        share: Of x, `(..., values)`.
        masked: As for `largest`.
        mask: As for `largest`.
        limit: As for `largest`.
    """
    columns = [_columns(values) for values in (share, masked, mask)]
    window = window_of(None if limit is None else 2 * limit)
    one_hot = one_hot_largest(wires, *columns[1:], window=window)
    highest = chosen(wires, one_hot, dealt_mask(wires, one_hot), *columns).sum(0)
    return highest.reshape(share.shape[:-1])


def softmax_parts(
    wires: Wires,
    share: Tensor,
    masked: Tensor,
    mask: Tensor,
    bits: int,
    *,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Shares whose product is the softmax along the last dimension; seven rounds to ten classes.

    The product has an error of at most 1e-4; one round more to open both, one to truncate it.

    Args:
        wires: This role's.
        share: Of the logits x, `(rows, classes)`; any gaps between them.
        masked: x + r, opened; integers x below 2^62 - 2^14 in magnitude.
        mask: r at the dealer, anything elsewhere.
        bits: Bits of the logits after the point, at most 32.
        limit: As for `largest`.

    Returns:
        e^(x - largest) with 20 bits after the point, `(rows, classes)`, and one over their sums
        with 36 bits, `(rows, 1)`.

    Raises:
        UnsupportedError: If there are more than `MOST_CLASSES` classes.
    """
    classes = share.shape[-1]
    if classes > MOST_CLASSES:
        raise UnsupportedError(f"Expected classes={classes} <= {MOST_CLASSES} for a softmax.")
    share, masked, mask = _columns(share), _columns(masked), _columns(mask)
    # Each value is rounded once, down or up, as its mask has it, and not once a pair.
    coarse = coarse_bits(bits)
    highest_gap = None if limit is None else 2 * limit + (2 << coarse)
    window = RING_BITS - coarse
    if highest_gap is not None:
        window = min(window, window_of(-(-highest_gap >> coarse)))
    one_hot = one_hot_largest(wires, masked >> coarse, mask >> coarse, window=window)
    highest = chosen(wires, one_hot, dealt_mask(wires, one_hot), share, masked, mask).sum(0)
    gap = highest - share
    if coarse and wires.leader:
        # So much may another value be larger, as one was rounded up and the other one down. In all
        # exponentials it cancels out.
        gap += 2 << coarse
    gap_mask = wires.random(share.shape)
    (masked_gap,) = wires.open([gap + gap_mask])
    cut = _cut(wires, exponential(wires, masked_gap, gap_mask, bits, limit=highest_gap))
    inverse = reciprocal(wires, cut, classes)
    return cut.share.t().contiguous(), inverse.unsqueeze(1)


def _columns(values: Tensor) -> Tensor:
    """`(..., values)` as `(values, rows)`."""
    return values.reshape(-1, values.shape[-1]).t().contiguous()


def one_hot_largest(
    wires: Wires, masked: Tensor, mask: Tensor, *, window: int = RING_BITS
) -> MaskedBits:
    """Masked bits of which element is the first largest one of each column.

    Args:
        wires: This role's.
        masked: Opened values, `(values, columns)`.
        mask: Their masks at the dealer.
        window: Low bits that hold every difference of two values, see `below_zero`.
    """
    count, columns = masked.shape
    if count == 1:
        ones = np.ones((1, columns), np.uint8)
        return MaskedBits(ones, ones * 0)
    left, right = torch.tensor(list(combinations(range(count), 2))).unbind(1)
    # A difference has the difference of both masks: nothing is opened for it. Strictly above: on a
    # tie the left value, which comes first, counts as the larger one.
    difference = (masked[right] - masked[left] - 1).reshape(-1).numpy()
    difference_mask = (mask[right] - mask[left]).reshape(-1).numpy()
    left_is_larger = below_zero(wires, difference, difference_mask, window=window)
    pairs = _pairs_of_each_value(count)
    flips = (pairs < 0).astype(np.uint8)[..., np.newaxis]
    shape = (len(left), columns)
    outcome = MaskedBits(
        left_is_larger.masked.reshape(shape)[abs(pairs) - 1] ^ flips,
        left_is_larger.mask.reshape(shape)[abs(pairs) - 1],
    )
    return masked_bits(wires, every(wires, outcome))


def _pairs_of_each_value(count: int) -> NDArray[np.int64]:
    """The pairs that hold each value, `(values - 1, values)`, as signed numbers from 1.

    The sign is negative where the value is the right one of the pair.
    """
    pairs: list[list[int]] = [[] for _ in range(count)]
    for number, (left, right) in enumerate(combinations(range(count), 2), start=1):
        pairs[left].append(number)
        pairs[right].append(-number)
    return np.array(pairs).T


def exponential(
    wires: Wires, masked: Tensor, mask: Tensor, bits: int, *, limit: int | None = None
) -> Tensor:
    """A share of e^-d with 56 bits after the point, 0 where d >= 16; two rounds.

    With the low bits of d + r and r as d' and r', d is d' - r' where that is not negative and the
    high bits agree, d' - r' + 16 where it is and they differ by one; else d is 16 or more.

    Args:
        wires: This role's.
        masked: d + r, opened; integers d >= 0.
        mask: r at the dealer.
        bits: Bits of d after the point, of which `GAP_BITS` count.
        limit: No d exceeds it; None where no bound is known.
    """
    shape = tuple(masked.shape)
    drop = max(0, bits - GAP_BITS)
    place, mask_place = masked.reshape(-1).numpy() >> drop, mask.reshape(-1).numpy() >> drop
    bits -= drop
    low, top = bits + DEEPEST_BITS, RING_BITS - drop
    if limit is not None:
        # Rounded up it may be one more.
        top = min(top, max(low + 1, ((limit >> drop) + 1).bit_length()))
    state = _state(wires, place, mask_place, low, top)
    turn = (1 << low) - 1

    def table() -> Tensor:
        # By the masked bits: which power of e remains when the mask has changed them.
        power = np.exp((mask_place & turn) / 2.0**bits)
        near, before = power, power * math.exp(-(2.0**DEEPEST_BITS))
        true = np.arange(8).reshape(-1, 1) ^ packed(state.mask)
        same, next_to, borrow = (true >> number & 1 for number in range(3))
        values = np.where(borrow == 1, next_to * before, same * near)
        return torch.from_numpy(np.rint(values * 2.0**_MASK_BITS).astype(np.int64))

    dealt = wires.dealt(table, (8, len(place)))
    if wires.deals:
        return dealt[0].reshape(shape)
    picked = dealt.gather(0, torch.from_numpy(packed(state.masked).astype(np.int64))[None])[0]
    public = np.rint(np.exp(-(place & turn) / 2.0**bits) * 2.0**_PUBLIC_BITS)
    return (picked * torch.from_numpy(public.astype(np.int64))).reshape(shape)


def _state(wires: Wires, place: Places, mask: Places, low: int, top: int) -> MaskedBits:
    """Masked bits `(3, values)`: equal high bits, high bits one apart, borrow of the low bits."""
    above = digit_count(top - low)
    low_tables = digit_tables(wires, mask, 0, low)
    less, equal = read_digits(wires, low_tables, place, 0, low)
    borrow = Borrow.of(wires, less, equal)
    high_tables = digit_tables(wires, mask, low, top)
    # The mask's digits are compared with the public ones, and with those of one less.
    same = read_digits(wires, high_tables, place, low, top)[1]
    next_to = read_digits(wires, high_tables, place - (1 << low), low, top)[1]
    masks = random_octets(wires, (2, len(place)))
    shares = [*borrow.masked_shares(), packed(same) ^ masks[0], packed(next_to) ^ masks[1]]
    *opened, masked_same, masked_next = opened_octets(wires, shares)
    agree: list[Bits] = [
        all_ones(wires, masked_octets.astype(np.int64), octets.astype(np.int64), above)
        for masked_octets, octets in ((masked_same, masks[0]), (masked_next, masks[1]))
    ]
    return masked_bits(wires, np.stack([*agree, borrow.share(*opened)]))


@dataclass(frozen=True)
class CutValues:
    """Exponentials with 20 bits after the point, and their sums under a mask.

    Args:
        share: Of the exponentials, `(classes, rows)`.
        masked_sum: Sum and mask modulo 2^28, `(rows,)`.
        sum_mask: The mask at the dealer, anything elsewhere.
    """

    share: Tensor = field(repr=False)
    masked_sum: Tensor = field(repr=False)
    sum_mask: Tensor = field(repr=False)


def _cut(wires: Wires, wide: Tensor) -> CutValues:
    """Exponentials without their last 36 bits, as in `Ring64Session.truncated`; one round.

    What is opened for it gives the masked sum as well: (masked >> f) - 2^(62 - f) is the quotient
    plus rho >> f, but for a multiple of 2^(64 - f) = 2^28.
    """
    drop, half = _PUBLIC_BITS + _MASK_BITS - NUMERATOR_BITS, RING_BITS - 2
    rho = wires.random(wide.shape)
    high = wires.dealt(lambda: shifted_right(rho, drop), wide.shape)
    wrap = wires.dealt(lambda: top_bit(rho), wide.shape, bits=drop) << (RING_BITS - drop)
    (masked,) = wires.open([wide + rho + (1 << half) if wires.leader else wide + rho])
    share, public = (wrap & ~(masked >> RING_BITS - 1)) - high, shifted_right(masked, drop)
    public = public - (1 << (half - drop))
    if wires.leader:
        share = share + public
    modulus = (1 << (RING_BITS - drop)) - 1
    return CutValues(share, public.sum(0) & modulus, shifted_right(rho, drop).sum(0) & modulus)


def reciprocal(wires: Wires, cut: CutValues, classes: int) -> Tensor:
    """A share of 1 / sum with 36 bits after the point; no round.

    Where the public masked sum lies in a segment, the sum lies in an interval that the mask gives:
    there the dealer knows a polynomial in the place within the segment.

    Args:
        wires: This role's.
        cut: The exponentials; their sums are in 1..classes.
        classes: How many there are.
    """
    # Beside the last sum there is room for the segment that wraps around to the first one.
    span = 1 << classes.bit_length()
    segments, width = SEGMENTS * span, (1 << NUMERATOR_BITS) // SEGMENTS
    period = (span << NUMERATOR_BITS) - 1
    rows = len(cut.masked_sum)
    dealt = wires.dealt(
        lambda: _polynomials(cut.sum_mask.numpy(), segments, width, period),
        (DEGREE + 1, segments, rows),
    )
    if wires.deals:
        return dealt[0, 0]
    place = cut.masked_sum & period
    segment = (place // width).expand(DEGREE + 1, 1, rows)
    coefficients = dealt.gather(1, segment)[:, 0]
    # From -1 to 1 within the segment.
    inside = ((place % width).double() * 2 + 1) / width - 1
    chebyshev = [torch.ones_like(inside), inside]
    while len(chebyshev) <= DEGREE:
        chebyshev.append(2 * inside * chebyshev[-1] - chebyshev[-2])
    public = (torch.stack(chebyshev) * 2**_PLACE_BITS).round().long()
    share: Tensor = (coefficients * public).sum(0)
    return share


def _polynomials(mask: Places, segments: int, width: int, period: int) -> Tensor:
    """Factors `(degree + 1, segments, rows)` of Chebyshev polynomials in 1 / s, by segments."""
    result = np.empty((DEGREE + 1, segments, len(mask)), np.int64)
    # Few rows at a time, whose values stay in cache.
    for first in range(0, len(mask), 32):
        rows = slice(first, first + 32)
        result[..., rows] = _few_polynomials(mask[rows], segments, width, period)
    return torch.from_numpy(result)


def _few_polynomials(mask: Places, segments: int, width: int, period: int) -> NDArray[np.float64]:
    start = (np.arange(segments).reshape(-1, 1) * width - mask) & period
    unit = 2.0**NUMERATOR_BITS
    half = width / unit / 2
    # No sum lies below 1; a segment that begins just before it reads on.
    middle = np.maximum((start - 0.5) / unit + half, 1 - 2 * half)
    # With w^2 = m^2 - h^2 and q = (m - w) / h, where m is a segment's middle and h its half,
    # 1 / (m + h t) is 1 / w times 1 + 2 sum of (-q)^k T_k(t): the generating function
    # (1 - q^2) / (1 - 2 q t + q^2) of Chebyshev polynomials at -q.
    root = np.sqrt(middle**2 - half**2)
    ratio, first = (root - middle) / half, 2.0**_TABLE_BITS / root
    values = np.empty((DEGREE + 1, *start.shape))
    values[0] = first
    for power in range(1, DEGREE + 1):
        np.multiply(values[power - 1], 2 * ratio if power == 1 else ratio, out=values[power])
    return np.rint(values, out=values)
