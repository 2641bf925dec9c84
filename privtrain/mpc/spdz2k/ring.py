"""The payload of ring elements: the low 44 bits of 64, above which MACs protect nothing.

SPDZ2k (Cramer, Damgard, Escudero, Scholl and Xing 2018, eprint 2018/482) computes on k bits in the
ring modulo 2^(k + s) and has an error of about 2^-s. Here k + s = 64, and three keys of s = 20 bits
make up for the small s.
"""

from torch import Tensor

PAYLOAD_BITS = 44
"""k: what a value is, modulo 2^44, with a sign. Nothing that is computed depends on higher bits."""

HALF_RANGE = PAYLOAD_BITS - 2
"""Values that are truncated stay below 2^42 in magnitude; added to them it makes them positive."""

_SPARE = 64 - PAYLOAD_BITS
_LOW = (1 << PAYLOAD_BITS) - 1


def payload(integers: Tensor) -> Tensor:
    """The value of ring elements: their low 44 bits, from -2^43 to 2^43 - 1; int64."""
    return (integers << _SPARE) >> _SPARE


def low(integers: Tensor) -> Tensor:
    """The low 44 bits of ring elements, from 0; int64."""
    return integers & _LOW


def scaled_up(integers: Tensor) -> Tensor:
    """Ring elements times 2^44, which leaves payloads as they are when it is added."""
    return integers << PAYLOAD_BITS


def sign_bit(integers: Tensor) -> Tensor:
    """The highest bit of payloads, 0 or 1; int64."""
    return (integers >> (PAYLOAD_BITS - 1)) & 1
