"""The integers of a recorded step are those of the engine itself, operation by operation."""

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.dense import Descent
from privtrain.mpc.layers import Node, Probabilities, sigmoid, softmax, step, trained, translate
from privtrain.mpc.measured import measure
from privtrain.mpc.operations import Operation, RecordingSession, Room, shift_of
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Cut, Ring64Session, rounded_factor
from privtrain.mpc.ring64.softmax import NUMERATOR_BITS, RECIPROCAL_BITS
from privtrain.mpc.sharing import encode
from tests.mpc.models import PICTURE, Residual, SmallResNet, convolutional, drawn, made, pooled
from tests.mpc.one_party import few_bits
from tests.mpc.ring64.mesh import run

DESCENT = Descent(0.37 / 4, 0.6)


def one_logit() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))


@dataclass(frozen=True)
class Steps:
    """Three steps on shares of rows that the first party holds."""

    nodes: tuple[Node, ...]
    rows: Tensor
    targets: Tensor
    probabilities: Probabilities

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            rows, targets = (
                session.own(
                    encode(held) if link_of(party).rank == 0 else None, tuple(held.shape), 0
                )
                for held in (self.rows, self.targets)
            )
            layers = [node.open(session) for node in self.nodes]
            for _ in range(3):
                step(session, layers, rows, targets, DESCENT, self.probabilities)
            return {"weights": session.reveal(trained(layers), kind="weight share")[0]}


