"""Channels between parties: who is let in, and that nothing but the next right message is read."""

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch

from privtrain.core.errors import PartyLostError, PrivtrainError, ProtocolError
from privtrain.runtimes import channels, links
from privtrain.runtimes.board import LocalBoard
from privtrain.runtimes.certificates import Credentials
from privtrain.runtimes.channels import Inbox, Outbox
from privtrain.runtimes.links import SocketLink
from privtrain.runtimes.messages import pack
from privtrain.runtimes.sockets import Transport
from tests.runtimes.meshes import (
    CLEAR,
    KEYS,
    OTHER_STUDY,
    RECORD,
    SECURED,
    address,
    by_hand,
    careless_client,
    dripping,
    hello,
    meshed,
)

VALUES = torch.arange(3)
both = pytest.mark.parametrize("transports", [CLEAR, SECURED], ids=["TCP", "TLS"])


def message(number: int, *, kind: str = "share", round: int = 0) -> bytes:
    return pack(kind, VALUES, number=number, round=round)


def heard(transports: Sequence[Transport], data: bytes, count: int) -> str:
    """What comes of bytes that a party with the right keys sends: the error of that message.

    Args:
        transports: Of the three parties.
        data: All that it sends, before it closes the connection.
        count: How many messages of it are right.
    """
    with meshed(transports, 1) as (left,):
        with by_hand(left, transports[1], 1) as right:
            right.sendall(data)
        for _ in range(count):
            assert torch.equal(
                left.receive("right", "share", dtype=torch.int64, shape=(3,)), VALUES
            )
        said = []
        for _ in range(2):  # the error stays
            with pytest.raises(PrivtrainError) as caught:
                left.receive("right", "share", dtype=torch.int64, shape=(3,))
            said.append(f"{type(caught.value).__name__}: {caught.value}")
    assert said[0] == said[1]
    return said[0]


@both
@pytest.mark.parametrize(
    ("data", "count", "words"),
    [
        (message(0) + message(0), 1, "right sent 'share' as message 0 where number 1 comes"),
        (message(1) + message(0), 0, "right sent 'share' as message 1 where number 0 comes"),
        (message(0) + message(2), 1, "right sent 'share' as message 2 where number 1 comes"),
        (message(0, kind="total"), 0, "right sent 'total' where left expects 'share'"),
        (message(0, round=5) + message(1, round=4), 1, "of round 4 after a message of round 5"),
        (
            pack("share", torch.ones(3), number=0, round=0),
            0,
            "of torch.float32 where left expects torch.int64",
        ),
        (
            pack("share", torch.arange(4), number=0, round=0),
            0,
            r"of shape \(4,\) where left expects \(3,\)",
        ),
        (
            pack("share", torch.arange(3).reshape(3, 1), number=0, round=0),
            0,
            r"of shape \(3, 1\) where left expects \(3,\)",
        ),
        (
            message(0)[:20] + struct.pack(">Q", 2**33) + message(0)[28:],
            0,
            "right sent a message 'share' of shape .* with 8589934592 bytes",
        ),
    ],
    ids=[
        "replayed", "reordered", "left out", "kind", "step", "type", "shape", "dims", "oversized"
    ],
)  # fmt: skip
def test_another_message_than_the_next_right_one_is_refused(
    transports: Sequence[Transport], data: bytes, count: int, words: str
) -> None:
    text = heard(transports, data, count)
    assert text.startswith("ProtocolError: right ")

    assert re.search(words, text), text


@both
@pytest.mark.parametrize("length", [1, 27, 30, 40, len(message(1)) - 1])
def test_a_truncated_message_is_none(transports: Sequence[Transport], length: int) -> None:
    text = heard(transports, message(0) + message(1)[:length], 1)
    assert text == "PartyLostError: right closed the connection."


