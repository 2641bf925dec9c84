import os
import pickle
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privtrain.core.seeding import (
    SEEDED,
    SYSTEM,
    OnceOnly,
    SeededEntropy,
    Seeds,
    Stream,
    Streams,
    SystemEntropy,
    Words,
    derive,
    global_generator,
    kind_of,
)
from tests.statistics import independent, normal_with_std, uniform_over_ring

NAMES = list(product(("noise", "noise/a", "sample"), (0, 1, 11), ("", "client-1", "client-11")))
# NIST SP 800-38A, F.5.5.
KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
BLOCKS = (
    "0bdf7df1591716335e9a8b15c860c502"
    "5a6e699d536119065433863c8f657b94"
    "1bc12c9c01610d5d0d8bd6a3378eca62"
    "2956e1c8693536b1bee99c73a31576b6"
)


def test_every_name_seed_and_attempt_has_a_stream_of_its_own() -> None:
    sources: list[Streams] = [
        *(Seeds(seed) for seed in (0, 1, 10, -1)),
        *(SeededEntropy(seed, attempt) for seed in (0, 1, 10) for attempt in (0, 1, 11)),
    ]
    keys = {source[name].key for source in sources for name in NAMES}
    assert len(keys) == len(sources) * len(NAMES)


def test_names_cannot_be_cut_in_two_ways() -> None:
    keys = {
        derive(b"root", name).key
        for name in (
            ("a", 1, "b"),
            ("a', 1, 'b", 1, ""),
            ("a/1", 1, "b"),
            ("a", 11, "b"),
            ("", 1, "ab"),
        )
    }
    assert len(keys) == 5


@pytest.mark.slow
def test_a_stream_is_the_same_in_every_process() -> None:
    program = (
        "from privtrain.core.seeding import Seeds, SeededEntropy\n"
        "print(Seeds(3)['x', 1, 'p'].key.hex(), SeededEntropy(3, 1)['x', 1, 'p'].key.hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        timeout=120,
    )
    here = (Seeds(3)["x", 1, "p"].key.hex(), SeededEntropy(3, 1)["x", 1, "p"].key.hex())
    assert tuple(done.stdout.split()) == here


def test_numbers_of_different_streams_are_independent_normals() -> None:
    draws = [
        source["noise", round, party].numpy().standard_normal(3000)
        for source in (Seeds(0), SeededEntropy(0), SeededEntropy(0, 1))
        for round, party in ((0, "a"), (1, "a"), (0, "b"))
    ]
    for number, first in enumerate(draws):
        assert normal_with_std(first, 1.0)
        for second in draws[number + 1 :]:
            assert independent(first, second)


def test_a_stream_starts_equal_generators() -> None:
    stream = Seeds(1)["order", 0, ""]
    assert np.array_equal(stream.numpy().random(5), stream.numpy().random(5))
    philox = np.random.Philox(key=int.from_bytes(stream.key[:16], "little"))
    assert np.array_equal(stream.numpy().random(5), np.random.Generator(philox).random(5))
    first, second = (torch.rand(5, generator=stream.torch()) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(5, generator=Seeds(2)["order", 0, ""].torch()))


def test_keys_are_never_printed() -> None:
    stream = SeededEntropy(7)["noise", 0, ""]
    assert stream.key.hex() not in repr(stream)
    assert repr(stream.key) not in repr(stream)
    assert repr(stream) == "Stream()"


def test_the_systems_entropy_is_new_every_time() -> None:
    entropy = SystemEntropy()
    assert entropy.kind is SYSTEM
    keys = {entropy["noise", 0, ""].key for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) == 32 for key in keys)


def test_a_name_is_given_out_once() -> None:
    once = OnceOnly(SeededEntropy(0))
    assert once.kind is SEEDED
    first = once["noise", 0, ""]
    assert first == SeededEntropy(0)["noise", 0, ""]
    with pytest.raises(RuntimeError, match=r"\('noise', 0, ''\) was asked for twice"):
        once["noise", 0, ""]
    assert once["noise", 1, ""] != first
    system = OnceOnly(SystemEntropy())
    assert system.kind is SYSTEM
    system["noise", 0, ""]
    with pytest.raises(RuntimeError, match="twice"):
        system["noise", 0, ""]
    assert str(("noise", 1, "")) not in repr(once)


@pytest.mark.parametrize(
    "value", [Seeds(1), SeededEntropy(1, 2), SystemEntropy(), Stream(b"k" * 32)]
)
def test_sources_are_frozen_values(value: object) -> None:
    copy = pickle.loads(pickle.dumps(value))
    assert copy == value
    assert hash(copy) == hash(value)


def test_the_global_generator_is_borrowed_and_put_back() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with global_generator(Seeds(1)["layers", 0, ""]):
        inside = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with global_generator(Seeds(1)["layers", 0, ""]):
        assert torch.equal(torch.rand(3), inside)
    with pytest.raises(KeyError), global_generator(Seeds(1)["layers", 0, ""]):
        torch.rand(100)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_borrowing_nests() -> None:
    with global_generator(Seeds(1)["outer", 0, ""]):
        torch.rand(1)
        state = torch.get_rng_state()
        with global_generator(Seeds(1)["inner", 0, ""]):
            torch.rand(7)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("value", [0.5, "1", None, True, float("nan")])
def test_a_seed_is_a_whole_number(value: Any) -> None:
    for make in (Seeds, SeededEntropy):
        with pytest.raises(ValueError, match=r"seed=.* to be a whole number"):
            make(value)
    with pytest.raises(ValueError, match="attempt="):
        SeededEntropy(0, value)


def test_entropy_is_of_one_of_two_kinds() -> None:
    assert [kind_of(None, real=real) for real in (False, True)] == [SEEDED, SYSTEM]
    assert kind_of("system", real=False) is SYSTEM  # type: ignore[arg-type] # as a study file has it
    for value in ("", "os", 0, False, float("nan")):
        with pytest.raises(ValueError, match="to be one of seeded, system") as caught:
            kind_of(value, real=False)  # type: ignore[arg-type]
        assert f"entropy={value!r}" in str(caught.value)


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
