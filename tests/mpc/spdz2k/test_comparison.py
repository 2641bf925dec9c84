"""Signs, rectifiers and maxima: every one right, whatever stands above payloads."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privtrain.mpc.keystream import Keystream
from privtrain.mpc.spdz2k.comparison import coarse_bits, tournament, window_of
from privtrain.mpc.spdz2k.wires import PartyWires
from tests.mpc.spdz2k.programs import openings, ran_on, with_bits_above


@pytest.fixture(params=["as opened", "with bits above payloads"])
def above(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test once as it is, and once with changes above all that is opened."""
    if request.param != "as opened":
        monkeypatch.setattr(PartyWires, "open", with_bits_above(PartyWires.open))


def edges(bits: int) -> Tensor:
    """Integers next to powers of two, below 2^bits in magnitude, and at random ones."""
    near = [(1 << bit) + step for bit in range(bits + 1) for step in (-1, 0, 1)]
    inside = sorted({each for each in near if each < 1 << bits})
    drawn = Keystream(bytes([bits]) * 32).integers((300,)) >> (63 - bits)
    spread = drawn >> torch.arange(300) % (bits + 1)
    return torch.cat([torch.tensor(inside), -torch.tensor(inside), drawn, spread])


@pytest.mark.usefixtures("above")
def test_signs_are_right_up_to_the_range_of_payloads() -> None:
    integers = edges(43)
    _, (above_zero,) = ran_on(lambda s, x: [s.positive(x)], integers, bits=0)
    assert torch.equal(above_zero, (integers > 0).double())


@pytest.mark.usefixtures("above")
def test_rectifiers_are_right_up_to_the_range_of_payloads() -> None:
    integers = edges(43)
    _, (larger, bits) = ran_on(lambda s, x: s.relu(x), integers, bits=0)
    assert torch.equal(larger, integers.clamp(min=0).double())
    assert torch.equal(bits, (integers > 0).double())


@pytest.mark.parametrize(
    "largest", [1, 2, 3, 4, 7, 8, 100, 2**16 - 1, 2**16, 2**41, 2**42, 2**43 - 1]
)
def test_windows_are_exact_up_to_what_is_stated(largest: int) -> None:
    integers = edges(largest.bit_length())
    integers = torch.cat([integers[integers.abs() <= largest], torch.tensor([largest, -largest])])
    ran, (bits, larger) = ran_on(
        lambda s, x: [s.positive(x), s.relu(x)[0]], integers, bits=0, largest=largest
    )
    assert torch.equal(bits, (integers > 0).double())
    assert torch.equal(larger, integers.clamp(min=0).double())
    # Narrower windows save material, which is most of what is dealt.
    full, _ = ran_on(lambda s, x: [s.positive(x), s.relu(x)[0]], integers, bits=0)
    assert ran.bytes("material", "dealer") <= full.bytes("material", "dealer")


def test_nothing_is_above_zero_where_all_is_known_to_be_zero() -> None:
    _, (bits,) = ran_on(lambda s, x: [s.positive(x)], torch.zeros(4).long(), bits=0, largest=0)
    assert not bits.any()


@pytest.mark.parametrize("limit", [None, (1 << 36) - 1])
@pytest.mark.parametrize("bits", [17, 28, 32])
def test_coarse_rectifiers_are_exact_to_16_bits(bits: int, limit: int | None) -> None:
    coarse = coarse_bits(bits)
    between = torch.linspace(1, (2 << coarse) - 1, 300).long()
    integers = torch.cat([edges(36), between])

    def relu(s: Any, x: Any) -> tuple[Any, Any]:
        larger, above = s.relu(x)
        # As whole numbers, or it would be truncated before it is opened.
        return x.derived(larger.share, 0), above

    _, (larger, above_zero) = ran_on(relu, integers, bits=bits, largest=limit)
    sure = (integers <= 0) | (integers >= 2 << coarse)
    assert torch.equal(above_zero[sure], (integers > 0).double()[sure])
    # A bit and its value say the same of those in between, for which both answers occur.
    assert torch.equal(larger, above_zero * integers)
    assert 0 < int(above_zero[~sure].sum()) < int((~sure).sum())


def first_largest(values: Tensor) -> Tensor:
    return nn.functional.one_hot(values.argmax(-1), values.shape[-1]).double()


@pytest.mark.usefixtures("above")
@pytest.mark.parametrize("count", range(1, 12))
def test_the_first_of_the_largest_wins(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(-3, 3, (60, count), generator=generator)
    values[0], values[1] = 0, -5
    wide = torch.randint(-(2**41), 2**41, (60, count), generator=generator)
    for integers, limit in ((values, None), (values, 5), (wide, None)):
        ran, (one_hot, highest) = ran_on(
            lambda s, x: [s.largest(x), s.maximum(x)], integers, bits=0, largest=limit
        )
        assert torch.equal(one_hot, first_largest(integers))
        assert torch.equal(highest, integers.amax(-1).double())
    # An opening and a bit for each halving of their number.
    assert openings(ran) == 2 * 2 * (count - 1).bit_length()


@pytest.mark.parametrize("count", [2, 5, 8])
def test_a_coarse_tournament_misses_the_largest_by_less_than_a_step_a_game(count: int) -> None:
    coarse, generator = 12, torch.Generator().manual_seed(count)
    near = torch.randint(0, 3 << coarse, (400, count), generator=generator)
    far = torch.randint(-(2**40), 2**40, (100, count), generator=generator)
    integers = torch.cat([near, far])

    def of(s: Any, x: Any) -> Any:
        highest, beside = tournament(
            s, x.t().share, beside=x.t().share.reshape(1, count, -1), coarse=coarse
        )
        assert beside is not None
        return [x.derived(highest), x.derived(beside[0])]

    _, (highest, beside) = ran_on(of, integers, bits=0)
    missed = integers.amax(-1) - highest
    games = (count - 1).bit_length()
    assert 0 < int(missed.max()) < games << coarse and int(missed.min()) == 0
    # It is one of the values, and what came along is that of the same one.
    assert torch.equal(beside, highest)
    assert (integers == highest.unsqueeze(1)).any(-1).all()


def test_gaps_of_stated_values_fit_their_window() -> None:
    for largest in (1, 3, 4, 127, 128):
        ends = torch.tensor([[largest, -largest], [-largest, largest], [largest, largest]])
        _, (one_hot,) = ran_on(lambda s, x: [s.largest(x)], ends, bits=0, largest=largest)
        assert one_hot.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_windows_and_coarse_bits() -> None:
    assert [window_of(each) for each in (None, 0, 1, 3, 4, 2**42, 2**60)] == [
        44,
        2,
        2,
        3,
        4,
        44,
        44,
    ]
    assert [coarse_bits(each) for each in (0, 16, 17, 32)] == [0, 0, 1, 16]


def test_rounds_and_bytes() -> None:
    def both(s: Any, x: Any) -> Any:
        return s.relu(x)

    ran, _ = ran_on(both, torch.arange(-500, 500))
    assert openings(ran) == 2
    # The value under its mask; bits, 64 in a word.
    assert ran.bytes() == 8 * (1000 + 16)
