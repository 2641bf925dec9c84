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
    _pieces: deque[memoryview] = field(default_factory=deque, init=False, repr=False)
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
            if not self._changed.wait_for(lambda: self._pieces or self._ended, self.timeout):
                raise TimeoutError
            count = 0
            while self._pieces and count < len(view):
                piece = self._pieces.popleft()
                part = piece[: len(view) - count]
                view[count : count + len(part)] = part
                count += len(part)
                if len(part) < len(piece):
                    self._pieces.appendleft(piece[len(part) :])
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
        piece = memoryview(bytearray(_PIECE))
        try:
            while self._has_room():
                try:
                    count = self.receive(piece)
                # Nobody asked for anything yet: it may be silent.
                except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
                    continue
                if not count:
                    break
                with self._changed:
                    self._pieces.append(piece[:count])
                    self._bytes += count
                    self._changed.notify_all()
                piece = piece[count:] or memoryview(bytearray(_PIECE))
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
