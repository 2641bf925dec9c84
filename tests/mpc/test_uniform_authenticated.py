"""What a computing party of spdz2k sees is uniform, whatever the values: as `test_uniform`.

Shares, MAC shares, keys of comparisons, tags, messages, masked values and bits, and what is opened
above a result. Commitments are hashes and coins are drawn for each check: both are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.layers import translate
from privtrain.mpc.proofs import prove
from privtrain.mpc.ring64.wires import MASKED
from privtrain.mpc.sharing import encode, share
from privtrain.mpc.spdz2k import check, wires
from privtrain.mpc.spdz2k.engine import FINISHED, SPDZ2k
from privtrain.mpc.spdz2k.forms import Form
from privtrain.mpc.spdz2k.inputs import PROOF, SEEDS
from privtrain.mpc.spdz2k.ring import PAYLOAD_BITS
from tests.mpc.models import drawn, made
from tests.mpc.ring64.mesh import Ran, run
from tests.mpc.ring64.test_session import shared
from tests.mpc.spdz2k.views import Watched
from tests.mpc.test_uniform import (
    ALARM,
    COUNT,
    OPERATIONS,
    STEPS,
    VALUES,
    WEAK_MASKS,
    Once,
    Operation,
    Steps,
    Weaken,
)
from tests.mpc.views import Seen, Views, alarm, pooled

# Seeds of proofs are drawn by data parties; both computing parties read them, as they read coins.
HASHES = {check.COIN_COMMITMENT, check.COIN, check.COMMITMENT, check.OPENING}


def fresh(value: Any) -> Any:
    """The same, not opened yet, as inputs are from the start."""
    return value.derived(value.share)


def computed(operation: Operation) -> Operation:
    """Without results that are inputs, of which an owner's share is its own value."""
    return lambda s, x, y: [each for each in operation(s, x, y) if not each.whole]


