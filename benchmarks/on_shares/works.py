"""What is computed on shares by every side, on the same numbers, and in float64."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from privtrain.mpc.dense import Descent
from privtrain.mpc.engine import Session, Shared
from privtrain.mpc.layers import sigmoid, softmax, step, trained, translate
from privtrain.mpc.sharing import decode, encode

Operation = Callable[[Session, list[Shared]], list[Shared]]
Plain = Callable[[list[Tensor]], list[Tensor]]
RATE = 0.1
"""Learning rate of a step."""


@dataclass(frozen=True)
class Work:
    """An operation, what it is done to, and what it gives.

    Args:
        name: What it is called in the table.
        kind: What it is called where it is written without a session.
        shapes: Shapes of the operands.
        run: Computes on shares.
        plain: Computes in float64.
        weights: Initial weights of a step, in the order of the results.
        two_classes: What is done instead by a side without a sigmoid.
    """

    name: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    run: Operation
    plain: Plain
    weights: tuple[Tensor, ...] = ()
    two_classes: "Work | None" = None

    def operands(self) -> list[Tensor]:
        """The same numbers at every party, float64; the second operand of a step is one-hot."""
        generator = torch.Generator().manual_seed(0)
        drawn = [
            torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes
        ]
        if self.weights:
            drawn[1] = nn.functional.one_hot(drawn[1].argmax(dim=1), drawn[1].shape[1]).double()
        return drawn

    def check(self, opened: list[Tensor], error: float, side: str) -> None:
        """Stops the benchmark where a side does not compute what float64 does.

        Args:
            opened: The result of a side.
            error: How far it may be away.
            side: Whose it is.

        Raises:
            RuntimeError: If it is further away.
        """
        exact = self.plain([decode(encode(each, name="an operand")) for each in self.operands()])
        far = max(
            float((one - other.double()).abs().max())
            for one, other in zip(exact, opened, strict=True)
        )
        if far > error:
            raise RuntimeError(f"{self.name}: {side} is {far:.2g} away from float64.")


def relu(session: Session, operands: list[Shared]) -> list[Shared]:
    """The rectifier, by each engine's best means."""
    return [session.relu(operands[0])[0]]


def descent(name: str, kind: str, sizes: tuple[int, ...], batch: int) -> Work:
    """One step of gradient descent.

    Args:
        name: What it is called in the table.
        kind: What it is called elsewhere.
        sizes: Widths of the layers, inputs first; one output is a logit under logistic loss.
        batch: Rows. Operands are inputs and one-hot labels; of one logit the last column counts.
    """
    outputs = sizes[-1]
    probabilities = softmax if outputs > 1 else sigmoid
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for before, after in pairwise(sizes):
        modules += [nn.Linear(before, after), nn.ReLU()]
    model = nn.Sequential(*modules[:-1])
    # Before anything is timed: seeding torch's generator takes a millisecond.
    translated = translate(model)

    def run(session: Session, operands: list[Shared]) -> list[Shared]:
        inputs, labels = operands
        layers = [layer.open(session) for layer in translated]
        rule = Descent(RATE / inputs.size(0), 0.0)
        step(session, layers, inputs, labels[:, -outputs:], rule, probabilities)
        return trained(layers)

    def plain(operands: list[Tensor]) -> list[Tensor]:
        inputs, labels = operands
        twin = deepcopy(model).double()
        own, wanted = twin(inputs), labels[:, -outputs:]
        if outputs > 1:
            loss = nn.functional.cross_entropy(own, wanted)
        else:
            loss = nn.functional.binary_cross_entropy_with_logits(own, wanted)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        pairs = zip(twin.parameters(), gradients, strict=True)
        return [(weight - RATE * gradient).detach() for weight, gradient in pairs]

    weights = tuple(weight.detach() for weight in model.parameters())
    shapes = ((batch, sizes[0]), (batch, max(2, outputs)))
    return Work(name, kind, shapes, run, plain, weights)


def logistic() -> Work:
    """A step of a logistic regression; of one with two classes where there is no sigmoid."""
    work = descent("logistic-step, 30 features, B 64", "logistic-step", (30, 1), 64)
    two_classes = descent(work.name, work.kind, (30, 2), 64)
    return Work(**{**vars(work), "two_classes": two_classes})


def works(quick: bool) -> tuple[Work, ...]:
    """All operations; small ones where it has to be quick."""
    side, many, rows = (16, 100, 10) if quick else (256, 10_000, 1_000)
    return (
        Work(
            f"matmul-{side}",
            "matmul",
            ((side, side), (side, side)),
            lambda session, x: [x[0].matmul(x[1])],
            lambda x: [x[0] @ x[1]],
        ),
        Work(
            f"mul-{many}",
            "mul",
            ((many,), (many,)),
            lambda session, x: [x[0] * x[1]],
            lambda x: [x[0] * x[1]],
        ),
        Work(f"relu-{many}", "relu", ((many,),), relu, lambda x: [x[0].relu()]),
        Work(
            f"softmax-{rows}x10",
            "softmax",
            ((rows, 10),),
            lambda session, x: [session.softmax(x[0])],
            lambda x: [x[0].softmax(dim=-1)],
        ),
        logistic(),
        descent("mlp-step 64-32-10, B 128", "mlp-step", (64, 32, 10), 128),
    )
