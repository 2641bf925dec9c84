"""No value of a training exceeds its interval, simple ones reach it, and a false twin is caught."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc import intervals
from privtrain.mpc.bounds import Bounds
from privtrain.mpc.crypten.engine import CrypTen
from privtrain.mpc.dense import Descent
from privtrain.mpc.intervals import LongDescent, Magnitudes, check_worst_case, worst_case
from privtrain.mpc.layers import (
    Node,
    Probabilities,
    sigmoid,
    softmax,
    step,
    trained,
    translate,
)
from privtrain.mpc.measured import Batch, MeasuredRanges, measure
from privtrain.mpc.operations import Operation, Recorded, RecordingSession
from privtrain.mpc.ranges import LARGEST_OUTPUT
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.sigmoid import REACH
from privtrain.mpc.sharing import encode
from tests.mpc.models import FLAT, OF_PICTURES, PICTURE, perceptron
from tests.mpc.one_party import few_bits
from tests.mpc.ring64.mesh import run

RATE, MOMENTUM, STEPS = 0.05, 0.75, 6


class OneLogit(nn.Module):
    """A convolution, a global average and a residual connection before one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, rows: Tensor) -> Tensor:
        values = torch.flatten(self.pool(self.stem(rows)), 1)
        return self.head(torch.relu(self.middle(values)) + values)  # type: ignore[no-any-return]


MODELS = [*FLAT, *OF_PICTURES, OneLogit]


def shape_of(make: Callable[[], nn.Module]) -> tuple[int, ...]:
    return (6,) if make in FLAT else PICTURE


