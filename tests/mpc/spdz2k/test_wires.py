"""Dealt values, bits and openings: sums are right, MACs are those of the keys, nothing repeats."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError, TamperedShareError
from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.spdz2k.engine import SPDZ2k
from privtrain.mpc.spdz2k.session import Spdz2kSession
from privtrain.mpc.spdz2k.wires import _packed, _unpacked
from tests.mpc.ring64.mesh import Ran, run
from tests.mpc.spdz2k.programs import openings
from tests.mpc.views import Seen, alarm

COUNT = 400
SECRET = 5
BITS = 20


@dataclass(frozen=True)
class Everything:
    """Primitives on values that are all the same, as real data often are; gives out own words."""

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            wires = session.wires
            held = torch.full((COUNT,), 3) if link_of(party).rank == 0 else None
            masked, of_input = wires.own(held, (COUNT,), 0)
            known = wires.known((COUNT,), 1)
            mask = wires.random((COUNT,))
            value = wires.dealt(lambda: torch.full((COUNT,), SECRET), (COUNT,))
            points, zeros = torch.arange(COUNT), torch.zeros(COUNT).long()
            # Whether a public number is below 100; flipped where it is odd, by the dealer alone.
            tags = wires.below(BITS, points, zeros + 100, points & 1, zeros)
            flipped = wires.below(BITS, points, zeros + 100, zeros, zeros + 1)
            opened = wires.open([tags, value, flipped, mask[:7]])
            wires.check()
            return {
                "unit": wires.unit,
                "input": of_input.words,
                "known": known.words,
                "mask": mask.words,
                "value": value.words,
                "tags": torch.from_numpy(tags.view(np.int64)),
                "flipped": torch.from_numpy(flipped.view(np.int64)),
                "masked": masked,
                **{f"opened {number}": each for number, each in enumerate(opened)},
            }


@pytest.fixture(scope="module")
def ran() -> Ran:
    return run(Everything(), engine=SPDZ2k())


def parts(ran: Ran, name: str) -> tuple[Tensor, Tensor]:
    return ran.payloads["computing-0"][name], ran.payloads["computing-1"][name]


def total(ran: Ran, name: str) -> Tensor:
    one, other = parts(ran, name)
    return one + other


@pytest.mark.parametrize("name", ["input", "known", "mask", "value"])
def test_macs_are_the_keys_times_the_value(ran: Ran, name: str) -> None:
    keys, words = total(ran, "unit")[1:], total(ran, name)
    assert words.shape == (4, COUNT)
    assert torch.equal(words[1:], keys.unsqueeze(1) * words[0])
    assert int(keys.min()) >= 0 and int(keys.max()) < 1 << 20 and len(set(keys.tolist())) > 1


def test_values_and_masks_are_who_s_they_are(ran: Ran) -> None:
    assert set(total(ran, "value")[0].tolist()) == {SECRET}
    assert total(ran, "unit")[0] == 1
    # The owner knows all of its mask, but not the MACs of it.
    assert not parts(ran, "input")[1][0].any() and not parts(ran, "known")[0][0].any()
    for name in ("input", "known"):
        assert all(part[1:].abs().min() > 0 for part in parts(ran, name))
    assert torch.equal(parts(ran, "masked")[1] - total(ran, "input")[0], torch.full((COUNT,), 3))


def test_tags_are_one_odd_key_times_each_bit(ran: Ran) -> None:
    points = torch.arange(COUNT)
    for name, bits in (("tags", (points < 100) ^ (points & 1).bool()), ("flipped", points >= 100)):
        one, other = parts(ran, name)
        words = one ^ other
        keys = set(words[bits].tolist())
        assert len(keys) == 1 and keys.pop() & 1
        assert not words[~bits].any()


def test_openings_are_in_the_order_of_their_shares(ran: Ran) -> None:
    points = torch.arange(COUNT)
    for payload in (ran.payloads["computing-0"], ran.payloads["computing-1"]):
        assert torch.equal(payload["opened 0"], (points < 100).long() ^ (points & 1))
        assert set(payload["opened 1"].tolist()) == {SECRET}
        assert torch.equal(payload["opened 2"], (points >= 100).long())
        assert torch.equal(payload["opened 3"], total(ran, "mask")[0, :7])
    # One message for all of it: values, then bits, 64 in a word.
    assert openings(ran) == 1
    assert ran.bytes() == 8 * (COUNT + 7 + -(-2 * COUNT // 64))


def test_shares_are_uniform(ran: Ran) -> None:
    views = {
        f"{name} {rank}": [Seen.of(part.reshape(-1))]
        for name in ("mask", "value", "tags", "flipped")
        for rank, part in enumerate(parts(ran, name))
    }
    assert alarm(views) > 1e-9


def test_no_two_sessions_have_a_key_or_a_mask_in_common(ran: Ran) -> None:
    again = run(Everything(), engine=SPDZ2k())
    assert not torch.equal(total(ran, "unit"), total(again, "unit"))
    for name in ("mask", "known", "tags"):
        for one, other in zip(parts(ran, name), parts(again, name), strict=True):
            # A party that does not know a mask holds zeros.
            same = (one == other) & (one != 0)
            assert not same.any()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_bits_come_back_from_words(count: int) -> None:
    words = Keystream(bytes(32)).integers((count,))
    packed = _packed(words.numpy().view(np.uint64))
    assert packed.shape == (-(-count // 64),)
    assert torch.equal(_unpacked(packed, count), words & 1)


@dataclass(frozen=True)
class Runs:
    """Runs a function of a session and a rank."""

    function: Callable[[Spdz2kSession, int], Any]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        with SPDZ2k().open(party) as session:
            self.function(session, link_of(party).rank)
        return {}


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Spdz2kSession, int], Any]]] = {
    "other shapes": (
        TamperedShareError,
        r"'masked share' of computing-\d to be \(\d,\)",
        lambda s, rank: s.wires.open([s.wires.random((3,))[: 2 + rank % 2]]),
    ),
    "a value of another shape": (
        ValueError,
        r"\(3,\) to be dealt as shape=\(4,\)",
        lambda s, rank: s.wires.dealt(lambda: torch.zeros(3).long(), (4,)),
    ),
    "an owner of something else": (
        ValueError,
        r"integers of shape \(4,\)",
        lambda s, rank: s.wires.own(torch.zeros(3).long(), (4,), 0),
    ),
    "material that nobody takes": (
        ProtocolError,
        "bytes of material of dealer were not used",
        lambda s, rank: s.wires.random((3,)) if s.deals else None,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_roles_of_other_programs_are_refused(name: str) -> None:
    kind, words, function = REFUSED[name]
    with pytest.raises(kind, match=words):
        run(Runs(function), engine=SPDZ2k())


def test_a_bit_that_is_flipped_on_its_way_is_caught_by_its_tag_at_both_parties() -> None:
    def flip(sender: str, to: str, kind: str, tensor: Tensor) -> Tensor:
        if (sender, kind) == ("computing-1", "masked share"):
            tensor[1] ^= 1 << 5
        return tensor

    errors: list[str] = []

    def caught(s: Spdz2kSession, rank: int) -> None:
        try:
            zeros = torch.zeros(70).long()
            s.wires.open([s.wires.below(BITS, zeros, zeros + 1, zeros, zeros)])
            s.wires.check()
        except TamperedShareError as error:
            errors.append(str(error))
            raise

    with pytest.raises(TamperedShareError):
        run(Runs(caught), engine=SPDZ2k(), change=flip)
    assert len(errors) == 2 and all("step 1 ('masked share')" in error for error in errors)
