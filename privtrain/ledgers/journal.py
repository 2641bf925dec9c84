"""A journal: lines that are only ever added, and on the disk before anything follows from them."""

import json
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks; journals are compared before each write there, too
    fcntl = None  # type: ignore[assignment]

from privtrain.core.errors import PrivacyError


def check_alone(journal: Path, size: int) -> None:
    """Refuses a journal that somebody else changed: two runs would spend one plan twice.

    Args:
        journal: The file.
        size: How many bytes its reader left in it.

    Raises:
        PrivacyError: If there are more, or fewer.
    """
    length = size_of(journal)
    if length != size:
        raise PrivacyError(
            f"The privacy journal {journal} was changed by somebody else ({length} bytes, "
            f"{size} expected). Nothing was released; let one run at a time use a "
            "folder, then resume."
        )


def append_synced(journal: Path, text: bytes, *, size: int, first: bool) -> None:
    """Adds text to a journal; it is on the disk when this returns.

    Args:
        journal: The file.
        text: What is added.
        size: How many bytes its reader left in it.
        first: Whether the file may be new, so that its name has to be kept, too.

    Raises:
        OSError: If it cannot be written.
        PrivacyError: If somebody else changed it.
    """
    # Before the folder is made: a journal that vanished with its folder is not begun again.
    check_alone(journal, size)
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("ab") as file:
        if fcntl is not None:  # given back when the file is closed
            fcntl.flock(file, fcntl.LOCK_EX)
        check_alone(journal, size)  # again, now that nobody else can write
        file.write(text)
        # flush hands the bytes to the system, fsync to the disk: only then may a release follow.
        file.flush()
        os.fsync(file.fileno())
    if first:
        _sync_folder(journal.parent)


def text_of(journal: Path) -> str:
    """What a journal holds.

    Raises:
        PrivacyError: If it cannot be read.
    """
    try:
        # Bytes that are no text are a line that a crash cut off; such a line reserved nothing.
        return journal.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise PrivacyError(
            f"Cannot read the privacy journal {journal}: {error}. What it spent is unknown, so "
            "nothing may be released; make it readable or choose another folder."
        ) from error


def size_of(journal: Path) -> int:
    """How many bytes a journal has; 0 where there is none."""
    try:
        return journal.stat().st_size
    except OSError:
        return 0


def lines_of(text: str) -> list[dict[str, int | str]]:
    """A journal's lines; a line that was cut off by a crash reserved nothing."""
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def _sync_folder(folder: Path) -> None:
    """Makes the name of a new file survive a power cut, where the system lets folders be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
