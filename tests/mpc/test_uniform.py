"""Every share, every message and every masked value that is opened is uniform, whatever the values.

All tests together raise a false alarm with a probability of about 1e-9, and overlook what is broken
below with less; masks come from the system, not from a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.core.runtime import Party, Payload
from privtrain.mpc.convolution import Windows, conv2d
from privtrain.mpc.dense import Descent
from privtrain.mpc.keystream import BoundKeystream, Keystream
from privtrain.mpc.layers import Node, Probabilities, sigmoid, softmax, step, trained, translate
from privtrain.mpc.ring64 import wires
from privtrain.mpc.sharing import LARGEST
from tests.mpc.models import PICTURE, SmallResNet, drawn, made
from tests.mpc.ring64.mesh import Ran, run
from tests.mpc.ring64.test_session import shared
from tests.mpc.spdz2k import views as authenticated
from tests.mpc.views import Views, Watched, alarm, pooled

ALARM = 1e-11
"""Of one run; there are fewer than a hundred."""

COUNT = 4096


def convolution(x: Tensor, y: Tensor) -> Tensor:
    return conv2d(x, y, windows=Windows((3, 3), (1, 1), (1, 1)), groups=1)


Operation = Callable[[Any, Any, Any], Sequence[Any]]

OPERATIONS: dict[str, tuple[Operation, tuple[int, ...], tuple[int, ...]]] = {
    "own": (lambda s, x, y: [x, y], (COUNT,), (COUNT,)),
    "mul": (lambda s, x, y: [x * y], (COUNT,), (COUNT,)),
    # Two openings of one value, under masks that have nothing to do with each other.
    "mul twice": (lambda s, x, y: [x * y, x.derived(x.share) * y], (COUNT,), (COUNT,)),
    "square": (lambda s, x, y: [x.square(), y], (COUNT,), (COUNT,)),
    "matmul": (lambda s, x, y: [x.matmul(y)], (64, 64), (64, 64)),
    "bilinear": (lambda s, x, y: [s.bilinear(convolution, x, y)], (16, 4, 8, 8), (16, 4, 3, 3)),
    "scale": (lambda s, x, y: [s.scale(x, 0.3) + s.scale(y, -7.7)], (COUNT,), (COUNT,)),
    "positive": (lambda s, x, y: [s.positive(x), y], (COUNT,), (COUNT,)),
    "relu": (lambda s, x, y: [*s.relu(x), y], (COUNT,), (COUNT,)),
    "sigmoid": (lambda s, x, y: [s.sigmoid(x * 2.0**-7), y], (COUNT,), (COUNT,)),
    "softmax": (lambda s, x, y: [s.softmax(x), y], (COUNT // 4, 4), (COUNT,)),
    "largest": (lambda s, x, y: [s.largest(x), y], (COUNT // 4, 4), (COUNT,)),
}

VALUES: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "constant": lambda shape: torch.full(shape, 3.0),
    "extreme": lambda shape: torch.full(shape, 2.0**-16 - LARGEST, dtype=torch.float64),
    "random": lambda shape: torch.randn(shape, generator=torch.Generator().manual_seed(5)),
}


@dataclass(frozen=True)
class Once:
    """Opens what an operation makes of x and y; party 1 holds x, party 0 holds y."""

    engine: Watched | authenticated.Watched
    operation: Operation
    x: Tensor
    y: Tensor

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with self.engine.open(party) as session:
            x, y = shared(session, party, self.x, 1), shared(session, party, self.y, 0)
            results = list(self.operation(session, x, y))
            if not session.deals:
                for result in results:
                    self.engine.views[f"result at {party.name}"] += self.engine.shares_of(result)
            opened = session.reveal(results, kind="result share")
        return {str(number): value for number, value in enumerate(opened)}


def of_one(operation: str, values: str, parties: int = 2) -> tuple[Ran, Views]:
    function, *shapes = OPERATIONS[operation]
    engine = Watched()
    x, y = (VALUES[values](shape) for shape in shapes)
    return run(Once(engine, function, x, y), parties), engine.views


def check_complete(ran: Ran, views: Views) -> None:
    """That computing parties send nothing beside what is in views, but shapes, keys, receipts."""
    for name, link in ran.links.items():
        if name == "dealer":
            continue
        kinds = {"shapes", "public key", "material taken", wires.MASKED, "result share"}
        assert {kind for kind, _ in link.sent} <= kinds
        sent = sum(entry.bytes for entry in link.entries if "share" in entry.kind)
        seen = sum(len(each.words) * each.bits // 8 for each in views[f"message of {name}"])
        assert sent == seen * (len(ran.links) - 2)


@pytest.mark.parametrize(
    ("values", "parties"), [("constant", 2), ("constant", 3), ("extreme", 2), ("random", 3)]
)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(operation: str, values: str, parties: int) -> None:
    ran, views = of_one(operation, values, parties)
    assert alarm(views) > ALARM
    check_complete(ran, views)


@dataclass(frozen=True)
class Steps:
    """The same step many times, each with shares and weights of its own; opens the weights."""

    engine: Watched | authenticated.Watched
    nodes: tuple[Node, ...]
    rows: Tensor
    targets: Tensor
    probabilities: Probabilities
    repeats: int

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        descent = Descent(0.5 / len(self.rows), 0.5)
        with self.engine.open(party) as session:
            for _ in range(self.repeats):
                layers = [node.open(session) for node in self.nodes]
                x, y = shared(session, party, self.rows, 1), shared(session, party, self.targets, 0)
                step(session, layers, x, y, descent, self.probabilities)
                session.reveal(trained(layers), kind="result share")
        return {}


STEPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, Probabilities]] = {
    "logistic": (lambda: nn.Linear(6, 1), (6,), 1, sigmoid),
    "MLP": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,), 3, softmax),
    "CNN": (SmallResNet, PICTURE, 3, softmax),
}


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("name", STEPS)
def test_steps_of_training(name: str, parties: int) -> None:
    make, shape, outputs, probabilities = STEPS[name]
    rows, labels = drawn(8, *shape), torch.arange(8) % max(outputs, 2)
    rows[4:] = 0  # as constant as rows can be
    targets = nn.functional.one_hot(labels).double()[:, :outputs]
    engine, repeats = Watched(), 16
    # Before the parties' threads: no two of them may follow one model at a time.
    nodes = translate(made(make))
    ran = run(Steps(engine, nodes, rows, targets, probabilities, repeats), parties)
    assert alarm(pooled(engine.views, repeats)) > ALARM
    check_complete(ran, engine.views)


# Power. Each engine below is broken in one place and computes the right result all the same: only a
# look at what it shows can tell.

Stream = Keystream | BoundKeystream
Weaken = Callable[[Stream, Sequence[int]], Tensor]


def biased(odds: float) -> Weaken:
    """Masks one bit of which is 1 with these odds against 0; all others are uniform."""

    def draw(stream: Stream, shape: Sequence[int]) -> Tensor:
        mask, coins = stream.integers(shape), stream.integers(shape) & 0xFFFF
        ones = coins < 2**16 * odds / (1 + odds)
        return mask & ~(1 << 40) | ones.long() << 40

    return draw


def used_twice() -> Weaken:
    drawn: dict[Stream, Tensor] = {}

    def draw(stream: Stream, shape: Sequence[int]) -> Tensor:
        before = drawn.pop(stream, None)
        if before is not None and before.shape == tuple(shape):
            return before
        drawn[stream] = stream.integers(shape)
        return drawn[stream]

    return draw


WEAK_MASKS: dict[str, Weaken] = {
    "63 bits": lambda stream, shape: stream.integers(shape) & (2**63 - 1),
    "a low byte of zeros": lambda stream, shape: stream.integers(shape) & ~255,
    "used twice": used_twice(),
    "odds of 2/3": biased(2 / 3),
    "odds of 3/2": biased(3 / 2),
}


def check_right(ran: Ran) -> None:
    torch.testing.assert_close(
        ran.payloads["computing-0"]["0"], torch.full((COUNT,), 9.0).double(), rtol=0, atol=2**-15
    )


@pytest.mark.parametrize("name", WEAK_MASKS)
def test_a_weak_mask_is_seen_in_what_is_opened(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weaken = WEAK_MASKS[name]

    # The leader draws it alone: what others add would hide how weak it is.
    def of_party(self: wires.PartyWires, shape: Sequence[int]) -> Tensor:
        return weaken(self.stream, shape) if self.leader else torch.zeros(shape).long()

    def of_dealer(self: wires.DealerWires, shape: Sequence[int]) -> Tensor:
        return weaken(self.streams[0], shape)

    monkeypatch.setattr(wires.PartyWires, "random", of_party)
    monkeypatch.setattr(wires.DealerWires, "random", of_dealer)
    ran, views = of_one("mul", "constant")
    check_right(ran)
    assert alarm({"opened": views["opened"]}) < ALARM


def test_a_value_that_stays_with_its_owner_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(
        self: wires.PartyWires, integers: Tensor | None, shape: Sequence[int], owner: int
    ) -> Tensor:
        return torch.zeros(shape).long() if integers is None else integers

    monkeypatch.setattr(wires.PartyWires, "own", own)
    ran, views = of_one("mul", "constant")
    check_right(ran)
    assert alarm({"share": views["share at computing-0"]}) < ALARM
    assert alarm({"opened": views["opened"]}) > ALARM


def test_a_product_that_is_dealt_without_a_mask_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoStream:
        def integers(self, shape: Sequence[int]) -> Tensor:
            return torch.zeros(shape).long()

    of_party, of_dealer = wires.PartyWires.dealt, wires.DealerWires.dealt

    def at_party(self: Any, compute: Any, shape: Any, *, bits: int = 64) -> Tensor:
        return of_party(replace(self, stream=NoStream()), compute, shape, bits=bits)

    def at_dealer(self: Any, compute: Any, shape: Any, *, bits: int = 64) -> Tensor:
        return of_dealer(replace(self, streams=(NoStream(),) * 2), compute, shape, bits=bits)

    monkeypatch.setattr(wires.PartyWires, "dealt", at_party)
    monkeypatch.setattr(wires.DealerWires, "dealt", at_dealer)
    ran, views = of_one("mul", "constant")
    check_right(ran)
    for name in ("computing-0", "computing-1"):
        assert alarm({"share": views[f"share at {name}"]}) < ALARM
        assert alarm({"result": views[f"result at {name}"]}) < ALARM


@pytest.mark.parametrize("module", ["comparison", "tables", "softmax"])
def test_bits_that_are_opened_without_a_mask_are_seen(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        f"privtrain.mpc.ring64.{module}.random_octets",
        lambda wires, shape: np.zeros(shape, np.uint8),
    )
    ran, views = of_one("softmax", "constant")
    found = ran.payloads["computing-0"]["0"]
    torch.testing.assert_close(found, torch.full((COUNT // 4, 4), 0.25).double(), rtol=0, atol=1e-4)
    assert alarm({"opened": views["opened"]}) < ALARM