def drawn_model(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model whose weights are anywhere within 2, some at its edge."""
    torch.manual_seed(seed)
    model = make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.rand_like(parameter) * 6 - 3).clamp(-2, 2))
    return model


def batches_of(
    make: Callable[[], nn.Module], seed: int, *, rows: float = 3.0, alike: bool = False
) -> list[Batch]:
    """Batches of 5 and of 2 rows in turn; where they are alike, they push weights one way."""
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if make is OneLogit else 3
    made: list[Batch] = []
    for number in range(STEPS):
        count = 2 if number % 2 else 5
        size = (count, *shape_of(make))
        inputs = (torch.rand(size, dtype=torch.float64, generator=generator) * 4 - 2) * rows
        inputs = torch.full_like(inputs, rows) if alike else inputs.clamp(-rows, rows)
        labels = torch.randint(3, (count,), generator=generator) * (not alike)
        targets = nn.functional.one_hot(labels, 3)[:, :classes].double()
        made.append((inputs, targets, Descent(RATE / count, MOMENTUM)))
    return made


def loss_of(make: Callable[[], nn.Module]) -> Probabilities:
    return sigmoid if make is OneLogit else softmax


Key = tuple[str, str]


def by_name(operations: Any) -> dict[Key, Operation]:
    """The largest of each layer and kind."""
    largest: dict[Key, Operation] = {}
    for each in operations:
        known = largest.setdefault((each.layer, each.name), each)
        if each.integer > known.integer:
            largest[each.layer, each.name] = each
    return largest


def exceeded(
    make: Callable[[], nn.Module], measured: MeasuredRanges, bounds: Bounds, seed: int
) -> list[Key]:
    """What was measured above the worst case."""
    nodes = translate(drawn_model(make, seed))
    worst: list[Operation] = []
    for batch in (5, 2):
        descent = Descent(RATE / batch, MOMENTUM)
        worst += worst_case(bounds, Ring64(), nodes, shape_of(make), batch, descent, loss_of(make))
    found, known = by_name(measured.operations), by_name(worst)
    assert found.keys() == known.keys()
    for key, operation in found.items():
        assert operation.bits <= known[key].bits or "learning" in key[1], key
    return [key for key in found if found[key].integer > known[key].integer * (1 + 1e-12)]


def measured_by(make: Callable[[], nn.Module], seed: int, *, alike: bool = False) -> MeasuredRanges:
    nodes = translate(drawn_model(make, seed))
    return measure(nodes, Ring64(), batches_of(make, seed, alike=alike), loss_of(make))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("by_layer", [False, True], ids=["rows and weights", "layers"])
def test_nothing_exceeds_its_interval(
    make: Callable[[], nn.Module], seed: int, by_layer: bool
) -> None:
    measured = measured_by(make, seed, alike=seed == 2)
    bounds = measured.bounds(1.0)
    if not by_layer:
        bounds = Bounds(rows=measured.rows, weights=measured.weights)
    assert exceeded(make, measured, bounds, seed) == []


class ForgetsTheBatch(Magnitudes):
    def __getattribute__(self, name: str) -> Any:
        return 1 if name == "rows" else super().__getattribute__(name)


class HalvesProbabilities(Magnitudes):
    def probabilities(self, logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.full_like(logits, 0.5)


class Subtracts(Magnitudes):
    def less(self, left: Tensor, right: Tensor) -> Tensor:
        return (left - right).abs()


@pytest.mark.parametrize(
    ("twin", "said"),
    [
        (ForgetsTheBatch, "gradient of the weights"),
        (HalvesProbabilities, "probabilities less targets"),
        (Subtracts, "weights after the step"),
    ],
)
def test_a_false_interval_is_caught(
    twin: type[Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = measured_by(perceptron, 2, alike=True)
    bounds = Bounds(rows=measured.rows, weights=measured.weights)
    assert exceeded(perceptron, measured, bounds, 2) == []
    monkeypatch.setattr(intervals, "Magnitudes", twin)
    assert said in [name for _, name in exceeded(perceptron, measured, bounds, 2)]


def worst(
    model: nn.Module,
    bounds: Bounds,
    shape: tuple[int, ...],
    batch: int = 1,
    rate: float = 0.5,
    momentum: float = 0.0,
) -> dict[Key, Operation]:
    descent = Descent(rate / batch, momentum)
    return by_name(worst_case(bounds, Ring64(), translate(model), shape, batch, descent, softmax))


def test_the_worst_case_is_reached() -> None:
    # All rows and weights at their bounds, and labels as wrong as can be, for sixty steps.
    stem, head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(75, 2, bias=False)
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter.fill_(2.0)
        head.weight.copy_(torch.tensor([[2.0], [-2.0]]).expand(2, 75))
    stem.requires_grad_(False)
    model = nn.Sequential(stem, nn.Flatten(), head)
    inputs = torch.full((7, 2, 5, 5), 3.0, dtype=torch.float64)
    targets = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(7, 2)
    # So small a rate that the weights stay where they are.
    batch = (inputs, targets, Descent(2.0**-29 / 7, 0.5))
    measured = measure(translate(model), Ring64(), [batch] * 60, softmax)
    bounds = Bounds(rows=3.0, weights=2.0)
    found, known = by_name(measured.operations), worst(model, bounds, (2, 5, 5), 7, 2.0**-29, 0.5)
    assert found.keys() == known.keys()
    inner = 2 * 2 * 9 * 3.0 + 2  # windows at the edge have fewer than nine places
    edge, corner = 2 * 2 * 6 * 3.0 + 2, 2 * 2 * 4 * 3.0 + 2
    total = 3 * 2 * (9 * inner + 12 * edge + 4 * corner)
    assert known["0", "product"].largest == found["0", "product"].largest == inner - 2
    assert known["2", "product"].largest == pytest.approx(total)
    assert found["2", "product"].largest == pytest.approx(total)
    for key, operation in known.items():
        # A probability may be 2^-10 outside 0..1; steps as small as these are roundings mostly.
        if key[1] not in ("learning rate, momentum", "momentum"):
            assert found[key].largest == pytest.approx(operation.largest, rel=2e-3), key


class ForgetsTheSteps(LongDescent):
    def __call__(
        self, session: RecordingSession, gradient: Recorded, previous: Recorded | None
    ) -> Recorded:
        step = session.scale(gradient, self.rate)
        return session.scale(step, self.momentum) + step


def test_what_has_added_up_of_momentum_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1, 2, bias=False)
    nn.init.constant_(model.weight, 0.0)
    nodes = translate(model)
    inputs, targets = torch.full((4, 1), 3.0).double(), torch.zeros(4, 2).double()

    def certain(session: Any, outputs: Any) -> Any:
        return Recorded(torch.ones_like(outputs.values), session, 16, by_row=True)

    # Gradients of 1 x 3 in every step: steps of 0.75 that add up to 1.5.
    batch = (inputs, targets, Descent(0.25 / 4, 0.5))
    measured = measure(nodes, Ring64(), [batch] * 60, certain)
    name = ("model", "momentum")
    found = by_name(measured.operations)[name].largest
    assert found == pytest.approx(1.5)
    bounds = Bounds(rows=3.0, weights=1.0)
    assert found <= worst(model, bounds, (1,), 4, 0.25, 0.5)[name].largest < 1.5 * (1 + 2e-3)
    monkeypatch.setattr(intervals, "LongDescent", ForgetsTheSteps)
    assert worst(model, bounds, (1,), 4, 0.25, 0.5)[name].largest < found


# A gradient of 15 in every step makes a step of 0.1 x 15 / 7, which 16 bits do not hold.
ROUNDED = Descent(0.1 / 7, 0.7)


@dataclass(frozen=True)
class OpensEachStep:
    """Thirty steps on shares whose gradients are all alike, with the weights after each."""

    nodes: tuple[Node, ...]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        def certain(session: Any, outputs: Any) -> Any:
            return session.public(torch.ones(5, 2))

        with Ring64().open(party) as session:
            held = [torch.full((5, 40), 3.0), torch.zeros(5, 2)]
            first = link_of(party).rank == 0
            rows, targets = (
                session.own(encode(each) if first else None, tuple(each.shape), 0) for each in held
            )
            layers = [node.open(session) for node in self.nodes]
            opened = []
            for _ in range(30):
                step(session, layers, rows, targets, ROUNDED, certain)
                opened += session.reveal(trained(layers), kind="weight share")
            return {"weights": torch.stack(opened)}


def test_roundings_of_the_engine_are_within_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(40, 2, bias=False)
    nn.init.constant_(model.weight, 0.0)
    weights = run(OpensEachStep(translate(model)), 2).payloads["computing-0"]["weights"]
    largest = float(weights.diff(dim=0).abs().max())
    monkeypatch.setattr(intervals, "PROBABILITY", 1.0)
    bounds = Bounds(rows=3.0, weights=1.0)

    def known() -> float:
        operations = worst_case(bounds, Ring64(), translate(model), (40,), 5, ROUNDED, softmax)
        return by_name(operations)["model", "momentum"].largest

    assert largest <= known() < largest + 10 * intervals.unit(16)
    # Without room for roundings some of eighty weights would exceed it.
    monkeypatch.setattr(Magnitudes, "scaled", lambda *given: given[1] * given[2])
    monkeypatch.setattr(intervals, "shift_of", lambda factor: 60)
    monkeypatch.setattr(intervals, "unit", lambda bits: 2.0**-60)
    assert known() < largest


def test_a_stated_layer_caps_what_follows_from_it_and_its_own_product() -> None:
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    free = worst(model, Bounds(rows=100, weights=100), (10,))
    assert free["0", "product"].largest == 1e5
    assert free["2", "product"].largest == pytest.approx(8 * (1e5 + 100) * 100)
    layers = {"0": 50.0, "1": 20.0}
    capped = worst(model, Bounds(rows=100, weights=100, layers=layers), (10,))
    assert capped["0", "product"].largest == capped["0", "outputs"].largest == 50.0
    assert capped["2", "product"].largest == pytest.approx(8 * 20 * 100)
    backward = ("2", "gradient of the inputs"), ("0", "gradient of the weights")
    assert [free[key].largest for key in backward] == [capped[key].largest for key in backward]
    given = Bounds(rows=100, weights=100, gradients={"2": 3.0})
    back = worst(model, given, (10,), 6)
    assert back["2", "gradient of the inputs"].largest == 3.0
    assert back["0", "gradient of the weights"].largest == pytest.approx(6 * 100 * 3.0, rel=1e-4)
    # A bound above the interval changes nothing.
    assert worst(model, replace(given, gradients={"2": 1e9}), (10,)) == free


def test_a_stated_layer_caps_what_pooling_gives_and_hands_back() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    free = worst(model, Bounds(rows=2, weights=3), (1, 6, 6))
    capped = worst(model, Bounds(rows=2, weights=3, layers={"1": 0.5}), (1, 6, 6))
    assert free["3", "product"].largest > 8 * 50 * 3
    assert capped["3", "product"].largest == 8 * 0.5 * 3
    given = Bounds(rows=2, weights=3, gradients={"1": 0.25})
    back = worst(model, given, (1, 6, 6), 3)["0", "gradient of the weights"].largest
    assert back == 3 * 16 * 2 * 0.25 < free["0", "gradient of the weights"].largest


def test_bounds_are_rounded_up_as_fixed_point_may() -> None:
    known = worst(nn.Linear(1, 2, bias=False), Bounds(rows=0.1, weights=0.1), (1,))
    rounded = float(encode(torch.tensor([0.1]))) / 2**16
    assert rounded > 0.1
    assert known["model", "product"].largest == rounded**2


def test_a_momentum_that_is_rounded_to_one_has_no_limit() -> None:
    bounds, model = Bounds(rows=1.0, weights=1.0), nn.Linear(1, 2)
    assert worst(model, bounds, (1,), momentum=0.999)["model", "momentum"].lacks == 0
    known = worst(model, bounds, (1,), momentum=1 - 2.0**-20)
    assert known["model", "learning rate, momentum"].lacks > 900


def refused(
    model: nn.Module,
    bounds: Bounds,
    features: int,
    *,
    batch: int = 1,
    engine: Any = None,
    probabilities: Probabilities = softmax,
) -> str:
    """What is said; empty where it is not refused."""
    arguments = (translate(model), (features,), batch, Descent(0.5 / batch, 0.0), probabilities)
    try:
        check_worst_case(bounds, engine or Ring64(), *arguments)
    except DataError as error:
        return str(error)
    return ""


def test_the_first_operation_that_may_overflow_is_named_with_the_bits_that_it_lacks() -> None:
    model = nn.Sequential(nn.Linear(1024, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    # 2^10 products of 2^10 and 2^10 are 2^30, of which 2^62 is the integer: just too large.
    said = refused(model, Bounds(rows=1024, weights=1024), 1024)
    assert "overflow is: product (layer '0')" in said
    assert "1.07e+09, an integer of 62.0 bits, where ring64 has 62.0: it lacks 1 bit." in said
    said = refused(model, Bounds(rows=1024, weights=1023.99), 1024)
    assert "overflow is: product (layer '2')" in said
    assert "it lacks 12 bits" in said
    assert "pt.measured_ranges" in said
    assert refused(model, Bounds(rows=1024, weights=1023, layers={"0": 2.0**17}), 1024) == ""


def test_a_batch_that_is_too_large_is_refused_where_its_sum_overflows() -> None:
    model = nn.Linear(2, 2, bias=False)
    bounds = Bounds(rows=4000, weights=1)
    assert refused(model, bounds, 2, batch=268_000) == ""
    said = refused(model, bounds, 2, batch=269_000)
    assert "gradient of the weights (layer 'model')" in said
    assert "lacks 1 bit" in said


def test_a_logit_may_reach_what_the_logistic_function_does() -> None:
    model = nn.Linear(2, 1, bias=False)
    assert refused(model, Bounds(rows=7, weights=4), 2, probabilities=sigmoid) == ""
    assert REACH == 56
    said = refused(model, Bounds(rows=7, weights=4.01), 2, probabilities=sigmoid)
    assert "sigmoid (the loss). It may reach 56.1" in said
    said = refused(model, Bounds(rows=28, weights=4), 2, probabilities=sigmoid)
    assert re.search(r"39\.8 bits, where ring64 has 37\.8: it lacks 2 bits", said)


def test_an_engine_that_truncates_at_once_has_the_room_that_rows_are_held_to() -> None:
    model = nn.Linear(4, 2)
    bounds = Bounds(rows=512, weights=511)
    assert refused(model, bounds, 4, engine=CrypTen()) == ""
    said = refused(model, replace(bounds, weights=512), 4, engine=CrypTen())
    assert f"It may reach {LARGEST_OUTPUT:.3g}, an integer of 52.0 bits" in said
    assert "lacks 1 bit" in said
    # Sums count as what they are multiplied to next.
    small = Bounds(rows=2.0**-10, weights=1)
    assert refused(model, small, 4, batch=2**20) == ""
    said = refused(model, small, 4, batch=2**20, engine=CrypTen())
    assert "gradient of the bias (layer 'model')" in said


def test_of_frozen_weights_the_values_count() -> None:
    first = nn.Linear(3, 2)
    nn.init.constant_(first.weight, -5.0)
    nn.init.constant_(first.bias, 0.0)
    first.requires_grad_(False)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(2, 2))
    known = worst(model, Bounds(rows=2.0, weights=1.0), (3,))
    assert known["0", "product"].largest == 30.0
    assert ("0", "gradient of the weights") not in known


def test_an_engine_of_fewer_bits_refuses_what_another_one_has_room_for() -> None:
    nodes, bounds = translate(nn.Linear(4, 2)), Bounds(rows=8, weights=30)
    given = ((4,), 8, Descent(0.1 / 8, 0.0), softmax)
    # 8 x 30 x 4 and the bias are below 2^10, with 32 bits after the point below 2^42.
    check_worst_case(bounds, few_bits(), nodes, *given)
    wide = Bounds(rows=8, weights=40)
    check_worst_case(wide, Ring64(), nodes, *given)
    with pytest.raises(DataError, match=r"of 42.3 bits, where few bits has 42.0: it lacks 1"):
        check_worst_case(wide, few_bits(), nodes, *given)


def test_what_is_rounded_is_rounded_with_the_bits_of_the_engine() -> None:
    # One step of a gradient of 1: by how much the largest weight may exceed 0.1 + 1.
    nodes, bounds = translate(nn.Linear(1, 2, bias=False)), Bounds(rows=1, weights=0.1)
    excess = {}
    for engine in (Ring64(), few_bits()):
        found = by_name(worst_case(bounds, engine, nodes, (1,), 1, Descent(1.0, 0.0), softmax))
        (step,) = [each for each in found.values() if each.name == "weights after the step"]
        excess[engine.name] = step.largest
    # A truncation leaves 14 bits, not 16; a gradient is truncated here once, with the step.
    assert excess["few bits"] - excess["ring64"] == pytest.approx(2.0**-14 - 2.0**-16, rel=1e-6)
