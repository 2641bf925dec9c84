"""Openings are checked by MACs: what passes, what is caught, how often a forgery gets through.

The error of a forgery is known to nobody but its author; every guard of the protocol is left out
once, and a forgery then passes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from privtrain.core.errors import TamperedShareError
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.spdz2k import check as checking
from privtrain.mpc.spdz2k.check import (
    COIN,
    COIN_COMMITMENT,
    COMMITMENT,
    OPENING,
    Check,
    Strength,
    heard,
)
from privtrain.mpc.spdz2k.forms import MOST_COLUMNS, Form
from privtrain.mpc.spdz2k.ring import PAYLOAD_BITS, low
from tests.mpc.spdz2k.checks import (
    KINDS,
    Duel,
    begun,
    cancelling,
    forgeries,
    is_likely,
    links_of,
    same_words,
)

SHAPES = [(), (1,), (7,), (3, 4), (2, 3, 4), (2, MOST_COLUMNS + 1), (0,), (4, 0), (0, 4)]
BITS = (0, 13, 42, 43)
"""Of payloads: what is above them has no effect, and is caught the less the higher it is."""


def test_honest_openings_of_all_shapes_pass_check_after_check() -> None:
    duel = begun()
    for _ in range(5):
        for shape in SHAPES:
            duel.note(duel.dealer.drawn(*shape))
        residue = duel.dealer.drawn(9).numpy().view(np.uint64)
        for check in duel.checks:
            check.bits(residue)
        assert duel.accepted()
    # Nothing to check takes no message.
    sent = [len(check.link.entries) for check in duel.checks]
    assert duel.accepted()
    assert [len(check.link.entries) for check in duel.checks] == sent == [1 + 5 * 3] * 2


def test_honest_products_pass_and_wrong_ones_do_not() -> None:
    for error in (0, 1):
        duel = begun()
        x, y = duel.dealer.drawn(6, 3), duel.dealer.drawn(3, 5)
        for check, form in zip(duel.checks, duel.dealer.product(x, y), strict=True):
            check.step(1, "masked share")
            check.value(form, x @ y + error * torch.eye(6, 5).long())
        assert duel.accepted() is not bool(error)


@pytest.mark.parametrize("rank", [0, 1, None])
@pytest.mark.parametrize("bit", BITS)
def test_a_changed_value_is_caught_at_one_party_and_at_both(rank: int | None, bit: int) -> None:
    duel, error = begun(), torch.zeros(3, 2).long()
    error[1, 1] = 1 << bit
    duel.note(duel.dealer.drawn(5))
    duel.note(duel.dealer.drawn(3, 2), [error * (rank in (each, None)) for each in (0, 1)])
    errors = duel.at_both(lambda check: check.run())
    for error_of_one in errors:
        assert isinstance(error_of_one, TamperedShareError)
        assert "steps 1 to 2 ('masked share') do not fit their MACs" in str(error_of_one)
        assert "read nothing of it" in str(error_of_one)


def test_the_steps_are_those_since_the_last_check() -> None:
    duel = begun()
    duel.note(duel.dealer.drawn(5))
    assert duel.accepted()
    value = duel.dealer.drawn(2)
    for check, form in zip(duel.checks, duel.dealer.deal(value), strict=True):
        check.step(7, "masked share")
        check.step(9, "result share")
        check.value(form, value + 1)
    error = duel.at_both(lambda check: check.run())[0]
    assert "computing-0 and computing-1 opened in steps 7 to 9" in str(error)
    assert "('masked share', 'result share')" in str(error) and "one of them, or who" in str(error)


Errors = Callable[[Duel], None]


def in_one_row(duel: Duel) -> None:
    duel.note(duel.dealer.drawn(2, 2), [torch.tensor([[5, -5], [0, 0]])] * 2)


def in_two_rows(duel: Duel) -> None:
    duel.note(duel.dealer.drawn(2, 2), [torch.tensor([[5, 0], [-5, 0]])] * 2)


def in_two_openings(duel: Duel) -> None:
    duel.note(duel.dealer.drawn(4), [5] * 2)
    duel.note(duel.dealer.drawn(4), [-5] * 2)


@pytest.mark.parametrize("errors", [in_one_row, in_two_rows, in_two_openings])
def test_errors_that_add_up_to_nothing_are_caught(errors: Errors) -> None:
    duel = begun()
    errors(duel)
    assert not duel.accepted()


def test_a_changed_mac_and_a_changed_tag_are_caught() -> None:
    duel, value = begun(), torch.arange(4)
    one, other = duel.dealer.deal(value)
    for check, form in zip(duel.checks, (one, same_words(other, torch.tensor(1))), strict=True):
        check.step(1, "masked share")
        check.value(form, value)
    assert not duel.accepted()
    for bit in (*BITS, 44, 63):
        duel = begun()
        for check, change in zip(duel.checks, (0, 1 << bit), strict=True):
            check.step(1, "masked share")
            check.bits(np.array([3, 5 ^ change], np.uint64))
        assert not duel.accepted()


@pytest.mark.parametrize("sender", ["computing-0", "computing-1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_message_of_the_check_is_caught(kind: str, sender: str) -> None:
    # A message of both halves changes in its first: the second is of the check after it.
    for place in (0, 31, *((32, 63) if kind == OPENING else ())):

        def change(who: str, to: str, what: str, content: Tensor, place: int = place) -> Tensor:
            if (who, what) == (sender, kind):
                content[place] ^= 1
            return content

        duel, caught = begun(change=change), list[Exception | None]()
        for _ in range(2):
            duel.note(duel.dealer.drawn(4))
            caught += duel.at_both(lambda check: check.run())
            if any(caught):
                break
        who = 1 if sender == "computing-0" else 0
        assert isinstance(caught[len(caught) - 2 + who], TamperedShareError)


@pytest.mark.parametrize("kind", KINDS)
def test_an_echo_of_the_own_message_is_caught(kind: str) -> None:
    duel = begun(Check, echoes(kind))
    for _ in range(2):
        duel.note(duel.dealer.drawn(4))
        if not duel.accepted():
            return
    raise AssertionError(f"Expected an echoed {kind!r} to be caught.")


def test_what_is_heard_has_the_shape_and_type_that_is_expected() -> None:
    one, other = links_of()
    link: Any = other
    for message in (torch.zeros(3).long(), torch.zeros(4), torch.zeros(2, 2).long()):
        one.send("computing-1", "masked share", message)
        with pytest.raises(TamperedShareError, match=r"'masked share' of computing-0 to be \(4,\)"):
            heard(link, "computing-0", "masked share", (4,))
    one.send("computing-1", "masked share", torch.arange(4))
    assert heard(link, "computing-0", "masked share", (4,)).tolist() == [0, 1, 2, 3]


def test_memory_makes_a_check_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "MOST_PENDING", 30)
    duel = begun()
    duel.note(duel.dealer.drawn(2, 5))
    assert not duel.checks[0].full
    duel.note(duel.dealer.drawn(1))
    assert duel.checks[0].full and duel.accepted() and not duel.checks[0].full


def test_strength_is_that_of_the_page() -> None:
    # 2^-s (s + 1) for each key, to the third power.
    assert Strength().error_bits == pytest.approx(46.82, abs=0.01)
    assert Strength(4, 1).error_bits == pytest.approx(-np.log2(5 / 16))


# How often a forgery passes. In the ring modulo 2^64 an error of 2^59 is accepted where the key
# times the coefficient is 0 modulo 2^5. Of 256 pairs of numbers from 0 to 15 it is in 36: in 31 one
# of them is 0, and 4 x 8, 12 x 8, 8 x 4, 8 x 12 and 8 x 8 have five factors of two.

TRIES, ERROR, BY_ONE_KEY = 20_000, 1 << 59, 36 / 256


def fresh() -> Keystream:
    return Keystream(bytes([7]) * 32)


def passes_as_it_should(keys: int, of: int, stream: Callable[[], Keystream] = fresh) -> bool:
    """Whether forgeries under so many keys pass as often as they do under independent ones."""
    return is_likely(forgeries(TRIES, keys, stream, ERROR), TRIES, BY_ONE_KEY**of)


@pytest.mark.parametrize("keys", [1, 3])
def test_a_forgery_passes_as_often_as_the_argument_says(keys: int) -> None:
    assert passes_as_it_should(keys, of=keys)
    assert forgeries(100, keys, fresh, 0) == 100


def test_one_key_would_be_seen() -> None:
    assert not passes_as_it_should(1, of=3)


def test_one_row_of_coefficients_for_all_keys_would_be_seen() -> None:
    class OneRow(Keystream):
        def integers(self, shape: tuple[int, ...]) -> Tensor:  # type: ignore[override]
            return super().integers((shape[0] // 3, *shape[1:])).repeat_interleave(3, 0)

    assert not passes_as_it_should(3, of=3, stream=lambda: OneRow(bytes([7]) * 32))


@pytest.mark.parametrize(("keys", "factor"), [(1, 9 / 10), (1, 10 / 9), (3, 1 / 3), (3, 3)])
def test_other_probabilities_would_be_seen(keys: int, factor: float) -> None:
    found = forgeries(TRIES, keys, fresh, ERROR)
    assert not is_likely(found, TRIES, factor * BY_ONE_KEY**keys)


def test_whole_checks_accept_as_often_as_their_arithmetic() -> None:
    tries, accepted = 500, 0
    for _ in range(tries):
        duel = begun(strength=Strength(key_bits=4, keys=1))
        duel.note(duel.dealer.drawn(3), [torch.tensor([0, ERROR, 0])] * 2)
        accepted += duel.accepted()
    assert is_likely(accepted, tries, BY_ONE_KEY)


# Protocols that lack one guard. Whoever attacks does so in the same way against both.


def coefficients_of(stream: Keystream) -> Tensor:
    return stream.integers((3, 4)) & 0xFFFFF


def said_before(check: Check) -> Keystream:
    """Coefficients by a hash of what was said before anything was opened."""
    own = check._hashed(b"coin", check.link.rank, check._coin)
    return Keystream(check._hashed(b"coefficients", 2, b"".join(sorted([own, check._promised]))))


class KnownBefore(Check):
    """Coefficients by a hash of the transcript."""

    def _coefficients(self) -> Keystream:
        known = said_before(self)
        super()._coefficients()
        return known


@pytest.mark.parametrize(("kind", "forged"), [(Check, False), (KnownBefore, True)])
def test_coefficients_are_known_to_nobody_before_the_opening(
    kind: type[Check], forged: bool
) -> None:
    duel = begun(kind)
    error = cancelling(coefficients_of(said_before(duel.checks[1])))
    duel.note(duel.dealer.drawn(4), [error] * 2)
    assert duel.accepted() is forged


class CoinsWithoutRole(Check):
    """Coins whose commitments fit either party."""

    def _hashed(self, what: bytes, role: int, content: bytes, *, back: int = 0) -> bytes:
        return super()._hashed(what, 0 if what == b"coin" else role, content, back=back)


class AddedCoins(CoinsWithoutRole):
    """Such coins, put together by exclusive or instead of a hash of both in their order."""

    def _coefficients(self) -> Keystream:
        self._send(COIN, self._coin)
        other = self._receive(COIN, 32)
        if self._hashed(b"coin", 1 - self.link.rank, other) != self._promised:
            raise self._tampered("do not fit their coins")
        return Keystream(bytes(a ^ b for a, b in zip(self._coin, other, strict=True)))


def echoes(*kinds: str, of: type[Check] = Check) -> type[Check]:
    """A party that says the other's messages of some kinds again, once it has heard them."""

    class Echoes(of):  # type: ignore[misc,valid-type]
        heard = b""

        def _send(self, kind: str, content: bytes) -> None:
            if kind in kinds:
                self.heard = content = super()._receive(kind, len(content))
            if kind == COIN:
                self._coin = content
            super()._send(kind, content)

        def _receive(self, kind: str, size: int) -> bytes:
            return self.heard if kind in kinds else super()._receive(kind, size)

    return Echoes


