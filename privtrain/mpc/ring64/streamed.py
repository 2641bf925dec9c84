"""How a session of the ring engine begins and ends while the dealer deals beside the parties."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.core.links import Link
from privtrain.core.runtime import Payload
from privtrain.mpc.keystream import KeyAgreement, Keystream
from privtrain.mpc.ring64.material import KIND as MATERIAL
from privtrain.mpc.ring64.material import (
    TAKEN,
    MaterialReader,
    MaterialSender,
    StreamSealer,
    StreamSource,
    check_used,
)
from privtrain.mpc.ring64.session import Ring64Session
from privtrain.mpc.ring64.wires import DealerWires, PartyWires

DEALER = "dealer"
SHAPES = "shapes"
PUBLIC_KEY = "public key"


class Material(Protocol):
    """When and from where the parties of a session have what is dealt."""

    @property
    def deals(self) -> bool:
        """Whether the dealer is in the mesh."""
        ...

    def open(
        self, link: Link, computing: tuple[str, ...], sent: Payload
    ) -> AbstractContextManager[Ring64Session]:
        """Opens a session at the link's role.

        Args:
            link: The link of a computing party, or of the dealer.
            computing: The computing parties, by rank.
            sent: What the role brings to its program.
        """
        ...


@dataclass(frozen=True)
class Streamed:
    """The dealer deals while the parties compute, a little ahead of them."""

    deals: ClassVar[bool] = True

    @contextmanager
    def open(
        self, link: Link, computing: tuple[str, ...], sent: Payload
    ) -> Iterator[Ring64Session]:
        again = opened_before(link)
        if link.names[link.rank] == DEALER:
            if again:
                skip(link, computing[-1])
            with _dealing(link, computing) as session:
                yield session
            return
        announce_shapes(link, sent)
        if link.rank == len(computing) - 1 and again:
            skip(link, DEALER)
        with _computing(link, computing) as session:
            yield session


def check_streamed(engine: object) -> None:
    """Refuses an engine whose dealing and computing are two runs, where there is one.

    Args:
        engine: Any engine.

    Raises:
        UnsupportedError: If its material is made ahead.
    """
    material = getattr(engine, "material", Streamed())
    if not isinstance(material, Streamed):
        raise UnsupportedError(
            f"{type(material).__name__} material is for one phase of two: nothing is computed while"
            " it is dealt. Use engine=pt.Ring64() here, or privtrain party --material, twice."
        )


def opened_before(link: Link) -> bool:
    """Whether the program of this link opened a session before."""
    return any(entry.kind == PUBLIC_KEY for entry in link.entries)


def announce_shapes(link: Link, sent: Payload) -> None:
    """Tells the dealer, once a program, the shapes of what the first party brings."""
    if link.rank == 0 and not opened_before(link):
        link.send(DEALER, SHAPES, announced(sent))


@contextmanager
def _dealing(link: Link, computing: tuple[str, ...]) -> Iterator[Ring64Session]:
    agreement, keys = agree(link, computing)
    streams = tuple(
        Keystream(agreement.key(keys[name], _seed(rank))) for rank, name in enumerate(computing)
    )
    last = computing[-1]
    material = MaterialSender(link, last, StreamSealer(agreement.key(keys[last], _MATERIAL)))
    yield Ring64Session(DealerWires(link, computing, streams, material))
    material.flush()


@contextmanager
def _computing(link: Link, computing: tuple[str, ...]) -> Iterator[Ring64Session]:
    others = tuple(name for name in computing if name != link.names[link.rank])
    agreement, keys = agree(link, (*others, DEALER))
    pairs = pair_streams(link.rank, computing, agreement, keys)
    material = None
    # All but the last one expand what is dealt from their seeds.
    if link.rank == len(computing) - 1:
        link.read_ahead(DEALER)
        source = StreamSource(link, DEALER, agreement.key(keys[DEALER], _MATERIAL))
        material = MaterialReader(source, DEALER)
    stream = Keystream(agreement.key(keys[DEALER], _seed(link.rank)))
    yield Ring64Session(PartyWires(link, others, stream, pairs, material, DEALER))
    if material is not None:
        check_used(material.left, DEALER)


def skip(link: Link, other: str) -> None:
    """Drops what an earlier session left on its way between the dealer and a party.

    Args:
        link: The link of one of them.
        other: The other one.
    """
    deals = link.names[link.rank] == DEALER
    says, hears = (MATERIAL, TAKEN) if deals else (TAKEN, MATERIAL)
    # Neither waited for the other when it ended, so what is old is known by what comes after it.
    link.send(other, says, torch.empty(0, dtype=torch.uint8))
    while link.receive(other, hears).numel():
        pass


_MATERIAL = "privtrain ring64 material"


def _seed(rank: int) -> str:
    return f"privtrain ring64 seed {rank}"


def pair_streams(
    rank: int, computing: tuple[str, ...], agreement: KeyAgreement, keys: dict[str, bytes]
) -> dict[tuple[int, int], Keystream]:
    """Ranks (owner, receiver) to the stream of the receiver's share, for one party's pairs."""
    streams = {}
    for other, name in enumerate(computing):
        if other != rank:
            for pair in ((other, rank), (rank, other)):
                key = agreement.key(keys[name], f"privtrain ring64 share {pair}")
                streams[pair] = Keystream(key)
    return streams


def agree(link: Link, others: Sequence[str]) -> tuple[KeyAgreement, dict[str, bytes]]:
    """Own half of a key agreement, fresh for one session, and the others' public keys."""
    agreement = KeyAgreement()
    public = torch.frombuffer(bytearray(agreement.public), dtype=torch.uint8)
    keys: dict[str, bytes] = {}

    def hear() -> None:
        keys.update({name: link.receive(name, PUBLIC_KEY).numpy().tobytes() for name in others})

    # The dealer's key comes a round later, so that its material is of no later round than the key:
    # rounds then count messages between the computing parties.
    deals = link.names[link.rank] == DEALER
    if deals:
        hear()
    for name in others:
        link.send(name, PUBLIC_KEY, public)
    if not deals:
        hear()
    return agreement, keys


def announced(payload: Payload) -> Tensor:
    """The names, types and shapes of tensors, without their values; uint8."""
    said = [
        [name, str(value.dtype).removeprefix("torch."), list(value.shape)]
        for name, value in payload.items()
    ]
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
