"""Framed messages over a pipe between the process that starts parties and its children.

A frame is one byte for its kind, eight for its length, and a body. A pipe is a stream of bytes that
may arrive in any pieces: only the length in the header says where a message ends, and whether its
sender died in the middle of it. Both ends are processes of one user on one machine; nothing here
crosses a network.
"""

import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import BinaryIO

_HEAD = struct.Struct(">BQ")
_BEAT = struct.Struct(">qq")


class Kind(IntEnum):
    """What a frame carries."""

    PATHS = 1
    JOB = 2
    BEAT = 3
    RESULT = 4
    FAILURE = 5


@dataclass
class FrameWriter:
    """Writes frames; several threads may share it.

    Args:
        stream: The pipe's end.
    """

    stream: BinaryIO
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def write(self, kind: Kind, body: bytes = b"") -> None:
        """Writes one frame whole.

        Raises:
            OSError: If nobody reads any more.
        """
        # Heartbeats come from a thread of their own and must not fall into the middle of a result.
        with self._lock:
            self.stream.write(_HEAD.pack(kind, len(body)))
            self.stream.write(body)
            self.stream.flush()


def read_frame(stream: BinaryIO) -> tuple[Kind, bytes] | None:
    """The next frame, or None where the other end closed."""
    # A cut frame counts as the end: whoever wrote it died, and half a result is none.
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    kind, length = _HEAD.unpack(head)
    body = stream.read(length)
    return None if len(body) < length else (Kind(kind), body)


def frames(stream: BinaryIO) -> Iterator[tuple[Kind, bytes]]:
    """All frames until the other end closes."""
    while (frame := read_frame(stream)) is not None:
        yield frame


def pack_beat(done: int, total: int) -> bytes:
    """The body of a heartbeat: progress so far."""
    return _BEAT.pack(done, total)


def unpack_beat(body: bytes) -> tuple[int, int]:
    """Progress `(done, total)` of a heartbeat."""
    done, total = _BEAT.unpack(body)
    return done, total
