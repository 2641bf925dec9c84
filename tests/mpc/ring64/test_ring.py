"""Ring arithmetic against Python's integers."""

import pytest
import torch

from privtrain.mpc.keystream import Keystream
from privtrain.mpc.ring64.ring import shifted_right, top_bit, uniform_bytes

EDGES = [0, 1, -1, 2**16 - 1, 2**16, 2**62, 2**63 - 1, -(2**63), -(2**62), 12345678901234567]


@pytest.mark.parametrize("bits", [1, 16, 37, 63])
def test_a_shift_is_that_of_unsigned_integers(bits: int) -> None:
    expected = [(edge % 2**64) >> bits for edge in EDGES]
    assert shifted_right(torch.tensor(EDGES), bits).tolist() == expected


def test_the_top_bit_is_the_sign() -> None:
    assert top_bit(torch.tensor(EDGES)).tolist() == [(edge % 2**64) >> 63 for edge in EDGES]


def test_bytes_of_a_stream_are_its_words() -> None:
    drawn = uniform_bytes(Keystream(bytes(32)), (3, 7))
    words = Keystream(bytes(32)).integers((3,))
    assert drawn.shape == (3, 7)
    assert torch.equal(drawn.reshape(-1), words.view(torch.uint8)[:21])
