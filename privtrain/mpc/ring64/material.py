"""How the dealer's corrections reach the party that needs them: sealed, in few large messages."""

import struct
from collections import deque
from dataclasses import dataclass, field

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from privtrain.core.errors import PartyLostError, TamperedShareError
from privtrain.core.links import Link

KIND = "material"
TAKEN = "material taken"

FIRST_CHUNK = 2**14
"""Bytes after which the dealer sends its first message; each one after it may be twice as large."""

LARGEST_CHUNK = 2**22
IN_FLIGHT = 2**26
"""Bytes that are sent and not yet taken, at which the dealer waits."""

_ALIGNED = 8
_NUMBER = struct.Struct(">Q")


_TAG = 16
"""Bytes behind a sealed message."""


def _nonce(number: int) -> bytes:
    # A key seals the messages of one session in one direction, so their numbers never repeat.
    return bytes(4) + _NUMBER.pack(number)


def _sealed(key: bytes, number: int, data: bytes) -> bytearray:
    """A message as AES-256-GCM seals it, its tag behind it (NIST SP 800-38D)."""
    cipher = Cipher(algorithms.AES256(key), modes.GCM(_nonce(number))).encryptor()
    cipher.authenticate_additional_data(KIND.encode())
    # Written where it is sent from; `AESGCM` makes a copy of its own, which is made once more.
    sealed = bytearray(len(data) + _TAG)
    cipher.update_into(data, sealed)
    cipher.finalize()
    sealed[len(data) :] = cipher.tag
    return sealed


def _unsealed(key: bytes, number: int, sealed: memoryview) -> bytearray:
    """What was sealed.

    Raises:
        InvalidTag: If it was changed, or has another number.
    """
    size = len(sealed) - _TAG
    if size < 0:
        raise InvalidTag
    tag = bytes(sealed[size:])
    cipher = Cipher(algorithms.AES256(key), modes.GCM(_nonce(number), tag)).decryptor()
    cipher.authenticate_additional_data(KIND.encode())
    data = bytearray(size + _TAG)
    cipher.update_into(sealed[:size], data)
    cipher.finalize()
    # Not before here: nothing is used that was not proven to be whole.
    del data[size:]
    return data


def _aligned(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


@dataclass
class MaterialSender:
    """The dealer's end.

    Args:
        link: The dealer's link.
        to: The party that gets corrections.
        key: 32 bytes, known to these two.
    """

    link: Link
    to: str
    key: bytes = field(repr=False)
    _parts: list[memoryview | bytes] = field(default_factory=list, init=False, repr=False)
    _size: int = field(default=0, init=False)
    _chunk: int = field(default=FIRST_CHUNK, init=False)
    _number: int = field(default=0, init=False)
    _sizes: deque[int] = field(default_factory=deque, init=False, repr=False)

    def put(self, correction: Tensor) -> None:
        """Adds a correction, int64 or uint8, which leaves with the next message.

        It is read when that is sent, so it must not be written to.
        """
        data = correction.contiguous().view(-1).view(torch.uint8).numpy().data
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
        sealed = _sealed(self.key, self._number, b"".join(self._parts))
        self.link.send(self.to, KIND, torch.frombuffer(sealed, dtype=torch.uint8))
        self._sizes.append(self._size)
        self._parts, self._size, self._number = [], 0, self._number + 1
        self._chunk = min(2 * self._chunk, LARGEST_CHUNK)

    def drain(self) -> None:
        """Sends what is left, and waits until all of it is taken.

        Before a message of another kind from that party, which comes after these in its program.
        """
        self.flush()
        while self._sizes:
            self._wait()

    def _wait(self) -> None:
        self.link.receive(self.to, TAKEN)
        self._sizes.popleft()


@dataclass
class MaterialReader:
    """The end of the party that gets corrections.

    Args:
        link: Its link.
        dealer: Who deals.
        key: 32 bytes, known to these two.
    """

    link: Link
    dealer: str
    key: bytes = field(repr=False)
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
            self._next()
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

    @property
    def left(self) -> int:
        """Bytes that arrived and that nobody took."""
        return len(self._data) - self._start

    def _next(self) -> None:
        sealed = self.link.receive(self.dealer, KIND)
        try:
            data = _unsealed(self.key, self._number, sealed.numpy().data)
        except InvalidTag:
            raise TamperedShareError(
                f"The {KIND!r} message {self._number} of {self.dealer} was changed on its way, or "
                "is not the next one. Find out who sits between them, and run again."
            ) from None
        self._data, self._start, self._number = data, 0, self._number + 1
        try:
            self.link.send(self.dealer, TAKEN, torch.tensor(self._number))
        except PartyLostError:
            # It may have dealt everything and left; where it has not, the next message is missed.
            return
