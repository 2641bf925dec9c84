"""A board over connections: each is known by its keys, and no stranger keeps anybody out."""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from privtrain.core.errors import ProtocolError
from privtrain.runtimes import rendezvous
from privtrain.runtimes.board import MOST_KEY, MOST_VALUE, Entries
from privtrain.runtimes.certificates import make_credentials
from privtrain.runtimes.rendezvous import BoardClient, BoardServer, join, listening
from privtrain.runtimes.sockets import TLS, Plain, Transport
from tests.runtimes.meshes import (
    CLEAR,
    KEYS,
    NAMES,
    OTHER_STUDY,
    RECORD,
    SECURED,
    careless_client,
    dripping,
)

LOOPBACK = "127.0.0.1"
both = pytest.mark.parametrize("transports", [CLEAR, SECURED], ids=["TCP", "TLS"])


@contextmanager
def served(transport: Transport, names: Sequence[str] = NAMES) -> Iterator[BoardServer]:
    """A board that the first party hosts."""
    with BoardServer(Entries(tuple(names)), listening(LOOPBACK, 0), transport) as server:
        yield server


def address(server: BoardServer) -> tuple[str, int]:
    port: int = server.listener.getsockname()[1]
    return LOOPBACK, port


@contextmanager
def joined(
    server: BoardServer, name: str, transport: Transport, timeout: float = 5.0
) -> Iterator[BoardClient]:
    client = join(address(server), NAMES[0], name, transport, timeout)
    try:
        yield client
    finally:
        client.close()


def hello(name: str) -> bytes:
    return struct.pack(">16sH", b"privtrain board1", len(name)) + name.encode()


def ask(what: int, key: bytes, value: bytes) -> bytes:
    return struct.pack(">BHH", what, len(key), len(value)) + key + value


@contextmanager
def by_hand(server: BoardServer, name: str, transport: Transport) -> Iterator[socket.socket]:
    """A party's connection that sends what it likes."""
    plain = socket.create_connection(address(server), timeout=5)
    with transport.connected(plain, NAMES[0]) as connection:
        connection.sendall(hello(name))
        assert connection.recv(7) == b"welcome"
        yield connection


@both
def test_each_operation_reaches_the_board(transports: Sequence[Transport]) -> None:
    with (
        served(transports[0]) as server,
        joined(server, "right", transports[1]) as right,
        joined(server, "dealer", transports[2]) as dealer,
    ):
        assert right.own_address == LOOPBACK
        assert dealer.get("here/1") is None
        right.set("here/1", "")
        assert dealer.get("here/1") == ""
        right.set("link/1", "x" * MOST_VALUE)
        assert dealer.get("link/1") == "x" * MOST_VALUE
        assert right.claim("claim/1", "first") == "first"
        assert right.claim("claim/1", "second") == "first"
        assert dealer.claim("parties", "dealer was started") == "dealer was started"
        assert right.claim("parties", "right was started") == "dealer was started"


@both
def test_a_party_may_not_write_anothers_keys_and_stays_connected(
    transports: Sequence[Transport],
) -> None:
    with served(transports[0]) as server, joined(server, "right", transports[1]) as right:
        for key in ("failure/2", "done/0", "link/2", "store", "heard/2/1"):
            with pytest.raises(ProtocolError, match="right may not write"):
                right.set(key, "it lies")
        with pytest.raises(ProtocolError, match="right may not claim"):
            right.claim("refused", "dealer is there twice")
        assert server.entries._values == {}
        right.set("done/1", "")


@both
def test_what_is_too_long_is_not_read(transports: Sequence[Transport]) -> None:
    for data in (
        struct.pack(">BHH", 0, MOST_KEY + 1, 0),
        struct.pack(">BHH", 0, 6, MOST_VALUE + 1),
        ask(0, b"\xff", b"1"),
    ):
        with served(transports[0]) as server, by_hand(server, "right", transports[1]) as end:
            end.sendall(data)
            with suppress(ConnectionResetError):  # something of it was not read
                assert end.recv(1) == b""
        assert server.entries._values == {}


def test_another_studys_key_is_refused_by_both_sides() -> None:
    with served(SECURED[0]) as server:
        with pytest.raises(ProtocolError, match="left could not be authenticated"):
            join(address(server), NAMES[0], "right", OTHER_STUDY["right"], 5.0)
        # Whoever believes the host without looking is not believed by it.
        client = careless_client(OTHER_STUDY["right"].credentials, ssl.TLSVersion.TLSv1_3)
        turned_away(server, client)


def turned_away(server: BoardServer, client: ssl.SSLContext) -> None:
    with (
        socket.create_connection(address(server), timeout=5) as plain,
        suppress(ssl.SSLError, ConnectionError),
        client.wrap_socket(plain) as end,
    ):
        end.sendall(hello("right"))
        assert end.recv(7) == b""
    with joined(server, "right", KEYS["right"]) as right:
        right.set("here/1", "")


def test_a_client_without_a_certificate_or_with_tls_1_2_is_turned_away() -> None:
    with served(SECURED[0]) as server:
        turned_away(server, careless_client(None, ssl.TLSVersion.TLSv1_3))
        own = KEYS["right"].credentials
        turned_away(server, careless_client(own, ssl.TLSVersion.TLSv1_2))


def test_a_party_cannot_come_as_another_one() -> None:
    with (
        served(SECURED[0]) as server,
        pytest.raises(ConnectionError),
    ):
        join(address(server), NAMES[0], "dealer", KEYS["right"], 0.3)


def test_who_has_no_hosts_certificate_is_no_host() -> None:
    with (
        served(KEYS["dealer"]) as server,
        pytest.raises(ProtocolError, match=r"left could not be .*certificate names 'dealer'"),
    ):
        join(address(server), NAMES[0], "right", KEYS["right"], 5.0)


