"""Payloads against Python's integers."""

import torch

from privtrain.mpc.keystream import Keystream
from privtrain.mpc.spdz2k.ring import HALF_RANGE, PAYLOAD_BITS, low, payload, scaled_up, sign_bit

EDGES = torch.tensor(
    [0, 1, -1, 2**43 - 1, 2**43, -(2**43), 2**44 - 1, 2**44, 2**44 + 5, 2**63 - 1, -(2**63)]
)
INTEGERS = torch.cat([EDGES, Keystream(bytes(32)).integers((200,))])


def test_payloads_are_signed_integers_of_44_bits() -> None:
    expected = [(each + 2**43) % 2**44 - 2**43 for each in INTEGERS.tolist()]
    assert payload(INTEGERS).tolist() == expected
    assert (PAYLOAD_BITS, HALF_RANGE) == (44, 42)


def test_low_bits_and_signs_are_those_of_payloads() -> None:
    assert low(INTEGERS).tolist() == [each % 2**44 for each in INTEGERS.tolist()]
    assert torch.equal(sign_bit(INTEGERS), (payload(INTEGERS) < 0).long())


def test_multiples_of_the_payloads_modulus_leave_payloads_as_they_are() -> None:
    covers = scaled_up(Keystream(bytes([1]) * 32).integers(tuple(INTEGERS.shape)))
    assert torch.equal(payload(INTEGERS + covers), payload(INTEGERS))
    assert len(set(covers.tolist())) > 200
