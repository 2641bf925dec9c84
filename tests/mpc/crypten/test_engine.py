import importlib.util
import math

import pytest
import torch

from privtrain.core.errors import ProtocolError, UnsupportedError
from privtrain.mpc.crypten.engine import CAVEATS, CrypTen
from tests.mpc.crypten import programs
from tests.mpc.test_sharing import bit_z_scores
from tests.runtimes.forked import Forked


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_what_a_session_sends_and_draws(parties: int) -> None:
    names = [f"computing-{rank}" for rank in range(parties)]
    replies = Forked(timeout=40).run(dict.fromkeys(names, programs.Costs()), {})
    first = replies[names[0]].payload
    # A comparison's bytes and rounds; CrypTen's own takes 216 and 8, or 424 and 15.
    size, calls = first["comparison"].tolist()
    assert (math.ceil(size), calls) == {2: (40, 8), 3: (56, 9)}[parties]
    # Bytes: what was recorded is what CrypTen counted; it counts each message at both ends.
    entries = [entry for reply in replies.values() for entry in reply.entries]
    counted = sum(int(reply.payload["counted"]) for reply in replies.values())
    assert sum(entry.bytes for entry in entries) * 2 == counted > 0
    rounds = {entry.round for entry in entries}
    assert rounds == set(range(len(rounds)))
    # One entry for each call, sender and receiver.
    calls = [(entry.sender, entry.receiver, entry.round) for entry in entries]
    assert len(calls) == len(set(calls))
    # The dealer's knowledge is in its view although nothing was sent.
    assert "Beaver triple" in replies[names[0]].setups[0].what
    assert all(not replies[name].setups for name in names[1:])
    # Randomness: every party draws its own, and all 64 bits of it.
    drawn = [reply.payload["drawn"] for reply in replies.values()]
    assert not torch.equal(drawn[0], drawn[1])
    assert all(float(bit_z_scores(one).abs().max()) < 5.1 for one in drawn)


@pytest.mark.slow
@pytest.mark.parametrize(("parties", "culprit"), [(2, 1), (3, 0), (3, 2)])
def test_another_shape_is_refused_although_the_count_is_the_same(
    parties: int, culprit: int
) -> None:
    names = [f"computing-{rank}" for rank in range(parties)]
    with pytest.raises(ProtocolError, match=f"computing-{culprit} differs") as caught:
        Forked(timeout=20).run(dict.fromkeys(names, programs.AnotherShape(culprit)), {})
    assert "(2, 3)" in str(caught.value) and "(3, 2)" in str(caught.value)


@pytest.mark.slow
def test_secure_gradients_stay_close_to_plain_ones_over_many_steps() -> None:
    count = 40
    names = ["computing-0", "computing-1"]
    replies = Forked(timeout=60).run(dict.fromkeys(names, programs.Gradients(count)), {})
    secure = replies[names[0]].payload["gradients"]
    plain = torch.stack([programs.plain_gradient(number) for number in range(count)])
    assert float(plain.abs().max()) > 0.5
    assert float((secure - plain).abs().max()) < 0.004


def test_says_what_it_does_not_protect_from() -> None:
    engine = CrypTen()
    with pytest.raises(ValueError, match="provider='HE'"):
        CrypTen(provider="HE")
    said = " ".join(CAVEATS)
    for word in ("semi-honest", "MACs", "TFP", "TLS", "authenticated", "2^64", "pickles"):
        assert word in said, word
    readers = engine.input_privacy(("a", "b", "c"))
    assert [one.reader for one in readers[:3]] == ["a", "b", "c"]
    assert readers[0].adversary == "trusted" and readers[0].security == "none"
    assert all(one.dealer == "a" and one.honest == "a" for one in readers)
    assert {one.adversary for one in readers[1:]} == {"semi-honest"}


def test_says_in_one_line_how_to_add_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> object:
        return None if name == "crypten" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UnsupportedError) as caught:
        CrypTen().check(2)
    assert "pip install --no-deps crypten==0.4.1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parties", [1, 4])
def test_other_numbers_of_parties_are_refused(parties: int) -> None:
    with pytest.raises(UnsupportedError, match=f"not with {parties}"):
        CrypTen().check(parties)
