"""Programs on the authenticated engine at all roles in threads, for the tests of its parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.sharing import encode
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.mpc.spdz2k.forms import Form
from privtrain.mpc.spdz2k.session import Spdz2kSession
from privtrain.mpc.spdz2k.wires import PartyWires, Words
from tests.mpc.ring64.mesh import Change, Ran, run, unchanged

Function = Callable[[Spdz2kSession, Any], Sequence[Any]]
"""What is computed from a session and a value: values with their bits after the point."""


@dataclass(frozen=True)
class OfOne:
    """Opens what a function makes of a value whose integers the last party holds."""

    function: Function
    integers: Tensor
    bits: int = 16
    largest: int | None = None

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            held = self.integers if link_of(party).rank == 1 else None
            value = session.own(held, tuple(self.integers.shape), 1)
            # As an earlier operation would give it, so that it is opened as such.
            value = value.derived(value.share, self.bits, largest=self.largest)
            results = list(self.function(session, value))
            opened = session.reveal(results, kind="result share")
            return {str(number): values for number, values in enumerate(opened)}


def drawn(*shape: int, seed: int = 0, scale: float = 4.0) -> Tensor:
    """Values that rows hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(shape, dtype=torch.float64, generator=generator) * 2 - 1) * scale
    return (values * 2**12).round() / 2**12


X, Y = drawn(6, 5), drawn(5, 3, seed=1)


def shared(session: Spdz2kSession, party: Party, values: Tensor, owner: int, **known: Any) -> Any:
    integers = encode(values, bits=SPDZ2k().row_bits)
    held = integers if link_of(party).rank == owner else None
    return session.own(held, tuple(values.shape), owner, **known)


@dataclass(frozen=True)
class OfTwo:
    """Opens what a function makes of a session and of x of party 1 and y of party 0."""

    function: Callable[[Spdz2kSession, Any, Any], Any]
    x: Tensor = X
    y: Tensor = Y
    readers: tuple[int, ...] | None = None
    largest: float | None = None

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            x = shared(session, party, self.x, 1, largest=self.largest)
            y = shared(session, party, self.y, 0, largest=self.largest)
            values = [self.function(session, x, y)]
            opened = session.reveal(values, kind="result share", readers=self.readers)
            return {"result": opened[0]} if opened else {}


def ran_on(
    function: Function,
    integers: Tensor,
    *,
    bits: int = 16,
    largest: int | None = None,
    change: Change = unchanged,
) -> tuple[Ran, list[Tensor]]:
    """The run, and the results, which both parties have."""
    ran = run(OfOne(function, integers, bits, largest), engine=SPDZ2k(), change=change)
    one, other = (list(ran.payloads[f"computing-{rank}"].values()) for rank in (0, 1))
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert ran.payloads["dealer"] == {}
    return ran, one


def openings(ran: Ran, kind: str = "masked share") -> int:
    """Messages of a kind that each party sent the other, at once and one after the other."""
    senders = [entry.sender for entry in ran.entries(kind)]
    assert senders.count("computing-0") == senders.count("computing-1")
    return senders.count("computing-0")


def with_bits_above(open_honestly: Any) -> Any:
    """`PartyWires.open`, with something in the bits above payloads that both parties agree on."""

    def opened(
        self: PartyWires, shares: Sequence[Form | Words], *, kind: str = "masked share"
    ) -> list[Tensor]:
        found: list[Tensor] = open_honestly(self, shares, kind=kind)
        stream = Keystream(self._step.to_bytes(32, "little"))
        return [
            each + (stream.integers(tuple(each.shape)) << 44) if isinstance(share, Form) else each
            for share, each in zip(shares, found, strict=True)
        ]

    return opened
