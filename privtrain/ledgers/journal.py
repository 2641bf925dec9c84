"""A journal: lines that are only ever added, and on the disk before anything follows from them."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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


class Line(NamedTuple):
    """An entry of a journal, and the number of its line in the file, from 1."""

    number: int
    values: dict[str, Any]


@dataclass
class JournalFile:
    """The end of a journal, as its only writer left it.

    Args:
        path: The file.
        size: How many bytes its writer left in it.
        begun: Whether its first line stands.
    """

    path: Path
    size: int = 0
    begun: bool = False

    def is_start(self, text: str, first: Mapping[str, Any]) -> bool:
        """Whether a text is the first line, or what a crash left of it; takes note which."""
        head = _written(first).decode()
        # All of it: the next write must not begin the journal a second time.
        self.begun = text == head
        return head.startswith(text)

    def append(self, first: Mapping[str, Any], line: Mapping[str, Any]) -> None:
        """Adds a line, after the first one where the journal was not begun; both are synced.

        Raises:
            OSError: If it cannot be written.
            PrivacyError: If somebody else changed it.
        """
        # The line break comes first: a line that a crash cut off must not swallow the next.
        head = b"" if self.begun else _written(first)
        text = head + _written(line)
        append_synced(self.path, text, size=self.size, first=not self.begun)
        self.begun = True
        self.size += len(text)


def _written(line: Mapping[str, Any]) -> bytes:
    return ("\n" + json.dumps(line)).encode()


def append_synced(journal: Path, text: bytes, *, size: int, first: bool) -> None:
    """Adds text to a journal; it is on the disk when this returns, and gone when this raises.

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
    # No buffer: what could not be written must not follow when the file is closed.
    with journal.open("ab", buffering=0) as file:
        if fcntl is not None:  # given back when the file is closed
            fcntl.flock(file, fcntl.LOCK_EX)
        check_alone(journal, size)  # again, now that nobody else can write
        try:
            rest = text
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())  # only then may a release follow
        except OSError:
            # Nothing follows from it. Where it stays, the file is too long to be written again, so
            # that what somebody else adds is never taken for it.
            with suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise
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


def lines_of(journal: Path, text: str, beginnings: tuple[str, ...]) -> list[Line]:
    """A journal's entries.

    Args:
        journal: The file, for messages.
        text: What it holds.
        beginnings: How its entries begin. A line that a crash cut off reserved nothing; it
            begins like an entry, or holds no text at all.

    Raises:
        PrivacyError: If a line is neither an entry nor what a crash leaves.
    """
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        # What a file system leaves of bytes that it had no time to write.
        held = line.strip(" \t\r\0\ufffd")
        if not held:
            continue
        try:
            # Without what follows: zeros of the next line must not hide an entry before them.
            values = json.loads(held, object_pairs_hook=_once)
        except json.JSONDecodeError:
            if not any(held.startswith(b) or b.startswith(held) for b in beginnings):
                raise unreadable(journal, number, "it is no entry of this journal") from None
            continue
        except (ValueError, RecursionError) as error:
            raise unreadable(journal, number, str(error)) from None
        if not isinstance(values, dict):
            raise unreadable(journal, number, "it is no entry of this journal")
        lines.append(Line(number, values))
    return lines


def unreadable(journal: Path, number: int, why: str) -> PrivacyError:
    """The error of a journal that somebody edited: what was spent is unknown then."""
    return PrivacyError(
        f"Line {number} of the privacy journal {journal} was not written by a ledger: {why}. What "
        "was spent is unknown, so nothing may be released. Bring back the file as it was, or "
        "choose another place; what was spent on these rows stays spent."
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands there twice")
    return made


def _sync_folder(folder: Path) -> None:
    """Makes the name of a new file survive a power cut, where the system lets folders be synced."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