def test_what_is_altered_on_its_way_is_not_read() -> None:
    """A record of TLS that somebody in between changed, and one that was recorded before."""
    with meshed(SECURED, 1) as (left,):
        right = by_hand(left, KEYS["right"], 1)
        right.sendall(message(0))
        assert left.receive("right", "share").shape == (3,)
        # Not through TLS: the bytes of a record of application data, of no key.
        socket.socket.send(right, b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(PartyLostError, match=r"right .*(mac|decrypt|record)"):
            left.receive("right", "share")
        right.close()


def left_refuses(attempt: Callable[[SocketLink], None], words: str) -> None:
    """An attempt to speak as the party on the right is refused, and the real one is still heard."""

    with meshed(SECURED, 2) as (left, right):
        attempt(left)
        end = time.monotonic() + 5
        while not left._refused and time.monotonic() < end:
            time.sleep(0.01)
        assert re.search(words, left._refused), left._refused
        right.send("left", "share", VALUES)
        assert torch.equal(left.receive("right", "share"), VALUES)


def knock(left: SocketLink, data: bytes) -> None:
    with socket.create_connection(address(left), timeout=5) as connection:
        connection.sendall(data)
        with contextlib.suppress(OSError):
            assert b"welcome" not in connection.recv(100)


def knock_by_tls(
    left: SocketLink, own: Credentials | None, version: ssl.TLSVersion, rank: int = 1
) -> None:
    with socket.create_connection(address(left), timeout=5) as connection:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context = careless_client(own, version)
            with context.wrap_socket(connection) as secured:
                secured.sendall(hello(rank))
                assert secured.recv(100) == b""
        except OSError:
            pass


V13, V12 = ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2


def test_a_certificate_of_another_study_is_refused() -> None:
    stranger = OTHER_STUDY["right"].credentials
    left_refuses(lambda left: knock_by_tls(left, stranger, V13), "certificate|issuer")


def test_who_shows_no_certificate_is_refused() -> None:
    left_refuses(lambda left: knock_by_tls(left, None, V13), "did not return a certificate")


def test_a_right_certificate_in_the_wrong_role_is_refused() -> None:
    dealer = KEYS["dealer"].credentials
    left_refuses(lambda left: knock_by_tls(left, dealer, V13), "dealer said that it is right")


def test_the_right_certificate_alone_makes_no_other_rank() -> None:
    right = KEYS["right"].credentials
    for rank, words in ((0, "no party"), (2, "right said that it is dealer"), (9, "no party")):
        left_refuses(lambda left, rank=rank: knock_by_tls(left, right, V13, rank), words)


def test_a_plaintext_client_is_refused() -> None:
    left_refuses(lambda left: knock(left, hello(1) + message(0)), "version|request|authenticated")


@both
def test_a_stranger_who_drips_is_refused_and_holds_up_nobody(
    transports: Sequence[Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_GREETING", 1.0)
    beginning = hello(1)[:2] if transports is CLEAR else RECORD
    with (
        meshed(transports, 2) as (left, right),
        dripping(address(left), beginning) as stranger,
    ):
        start = time.monotonic()
        right.send("left", "share", VALUES)
        assert torch.equal(left.receive("right", "share"), VALUES)
        assert time.monotonic() - start < 0.9
        # Its time is that of all its bytes, not of each.
        assert stranger.recv(64) in (b"", b"\x15")
        assert time.monotonic() - start < 4


def test_tls_1_2_is_refused() -> None:
    right = KEYS["right"].credentials
    left_refuses(lambda left: knock_by_tls(left, right, V12), "protocol")


def test_who_connects_checks_the_other_end() -> None:
    """An end of another study, one with another role, one without TLS: nothing is sent to them."""
    for there, words in (
        (OTHER_STUDY["left"], "left could not be authenticated: .*(self|issuer|certificate)"),
        (KEYS["dealer"], "left could not be authenticated: its certificate names 'dealer'"),
        (CLEAR[0], "left"),
    ):
        with (
            meshed((there, KEYS["right"]), 2, timeout=3.0) as (_, right),
            pytest.raises((ProtocolError, PartyLostError), match=words),
        ):
            right.send("left", "share", VALUES)
        assert right.entries == []


def test_who_has_wrong_keys_is_told_and_the_others_hear_of_the_attempt() -> None:
    with meshed((KEYS["left"], KEYS["dealer"]), 2, timeout=0.7) as (left, right):
        with pytest.raises((ProtocolError, PartyLostError), match="left"):
            right.send("left", "share", VALUES)
        with pytest.raises(
            PartyLostError, match=r"refused meanwhile: dealer said that it is right"
        ):
            left.receive("right", "share")


def test_a_party_without_keys_is_told() -> None:
    with (
        meshed((KEYS["left"], CLEAR[1]), 2, timeout=3.0) as (_, right),
        pytest.raises((ProtocolError, PartyLostError), match="left"),
    ):
        right.send("left", "share", VALUES)


@both
def test_a_party_that_is_there_and_sends_nothing_is_missed(
    transports: Sequence[Transport],
) -> None:
    with meshed(transports, 2, timeout=0.4) as (left, right):
        right.send("left", "share", VALUES)
        left.receive("right", "share")
        start = time.monotonic()
        with pytest.raises(PartyLostError, match=r"right sent no 'share' for 0.4 s") as caught:
            left.receive("right", "share")
        assert caught.value.party == "right"
        assert 0.3 < time.monotonic() - start < 5


@both
def test_large_messages_both_ways_at_once_do_not_wait_for_each_other(
    transports: Sequence[Transport],
) -> None:
    large = torch.arange(2**23)  # 64 MiB
    with meshed(transports, 2) as (left, right):
        left.send("right", "share", large)
        right.send("left", "share", large + 1)
        left.send("right", "small", VALUES)  # waits behind the large one
        assert torch.equal(left.receive("right", "share"), large + 1)
        assert torch.equal(right.receive("left", "share"), large)
        assert torch.equal(right.receive("left", "small"), VALUES)


def test_what_waits_is_sent_before_the_link_closes() -> None:
    large, got = torch.arange(2**22), list[bool]()
    with meshed(SECURED, 1) as (left,):
        assert isinstance(left.board, LocalBoard)
        board = LocalBoard(left.board.entries, "right", "127.0.0.1")

        def other() -> None:
            with SocketLink(left.names, 1, board, 10.0, transport=SECURED[1]) as right:
                right.send("left", "share", large)

        thread = threading.Thread(target=other)
        thread.start()
        got.append(torch.equal(left.receive("right", "share"), large))
        thread.join()
    assert got == [True]


def test_a_party_that_takes_nothing_of_what_waits_is_named_at_the_end() -> None:
    with (
        pytest.raises(PartyLostError, match=r"left took nothing of .* for 0.5 s") as caught,
        meshed(SECURED, 2, timeout=0.5) as (_, right),
    ):
        right.send("left", "share", torch.zeros(2**22))
    assert caught.value.party == "left"


def test_who_has_sent_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "WAITING", 2**20)
    here, there = socket.socketpair()
    with there:
        outbox = Outbox(here, timeout=0.3)
        outbox.send(bytes(2**22))  # one message may always wait
        with pytest.raises(TimeoutError):
            outbox.send(bytes(2**22))
        with pytest.raises(TimeoutError):
            outbox.flush()
        outbox.close()
    assert outbox.number == 1


def test_a_size_takes_no_memory_before_its_bytes_are_there() -> None:
    size = 2**33
    head = pack("share", torch.zeros(0), number=0, round=0)
    shape = struct.pack(">Q", size // 4)
    data = head[:20] + struct.pack(">Q", size) + head[28:-8] + shape
    here, there = socket.socketpair()
    inbox = Inbox("right", timeout=5.0)
    inbox.connect(here)
    there.sendall(data)
    there.close()
    tracemalloc.start()
    with pytest.raises(ConnectionError):
        inbox.receive(channels.Expected("left", "share"))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    inbox.close()
