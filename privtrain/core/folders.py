"""One run at a time works in a folder."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such locks; there, two processes are not kept apart
    fcntl = None  # type: ignore[assignment]

from privtrain.core.errors import DataError

LOCK = ".privtrain.lock"
"""The file that is there while a run works in a folder."""


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps other runs, in this process or another one, out of a folder.

    A process that ends, however it ends, leaves the folder open: the system gives the lock back.

    Args:
        folder: A folder that can be written.

    Raises:
        DataError: If another run works there; it is named.
    """
    path = folder / LOCK
    file = _locked(path)
    try:
        file.truncate(0)
        file.write(_holder())
        file.flush()
        yield
    finally:
        # Before it is given back: a file that somebody else has locked by then must stay.
        with suppress(OSError):
            path.unlink()
        file.close()


def _locked(path: Path) -> IO[str]:
    while True:
        try:
            file = path.open("a+")
        except OSError as error:
            raise DataError(
                f"Cannot write to folder={str(path.parent)!r}: {error.strerror}. Choose a folder "
                "that you may write to."
            ) from error
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another run"
            file.close()
            if isinstance(error, BlockingIOError):
                raise DataError(
                    f"The folder {path.parent} is in use: {holder} works there. Wait until it "
                    "ends, or choose another folder."
                ) from None
            raise DataError(
                f"Cannot lock the folder {path.parent}: {error.strerror}. Choose a folder of a "
                "file system that has locks, so that no two runs work in it."
            ) from error
        # Whoever held it before removed the file it had locked; another one may be there by now.
        with suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _holder() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    thread = threading.current_thread().name
    return f"process {os.getpid()} ({thread}) on {platform.node()}, since {since},"
