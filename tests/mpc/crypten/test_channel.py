from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.core.transcript import Entry
from privtrain.mpc.crypten.channel import (
    FRAME,
    Channel,
    DifferError,
    Framed,
    Wire,
    describe,
    digest,
    header,
    header_text,
    odd_one_out,
)


@dataclass
class TwoParties:
    """torch.distributed between this party and one that brings a fixed frame or tensor."""

    other: dict[int, Tensor]
    sizes: list[int] = field(default_factory=list)

    def all_reduce(self, tensor: Tensor, **_: Any) -> None:
        self.sizes.append(tensor.numel())
        tensor += self.other[tensor.numel()]

    def get_rank(self) -> int:
        return 7


def frame_of(text: str, values: Tensor) -> Tensor:
    frame = torch.zeros(4 + FRAME, dtype=torch.int64)
    frame[2:4] = digest(text)
    frame[4 : 4 + values.numel()] = values
    return frame


@dataclass
class Peer:
    """A communicator and a wire whose other party says what it is told to say."""

    says: str
    called: list[str] = field(default_factory=list)
    broken: bool = False

    def __post_init__(self) -> None:
        frame = frame_of(self.says, torch.full((6,), 10))
        self.framed = Framed(TwoParties({4 + FRAME: frame}), 2, 0)

    def all_reduce(self, tensor: Tensor, **_: Any) -> Tensor:
        if self.broken:
            raise RuntimeError("Connection closed by peer")
        result = tensor.clone()
        self.framed.all_reduce(result)
        self.called.append("all_reduce")
        return result

    def gather(self, tensor: Tensor, dst: int) -> list[Tensor]:
        self.called.append("gather")
        return [tensor, tensor]

    def isend(self, tensor: Tensor, dst: int) -> None:
        self.called.append("isend")

    def irecv(self, tensor: Tensor, src: int) -> None:
        self.called.append("irecv")

    def get_name(self) -> str:
        return "peer"

    def lines(self, mine: Tensor) -> list[Tensor]:
        return [mine, header(self.says)]

    def recv(self, line: Tensor, rank: int) -> None:
        line.copy_(header(self.says))

    @property
    def wire(self) -> Wire:
        return Wire(self.lines, lambda line, rank: None, self.recv)


def channel(peer: Peer, entries: list[Entry] | None = None) -> Channel:
    kept = [] if entries is None else entries
    return Channel(peer, peer.wire, ("left", "right"), 0, kept, peer.framed)


def test_equal_shapes_pass_and_are_recorded() -> None:
    entries: list[Entry] = []
    peer = Peer("call 1: all_reduce int64(2, 3)")
    result = channel(peer, entries).all_reduce(torch.ones(2, 3, dtype=torch.int64))
    assert peer.called == ["all_reduce"]
    assert result.tolist() == [[11] * 3] * 2
    assert entries == [Entry("left", "right", "masked share", (2, 3), 48, 0)]


@pytest.mark.parametrize(
    "says",
    [
        "call 1: all_reduce int64(3, 2)",
        "call 1: all_reduce int64(6,)",
        "call 1: all_reduce float32(2, 3)",
        "call 2: all_reduce int64(2, 3)",
        "call 1: gather at 0 int64(2, 3)",
    ],
)
def test_another_shape_type_number_or_operation_is_refused(says: str) -> None:
    peer = Peer(says)
    with pytest.raises(ProtocolError, match="right differs") as caught:
        channel(peer).all_reduce(torch.ones(2, 3, dtype=torch.int64))
    assert says in str(caught.value) and "left in call 1" in str(caught.value)
    assert peer.called == []


def test_several_tensors_travel_as_one_message() -> None:
    entries: list[Entry] = []
    peer = Peer("call 1: all_reduce int64(2,) int64(1, 3)")
    tensors = [torch.tensor([1, 2]), torch.tensor([[3, 4, 5]])]
    sums = channel(peer, entries).all_reduce(tensors, batched=True)
    assert peer.called == ["all_reduce"]
    assert [part.tolist() for part in sums] == [[11, 12], [[13, 14, 15]]]
    assert entries == [Entry("left", "right", "masked share", (5,), 40, 0)]


