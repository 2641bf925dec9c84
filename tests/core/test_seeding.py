import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import mtrand
from torch import nn

from privtrain.core.errors import UnsupportedError
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
    kept_generators,
    kind_of,
    secret_generators,
    spare_normal_kept,
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


Borrowing = Callable[[Stream], AbstractContextManager[None]]
BORROWING = pytest.mark.parametrize("borrow", [global_generator, secret_generators])


def drawn() -> tuple[list[float], ...]:
    """Some numbers of each global generator; an odd number of normals, of which one is kept."""
    return (
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
        np.random.rand(3).tolist(),
        np.random.randn(3).tolist(),
        [random.random() for _ in range(3)],
        [random.gauss(0.0, 1.0) for _ in range(3)],
    )


@BORROWING
def test_all_global_generators_follow_from_the_stream(borrow: Borrowing) -> None:
    found = []
    for seed in (1, 1, 2):
        drawn()  # whatever came before
        with borrow(Seeds(seed)["draws", 0, ""]):
            found.append(drawn())
    assert found[0] == found[1]
    assert all(one != other for one, other in zip(found[0], found[2], strict=True))


@BORROWING
@pytest.mark.parametrize("kept", [False, True])
def test_all_global_generators_are_put_back(borrow: Borrowing, kept: bool) -> None:
    def started() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        # Half of a pair of normals is left over.
        np.random.randn()
        random.gauss(0.0, 1.0)

    def borrowed() -> None:
        with borrow(Seeds(1)["draws", 0, ""]):
            drawn()
        with pytest.raises(KeyError), borrow(Seeds(1)["draws", 0, ""]):
            drawn()
            raise KeyError

    started()
    expected = drawn()
    started()
    if kept:
        with kept_generators():
            borrowed()
    else:
        borrowed()
    assert drawn() == expected


@BORROWING
def test_borrowing_within_a_borrowing_puts_everything_back(borrow: Borrowing) -> None:
    def outer(inner: bool) -> tuple[list[float], ...]:
        with kept_generators(), borrow(Seeds(1)["outer", 0, ""]):
            drawn()
            if inner:
                with borrow(Seeds(1)["inner", 0, ""]):
                    drawn()
            return drawn()

    assert outer(True) == outer(False)


@pytest.mark.parametrize("waiting", [0, 1])
def test_many_blocks_look_after_a_waiting_normal_together(waiting: int) -> None:
    np.random.seed(1)
    np.random.standard_normal(waiting)
    before = np.random.get_state(legacy=False)
    with spare_normal_kept():
        for name in ("one", "two"):
            with global_generator(Seeds(0)[name, 0, ""]):
                np.random.standard_normal(3)
    np.testing.assert_equal(np.random.get_state(legacy=False), before)


@pytest.mark.parametrize("waiting", [0, 1])
def test_what_others_drew_between_blocks_is_never_drawn_again(waiting: int) -> None:
    np.random.seed(1)
    np.random.standard_normal(waiting)
    drawn: list[float] = []
    for _ in range(3):
        with spare_normal_kept():
            with global_generator(Seeds(0)["one", 0, ""]):
                np.random.rand()
            drawn += [*np.random.standard_normal(3), random.random()]
            with global_generator(Seeds(0)["two", 0, ""]):
                np.random.rand()
    assert len(set(drawn)) == len(drawn) == 12


def test_another_kind_of_generator_of_numpy_is_put_back() -> None:
    before = mtrand.get_bit_generator()
    try:
        mtrand.set_bit_generator(np.random.PCG64(3))
        np.random.standard_normal(1)
        state = np.random.get_state(legacy=False)
        with global_generator(Seeds(0)["one", 0, ""]):
            first = np.random.rand()
        np.testing.assert_equal(np.random.get_state(legacy=False), state)
    finally:
        mtrand.set_bit_generator(before)
    with global_generator(Seeds(0)["one", 0, ""]):
        assert np.random.rand() == first


def test_a_secret_fills_the_whole_state_of_torchs_generator() -> None:
    """The twister of numpy, given the same words, draws the same numbers."""

    def state() -> np.ndarray[Any, Any]:
        return torch.get_rng_state().numpy().view(np.uint64)[3:627].astype(np.uint32)

    def words_of_a_seed(words: np.ndarray[Any, Any]) -> bool:
        """Whether they follow from their first one, as 32 bits of a seed make them."""
        found = [int(words[0])]
        for place in range(1, 624):
            found.append((1812433253 * (found[-1] ^ found[-1] >> 30) + place) % 2**32)
        return found == words.tolist()

    with global_generator(Seeds(1)["draws", 0, ""]):
        assert words_of_a_seed(state())
    with secret_generators(SeededEntropy(1)["draws", 0, ""]):
        words = state()
        assert not words_of_a_seed(words)
        twin = np.random.RandomState()
        twin.set_state(("MT19937", words, 624))
        expected = twin.randint(0, 2**32, 2_000, dtype=np.uint32) % 2**16
        assert torch.randint(2**16, (2_000,)).tolist() == expected.tolist()
    assert uniform_over_ring(torch.from_numpy(words.astype(np.int64)), 32)


def test_a_mask_depends_on_the_last_word_of_the_state() -> None:
    """Were a mask drawn under a seed of its own, its 32 bits could be tried."""
    with secret_generators(SeededEntropy(1)["draws", 0, ""]):
        state = torch.get_rng_state()
        mask = nn.functional.dropout(torch.ones(1_000))
        state.numpy().view(np.uint64)[626] ^= 1
        torch.set_rng_state(state)
        other = nn.functional.dropout(torch.ones(1_000))
    assert 0 < int((mask != other).sum()) < 20


def test_a_layout_of_torch_that_we_do_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from privtrain.core import seeding

    monkeypatch.setattr(seeding, "_STATE", slice(2, 626))
    seeding._torch_layout.cache_clear()
    with pytest.raises(UnsupportedError, match="torch"), secret_generators(Stream(b"k" * 32)):
        pytest.fail("a secret was put into the wrong place")


def test_a_model_that_seeds_torch_is_refused() -> None:
    with (
        pytest.raises(UnsupportedError, match="manual_seed"),
        secret_generators(SeededEntropy(1)["draws", 0, ""]),
    ):
        torch.manual_seed(0)
    with secret_generators(SeededEntropy(1)["draws", 0, ""]), torch.random.fork_rng():
        torch.rand(2)


def test_devices_start_from_64_secret_bits_and_are_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["before"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", calls.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", calls.append)
    for round in range(8):
        with pytest.raises(KeyError), secret_generators(SeededEntropy(1)["draws", round, ""]):
            raise KeyError
    seeds = calls[::2]
    assert calls[1::2] == [["before"]] * 8
    assert len(set(seeds)) == 8
    assert max(seeds) > 2**60


def test_threads_draw_what_they_would_draw_alone() -> None:
    def draws(party: str) -> list[tuple[list[float], ...]]:
        found = []
        for round in range(50):
            borrow = (secret_generators, global_generator)[round % 2]
            with borrow(SeededEntropy(1)["draws", round, party]):
                found.append(drawn())
        return found

    parties = ["a", "b", "c", "d"]
    alone = [draws(party) for party in parties]
    with ThreadPoolExecutor(len(parties)) as threads:
        assert list(threads.map(draws, parties)) == alone


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
