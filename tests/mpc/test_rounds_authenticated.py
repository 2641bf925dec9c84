"""The table of spdz2k in `docs/mpc.md`: as `test_rounds`, with the check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.dense import Descent
from privtrain.mpc.layers import sigmoid, softmax, step, trained
from privtrain.mpc.sharing import encode
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.mpc.spdz2k.session import Spdz2kSession
from privtrain.mpc.spdz2k.wires import PartyWires
from tests.mpc.ring64.mesh import Ran, run
from tests.mpc.test_rounds import OPERATIONS, RATE, STEPS, Operation, Step, stated

TABLE = stated("spdz2k")
REFUSED = {
    "convolution of 4 pictures 3 x 8 x 8 with 4 kernels 3 x 3",
    "average of 2 x 2 windows of 4 pictures 3 x 8 x 8",
}
MINE = {name: operation for name, operation in OPERATIONS.items() if name not in REFUSED}
SHARED = 1000
"""The round from which messages are those of the operation."""

NAMES = ("computing-0", "computing-1")


def measured(
    session: Spdz2kSession, inputs: list[Any], function: Callable[..., list[Any]]
) -> Payload:
    """Opens what a function makes of inputs; says what material it took, without that of both."""
    taken = 0
    if isinstance(session.wires, PartyWires):
        take = session.wires.material.take

        def counted(count: int, dtype: torch.dtype) -> Tensor:
            nonlocal taken
            taken += count * dtype.itemsize
            return take(count, dtype)

        session.wires.material.take = counted  # type: ignore[method-assign]
        # Who heard the other's input last is a message ahead, and would stay so.
        session.wires.link.round = SHARED  # type: ignore[attr-defined]  # a `QueueLink`
    results = session.settled(function(session, *inputs))
    # What was scaled is truncated now.
    assert all(result.share is not None for result in results)
    session.wires.check()
    material = torch.tensor(taken)
    opened = session.reveal(results, kind="result share")
    return {"material": material, **{str(number): each for number, each in enumerate(opened)}}


@dataclass(frozen=True)
class Computes:
    """An operation on values of the last party that were not opened before."""

    operation: Operation
    integers: Tensor

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            held = self.integers if link_of(party).rank == 1 else None
            value = session.own(held, tuple(self.integers.shape), 1)
            new = value.derived(value.share, self.operation.bits, largest=self.operation.largest)
            return measured(session, [new], lambda s, v: list(self.operation.run(s, v)))


class AuthenticatedStep(Step):
    """A step as the trainer takes it: rows are public under a mask from the start."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            leads = link_of(party).rank == 0
            shares = [
                session.own(
                    encode(values, name="rows") if leads else None,
                    tuple(values.shape),
                    0,
                    largest=largest,
                )
                for values, largest in zip(self.rows(), (self.largest, 1), strict=True)
            ]
            layers = [node.open(session) for node in self.nodes]
            probabilities = sigmoid if self.sizes[-1] == 1 else softmax

            def stepped(session: Spdz2kSession, rows: Any, targets: Any) -> list[Any]:
                descent = Descent(RATE / self.batch, 0.0)
                step(session, layers, rows, targets, descent, probabilities)
                return trained(layers)

            return measured(session, shares, stepped)


def costs(ran: Ran) -> tuple[int, int, int]:
    """Rounds, bytes that each party sends and the larger party's material, up to the result."""
    links = [ran.links[name] for name in NAMES]
    entries = [entry for link in links for entry in link.entries if entry.receiver in NAMES]
    last = min(entry.round for entry in entries if entry.kind == "result share")
    counted = [entry for entry in entries if SHARED <= entry.round < last]
    (sent,) = {sum(entry.bytes for entry in counted if entry.sender == name) for name in NAMES}
    material = [int(ran.payloads[name]["material"]) for name in NAMES]
    assert material[0] <= material[1]
    return len({entry.round for entry in counted}), sent, material[1]


def results(ran: Ran) -> list[Tensor]:
    first, second = (
        [value for name, value in ran.payloads[each].items() if name != "material"]
        for each in NAMES
    )
    assert all(map(torch.equal, first, second))
    return first


@pytest.mark.parametrize("name", MINE)
def test_an_operation_costs_what_the_page_says(name: str) -> None:
    operation = MINE[name]
    torch.manual_seed(0)
    integers = (torch.randn(operation.shape).double() * 3 * 2**operation.bits).long()
    ran = run(Computes(operation, integers), engine=SPDZ2k())
    assert costs(ran) == TABLE[name][:3]
    exact = operation.plain(integers.double() / 2**operation.bits)
    for result, expected in zip(results(ran), exact, strict=True):
        assert float((result - expected).abs().max()) <= TABLE[name].error


@pytest.mark.parametrize("name", STEPS)
def test_a_step_costs_what_the_page_says(name: str) -> None:
    ring64 = STEPS[name]
    ran = run(
        AuthenticatedStep(ring64.model, ring64.sizes, ring64.batch, ring64.largest),
        engine=SPDZ2k(),
    )
    assert costs(ran) == TABLE[name][:3]
    weights = torch.cat([each.flatten() for each in results(ran)])
    assert float((weights - ring64.plain()).abs().max()) <= TABLE[name].error


def test_each_line_is_tested() -> None:
    assert set(TABLE) == {*MINE, *STEPS}
