"""Links of several parties in one process, with and without keys."""

import itertools
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from privtrain.runtimes.board import Entries, LocalBoard
from privtrain.runtimes.certificates import Credentials, make_credentials
from privtrain.runtimes.links import SocketLink
from privtrain.runtimes.sockets import TLS, Plain, Transport, _as_file

NAMES = ("left", "right", "dealer")
KEYS = {name: TLS(own) for name, own in make_credentials(NAMES).items()}
OTHER_STUDY = {name: TLS(own) for name, own in make_credentials(NAMES).items()}
SECURED = tuple(KEYS.values())
CLEAR = (Plain(), Plain(), Plain())


@contextmanager
def meshed(
    transports: Sequence[Transport], count: int = 3, timeout: float = 10.0
) -> Iterator[list[SocketLink]]:
    """Links of the first parties, each with its transport; the others do not come."""
    entries = Entries(NAMES)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                SocketLink(
                    names=NAMES,
                    rank=rank,
                    board=LocalBoard(entries, NAMES[rank], "127.0.0.1"),
                    timeout=timeout,
                    transport=transports[rank],
                )
            )
            for rank in range(count)
        ]


def hello(rank: int) -> bytes:
    """What a party says first."""
    return struct.pack(">16sH", b"privtrain link 2", rank)


def address(link: SocketLink) -> tuple[str, int]:
    """Where a link listens."""
    host, port = link._listener.getsockname()[:2]
    return host, port


def by_hand(link: SocketLink, transport: Transport, rank: int) -> socket.socket:
    """A connection to a link of somebody who has a party's keys, and sends what it likes."""
    connection = socket.create_connection(address(link), timeout=10)
    connection = transport.connected(connection, link.names[link.rank])
    connection.sendall(hello(rank))
    assert connection.recv(7) == b"welcome"
    return connection


def careless_client(own: Credentials | None, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that believes every server, of one version and perhaps with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    if own is not None:
        with _as_file(own.certificate) as certificate, _as_file(own.key) as key:
            context.load_cert_chain(certificate, key)
    return context


@contextmanager
def dripping(where: tuple[str, int], beginning: bytes) -> Iterator[socket.socket]:
    """A stranger who begins as a party does, a byte each tenth of a second, and never ends."""
    stopped = threading.Event()

    def drip() -> None:
        with suppress(OSError):  # it is shown the door
            for octet in itertools.chain(beginning, itertools.repeat(0)):
                if stopped.wait(0.1):
                    return
                connection.sendall(bytes([octet]))

    with socket.create_connection(where, timeout=5) as connection:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield connection
        finally:
            stopped.set()
            thread.join()


RECORD = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a client of TLS begins: a record of 512 bytes."""
