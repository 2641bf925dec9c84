"""Links between the parties of a mesh: tensors over TCP, one connection for each direction.

Each party listens before it says where, in the store where the parties meet; who has something to
send connects. A message is a header (kind, type, shape, round, size) and the bytes of a tensor:
nothing is pickled. A round is counted as in the literature: a message belongs to the round after
the last one from which its sender had received something.
"""

import math
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import PartyLostError, PrivtrainError, ProtocolError
from privtrain.core.transcript import Entry, Setup

_HELLO = struct.Struct(">16sH")
_MAGIC = b"privtrain link 1"
_HEAD = struct.Struct(">HBBQQ")
"""Length of the kind, number of the type, dimensions, round, bytes of the tensor."""

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
_CHUNK = 2**20
_CLOSED = "closed the connection"


@dataclass(frozen=True)
class Message:
    """A tensor as it arrived.

    Args:
        kind: What its sender calls it.
        round: The round in which it was sent.
        tensor: The tensor.
    """

    kind: str
    round: int
    tensor: Tensor


def pack(kind: str, tensor: Tensor, round: int) -> bytes:
    """A message as bytes.

    Raises:
        ValueError: If the kind is too long, or the tensor holds no plain numbers.
    """
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype not in _DTYPES:
        raise ValueError(f"Expected {kind!r} to hold plain numbers; it is of {plain.dtype}.")
    name = kind.encode()
    if len(name) >= 2**16:
        raise ValueError(f"Expected kind={kind[:40]!r}... to have fewer than 65536 bytes.")
    body = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    head = _HEAD.pack(len(name), _DTYPES.index(plain.dtype), plain.dim(), round, len(body))
    return head + name + struct.pack(f">{plain.dim()}Q", *plain.shape) + body


def unpack(read: Callable[[int], bytearray]) -> Message:
    """The next message.

    Args:
        read: Returns exactly so many bytes.

    Raises:
        ProtocolError: If the header contradicts itself, or no tensor has such a shape.
    """
    length, number, dims, round, size = _HEAD.unpack(read(_HEAD.size))
    kind = bytes(read(length)).decode(errors="replace")
    shape = struct.unpack(f">{dims}Q", read(8 * dims))
    # Checked before a byte is read: the size says how much memory is asked for.
    if number >= len(_DTYPES) or math.prod(shape) * _DTYPES[number].itemsize != size:
        raise ProtocolError(f"sent a message {kind!r} of shape {shape} with {size} bytes.")
    try:
        # Of a tensor without values any shape agrees with the size, such as (0, 2^64 - 1).
        empty = torch.empty(shape if size == 0 else 0, dtype=_DTYPES[number])
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"sent a message {kind!r} of shape {shape}: no tensor's.") from error
    if size == 0:
        return Message(kind, round, empty)
    return Message(kind, round, torch.frombuffer(read(size), dtype=_DTYPES[number]).reshape(shape))


@dataclass
class _Inbox:
    """What one party sent and nobody asked for yet; an error comes last, and stays."""

    messages: "queue.Queue[Message | PrivtrainError]" = field(default_factory=queue.Queue)
    heard: float = 0.0
    connected: bool = False