@pytest.mark.parametrize(
    ("kind", "forged"), [(Check, False), (CoinsWithoutRole, False), (AddedCoins, True)]
)
def test_a_repeated_coin_does_not_make_coefficients_known(kind: type[Check], forged: bool) -> None:
    duel = begun(kind, echoes(COIN_COMMITMENT, COIN, of=kind))
    error = cancelling(coefficients_of(Keystream(bytes(32))))
    duel.note(duel.dealer.drawn(4), [error] * 2)
    assert duel.accepted() is forged


class CheckWithoutRole(Check):
    """Commitments to check vectors that fit either party."""

    def _hashed(self, what: bytes, role: int, content: bytes, *, back: int = 0) -> bytes:
        return super()._hashed(what, 0 if what == b"check" else role, content, back=back)


@pytest.mark.parametrize(("kind", "forged"), [(Check, False), (CheckWithoutRole, True)])
def test_a_repeated_check_vector_does_not_pass(kind: type[Check], forged: bool) -> None:
    duel = begun(kind, echoes(COMMITMENT, OPENING, of=kind))
    duel.note(duel.dealer.drawn(4), [torch.tensor([1, 0, 0, 0])] * 2)
    assert duel.accepted() is forged


class LowHalves(Check):
    """Opens payloads alone; random sums of what is above them in shares are opened by the check."""

    def value(self, form: Form, opened: Tensor) -> None:
        super().value(form, low(opened))

    def _digest(self, coefficients: Keystream) -> bytes:
        ((form, opened),) = self._opened
        rows = coefficients.integers((self.strength.keys, form.rows)) & 0xFFFFF
        own = low(form.share)
        carried = (own + low(opened - own)) >> PAYLOAD_BITS
        above = (form.share >> PAYLOAD_BITS) + (carried if self.link.rank == 0 else 0)
        upper = rows * above + self._lie(own, rows)
        self._send("upper sums", upper.numpy().tobytes())
        other = np.frombuffer(self._receive("upper sums", 8 * len(upper)), np.int64)
        total = upper + torch.tensor(other).view(-1, 1)
        whole = rows * opened + (total << PAYLOAD_BITS)
        vector = form.contracted(rows) - whole * self.keys.unsqueeze(1)
        return ((1 - 2 * self.link.rank) * vector).numpy().tobytes()

    def _lie(self, own: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros_like(rows)


class FlipsTopBit(LowHalves):
    """Makes up for the highest bit of its share in the sums above it, half of it a coefficient."""

    def _lie(self, own: Tensor, rows: Tensor) -> Tensor:
        up = torch.where(own >> (PAYLOAD_BITS - 1) == 0, 1, -1)
        return -(rows * up >> 1)


def test_whole_elements_are_opened_or_a_flipped_top_bit_would_pass_half_of_the_time() -> None:
    tries, passed = 200, {Check: 0, LowHalves: 0}
    for kind, deviates in ((Check, Check), (LowHalves, FlipsTopBit)):
        for _ in range(tries):
            duel = begun(kind, deviates, strength=Strength(keys=1))
            duel.note(duel.dealer.drawn(1), [1 << (PAYLOAD_BITS - 1)] * 2)
            passed[kind] += duel.accepted()
    assert is_likely(passed[LowHalves], tries, 0.5)
    # By one key it is about one of 10^5.
    assert passed[Check] <= 1
    honest = begun(LowHalves, strength=Strength(keys=1))
    honest.note(honest.dealer.drawn(1))
    assert honest.accepted()


def test_nothing_is_opened_or_checked_after_a_check_that_failed() -> None:
    duel = begun()
    duel.note(duel.dealer.drawn(3), [torch.tensor([0, 1, 0])] * 2)
    first = duel.at_both(lambda check: check.run())
    again = duel.at_both(lambda check: check.run())
    for check, error, other in zip(duel.checks, first, again, strict=True):
        assert isinstance(error, TamperedShareError) and other is error
        with pytest.raises(TamperedShareError, match="do not fit their MACs"):
            check.go_on()
