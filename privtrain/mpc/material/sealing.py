"""Sealed blocks of material: only their receiver reads them, and each fits one use only.

A block is a header in the clear (session, number, step, operation, size) and what AES-256-GCM makes
of the content under a key that dealer and receiver agreed on. Header, study and receiver are its
associated data: a block that was changed, or made for another study or party, does not open.
"""

import os
import struct
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privtrain.core.errors import ProtocolError, TamperedShareError
from privtrain.core.locks import Lock

_MAGIC = b"privtrain seal 1"
_HEAD = struct.Struct(">16s16sQQHQ")
"""Magic, session, number of the block, step, length of the operation's name, size."""

KEY_BYTES = 32
SESSION_BYTES = 16
_TAG_BYTES = 16
_NONCE_BYTES = 12
LARGEST = 2**31 - 2**16
"""The most bytes of a block, which the cipher takes at once."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """What the header of a block says; nothing of it is sure before the block is opened.

    Args:
        session: Which of the dealer's sessions sealed it, 16 random bytes.
        number: Its place in that session, from 0.
        step: The step of the study that it is for, from 0.
        operation: What it is for in that step.
        size: Bytes of its content.
    """

    session: bytes = field(repr=False)
    number: int
    step: int
    operation: str
    size: int

    @property
    def use(self) -> str:
        """What it is for, in words."""
        return f"{self.size} bytes for step {self.step}, {self.operation!r}"


def _packed(label: Label) -> bytes:
    name = label.operation.encode()
    numbers = (label.session, label.number, label.step, len(name), label.size)
    return _HEAD.pack(_MAGIC, *numbers) + name


def label_of(block: bytes | memoryview) -> Label:
    """The header of a sealed block.

    Raises:
        TamperedShareError: If these bytes are no block, or not all of one.
    """
    whole = len(block) >= _HEAD.size
    magic, session, number, step, length, size = (
        _HEAD.unpack_from(block) if whole else (b"", b"", 0, 0, 0, 0)
    )
    if magic != _MAGIC or len(block) != _HEAD.size + length + size + _TAG_BYTES:
        raise TamperedShareError(
            f"Expected a whole sealed block of material; got {len(block)} bytes that are none. "
            "They were cut or changed on their way or in their store: deal again."
        )
    operation = bytes(block[_HEAD.size : _HEAD.size + length]).decode(errors="replace")
    return Label(session=session, number=number, step=step, operation=operation, size=size)


def _cipher(key: bytes, session: bytes, study: str, receiver: str) -> AESGCM:
    """The cipher of one session, which no other session has, whatever key was agreed on."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"Expected len(key)={len(key)} to be {KEY_BYTES}.")
    # A counter as nonce never repeats under this key: a second session, also of a dealer that was
    # started again with the same agreed key, draws another salt (RFC 5869) and has another key.
    derive = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=session, info=_MAGIC)
    return AESGCM(derive.derive(key + _bound(study, receiver)))


def _bound(*texts: str) -> bytes:
    """Texts so that no two lists of them give the same bytes."""
    encoded = (text.encode() for text in texts)
    return b"".join(struct.pack(">Q", len(text)) + text for text in encoded)


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")


class Sealer:
    """The dealer's side of one session: seals blocks for one receiver, in their order.

    Args:
        key: The agreed key, 32 bytes, as `KeyAgreement.key` gives it.
        study: Digest of the study that the material is made for.
        receiver: The party that will open it.
        session: The dealer's session, 16 bytes, where it deals to several parties, each under a
            key of its own; drawn where it is left out. Never twice with one key.

    Raises:
        ValueError: If the key or the session has another length.

    Source: NIST SP 800-38D, section 8.2.1 (deterministic nonces); RFC 5869.
    """

    def __init__(
        self, key: bytes, *, study: str, receiver: str, session: bytes | None = None
    ) -> None:
        self.session = os.urandom(SESSION_BYTES) if session is None else session
        if len(self.session) != SESSION_BYTES:
            raise ValueError(f"Expected len(session)={len(self.session)} to be {SESSION_BYTES}.")
        self._cipher = _cipher(key, self.session, study, receiver)
        self._bound = _bound(study, receiver)
        self._number = 0
        self._process = os.getpid()
        self._lock = Lock()

    def seal(self, content: bytes, *, step: int, operation: str) -> bytes:
        """The next block.

        Args:
            content: Material, at most `LARGEST` bytes.
            step: The step that it is for, from 0.
            operation: What it is for in that step; fewer than 65536 bytes.

        Raises:
            RuntimeError: In a copy of this process, which would repeat its nonces.
            ValueError: If something has no place in a block.
        """
        if not 0 <= len(content) <= LARGEST:
            raise ValueError(
                f"Expected len(content)={len(content)} <= {LARGEST}: seal it in several blocks."
            )
        if not 0 <= step < 2**64 or len(operation.encode()) >= 2**16:
            raise ValueError(
                f"Expected 0 <= step={step} < 2^64 and operation={operation[:40]!r} to have fewer "
                "than 65536 bytes."
            )
        if os.getpid() != self._process:
            raise RuntimeError("A sealer was copied by a fork: make one in each process.")
        with self._lock:
            number, self._number = self._number, self._number + 1
        label = Label(
            session=self.session, number=number, step=step, operation=operation, size=len(content)
        )
        head = _packed(label)
        return head + self._cipher.encrypt(_nonce(number), content, head + self._bound)

    def __reduce__(self) -> NoReturn:
        # Two of them would seal different blocks under one nonce, which gives away their keystream.
        raise TypeError("A sealer is neither copied nor pickled: its copy would repeat its nonces.")


