"""Links carry tensors whole, in order, under their names, and say who is gone."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from privtrain.core.errors import PartyLostError, ProtocolError
from privtrain.core.transcript import Entry, Setup
from privtrain.runtimes.board import Entries, LocalBoard
from privtrain.runtimes.links import SocketLink
from privtrain.runtimes.messages import pack
from privtrain.runtimes.sockets import Transport
from tests.runtimes.meshes import CLEAR, SECURED, meshed

NAMES = ("left", "right", "dealer")


def a_link(entries: Entries, rank: int, timeout: float = 10.0) -> SocketLink:
    board = LocalBoard(entries, NAMES[rank], "127.0.0.1")
    return SocketLink(names=NAMES, rank=rank, board=board, timeout=timeout)


def entries_of(link: SocketLink) -> Entries:
    """What stands on a link's board."""
    assert isinstance(link.board, LocalBoard)
    return link.board.entries


@contextmanager
def links(count: int = 3, timeout: float = 10.0) -> Iterator[list[SocketLink]]:
    """The first parties, all in this process; the others do not come."""
    entries = Entries(NAMES)
    with ExitStack() as stack:
        yield [stack.enter_context(a_link(entries, rank, timeout)) for rank in range(count)]


def test_messages_arrive_in_order_and_are_recorded_by_their_sender() -> None:
    with links() as (left, right, dealer):
        values = [torch.arange(4), torch.tensor(2.0)]
        left.send("right", "share", values[0])
        left.send("right", "total", values[1])
        dealer.send("right", "triple share", values[0])
        dealer.knows("every triple")
        assert torch.equal(right.receive("dealer", "triple share"), values[0])
        assert torch.equal(right.receive("left", "share"), values[0])
        assert torch.equal(right.receive("left", "total"), values[1])
    assert left.entries == [
        Entry("left", "right", "share", (4,), 32, 0),
        Entry("left", "right", "total", (), 4, 0),
    ]
    assert dealer.entries == [Entry("dealer", "right", "triple share", (4,), 32, 0)]
    assert dealer.setups == [Setup("dealer", "every triple")]
    assert right.entries == []


def test_a_round_follows_what_was_received() -> None:
    one = torch.ones(1)
    with links() as (left, right, dealer):
        for _ in range(2):
            left.send("right", "question", one)  # both in one round: nothing came in between
        right.send("left", "question", one)
        right.send("dealer", "early", one)
        right.receive("left", "question")
        right.send("left", "answer", one)
        left.receive("right", "question")
        left.receive("right", "answer")
        left.send("dealer", "thanks", one)
        dealer.receive("left", "thanks")
        dealer.receive("right", "early")  # what was sent before does not turn rounds back
        dealer.send("right", "end", one)
    rounds = [[entry.round for entry in link.entries] for link in (left, right, dealer)]
    assert rounds == [[0, 0, 2], [0, 0, 1], [3]]


def test_two_parties_may_send_each_other_more_than_the_network_holds() -> None:
    large = torch.arange(2**21)
    with links(2) as (left, right):
        left.send("right", "share", large)
        right.send("left", "share", large + 1)
        assert torch.equal(right.receive("left", "share"), large)
        assert torch.equal(left.receive("right", "share"), large + 1)


@pytest.mark.parametrize("transports", [CLEAR, SECURED], ids=["clear", "secured"])
def test_what_is_read_ahead_is_received_as_before(transports: Sequence[Transport]) -> None:
    large = torch.arange(2**17)
    with meshed(transports, 2, timeout=1.0) as (left, right):
        left.send("right", "first", large[:1])
        right.receive("left", "first")
        for _ in range(2):
            right.read_ahead("left")
        with pytest.raises(ValueError, match="nobody"):
            right.read_ahead("nobody")
        for number in range(5):
            left.send("right", "more", large + number)
        right.send("left", "answer", large[:1])
        left.receive("right", "answer")
        left.send("right", "late", large[:1])
        for number in range(5):
            assert torch.equal(right.receive("left", "more"), large + number)
        # Rounds follow what was received, not what was read.
        right.send("left", "answer", large[:1])
        assert [entry.round for entry in right.entries] == [1, 1]
        right.receive("left", "late")
        right.send("left", "answer", large[:1])
        assert right.entries[-1].round == 3
        left.interrupt()
        with pytest.raises(PartyLostError, match="left closed the connection"):
            right.receive("left", "more")


def test_silence_is_missed_where_it_is_read_ahead() -> None:
    with meshed(CLEAR, 2, timeout=0.1) as (left, right):
        left.send("right", "first", torch.ones(1))
        right.receive("left", "first")
        right.read_ahead("left")
        with pytest.raises(PartyLostError, match=r"left sent no 'more' for 0\.1 s"):
            right.receive("left", "more")


def test_another_kind_names_both_kinds_and_its_sender() -> None:
    with links(2) as (left, right):
        left.send("right", "input share", torch.ones(2))
        with pytest.raises(ProtocolError, match=r"left sent 'input share' where right .*'triple'"):
            right.receive("left", "triple")


def test_a_party_that_says_nothing_or_does_not_come_is_named() -> None:
    with links(2, timeout=0.3) as (left, _):
        with pytest.raises(PartyLostError, match=r"right sent no 'share' for 0.3 s") as silent:
            left.receive("right", "share")
        with pytest.raises(PartyLostError, match="dealer did not come") as missing:
            left.send("dealer", "request", torch.ones(1))
    assert (silent.value.party, missing.value.party) == ("right", "dealer")


def test_what_was_sent_before_the_end_arrives_and_the_end_stays() -> None:
    with links(1) as (left,):
        with a_link(entries_of(left), 1) as right:
            right.send("left", "share", torch.arange(3))
        assert left.receive("right", "share").tolist() == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(PartyLostError, match="right closed the connection") as caught:
                left.receive("right", "share")
            assert caught.value.party == "right"


