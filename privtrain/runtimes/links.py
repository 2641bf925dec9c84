"""Links between the parties of a mesh: tensors over TCP or TLS, one connection each way.

Each party listens before it says where, on the board where the parties meet; who has something to
send connects, proves who it is, and waits until the other end says that it is welcome. A round is
counted as in the literature: a message belongs to the round after the last one from which its
sender had received something.
"""

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from privtrain.core.errors import PartyLostError, PrivtrainError, ProtocolError
from privtrain.core.transcript import Entry, Setup
from privtrain.runtimes.board import Board, wait_for
from privtrain.runtimes.channels import CLOSED, Expected, Inbox, Outbox, read_exactly, shut
from privtrain.runtimes.messages import pack
from privtrain.runtimes.rendezvous import listening
from privtrain.runtimes.sockets import Plain, Transport, introduced

_HELLO = struct.Struct(">16sH")
_MAGIC = b"privtrain link 2"
_WELCOME = b"welcome"
_GREETING = 10.0
"""Seconds that a stranger gets to say who it is."""


@dataclass
class SocketLink:
    """A link over sockets; a context manager.

    It listens on the address from which the board is reached: loopback where its host is there.

    Args:
        names: All parties of the mesh, by rank.
        rank: Own number.
        board: Where the parties say where they listen.
        timeout: Seconds after which a silent party counts as lost.
        watch: Called as `watch(done, total)` when the program reports progress.
        transport: How connections are protected; with `Plain()` not at all.
        entries: The messages that this party sent.
        setups: What this party knows without a message.
    """

    names: tuple[str, ...]
    rank: int
    board: Board
    timeout: float
    watch: Callable[[int, int], None] = field(default=lambda done, total: None, repr=False)
    transport: Transport = Plain()
    entries: list[Entry] = field(default_factory=list, init=False, repr=False)
    setups: list[Setup] = field(default_factory=list, init=False, repr=False)
    _round: int = field(default=0, init=False)
    _store: Any = field(default=None, init=False, repr=False)
    _store_lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _listener: socket.socket = field(init=False, repr=False)
    _out: dict[str, Outbox] = field(default_factory=dict, init=False, repr=False)
    _inboxes: dict[str, Inbox] = field(default_factory=dict, init=False, repr=False)
    _greeted: set[socket.socket] = field(default_factory=set, init=False, repr=False)
    _refused: str = field(default="", init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False, repr=False)

    def __enter__(self) -> "SocketLink":
        """Listens, and tells the others where.

        Raises:
            PartyLostError: If the board cannot be reached.
        """
        others = [name for rank, name in enumerate(self.names) if rank != self.rank]
        self._inboxes = {name: Inbox(name, self.timeout) for name in others}
        try:
            self._listener = listening(self.board.own_address, 0)
        except OSError as error:
            raise PartyLostError(f"no port could be opened for the others: {error}") from error
        self._spawn(self._accept)
        try:
            address, port, *_ = self._listener.getsockname()
            self.board.set(f"link/{self.rank}", f"{address} {port}")
        except (OSError, ProtocolError) as error:
            self._close()
            raise PartyLostError(f"where the parties meet cannot be reached: {error}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes all connections; after a run that went well, what was sent before still arrives.

        Raises:
            PartyLostError: If a party does not take what was sent to it.
        """
        try:
            for to, outbox in self._out.items() if error is None else ():
                try:
                    outbox.flush()
                except OSError as lost:
                    raise self._unsent(to, "what was sent last", lost) from lost
        finally:
            self._close()

    @property
    def meeting(self) -> tuple[str, int]:
        """Host and port of a store that rank 0 hosts from the first time on that it asks.

        Raises:
            PartyLostError: If rank 0 hosts none within the timeout.
        """
        with self._store_lock:
            if self.rank == 0 and self._store is None:
                self._host_store()
        try:
            host, port = wait_for(self.board, "store", self.timeout).split(" ")
        except OSError as error:
            name = self.names[0]
            raise PartyLostError(f"{name} hosts no store for the engine: {error}", name) from error
        return host, int(port)

    def send(self, to: str, kind: str, tensor: Tensor) -> None:
        self._check(to)
        number = self._out[to].number if to in self._out else 0
        data = pack(kind, tensor, number=number, round=self._round)
        try:
            if to not in self._out:
                self._out[to] = Outbox(self._connected(to), self.timeout)
            self._out[to].send(data)
        except OSError as error:
            raise self._unsent(to, repr(kind), error) from error
        size = tensor.element_size() * tensor.nelement()
        own = self.names[self.rank]
        self.entries.append(Entry(own, to, kind, tuple(tensor.shape), size, self._round))

    def receive(
        self,
        sender: str,
        kind: str,
        *,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Tensor:
        self._check(sender)
        inbox = self._inboxes[sender]
        with inbox.lock:
            # What follows an error cannot be read; whoever asks again gets the same answer.
            if inbox.error is not None:
                raise inbox.error
            try:
                expected = Expected(self.names[self.rank], kind, dtype, shape)
                tensor, round = inbox.receive(expected)
            except ProtocolError as error:
                inbox.error = error
                raise
            except OSError as error:
                inbox.error = self._unheard(inbox, kind, error)
                raise inbox.error from error
        # What is sent from now on may depend on it.
        self._round = max(self._round, round + 1)
        return tensor

    def read_ahead(self, sender: str) -> None:
        self._check(sender)
        with self._inboxes[sender].lock:
            self._inboxes[sender].read_ahead()

    def knows(self, what: str) -> None:
        self.setups.append(Setup(self.names[self.rank], what))

    def report(self, done: int, total: int) -> None:
        self.watch(done, total)

    def interrupt(self) -> None:
        """Ends all connections, which wakes the thread that waits in them; for another thread."""
        for outbox in list(self._out.values()):
            shut(outbox.connection)
        for inbox in self._inboxes.values():
            inbox.interrupt()

    def _host_store(self) -> None:
        # torch.distributed does not list its stores among its names.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        with listening(self.board.own_address, 0) as listener:
            host, port, *_ = listener.getsockname()
            # Kept until this process ends or forgets the link: others may still be at it. The
            # listening socket itself, on one interface; torch's own would listen on all of them.
            self._store = TCPStore(
                host,
                port,
                is_master=True,
                timeout=timedelta(seconds=self.timeout),
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        self.board.set("store", f"{host} {port}")

    def _check(self, name: str) -> None:
        if name not in self._inboxes:
            raise ValueError(
                f"Expected a message of {self.names[self.rank]} to be to or from one of "
                f"{list(self._inboxes)}; got {name!r}."
            )

    def _unsent(self, to: str, what: str, error: OSError) -> PartyLostError:
        if isinstance(error, TimeoutError):
            return self._lost(to, f"took nothing of {what} for {self.timeout:g} s")
        return self._lost(to, f"is gone, {what} could not be sent: {error}")

    def _unheard(self, inbox: Inbox, kind: str, error: OSError) -> PartyLostError:
        if not isinstance(error, TimeoutError):
            return self._lost(inbox.name, str(error) or CLOSED)
        refused = ""
        if self._refused and not inbox.connected:
            refused = f"; a connection was refused meanwhile: {self._refused}"
        return self._lost(inbox.name, f"sent no {kind!r} for {self.timeout:g} s{refused}")

    def _lost(self, name: str, what: str) -> PartyLostError:
        return PartyLostError(f"{name} {what}.", name)

    def _connected(self, to: str) -> socket.socket:
        """A new connection to a party, which is waited for."""
        try:
            address = wait_for(self.board, f"link/{self.names.index(to)}", self.timeout)
        except OSError as error:
            text = f"did not come within {self.timeout:g} s: {error}"
            raise self._lost(to, text) from error
        host, _, port = address.partition(" ")
        if not port.isdecimal() or int(port) >= 2**16:
            raise ProtocolError(f"{to} says that it listens at {address!r}, which is no address.")
        plain = socket.create_connection((host, int(port)), timeout=self.timeout)
        hello = _HELLO.pack(_MAGIC, self.rank)
        own = self.names[self.rank]
        return introduced(plain, self.transport, to, own, hello, _WELCOME, seconds=self.timeout)

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
            # In a thread of its own: a stranger that says nothing keeps nobody out.
            # TLS takes the socket over: a handle of its own can end the connection at any time.
            handle = connection.dup()
            self._greeted.add(handle)
            self._spawn(self._greet, connection, handle)

    def _greet(self, connection: socket.socket, handle: socket.socket) -> None:
        """Finds out who connected, and lets it in where it is a party."""
        within, secured = min(_GREETING, self.timeout), connection
        try:
            connection.settimeout(within)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured, proven = self.transport.accepted(connection)
            magic, rank = _HELLO.unpack(read_exactly(secured, _HELLO.size, within))
            inbox = self._welcome(magic, rank, proven)
            secured.sendall(_WELCOME)
            inbox.connect(secured)
        except (OSError, PrivtrainError) as error:
            # Nobody's end: a stranger must not be able to end a run.
            self._refused = str(error) or type(error).__name__
            shut(handle)
            secured.close()
        finally:
            self._greeted.discard(handle)
            handle.close()

    def _welcome(self, magic: bytes, rank: int, proven: str | None) -> Inbox:
        """The inbox of who says that it has this rank.

        Raises:
            ProtocolError: If it is not a party, not that one, or here already.
        """
        if magic != _MAGIC or rank >= len(self.names) or rank == self.rank:
            raise ProtocolError("it is no party of this mesh")
        name = self.names[rank]
        if proven is not None and proven != name:
            raise ProtocolError(f"{proven} said that it is {name}")
        if not self._inboxes[name].claim():
            raise ProtocolError(f"{name} is here already")
        return self._inboxes[name]

    def _close(self) -> None:
        shut(self._listener)
        for handle in list(self._greeted):
            shut(handle)
        for outbox in self._out.values():
            outbox.close()
        # First is the thread that waits for connections; it starts no other one from here on.
        for thread in self._threads:
            thread.join(timeout=5)
        # Only now: the system gives the number of a closed socket to the next one at once, and a
        # thread that is about to wait would take connections that are somebody else's.
        self._listener.close()
        for inbox in self._inboxes.values():
            inbox.close()
