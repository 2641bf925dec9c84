"""The table of `docs/mpc.md`: what operations cost by the transcript, and how far off they are."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.runtime import Party, Payload
from privtrain.mpc.convolution import Windows, conv2d, sums
from privtrain.mpc.dense import Descent
from privtrain.mpc.layers import Node, sigmoid, softmax, step, trained, translate
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.sharing import LARGEST_ENCODED, encode
from tests.mpc.ring64.functions import ran_on
from tests.mpc.ring64.mesh import Ran, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mpc.md"
AUTHENTICATED = "\n## What operations cost with `spdz2k`\n"
RATE = 0.1


class Stated(NamedTuple):
    """A line of a table, for two computing parties.

    Args:
        rounds: Messages in sequence between computing parties.
        sent: Bytes that each of them sends the other.
        material: Bytes that the dealer sends.
        error: How far a result may be from float64.
    """

    rounds: int
    sent: int
    material: int
    error: float


def stated(engine: str) -> dict[str, Stated]:
    """The lines of an engine's table, by the operation's name."""
    before, _, after = PAGE.read_text().partition(AUTHENTICATED)
    authenticated, _, rest = after.partition("\n## ")
    text = authenticated if engine == "spdz2k" else before + rest
    lines = re.findall(r"^\| ([^|]+?) \| ([\d]+) \| ([\d,]+) \| ([\d,]+) \| (\S+) \|$", text, re.M)
    return {
        name: Stated(
            int(rounds),
            int(sent.replace(",", "")),
            int(material.replace(",", "")),
            0.0 if error == "exact" else float(error),
        )
        for name, rounds, sent, material, error in lines
    }


TABLE = stated("ring64")


class Operation(NamedTuple):
    run: Callable[[Any, Any], Sequence[Any]]
    plain: Callable[[Tensor], Sequence[Tensor]]
    shape: tuple[int, ...]
    bits: int = 16
    largest: int | None = None


def first_largest(values: Tensor) -> Tensor:
    return nn.functional.one_hot(values.argmax(), len(values)).double()


def convolved(pictures: Tensor, kernels: Tensor) -> Tensor:
    return conv2d(pictures, kernels, windows=Windows((3, 3), (1, 1), (0, 0)), groups=1)


def kernels_of(values: Any) -> Any:
    return values[768:].reshape(4, 3, 3, 3)


def summed(pictures: Tensor) -> Tensor:
    return sums(pictures, windows=Windows((2, 2), (2, 2), (0, 0)))


OPERATIONS = {
    "1,000 values times a public number": Operation(
        lambda s, v: [s.scale(v, 0.3)], lambda x: [0.3 * x], (1000,)
    ),
    "product of 500 and 500 values": Operation(
        lambda s, v: [v[:500] * v[500:]], lambda x: [x[:500] * x[500:]], (1000,)
    ),
    "matrix product of 32 x 32 and 32 x 32": Operation(
        lambda s, v: [v[0].matmul(v[1])], lambda x: [x[0] @ x[1]], (2, 32, 32)
    ),
    "`positive` of 1,000 values": Operation(
        lambda s, v: [s.positive(v)], lambda x: [(x > 0).double()], (1000,)
    ),
    "`relu` of 1,000 values, with the bits": Operation(
        lambda s, v: s.relu(v), lambda x: [x.relu(), (x > 0).double()], (1000,)
    ),
    "`relu` of 1,000 products, with the bits, and a truncation": Operation(
        lambda s, v: s.relu(v), lambda x: [x.relu(), (x > 0).double()], (1000,), bits=32
    ),
    "`relu` of 1,000 values up to 4,095, with the bits": Operation(
        lambda s, v: s.relu(v), lambda x: [x.relu(), (x > 0).double()], (1000,), largest=4095 << 16
    ),
    "mean of 10 times 100 values": Operation(
        lambda s, v: [v.mean(0)], lambda x: [x.mean(0)], (10, 100)
    ),
    "1,000 values less than a public number": Operation(
        lambda s, v: [v.lt(0.5)], lambda x: [(x < 0.5).double()], (1000,)
    ),
    "convolution of 4 pictures 3 x 8 x 8 with 4 kernels 3 x 3": Operation(
        lambda s, v: [s.bilinear(convolved, v[:768].reshape(4, 3, 8, 8), kernels_of(v))],
        lambda x: [convolved(x[:768].reshape(4, 3, 8, 8), kernels_of(x))],
        (768 + 108,),
    ),
    "average of 2 x 2 windows of 4 pictures 3 x 8 x 8": Operation(
        lambda s, v: [s.scale(s.linear(summed, v), 0.25)],
        lambda x: [nn.functional.avg_pool2d(x, 2)],
        (4, 3, 8, 8),
    ),
    "`sigmoid` of 1,000 values up to 56": Operation(
        lambda s, v: [s.sigmoid(v)], lambda x: [x.sigmoid()], (1000,)
    ),
    "`largest` of 10 values": Operation(
        lambda s, v: [s.largest(v)], lambda x: [first_largest(x)], (10,)
    ),
    "`maximum` of 100 rows of 10 values": Operation(
        lambda s, v: [s.maximum(v)], lambda x: [x.max(-1).values], (100, 10)
    ),
    "`softmax` of 100 rows of 10 logits up to 4,095": Operation(
        lambda s, v: [s.softmax(v)], lambda x: [x.softmax(-1)], (100, 10), largest=4095 << 16
    ),
    "`softmax` of 100 rows of 10 logits": Operation(
        lambda s, v: [s.softmax(v)], lambda x: [x.softmax(-1)], (100, 10)
    ),
}


def costs(ran: Ran, parties: int) -> tuple[int, int, int]:
    sent = {ran.bytes("masked share", f"computing-{rank}") for rank in range(parties)}
    (each,) = sent  # all of them send as much
    return ran.rounds(), each // (parties - 1), ran.bytes("material", "dealer")


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_costs_what_the_page_says(name: str, parties: int) -> None:
    operation = OPERATIONS[name]
    torch.manual_seed(0)
    integers = (torch.randn(operation.shape).double() * 3 * 2**operation.bits).long()
    ran, results = ran_on(
        lambda session, value: tuple(session.settled(list(operation.run(session, value)))),
        integers,
        parties,
        bits=operation.bits,
        largest=operation.largest,
    )
    assert costs(ran, parties) == TABLE[name][:3]
    exact = operation.plain(integers.double() / 2**operation.bits)
    for result, expected in zip(results, exact, strict=True):
        assert float((result - expected).abs().max()) <= TABLE[name].error


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers of these widths, inputs first, with ReLU in between."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class Step:
    """One step of gradient descent on shares of rows that the first party has.

    Args:
        model: Made before the parties' threads, which share torch's generator.
        sizes: How many inputs and outputs it has; one output is a logit under logistic loss.
        batch: Rows.
        largest: What no row exceeds, as everybody knows.
    """

    model: nn.Sequential
    sizes: tuple[int, int]
    batch: int
    largest: float = LARGEST_ENCODED
    nodes: tuple[Node, ...] = field(init=False)

    def __post_init__(self) -> None:
        # Not in the parties' threads: no two of them may follow one model at a time.
        object.__setattr__(self, "nodes", translate(self.model))

    def rows(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.batch, self.sizes[0], generator=generator, dtype=torch.float64)
        classes = max(2, self.sizes[-1])
        targets = nn.functional.one_hot(torch.arange(self.batch) % classes, classes).double()
        return inputs, targets[:, -self.sizes[-1] :]

    def plain(self) -> Tensor:
        """The weights after the step, in float64."""
        model, (inputs, targets) = copy.deepcopy(self.model).double(), self.rows()
        outputs = model(inputs)
        if self.sizes[-1] == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(outputs, targets)
        else:
            loss = nn.functional.cross_entropy(outputs, targets)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        pairs = zip(model.parameters(), gradients, strict=True)
        return torch.cat([(weight - RATE * each).detach().flatten() for weight, each in pairs])

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        rows, targets = self.rows()
        with Ring64().open(party) as session:
            shares = [
                session.take(encode(values, name="rows") * int(session.leader), largest=largest)
                for values, largest in ((rows, self.largest), (targets, 1))
            ]
            layers = [node.open(session) for node in self.nodes]
            probabilities = sigmoid if self.sizes[-1] == 1 else softmax
            step(session, layers, *shares, Descent(RATE / self.batch, 0.0), probabilities)
            weights = session.settled(trained(layers))
            opened = session.wires.open([each.share for each in weights], kind="result share")
            return {"weights": torch.cat([each.flatten() for each in opened]).double() / 2.0**16}


STEPS = {
    "step of a logistic regression, 30 features and one logit, batch 64": Step(
        perceptron(30, 1), (30, 1), 64
    ),
    "the same with rows up to 64": Step(perceptron(30, 1), (30, 1), 64, largest=64),
    "the same with two classes": Step(perceptron(30, 2), (30, 2), 64),
    "step of an MLP 64-32-10, batch 128": Step(perceptron(64, 32, 10), (64, 10), 128),
}


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_costs_what_the_page_says(name: str, parties: int) -> None:
    ran = run(STEPS[name], parties)
    assert costs(ran, parties) == TABLE[name][:3]
    weights = ran.payloads["computing-0"]["weights"]
    assert float((weights - STEPS[name].plain()).abs().max()) <= TABLE[name].error


def test_each_line_is_tested() -> None:
    assert set(TABLE) == {*OPERATIONS, *STEPS}
