"""What a session computes against float64, its rounds, and that nothing changed is ever read."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import TamperedShareError, UnsupportedError
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.session import Cut
from privtrain.mpc.sharing import encode, share
from privtrain.mpc.spdz2k import check as checking
from privtrain.mpc.spdz2k import session as sessions
from privtrain.mpc.spdz2k.engine import FINISHED, SPDZ2k
from privtrain.mpc.spdz2k.ring import payload
from privtrain.mpc.spdz2k.session import TRUNCATED_BITS, Spdz2kSession
from privtrain.mpc.spdz2k.wires import PartyWires
from tests.mpc.ring64.mesh import Change, Ran, run
from tests.mpc.spdz2k.programs import (
    OfTwo,
    X,
    Y,
    drawn,
    openings,
    shared,
    with_bits_above,
)
from tests.mpc.views import Seen, alarm

UNIT = 2.0**-TRUNCATED_BITS
RESULT = "result share"

Case = tuple[Callable[..., Any], Tensor, float, int]

# What is computed, its value, units in the last place it may be off, messages before it is opened.
CASES: dict[str, Case] = {
    "own": (lambda s, x, y: x, X, 0, 0),
    "add": (lambda s, x, y: x[:5, :3] + y, X[:5, :3] + Y, 0, 0),
    "sub": (lambda s, x, y: x[:5, :3] - y, X[:5, :3] - Y, 0, 0),
    "add public": (lambda s, x, y: x + 0.5 + torch.ones(5), X + 1.5, 0, 0),
    "sub from": (lambda s, x, y: 1 - x, 1 - X, 0, 0),
    "sum": (lambda s, x, y: x.sum(0, keepdim=True), X.sum(0, keepdim=True), 0, 0),
    "join": (lambda s, x, y: s.join([x, x], dim=1), torch.cat([X, X], 1), 0, 0),
    "join with a product": (
        lambda s, x, y: s.join([x.matmul(y), x[:, :3]], dim=0),
        torch.cat([X @ Y, X[:, :3]]),
        1,
        1,
    ),
    "reshape": (lambda s, x, y: x.reshape(5, 6)[1:, ::2], X.reshape(5, 6)[1:, ::2], 0, 0),
    "public": (lambda s, x, y: s.public(Y), Y, 0, 0),
    # Inputs are public under masks from the start: a product of them takes no message.
    "mul": (lambda s, x, y: x[:5, :3] * y, X[:5, :3] * Y, 1, 1),
    "mul broadcast": (lambda s, x, y: x[:5, :1] * y, X[:5, :1] * Y, 1, 1),
    "mul public": (lambda s, x, y: x * 2.5, X * 2.5, 1, 1),
    "mul whole": (lambda s, x, y: x * -3, X * -3, 0, 0),
    "mul bits": (lambda s, x, y: x * s.positive(x), X.clamp(min=0), 0, 2),
    "square": (lambda s, x, y: x.square(), X * X, 1, 1),
    "matmul": (lambda s, x, y: x.matmul(y), X @ Y, 1, 1),
    "matmul public": (lambda s, x, y: s.public(X).matmul(y), X @ Y, 1, 1),
    "matmul by public": (lambda s, x, y: x.matmul(s.public(Y)), X @ Y, 1, 1),
    "transposed": (lambda s, x, y: y.t().matmul(x.t()), (X @ Y).t(), 1, 1),
    "with biases": (
        lambda s, x, y: x.matmul(y) + y[0] + x[:, :1] + 0.25,
        X @ Y + Y[0] + X[:, :1] + 0.25,
        1,
        1,
    ),
    "three factors": (lambda s, x, y: x.matmul(y).matmul(y.t()), X @ Y @ Y.t(), 12, 3),
    "sum of a product": (lambda s, x, y: x.matmul(y).sum(0), (X @ Y).sum(0), 1, 1),
    "mean": (lambda s, x, y: x.mean(1), X.mean(1), 1, 1),
    "div": (lambda s, x, y: x.div(3), X / 3, 2, 1),
    "scale": (lambda s, x, y: s.scale(x, -0.003), X * -0.003, 1, 1),
    "scale by a whole number": (lambda s, x, y: s.scale(x, -6.0), X * -6, 0, 1),
    "scale by nothing": (lambda s, x, y: s.scale(x, 0), X * 0, 0, 0),
    "scale a product": (lambda s, x, y: s.scale(x.matmul(y), 0.03), X @ Y * 0.03, 2, 2),
    "scale several": (
        lambda s, x, y: x[:5, :3] - s.scale(x[:5, :3], 0.3) + s.scale(y, 0.1),
        X[:5, :3] * 0.7 + Y * 0.1,
        3,
        1,
    ),
    "scale beside a product": (
        lambda s, x, y: operator.mul(s.scale(x[:, :3], 0.3), x.matmul(y)),
        X[:, :3] * 0.3 * (X @ Y),
        60,
        3,
    ),
    "gt": (lambda s, x, y: x.gt(0.5), (X > 0.5).double(), 0, 2),
    "lt": (lambda s, x, y: x.lt(0.5), (X < 0.5).double(), 0, 2),
    "relu": (lambda s, x, y: s.relu(x)[0], X.clamp(min=0), 0, 1),
    "relu of a product": (lambda s, x, y: s.relu(x.matmul(y))[0], (X @ Y).clamp(min=0), 1, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_session_computes(name: str) -> None:
    function, expected, units, messages = CASES[name]
    ran = run(OfTwo(function), engine=SPDZ2k())
    result, other = (ran.payloads[f"computing-{rank}"]["result"] for rank in (0, 1))
    assert torch.equal(result, other)
    assert result.shape == expected.shape
    assert float((result - expected).abs().max()) <= units * UNIT
    assert openings(ran) == messages
    assert openings(ran, RESULT) == 1
    # Three rounds of a check before the result is opened, if anything was, and three after it.
    for kind in (checking.COIN, checking.COMMITMENT, checking.OPENING):
        assert openings(ran, kind) == (2 if messages else 1)
    assert openings(ran, checking.COIN_COMMITMENT) == 1
    # What the dealer opens are zeros, so nothing of a result reaches it.
    assert ran.payloads["dealer"] == {}
    assert {entry.kind for link in ran.links.values() for entry in link.entries} >= {"material"}
    assert {entry.kind for entry in heard_by_the_dealer(ran)} <= {
        "shapes",
        "public key",
        "material taken",
        FINISHED,
    }


def heard_by_the_dealer(ran: Ran) -> Sequence[Any]:
    return [
        entry for link in ran.links.values() for entry in link.entries if entry.receiver == "dealer"
    ]


@pytest.mark.parametrize("name", CASES)
def test_nothing_depends_on_what_is_opened_above_payloads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartyWires, "open", with_bits_above(PartyWires.open))
    function, expected, units, _ = CASES[name]
    result = run(OfTwo(function), engine=SPDZ2k()).payloads["computing-0"]["result"]
    assert float((result - expected).abs().max()) <= units * UNIT


KNOWN: dict[str, Case] = {
    "three factors": (lambda s, x, y: x.matmul(y).matmul(y.t()), X @ Y @ Y.t(), 12, 3),
    "scale a product": (lambda s, x, y: s.scale(x.matmul(y), 0.03), X @ Y * 0.03, 2, 2),
    "relu": (lambda s, x, y: s.relu(x)[0], X.clamp(min=0), 0, 1),
    "largest": (
        lambda s, x, y: s.largest(x),
        torch.nn.functional.one_hot(X.argmax(1), 5).double(),
        0,
        6,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_magnitudes_change_no_result(name: str) -> None:
    function, expected, units, messages = KNOWN[name]
    ran = run(OfTwo(function, largest=4.0), engine=SPDZ2k())
    result = ran.payloads["computing-1"]["result"]
    assert float((result - expected).abs().max()) <= units * UNIT
    assert openings(ran) <= messages


# Truncation.


@dataclass(frozen=True)
class Truncate:
    """Opens the quotients of integers that party 0 holds."""

    integers: Tensor
    drop: int
    factor: int = 1

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            held = self.integers if link_of(party).rank == 0 else None
            value = session.own(held, tuple(self.integers.shape), 0)
            (quotient,) = session.truncated([Cut(value, self.drop, self.factor)])
            (opened,) = session.wires.open([quotient.share], kind="quotient")
            session.wires.check()
            return {"quotient": payload(opened)}


def worst(integers: Tensor, drop: int, factor: int = 1) -> float:
    """How far a quotient lies below the one rounded down, or above the one rounded up."""
    ran = run(Truncate(integers, drop, factor), engine=SPDZ2k())
    found = ran.payloads["computing-0"]["quotient"]
    low = (integers * factor) >> drop
    return float(torch.maximum(found - low - 1, low - found).max())


def wide(count: int, bits: int) -> Tensor:
    drawn_words = Keystream(bytes([bits]) * 32).integers((count,))
    near = [(1 << bit) + step for bit in range(bits + 1) for step in (-1, 0, 1)]
    edges = torch.tensor([each for each in near if each < 1 << bits])
    return torch.cat([drawn_words >> (63 - bits), edges, -edges])


@pytest.mark.parametrize(
    ("bits", "drop", "factor"),
    [(42, 1, 1), (42, 12, 1), (42, 28, 1), (42, 41, 1), (26, 20, 40503), (26, 20, -40503)],
)
def test_no_truncation_goes_wrong_up_to_its_range(bits: int, drop: int, factor: int) -> None:
    assert worst(wide(20_000, bits), drop, factor) <= 0


def test_no_truncation_goes_wrong_whatever_is_above_payloads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PartyWires, "open", with_bits_above(PartyWires.open))
    assert worst(wide(20_000, 42), 14) <= 0


def test_values_beyond_the_range_are_seen_by_that_test() -> None:
    assert worst(torch.full((1000,), 2**42 + 2**41), 14) > 2**20


def test_rounding_is_unbiased() -> None:
    # A third of a unit is rounded up in a third of all cases: 5 standard deviations, 6e-7.
    count, low = 20_000, 5461
    ran = run(Truncate(torch.full((count,), low), 14), engine=SPDZ2k())
    expected = low / 2**14
    deviation = (expected * (1 - expected) / count) ** 0.5
    found = ran.payloads["computing-0"]["quotient"].double().mean()
    assert abs(float(found) - expected) < 5 * deviation


# Who reads.


@pytest.mark.parametrize("readers", [None, (), (0,), (1,), (0, 1), (1, 0), (1, 1)])
def test_those_who_read_have_the_result_and_nobody_else(readers: tuple[int, ...] | None) -> None:
    ran = run(OfTwo(lambda s, x, y: x * 2, readers=readers), engine=SPDZ2k())
    for rank in (0, 1):
        found = ran.payloads[f"computing-{rank}"]
        if readers is None or rank in readers:
            assert torch.equal(found["result"], X * 2)
        else:
            assert found == {}
    assert openings(ran, RESULT) == (0 if readers == () else 1)


CONSTANT = torch.full((4096,), 3.0).double()


def opened_words(readers: tuple[int, ...] | None) -> Tensor:
    """What the messages of a result, a constant times a constant, add up to."""
    program = OfTwo(lambda s, x, y: x * 3, CONSTANT, CONSTANT, readers=readers)
    ran = run(program, engine=SPDZ2k())
    messages = [
        message
        for name in ("computing-0", "computing-1")
        for kind, message in ran.links[name].sent
        if kind == RESULT
    ]
    return messages[0] + messages[1]


@pytest.mark.parametrize("reader", [0, 1])
def test_who_does_not_read_sees_uniform_words(reader: int) -> None:
    assert alarm({"opened": [Seen.of(opened_words((reader,)))]}) > 1e-9


def test_what_is_above_a_result_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def above() -> float:
        words = opened_words(None)
        assert set(payload(words).tolist()) == {int(9 * 2 ** SPDZ2k().row_bits)}
        return alarm({"above": [Seen.of(words >> 44 & 0xFFFFF, 20)]})

    assert above() > 1e-9
    monkeypatch.setattr(sessions, "scaled_up", torch.zeros_like)
    assert above() < 1e-9


# What was changed.


def flipped(kind: str, sender: str, *, number: int = 0, bit: int = 3) -> Change:
    """Flips a bit of the first word of a sender's message of a kind."""
    seen: list[None] = []

    def change(who: str, to: str, what: str, tensor: Tensor) -> Tensor:
        if (who, what) == (sender, kind):
            if len(seen) == number:
                tensor.view(-1)[0] ^= 1 << bit
            seen.append(None)
        return tensor

    return change


