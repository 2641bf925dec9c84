"""Functions of a session at all parties, for the tests of nonlinear ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Ring64Session
from tests.mpc.ring64.mesh import Ran, run

UNIT = 2.0**-16


@dataclass(frozen=True)
class Function:
    """Opens the results of a function of one value, of which the last party holds the integers."""

    function: Callable[[Ring64Session, Any], tuple[Any, ...]]
    integers: Tensor
    bits: int
    largest: int | None = None

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            owner = len(link_of(party).names) - 2
            held = self.integers if link_of(party).rank == owner else None
            value = session.own(held, tuple(self.integers.shape), owner)
            results = self.function(
                session, value.derived(value.share, self.bits, largest=self.largest)
            )
            shares = [result.share for result in results]
            opened = session.wires.open(shares, kind="result share")
            pairs = zip(opened, results, strict=True)
            return {
                str(number): integers.double() / 2.0**result.bits
                for number, (integers, result) in enumerate(pairs)
            }


def ran_on(
    function: Callable[[Ring64Session, Any], tuple[Any, ...]],
    integers: Tensor,
    count: int = 2,
    *,
    bits: int = 16,
    largest: int | None = None,
) -> tuple[Ran, list[Tensor]]:
    """The run, and the results as all parties opened them."""
    ran = run(Function(function, integers, bits, largest), count)
    payloads = [ran.payloads[f"computing-{rank}"] for rank in range(count)]
    results = list(payloads[0].values())
    for payload in payloads[1:]:
        for one, other in zip(results, payload.values(), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=0)
    return ran, results


def dealt_bytes(ran: Ran) -> int:
    return ran.bytes("material", "dealer")
