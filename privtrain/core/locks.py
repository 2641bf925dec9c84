"""A lock for values that are copied and sent to other processes."""

import threading
from types import TracebackType


class Lock:
    """Lets one thread at a time into a block; the same thread may enter again.

    A copy, by `copy` or by a pickle, is an open lock of its own, as `threading.RLock` cannot be.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["Lock"], tuple[()]]:
        return Lock, ()
