"""The files of a store: numbered segments, each some sealed blocks in order."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows has no such locks; the journal is compared before each write there
    fcntl = None  # type: ignore[assignment]

from privtrain.core.errors import ProtocolError, TamperedShareError
from privtrain.core.writing import explained
from privtrain.mpc.material.sealing import Label, label_of

JOURNAL = "material.jsonl"
KEY = "material.key"
READER, WRITER = "reader", "writer"
LOCKS = fcntl is not None
"""Whether it can be told who is at a folder; not on Windows."""
OWNER_ONLY = 0o600
LENGTH = struct.Struct(">Q")
"""Bytes of a block, before it."""

_SUFFIX = ".sealed"


class Held(NamedTuple):
    """A block of the segment at hand, and what it says of itself."""

    label: Label
    block: bytes


def place(folder: Path, number: int) -> Path:
    """The file of a segment."""
    return folder / f"{number:012d}{_SUFFIX}"


def numbers(folder: Path) -> list[int]:
    """The segments that lie in a folder, in order."""
    names = (path.stem for path in folder.glob(f"*{_SUFFIX}"))
    return sorted(int(name) for name in names if name.isdecimal())


def size_in(folder: Path) -> int:
    """Bytes of the segments that lie in a folder."""
    total = 0
    for number in numbers(folder):
        try:
            total += place(folder, number).stat().st_size
        except FileNotFoundError:  # its party has just spent it
            continue
    return total


def blocks(path: Path) -> Iterator[Held]:
    """The blocks of a segment, one after the other.

    Raises:
        DataError: If the file cannot be read.
        TamperedShareError: If it was cut or changed.
    """
    with explained(path.parent), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise _cut(path, 0)
        while head := file.read(LENGTH.size):
            # Compared with the file: a length that somebody made up must not ask for memory.
            length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 0
            if not 0 < length <= size - file.tell():
                raise _cut(path, file.tell())
            block = file.read(length)
            yield Held(label_of(block), block)


def _cut(path: Path, place: int) -> TamperedShareError:
    return TamperedShareError(
        f"The material in {path} was cut or changed at byte {place}. None of this file was used; "
        "deal anew into another folder."
    )


@contextmanager
def alone(folder: Path, who: str) -> Iterator[None]:
    """Keeps others of a kind from a folder, in this process and in any.

    Args:
        folder: The folder.
        who: What kind it is, such as "reader".

    Raises:
        DataError: If the folder cannot be written.
        ProtocolError: If one is there already.
    """
    with explained(folder):
        descriptor = os.open(folder / f"{who}.lock", os.O_RDWR | os.O_CREAT, OWNER_ONLY)
    try:
        if fcntl is not None:  # given back when the file is closed, by a crash too
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProtocolError(
                    f"The material in {folder} has a {who} already, in this process or another. "
                    "Let one at a time use a folder; nothing was used."
                ) from None
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path, who: str) -> bool:
    """Whether somebody of a kind is at a folder, as `alone` keeps it; False on Windows."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(folder / f"{who}.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
