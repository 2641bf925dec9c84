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
class Functions:
    """Everything a session computes, beside its plaintext; and what was counted."""

    engine: CrypTen = CrypTen()

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(40, 10, dtype=torch.float64, generator=generator) * 6
        y = torch.randn(10, 6, dtype=torch.float64, generator=generator)
        ties = torch.tensor([1.0, 3.0, 2.0, 3.0, -5.0])
        with self.engine.open(party) as session:
            left = held_by(0, x, session, party)
            right = held_by(1, y, session, party)
            values = {
                "matmul": (left.matmul(right), x @ y),
                "softmax": (session.softmax(left), torch.softmax(x, 1)),
                "two": (session.softmax(left[:, :2]), torch.softmax(x[:, :2], 1)),
                "wide": (session.softmax(session.scale(left, 300.0)), torch.softmax(x * 300, 1)),
                "one": (session.softmax(left[:, :1]), torch.ones(40, 1)),
                "positive": (session.positive(left), (x > 0).double()),
                "scale": (session.scale(left, 0.003), x * 0.003),
                "scale up": (session.scale(left, -300.0), x * -300.0),
                "scale by nothing": (session.scale(left, 0.0), x * 0.0),
                "public": (session.public(y), y),
                "largest": (session.largest(session.public(ties)), ties == 3),
            }
            names = list(values)
            opened = session.reveal([values[name][0] for name in names], kind="test")
            errors = {
                f"error/{name}": (found - values[name][1].double()).abs().max()
                for name, found in zip(names, opened, strict=True)
            }
            errors["largest"] = opened[names.index("largest")]
            sent = len(link_of(party).entries)
            session.positive(session.public(torch.ones(640)))
            signs = link_of(party).entries[sent:]
            counted = torch.tensor(session.counted_bytes)
        rng = importlib.import_module("crypten.mpc.primitives.arithmetic")
        drawn = rng.generate_random_ring_element((50_000,))
        costs = torch.tensor([sum(entry.bytes for entry in signs) / 640, len(signs)])
        return {**errors, "counted": counted, "drawn": drawn, "comparison": costs}


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
