"""Material that is made ahead: dealt into a store of each computing party, used without the dealer.

Offline, the dealer and the computing parties run the program on masks and zeros: no share is
opened, and what the dealer seals lies in the folder of its party. Online, the computing parties run
it on shares. What a party draws, its seed and the last one's corrections, is one store of one
session.

A session is spent as a whole: each party notes it in its own journal, on the disk, before it reads
its seed. A mask that covers two values gives away their difference, but it is a sum of what all
parties draw: one party that refuses keeps the others, too, from using a session twice.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from privtrain.core.errors import PartyLostError, ProtocolError, TamperedShareError
from privtrain.core.links import Link
from privtrain.core.runtime import Payload
from privtrain.core.validate import check_count
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.material.sealing import (
    KEY_BYTES,
    SESSION_BYTES,
    Label,
    Sealer,
    check_use,
    label_of,
)
from privtrain.mpc.material.store import Store
from privtrain.mpc.material.writer import BOUND, StoreWriter
from privtrain.mpc.ring64.material import (
    KIND,
    MaterialReader,
    MaterialSender,
    as_message,
    say_taken,
)
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.streamed import DEALER, agree, announce_shapes, announced, pair_streams
from privtrain.mpc.ring64.wires import DealerWires, OfflineWires, PartyWires

DEALT = "dealt"
SESSION = "material session"

_PURPOSE = "privtrain ring64 material made ahead"
_LOOK = 0.05
"""Seconds between two looks whether a full store has room."""


def _seed_for(sent: Payload) -> str:
    """What the first block of each store is for: all that its party draws follows from it."""
    shapes = hashlib.sha256(announced(sent).numpy().tobytes())
    return f"seed for inputs {shapes.hexdigest()[:16]}"


@dataclass(frozen=True)
class _Streams:
    """What follows from seeds and from what was announced by then.

    Args:
        seeds: 32 bytes each.
        study: Digest of the study: what is drawn for another one has nothing in common with it.
    """

    seeds: tuple[bytes, ...] = field(repr=False)
    study: str

    def __call__(self, heard: bytes) -> tuple[Keystream, ...]:
        info = f"{_PURPOSE} {self.study} ".encode()
        keys = (
            HKDF(SHA256(), KEY_BYTES, salt=None, info=info + heard).derive(seed)
            for seed in self.seeds
        )
        return tuple(Keystream(key) for key in keys)


def _silent(line: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, kw_only=True)
class Offline:
    """The dealer deals into folders, and nothing is computed: programs give zeros.

    Where a store is full dealing waits until its party, in another process, has used some: for as
    long as it takes, unless the program announces something later on, for which others wait no
    longer than their link does.

    Args:
        study: Digest of the study, the same at every role.
        folder: Each computing party fills the folder of its name in it, which is new or empty. Not
            needed at the dealer, which keeps nothing.
        bound: Bytes that the last party's store holds at a time.
        tell: Called with a line where dealing waits.
    """

    study: str
    folder: Path | None = None
    bound: int = BOUND
    tell: Callable[[str], None] = field(default=_silent, repr=False)
    deals: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(bound=self.bound)

    @contextmanager
    def open(
        self, link: Link, computing: tuple[str, ...], sent: Payload
    ) -> Iterator[Ring64Session]:
        """Deals for one session.

        Raises:
            DataError: If something lies in the folder, or it cannot be written.
            PrivtrainError: If the disk is full.
            ValueError: If no folder is given, or a correction is larger than the bound.
        """
        if link.names[link.rank] == DEALER:
            with self._dealing(link, computing, sent) as session:
                yield session
            return
        announce_shapes(link, sent)
        with self._receiving(link, computing) as session:
            yield session

    @contextmanager
    def _dealing(
        self, link: Link, computing: tuple[str, ...], sent: Payload
    ) -> Iterator[Ring64Session]:
        agreement, keys = agree(link, computing)
        session, last = os.urandom(SESSION_BYTES), computing[-1]
        seeds = tuple(os.urandom(KEY_BYTES) for _ in computing)
        for name, seed in zip(computing, seeds, strict=True):
            key = agreement.key(keys[name], _PURPOSE)
            sealer = Sealer(key, study=self.study, receiver=name, session=session)
            sealed = sealer.seal(seed, step=0, operation=_seed_for(sent))
            link.send(name, KIND, as_message(sealed))
        waiting = _Waiting(link, computing[:-1])
        material = MaterialSender(link, last, sealer, deposits=True, meanwhile=waiting.tell)
        streams = _Streams(seeds, self.study)
        yield Ring64Session(DealerWires(link, computing, streams(b""), material, streams))
        material.finish()
        waiting.end()

    @contextmanager
    def _receiving(self, link: Link, computing: tuple[str, ...]) -> Iterator[Ring64Session]:
        name = link.names[link.rank]
        agreement, keys = agree(link, (DEALER,))
        key = agreement.key(keys[DEALER], _PURPOSE)
        others = tuple(other for other in computing if other != name)
        with StoreWriter(
            self.place(name), key, study=self.study, receiver=name, bound=self.bound
        ) as writer:
            deposit = _Deposit(link, writer, name, self)
            deposit.take(0, None)
            # The party may begin to use it while the rest is dealt.
            writer.flush()
            if name != computing[-1]:
                yield Ring64Session(OfflineWires(link, others, None, DEALER))
                while not bool(link.receive(DEALER, DEALT)):
                    pass
                return
            link.read_ahead(DEALER)
            material = MaterialReader(deposit, DEALER)
            yield Ring64Session(OfflineWires(link, others, material, DEALER))
            material.finish()

    def place(self, name: str) -> Path:
        """The folder of a party.

        Raises:
            ValueError: If none is given.
        """
        if self.folder is None:
            raise ValueError(f"Expected folder=None to be where {name} keeps its material.")
        return self.folder / name


@dataclass
class _Waiting:
    """Parties that wait until the dealer is done, and are told in time that it still deals."""

    link: Link
    names: tuple[str, ...]
    _told: float = field(default_factory=time.monotonic, init=False)

    def tell(self) -> None:
        if time.monotonic() - self._told > self.link.timeout / 4:
            self._say(False)

    def end(self) -> None:
        self._say(True)

    def _say(self, done: bool) -> None:
        self._told = time.monotonic()
        for name in self.names:
            self.link.send(name, DEALT, torch.tensor(done))


@dataclass
class _Deposit:
    """Puts what is dealt into the store of its party, and gives zeros in its place."""

    link: Link
    writer: StoreWriter
    name: str
    offline: Offline
    _label: Label | None = field(default=None, init=False)

    def next(self, step: int, operation: str) -> bytearray:
        size = self.take(step, operation)
        number = self._label.number if self._label is not None else 0
        if size == 0:
            # Dealing is over for the dealer when this is said.
            self.writer.flush()
        say_taken(self.link, DEALER, number)
        return bytearray(size)

    def take(self, step: int, operation: str | None) -> int:
        """Keeps the next block, of any operation where it is None; the bytes of its content."""
        block = self.link.receive(DEALER, KIND).numpy().tobytes()
        label, before = label_of(block), self._label
        wanted = Label(
            session=label.session,
            number=0 if before is None else before.number + 1,
            step=step,
            operation=label.operation if operation is None else operation,
            size=label.size,
        )
        check_use(label, wanted, self.name)
        if before is not None and label.session != before.session:
            raise TamperedShareError(
                f"Block {label.number} of the material for {self.name} is of another session. Find "
                "out who sits between the dealer and this party, and deal anew."
            )
        self._wait_for_room(block)
        self.writer.add(block)
        self._label = label
        return label.size

    def _wait_for_room(self, block: bytes) -> None:
        if self.writer.has_room(block):
            return
        self.writer.flush()
        folder = self.offline.place(self.name)
        self.offline.tell(
            f"The store {folder} is full: it keeps {self.writer.kept} bytes of at most "
            f"bound={self.offline.bound}. Dealing goes on as soon as the parties use some."
        )
        told = time.monotonic()
        while not self.writer.has_room(block):
            if self.writer.abandoned:
                raise PartyLostError(
                    f"The run beside this one, which used the material in {folder}, has ended: "
                    "what is left of it can never be used. Delete the folder, and deal anew.",
                    self.name,
                )
            time.sleep(_LOOK)
            if time.monotonic() - told > self.link.timeout / 4:
                say_taken(self.link, DEALER, -1)
                told = time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Online:
    """The parties compute with what was dealt into their folders; the dealer is not there.

    Args:
        study: Digest of the study, as it was when the material was dealt.
        folder: As it was given to `Offline`.
    """

    study: str
    folder: Path
    deals: ClassVar[bool] = False

    @contextmanager
    def open(
        self, link: Link, computing: tuple[str, ...], sent: Payload
    ) -> Iterator[Ring64Session]:
        """Spends the material of one session, and opens it.

        Raises:
            DataError: If there is no material in the folder, or of another study or party.
            ProtocolError: If a party has spent its material, or has that of another session; none
                was used then.
            TamperedShareError: If material was changed.
            PrivtrainError: If the disk is full, so that it cannot be spent.
        """
        name = link.names[link.rank]
        others = tuple(other for other in computing if other != name)
        place = self.folder / name
        with Store(place, study=self.study, receiver=name, patience=link.timeout) as store:
            seed_for = self._compare(link, others, store, place, sent)
            seed = store.take(0, seed_for, KEY_BYTES)
            # Only now: a key says that its sender has spent its material, and without the keys of
            # all others nothing is sent that a mask covers. Else one that crashed before it spent
            # would find another's older copy fresh beside its own.
            agreement, keys = agree(link, others)
            pairs = pair_streams(link.rank, computing, agreement, keys)
            streams = _Streams((seed,), self.study)
            material = MaterialReader(_Kept(store), DEALER) if name == computing[-1] else None
            (stream,) = streams(b"")
            yield Ring64Session(PartyWires(link, others, stream, pairs, material, None, streams))
            if material is not None:
                material.finish()

    def _compare(
        self, link: Link, others: tuple[str, ...], store: Store, place: Path, sent: Payload
    ) -> str:
        """Agrees on the session with all parties before any is spent; what the seed is for."""
        label, name = store.next_label, link.names[link.rank]
        seed_for = "" if label is None else label.operation
        # Before it says a word: nobody has spent anything then.
        if label is not None and link.rank == 0 and seed_for != _seed_for(sent):
            raise ProtocolError(
                f"Expected the material in {place} to be {_seed_for(sent)!r}; it is {seed_for!r}: "
                "it was dealt for inputs of other shapes. Nothing was used; deal anew into other "
                "folders."
            )
        session = label.session if label is not None else bytes.fromhex(store.spent.session)
        fresh = store.spent.blocks == 0 and label is not None
        said = _Said(
            hashlib.sha256(self.study.encode()).digest(), session or bytes(SESSION_BYTES), fresh
        )
        for other in others:
            link.send(other, SESSION, as_message(said.message))
        heard = {each: _Said.read(link.receive(each, SESSION), each) for each in others}
        _check_agreed(name, said, heard, place)
        return seed_for


@dataclass(frozen=True)
class _Said:
    """What a party says of its material before any is used.

    Args:
        digest: Of its study, 32 bytes.
        session: The dealer's session.
        fresh: Whether nothing of it is spent.
    """

    digest: bytes = field(repr=False)
    session: bytes = field(repr=False)
    fresh: bool

    @property
    def message(self) -> bytes:
        return self.digest + self.session + bytes([self.fresh])

    @staticmethod
    def read(message: Tensor, sender: str) -> "_Said":
        size = hashlib.sha256().digest_size
        if message.dtype is not torch.uint8 or message.shape != (size + SESSION_BYTES + 1,):
            raise ProtocolError(f"{sender} said something else of its material than this party.")
        data = message.numpy().tobytes()
        return _Said(data[:size], data[size:-1], data[-1] == 1)


@dataclass
class _Kept:
    """What was dealt before, spent as it is read."""

    store: Store

    def next(self, step: int, operation: str) -> bytearray:
        return bytearray(self.store.take(step, operation))


def _check_agreed(name: str, said: _Said, heard: dict[str, _Said], place: Path) -> None:
    """Refuses parties that have not the same session, or have begun it.

    Raises:
        ProtocolError: With the name of the first such party.
    """
    for each, words in {name: said, **heard}.items():
        if words.digest != said.digest:
            raise ProtocolError(
                f"{each} computes another study than {name}, {words.digest.hex()[:8]} and "
                f"not {said.digest.hex()[:8]}: task, trainer, seed or parties differ. Nothing "
                "was used."
            )
        if not words.fresh:
            raise ProtocolError(
                f"The material of {each} is spent or was never dealt: a run with it was begun. "
                "What was masked once must not be masked alike again, so no party may use that "
                f"session, nor an older copy of it. Nothing is used of {place}; deal anew "
                "into other folders."
            )
    for each, words in heard.items():
        if words.session != said.session:
            raise ProtocolError(
                f"The material of {each} is of session {words.session.hex()[:8]}, that in "
                f"{place} of {said.session.hex()[:8]}: they were not dealt together. Nothing "
                "was used; choose the folders of one session, or deal anew into other folders."
            )
