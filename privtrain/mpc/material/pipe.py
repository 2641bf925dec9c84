"""A bounded pipe of blocks between the thread that deals and the one that sends."""

import threading
import time
from collections import deque

from privtrain.core.errors import PartyLostError
from privtrain.core.validate import check_count, check_positive


class Pipe:
    """Blocks in their order; who puts waits while it is full, who gets while it is empty.

    Args:
        bound: Bytes that it holds at most.
        timeout: Seconds for which either side is waited for.

    Raises:
        ValueError: If an argument is out of bounds.
    """

    def __init__(self, *, bound: int, timeout: float) -> None:
        check_count(bound=bound)
        check_positive(timeout=timeout)
        self._bound, self._timeout = bound, timeout
        self._blocks: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, block: bytes) -> None:
        """Adds a block, once there is room for it.

        Raises:
            PartyLostError: If nobody took any for the timeout, or the other side has closed.
            ValueError: If the block alone is larger than the bound.
        """
        if len(block) > self._bound:
            raise ValueError(
                f"Expected a block of {len(block)} bytes to fit bound={self._bound}: raise the "
                "bound, or seal it in several blocks."
            )
        with self._changed:
            while not self._closed and self._size + len(block) > self._bound:
                self._wait(f"took none of {self._size} bytes of material")
            if self._closed:
                raise PartyLostError("Nobody takes more material: the pipe was closed.")
            self._blocks.append(block)
            self._size += len(block)
            self._changed.notify_all()

    def get(self) -> bytes | None:
        """The next block; None where the other side has closed and there is no more.

        Raises:
            PartyLostError: If none came for the timeout, or the other side failed.
        """
        with self._changed:
            while not self._blocks and not self._closed:
                self._wait("dealt no material")
            if self._blocks:
                block = self._blocks.popleft()
                self._size -= len(block)
                self._changed.notify_all()
                return block
            if self._error is not None:
                raise PartyLostError(
                    f"Dealing failed: {type(self._error).__name__}: {self._error}"
                ) from self._error
            return None

    def close(self, error: BaseException | None = None) -> None:
        """Ends the pipe; either side may do so, and both are told.

        Args:
            error: Why, where dealing failed; blocks that were dealt before still come.
        """
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
            self._changed.notify_all()

    def _wait(self, what: str) -> None:
        """Waits until something changes, at most for the timeout."""
        blocks, size = len(self._blocks), self._size
        end = time.monotonic() + self._timeout
        while (blocks, size) == (len(self._blocks), self._size) and not self._closed:
            left = end - time.monotonic()
            if left <= 0:
                raise PartyLostError(f"The other end of the pipe {what} for {self._timeout:g} s.")
            self._changed.wait(left)