def test_who_cannot_be_written_to_is_named() -> None:
    with links(1, timeout=0.5) as (left,):
        right = a_link(entries_of(left), 1)
        # Its system takes connections, and nobody reads: like a process that froze.
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with right:
                right.board.set("link/1", f"127.0.0.1 {listener.getsockname()[1]}")
            with pytest.raises(PartyLostError, match="right took nothing of 'share'") as caught:
                left.send("right", "share", torch.zeros(2**23))
    assert caught.value.party == "right"
    assert left.entries == []


def test_only_the_others_can_be_talked_to() -> None:
    with links(2) as (left, _):
        for talk in (lambda: left.send("left", "k", torch.ones(1)), lambda: left.receive("x", "k")):
            with pytest.raises(ValueError, match=r"one of \['right', 'dealer'\]"):
                talk()


def impostor(address: str, hello: bytes) -> None:
    host, port = address.split(" ")
    with socket.create_connection((host, int(port))) as connection, suppress(OSError):
        connection.sendall(hello + pack("share", torch.zeros(1), number=0, round=0))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until it is closed


@pytest.mark.parametrize(
    "hello",
    [
        struct.pack(">16sH", b"GET / HTTP/1.1\r\n", 2),
        struct.pack(">16sH", b"privtrain link 2", 0),  # the receiver itself
        struct.pack(">16sH", b"privtrain link 2", 3),
        struct.pack(">16sH", b"privtrain link 2", 1),  # a party that is here already
        b"",
    ],
)
def test_strangers_are_not_heard(hello: bytes) -> None:
    with links() as (left, right, dealer):
        right.send("left", "share", torch.ones(1))
        assert left.receive("right", "share").tolist() == [1]
        impostor(left.board.get("link/0") or "", hello)
        right.send("left", "share", torch.full((1,), 2.0))
        dealer.send("left", "share", torch.full((1,), 3.0))
        assert left.receive("right", "share").tolist() == [2]
        assert left.receive("dealer", "share").tolist() == [3]


def test_a_message_that_lies_about_its_size_ends_its_sender() -> None:
    with links(2) as (left, right):
        right.send("left", "share", torch.ones(1))
        data = bytearray(pack("share", torch.zeros(2), number=1, round=0))
        data[20:28] = struct.pack(">Q", 2**30)
        right._out["left"].connection.sendall(data)
        left.receive("right", "share")
        with pytest.raises(ProtocolError, match="right sent a message 'share' of shape"):
            left.receive("right", "share")


IMPOSSIBLE = [(0, 2**62, 2**62), (0, 2**64 - 1), (2**63, 0)]


@pytest.mark.parametrize("shape", IMPOSSIBLE)
def test_a_shape_that_no_tensor_has_ends_its_sender(shape: tuple[int, ...]) -> None:
    """No byte follows, whatever the other lengths are: it agrees with its size."""
    head = bytearray(pack("share", torch.zeros(0), number=1, round=0))[:28]
    head[3] = len(shape)
    data = bytes(head) + b"share" + struct.pack(f">{len(shape)}Q", *shape)
    with links(2) as (left, right):
        right.send("left", "share", torch.zeros(0, 3))
        right._out["left"].connection.sendall(data)
        assert left.receive("right", "share").shape == (0, 3)
        with pytest.raises(ProtocolError, match="right sent a message 'share' of shape"):
            left.receive("right", "share")


def test_listens_where_the_board_is_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with links(2) as (left, right):
        assert left._listener.getsockname()[0] == "127.0.0.1"
        left.send("right", "share", torch.ones(1))
        right.receive("left", "share")
    assert set(threading.enumerate()) <= before


class Nowhere:
    """A board whose host is gone."""

    own_address = "127.0.0.1"

    def set(self, key: str, value: str) -> None:
        raise ConnectionError("its host is gone")

    def get(self, key: str) -> str | None:
        raise ConnectionError("its host is gone")

    def claim(self, key: str, value: str) -> str:
        raise ConnectionError("its host is gone")


def test_a_board_that_is_not_there_is_named_and_no_port_stays_open() -> None:
    before = set(threading.enumerate())
    link = SocketLink(names=NAMES, rank=0, board=Nowhere(), timeout=0.3)
    with pytest.raises(PartyLostError, match="meet cannot be reached: its host is gone"):
        link.__enter__()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("lie", ["nowhere", "127.0.0.1", "127.0.0.1 x", "127.0.0.1 65536"])
def test_who_names_no_address_is_named(lie: str) -> None:
    with links(2, timeout=0.5) as (left, right):
        right.board.set("link/1", lie)
        with pytest.raises(ProtocolError, match="right says that it listens at"):
            left.send("right", "share", torch.ones(1))


def test_rank_0_hosts_a_store_once_for_engines_that_need_one() -> None:
    with links(2) as (left, right):
        assert left.board.get("store") is None
        host, port = left.meeting
        assert right.meeting == left.meeting == (host, port)
        store = TCPStore(host, port, is_master=False)
        store.set("key", "value")
        assert left._store.get("key") == b"value"


def test_a_store_that_nobody_hosts_is_missed_at_rank_0() -> None:
    with links(2, timeout=0.1) as (_, right):
        with pytest.raises(PartyLostError, match="left hosts no store") as caught:
            _ = right.meeting
        assert caught.value.party == "left"


def test_progress_reaches_whoever_watches() -> None:
    seen: list[tuple[int, int]] = []
    watch: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    link = SocketLink(names=NAMES, rank=0, board=Nowhere(), timeout=1.0, watch=watch)
    link.report(2, 5)
    assert seen == [(2, 5)]