class Opener:
    """The receiver's side of one session: opens blocks in the order in which they were sealed.

    The first block tells which session it is; none of another one is opened then.

    Args:
        key: The agreed key, 32 bytes.
        study: Digest of the own study.
        receiver: This party.
        session: The session, where it is known already.

    Raises:
        ValueError: If the key has another length.
    """

    def __init__(
        self, key: bytes, *, study: str, receiver: str, session: bytes | None = None
    ) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"Expected len(key)={len(key)} to be {KEY_BYTES}.")
        self._key, self._study, self._receiver = key, study, receiver
        self._session = session
        self._cipher: AESGCM | None = None
        self._next = 0

    @property
    def next(self) -> int:
        """The number of the block that may be opened next; the ones before it no more."""
        return self._next

    def skip(self, number: int) -> None:
        """Leaves out the blocks before a number, for good.

        Raises:
            ValueError: If that would bring back a block.
        """
        if number < self._next:
            raise ValueError(f"Expected number={number} >= {self._next}: no block is used twice.")
        self._next = number

    def open(self, block: bytes, *, step: int, operation: str, size: int) -> bytes:
        """The content of the next block.

        Args:
            block: As it was sealed.
            step: The step that asks for it.
            operation: What asks for it.
            size: Bytes of content that are expected.

        Raises:
            TamperedShareError: If it was changed, or made for another study, receiver or key.
            ProtocolError: If it is genuine and not the next one, or for another use.
        """
        label = label_of(block)
        content = self._opened(block, label)
        wanted = Label(
            session=label.session, number=self._next, step=step, operation=operation, size=size
        )
        check_use(label, wanted, self._receiver)
        # Only a genuine block settles which session this is, and uses a number up.
        self._session = label.session
        self._next += 1
        return content

    def _opened(self, block: bytes, label: Label) -> bytes:
        if self._session is not None and label.session != self._session:
            raise TamperedShareError(
                f"Expected a block of session {self._session.hex()[:8]} for {self._receiver}; got "
                f"one of {label.session.hex()[:8]}: it was sent again, or sealed for somebody else."
            )
        cipher = self._cipher
        if cipher is None:
            cipher = _cipher(self._key, label.session, self._study, self._receiver)
        # From the bytes as they came, so that the name of an operation is read one way only.
        end = len(block) - label.size - _TAG_BYTES
        head, sealed = block[:end], memoryview(block)[end:]
        try:
            bound = head + _bound(self._study, self._receiver)
            content = cipher.decrypt(_nonce(label.number), sealed, bound)
        except InvalidTag:
            raise TamperedShareError(
                f"Block {label.number} of the material ({label.use}) does not open as one for "
                f"{self._receiver} in study {self._study[:12]}: it was changed, or made for "
                "another study, party or key. None of it was used; deal again."
            ) from None
        self._cipher = cipher
        return content


def check_use(label: Label, wanted: Label, receiver: str) -> None:
    """Refuses a block that is for another use, before anything is spent.

    Raises:
        ProtocolError: With what is there and what was expected.
    """
    if label.number != wanted.number:
        raise ProtocolError(
            f"Expected block {wanted.number} of the material of {receiver}; got block "
            f"{label.number}: blocks were left out, swapped or sent again."
        )
    if (label.step, label.operation, label.size) != (wanted.step, wanted.operation, wanted.size):
        raise ProtocolError(
            f"Expected block {label.number} of the material of {receiver} to be {wanted.use}; it "
            f"is {label.use}: dealer and party do not run the same program."
        )
