"""Additive secret sharing of fixed-point numbers in the ring of 64-bit integers, without any I/O.

A value x becomes the integer round(x * 2^bits), and that integer becomes one share a party; the
shares sum to it modulo 2^64. Any proper subset of the shares is uniformly random.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from privtrain.core.validate import check_count, check_finite
from privtrain.mpc.keystream import Keystream

PRECISION_BITS = 16
"""Bits after the binary point."""

SUM_BITS = 32
"""Bits after the binary point of sums, which need none for products."""

LARGEST = 2.0**12
"""Inputs and weights stay below it. A product of two such numbers is below 2^56 before truncation,
so that sums of 128 of them still fit into the 63 bits of the ring."""

LARGEST_ENCODED = LARGEST - 2.0**-PRECISION_BITS
"""What is encoded with so many bits is no larger."""


def encode(values: Tensor, *, name: str = "values", bits: int = PRECISION_BITS) -> Tensor:
    """Real numbers as fixed-point integers.

    Args:
        values: Any shape; finite, below `LARGEST` in magnitude.
        name: What the values are called in errors.
        bits: Bits after the binary point.

    Returns:
        `round(values * 2^bits)` as int64, same shape.

    Raises:
        ValueError: If a value is not finite or too large.
    """
    # float64 holds every float32 exactly, and integers below 2^28 (2^12 times 2^16) as well.
    exact = values.detach().to("cpu", torch.float64)
    check_finite(**{name: exact})
    integers = (exact * 2.0**bits).round()
    # After rounding: what rounds up to the bound is beyond it.
    largest = float(integers.abs().max()) / 2.0**bits if exact.numel() else 0.0
    if largest >= LARGEST:
        raise ValueError(
            f"Expected {name} within (-{LARGEST:g}, {LARGEST:g}), where fixed point does not "
            f"overflow; the largest magnitude is {largest:g}."
        )
    return integers.to(torch.int64)


def decode(integers: Tensor, *, bits: int = PRECISION_BITS) -> Tensor:
    """Fixed-point integers as float64, same shape."""
    return integers.to(torch.float64) / 2.0**bits


def share(integers: Tensor, parties: int, keystream: Keystream) -> list[Tensor]:
    """Splits integers into one uniformly random share a party.

    Args:
        integers: int64, any shape.
        parties: Number of shares, at least 2.
        keystream: The source of randomness; never from the user's seed.

    Returns:
        One int64 tensor a party, of the same shape; they sum to `integers` modulo 2^64.
    """
    check_count(2, parties=parties)
    # All shares but the last are uniform; the last is the secret minus their sum. int64 wraps
    # around, which is arithmetic modulo 2^64.
    random_shares = [keystream.integers(tuple(integers.shape)) for _ in range(parties - 1)]
    last_share = integers.clone()
    for random_share in random_shares:
        last_share -= random_share
    return [*random_shares, last_share]


def reveal(shares: Sequence[Tensor]) -> Tensor:
    """The shared integers: the sum of all shares modulo 2^64."""
    total = shares[0].clone()
    for other in shares[1:]:
        total += other
    return total
