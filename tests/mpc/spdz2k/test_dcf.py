"""Distributed comparison functions: every word right, and one party's keys uniform."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from privtrain.mpc.spdz2k import dcf
from privtrain.mpc.spdz2k.dcf import evaluate, generate, sizes
from tests.mpc.views import Seen, alarm

KEY = 0x9E3779B97F4A7C15
END_BITS = 3
ALARM = 1e-11
"""Of a test of uniformity."""

Words = NDArray[np.uint64]
Seed = tuple[int, int]


@dataclass(frozen=True)
class Dealt:
    """Keys of comparisons with what they were made of."""

    bits: int
    thresholds: Words
    offsets: NDArray[np.uint8]
    roots: tuple[Words, Words]
    correction: Words
    common: Words

    @staticmethod
    def of(bits: int, thresholds: Any, offsets: Any, key: int = KEY) -> "Dealt":
        numbers = np.asarray(thresholds, np.uint64)
        flips = np.broadcast_to(np.asarray(offsets, np.uint8), numbers.shape)
        own, other = np.random.default_rng().integers(
            0, 2**64, (2, 2, len(numbers)), dtype=np.uint64
        )
        # Nothing that is given may be written.
        for array in (numbers, flips, own, other):
            array.flags.writeable = False
        dealt = generate(bits, numbers, flips, key, own, other)
        for array in dealt:
            array.flags.writeable = False
        return Dealt(bits, numbers, flips, (own, other), *dealt)

    def word(self, party: int, points: Any) -> Words:
        numbers = np.broadcast_to(np.asarray(points, np.int64), self.thresholds.shape)
        own = self.correction if party else self.roots[0]
        return evaluate(self.bits, party, own, self.common, numbers)

    def tags(self, points: Any) -> Words:
        return self.word(0, points) ^ self.word(1, points)

    def expected(self, points: Any, key: int = KEY) -> list[int]:
        numbers = np.broadcast_to(np.asarray(points, np.int64), self.thresholds.shape)
        rows = zip(numbers.tolist(), self.thresholds.tolist(), self.offsets.tolist(), strict=True)
        return [key * ((point < threshold) ^ offset) for point, threshold, offset in rows]

    def key(self, index: int) -> "PlainKey":
        """The correction words of one comparison, as Figure 1 has them."""
        levels = self.bits - min(self.bits, END_BITS)
        seeds = self.common[: 2 * levels].reshape(levels, len(self.thresholds), 2)[:, index]
        return PlainKey(
            [(int(low), int(high)) for low, high in seeds],
            self.common[2 * levels : 3 * levels, index].tolist(),
            self.common[3 * levels :, index].tolist(),
        )

    def root(self, index: int, party: int) -> Seed:
        low, high = self.roots[party].reshape(-1, 2)[index].tolist()
        return low & ~1 | party, high


@dataclass(frozen=True)
class PlainKey:
    seeds: list[Seed]
    values: list[int]
    end: list[int]


def exclusive(left: Seed, right: Seed) -> Seed:
    return left[0] ^ right[0], left[1] ^ right[1]


def hashed(seed: Seed, tweak: int) -> Seed:
    place = seed[0] ^ seed[1] ^ tweak, seed[0] ^ tweak
    cipher = Cipher(algorithms.AES128(bytes(16)), modes.ECB()).encryptor()
    low, high = struct.unpack("<QQ", cipher.update(struct.pack("<QQ", *place)))
    return exclusive((low, high), place)


def children(seed: Seed) -> tuple[Seed, Seed]:
    left = hashed(seed, 0)
    return left, exclusive(left, seed)


def end_words(seed: Seed, size: int) -> list[int]:
    return [word for block in range(size // 2) for word in hashed(seed, 2 + block)]


def plain_keys(bits: int, threshold: int, offset: int, key: int, roots: list[Seed]) -> PlainKey:
    """Figure 1 of eprint 2020/1392, line by line, for one comparison."""
    seeds, total = roots, 0
    end_bits = min(bits, END_BITS)
    result = PlainKey([], [], [])
    for place in reversed(range(end_bits, bits)):
        keep = threshold >> place & 1
        lose = 1 - keep
        trees = [children(seed) for seed in seeds]
        values = [hashed(seed, 1) for seed in seeds]
        seed_correction = exclusive(trees[0][lose], trees[1][lose])
        correction = values[0][lose] ^ values[1][lose] ^ total ^ key * (keep ^ offset)
        total ^= values[0][keep] ^ values[1][keep] ^ correction
        controls = [seed[0] & 1 for seed in seeds]
        assert controls[0] != controls[1]
        seeds = [
            exclusive(tree[keep], seed_correction) if control else tree[keep]
            for tree, control in zip(trees, controls, strict=True)
        ]
        result.seeds.append(seed_correction)
        result.values.append(correction)
    size = 1 << end_bits
    pairs = zip(*(end_words(seed, size) for seed in seeds), strict=True)
    result.end.extend(
        left ^ right ^ total ^ key * ((low < threshold % size) ^ offset)
        for low, (left, right) in enumerate(pairs)
    )
    return result


def plain_walk(bits: int, root: Seed, key: PlainKey, point: int) -> tuple[list[Seed], int]:
    """The seeds that a party passes, and its word."""
    passed, word = [root], 0
    end_bits = min(bits, END_BITS)
    for level, place in enumerate(reversed(range(end_bits, bits))):
        seed, right = passed[-1], point >> place & 1
        child = children(seed)[right]
        word ^= hashed(seed, 1)[right]
        if seed[0] & 1:
            child = exclusive(child, key.seeds[level])
            word ^= key.values[level]
        passed.append(child)
    low = point % (1 << end_bits)
    word ^= end_words(passed[-1], 1 << end_bits)[low]
    return passed, word ^ key.end[low] if passed[-1][0] & 1 else word


def edges(bits: int, thresholds: Words) -> list[NDArray[np.int64]]:
    last = 2**bits - 1
    near = [np.clip(thresholds.astype(np.int64) + step, 0, last) for step in (-1, 0, 1)]
    drawn = np.random.default_rng(3).integers(0, 2**bits, (5, len(thresholds)))
    ends = np.full((2, len(thresholds)), [[0], [last]])
    # Leaves the path at each level.
    flipped = [thresholds.astype(np.int64) ^ (1 << bit) for bit in range(bits)]
    return [*near, *ends, *drawn, *flipped]


@pytest.mark.parametrize("bits", range(1, 7))
@pytest.mark.parametrize("offset", [0, 1])
def test_every_point_is_compared_with_every_threshold(bits: int, offset: int) -> None:
    dealt = Dealt.of(bits, range(2**bits), offset)
    for point in range(2**bits):
        assert dealt.tags(point).tolist() == dealt.expected(point)


@pytest.mark.parametrize("bits", [7, 13, 25, 31, 43])
def test_large_numbers_are_compared_exactly(bits: int) -> None:
    rng = np.random.default_rng(bits)
    drawn = rng.integers(0, 2**bits, 60).tolist()
    thresholds = [0, 1, 2 ** (bits - 1), 2**bits - 1, *drawn]
    for key in (1, KEY, 2**64 - 1):
        dealt = Dealt.of(bits, thresholds, rng.integers(0, 2, len(thresholds)), key)
        for points in edges(bits, dealt.thresholds):
            assert dealt.tags(points).tolist() == dealt.expected(points, key)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 9, 31, 43])
def test_keys_and_words_are_those_of_the_plain_scheme(bits: int) -> None:
    rng = np.random.default_rng(bits)
    dealt = Dealt.of(bits, rng.integers(0, 2**bits, 6), rng.integers(0, 2, 6))
    points = rng.integers(0, 2**bits, 6)
    for index, (threshold, offset) in enumerate(
        zip(dealt.thresholds.tolist(), dealt.offsets.tolist(), strict=True)
    ):
        roots = [dealt.root(index, party) for party in (0, 1)]
        key = plain_keys(bits, threshold, offset, KEY, roots)
        assert dealt.key(index) == key
        for party, root in enumerate(roots):
            _, word = plain_walk(bits, root, key, int(points[index]))
            assert dealt.word(party, points)[index] == word


@pytest.mark.parametrize(("block", "ahead"), [(1, 1), (7, 20), (40, 1), (64, 10**6)])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block: int, ahead: int) -> None:
    whole = Dealt.of(31, np.random.default_rng(1).integers(0, 2**31, 40), [0, 1] * 20)
    points = np.random.default_rng(2).integers(0, 2**31, 40)
    words = [whole.word(party, points).tolist() for party in (0, 1)]
    monkeypatch.setattr(dcf, "_BLOCK", block)
    monkeypatch.setattr(dcf, "_AHEAD", ahead)
    _, common = generate(31, whole.thresholds, whole.offsets, KEY, *whole.roots)
    assert common.tolist() == whole.common.tolist()
    assert [whole.word(party, points).tolist() for party in (0, 1)] == words


def test_sizes_are_those_of_the_keys() -> None:
    for bits in (1, 3, 4, 43):
        dealt = Dealt.of(bits, [1, 0, 1], [0, 1, 1])
        size = sizes(bits)
        assert dealt.correction.shape == (size.correction, 3)
        assert dealt.common.shape == (size.common, 3)
        # Party 1 may also draw its words with the dealer: it sets the control bit itself.
        drawn = evaluate(bits, 1, dealt.roots[1], dealt.common, np.array([0, 1, 0]))
        assert drawn.tolist() == dealt.word(1, [0, 1, 0]).tolist()
    assert 8 * (sizes(31).correction + sizes(31).common) == 752
    assert len(Dealt.of(31, [], []).tags([])) == 0


def views(bits: int, threshold: int, offset: int, count: int = 4096) -> dict[str, list[Seen]]:
    """What either party has of many keys with one secret: their words, seeds and results."""
    dealt = Dealt.of(bits, [threshold] * count, offset)
    levels = bits - END_BITS
    seeds = dealt.common[: 2 * levels].reshape(levels, count, 2)
    words = [*seeds[..., 0], *seeds[..., 1], *dealt.common[2 * levels :]]
    seen = {"common": [Seen(row.view(np.int64), 64) for row in words]}
    for party in (0, 1):
        own = dealt.correction if party else dealt.roots[0]
        # The root's control bit is the party's number.
        low = own.reshape(count, 2)[:, 0] >> np.uint64(1)
        seen[f"root of {party}"] = [Seen(low.view(np.int64), 63)]
        for point in (threshold, threshold ^ 1, threshold ^ 1 << (bits - 1), 0):
            cipher, place = dcf._cipher(), np.full(count, point, np.uint64)
            part = dcf._Corrections.of(dealt.common, levels)
            below, _ = dcf._read_levels(
                cipher, dcf._bits(place, bits, levels), dcf._roots("own", own, party, count), part
            )
            seen[f"{party} at {point}"] = [
                Seen(column.copy().view(np.int64), 64)
                for column in (*below.T, dealt.word(party, point))
            ]
    return seen


@pytest.mark.parametrize(("threshold", "offset"), [(0, 0), (0, 1), (0b101101, 0), (63, 1)])
def test_keys_of_one_party_are_uniform(threshold: int, offset: int) -> None:
    assert alarm(views(6, threshold, offset)) > ALARM


Hash = Callable[[Any, Words, Words], Words]


def control_on_the_path_only(cipher: Any, places: Words, room: Words, plain: Hash) -> Words:
    result = plain(cipher, places, room)
    result[..., 0] &= ~np.uint64(1)
    return result


def values_without_mask(cipher: Any, places: Words, room: Words, plain: Hash) -> Words:
    result = plain(cipher, places, room)
    if places.ndim == 4 and len(places) != 4:
        result[:] = 0
    return result


def end_with_half_a_mask(cipher: Any, places: Words, room: Words, plain: Hash) -> Words:
    result = plain(cipher, places, room)
    if places.ndim == 4 and len(places) == 4:
        result[..., 1] = result[..., 0]
    return result


@pytest.mark.parametrize(
    "broken", [control_on_the_path_only, values_without_mask, end_with_half_a_mask]
)
def test_a_broken_mask_is_seen(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Words]
) -> None:
    plain = dcf._hash
    monkeypatch.setattr(dcf, "_hash", lambda *given: broken(*given, plain))
    assert alarm(views(6, 0b101101, 1)) < ALARM


def test_differences_are_random_but_for_the_lowest_bit() -> None:
    dealt = Dealt.of(6, [5] * 4096, 0)
    own = dealt.roots[0].reshape(-1, 2) ^ dealt.correction.reshape(-1, 2)
    rest = Seen((own[:, 0] >> np.uint64(1)).view(np.int64), 63)
    assert alarm({"low": [rest], "high": [Seen(own[:, 1].copy().view(np.int64), 64)]}) > ALARM


def turned_around(dealt: Dealt) -> bool:
    """Whether party 0 gets party 1's root from the first correction by the inverse cipher."""
    inverse = Cipher(algorithms.AES128(bytes(16)), modes.ECB()).decryptor()
    own, place = dcf._roots("own", dealt.roots[0], 0, 1), np.empty((1, 2), np.uint64)
    dcf._sigma(own, place)
    known = dealt.common[:2].reshape(1, 2) ^ dcf._hash(dcf._cipher(), place, dcf._Room.of(1))
    guesses = [inverse.update(words.tobytes()) for words in (known, known ^ own)]
    root = dealt.correction.reshape(1, 2).copy()
    dcf._sigma(root, place)
    return root.tobytes() in guesses or place.tobytes() in guesses