AUTHENTICATED: dict[str, tuple[Operation, tuple[int, ...], tuple[int, ...]]] = {
    **{
        name: (computed(operation), left, right)
        for name, (operation, left, right) in OPERATIONS.items()
        if name not in ("bilinear", "own")
    },
    # Values that are opened under new masks, as neither is an input.
    "mul": (lambda s, x, y: [fresh(x) * fresh(y)], (COUNT,), (COUNT,)),
    "matmul": (lambda s, x, y: [fresh(x).matmul(fresh(y))], (64, 64), (64, 64)),
    "mul of inputs": (lambda s, x, y: [x * y], (COUNT,), (COUNT,)),
    "maximum": (lambda s, x, y: [s.maximum(x)], (COUNT // 4, 4), (COUNT,)),
}


def of_one(operation: str, values: str) -> tuple[Ran, Views]:
    function, *shapes = AUTHENTICATED[operation]
    engine = Watched()
    x, y = (VALUES[values](shape) for shape in shapes)
    return run(Once(engine, function, x, y), engine=engine), engine.views


def check_complete(ran: Ran, views: Views) -> None:
    """That computing parties send nothing beside what is in views, but hashes, coins, shapes, keys
    and receipts."""
    shown = {MASKED, wires.INPUT, PROOF, "result share"}
    for name in ("computing-0", "computing-1"):
        link = ran.links[name]
        beside = {kind for kind, _ in link.sent} - shown
        assert beside <= {"shapes", "public key", "material taken", FINISHED, SEEDS, *HASHES}
        assert beside >= HASHES
        sent = sum(entry.bytes for entry in link.entries if entry.kind in shown)
        kept = [views[f"{what} of {name}"] for what in ("message", "proof", "result share")]
        assert sent == sum(8 * len(each.words) for seen in kept for each in seen)


@pytest.mark.parametrize(
    ("operation", "values"),
    [
        *((operation, "constant") for operation in AUTHENTICATED),
        *product(("mul", "scale", "relu", "sigmoid"), ("extreme", "random")),
    ],
)
def test_operations(operation: str, values: str) -> None:
    ran, views = of_one(operation, values)
    assert alarm(views) > ALARM
    check_complete(ran, views)


@dataclass(frozen=True)
class PutsIn:
    """Opens the square of a value that a data party shared, with a proof."""

    engine: Watched
    shares: Sequence[Tensor]
    proofs: Sequence[Tensor]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with self.engine.open(party) as session:
            rank = link_of(party).rank if not session.deals else 0
            (x,) = session.take_all([self.shares[rank]], proofs=[self.proofs[rank]])
            (opened,) = session.reveal([x.square()], kind="result share")
        return {"0": opened.reshape(-1)}


def test_what_data_parties_shared() -> None:
    x = encode(VALUES["constant"]((64, 64)))
    engine = Watched()
    program = PutsIn(engine, share(x, 2, Keystream()), prove(x, Keystream()))
    ran = run(program, engine=engine)
    check_right(ran)
    assert alarm(engine.views) > ALARM
    check_complete(ran, engine.views)
    kinds = {kind for kind, _ in ran.links["computing-1"].sent}
    assert {PROOF, SEEDS} <= kinds


@pytest.mark.parametrize("name", ["logistic", "MLP"])
def test_steps_of_training(name: str) -> None:
    make, shape, outputs, probabilities = STEPS[name]
    rows, labels = drawn(8, *shape), torch.arange(8) % max(outputs, 2)
    rows[4:] = 0
    targets = nn.functional.one_hot(labels).double()[:, :outputs]
    engine, repeats = Watched(), 16
    nodes = translate(made(make))
    ran = run(Steps(engine, nodes, rows, targets, probabilities, repeats), engine=engine)
    views = pooled(engine.views, repeats)
    shares = {what: views.pop(what) for what in list(views) if what.startswith("share at")}
    for what in ("result share of computing-0", "result share of computing-1"):
        # Weights have two bits more than their steps, which are therefore public.
        views[what] = [Seen(words >> 2, bits - 2) for words, bits in views[what]]
    assert alarm(views) > ALARM
    assert alarm(shares, pairs=False) > ALARM
    check_complete(ran, engine.views)


# Power, as for ring64: each twin below computes the right result.


def check_right(ran: Ran, *, largest: float = 9.0, error: float = 2**-13) -> None:
    found = ran.payloads["computing-0"]["0"]
    torch.testing.assert_close(found, torch.full((COUNT,), largest).double(), rtol=0, atol=error)


@pytest.mark.parametrize(
    ("weaken", "operation"),
    [
        *((weaken, "mul") for weaken in WEAK_MASKS.values()),
        # The mask of a truncation that covers the payload alone.
        (lambda stream, shape: stream.integers(shape) & (1 << PAYLOAD_BITS) - 1, "mul of inputs"),
    ],
    ids=[*WEAK_MASKS, "no top bits"],
)
def test_a_weak_mask_is_seen_in_what_is_opened(
    weaken: Weaken, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def masked(own: wires.PartyWires, shape: Sequence[int]) -> Form:
        # Party 0 draws it alone: what the other adds would hide how weak it is.
        leads = own.link.rank == 0
        mask = weaken(own.stream, shape) if leads else torch.zeros(tuple(shape)).long()
        return Form(torch.cat([mask.unsqueeze(0), own._rest(own.strength.keys, *shape)]), own.unit)

    def dealt(dealer: wires.DealerWires, shape: Sequence[int]) -> Form:
        mask = weaken(dealer.streams[0], shape)
        dealer._deal(dealer._macs(mask))
        return Form(mask.unsqueeze(0), dealer.unit)

    monkeypatch.setattr(wires.PartyWires, "random", masked)
    monkeypatch.setattr(wires.DealerWires, "random", dealt)
    ran, views = of_one(operation, "constant")
    check_right(ran)
    assert alarm({"opened": views["opened values"]}) < ALARM


def without_own_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(own: wires.PartyWires, shape: Sequence[int], owner: int) -> Form:
        zeros = torch.zeros((1, *shape)).long()
        return Form(torch.cat([zeros, own._rest(own.strength.keys, *shape)]), own.unit)

    def dealt(dealer: wires.DealerWires, shape: Sequence[int], owner: int) -> Form:
        zeros = torch.zeros(tuple(shape)).long()
        dealer._deal(dealer._macs(zeros))
        return Form(zeros.unsqueeze(0), dealer.unit)

    monkeypatch.setattr(wires.PartyWires, "known", known)
    monkeypatch.setattr(wires.DealerWires, "known", dealt)


def test_an_input_without_its_mask_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    without_own_masks(monkeypatch)
    ran, views = of_one("mul", "constant")
    check_right(ran)
    for name in ("computing-0", "computing-1"):
        assert alarm({"message": views[f"message of {name}"]}) < ALARM


@pytest.mark.parametrize("covered", [0, 1])
def test_dealt_words_without_a_mask_are_seen(covered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and MACs, and MACs alone."""

    def at_party(own: wires.PartyWires, compute: object, shape: Sequence[int]) -> Form:
        rows = (1 + own.strength.keys, *shape)
        if own.link.rank == 1:
            return Form(own._rest(*rows), own.unit)
        words = torch.zeros(rows).long()
        words[:covered] = own.stream.integers((covered, *shape))
        return Form(words, own.unit)

    def at_dealer(
        dealer: wires.DealerWires, compute: Callable[[], Tensor], shape: Sequence[int]
    ) -> Form:
        value = compute()
        words = torch.cat([value.unsqueeze(0), dealer._macs(value)])
        words[:covered] -= dealer.streams[0].integers((covered, *shape))
        dealer.materials[1].put(words)
        return Form(value.unsqueeze(0), dealer.unit)

    monkeypatch.setattr(wires.PartyWires, "dealt", at_party)
    monkeypatch.setattr(wires.DealerWires, "dealt", at_dealer)
    ran, views = of_one("mul", "constant")
    check_right(ran)
    for name in ("computing-0", "computing-1"):
        assert alarm({"share": views[f"share at {name}"]}) < ALARM
    assert alarm({"material": views["material at computing-1"]}) < ALARM


def test_bits_that_are_opened_without_their_coins_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        wires.DealerWires, "coins", lambda self, shape: torch.zeros(tuple(shape)).long()
    )
    ran, views = of_one("maximum", "constant")
    assert set(ran.payloads["computing-0"]["0"].tolist()) == {3.0}
    assert alarm({"bits": views["opened bits"]}) < ALARM
    assert alarm({"values": views["opened values"]}) > ALARM


def test_keys_of_comparisons_without_their_masks_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "privtrain.mpc.spdz2k.dcf._hash",
        lambda cipher, places, room: np.zeros(places.shape, np.uint64),
    )
    ran, views = of_one("relu", "constant")
    check_right(ran, largest=3.0)
    for name in ("computing-0", "computing-1"):
        assert alarm({"keys": views[f"material at {name}"]}) < ALARM
        assert alarm({"tags": views[f"tags at {name}"]}) < ALARM


def test_what_is_above_a_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privtrain.mpc.spdz2k.session.scaled_up", lambda words: words * 0)
    ran, views = of_one("mul", "constant")
    check_right(ran)
    assert alarm({"above": views["above results"]}) < ALARM
    assert alarm({"opened": views["opened values"]}) > ALARM


@dataclass(frozen=True)
class ToOne:
    """Opens a value of party 0 to party 1 alone."""

    x: Tensor

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            x = shared(session, party, self.x, 0)
            opened = session.reveal([x * 2], kind="result share", readers=(1,))
        return {str(number): value for number, value in enumerate(opened)}


@pytest.mark.parametrize("masks", [True, False])
def test_what_one_party_reads_is_uniform_at_the_other(
    masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not masks:
        without_own_masks(monkeypatch)
    ran = run(ToOne(VALUES["constant"]((COUNT,))), engine=SPDZ2k())
    assert set(ran.payloads["computing-1"]["0"].tolist()) == {6.0}
    assert not ran.payloads["computing-0"]
    first, second = (
        next(tensor for kind, tensor in ran.links[name].sent if kind == "result share")
        for name in ("computing-0", "computing-1")
    )
    assert (alarm({"opened": [Seen.of(first + second)]}) > ALARM) == masks
