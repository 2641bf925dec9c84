"""Sigmoid and softmax of authenticated values, by public functions of what was opened."""

from typing import Protocol

import torch
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.mpc.ring64.session import Bilinear, Cut
from privtrain.mpc.ring64.tensors import Ring64Tensor
from privtrain.mpc.spdz2k import series
from privtrain.mpc.spdz2k.comparison import (
    Opens,
    below_zero,
    coarse_bits,
    opened,
    tournament,
    window_of,
)
from privtrain.mpc.spdz2k.forms import Form

NUMERATOR_BITS, RECIPROCAL_BITS = 20, 21
"""Bits of exponentials and of one over their sum, whose product stays below 2^42."""


class Multiplies(Opens, Protocol):
    """What a softmax asks of its session."""

    def masked(self, value: Ring64Tensor) -> tuple[Tensor, Form]:
        """A value under its mask, and the mask."""
        ...

    def truncated(self, cuts: list[Cut]) -> list[Ring64Tensor]:
        """Values without their last bits."""
        ...

    def product(
        self, function: Bilinear, left: Ring64Tensor, right: Ring64Tensor, *, widest: int
    ) -> Ring64Tensor:
        """A product."""
        ...


def sigmoid(session: Opens, masked: Tensor, mask: Form, bits: int) -> Form:
    """1 / (1 + e^-x) with `series.RESULT_BITS` bits after the point; no round.

    Args:
        session: The open session.
        masked: x + r, opened, any shape; x at most `series.SIGMOID_REACH` in magnitude.
        mask: r.
        bits: Bits of x after the point.
    """
    dealt = session.wires.dealt(
        lambda: torch.from_numpy(series.sigmoid_table(mask.share.numpy(), bits)),
        (2 * series.SIGMOID_TERMS, *masked.shape),
    )
    public = torch.from_numpy(series.public_sigmoid(masked.numpy(), bits))
    return (dealt * public).sum(0).shifted(torch.tensor(series.SIGMOID_OFFSET))


def softmax(session: Multiplies, value: Ring64Tensor) -> Ring64Tensor:
    """Probabilities along the last dimension, of 41 bits; 14 rounds to ten classes.

    A class e^-8 or less times as likely as the first one counts as impossible.

    Args:
        session: The open session.
        value: The logits; any gaps between them.

    Raises:
        UnsupportedError: If there are more classes than `series.MOST_CLASSES`.
    """
    shape, classes = value.shape, value.shape[-1]
    if classes > series.MOST_CLASSES:
        raise UnsupportedError(f"Expected classes={classes} <= {series.MOST_CLASSES}.")
    if classes == 1:
        return (value * 0 + 1).reshape(*shape)
    columns = value.reshape(-1, classes).t().share
    numerators = exponentials(session, columns, value)
    (exponential,) = session.truncated(
        [Cut(value.derived(numerators, series.RESULT_BITS), series.RESULT_BITS - NUMERATOR_BITS)]
    )
    # What is opened for the product gives the masked sum as well.
    masked, mask = session.masked(exponential)
    total, total_mask = masked.sum(0), mask.sum(0)
    terms = 2 * series.reciprocal_terms(classes)
    dealt = session.wires.dealt(
        lambda: torch.from_numpy(
            series.reciprocal_table(total_mask.share.numpy(), NUMERATOR_BITS, classes)
        ),
        (terms, *total.shape),
    )
    public = series.public_reciprocal(total.numpy(), NUMERATOR_BITS, classes)
    wide = value.derived((dealt * torch.from_numpy(public)).sum(0), series.RESULT_BITS)
    (inverse,) = session.truncated([Cut(wide, series.RESULT_BITS - RECIPROCAL_BITS)])
    product = session.product(
        torch.mul, exponential, inverse, widest=NUMERATOR_BITS + RECIPROCAL_BITS
    )
    return product.t().reshape(*shape)


def exponentials(session: Opens, columns: Form, value: Ring64Tensor) -> Form:
    """e^(x - largest) with `series.RESULT_BITS` bits, 0 below e^-8; two rounds and the maximum's.

    All of them are smaller by one factor of almost 1, which cancels out in a softmax.

    Args:
        session: The open session.
        columns: x, `(classes, columns)`.
        value: What they are of: its bits after the point, and its largest magnitude.
    """
    bits, limit = value.bits, value.largest
    coarse = coarse_bits(bits)
    gap = None if limit is None else 2 * limit + 1
    window = window_of(None if gap is None else gap + (2 << coarse))
    highest, _ = tournament(session, columns, window=window, coarse=coarse)
    # So much may the largest value exceed what was found, half a unit for each of its games. Then
    # e^x would be beyond the range of the exponential.
    games = (columns.shape[0] - 1).bit_length()
    reach = (series.EXPONENTIAL_RANGE << bits) - (games << coarse)
    near = (columns - highest).shifted(torch.tensor(reach))
    near_mask = session.wires.random(near.shape)
    (masked,) = session.open([near + near_mask])
    window = window_of(None if gap is None else gap + reach + (2 << coarse))
    signs = below_zero(session.wires, masked, near_mask.share, window=window, coarse=coarse)
    counts = ~opened(session, [signs])[0]
    place, mask_place = masked.numpy() >> coarse, near_mask.share >> coarse
    table = session.wires.dealt(
        lambda: torch.from_numpy(series.exponential_table(mask_place.numpy(), bits - coarse)),
        (2, *near.shape),
    )
    # Where a class does not count the exponential is anything, and the bit makes it zero.
    table_of_mask = session.wires.dealt(lambda: counts.coins * table.share, (2, *near.shape))
    public = torch.from_numpy(series.public_exponential(place, bits - coarse))
    value_of_all, of_mask = (table * public).sum(0), (table_of_mask * public).sum(0)
    return value_of_all * counts.masked + of_mask * (1 - 2 * counts.masked)
