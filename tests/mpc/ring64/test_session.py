"""Sums, products, truncation and opening against float64, with their rounds and bytes."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.convolution import Windows, conv2d, conv2d_inputs, conv2d_weight
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.session import Cut, Ring64Session
from privtrain.mpc.ring64.tensors import Ring64Tensor
from privtrain.mpc.sharing import decode, encode, reveal
from tests.mpc.ring64.mesh import run

UNIT = 2.0**-16


def uniform(*shape: int, seed: int = 0, scale: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = (torch.rand(shape, dtype=torch.float64, generator=generator) * 2 - 1) * scale
    # Numbers that fixed point holds exactly: what differs later is the engine's doing.
    return (values * 2**16).round() / 2**16


X, Y = uniform(6, 5), uniform(5, 3, seed=1)
IMAGES, KERNELS = uniform(2, 2, 6, 6, seed=2), uniform(3, 2, 3, 3, seed=3)
GRADIENT = uniform(2, 3, 3, 3, seed=4)
STRIDED: dict[str, Any] = {"windows": Windows((3, 3), (2, 2), (1, 1))}


def shared(session: Ring64Session, party: Party, values: Tensor, owner: int) -> Ring64Tensor:
    held = encode(values) if link_of(party).rank == owner else None
    return session.own(held, tuple(values.shape), owner)


@dataclass(frozen=True)
class Compute:
    """Opens what a function makes of a session and shares of X and Y."""

    function: Callable[[Ring64Session, Ring64Tensor, Ring64Tensor], Ring64Tensor]
    x: Tensor
    y: Tensor

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            x, y = shared(session, party, self.x, 1), shared(session, party, self.y, 0)
            result = self.function(session, x, y)
            return {"result": session.reveal([result], kind="result share")[0]}


Case = tuple[Callable[..., Ring64Tensor], Tensor, float, int]

# What is computed, its value, units in the last place it may be off, rounds before it is opened.
CASES: dict[str, Case] = {
    "add": (lambda s, x, y: x[:5, :3] + y, X[:5, :3] + Y, 0, 0),
    "sub": (lambda s, x, y: x[:5, :3] - y, X[:5, :3] - Y, 0, 0),
    "add public": (lambda s, x, y: x + 0.5 + torch.ones(5), X + 1.5, 0, 0),
    "sub from": (lambda s, x, y: 1 - x, 1 - X, 0, 0),
    "sum": (lambda s, x, y: x.sum(0, keepdim=True), X.sum(0, keepdim=True), 0, 0),
    "join": (lambda s, x, y: s.join([x, x], dim=1), torch.cat([X, X], 1), 0, 0),
    "join after opening": (
        lambda s, x, y: s.join([x.matmul(y), x[:, :3]], dim=0),
        torch.cat([X @ Y, X[:, :3]]),
        1,
        2,
    ),
    "mul": (lambda s, x, y: x[:5, :3] * y, X[:5, :3] * Y, 1, 2),
    "mul broadcast": (lambda s, x, y: x[:5, :1] * y, X[:5, :1] * Y, 1, 2),
    "mul public": (lambda s, x, y: x * 2.5, X * 2.5, 1, 1),
    "mul whole": (lambda s, x, y: x * -3, X * -3, 0, 0),
    "square": (lambda s, x, y: x.square(), X * X, 1, 2),
    "matmul": (lambda s, x, y: x.matmul(y), X @ Y, 1, 2),
    "matmul public": (lambda s, x, y: s.public(X).matmul(y), X @ Y, 1, 1),
    "transposed": (lambda s, x, y: y.t().matmul(x.t()), (X @ Y).t(), 1, 2),
    "with a bias": (lambda s, x, y: x.matmul(y) + y.sum(0), X @ Y + Y.sum(0), 1, 2),
    "three factors": (lambda s, x, y: x.matmul(y).matmul(y.t()), X @ Y @ Y.t(), 13, 4),
    "mean": (lambda s, x, y: x.mean(0), X.mean(0), 2, 1),
    "lt": (lambda s, x, y: x.lt(0.5), (X < 0.5).double(), 0, 3),
    "div": (lambda s, x, y: x.div(3), X / 3, 10, 1),
    "scale": (lambda s, x, y: s.scale(x, -0.003), X * -0.003, 2, 1),
    "scale a product": (lambda s, x, y: s.scale(x.matmul(y), 0.03), X @ Y * 0.03, 40, 3),
    # A gradient that is summed over a large batch: with its factor it must not wrap around.
    "scale a large product": (
        lambda s, x, y: s.scale((x * 0 + 1000).matmul(y * 0 + 1000), 1e-6 / 64),
        (X * 0 + 1000) @ (Y * 0 + 1000) * 1e-6 / 64,
        40,
        3,
    ),
    # One truncation does both: a power of two is a shift.
    "scale a product by a power of two": (
        lambda s, x, y: s.scale((x * 4000).matmul(y * 4000), -(2.0**-20)),
        X @ Y * -(4000**2 / 2**20),
        1,
        2,
    ),
    "scale by a whole number": (lambda s, x, y: s.scale(x, -6.0), X * -6, 0, 0),
    "scale twice": (lambda s, x, y: s.scale(s.scale(x, 0.3), 0.2), X * 0.06, 2, 2),
    "scale several": (
        lambda s, x, y: x[:5, :3] - s.scale(x[:5, :3], 0.3) + s.scale(y, 0.1),
        X[:5, :3] * 0.7 + Y * 0.1,
        6,
        1,
    ),
    # The truncation travels with what is opened for the product.
    "scale beside a product": (
        lambda s, x, y: operator.mul(s.scale(x[:, :3], 0.3), x.matmul(y)),
        X[:, :3] * 0.3 * (X @ Y),
        40,
        4,
    ),
    "scale by nothing": (lambda s, x, y: s.scale(x, 0), X * 0, 0, 0),
    "scale by much": (lambda s, x, y: s.scale(x, 100000), X * 100000, 0, 0),
    "linear": (lambda s, x, y: s.linear(lambda t: t.sum(1) * 2, x), X.sum(1) * 2, 0, 0),
    "reshape": (lambda s, x, y: x.reshape(5, 6)[1:, ::2], X.reshape(5, 6)[1:, ::2], 0, 0),
}


KNOWN: dict[str, Case] = {
    # X and Y are of at most four: a product of three factors needs no truncation before it.
    "three factors": (lambda s, x, y: x.matmul(y).matmul(y.t()), X @ Y @ Y.t(), 1, 3),
    "scale a product": (lambda s, x, y: s.scale(x.matmul(y), 0.03), X @ Y * 0.03, 2, 2),
    "scale a sum": (lambda s, x, y: s.scale(x.matmul(y).sum(0), 0.03), (X @ Y).sum(0) * 0.03, 2, 2),
    "join": (
        lambda s, x, y: s.scale(s.join([x.matmul(y), x[:, :3]], dim=0), 0.03),
        torch.cat([X @ Y, X[:, :3]]) * 0.03,
        2,
        2,
    ),
    "a factor that does not fit": (
        lambda s, x, y: s.scale(x.matmul(y).matmul(y.t()), 3.0**-20),
        X @ Y @ Y.t() * 3.0**-20,
        2,
        4,
    ),
    "windows of a sum": (
        lambda s, x, y: s.scale(s.linear(lambda t: t.sum(0) * 2**20, x.matmul(y)), 3 * 2.0**-22),
        (X @ Y).sum(0) * 0.75,
        40,
        3,
    ),
}


ONES = torch.ones(2000, 4, dtype=torch.float64)
TOP = 15.875 * torch.ones(8, 4, dtype=torch.float64)
WIDE: dict[str, tuple[Callable[..., Ring64Tensor], Tensor, Tensor, float]] = {
    "sum": (lambda s, x: (x.square() * x).sum(0), TOP, (TOP**3).sum(0), 2e-2),
    "mean": (lambda s, x: (x.square() * x).mean(0), ONES, ONES[0], 1e-3),
    "sum of a sigmoid": (
        lambda s, x: (x * 256 * s.sigmoid(x * 0 + 30.0)).sum(0),
        TOP,
        8 * 256 * TOP[0],
        4.0,
    ),
    "add": (lambda s, x: x.square() * x + x.square() * x, TOP, 2 * TOP**3, 1e-2),
    "add public": (lambda s, x: x.square() * x + 4000.0, TOP, TOP**3 + 4000, 1e-2),
    "lt": (lambda s, x: (x.square() * x).lt(4000.75), TOP, (TOP**3 < 4000.75).double(), 0),
    "times whole": (lambda s, x: x.square() * x * 100, TOP, TOP**3 * 100, 1.0),
    "times public": (lambda s, x: x.square() * x * 100.5, TOP, TOP**3 * 100.5, 1.0),
    "scale up": (lambda s, x: s.scale(x.square() * x, 2.0**16), TOP, TOP**3 * 2**16, 600.0),
    "join": (lambda s, x: s.join([x.square() * x, x], dim=0), TOP, torch.cat([TOP**3, TOP]), 1e-2),
    "linear": (lambda s, x: s.linear(lambda t: 512 * t, x.square() * x), TOP, 512 * TOP**3, 3.0),
    "five factors": (
        lambda s, x: x.square().square() * x,
        TOP / 16,
        (TOP / 16) ** 5,
        2e-4,
    ),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", WIDE)
def test_products_of_known_magnitude_do_not_wrap_in_what_follows(name: str, known: bool) -> None:
    function, values, expected, error = WIDE[name]
    largest = float(values.abs().max()) if known else None

    def bounded(session: Ring64Session, x: Ring64Tensor, y: Ring64Tensor) -> Ring64Tensor:
        return function(session, session.take(x.share, largest=largest))

    ran = run(Compute(bounded, values, Y))
    result = ran.payloads["computing-0"]["result"]
    assert float((result - expected).abs().max()) <= error


@pytest.mark.parametrize("name", KNOWN)
def test_known_magnitudes_save_truncations(name: str) -> None:
    function, expected, units, rounds = KNOWN[name]

    def bounded(session: Ring64Session, x: Ring64Tensor, y: Ring64Tensor) -> Ring64Tensor:
        return function(session, *(session.take(z.share, largest=4.0) for z in (x, y)))

    ran = run(Compute(bounded, X, Y))
    result = ran.payloads["computing-0"]["result"]
    assert float((result - expected).abs().max()) <= units * UNIT
    assert ran.rounds() == rounds


def test_an_owner_does_not_share_more_than_it_said() -> None:
    def more(session: Ring64Session, x: Ring64Tensor, y: Ring64Tensor) -> Ring64Tensor:
        return session.own(encode(X) if session.leader else None, tuple(X.shape), 0, largest=3.0)

    with pytest.raises(ValueError, match=r"up to 3\.\d+, within largest=3"):
        run(Compute(more, X, Y))


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_what_a_session_computes(name: str, parties: int) -> None:
    function, expected, units, rounds = CASES[name]
    ran = run(Compute(function, X, Y), parties)
    results = [ran.payloads[f"computing-{rank}"]["result"] for rank in range(parties)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].shape == expected.shape
    assert float((results[0] - expected).abs().max()) <= units * UNIT
    assert ran.rounds() == rounds
    assert ran.rounds("result share") == 1
    # What the dealer opens are zeros, so nothing of a result reaches it.
    assert ran.payloads["dealer"] == {}
    assert not any(entry.sender == "dealer" for entry in ran.entries("masked share"))
    assert not any(entry.receiver == "dealer" for entry in ran.entries("masked share"))


@pytest.mark.parametrize(
    ("function", "x", "y"),
    [
        (partial(conv2d, **STRIDED), IMAGES, KERNELS),
        (partial(conv2d_inputs, shape=IMAGES.shape, **STRIDED), GRADIENT, KERNELS),
        (partial(conv2d_weight, **STRIDED), IMAGES, GRADIENT),
    ],
    ids=["forward", "inputs", "weight"],
)
def test_convolutions_on_shares(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> None:
    ran = run(Compute(lambda s, left, right: s.bilinear(function, left, right), x, y), 3)
    result = ran.payloads["computing-0"]["result"]
    assert float((result - function(x, y)).abs().max()) <= UNIT
    assert ran.rounds() == 2


def test_bytes_are_those_of_the_opened_values() -> None:
    ran = run(Compute(lambda s, x, y: x.matmul(y), X, Y))
    # Both factors under their masks, then the product under its mask.
    for sender in ("computing-0", "computing-1"):
        assert ran.bytes(sender=sender) == 8 * (X.numel() + Y.numel() + 18)
    # A product of masks, a shifted mask, and the top bit of it modulo 2^16; all sealed once.
    assert ran.bytes("material", "dealer") == 18 * (8 + 8 + 2) + 4 + 16


def test_inputs_and_weights_are_opened_once() -> None:
    def forward_and_backward(session: Ring64Session, x: Any, w: Any) -> Ring64Tensor:
        total = None
        for rows in (slice(0, 3), slice(3, 6)):
            batch = x[torch.arange(6)[rows]]
            outputs = batch.matmul(w)
            gradient = batch.t().matmul(outputs)
            back = outputs.matmul(w.t()).t()
            total = gradient + back.matmul(outputs) if total is None else total + gradient
        assert total is not None
        return total

    ran = run(Compute(forward_and_backward, X, Y))
    sizes = [entry.shape for entry in ran.entries("masked share") if entry.sender == "computing-0"]
    # X and w; twice the truncated outputs of a batch and what they are opened as; a product.
    outputs, back = 9, 15
    expected = X.numel() + Y.numel() + 4 * outputs + 2 * back + 15
    assert sum(shape[0] for shape in sizes) == expected


@dataclass(frozen=True)
class Truncate:
    """Truncates shares of known integers, and opens shares of the quotients."""

    integers: Tensor
    drop: int = 16
    factor: int = 1

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            owner = link_of(party).rank == 0
            held = self.integers if owner else None
            value = session.own(held, tuple(self.integers.shape), 0)
            cut = Cut(value, self.drop, self.factor)
            (quotient,) = session.truncated([cut])
            return {"quotient": session.wires.open([quotient.share], kind="quotient")[0]}


def worst(integers: Tensor, parties: int, drop: int = 16, factor: int = 1) -> float:
    found = run(Truncate(integers, drop, factor), parties).payloads["computing-0"]["quotient"]
    low = (integers * factor) >> drop
    return float(torch.maximum(found - low - 1, low - found).max())


def wide(count: int, bits: int, seed: int = 0) -> Tensor:
    drawn = Keystream(bytes([seed]) * 32).integers((count,))
    edges = torch.tensor([0, 1, -1, 2**bits - 1, 1 - 2**bits, 2**16, -(2**16)])
    return torch.cat([drawn >> (63 - bits), edges])


@pytest.mark.parametrize("parties", [2, 3, 5])
@pytest.mark.parametrize("bits", [45, 61])
def test_no_truncation_goes_wrong(parties: int, bits: int) -> None:
    assert worst(wide(200_000, bits), parties) <= 0


@pytest.mark.parametrize(("drop", "factor"), [(1, 1), (30, 1), (28, 40503), (28, -40503)])
def test_a_truncation_may_scale_as_well(drop: int, factor: int) -> None:
    assert worst(wide(10_000, 45), 2, drop, factor) <= 0


def test_values_beyond_half_the_ring_are_seen_by_that_test() -> None:
    assert worst(torch.full((1000,), 2**62 + 2**61), 2) > 2**40


def test_rounding_is_unbiased() -> None:
    # A third of a unit is rounded up in a third of all cases: 1e-4 is 3.9 standard deviations.
    count, low = 90_000, 21845
    found = run(Truncate(torch.full((count,), low))).payloads["computing-0"]["quotient"]
    expected, deviation = low / 2**16, (low / 2**16 * (1 - low / 2**16) / count) ** 0.5
    assert abs(float(found.double().mean()) - expected) < 3.9 * deviation


@pytest.mark.slow
def test_not_one_truncation_in_ten_million_goes_wrong() -> None:
    for seed in range(10):
        assert worst(wide(1_000_000, 45, seed), 2) <= 0


def test_an_owner_brings_what_it_announced() -> None:
    @dataclass(frozen=True)
    class Wrong:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            with Ring64().open(party) as session:
                session.own(torch.zeros(3, dtype=torch.int64), (4,), link_of(party).rank)
            return {}

    with pytest.raises(ValueError, match="integers of shape"):
        run(Wrong())


@dataclass(frozen=True)
class SharesKept:
    """Gives out this party's shares of a product, as they are kept."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            x, y = shared(session, party, X, 1), shared(session, party, Y, 0)
            return {"share": session.shares([x.matmul(y)])[0]}


@pytest.mark.parametrize("count", [2, 3])
def test_shares_that_are_kept_add_up_to_the_value_in_fixed_point(count: int) -> None:
    ran = run(SharesKept(), count)
    parts = [ran.payloads[f"computing-{rank}"]["share"] for rank in range(count)]
    # A product has twice the bits until it is truncated, which keeping it asks for.
    assert float((decode(reveal(parts)) - X @ Y).abs().max()) <= UNIT
    assert all(float(decode(part).abs().max()) > 2**20 for part in parts)
