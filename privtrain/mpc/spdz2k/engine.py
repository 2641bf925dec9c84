"""The authenticated engine: two computing parties, of which one may deviate, and a dealer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from privtrain.core.errors import UnsupportedError
from privtrain.core.links import Link
from privtrain.core.runtime import Party, Program, link_of
from privtrain.core.statement import Adversary, InputPrivacy, Security
from privtrain.mpc.keystream import BoundKeystream
from privtrain.mpc.ring64.engine import Deal
from privtrain.mpc.ring64.material import (
    MaterialReader,
    MaterialSender,
    StreamSealer,
    StreamSource,
    check_used,
)
from privtrain.mpc.ring64.streamed import (
    DEALER,
    agree,
    announce_shapes,
    announced,
)
from privtrain.mpc.ring64.wires import absorbed
from privtrain.mpc.sharing import PRECISION_BITS
from privtrain.mpc.spdz2k.ring import HALF_RANGE
from privtrain.mpc.spdz2k.session import TRUNCATED_BITS, Spdz2kSession
from privtrain.mpc.spdz2k.wires import DealerWires, PartyWires, Wires

PARTIES = 2

SUM_BITS = 22
"""Bits of sums after the point, which leave room for 511 values of up to 2^12."""

FINISHED = "finished"

_SHOWN = "spdz2k proofs shown"


@dataclass(frozen=True)
class SPDZ2k:
    """Additive shares with MACs between two computing parties, with a dealer beside them."""

    @property
    def name(self) -> str:
        return "spdz2k"

    @property
    def caveats(self) -> tuple[str, ...]:
        return CAVEATS

    @property
    def helper_names(self) -> tuple[str, ...]:
        return (DEALER,)

    @property
    def most_parties(self) -> int:
        return PARTIES

    @property
    def exact_truncation(self) -> bool:
        return True

    @property
    def opens_to_some(self) -> bool:
        return True

    @property
    def pictures(self) -> bool:
        return False

    @property
    def sigmoid(self) -> bool:
        return True

    @property
    def keeps_shares(self) -> bool:
        return False

    @property
    def authenticated(self) -> bool:
        return True

    @property
    def adversary(self) -> Adversary:
        return Adversary.MALICIOUS

    @property
    def row_bits(self) -> int:
        return PRECISION_BITS

    @property
    def weight_bits(self) -> int:
        return PRECISION_BITS

    @property
    def gradient_bits(self) -> int:
        return TRUNCATED_BITS

    @property
    def sum_bits(self) -> int:
        return SUM_BITS

    @property
    def range_bits(self) -> int:
        return HALF_RANGE

    def check(self, parties: int) -> None:
        if parties != PARTIES:
            raise UnsupportedError(
                f"spdz2k runs with {PARTIES} computing parties, not with {parties}."
            )

    def helpers(self, programs: Mapping[str, Program]) -> Mapping[str, Program]:
        computing = tuple(programs)
        return {DEALER: Deal(programs[computing[0]], computing)}

    def input_privacy(self, names: Sequence[str]) -> tuple[InputPrivacy, ...]:
        honest = f"one of {', '.join(names)}, and the dealer towards both of them"
        reads = dict.fromkeys(
            names, "shares, masked values, public batch indices and what is opened"
        )
        reads[DEALER] = (
            "shapes, numbers of rows and public settings; it knows every mask, so that with a "
            "computing party, or as a listener between them, it reads every input"
        )
        listener = "a listener on the network between the computing parties"
        reads[listener] = "masked values and what is opened"
        adversary = dict.fromkeys(reads, Adversary.SEMI_HONEST)
        adversary |= dict.fromkeys(names, self.adversary)
        return tuple(
            InputPrivacy(
                reader=reader,
                reads=what,
                adversary=adversary[reader],
                security=Security.COMPUTATIONAL,
                dealer=DEALER,
                honest=honest,
            )
            for reader, what in reads.items()
        )

    @contextmanager
    def open(self, party: Party) -> Iterator[Spdz2kSession]:
        """Agrees on keys with the dealer, over the party's link.

        Args:
            party: A computing party, or the dealer, which deals what the session needs. What both
                computing parties bring (`Party.sent`) has the same names, types and shapes.

        Yields:
            The open session.

        Raises:
            UnsupportedError: If there is no dealer in the mesh.
            PartyLostError: If a party is gone or silent.
            TamperedShareError: If a message or material was changed.
        """
        link = link_of(party)
        if DEALER not in link.names:
            raise UnsupportedError(f"spdz2k needs a {DEALER!r}; the mesh has {link.names}.")
        computing = tuple(name for name in link.names if name != DEALER)
        self.check(len(computing))
        opens = _dealing if link.names[link.rank] == DEALER else _computing
        if opens is _computing:
            announce_shapes(link, party.sent)
        # Who tells the dealer of other shapes has it deal for another program.
        heard = absorbed(b"", [announced(party.sent)])
        with opens(link, computing, heard) as wires:
            # A program may open several sessions, and a proof serves one.
            yield Spdz2kSession(wires, shown=party.cache.setdefault(_SHOWN, set()))


@contextmanager
def _dealing(link: Link, computing: tuple[str, ...], heard: bytes) -> Iterator[Wires]:
    agreement, keys = agree(link, computing)
    streams = [BoundKeystream(agreement.key(keys[name], _seed(name))) for name in computing]
    materials = [
        MaterialSender(
            link, name, StreamSealer(agreement.key(keys[name], _material(name)), bound=True)
        )
        for name in computing
    ]
    pairs = (streams[0], streams[1]), (materials[0], materials[1])
    wires = DealerWires(link, computing, *pairs, heard=heard)
    yield wires
    wires.drain()
    # It hears of no check: else it would be gone when the last one fails, and not be told.
    for name in computing:
        link.receive(name, FINISHED)


@contextmanager
def _computing(link: Link, computing: tuple[str, ...], heard: bytes) -> Iterator[Wires]:
    own, other = computing[link.rank], computing[1 - link.rank]
    agreement, keys = agree(link, (DEALER,))
    link.read_ahead(DEALER)
    source = StreamSource(link, DEALER, agreement.key(keys[DEALER], _material(own)), bound=True)
    material = MaterialReader(source, DEALER)
    stream = BoundKeystream(agreement.key(keys[DEALER], _seed(own)))
    yield PartyWires(link, other, DEALER, stream, material, heard=heard)
    check_used(material.left, DEALER)
    link.send(DEALER, FINISHED, torch.empty(0, dtype=torch.uint8))


def _seed(name: str) -> str:
    return f"privtrain spdz2k seed {name}"


def _material(name: str) -> str:
    return f"privtrain spdz2k material {name}"


CAVEATS = (
    "spdz2k finds out a computing party that deviates before another one reads anything, but for "
    "a probability of at most 2^-40 a run (with SharedSum, a sum); N runs have N times that. "
    "Results are correct up to what a deviating party puts in as rows or contributions of its own, "
    "which may be any.",
    "There is no fairness: who deviates may read the result and abort before others do, and an "
    "abort does not say who deviated.",
    "The dealer follows the protocol and colludes with nobody: it knows every mask and every key, "
    "so that whoever pools with it, or lets it listen, reads every input and forges any result.",
    "Links are mutual TLS 1.3 between the processes of one machine, and between hosts where every "
    "party has keys. Without them parties are not authenticated: changed messages between the "
    "computing parties end the run all the same, but somebody who sits between them and the dealer "
    "reads every input and forges any result.",
    "Which way a value was rounded is known to both computing parties: rounding hides nothing.",
    "Values whose integer reaches 2^42 wrap around unnoticed: products have up to 32 bits after "
    "the point. Nothing proves that a party's rows are within their range: beyond it a result may "
    "be one that no rows give, and tell more of the others' rows.",
    "Shapes, sequence and timing of messages, and which rows form a batch, are visible to both "
    "computing parties.",
)
