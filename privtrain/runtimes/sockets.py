"""Connections between parties: TCP as it is, or mutual TLS 1.3 under the study's certificates.

Both give blocking sockets. Each connection carries messages one way: TLS lets no two threads read
and write one connection at once, and two parties that send each other much at once must do both.
"""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from privtrain.core.errors import ProtocolError
from privtrain.runtimes.certificates import Credentials, role_of
from privtrain.runtimes.channels import read_exactly


class Transport(Protocol):
    """How a connection between two parties is protected."""

    @property
    def encrypted(self) -> bool:
        """Whether nobody in between can read or alter what is sent, and both ends are known."""
        ...

    def connected(self, connection: socket.socket, peer: str) -> socket.socket:
        """The protected end of a connection that this party opened.

        Args:
            connection: Open, with a timeout.
            peer: Name of the party that has to be at the other end.

        Raises:
            OSError: If the connection fails, or ends before the other end has proven anything.
            ProtocolError: If the other end cannot prove to be that party.
        """
        ...

    def accepted(self, connection: socket.socket) -> tuple[socket.socket, str | None]:
        """The protected end of a connection that somebody else opened.

        Args:
            connection: Open, with a timeout.

        Returns:
            The socket, and who the other end has proven to be; None where nothing is proven.

        Raises:
            OSError: If the connection fails.
            ProtocolError: If the other end cannot prove to be a party of the study.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """TCP: neither encrypted nor authenticated, whoever connects is believed."""

    @property
    def encrypted(self) -> bool:
        return False

    def connected(self, connection: socket.socket, peer: str) -> socket.socket:
        return connection

    def accepted(self, connection: socket.socket) -> tuple[socket.socket, str | None]:
        return connection, None


@dataclass(frozen=True)
class TLS:
    """Mutual TLS 1.3: both ends show a certificate of the study's authority that names their role.

    Args:
        credentials: Of this party.

    Raises:
        ValueError: If key, certificate and authority do not belong together.

    Source: Rescorla 2018, RFC 8446.
    """

    credentials: Credentials
    _client: ssl.SSLContext = field(init=False, repr=False, compare=False)
    _server: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_client", _context(ssl.PROTOCOL_TLS_CLIENT, self.credentials))
        object.__setattr__(self, "_server", _context(ssl.PROTOCOL_TLS_SERVER, self.credentials))

    @property
    def encrypted(self) -> bool:
        return True

    def connected(self, connection: socket.socket, peer: str) -> socket.socket:
        try:
            secured = self._client.wrap_socket(connection)
        except _ENDED as error:
            raise ConnectionError(_UNPROVEN) from error
        except ssl.SSLError as error:
            # The sentence says all of it.
            raise ProtocolError(f"{peer} could not be authenticated: {_reason(error)}.") from None
        role = role_of(secured.getpeercert())
        if role != peer:
            secured.close()
            raise ProtocolError(
                f"{peer} could not be authenticated: its certificate names {role!r}."
            )
        return secured

    def accepted(self, connection: socket.socket) -> tuple[socket.socket, str | None]:
        try:
            secured = self._server.wrap_socket(connection, server_side=True)
        except ssl.SSLError as error:
            raise ProtocolError(f"its end was not authenticated: {_reason(error)}") from None
        role = role_of(secured.getpeercert())
        if role is None:
            secured.close()
            raise ProtocolError("its certificate names no role")
        return secured, role


def introduced(
    connection: socket.socket,
    transport: Transport,
    peer: str,
    own: str,
    hello: bytes,
    welcome: bytes,
    *,
    seconds: float,
) -> socket.socket:
    """The protected end of a connection that this party opened, once the other end lets it in.

    Args:
        connection: Open, with a timeout; is closed where an error is raised.
        transport: How it is protected.
        peer: Name of the party that has to be at the other end.
        own: Name of this party.
        hello: What this party says first.
        welcome: What the other end says to it.
        seconds: Within which it has to say so.

    Raises:
        OSError: If the connection fails or ends.
        ProtocolError: If the other end is not that party, or refuses this one.
    """
    end = connection
    try:
        # A small message must not wait for the answer to the one before.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = transport.connected(connection, peer)
        try:
            end.sendall(hello)
            # In TLS 1.3 who connects learns only now whether its own certificate was accepted.
            if read_exactly(end, len(welcome), seconds) == welcome:
                return end
            why = "it does not answer as a party does"
        except ssl.SSLError as error:
            # An alert says why it refuses; without one it may have ended.
            if isinstance(error, ssl.SSLEOFError):
                raise
            why = str(error)
        raise ProtocolError(
            f"{peer} refused {own}: {why}. All parties need keys of one study, each its own "
            "role's, or none of them any."
        )
    except (OSError, ProtocolError):
        end.close()
        raise


# Whoever ends meanwhile closes its connections; that is no proof that it is somebody else.
_ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
_UNPROVEN = "it closed the connection before it had proven who it is; it ended, or takes no TLS"


def _reason(error: ssl.SSLError) -> str:
    """What went wrong, without the line of OpenSSL's source."""
    text = getattr(error, "verify_message", "") or (error.reason or str(error))
    return str(text).replace("_", " ").lower()


def _context(protocol: int, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Certificates name roles, not hosts; the role is compared after the handshake.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # Who only sends would never read the tickets, and closing with something unread tells the
        # system to drop what was sent last.
        context.num_tickets = 0
    try:
        context.load_verify_locations(cadata=credentials.authority)
        with ExitStack() as stack:
            paths = [
                stack.enter_context(_as_file(text))
                for text in (credentials.certificate, credentials.key)
            ]
            context.load_cert_chain(*paths)
    # OpenSSL's errors are OSErrors, and some of its own have no type.
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected the credentials of {credentials.role} to be a certificate with its key and "
            f"its authority: {error}."
        ) from error
    return context


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A path under which OpenSSL reads a text once; it never lies on a disk."""
    read, write = os.pipe()

    def feed() -> None:
        with suppress(OSError), open(write, "w") as file:  # who found it wrong reads no further
            file.write(text)

    # In a thread, since a pipe holds no more than the system likes.
    thread = threading.Thread(target=feed, daemon=True)
    thread.start()
    try:
        yield f"/dev/fd/{read}"
    finally:
        os.close(read)
        thread.join()
