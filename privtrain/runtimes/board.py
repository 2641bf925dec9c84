"""A small board of keys and values on which the parties of a mesh meet, beat and report failures.

Each writes what belongs to its own rank: nobody speaks in another's name. `rendezvous` carries a
board to other processes.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from privtrain.core.errors import ProtocolError

MOST_KEY = 64
"""Bytes of the longest key."""
MOST_VALUE = 4096
"""Bytes of the longest value."""

_LOOK = 0.01
"""Seconds between two looks at a key that is waited for."""


class Board(Protocol):
    """Keys and values that all parties of a mesh see; each operation is short.

    Every one raises `OSError` where the host is gone, and `ProtocolError` where it refuses.
    """

    @property
    def own_address(self) -> str:
        """The own address at which the others reach this party."""
        ...

    def set(self, key: str, value: str) -> None:
        """Writes a value, over what was there."""
        ...

    def get(self, key: str) -> str | None:
        """The value, or None where there is none."""
        ...

    def claim(self, key: str, value: str) -> str:
        """Writes a value where there is none; returns the one that is there then."""
        ...


def wait_for(board: Board, key: str, seconds: float) -> str:
    """The value of a key, which is waited for.

    Raises:
        TimeoutError: If nobody has written it within so many seconds.
        OSError: If the host is gone.
    """
    # Asked for again and again: a question that waits at the host would hold up all others.
    end = time.monotonic() + seconds
    while (value := board.get(key)) is None:
        if time.monotonic() > end:
            raise TimeoutError("it did not say where it is")
        time.sleep(_LOOK)
    return value


@dataclass
class Entries:
    """What stands on a board, and who may write what.

    A role sets `here`, `beat`, `done`, `failure` and `link` of its rank, `heard/RANK/OTHER`, and of
    rank 0 `store`; it claims `claim/RANK`. What is said to all, `parties` and `refused`, whoever
    belongs to the study may claim, and begins with its name. There can be no other keys.

    Args:
        names: All parties of the mesh, by rank.
    """

    names: tuple[str, ...]
    _values: dict[str, str] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def put(self, role: str, key: str, value: str) -> None:
        """Writes what a role says.

        Raises:
            ProtocolError: If it may not, or the value is none for a board.
        """
        check_text(key, value)
        if key not in self._own(role):
            raise ProtocolError(f"{role} may not write {key!r}.")
        with self._lock:
            self._values[key] = value

    def claim(self, role: str, key: str, value: str) -> str:
        """Writes what a role says where nobody did; returns what stands there then.

        Raises:
            ProtocolError: If it may not, or the value is none for a board.
        """
        check_text(key, value)
        said_to_all = key in ("parties", "refused") and value.startswith(f"{role} ")
        mine = role in self.names and key == f"claim/{self.names.index(role)}"
        if not said_to_all and not mine:
            raise ProtocolError(f"{role} may not claim {key!r} with {value!r}.")
        with self._lock:
            return self._values.setdefault(key, value)

    def get(self, key: str) -> str | None:
        """What stands there, if anything."""
        with self._lock:
            return self._values.get(key)

    def _own(self, role: str) -> set[str]:
        if role not in self.names:
            return set()
        rank = self.names.index(role)
        keys = {f"{kind}/{rank}" for kind in ("here", "beat", "done", "failure", "link")}
        keys |= {f"heard/{rank}/{other}" for other in range(len(self.names))}
        return keys | ({"store"} if rank == 0 else set())


def check_text(key: str, value: str) -> None:
    """Refuses what is none for a board.

    Raises:
        ProtocolError: If it is too long, or the value holds what cannot be printed.
    """
    if len(key.encode()) > MOST_KEY or len(value.encode()) > MOST_VALUE or not value.isprintable():
        raise ProtocolError(
            f"Expected a key of {MOST_KEY} bytes and a printable value of {MOST_VALUE} bytes at "
            f"most; got {len(key.encode())} and {len(value.encode())} bytes."
        )


@dataclass(frozen=True)
class LocalBoard:
    """A party's board in the process that holds it.

    Args:
        entries: What stands there.
        name: Name of the party.
        own_address: At which the others reach this party.
    """

    entries: Entries
    name: str
    own_address: str

    def set(self, key: str, value: str) -> None:
        self.entries.put(self.name, key, value)

    def get(self, key: str) -> str | None:
        return self.entries.get(key)

    def claim(self, key: str, value: str) -> str:
        return self.entries.claim(self.name, key, value)