def test_a_client_without_keys_and_a_host_without_keys_are_told_apart() -> None:
    with (
        served(SECURED[0]) as server,
        pytest.raises((ProtocolError, ConnectionError)),
    ):
        join(address(server), NAMES[0], "right", Plain(), 0.3)
    assert server.entries._values == {}
    with (
        served(Plain()) as server,
        pytest.raises(ConnectionError, match="does not let right in; all parties need keys"),
    ):
        join(address(server), NAMES[0], "right", KEYS["right"], 0.3)


def test_a_party_of_another_world_size_is_heard_under_its_name() -> None:
    keys = {name: TLS(own) for name, own in make_credentials(("left", "right", "more")).items()}
    with (
        served(keys["left"], ("left", "right")) as server,
        joined(server, "more", keys["more"]) as more,
    ):
        more.claim("refused", "more was started for 3 parties")
        with pytest.raises(ProtocolError, match="more may not write"):
            more.set("here/1", "")
    assert server.entries.get("refused") == "more was started for 3 parties"


@both
@pytest.mark.parametrize("data", [b"", b"GET / HTTP/1.1\r\n\r\n", hello("right")[:9], b"\0" * 5000])
def test_strangers_keep_nobody_out(data: bytes, transports: Sequence[Transport]) -> None:
    with served(transports[0]) as server:
        strangers = [socket.create_connection(address(server), timeout=5) for _ in range(70)]
        for stranger in strangers:
            with suppress(OSError):  # it is shown the door already
                stranger.sendall(data)
        with joined(server, "right", transports[1]) as right:
            right.set("here/1", "")
        # The oldest had to go, however little they said.
        strangers[0].settimeout(5)
        with suppress(ConnectionError):
            while strangers[0].recv(64):
                pass
        for stranger in strangers:
            stranger.close()
    assert server.entries._values == {"here/1": ""}


@both
def test_a_stranger_who_drips_keeps_nobody_waiting(
    transports: Sequence[Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_GREETING", 1.0)
    beginning = hello("right")[:2] if transports is CLEAR else RECORD
    with served(transports[0]) as server:
        with dripping(address(server), beginning) as stranger:
            start = time.monotonic()
            with joined(server, "right", transports[1]) as right:
                right.set("here/1", "")
                assert right.get("here/1") == ""
            assert time.monotonic() - start < 0.9
            # Its time is that of all its bytes, not of each.
            assert stranger.recv(64) in (b"", b"\x15")
            assert time.monotonic() - start < 4
        with dripping(address(server), beginning):
            start = time.monotonic()
            server.__exit__(None, None, None)
            assert time.monotonic() - start < 0.9


@both
def test_a_role_has_no_more_than_its_connections(transports: Sequence[Transport]) -> None:
    with served(transports[0]) as server:
        clients = [join(address(server), NAMES[0], "right", transports[1], 5.0) for _ in range(8)]
        with pytest.raises(ConnectionError):
            join(address(server), NAMES[0], "right", transports[1], 0.2)
        with joined(server, "dealer", transports[2]) as dealer:
            dealer.set("here/2", "")
        clients[0].close()
        with joined(server, "right", transports[1]) as right:
            assert right.get("here/2") == ""
        for client in clients:
            client.close()


@both
def test_a_client_that_takes_nothing_blocks_itself_alone(transports: Sequence[Transport]) -> None:
    before = set(threading.enumerate())
    with served(transports[0]) as server, by_hand(server, "right", transports[1]) as frozen:
        frozen.settimeout(0.2)
        with joined(server, "dealer", transports[2]) as dealer:
            dealer.set("link/2", "x" * MOST_VALUE)
            with pytest.raises(TimeoutError):
                while True:  # until the host's answers fill all that lies between
                    frozen.sendall(ask(1, b"link/2", b"") * 500)
            dealer.set("done/2", "")
            assert dealer.get("done/2") == ""
        server.__exit__(None, None, None)
    assert set(threading.enumerate()) <= before


@both
def test_the_end_of_the_host_ends_its_clients_and_threads(
    transports: Sequence[Transport],
) -> None:
    before = set(threading.enumerate())
    with served(transports[0]) as server:
        client = join(address(server), NAMES[0], "right", transports[1], 5.0)
        silent = socket.create_connection(address(server), timeout=5)
    for _ in range(2):  # the end stays
        with pytest.raises(ConnectionError):
            client.get("here/1")
    client.close()
    silent.close()
    assert set(threading.enumerate()) <= before


@both
def test_a_host_that_does_not_answer_is_missed(transports: Sequence[Transport]) -> None:
    with served(transports[0]) as server, joined(server, "right", transports[1], 0.2) as right:
        silent = pytest.raises(TimeoutError, match=r"it has not answered for 0.2 s")
        with server.entries._lock, silent:
            right.get("here/1")
        # Its answer comes late, and must not be taken for that to the next question.
        with pytest.raises(ConnectionError, match="not answered"):
            right.get("here/2")


def test_a_host_is_waited_for_no_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listening(LOOPBACK, 0)
    meeting = listener.getsockname()[:2]
    listener.close()
    with pytest.raises(ConnectionError, match="refused"):
        join(meeting, NAMES[0], "right", Plain(), 0.2)
    monkeypatch.setattr(rendezvous.time, "sleep", lambda seconds: servers.append(late()))
    servers: list[BoardServer] = []

    def late() -> BoardServer:
        return BoardServer(Entries(NAMES), listening(*meeting), Plain()).__enter__()

    client = join(meeting, NAMES[0], "right", Plain(), 5.0)
    client.set("here/1", "")
    client.close()
    servers[0].__exit__(None, None, None)
