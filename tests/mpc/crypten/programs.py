"""Programs on shares, for real processes."""

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.dense import Descent
from privtrain.mpc.engine import Session, Shared
from privtrain.mpc.layers import step, trained, translate
from privtrain.mpc.sharing import encode


def held_by(owner: int, values: Tensor, session: Session, party: Party) -> Shared:
    integers = encode(values) if link_of(party).rank == owner else None
    return session.own(integers, tuple(values.shape), owner)


@dataclass(frozen=True)
class Costs:
    """What is counted of messages, what a comparison costs, and what is drawn."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        values = torch.linspace(-6, 6, 40, dtype=torch.float64).reshape(8, 5)
        with CrypTen().open(party) as session:
            left, right = (held_by(owner, values, session, party) for owner in (0, 1))
            session.reveal([session.softmax(left.matmul(right.t()))], kind="test")
            sent = len(link_of(party).entries)
            session.positive(session.public(torch.ones(640)))
            signs = link_of(party).entries[sent:]
            counted = torch.tensor(session.counted_bytes)
        rng = importlib.import_module("crypten.mpc.primitives.arithmetic")
        drawn = rng.generate_random_ring_element((50_000,))
        costs = torch.tensor([sum(entry.bytes for entry in signs) / 640, len(signs)])
        return {"counted": counted, "drawn": drawn, "comparison": costs}


@dataclass(frozen=True)
class AnotherShape:
    """One party brings the same number of values in another shape."""

    culprit: int

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        shape = (3, 2) if link_of(party).rank == self.culprit else (2, 3)
        with CrypTen().open(party) as session:
            value = session.public(torch.ones(shape))
            return {"opened": session.reveal([value], kind="test")[0]}


@dataclass(frozen=True)
class Gradients:
    """Many single steps on shares; the change of the weights is the gradient."""

    steps: int

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        opened = []
        with CrypTen().open(party) as session:
            for number in range(self.steps):
                model, rows, targets = example(number)
                layers = [layer.open(session) for layer in translate(model)]
                x = held_by(0, rows, session, party)
                hot = nn.functional.one_hot(targets, 5).double()
                y = held_by(1, hot, session, party)
                step(session, layers, x, y, Descent(1.0 / len(rows), 0.0))
                after = session.reveal(trained(layers), kind="test")
                before = [parameter.detach() for parameter in model.parameters()]
                opened.append(
                    torch.cat([(b - a).reshape(-1) for a, b in zip(after, before, strict=True)])
                )
        return {"gradients": torch.stack(opened)}


def example(number: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small network in float64, rows and labels, from a number."""
    generator = torch.Generator().manual_seed(number)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    inputs = torch.randn(32, 8, dtype=torch.float64, generator=generator) * 2
    return model, inputs, torch.randint(5, (32,), generator=generator)


def plain_gradient(number: int) -> Tensor:
    """The gradient of the same step by torch."""
    model, inputs, targets = example(number)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.reshape(-1) for gradient in gradients])
