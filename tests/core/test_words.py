"""Words of AES-256 in counter mode, against the vectors of the standard."""

import numpy as np
import pytest

from privtrain.core.seeding import SeededEntropy, Stream
from privtrain.core.words import Words
from tests.statistics import uniform_over_ring

KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
BLOCKS = (
    "0bdf7df1591716335e9a8b15c860c502"
    "5a6e699d536119065433863c8f657b94"
    "1bc12c9c01610d5d0d8bd6a3378eca62"
    "2956e1c8693536b1bee99c73a31576b6"
)


def test_the_output_blocks_of_the_standard() -> None:
    """NIST SP 800-38A, F.5.5 (CTR-AES256.Encrypt)."""
    assert Words(KEY, COUNTER).take(8).astype("<u8").tobytes().hex() == BLOCKS


def test_cuts_change_nothing() -> None:
    whole, cut = Words(KEY).take(1000), Words(KEY)
    parts = [cut.take(count) for count in (0, 1, 2, 500, 3, 494)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_long_takes_are_the_words_that_follow() -> None:
    long, cut = Words(KEY).take(100_003), Words(KEY)
    parts = [cut.take(count) for count in (32_768, 32_767, 34_468)]
    assert np.array_equal(np.concatenate(parts), long)


def test_every_stream_has_words_of_its_own_and_they_are_uniform() -> None:
    first, second = (SeededEntropy(0)["noise", round, "a"].words() for round in (0, 1))
    one, two = first.take(20_000), second.take(20_000)
    assert uniform_over_ring(one)
    assert uniform_over_ring(one ^ two)


def test_the_whole_key_counts() -> None:
    keys = [bytes(31) + bytes([last]) for last in range(3)]
    assert len({int(Stream(key).words().take(1)[0]) for key in keys}) == 3
    with pytest.raises(ValueError, match="len"):
        Words(bytes(16))
