"""A message keeps a tensor's bits, and a header that cannot be right is refused before the rest."""

import io
import struct

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.runtimes import messages
from privtrain.runtimes.messages import Head, pack, read_body, read_head


def unpacked(data: bytes) -> tuple[Head, Tensor]:
    stream = io.BytesIO(data)

    def read(size: int) -> bytearray:
        return bytearray(stream.read(size))

    head = read_head(read)
    return head, read_body(read, head)


EVERY_TYPE = [
    torch.tensor([True, False]),
    torch.arange(6, dtype=torch.uint8).reshape(2, 3),
    torch.arange(-3, 3, dtype=torch.int8),
    torch.tensor([-(2**63), 2**63 - 1]),
    torch.tensor([[1.5, float("nan")]], dtype=torch.float16),
    torch.tensor([3.0], dtype=torch.bfloat16),
    torch.tensor(2.5, dtype=torch.float64),
    torch.zeros(0, 4),
    torch.arange(12.0).reshape(3, 4).t(),
]


@pytest.mark.parametrize("tensor", EVERY_TYPE, ids=lambda t: f"{t.dtype}{tuple(t.shape)}")
def test_a_tensor_arrives_with_its_type_shape_and_bits(tensor: Tensor) -> None:
    head, arrived = unpacked(pack("a kind, ü", tensor, number=3, round=7))
    assert (head.kind, head.number, head.round) == ("a kind, ü", 3, 7)
    assert head.dtype == arrived.dtype == tensor.dtype
    assert head.shape == arrived.shape == tensor.shape
    assert head.size == tensor.numel() * tensor.element_size()
    assert torch.equal(arrived.nan_to_num(), tensor.nan_to_num())


def test_what_is_no_plain_tensor_is_not_sent() -> None:
    with pytest.raises(ValueError, match="'share' to hold plain numbers"):
        pack("share", torch.zeros(2, dtype=torch.complex64), number=0, round=0)
    with pytest.raises(ValueError, match="65536"):
        pack("k" * 2**16, torch.zeros(1), number=0, round=0)


@pytest.mark.parametrize("place", [2, 3, 20, -1])
def test_a_header_that_contradicts_itself_is_refused(place: int) -> None:
    # The number of the type, of dimensions, the size, and a length in the shape.
    data = bytearray(pack("share", torch.zeros(2, 3), number=0, round=0))
    head, rest = data[:28], data[28:]
    if place == -1:
        rest[5 + 15] = 9
    else:
        head[place] = 200 if place == 2 else 1
    with pytest.raises(ProtocolError, match="sent a message"):
        unpacked(bytes(head) + bytes(rest))


def refused(change: tuple[int, bytes], tensor: Tensor) -> str:
    """What is said of a message in which some bytes are others."""
    place, other = change
    data = bytearray(pack("share", tensor, number=0, round=0))
    data[place : place + len(other)] = other
    with pytest.raises(ProtocolError) as caught:
        unpacked(bytes(data))
    return str(caught.value)


def test_a_round_that_nobody_reaches_is_refused() -> None:
    # The receiver counts on from it, and would send numbers that no header holds.
    assert "of round 18446744073709551615" in refused(
        (12, struct.pack(">Q", 2**64 - 1)), torch.ones(2)
    )


def test_bools_are_zero_or_one() -> None:
    data = pack("bit share", torch.tensor([True, False]), number=0, round=0)
    with pytest.raises(ProtocolError, match="bools"):
        unpacked(data[:-1] + b"\x02")


def test_what_is_too_large_is_neither_sent_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    large = pack("share", torch.zeros(4), number=0, round=0)
    monkeypatch.setattr(messages, "LARGEST", 15)
    messages._label.cache_clear()
    messages._described.cache_clear()
    with pytest.raises(ValueError, match="16 bytes to have at most 15; send it in pieces"):
        pack("share", torch.zeros(4), number=0, round=0)
    with pytest.raises(ProtocolError, match="with 16 bytes"):
        read_head(io.BytesIO(large).read)