@dataclass
class Reads:
    """Keeps what party 0 reads of a rectifier of a product.

    Args:
        late: Whether the check comes after it.
    """

    read: list[Tensor]
    late: Callable[[PartyWires], None] | None = None

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            x, y = shared(session, party, X, 1), shared(session, party, Y, 0)
            result = session.relu(x.matmul(y))[0]
            (opened,) = session.reveal([result], kind=RESULT)
            if link_of(party).rank == 0:
                self.read.append(opened)
            if self.late and not session.deals:
                self.late(session.wires)  # type: ignore[arg-type]
        return {}


MESSAGES = [("masked input", 0), ("masked share", 0), ("masked share", 1), ("masked share", 2)]


@pytest.mark.parametrize("sender", ["computing-0", "computing-1"])
@pytest.mark.parametrize(("kind", "number"), [*MESSAGES, (RESULT, 0)])
def test_nothing_is_read_of_what_was_changed(kind: str, number: int, sender: str) -> None:
    sent: list[str] = []
    flip = flipped(kind, sender, number=number)

    def change(who: str, to: str, what: str, tensor: Tensor) -> Tensor:
        sent.append(what)
        return flip(who, to, what, tensor)

    program = Reads([])
    with pytest.raises(TamperedShareError, match="do not fit their MACs") as caught:
        run(program, engine=SPDZ2k(), change=change)
    assert program.read == []
    assert kind == "masked input" or kind in str(caught.value)
    # Before what was changed is found out, no share of a result leaves an honest party.
    assert (RESULT in sent) is (kind == RESULT)