def truncated_integers(program: Steps, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The largest magnitude of each tensor that the engine truncates, in their order."""
    begin: Any = Ring64Session._begin
    shares: dict[int, list[Tensor]] = defaultdict(list)

    def spy(session: Ring64Session, cut: Cut) -> Any:
        if not session.deals:
            shares[threading.get_ident()].append(cut.value.share * cut.factor)
        return begin(session, cut)

    monkeypatch.setattr(Ring64Session, "_begin", spy)
    run(program, 2)
    one, other = shares.values()
    # int64 wraps around: the sum of the shares is the integer.
    return [float((a + b).abs().max()) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("make", [Residual, one_logit, convolutional, SmallResNet, pooled])
def test_integers_are_those_that_the_engine_truncates(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = make in (Residual, one_logit)
    nodes = translate(made(make))
    rows = drawn(4, 6) if flat else drawn(4, *PICTURE)
    one_hot = nn.functional.one_hot(torch.tensor([0, 2, 1, 1]), 3).double()
    of_loss: Probabilities = sigmoid if make is one_logit else softmax
    targets = one_hot[:, :1] if make is one_logit else one_hot
    program = Steps(nodes, rows, targets, of_loss)
    found = truncated_integers(program, monkeypatch)
    notes: list[Operation] = []
    monkeypatch.setattr("privtrain.mpc.measured.RecordingSession", partial(_listening, notes))
    measured = measure(nodes, Ring64(), [(rows, targets, DESCENT)] * 3, of_loss)
    known = torch.tensor([each.integer for each in notes], dtype=torch.float64)
    # Within rounding: a factor of two, or bits that were counted wrongly, would not be.
    others = [integer for integer in found if float((known / integer - 1).abs().min()) > 2e-2]
    # One truncation a step lies within softmax: probabilities with the bits of both factors.
    assert len(others) == (3 if of_loss is softmax else 0)
    assert all(2.0**54 < integer < 2.0**56 * 1.001 for integer in others)
    assert NUMERATOR_BITS + RECIPROCAL_BITS == 56
    # Each factor of a step is truncated once, and so is noted.
    factors = [each for each in notes if each.name in ("learning rate, momentum", "division")]
    for each in factors:
        assert min(abs(integer / each.integer - 1) for integer in found) < 2e-2, each
    assert len(found) > len(factors) > 3
    assert {each.limit for each in measured.operations if each.name != "sigmoid"} == {2.0**62}


def _listening(notes: list[Operation], numbers: Any, room: Room, note: Any) -> RecordingSession:
    def both(operation: Operation) -> None:
        notes.append(operation)
        note(operation)

    return RecordingSession(numbers, room, both)


def test_operations_have_the_names_of_their_layers() -> None:
    one_hot = nn.functional.one_hot(torch.tensor([0, 2, 1, 1]), 3).double()
    batch = (drawn(4, 6), one_hot, DESCENT)
    ranges = measure(translate(made(Residual)), Ring64(), [batch] * 2, softmax)
    names = [(each.layer, each.name) for each in ranges.operations]
    assert names[:3] == [("first", "product"), ("first", "outputs"), ("model", "outputs")]
    assert names.index(("the loss", "probabilities less targets")) < names.index(
        ("head", "gradient of the inputs")
    )
    # What is used twice has the sum of both gradients: after those of the addition and the layer.
    assert {layer for layer, name in names if name == "sum of gradients"} == {"model", "second"}
    assert {name for layer, name in names if layer == "the loss"} == {"probabilities less targets"}
    assert [name for layer, name in names if layer == "head"] == [
        "product",
        "outputs",
        "gradient of the inputs",
        "gradient of the weights",
        "learning rate, momentum",
        "weights after the step",
        "gradient of the bias",
        "momentum",
    ]


@pytest.mark.parametrize(
    ("integer", "lacks"),
    [(2.0**62 - 2.0**20, 0), (2.0**62, 1), (2.0**63 - 2.0**20, 1), (2.0**63, 2), (2.0**70, 9)],
)
def test_bits_that_are_lacking_are_those_of_the_integer(integer: float, lacks: int) -> None:
    operation = Operation("head", "product", integer / 2**32, 32, 2.0**62)
    assert operation.lacks == lacks
    assert max(0, int(integer).bit_length() - 62) == lacks
    assert str(operation) == "product (layer 'head')"


def test_what_is_no_number_does_not_fit() -> None:
    for odd in (float("inf"), float("nan")):
        assert Operation("head", "product", odd, 32, 2.0**62).lacks > 900


@pytest.mark.parametrize("factor", [0.5, 0.9999999, 1.0, 3.7, 1e-3, 2.0**-40, 70000.0])
def test_factors_have_the_bits_of_the_engine(factor: float) -> None:
    @dataclass(frozen=True)
    class Scale:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            with Ring64().open(party) as session:
                held = encode(torch.ones(1)) if link_of(party).rank == 0 else None
                value: Any = session.own(held, (1,), 0)
                (opened,) = session.reveal([session.scale(value, factor)], kind="result share")
                return {"result": opened}

    (result,) = run(Scale(), 2).payloads["computing-0"]["result"].tolist()
    shift = shift_of(factor)
    rounded = round(factor * 2.0**shift) / 2.0**shift
    assert abs(result - rounded) <= 2.0**-16
    assert abs(rounded - factor) <= 2.0**-shift / 2


def test_engines_have_their_room() -> None:
    assert Room.of(Ring64()) == Room(2.0**62, 0)
    assert Room.of(CrypTen()) == Room(2.0**52, 32)
    assert Room.of(few_bits()) == Room(2.0**42, 0, 16, 16, 14)


@pytest.mark.parametrize("of_loss", [softmax, sigmoid])
def test_bits_are_those_of_the_engine(of_loss: Probabilities) -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2, bias=False))
    rows, targets = torch.full((4, 2), 8.0).double(), torch.eye(2).double().repeat(2, 1)
    batch, factor = (rows, targets, Descent(0.3 / 4, 0.6)), rounded_factor(0.3 / 4)[1]
    measured = measure(translate(model), few_bits(), [batch] * 2, of_loss)
    found = {(each.layer, each.name): each for each in measured.operations}
    limits = {each.limit for each in measured.operations if each.name != "sigmoid"}
    assert limits == {2.0**42}
    bits = {
        ("0", "product"): 16 + 16,
        ("1", "outputs"): 16 + 16,
        # What the rectifier gives is truncated to 14 bits, and so is what a layer hands back.
        ("2", "product"): 14 + 16,
        # Targets have 16.
        ("the loss", "probabilities less targets"): 16,
        ("2", "gradient of the inputs"): 16 + 16,
        ("2", "gradient of the weights"): 14 + 16,
        ("0", "gradient of the weights"): 16 + 14,
        ("0", "learning rate, momentum"): 14 + factor,
        ("0", "momentum"): 14,
        ("0", "weights after the step"): 16,
    }
    assert {key: found[key].bits for key in bits} == bits
