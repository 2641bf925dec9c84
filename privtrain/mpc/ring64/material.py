"""How the dealer's corrections reach the party that needs them: sealed, in few large messages."""

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from privtrain.core.errors import PartyLostError, ProtocolError, TamperedShareError
from privtrain.core.links import Link

KIND = "material"
TAKEN = "material taken"

FIRST_CHUNK = 2**14
"""Bytes after which the dealer sends its first message; each one after it may be twice as large."""

LARGEST_CHUNK = 2**22
END = "end"
"""What an empty message is for that says that no more comes."""

IN_FLIGHT = 2**26
"""Bytes that are sent and not yet taken, at which the dealer waits."""

_ALIGNED = 8
_NUMBER = struct.Struct(">Q")


_TAG = 16
"""Bytes behind a sealed message."""


def _nonce(number: int) -> bytes:
    # A key seals the messages of one session in one direction, so their numbers never repeat.
    return bytes(4) + _NUMBER.pack(number)


def _sealed(key: bytes, number: int, data: bytes, use: str) -> bytearray:
    """A message as AES-256-GCM seals it for a use, its tag behind it (NIST SP 800-38D)."""
    cipher = Cipher(algorithms.AES256(key), modes.GCM(_nonce(number))).encryptor()
    cipher.authenticate_additional_data(f"{KIND} {use}".rstrip().encode())
    # Written where it is sent from; `AESGCM` makes a copy of its own, which is made once more.
    sealed = bytearray(len(data) + _TAG)
    cipher.update_into(data, sealed)
    cipher.finalize()
    sealed[len(data) :] = cipher.tag
    return sealed


def _unsealed(key: bytes, number: int, sealed: memoryview, use: str) -> bytearray:
    """What was sealed.

    Raises:
        InvalidTag: If it was changed, or has another number.
    """
    size = len(sealed) - _TAG
    if size < 0:
        raise InvalidTag
    tag = bytes(sealed[size:])
    cipher = Cipher(algorithms.AES256(key), modes.GCM(_nonce(number), tag)).decryptor()
    cipher.authenticate_additional_data(f"{KIND} {use}".rstrip().encode())
    data = bytearray(size + _TAG)
    cipher.update_into(sealed[:size], data)
    cipher.finalize()
    # Not before here: nothing is used that was not proven to be whole.
    del data[size:]
    return data


def _use(step: int, operation: str, bound: bool) -> str:
    return f"{step} {operation}" if bound else ""


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def operation_of(count: int, dtype: torch.dtype, heard: bytes) -> str:
    """What a correction is called where it begins a message, after what was announced."""
    return f"{count} values of {str(dtype).removeprefix('torch.')} {heard[:8].hex()}".rstrip()


class Seals(Protocol):
    """Seals one message after the other, each for the place where it is asked for."""

    def seal(self, content: bytes, *, step: int, operation: str) -> bytes | bytearray:
        """The next message.

        Args:
            content: Corrections.
            step: How many openings come before the first of them.
            operation: What the first of them is, see `operation_of`.
        """
        ...


class Source(Protocol):
    """Where the party that gets corrections has them from."""

    def next(self, step: int, operation: str) -> bytearray:
        """The content of the next message.

        Args:
            step: How many openings came before.
            operation: The correction that is asked for, see `operation_of`.

        Raises:
            TamperedShareError: If it was changed.
            PartyLostError: If the dealer is gone or silent.
        """
        ...


@dataclass
class StreamSealer:
    """Seals messages that are opened as soon as they arrive: their number is their place.

    Args:
        key: 32 bytes of one session, known to the dealer and the party.
        bound: Whether a message is sealed for its use, too: for the step, for what is asked for
            first, and for what was announced by then.
    """

    key: bytes = field(repr=False)
    bound: bool = False
    _number: int = field(default=0, init=False)

    def seal(self, content: bytes, *, step: int, operation: str) -> bytearray:
        sealed = _sealed(self.key, self._number, content, _use(step, operation, self.bound))
        self._number += 1
        return sealed