@dataclass
class SocketLink:
    """A link over TCP sockets; a context manager.

    It listens on the address from which the store is reached: loopback where the store is there.
    Connections are neither encrypted nor authenticated.

    Args:
        names: All parties of the mesh, by rank.
        rank: Own number.
        meeting: Host and port of the store.
        timeout: Seconds after which a silent party counts as lost.
        watch: Called as `watch(done, total)` when the program reports progress.
        entries: The messages that this party sent.
        setups: What this party knows without a message.
    """

    names: tuple[str, ...]
    rank: int
    meeting: tuple[str, int]
    timeout: float
    watch: Callable[[int, int], None] = field(default=lambda done, total: None, repr=False)
    entries: list[Entry] = field(default_factory=list, init=False, repr=False)
    setups: list[Setup] = field(default_factory=list, init=False, repr=False)
    _round: int = field(default=0, init=False)
    _store: Any = field(default=None, init=False, repr=False)
    _listener: socket.socket = field(init=False, repr=False)
    _out: dict[str, socket.socket] = field(default_factory=dict, init=False, repr=False)
    _in: list[socket.socket] = field(default_factory=list, init=False, repr=False)
    _inboxes: dict[str, _Inbox] = field(default_factory=dict, init=False, repr=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False, repr=False)

    def __enter__(self) -> "SocketLink":
        """Listens, and tells the others where.

        Raises:
            PartyLostError: If the store cannot be reached.
        """
        # torch.distributed does not list its stores among its names.
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        self._inboxes = {name: _Inbox() for name in self.names if name != self.names[self.rank]}
        host, port = self.meeting
        self._listener = _listening(host, port)
        self._spawn(self._accept)
        try:
            # A connection of its own: who waits for a key would keep others from the store.
            store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=self.timeout))
            self._store = PrefixStore("link", store)
            address, own_port, *_ = self._listener.getsockname()
            self._store.set(str(self.rank), f"{address} {own_port}")
        except RuntimeError as error:
            self._close()
            raise PartyLostError(
                f"the store at {host}:{port} cannot be reached: {str(error).splitlines()[0]}"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes all connections; what was sent before still arrives."""
        self._close()

    def send(self, to: str, kind: str, tensor: Tensor) -> None:
        self._check(to)
        data = memoryview(pack(kind, tensor, self._round))
        try:
            if to not in self._out:
                self._out[to] = self._connected(to)
            # Not `sendall`, whose timeout is for the whole of it: a large tensor takes its time.
            while data:
                data = data[self._out[to].send(data) :]
        except TimeoutError:
            raise self._lost(to, f"took nothing of {kind!r} for {self.timeout:g} s") from None
        except OSError as error:
            raise self._lost(to, f"is gone, {kind!r} could not be sent: {error}") from error
        size = tensor.element_size() * tensor.nelement()
        own = self.names[self.rank]
        self.entries.append(Entry(own, to, kind, tuple(tensor.shape), size, self._round))

    def receive(self, sender: str, kind: str) -> Tensor:
        self._check(sender)
        message = self._next(self._inboxes[sender], sender, kind)
        if message.kind != kind:
            raise ProtocolError(
                f"{sender} sent {message.kind!r} where {self.names[self.rank]} expects {kind!r}."
            )
        # What is sent from now on may depend on it.
        self._round = max(self._round, message.round + 1)
        return message.tensor

    def knows(self, what: str) -> None:
        self.setups.append(Setup(self.names[self.rank], what))

    def report(self, done: int, total: int) -> None:
        self.watch(done, total)

    def _check(self, name: str) -> None:
        if name not in self._inboxes:
            raise ValueError(
                f"Expected a message of {self.names[self.rank]} to be to or from one of "
                f"{list(self._inboxes)}; got {name!r}."
            )

    def _next(self, inbox: _Inbox, sender: str, kind: str) -> Message:
        """What comes next from a party, within the timeout after its last sign of life."""
        started = time.monotonic()
        while True:
            left = max(started, inbox.heard) + self.timeout - time.monotonic()
            if left <= 0:
                raise self._lost(sender, f"sent no {kind!r} for {self.timeout:g} s")
            with suppress(queue.Empty):
                message = inbox.messages.get(timeout=left)
                if isinstance(message, Message):
                    return message
                # There is no more; whoever asks again gets the same answer.
                inbox.messages.put(message)
                raise message

    def _lost(self, name: str, what: str) -> PartyLostError:
        return PartyLostError(f"{name} {what}.", name)

    def _connected(self, to: str) -> socket.socket:
        """A new connection to a party, which is waited for."""
        try:
            address: str = self._store.get(str(self.names.index(to))).decode()
        except RuntimeError as error:
            text = f"did not come within {self.timeout:g} s: {str(error).splitlines()[0]}"
            raise self._lost(to, text) from error
        host, port = address.split(" ")
        connection = socket.create_connection((host, int(port)), timeout=self.timeout)
        # A small message must not wait for the answer to the one before.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_HELLO.pack(_MAGIC, self.rank))
        return connection

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._in.append(connection)
            self._spawn(self._listen, connection)

    # A thread for each sender: two parties that send each other large tensors at once would
    # otherwise wait for each other, and who stops reading would not hear of a party's end.
    def _listen(self, connection: socket.socket) -> None:
        """Reads what one party sends, to its end."""
        try:
            magic, rank = _HELLO.unpack(_read(connection, _HELLO.size))
        except OSError:
            connection.close()
            return
        # A stranger, or somebody who is here already: not a party of this mesh.
        name = self.names[rank] if magic == _MAGIC and rank < len(self.names) else ""
        if name not in self._inboxes or self._inboxes[name].connected:
            connection.close()
            return
        inbox = self._inboxes[name]
        inbox.connected = True

        def read(size: int) -> bytearray:
            return _read(connection, size, inbox)

        try:
            while True:
                inbox.messages.put(unpack(read))
        except OSError as error:
            inbox.messages.put(self._lost(name, str(error) or _CLOSED))
        except ProtocolError as error:
            inbox.messages.put(ProtocolError(f"{name} {error}"))

    def _close(self) -> None:
        for one in (self._listener, *self._in, *self._out.values()):
            with suppress(OSError):  # wakes the thread that waits in it
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(timeout=5)


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket on the own address from which a host is reached; any port."""
    try:
        family, kind, proto, _, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        # Of UDP, connecting sends nothing: it asks the system for the way.
        with socket.socket(family, kind, proto) as probe:
            probe.connect(there)
            own = probe.getsockname()[0]
        listener = socket.socket(family)
        listener.bind((own, 0))
        listener.listen()
    except OSError as error:
        raise PartyLostError(f"{host}:{port} cannot be reached: {error}") from error
    return listener


def _read(connection: socket.socket, size: int, inbox: _Inbox | None = None) -> bytearray:
    """Exactly so many bytes.

    Raises:
        ConnectionError: If the other end closes before.
    """
    # In pieces: a size that a stranger made up must not take memory before its bytes are there.
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), _CHUNK))
        if not piece:
            raise ConnectionError(_CLOSED)
        data += piece
        if inbox is not None:
            inbox.heard = time.monotonic()
    return data
