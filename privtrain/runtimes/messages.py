"""Messages between parties as bytes: a header that is checked first, and the bytes of a tensor.

Nothing is pickled. A header has the kind, the number among its sender's messages to this receiver,
the round, type, shape and size; what it says is compared with what is expected before anything
that follows it is read.
"""

import math
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError

_HEAD = struct.Struct(">HBBQQQ")
"""Length of the kind, number of the type, dimensions, number, round, bytes of the tensor."""

_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_SIZES = tuple(dtype.itemsize for dtype in _DTYPES)
_NUMBERS = {dtype: number for number, dtype in enumerate(_DTYPES)}

_SMALL = 2**14
"""Bytes that are copied faster than a view of them is made."""

LARGEST = 2**34
"""Bytes of the largest tensor in one message."""

_LAST_ROUND = 2**48
"""Beyond it a sender made its round up: it would take centuries, and the receiver counts on."""


class Head(NamedTuple):
    """What a message says of itself before its values.

    Args:
        kind: What its sender calls it.
        number: Its place among the messages of its sender to this receiver, from 0.
        round: The round in which it was sent.
        dtype: Type of the tensor.
        shape: Its shape.
        size: Its bytes.
    """

    kind: str
    number: int
    round: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    size: int


def pack(kind: str, tensor: Tensor, *, number: int, round: int) -> bytes:
    """A message as bytes.

    Args:
        kind: What it is called; fewer than 65536 bytes.
        tensor: Any shape; a type of numbers; at most `LARGEST` bytes.
        number: Its place among the messages to this receiver.
        round: The round in which it is sent.

    Raises:
        ValueError: If the kind is too long, or the tensor too large or not of plain numbers.
    """
    length, type_number, dims, label, size = _label(kind, tensor.dtype, tuple(tensor.shape))
    head = _HEAD.pack(length, type_number, dims, number, round, size)
    return b"".join((head, label, _body(tensor) if size else b""))


# A program sends the same few kinds and shapes over and over: what is fixed in them is made once.
@lru_cache(maxsize=1024)
def _label(
    kind: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> tuple[int, int, int, bytes, int]:
    """Length of the kind, number of the type, dimensions; kind and shape as bytes; size."""
    type_number = _NUMBERS.get(dtype)
    if type_number is None:
        raise ValueError(f"Expected {kind!r} to hold plain numbers; it is of {dtype}.")
    name = kind.encode()
    if len(name) >= 2**16:
        raise ValueError(f"Expected kind={kind[:40]!r}... to have fewer than 65536 bytes.")
    size = math.prod(shape) * _SIZES[type_number]
    if size > LARGEST:
        raise ValueError(
            f"Expected {kind!r} of {size} bytes to have at most {LARGEST}; send it in pieces."
        )
    label = name + struct.pack(f">{len(shape)}Q", *shape)
    return len(name), type_number, len(shape), label, size


def _body(tensor: Tensor) -> bytes | memoryview:
    # Each call of torch costs a microsecond, and most messages need none of these.
    plain = tensor.detach() if tensor.requires_grad else tensor
    if plain.dtype is torch.bfloat16 or not plain.is_cpu:
        plain = plain.cpu().contiguous().reshape(-1).view(torch.uint8)
    values = plain.numpy()
    # A view where the order in memory is that of the message: joining copies it anyway.
    if values.nbytes > _SMALL and values.ndim and values.flags.c_contiguous:
        return values.reshape(-1).view("u1").data
    return values.tobytes()


def read_head(read: Callable[[int], bytes | bytearray]) -> Head:
    """The header of the next message.

    Args:
        read: Returns exactly so many bytes.

    Raises:
        ProtocolError: If it contradicts itself, or no tensor has such a shape.
    """
    length, type_number, dims, number, round, size = _HEAD.unpack(read(_HEAD.size))
    label = bytes(read(length + 8 * dims))
    kind, dtype, shape = _described(label, length, type_number, dims, size)
    if round > _LAST_ROUND:
        raise ProtocolError(f"sent a message {kind!r} of round {round}.")
    return Head(kind, number, round, dtype, shape, size)


# Few, since a label may have 65 kB.
@lru_cache(maxsize=256)
def _described(
    label: bytes, length: int, type_number: int, dims: int, size: int
) -> tuple[str, torch.dtype, tuple[int, ...]]:
    """Kind, type and shape, where they agree with the size."""
    kind = label[:length].decode(errors="replace")
    shape: tuple[int, ...] = struct.unpack_from(f">{dims}Q", label, length)
    # The size says how much memory is asked for.
    known = type_number < len(_DTYPES) and size <= LARGEST
    if not known or math.prod(shape) * _SIZES[type_number] != size:
        raise ProtocolError(f"sent a message {kind!r} of shape {shape} with {size} bytes.")
    if size == 0:
        try:
            # Of a tensor without values any shape agrees with the size, such as (0, 2^64 - 1).
            torch.empty(shape, dtype=_DTYPES[type_number])
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            text = f"sent a message {kind!r} of shape {shape}: no tensor's."
            raise ProtocolError(text) from error
    return kind, _DTYPES[type_number], shape


def read_body(read: Callable[[int], bytearray], head: Head) -> Tensor:
    """The tensor of a message whose header was read.

    Args:
        read: Returns exactly so many bytes.
        head: The header.

    Returns:
        Of the header's type and shape.

    Raises:
        ProtocolError: If the values are none of the type.
    """
    if head.size == 0:
        return torch.empty(head.shape, dtype=head.dtype)
    data = read(head.size)
    if head.dtype is torch.bool and max(data) > 1:
        raise ProtocolError(f"sent a message {head.kind!r} of bools that holds other bytes.")
    tensor = torch.frombuffer(data, dtype=head.dtype)
    return tensor if len(head.shape) == 1 else tensor.view(head.shape)
