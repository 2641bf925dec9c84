"""Shares and openings: the sums are right, and each message alone is uniform."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64 import wires
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.wires import narrowed, widened
from privtrain.mpc.sharing import encode
from tests.mpc.ring64.mesh import Ran, run

COUNT = 4000

# Chi-square of 255 degrees of freedom: beyond it with probability 1e-7, once in 1e5 runs of the
# eight bytes of ten messages.
LIMIT = 388


def statistic(octets: Tensor) -> float:
    """Chi-square of bytes against the uniform distribution; uint8."""
    expected = len(octets) / 256
    counts = torch.bincount(octets.long(), minlength=256).double()
    return float(((counts - expected) ** 2).sum()) / expected


def worst(integers: Tensor) -> float:
    """The largest statistic of the eight bytes of integers."""
    places = integers.reshape(-1, 1).contiguous().view(torch.uint8)
    return max(statistic(places[:, place]) for place in range(8))


@dataclass(frozen=True)
class Everything:
    """Primitives on values that are all the same, as real data often are; returns own shares."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            held = torch.full((COUNT,), 3 << 16) if link_of(party).rank == 0 else None
            x = session.own(held, (COUNT,), 0)
            product = x * x
            (narrow,) = session.settled([product])
            mask = session.random((COUNT,))
            zero = session.dealt(lambda: torch.zeros(COUNT, dtype=torch.int64), (COUNT,))
            narrow_zero = session.dealt(lambda: torch.full((COUNT,), 5), (COUNT,), bits=16)
            octets = session.dealt_bytes(
                lambda: torch.full((COUNT,), 7, dtype=torch.uint8), (COUNT,)
            )
            # Both kinds in one message.
            opened = session.open([mask, octets, zero])
            return {
                "input": x.share,
                "product": product.share,
                "truncated": narrow.share,
                "mask": mask,
                "zero": zero,
                "narrow zero": narrow_zero,
                "bytes": octets,
                "opened mask": opened[0],
                "opened bytes": opened[1],
                "opened zero": opened[2],
            }


@pytest.fixture(scope="module", params=[2, 3, 5])
def ran(request: pytest.FixtureRequest) -> Ran:
    return run(Everything(), request.param)


def shares_of(ran: Ran, name: str) -> list[Tensor]:
    return [payload[name] for payload in ran.payloads.values() if payload]


def test_shares_add_up(ran: Ran) -> None:
    for name, value in (("input", 3 << 16), ("zero", 0), ("product", 9 << 32)):
        assert sum(shares_of(ran, name)).unique().tolist() == [value]  # type: ignore[union-attr]
    truncated = sum(shares_of(ran, "truncated"))
    assert set(truncated.unique().tolist()) <= {9 << 16, (9 << 16) + 1}  # type: ignore[union-attr]
    narrow = shares_of(ran, "narrow zero")
    assert (sum(narrow) % 2**16).unique().tolist() == [5]  # type: ignore[union-attr]
    assert all(int(share.min()) >= 0 and int(share.max()) < 2**16 for share in narrow)


def test_openings_are_what_shares_add_up_to(ran: Ran) -> None:
    for payload in ran.payloads.values():
        if payload:
            assert torch.equal(payload["opened mask"], sum(shares_of(ran, "mask")))
            assert payload["opened bytes"].unique().tolist() == [7]
            assert not payload["opened zero"].any()


def test_each_share_alone_is_uniform(ran: Ran) -> None:
    for name in ("input", "product", "truncated", "mask", "zero"):
        for share in shares_of(ran, name):
            assert worst(share) < LIMIT, name
    for share in shares_of(ran, "bytes"):
        assert statistic(share) < LIMIT


def test_each_message_and_each_opened_value_is_uniform(ran: Ran) -> None:
    links = [link for name, link in ran.links.items() if name != "dealer"]
    sent = [[tensor for kind, tensor in link.sent if kind == "masked share"] for link in links]
    per_opening = len(links) - 1
    for number in range(2):
        messages = [messages[number * per_opening] for messages in sent]
        assert all(worst(message) < LIMIT for message in messages)
        assert worst(torch.stack(messages).sum(0)) < LIMIT


def test_masks_of_40_bits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Keystream):
        def integers(self, shape: Sequence[int]) -> Tensor:
            return super().integers(shape) & (2**40 - 1)

    monkeypatch.setattr("privtrain.mpc.ring64.streamed.Keystream", Short)
    short = run(Everything(), 2)
    masked = [
        [tensor for kind, tensor in short.links[name].sent if kind == "masked share"]
        for name in ("computing-0", "computing-1")
    ]
    assert worst(masked[0][0] + masked[1][0]) > LIMIT


def test_streams_of_parties_and_sessions_differ() -> None:
    first, second = run(Everything(), 3), run(Everything(), 3)
    masks = [*shares_of(first, "mask"), *shares_of(second, "mask")]
    assert len({int(mask[0]) for mask in masks}) == len(masks)


@dataclass(frozen=True)
class Exchange:
    """Each party shares a value; returns own shares of all."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            shares = {}
            for owner in range(len(link_of(party).names) - 1):
                held = torch.zeros(3).long() if link_of(party).rank == owner else None
                shares[str(owner)] = session.own(held, (3,), owner).share
        return shares


def test_each_pair_has_a_stream_for_each_direction() -> None:
    ran = run(Exchange(), 3)
    drawn = {
        (rank, owner): int(ran.payloads[f"computing-{rank}"][str(owner)][0])
        for rank in range(3)
        for owner in range(3)
    }
    assert len(set(drawn.values())) == 9
    for owner in range(3):
        assert sum(drawn[rank, owner] for rank in range(3)) % 2**64 == 0


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_narrow_integers_come_back(width: int) -> None:
    integers = Keystream(bytes(32)).integers((50,)) & ((1 << 8 * width) - 1)
    octets = narrowed(integers, width)
    assert octets.shape == (50 * width,)
    assert torch.equal(widened(octets, width), integers)


@dataclass(frozen=True)
class Unequal:
    """Opens more values at one party than at the others."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with Ring64().open(party) as session:
            session.open([session.random((2 + link_of(party).rank,))])
        return {}


def test_openings_of_other_shapes_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"computing-\d opened \(\d,\)"):
        run(Unequal())


def test_a_value_is_dealt_in_its_shape() -> None:
    @dataclass(frozen=True)
    class Wrong:
        def __call__(self, inputs: Payload, party: Party) -> Payload:
            with Ring64().open(party) as session:
                session.dealt(lambda: encode(torch.zeros(3)), (4,))
            return {}

    with pytest.raises(ValueError, match=r"\(3,\) to be dealt as shape=\(4,\)"):
        run(Wrong())


def test_the_kind_of_openings_is_in_the_transcript(ran: Ran) -> None:
    kinds = {entry.kind for link in ran.links.values() for entry in link.entries}
    expected = {wires.MASKED, "material", "material taken", "public key", "shapes"}
    assert kinds == expected
