"""The board of a mesh over connections that are protected as the links are.

One process hosts it, and is believed. It knows the others by their certificates, where there are
keys; without keys, by what they say. A question has a kind, a key and a value, with their lengths,
and an answer a status and a value; nothing else is read, and nothing is unpickled.
"""

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from privtrain.core.errors import PrivtrainError, ProtocolError
from privtrain.runtimes.board import MOST_KEY, MOST_VALUE, Entries, check_text
from privtrain.runtimes.channels import CLOSED, read_exactly, shut
from privtrain.runtimes.sockets import Plain, Transport, introduced

_MAGIC = b"privtrain board1"
_HELLO = struct.Struct(">16sH")
_WELCOME = b"welcome"
_ASK = struct.Struct(">BHH")
_ANSWER = struct.Struct(">BH")
_SET, _GET, _CLAIM = range(3)
_NOTHING, _VALUE, _REFUSED = range(3)
_GREETING = 10.0
"""Seconds that a stranger gets to say who it is."""
_STRANGERS = 64
"""So many may be about to say who they are; one more, and the oldest of them has to go."""
_CONNECTIONS = 8
"""Of one role at most."""
_AGAIN = 0.05
"""Seconds between two attempts to reach the host."""


@dataclass
class BoardClient:
    """A party's board over a connection; threads may share it. Made by `join`.

    Args:
        connection: To the host, which knows who this is.
        timeout: Seconds after which the host counts as silent.
    """

    connection: socket.socket
    timeout: float
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _error: str = field(default="", init=False)

    @property
    def own_address(self) -> str:
        address: str = self.connection.getsockname()[0]
        return address

    def set(self, key: str, value: str) -> None:
        self._ask(_SET, key, value)

    def get(self, key: str) -> str | None:
        return self._ask(_GET, key, "")

    def claim(self, key: str, value: str) -> str:
        return self._ask(_CLAIM, key, value) or ""

    def close(self) -> None:
        """Ends the connection, which wakes a thread that waits for an answer."""
        shut(self.connection)
        with self._lock:
            self._error = "this party closed the connection"
            self.connection.close()

    def _ask(self, what: int, key: str, value: str) -> str | None:
        check_text(key, value)
        data, text = key.encode(), value.encode()
        with self._lock:
            # An answer that came late would be taken for the next one.
            if self._error:
                raise ConnectionError(self._error)
            try:
                self.connection.settimeout(self.timeout)
                self.connection.sendall(_ASK.pack(what, len(data), len(text)) + data + text)
                head = read_exactly(self.connection, _ANSWER.size, self.timeout)
                status, size = _ANSWER.unpack(head)
                answer = read_exactly(self.connection, size, self.timeout).decode(errors="replace")
            except TimeoutError as error:
                self._error = f"it has not answered for {self.timeout:g} s"
                raise TimeoutError(self._error) from error
            except OSError as error:
                self._error = str(error) or type(error).__name__
                raise
        if status == _REFUSED:
            raise ProtocolError(answer)
        return answer if status == _VALUE else None


def join(
    meeting: tuple[str, int], host_name: str, name: str, transport: Transport, timeout: float
) -> BoardClient:
    """The board at an address; who hosts it is waited for.

    Args:
        meeting: Host and port.
        host_name: Name of who has to host it.
        name: Name of this party.
        transport: How the connection is protected.
        timeout: Seconds within which the host has to be there, and to answer each time.

    Raises:
        OSError: If it cannot be reached in time.
        ProtocolError: If it is somebody else, or refuses this party.
    """
    hello = _HELLO.pack(_MAGIC, len(name.encode())) + name.encode()
    end = time.monotonic() + timeout
    while True:
        left = max(_AGAIN, end - time.monotonic())
        why = ""
        try:
            connection = socket.create_connection(meeting, timeout=left)
            # Where nobody listens, the system may connect a socket of this host with itself.
            if connection.getsockname() != connection.getpeername():
                why = f"it does not let {name} in; all parties need keys of one study, or none: "
                secured = introduced(
                    connection, transport, host_name, name, hello, _WELCOME, seconds=left
                )
                return BoardClient(secured, timeout)
            connection.close()
            why = "nobody listens there"
        except OSError as error:
            why += str(error) or type(error).__name__
        if time.monotonic() + _AGAIN > end:
            raise ConnectionError(why)
        time.sleep(_AGAIN)