def test_a_check_after_the_result_would_be_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    check = PartyWires.check
    monkeypatch.setattr(PartyWires, "check", lambda wires: None)
    program = Reads([], late=check)
    with pytest.raises(TamperedShareError):
        run(program, engine=SPDZ2k(), change=flipped("masked share", "computing-1", bit=30))
    assert float((program.read[0] - (X @ Y).clamp(min=0)).abs().max()) > 2**-10


def test_checks_come_in_between_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(s: Any, x: Any, y: Any) -> Any:
        for _ in range(6):
            x = x * s.positive(x)
        return x

    monkeypatch.setattr(checking, "MOST_PENDING", 2 * 3 * X.numel())
    ran = run(OfTwo(many), engine=SPDZ2k())
    assert torch.equal(ran.payloads["computing-0"]["result"], X.clamp(min=0))
    assert openings(ran, checking.COIN) > 4
    sent: list[str] = []
    flip = flipped("masked share", "computing-1")

    def change(who: str, to: str, what: str, tensor: Tensor) -> Tensor:
        sent.append(what)
        return flip(who, to, what, tensor)

    with pytest.raises(TamperedShareError, match="masked share"):
        run(OfTwo(many), engine=SPDZ2k(), change=change)
    assert sent.count("masked share") < 2 * openings(ran)


