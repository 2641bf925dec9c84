"""Bytes of a connection, read by a thread before somebody asks for them."""

import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_PIECE = 2**18
LIMIT = 2**26
"""Bytes that may lie here at which nothing more is read, until some of them are taken."""


@dataclass
class _Piece:
    """Memory that is filled while it is taken from; records of TLS are small."""

    memory: memoryview
    start: int = 0
    end: int = 0


@dataclass
class Ahead:
    """Reads a connection in a thread, so that what arrives is decrypted while others compute.

    A small message takes longer, since a second thread has to wake.

    Args:
        receive: Reads the connection: waits, and writes what comes; 0 at its end. What is
            interrupted must return.
        timeout: Seconds after which somebody who waits gives up.
    """

    receive: Callable[[memoryview], int] = field(repr=False)
    timeout: float
    _pieces: deque[_Piece] = field(default_factory=deque, init=False, repr=False)
    _bytes: int = field(default=0, init=False)
    _error: OSError | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)
    _changed: threading.Condition = field(
        default_factory=lambda: threading.Condition(threading.Lock()), init=False, repr=False
    )
    _thread: threading.Thread = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def take(self, view: memoryview) -> int:
        """Writes bytes that arrived, and waits while there are none.

        Args:
            view: Where to; at least one byte.

        Returns:
            How many; 0 where the connection has ended.

        Raises:
            TimeoutError: If none come.
            OSError: If reading failed, after all that came before.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._bytes or self._ended, self.timeout):
                raise TimeoutError
            count, size = 0, len(view)
            while self._pieces and count < size:
                piece = self._pieces[0]
                end = min(piece.end, piece.start + size - count)
                part = piece.memory[piece.start : end]
                view[count : count + len(part)] = part
                count, piece.start = count + len(part), end
                if end == len(piece.memory):
                    self._pieces.popleft()
                elif end == piece.end:
                    break
            self._bytes -= count
            self._changed.notify_all()
            if not count and self._error is not None:
                raise self._error
        return count

    def close(self) -> None:
        """Waits for the thread, which ends with the connection; what was not taken is lost."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(timeout=5)

    def _read(self) -> None:
        piece = _Piece(memoryview(bytearray(_PIECE)))
        self._pieces.append(piece)
        try:
            while self._has_room():
                try:
                    count = self.receive(piece.memory[piece.end :])
                # Nobody asked for anything yet: it may be silent.
                except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                    continue
                if not count:
                    break
                with self._changed:
                    piece.end += count
                    self._bytes += count
                    if piece.end == len(piece.memory):
                        piece = _Piece(memoryview(bytearray(_PIECE)))
                        self._pieces.append(piece)
                    self._changed.notify_all()
        except OSError as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits until something may be read; False where nobody wants any of it."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < LIMIT or self._ended)
            return not self._ended