def test_a_lost_peer_is_no_runtime_error() -> None:
    # CrypTen catches RuntimeError in one place and repeats the exchange.
    peer = Peer("call 1: all_reduce int64(1,)", broken=True)
    with pytest.raises(PartyLostError, match="Connection closed"):
        channel(peer).all_reduce(torch.ones(1, dtype=torch.int64))


def test_messages_between_two_are_announced_and_checked() -> None:
    entries: list[Entry] = []
    tensor = torch.zeros(4, dtype=torch.int64)
    right = Peer("int64(4,)")
    side = channel(right, entries)
    side.isend(tensor, 1)
    side.irecv(tensor, 1)
    assert right.called == ["isend", "irecv"]
    assert [entry.bytes for entry in entries] == [32]
    with pytest.raises(ProtocolError, match=r"right sends int64\(2, 2\) where left expects"):
        channel(Peer("int64(2, 2)")).irecv(tensor, 1)


def test_pickled_objects_are_refused_and_the_rest_passes_through() -> None:
    side = channel(Peer(""))
    with pytest.raises(ProtocolError, match="pickled"):
        side.broadcast_obj({"a": 1}, 0)
    # What sends nothing passes through, but for what the channel knows itself.
    assert side.get_name() == "peer"
    assert (side.get_rank(), side.get_world_size()) == (0, 2)


def test_headers_hold_all_of_a_long_text_in_their_digest() -> None:
    long = "x" * 300
    assert header_text(header("short")) == "short"
    assert header(long).shape == header("short").shape
    assert not torch.equal(header(long + "a"), header(long + "b"))
    assert describe([torch.zeros(2), torch.zeros(1, 1, dtype=torch.int64)]) == (
        "float32(2,) int64(1, 1)"
    )


def test_the_culprit_is_the_odd_one() -> None:
    assert odd_one_out([b"a", b"a", b"a"]) is None
    assert odd_one_out([b"b", b"a", b"a"]) == 0
    assert odd_one_out([b"a", b"a", b"b"]) == 2
    assert odd_one_out([b"a", b"b"]) == 1


def test_a_small_tensor_travels_in_one_frame_with_its_digest() -> None:
    peer = TwoParties({4 + FRAME: frame_of("same", torch.tensor([10, 20]))})
    framed = Framed(peer, 2, 0, digest("same"))
    tensor = torch.tensor([[1], [2]])
    framed.all_reduce(tensor)
    assert tensor.tolist() == [[11], [22]]
    assert peer.sizes == [4 + FRAME]
    assert framed.get_rank() == 7


def test_a_large_tensor_follows_a_frame_with_the_digest_alone() -> None:
    large = torch.ones(FRAME + 1, dtype=torch.int64)
    peer = TwoParties({4 + FRAME: frame_of("same", large[:0]), FRAME + 1: large})
    framed = Framed(peer, 2, 0, digest("same"))
    tensor = large.clone()
    framed.all_reduce(tensor)
    assert peer.sizes == [4 + FRAME, FRAME + 1]
    assert bool((tensor == 2).all())


@pytest.mark.parametrize("size", [2, FRAME + 1])
def test_another_digest_is_noticed_before_a_large_tensor_is_sent(size: int) -> None:
    peer = TwoParties({4 + FRAME: frame_of("other", torch.tensor([10, 20]))})
    tensor = torch.ones(size, dtype=torch.int64)
    with pytest.raises(DifferError):
        Framed(peer, 2, 0, digest("same")).all_reduce(tensor)
    assert bool((tensor == 1).all())
    assert peer.sizes == [4 + FRAME]


def test_an_operation_without_a_frame_is_checked_in_one_before() -> None:
    peer = Peer("call 1: gather at 0 int64(1,)")
    side = channel(peer)
    side.gather(torch.tensor([1]), 0)
    assert peer.called == ["gather"]
    with pytest.raises(ProtocolError, match="right differs"):
        side.gather(torch.tensor([1]), 0)  # this is call 2, the peer still says call 1
    assert peer.called == ["gather"]