def no_orthomorphism(seeds: Words, out: Words) -> None:
    out[:] = seeds


def no_feedback(cipher: Any, places: Words, room: Any) -> Words:
    cipher.update_into(places.view(np.uint8).data, room.octets.data)
    return room.blocks[: len(places)]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("name", "broken", "threshold"),
    [("_sigma", no_orthomorphism, 0), ("_hash", no_feedback, 63)],
)
def test_the_cipher_cannot_be_turned_around(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: Callable[..., Any], threshold: int
) -> None:
    assert not turned_around(Dealt.of(6, [threshold], 0))
    monkeypatch.setattr(dcf, name, broken)
    assert turned_around(Dealt.of(6, [threshold], 0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 0}, "bits=0 to be in 1..43"),
        ({"bits": 44}, "bits=44 to be in 1..43"),
        (
            {"thresholds": np.array([16, 3], np.uint64)},
            r"thresholds.min\(\)=3 and thresholds.max\(\)=16 .* 0..15",
        ),
        ({"offsets": np.array([2, 0], np.uint8)}, r"offsets.max\(\)=2 to be in 0..1"),
        ({"offsets": np.zeros(3, np.uint8)}, r"offsets.shape=\(3,\) to be \(2,\)"),
        ({"key": 4}, r"key.bit_length\(\)=3 and key % 2=0 to be"),
        ({"key": 2**64 + 1}, r"key.bit_length\(\)=65 and key % 2=1 to be"),
        ({"own": np.zeros((2, 3), np.uint64)}, r"own.shape=\(2, 3\) to be \(2, 2\)"),
        ({"own_of_other": np.zeros((1, 2), np.uint64)}, r"own_of_other.shape=\(1, 2\) to be"),
    ],
)
def test_wrong_secrets_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "bits": 4,
        "thresholds": np.array([15, 3], np.uint64),
        "offsets": np.zeros(2, np.uint8),
        "key": KEY,
        "own": np.zeros((2, 2), np.uint64),
        "own_of_other": np.zeros((2, 2), np.uint64),
    }
    generate(**given)
    with pytest.raises(ValueError, match=message):
        generate(**given | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bits": 44}, "bits=44 to be in 1..43"),
        ({"party": 2}, "party=2 to be 0 or 1"),
        ({"points": np.array([-1, 0])}, r"points.min\(\)=-1 and points.max\(\)=0 .* 0..15"),
        ({"points": np.array([[1, 0]])}, "points.ndim=2 to be 1"),
        ({"points": np.array([1])}, r"common.shape=\(11, 2\) to be \(11, 1\)"),
        ({"common": np.zeros((10, 2), np.uint64)}, r"common.shape=\(10, 2\) to be \(11, 2\)"),
        ({"own_or_correction": np.zeros(4, np.uint64)}, r"own_or_correction.shape=\(4,\) to be"),
    ],
)
def test_wrong_keys_and_points_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "bits": 4,
        "party": 1,
        "own_or_correction": np.zeros((2, 2), np.uint64),
        "common": np.zeros((11, 2), np.uint64),
        "points": np.array([15, 0]),
    }
    evaluate(**given)
    with pytest.raises(ValueError, match=message):
        evaluate(**given | changed)
