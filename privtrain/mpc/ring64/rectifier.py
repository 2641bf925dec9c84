"""Comparison with zero and ReLU of opened masked values, by one comparison, without a product."""

import numpy as np
import torch
from torch import Tensor

from privtrain.mpc.ring64.comparison import below_zero, window_of
from privtrain.mpc.ring64.ring import RING_BITS
from privtrain.mpc.ring64.tables import Bits, MaskedBits
from privtrain.mpc.ring64.wires import Wires


def positive(wires: Wires, masked: Tensor, mask: Tensor, *, largest: int | None = None) -> Tensor:
    """A share of 1 where a value is above zero, else 0, as integers; two rounds.

    Args:
        wires: This role's.
        masked: x + r, opened, any shape; integers x above -2^63.
        mask: r at the dealer, anything elsewhere.
        largest: A magnitude that no x exceeds; None where none is known.
    """
    bits = above_zero(wires, masked, mask, largest=largest)
    return bit_share(wires, bits, dealt_mask(wires, bits))


def relu(
    wires: Wires,
    share: Tensor,
    masked: Tensor,
    mask: Tensor,
    *,
    coarse: int = 0,
    largest: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Shares of the larger of each value and zero, and of `positive`, in its rounds.

    Args:
        wires: This role's.
        share: Of x.
        masked: As for `positive`.
        mask: As for `positive`.
        coarse: Low bits that are left out: x between 0 and 2^coarse may count as either.
        largest: As for `positive`.
    """
    bits = above_zero(wires, masked, mask, coarse=coarse, largest=largest)
    mask_share = dealt_mask(wires, bits)
    larger = chosen(wires, bits, mask_share, share, masked, mask)
    return larger, bit_share(wires, bits, mask_share)


def above_zero(
    wires: Wires,
    masked: Tensor,
    mask: Tensor,
    *,
    coarse: int = 0,
    largest: int | None = None,
) -> MaskedBits:
    """1 where x > 0, of the masked value and its mask; any shape."""
    # x > 0 is x >= 1, hence not x - 1 < 0. Without c low bits, (x + r >> c) - (r >> c) is x / 2^c
    # rounded down or up: x - 2^c is below zero then for every x <= 0, and not for x >= 2^c.
    flat = (masked.reshape(-1).numpy() - (1 << coarse)) >> coarse
    flat_mask = mask.reshape(-1).numpy() >> coarse
    window = window_of(None if largest is None else -(-largest >> coarse))
    bits = ~below_zero(wires, flat, flat_mask, window=min(window, RING_BITS - coarse))
    shape = tuple(masked.shape)
    return MaskedBits(bits.masked.reshape(shape), bits.mask.reshape(shape))


def dealt_mask(wires: Wires, bits: MaskedBits) -> Tensor:
    """Additive shares of the masks of bits, as integers 0 and 1."""
    return wires.dealt(lambda: _integers(bits.mask), bits.masked.shape)


def bit_share(wires: Wires, bits: MaskedBits, mask_share: Tensor) -> Tensor:
    """An additive share of bits as integers: b = m xor c = m + (1 - 2 m) c."""
    masked = _integers(bits.masked)
    share = (1 - 2 * masked) * mask_share
    return share + masked if wires.leader else share


def chosen(
    wires: Wires,
    bits: MaskedBits,
    mask_share: Tensor,
    share: Tensor,
    masked: Tensor,
    mask: Tensor,
) -> Tensor:
    """A share of b x where x was opened under a mask; no round.

    With b = m + (1 - 2 m) c it is m x + (1 - 2 m) (c (x + r) - c r), where c r is dealt.

    Args:
        wires: This role's.
        bits: b.
        mask_share: Of c.
        share: Of x.
        masked: x + r.
        mask: r at the dealer.
    """
    product = wires.dealt(lambda: _integers(bits.mask) * mask, masked.shape)
    public = _integers(bits.masked)
    return public * share + (1 - 2 * public) * (mask_share * masked - product)


def _integers(bits: Bits) -> Tensor:
    return torch.from_numpy(bits.astype(np.int64))