@dataclass
class MaterialSender:
    """The dealer's end.

    Args:
        link: The dealer's link.
        to: The party that gets corrections.
        sealer: Seals each message.
        deposits: Whether the party keeps material for later, and may have no room for a while.
        meanwhile: Called whenever a message leaves or is taken.
        step: How many openings there were.
        heard: Digest of what was announced.
    """

    link: Link
    to: str
    sealer: Seals = field(repr=False)
    deposits: bool = False
    meanwhile: Callable[[], None] = field(default=lambda: None, repr=False)
    step: int = field(default=0, init=False)
    heard: bytes = field(default=b"", init=False, repr=False)
    _first: tuple[int, str] = field(default=(0, ""), init=False)
    _parts: list[memoryview | bytes] = field(default_factory=list, init=False, repr=False)
    _size: int = field(default=0, init=False)
    _chunk: int = field(default=FIRST_CHUNK, init=False)
    _sizes: deque[int] = field(default_factory=deque, init=False, repr=False)

    def put(self, correction: Tensor) -> None:
        """Adds a correction, int64 or uint8, which leaves with the next message.

        It is read when that is sent, so it must not be written to.
        """
        data = correction.contiguous().view(-1).view(torch.uint8).numpy().data
        if not self._size and len(data):
            operation = operation_of(correction.numel(), correction.dtype, self.heard)
            self._first = self.step, operation
        self._parts += [data, bytes(_aligned(len(data)) - len(data))]
        self._size += _aligned(len(data))
        if self._size >= self._chunk:
            self.flush()

    def flush(self) -> None:
        """Sends what is left; waits while too much is on its way.

        Raises:
            PartyLostError: If the party is gone, or takes nothing within the link's timeout.
        """
        if not self._size:
            return
        while self._sizes and sum(self._sizes) + self._size > IN_FLIGHT:
            self._wait()
        self._send(b"".join(self._parts), *self._first)
        self._parts, self._size = [], 0
        self._chunk = min(2 * self._chunk, LARGEST_CHUNK)

    def drain(self) -> None:
        """Sends what is left, and waits until all of it is taken.

        Before a message of another kind from that party, which comes after these in its program.
        """
        self.flush()
        while self._sizes:
            self._wait()

    def finish(self) -> None:
        """Sends what is left and that no more comes, and waits until all of it is taken."""
        self.flush()
        self._send(b"", self.step, END)
        self.drain()

    def _send(self, content: bytes, step: int, operation: str) -> None:
        sealed = self.sealer.seal(content, step=step, operation=operation)
        self.link.send(self.to, KIND, as_message(sealed))
        self._sizes.append(len(content))
        self.meanwhile()

    def _wait(self) -> None:
        taken = self.link.receive(self.to, TAKEN)
        if taken.dtype != torch.int64 or taken.shape != ():
            said = f"{tuple(taken.shape)} of {taken.dtype}"
            raise ProtocolError(f"{self.to} sent {TAKEN!r} as {said}, and not as one whole number.")
        # Below zero: nothing was taken, and the party still lives.
        if int(taken) >= 0:
            self._sizes.popleft()
        elif not self.deposits:
            raise ProtocolError(
                f"{self.to} sent {TAKEN!r} below zero, and keeps nothing for later."
            )
        self.meanwhile()


def as_message(sealed: bytes | bytearray) -> Tensor:
    """Sealed bytes as they are sent; uint8."""
    writable = sealed if isinstance(sealed, bytearray) else bytearray(sealed)
    return torch.frombuffer(writable, dtype=torch.uint8)


@dataclass
class StreamSource:
    """What a `StreamSealer` sealed, as it arrives.

    Args:
        link: The party's link.
        dealer: Who deals.
        key: 32 bytes of one session, known to these two.
        bound: As at the sealer.
    """

    link: Link
    dealer: str
    key: bytes = field(repr=False)
    bound: bool = False
    _number: int = field(default=0, init=False)

    def next(self, step: int, operation: str) -> bytearray:
        sealed = self.link.receive(self.dealer, KIND)
        try:
            use = _use(step, operation, self.bound)
            data = _unsealed(self.key, self._number, sealed.numpy().data, use)
        except InvalidTag:
            raise TamperedShareError(
                f"The {KIND!r} message {self._number} of {self.dealer} was changed on its way, or "
                "is not the next one, for these shapes and announcements. This party read nothing "
                "of it. Find out who sits between them, and run again."
            ) from None
        self._number += 1
        say_taken(self.link, self.dealer, self._number)
        return data


def say_taken(link: Link, dealer: str, number: int) -> None:
    """Tells the dealer how many messages were taken."""
    try:
        link.send(dealer, TAKEN, torch.tensor(number))
    except PartyLostError:
        # It may have dealt everything and left; where it has not, the next message is missed.
        return


@dataclass
class MaterialReader:
    """The end of the party that gets corrections.

    Args:
        source: Where it has them from.
        dealer: Who dealt.
        step: How many openings there were.
        heard: Digest of what was announced.
    """

    source: Source = field(repr=False)
    dealer: str
    step: int = field(default=0, init=False)
    heard: bytes = field(default=b"", init=False, repr=False)
    _data: bytearray = field(default_factory=bytearray, init=False, repr=False)
    _start: int = field(default=0, init=False)
    _number: int = field(default=0, init=False)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """The next correction.

        Args:
            count: How many elements.
            dtype: int64 or uint8.

        Returns:
            Shape `(count,)`.

        Raises:
            TamperedShareError: If a message was changed, or holds less than is asked for.
            PartyLostError: If the dealer is gone or silent.
        """
        if count == 0:
            return torch.empty(0, dtype=dtype)
        if self._start == len(self._data):
            operation = operation_of(count, dtype, self.heard)
            self._data = self.source.next(self.step, operation)
            self._start, self._number = 0, self._number + 1
        size = count * dtype.itemsize
        if self._start + size > len(self._data):
            raise TamperedShareError(
                f"Expected {size} bytes of material from {self.dealer}, where {KIND!r} message "
                f"{self._number - 1} holds {len(self._data) - self._start} more: it ran another "
                "program than this party."
            )
        taken = torch.frombuffer(self._data, dtype=dtype, count=count, offset=self._start)
        self._start += _aligned(size)
        return taken

    def finish(self) -> None:
        """Makes sure that all was used, and that all was there.

        Raises:
            ProtocolError: If there is more than this party asked for.
        """
        check_used(self.left, self.dealer)
        if self.source.next(self.step, END):
            raise ProtocolError(f"The material of {self.dealer} does not end where it says so.")

    @property
    def left(self) -> int:
        """Bytes that arrived and that nobody took."""
        return len(self._data) - self._start


def check_used(left: int, dealer: str) -> None:
    """Raises `ProtocolError` where material is left over."""
    if left:
        raise ProtocolError(
            f"{left} bytes of material of {dealer} were not used: it ran another program "
            "than the computing parties."
        )
