"""The ring engine: additive shares modulo 2^64, semi-honest, with a dealer beside the parties."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, UnsupportedError
from privtrain.core.fields import NEVER
from privtrain.core.runtime import Party, Payload, Program, link_of
from privtrain.core.statement import Adversary, InputPrivacy, Security
from privtrain.mpc.ring64.session import HALF_RANGE, Ring64Session
from privtrain.mpc.ring64.streamed import DEALER, SHAPES, Material, Streamed
from privtrain.mpc.sharing import PRECISION_BITS, SUM_BITS

FEWEST, MOST = 2, 5

CAVEATS = (
    "ring64 is semi-honest: a party that deviates is not noticed and can falsify the result; "
    "shares carry no MACs.",
    "The dealer knows every mask. It is sent shapes, announced numbers of rows and public settings "
    "and sees no traffic between the parties, but whoever pools with it, or lets it listen, gives "
    "it every input: it must collude with nobody.",
    "Nobody checks what the dealer deals: a dealer that deviates can falsify the result.",
    "Links are mutual TLS 1.3 between the processes of one machine, and between hosts where every "
    "party has keys. Without them they are TCP, and parties are not authenticated: seeds are still "
    "agreed by X25519 and material is sealed by AES-GCM, which stops a listener who does not know "
    "the dealer's masks, not somebody who sits in between.",
    "Which way a value was rounded is known to every computing party: rounding hides nothing.",
    "Values whose integer reaches 2^62 wrap around unnoticed.",
    "Shapes, sequence and timing of messages, and which rows form a batch, are visible to every "
    "computing party.",
)


@dataclass(frozen=True)
class Ring64:
    """Additive shares modulo 2^64 between 2 to 5 computing parties, with a dealer beside them.

    Any parties but one, following the protocol, learn nothing but what is opened. The dealer holds
    no rows and is sent none; it must not collude with a computing party. It follows the program of
    the parties without seeing what they open, so no step may depend on that.

    Args:
        material: When the dealer deals: while the parties compute (`Streamed`), or ahead of them
            (`Offline`, then `Online`). No part of what identifies a study.
    """

    material: Material = field(default=Streamed(), metadata=NEVER, repr=False)

    @property
    def name(self) -> str:
        return "ring64"

    @property
    def caveats(self) -> tuple[str, ...]:
        return CAVEATS

    @property
    def helper_names(self) -> tuple[str, ...]:
        return (DEALER,) if self.material.deals else ()

    @property
    def most_parties(self) -> int:
        return MOST

    @property
    def exact_truncation(self) -> bool:
        return True

    @property
    def opens_to_some(self) -> bool:
        return True

    @property
    def pictures(self) -> bool:
        return True

    @property
    def sigmoid(self) -> bool:
        return True

    @property
    def keeps_shares(self) -> bool:
        return True

    @property
    def authenticated(self) -> bool:
        return False

    @property
    def adversary(self) -> Adversary:
        return Adversary.SEMI_HONEST

    @property
    def row_bits(self) -> int:
        return PRECISION_BITS

    @property
    def weight_bits(self) -> int:
        return PRECISION_BITS

    @property
    def gradient_bits(self) -> int:
        return PRECISION_BITS

    @property
    def sum_bits(self) -> int:
        return SUM_BITS

    @property
    def range_bits(self) -> int:
        return HALF_RANGE

    def check(self, parties: int) -> None:
        if not FEWEST <= parties <= MOST:
            raise UnsupportedError(
                f"ring64 runs with {FEWEST} to {MOST} computing parties, not with {parties}."
            )

    def helpers(self, programs: Mapping[str, Program]) -> Mapping[str, Program]:
        computing = tuple(programs)
        if not self.material.deals:
            return {}
        return {DEALER: Deal(programs[computing[0]], computing)}

    def input_privacy(self, names: Sequence[str]) -> tuple[InputPrivacy, ...]:
        honest = f"one of {', '.join(names)}, and the dealer towards all of them"
        reads = dict.fromkeys(
            names, "shares, masked values, public batch indices and what is opened"
        )
        reads[DEALER] = (
            "shapes, numbers of rows and public settings; it knows every mask, so that with a "
            "computing party, or as a listener between them, it reads every input"
        )
        reads["a listener on the network between the computing parties"] = (
            "masked values and what is opened; somebody who alters messages reads everything"
        )
        return tuple(
            InputPrivacy(
                reader=reader,
                reads=what,
                adversary=Adversary.SEMI_HONEST,
                security=Security.COMPUTATIONAL,
                dealer=DEALER,
                honest=honest,
            )
            for reader, what in reads.items()
        )

    @contextmanager
    def open(self, party: Party) -> Iterator[Ring64Session]:
        """Agrees on keys with the dealer and the other parties, over the party's link.

        A program may open one session after the other, also after one that an error ended in all
        roles; each has keys and masks of its own.

        Args:
            party: A computing party, or the dealer, which deals what the session needs.

        Yields:
            The open session.

        Raises:
            UnsupportedError: If there is no dealer in the mesh.
            PartyLostError: If a party is gone or silent.
            TamperedShareError: If material was changed, or is for another program.
        """
        link = link_of(party)
        if (DEALER in link.names) is not self.material.deals:
            needs = "needs" if self.material.deals else "with material made ahead is without"
            raise UnsupportedError(f"ring64 {needs} a {DEALER!r}; the mesh has {link.names}.")
        computing = tuple(name for name in link.names if name != DEALER)
        self.check(len(computing))
        with self.material.open(link, computing, party.sent) as session:
            yield session


@dataclass(frozen=True)
class Deal:
    """The dealer's program: that of the computing parties, on masks instead of shares.

    It runs on zeros of the shapes that the first party announces, and what it opens are zeros; its
    result is nobody's.

    Args:
        program: What the computing parties run.
        computing: The parties that it deals to, by rank.
    """

    program: Program = field(repr=False)
    computing: tuple[str, ...]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        """Deals until the program ends.

        Raises:
            ProtocolError: If the announced shapes cannot be read.
        """
        link = link_of(party)
        link.knows("every mask, and all that it deals from masks")
        zeros = as_zeros(link.receive(self.computing[0], SHAPES))
        self.program(zeros, replace(party, sent=zeros))
        return {}


def as_zeros(message: Tensor) -> dict[str, Tensor]:
    """Zeros of announced names, types and shapes.

    Raises:
        ProtocolError: If the message is no announcement of shapes.
    """
    try:
        said = json.loads(message.numpy().tobytes())
        return {
            str(name): torch.zeros((), dtype=_TYPES[kind]).expand(shape)
            for name, kind, shape in said
        }
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ProtocolError(f"The announced shapes cannot be read: {error}.") from error


_TYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)
}
