"""Small programs that use each method of a session, for runs in which a message is changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc import layers
from privtrain.mpc.dense import Descent
from privtrain.mpc.engine import Engine
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.proofs import prove
from privtrain.mpc.sharing import encode, share
from tests.mpc.changed_messages import Place
from tests.mpc.models import perceptron
from tests.mpc.one_party import OpenSession

CHECKS = ("coin", "check commitment", "check opening")
"""Kinds of messages by which openings are checked."""

Body = Callable[[Any, Any, Any], Mapping[str, Any]]
"""Of a session and two shared values: results by the kind of their bound and a name."""


LARGEST = 8.25


def drawn(*shape: int) -> Tensor:
    """Values up to `LARGEST`, none of them near zero, that few bits after the point hold."""
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 3
    values = (values.clamp(-8, 8) * 2**8).round() / 2**8
    return values + values.sign() * 0.25


@dataclass(frozen=True)
class Text:
    """What the computing parties run, and what comes of it on plain float64.

    Args:
        body: The program.
        x: What rank 0 holds.
        y: What rank 1 holds.
        kinds: The kinds of messages of steps that no other text has; None for all but those of
            checks.
        since: Number of the first of them.
        largest: What is known of magnitudes, which makes comparisons cheaper.
        readers: Ranks of those that read the results; None for all.
        taken: Whether both values are there as shares of both parties, that of x with a proof.
        sessions: How many sessions are opened, one after the other.
    """

    body: Body = field(repr=False)
    x: Tensor = field(default=drawn(1, 2), repr=False)
    y: Tensor = field(default=drawn(2, 2)[1:], repr=False)
    kinds: tuple[str, ...] | None = ("masked share",)
    since: int = 0
    largest: float | None = None
    readers: tuple[int, ...] | None = None
    taken: bool = False
    sessions: int = 1

    def plain(self, x: Tensor | None = None, y: Tensor | None = None) -> dict[str, Tensor]:
        """The results, also for other values than those that the parties hold."""
        x, y = self.x if x is None else x, self.y if y is None else y
        found = {name: value.double() for name, value in self.body(OpenSession(), x, y).items()}
        return {named(name, n): found[name] for n in range(self.sessions) for name in found}

    def changes(self, place: Place) -> bool:
        """Whether no other text has the step that a message is of."""
        if self.kinds is None:
            return place.kind not in CHECKS
        return place.kind in self.kinds and place.number >= self.since

    def inputs(self) -> dict[str, Payload]:
        """What each computing party brings to a run."""
        if not self.taken:
            return {}
        x, y = encode(self.x), encode(self.y)
        parts = zip(
            share(x, 2, Keystream()), prove(x, Keystream()), share(y, 2, Keystream()), strict=True
        )
        names = ("x", "proof of x", "y")
        return {
            f"computing-{rank}": dict(zip(names, part, strict=True))
            for rank, part in enumerate(parts)
        }

    def on(self, session: Any, party: Party, inputs: Payload) -> dict[str, Tensor]:
        """The results that this party reads."""
        if self.taken:
            proofs = [inputs["proof of x"], None]
            x, y = session.take_all([inputs["x"], inputs["y"]], proofs=proofs)
        else:
            x, y = (
                session.own(
                    encode(values) if link_of(party).rank == owner else None,
                    tuple(values.shape),
                    owner,
                    largest=self.largest,
                )
                for owner, values in enumerate((self.x, self.y))
            )
        values = self.body(session, x, y)
        options = {} if self.readers is None else {"readers": self.readers}
        opened = session.reveal(list(values.values()), kind="result share", **options)
        return dict(zip(values, opened, strict=bool(opened)))


def named(result: str, session: int) -> str:
    """What a result of a session is called."""
    return f"{result} of session {session}" if session else result


@dataclass(frozen=True)
class Runs:
    """A text in sessions of its own."""

    engine: Engine
    text: Text

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        found = {}
        for number in range(self.text.sessions):
            with self.engine.open(party) as session:
                for name, value in self.text.on(session, party, inputs).items():
                    found[named(name, number)] = value
        return found


def announced(s: Any, x: Any, y: Any) -> dict[str, Any]:
    # What is said tells how many values are multiplied, of which one is read: two where it is a
    # multiple of three, as here, which it is not once a bit is flipped. A party may say anything,
    # but who is told something else runs another program.
    before = x * y
    said = sum(int(each.sum()) for each in s.announce(torch.tensor([5, 7])))
    many = 1 if said % 3 else 2
    return {"product": before, "product after": (x[:, :many] * x[:, :many])[:, :1]}


def products(s: Any, x: Any, y: Any) -> dict[str, Any]:
    return {"product": x * y, "chained": x * y * y}


def linear(s: Any, x: Any, y: Any) -> dict[str, Any]:
    return {
        "exact sum": (x + y).sum(0),
        "exact public": x - 0.5,
        "scaled": s.scale(x - y, -0.375),
        "product mean": y.mean(1),
    }


def rectified(s: Any, x: Any, y: Any) -> dict[str, Any]:
    larger, above = s.relu(x)
    return {"exact relu": larger, "exact bits": above, "exact selected": y * above}


def descended(outputs: int, probabilities: layers.Probabilities) -> Body:
    """A step of a small network, with weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        model = perceptron() if outputs == 3 else nn.Sequential(nn.Linear(6, outputs))
    # Not in the program: torch.fx traces in one thread at a time.
    nodes = layers.translate(model)

    def body(s: Any, x: Any, y: Any) -> dict[str, Any]:
        opened = [node.open(s) for node in nodes]
        layers.step(s, opened, x, y, Descent(0.5 / 8, 0.0), probabilities)
        return {f"step {number}": value for number, value in enumerate(layers.trained(opened))}

    return body


ROWS = drawn(8, 6) / 4
LABELS = nn.functional.one_hot(torch.arange(8) % 3, 3).double()

TEXTS = {
    "own": Text(lambda s, x, y: {"exact x": x, "exact y": y}, kinds=None),
    "take": Text(
        lambda s, x, y: {"exact x": x, "exact y": y},
        kinds=("masked input", "proof seeds", "proof"),
        taken=True,
    ),
    "announce": Text(announced, kinds=("announcement", "material")),
    "mul": Text(products),
    "matmul": Text(lambda s, x, y: {"product": x.matmul(y.t())}, drawn(2, 3), drawn(2, 3) + 1),
    "linear": Text(linear, kinds=("masked share", *CHECKS)),
    "positive": Text(lambda s, x, y: {"exact positive": s.positive(y - x)}),
    "relu": Text(rectified),
    "largest": Text(lambda s, x, y: {"exact largest": s.largest(x.reshape(2))}, largest=LARGEST),
    "sigmoid": Text(lambda s, x, y: {"sigmoid": s.sigmoid(x * y)}),
    "softmax": Text(lambda s, x, y: {"softmax": s.softmax(x)}, since=2, largest=LARGEST),
    "to rank 0": Text(lambda s, x, y: {"exact x": x}, kinds=("result share",), readers=(0,)),
    "to rank 1": Text(lambda s, x, y: {"exact x": x}, kinds=("result share",), readers=(1,)),
    "logistic step": Text(descended(1, layers.sigmoid), ROWS, LABELS[:, :1].contiguous()),
    "mlp step": Text(descended(3, layers.softmax), ROWS, LABELS),
}
"""By what they use."""