def listening(host: str, port: int) -> socket.socket:
    """A listening socket on one interface; port 0 takes any.

    Raises:
        OSError: If the port is taken, or the host is not this one.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # A port of a run that just ended stays reserved for a minute otherwise.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


@dataclass
class BoardServer:
    """Hosts a board; a context manager, whose end ends all connections.

    A thread for each client: one that says nothing, or takes no answer, holds up itself alone.

    Args:
        entries: What stands on the board.
        listener: Where clients connect; is closed in the end.
        transport: How connections are protected, and by which role the host is known.
    """

    entries: Entries
    listener: socket.socket
    transport: Transport = Plain()
    _strangers: list[socket.socket] = field(default_factory=list, init=False, repr=False)
    _handles: set[socket.socket] = field(default_factory=set, init=False, repr=False)
    _roles: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _closing: bool = field(default=False, init=False)
    _threads: list[threading.Thread] = field(default_factory=list, init=False, repr=False)

    def __enter__(self) -> "BoardServer":
        self._spawn(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closing = True
            for handle in self._handles:
                shut(handle)
        shut(self.listener)
        # First is the thread that waits for connections; it starts no other one from here on.
        for thread in self._threads:
            thread.join(timeout=5)
        self.listener.close()

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self.listener.accept()
                handle = connection.dup()
            except OSError:
                # The end, or the system is short of descriptors; strangers must not end the board.
                time.sleep(0 if self._closing else _AGAIN)
                continue
            with self._lock:
                self._handles.add(handle)
                self._strangers.append(handle)
                # A party says who it is at once.
                if len(self._strangers) > _STRANGERS:
                    shut(self._strangers.pop(0))
                if self._closing:
                    shut(handle)
            # Strangers may come for as long as a run lasts.
            self._threads[1:] = [thread for thread in self._threads[1:] if thread.is_alive()]
            self._spawn(self._serve, connection, handle)

    def _serve(self, connection: socket.socket, handle: socket.socket) -> None:
        secured, role = connection, None
        try:
            connection.settimeout(_GREETING)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured, proven = self.transport.accepted(connection)
            role = self._admitted(secured, proven, handle)
            secured.sendall(_WELCOME)
            # From here on it says something when it likes; only its own thread waits.
            secured.settimeout(None)
            while True:
                self._answer(secured, role)
        # A stranger, or a party that has ended: neither ends the board.
        except (OSError, PrivtrainError, UnicodeError):
            pass
        finally:
            with self._lock:
                if role is not None:
                    self._roles[self._kind(role)] -= 1
                self._handles.discard(handle)
                if handle in self._strangers:
                    self._strangers.remove(handle)
                handle.close()
            secured.close()

    def _admitted(self, secured: socket.socket, proven: str | None, handle: socket.socket) -> str:
        """The name of who connected.

        Raises:
            ProtocolError: If it is another one than it says, or has enough connections.
        """
        magic, size = _HELLO.unpack(read_exactly(secured, _HELLO.size, _GREETING))
        if magic != _MAGIC or size > MOST_VALUE:
            raise ProtocolError("it does not ask for a board")
        name = read_exactly(secured, size, _GREETING).decode()
        if proven is not None and proven != name:
            raise ProtocolError(f"{proven} said that it is {name}")
        with self._lock:
            if self._roles[self._kind(name)] >= _CONNECTIONS:
                raise ProtocolError(f"{name} has {_CONNECTIONS} connections already")
            self._roles[self._kind(name)] += 1
            if handle in self._strangers:
                self._strangers.remove(handle)
        return name

    def _kind(self, name: str) -> str:
        # A party of another world size has to be heard, but there may be any number of such names.
        return name if name in self.entries.names else ""

    def _answer(self, secured: socket.socket, role: str) -> None:
        what, key_size, value_size = _ASK.unpack(_whole(secured, _ASK.size))
        if key_size > MOST_KEY or value_size > MOST_VALUE:
            raise ProtocolError("too long")
        key = _whole(secured, key_size).decode()
        value = _whole(secured, value_size).decode()
        answer: str | None = None
        try:
            if what == _SET:
                self.entries.put(role, key, value)
            elif what == _CLAIM:
                answer = self.entries.claim(role, key, value)
            else:
                answer = self.entries.get(key)
            status = _NOTHING if answer is None else _VALUE
        except ProtocolError as error:
            status, answer = _REFUSED, str(error)
        data = (answer or "").encode()[: 2 * MOST_VALUE]
        secured.sendall(_ANSWER.pack(status, len(data)) + data)


def _whole(connection: socket.socket, size: int) -> bytes:
    """So many bytes, whenever they come."""
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError(CLOSED)
        data += piece
    return data