# Inputs, sessions and refusals.


@dataclass(frozen=True)
class Takes:
    """Opens a product of shares that were made beforehand."""

    shares: tuple[Tensor, Tensor]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            value = session.take(self.shares[link_of(party).rank % 2])
            return {"result": session.reveal([value.square()], kind=RESULT)[0]}


def test_shares_that_were_made_beforehand() -> None:
    one, other = share(encode(X, bits=SPDZ2k().row_bits), 2, Keystream())
    ran = run(Takes((one, other)), engine=SPDZ2k())
    assert float((ran.payloads["computing-1"]["result"] - X * X).abs().max()) <= UNIT


@dataclass(frozen=True)
class Sessions:
    """Three sessions one after the other; gives out this party's shares of keys as well."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        results, units = [], []
        for number in range(3):
            with SPDZ2k().open(party) as session:
                x = shared(session, party, X + number, 1)
                results += session.reveal([x.square()], kind=RESULT)
                units.append(session.wires.unit[1:])
        return {"results": torch.stack(results), "keys": torch.stack(units)}


def test_sessions_one_after_the_other_have_keys_of_their_own() -> None:
    ran = run(Sessions(), engine=SPDZ2k())
    one, other = (ran.payloads[f"computing-{rank}"] for rank in (0, 1))
    expected = torch.stack([(X + number).square() for number in range(3)])
    assert float((one["results"] - expected).abs().max()) <= UNIT
    keys = one["keys"] + other["keys"]
    assert len({tuple(row) for row in keys.tolist()}) == 3
    assert int(keys.min()) >= 0 and int(keys.max()) < 1 << 20
    # Neither party's share says anything of a key.
    assert all(int(payload["keys"].abs().min()) > 1 << 30 for payload in (one, other))


def test_keys_have_all_bits() -> None:
    payloads = [run(Sessions(), engine=SPDZ2k()).payloads for _ in range(4)]
    keys = torch.cat(
        [each["computing-0"]["keys"] + each["computing-1"]["keys"] for each in payloads]
    )
    bits = keys.view(-1, 1) >> torch.arange(20) & 1
    # Of 36 fair coins not all are alike, with a probability of 1 - 6e-10 for all bits.
    assert bool((bits.amin(0) == 0).all()) and bool((bits.amax(0) == 1).all())


REFUSED: dict[str, Callable[[Spdz2kSession, Any], Any]] = {
    "products of elements and of matrices alone": lambda s, x: s.bilinear(torch.matmul, x, x),
    "no sums over windows": lambda s, x: s.linear(lambda t: t, x),
    "keeps no shares beyond a run": lambda s, x: s.shares([x]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_left_out_is_refused_by_name(words: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"spdz2k .*{words}.*engine=pt.Ring64\(\)"):
        run(OfTwo(lambda s, x, y: REFUSED[words](s, x)), engine=SPDZ2k())


def test_an_owner_does_not_share_more_than_it_said() -> None:
    with pytest.raises(ValueError, match=r"up to .*, within largest=3"):
        run(OfTwo(lambda s, x, y: x, drawn(50, 2), largest=3.0), engine=SPDZ2k())


@pytest.mark.parametrize("readers", [(0, 5), (-1,), (2,)])
def test_readers_are_ranks_of_computing_parties(readers: tuple[int, ...]) -> None:
    program = OfTwo(lambda s, x, y: s.reveal([x], kind="result share", readers=readers))
    with pytest.raises(ValueError, match="readers="):
        run(program, engine=SPDZ2k())


def test_what_is_not_there_is_refused_by_name() -> None:
    for function, words in (
        (lambda s, x, y: x[0].matmul(y), "to be matrices"),
        (lambda s, x, y: s.own(None, (1,), 7), "owner=7"),
    ):
        with pytest.raises(ValueError, match=words):
            run(OfTwo(function), engine=SPDZ2k())


def test_a_product_over_nothing_is_zero() -> None:
    ran = run(OfTwo(lambda s, x, y: x[:, :0].matmul(y[:0])), engine=SPDZ2k())
    assert torch.equal(ran.payloads["computing-0"]["result"], torch.zeros(6, 3).double())
