"""One direction of a connection between two parties: what goes out, and what comes in.

The calling thread sends and reads: a thread for each connection would cost more than the network
does. Only what the network does not take at once is left to a thread, so that two parties can send
each other any amount before either of them reads.
"""

import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from privtrain.core.errors import PrivtrainError, ProtocolError
from privtrain.runtimes.ahead import Ahead
from privtrain.runtimes.messages import Head, read_body, read_head

_CHUNK = 2**18
_BUFFER = 2**16
_FIRST = 2**22
"""Bytes that are taken for a message before any of them is there."""

WAITING = 2**30
"""Bytes that may wait to be sent to one party before the sender waits, too."""

CLOSED = "closed the connection"


@dataclass
class Outbox:
    """Messages on their way to one party.

    Args:
        connection: Connected; becomes non-blocking.
        timeout: Seconds after which a party that takes nothing counts as lost.
    """

    connection: socket.socket
    timeout: float
    number: int = field(default=0, init=False)
    _waiting: deque[memoryview] = field(default_factory=deque, init=False, repr=False)
    _bytes: int = field(default=0, init=False)
    _changed: threading.Condition = field(
        default_factory=lambda: threading.Condition(threading.Lock()), init=False, repr=False
    )
    _error: OSError | None = field(default=None, init=False)
    _closing: bool = field(default=False, init=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.connection.setblocking(False)

    def send(self, data: bytes) -> None:
        """Sends a message, or leaves to a thread what the network does not take now.

        Args:
            data: The message; `number` is its number.

        Raises:
            TimeoutError: If the party took nothing for `timeout` seconds of what was sent before.
            OSError: If it is gone.
        """
        with self._changed:
            if self._error is None and not self._waiting and len(data) <= _CHUNK:
                # The usual case, and all that a small message costs.
                try:
                    sent = self.connection.send(data)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    sent = 0
                if sent == len(data):
                    self.number += 1
                    return
                data = data[sent:]
            rest = memoryview(data)
            if self._error is None and not self._waiting:
                rest = self._write(rest)
            while self._error is None and self._waiting and self._bytes + len(rest) > WAITING:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            if rest:
                self._waiting.append(rest)
                self._bytes += len(rest)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._send_waiting, daemon=True)
                    self._thread.start()
                self._changed.notify_all()
        self.number += 1

    def flush(self) -> None:
        """Waits until everything is sent.

        Raises:
            TimeoutError: If the party takes nothing for `timeout` seconds.
            OSError: If it is gone.
        """
        with self._changed:
            while self._waiting and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """Closes the connection; what waits is not sent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        shut(self.connection)
        if self._thread is not None:
            self._thread.join(timeout=5)
        self.connection.close()

    def _write(self, rest: memoryview) -> memoryview:
        """What is left of it when the network takes no more."""
        while rest:
            try:
                rest = rest[self.connection.send(rest[:_CHUNK]) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                break
        return rest

    def _send_waiting(self) -> None:
        """Sends what waits, until the connection is closed."""
        taken = select.poll()
        taken.register(self.connection, select.POLLOUT)
        try:
            while True:
                with self._changed:
                    while not self._waiting and not self._closing:
                        self._changed.wait()
                    if self._closing:
                        return
                    rest = self._waiting[0]
                while rest:
                    left = self._write(rest)
                    # TLS may take nothing although there is room: it asks for more of it.
                    if len(left) == len(rest) and not taken.poll(1e3 * self.timeout):
                        raise TimeoutError
                    rest = left
                with self._changed:
                    self._bytes -= len(self._waiting.popleft())
                    self._changed.notify_all()
        except OSError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()


class Expected(NamedTuple):
    """What a receiver waits for.

    Args:
        receiver: Its name.
        kind: What has to come.
        dtype: Of which type, where only one is right.
        shape: Of which shape, where only one is right.
    """

    receiver: str
    kind: str
    dtype: torch.dtype | None = None
    shape: tuple[int, ...] | None = None

    def check(self, head: Head) -> None:
        """Refuses another message, before anything else of it is read.

        Raises:
            ProtocolError: With what came and what is expected.
        """
        if head.kind != self.kind:
            raise ProtocolError(f"sent {head.kind!r} where {self.receiver} expects {self.kind!r}.")
        if self.dtype not in (None, head.dtype):
            raise ProtocolError(
                f"sent {self.kind!r} of {head.dtype} where {self.receiver} expects {self.dtype}."
            )
        if self.shape is not None and tuple(self.shape) != head.shape:
            raise ProtocolError(
                f"sent {self.kind!r} of shape {head.shape} where {self.receiver} expects "
                f"{tuple(self.shape)}."
            )


@dataclass
class Inbox:
    """Messages of one party, which are read when they are asked for; an error stays.

    Args:
        name: Name of the party.
        timeout: Seconds after which it counts as silent.
        lock: Held while it is read.
        error: Why nothing more is read from it.
    """

    name: str
    timeout: float
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    error: PrivtrainError | None = field(default=None, init=False)
    _connection: socket.socket | None = field(default=None, init=False, repr=False)
    _receive: Callable[[memoryview], int] = field(init=False, repr=False)
    _ahead: Ahead | None = field(default=None, init=False, repr=False)
    _claim: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _arrived: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _number: int = field(default=0, init=False)
    _round: int = field(default=0, init=False)
    _buffer: memoryview = field(
        default_factory=lambda: memoryview(bytearray(_BUFFER)), init=False, repr=False
    )
    _start: int = field(default=0, init=False)
    _end: int = field(default=0, init=False)

    @property
    def connected(self) -> bool:
        """Whether the party is there."""
        return self._arrived.is_set()

    def connect(self, connection: socket.socket) -> None:
        """Reads from this connection from now on."""
        connection.settimeout(self.timeout)
        self._receive = connection.recv_into
        if isinstance(connection, ssl.SSLSocket):
            # What `recv_into` calls, after it has looked at its arguments again.
            self._receive = partial(_read_record, connection)
        else:
            # The system counts the time: Python would ask it first, and then read, for each
            # message. Of TLS it reads first, and would try again for good where the system's time
            # is over.
            connection.settimeout(None)
            seconds, rest = divmod(self.timeout, 1)
            limit = struct.pack("@ll", int(seconds), max(1, int(1e6 * rest)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._connection = connection
        self._arrived.set()

    def read_ahead(self) -> None:
        """Reads in a thread from now on, once the party is there."""
        if self._connection is not None and self._ahead is None:
            self._ahead = Ahead(self._receive, self.timeout)
            self._receive = self._ahead.take

    def claim(self) -> bool:
        """Whether this is the first connection of the party."""
        return self._claim.acquire(blocking=False)

    def receive(self, expected: Expected) -> tuple[Tensor, int]:
        """The next message and its round.

        Args:
            expected: What has to come.

        Raises:
            TimeoutError: If nothing comes for `timeout` seconds.
            OSError: If the connection ends.
            ProtocolError: If something else comes.
        """
        if self._connection is None and not self._arrived.wait(self.timeout):
            raise TimeoutError
        try:
            head = read_head(self._read)
            self._check(head)
            expected.check(head)
            tensor = read_body(self._read, head)
        except ProtocolError as error:
            raise ProtocolError(f"{self.name} {error}") from error
        self._number, self._round = head.number + 1, head.round
        return tensor, head.round

    def _check(self, head: Head) -> None:
        if head.number != self._number:
            raise ProtocolError(
                f"sent {head.kind!r} as message {head.number} where number {self._number} comes: "
                "it repeated a message, left one out or changed their order."
            )
        if head.round < self._round:
            raise ProtocolError(
                f"sent {head.kind!r} of round {head.round} after a message of round {self._round}."
            )

    def _read(self, size: int) -> bytearray:
        """Exactly so many bytes.

        Raises:
            ConnectionError: If the other end closes before.
        """
        end = self._start + size
        if end <= self._end:
            start, self._start = self._start, end
            return bytearray(self._buffer[start:end])
        # Small messages come whole with one call of the system.
        if self._start == self._end and size < _BUFFER:
            self._start, self._end = 0, self._arriving(self._buffer)
        have = min(size, self._end - self._start)
        start, self._start = self._start, self._start + have
        if have == size:
            return bytearray(self._buffer[start : self._start])
        # A size that somebody made up must not take memory before its bytes are there.
        data = bytearray(min(size, have + _FIRST))
        data[:have] = self._buffer[start : self._start]
        while have < size:
            if have == len(data):
                data += bytes(min(have, size - have))
            # Of TLS a call gives 16 kB at most: the view is made once for all of them.
            with memoryview(data) as view:
                while have < len(data):
                    with view[have:] as rest:
                        have += self._arriving(rest)
        return data

    def _arriving(self, view: memoryview) -> int:
        if self._connection is None:
            raise ConnectionError(CLOSED)
        try:
            count = self._receive(view)
        except (BlockingIOError, ssl.SSLWantReadError):
            raise TimeoutError from None
        if count == 0:
            raise ConnectionError(CLOSED)
        return count

    def interrupt(self) -> None:
        """Wakes the thread that waits for a message; nothing more is read."""
        if self._connection is not None:
            shut(self._connection)
        self._arrived.set()

    def close(self) -> None:
        """Closes the connection; what was not read is lost."""
        if self._connection is not None:
            shut(self._connection)
            if self._ahead is not None:
                self._ahead.close()
            self._connection.close()


def _read_record(connection: ssl.SSLSocket, view: memoryview) -> int:
    count = connection.read(len(view), view)
    return count if isinstance(count, int) else len(count)


def read_exactly(connection: socket.socket, size: int, seconds: float) -> bytes:
    """So many bytes, within so many seconds.

    Raises:
        TimeoutError: If they do not come in time.
        ConnectionError: If the other end closes before.
    """
    data, end = b"", time.monotonic() + seconds
    while len(data) < size:
        connection.settimeout(max(1e-3, end - time.monotonic()))
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError(CLOSED)
        data += piece
    return data


def shut(connection: socket.socket) -> None:
    """Ends a connection both ways, which wakes the thread that waits in it."""
    # The method of plain sockets: that of TLS forgets its keys first, and a thread that is sending
    # would go on in clear.
    with suppress(OSError):  # it has ended already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
