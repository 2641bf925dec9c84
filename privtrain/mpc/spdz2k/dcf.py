"""Distributed comparison functions: whether a public number is less than a secret one, as a tag.

For a secret threshold r and a secret bit e, two parties compute from their keys, without messages,
words with w_0 xor w_1 = K if [x < r] xor e, else 0, for every public x. Nothing of r, e and K
follows from one party's key, as long as AES-128 under a fixed key is an ideal cipher.

The keys are those of Boyle et al. 2020 (eprint 2020/1392, Figure 1) over words with exclusive or.
A seed's lowest bit is its control bit. As in the half tree of Guo et al. 2022 (eprint 2022/1431),
both parties' seeds of a node on the path of r differ by one secret difference, the same at all
levels and fresh for each comparison, whose lowest bit is 1; off the path they are equal. So one
block of the cipher gives both children, and one correction serves both. The last bits have no
levels: a seed is expanded to a word for each of their values.

The hash is H(s, j) = pi(y) xor y with y = sigma(s) xor (j, j) and sigma(a, b) = (a xor b, a), by
Guo, Katz, Wang and Yu 2020 (eprint 2019/074): in the ideal-cipher model it looks random on seeds
with a secret difference, also where that difference is added to what it gives (circular correlation
robustness). Each word of a key has as mask a hash word of the other party's seed on the path that
masks no other; without the last "xor y", whoever guesses half a block could turn the cipher around.
The tweak j tells apart children, words of a level and words of the end. Levels and comparisons need
none, as seeds are independent of each other: two of n are equal with a probability of n^2 / 2^128.
A difference has 127 secret bits: who computes the cipher T times against n seeds learns something
with a probability of about n T / 2^127.
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Octets = NDArray[np.uint8]
Bits = NDArray[np.intp]
Points = NDArray[np.int64] | Words

MOST_BITS = 43

_END_BITS = 3
"""Lowest bits without levels: they take 64 bytes, three levels would take 72."""

_BLOCK = 16384
"""Comparisons that are computed at once: enough for calls to cost little, few enough for what is
made of a level to stay in cache."""

_AHEAD = 8192
"""Seeds whose words are computed at once, so that few comparisons take few calls."""

# Tweaks of the hash; words 2i and 2i + 1 of the end have the tweak _END + i.
_VALUES, _END = 1, 2

_MASKS = np.array([[0, 0], [2**64 - 1, 2**64 - 1]], np.uint64)
"""Masks of a seed, for a bit."""


class Sizes(NamedTuple):
    """64-bit words of one comparison.

    Args:
        own: What party 0 draws, and the dealer with it.
        correction: What only party 1 is sent.
        common: What both parties are sent.
    """

    own: int
    correction: int
    common: int


def sizes(bits: int) -> Sizes:
    """The words that one comparison's keys take.

    Args:
        bits: Of thresholds and points, 1 to 43.

    Raises:
        ValueError: If there are fewer or more bits.
    """
    levels, end_bits = _cut(bits)
    return Sizes(own=2, correction=2, common=3 * levels + (1 << end_bits))


def generate(
    bits: int, thresholds: Words, offsets: Octets, key: int, own: Words, own_of_other: Words
) -> tuple[Words, Words]:
    """Keys of comparisons, at the dealer.

    Args:
        bits: Of thresholds and points, 1 to 43.
        thresholds: The secret numbers r, below 2^bits; shape `(comparisons,)`.
        offsets: The secret bits e, 0 or 1, likewise.
        key: The secret tag K, odd, below 2^64.
        own: Uniform words that party 0 draws too, for this call only; `(2, comparisons)`.
        own_of_other: Uniform words that party 0 does not know, likewise.

    Returns:
        What only party 1 is sent, and what both are, `(words, comparisons)` each. Their columns are
        not comparisons: what belongs to one level lies together.

    Raises:
        ValueError: If an argument is out of its range, or shapes do not agree.
    """
    levels, _ = _cut(bits)
    numbers = _numbers("thresholds", thresholds, bits)
    count = len(numbers)
    if _numbers("offsets", offsets, 1).shape != (count,):
        raise ValueError(f"Expected offsets.shape={offsets.shape} to be {(count,)}.")
    # Of secrets, errors name only what is wrong.
    if not 0 < key < 1 << 64 or key % 2 == 0:
        wrong = f"key.bit_length()={key.bit_length()} and key % 2={key % 2}"
        raise ValueError(f"Expected {wrong} to be at most 64 and 1, and the key to be positive.")
    roots = _roots("own", own, 0, count)
    roots_of_other = _roots("own_of_other", own_of_other, 1, count)
    common = np.empty((sizes(bits).common, count), np.uint64)
    corrections = _Corrections.of(common, levels)
    cipher = _cipher()
    for block in _blocks(count):
        differences = roots[block] ^ roots_of_other[block]
        path = _Path(roots[block], differences, np.zeros(len(differences), np.uint64))
        dealt = _Dealt(numbers[block], _mask(offsets[block].astype(np.intp)), np.uint64(key))
        part = corrections.part(block)
        path = _deal_levels(cipher, dealt, _bits(numbers[block], bits, levels), path, part)
        _deal_end(cipher, dealt, path, part.end)
    return roots_of_other.reshape(2, count), common


def evaluate(
    bits: int, party: int, own_or_correction: Words, common: Words, points: Points
) -> Words:
    """One party's words of comparisons at public points.

    Args:
        bits: As at the dealer.
        party: 0 or 1.
        own_or_correction: What party 0 drew, or what only party 1 was sent or drew with the dealer.
        common: What both were sent.
        points: The numbers x, 0 to 2^bits - 1; shape `(comparisons,)`.

    Returns:
        Shape `(comparisons,)`; the exclusive or of both parties' words is K where [x < r] xor e,
        and 0 elsewhere.

    Raises:
        ValueError: If an argument is out of its range, or shapes do not agree.
    """
    levels, _ = _cut(bits)
    numbers = _numbers("points", points, bits)
    count = len(numbers)
    if party not in (0, 1):
        raise ValueError(f"Expected party={party} to be 0 or 1.")
    shape = (sizes(bits).common, count)
    if common.shape != shape:
        raise ValueError(f"Expected common.shape={common.shape} to be {shape}.")
    roots = _roots("own_or_correction", own_or_correction, party, count)
    corrections = _Corrections.of(np.ascontiguousarray(common), levels)
    words = np.empty(count, np.uint64)
    cipher = _cipher()
    for block in _blocks(count):
        point_bits, part = _bits(numbers[block], bits, levels), corrections.part(block)
        seeds, words[block] = _read_levels(cipher, point_bits, roots[block], part)
        words[block] ^= _read_end(cipher, numbers[block], seeds, part.end)
    return words


class _Corrections(NamedTuple):
    """Seeds `(levels, comparisons, 2)`, `(levels, comparisons)` and `(words, comparisons)`."""

    seeds: Words
    values: Words
    end: Words

    @staticmethod
    def of(common: Words, levels: int) -> "_Corrections":
        seeds, values, end = np.split(common, [2 * levels, 3 * levels])
        return _Corrections(seeds.reshape(levels, common.shape[1], 2), values, end)

    def part(self, block: slice) -> "_Corrections":
        return _Corrections(*(words[:, block] for words in self))


class _Path(NamedTuple):
    """Nodes on the paths of thresholds: party 0's seeds, their differences from party 1's, both
    `(comparisons, 2)`, and the exclusive or of both parties' words so far."""

    seeds: Words
    differences: Words
    values: Words


class _Dealt(NamedTuple):
    """What only the dealer knows."""

    thresholds: Words
    offsets: Words
    key: np.uint64

    def tags(self, less: Words) -> Words:
        """K where [x < r] xor e; both bits as masks."""
        return (less ^ self.offsets) & self.key


def _deal_levels(
    cipher: CipherContext, dealt: _Dealt, path_bits: Bits, path: _Path, corrections: _Corrections
) -> _Path:
    """Writes the corrections of all levels; returns the ends of the paths."""
    seeds, differences, values = path
    count = len(seeds)
    ahead = max(1, _AHEAD // (2 * count))
    places, wide = np.empty((ahead, 2, count, 2), np.uint64), _Room.of(ahead, 2, count)
    room = _Room.of(2, count)
    distance = np.empty_like(differences)
    _sigma(differences, distance)
    for first in range(0, len(path_bits), ahead):
        now = slice(first, first + ahead)
        right = path_bits[now]
        for place, mask, correction in zip(
            places[: len(right)], _masks(right), corrections.seeds[now], strict=True
        ):
            _sigma(seeds, place[0])
            np.bitwise_xor(place[0], distance, out=place[1])
            hashed, hashed_of_other = _hash(cipher, place, room)
            # The child off the path gets equal seeds, the other one the same difference again.
            np.bitwise_xor(hashed, hashed_of_other, out=correction)
            correction ^= differences
            correction ^= differences & mask
            controls = _masks(_controls(seeds))
            controls &= correction
            mask &= seeds
            hashed ^= mask
            seeds = hashed ^ controls
        places ^= _VALUES
        words = _hash(cipher, places[: len(right)], wide)
        words = words[:, 0] ^ words[:, 1]
        both = words[..., 0] ^ words[..., 1]
        mask = _mask(right)
        tags = dealt.tags(mask)
        after = both ^ tags
        # Figure 1, V_CW: who leaves the path here has the tag of [x < r], whatever came before.
        correction = corrections.values[now]
        np.bitwise_xor(words[..., 1], both & mask, out=correction)
        correction ^= tags
        correction[0] ^= values
        correction[1:] ^= after[:-1]
        values = after[-1]
    return _Path(seeds, differences, values)


def _deal_end(cipher: CipherContext, dealt: _Dealt, path: _Path, end: Words) -> None:
    """Writes the corrections of the words of the end."""
    size, count = end.shape
    places = np.empty((size // 2, 2, count, 2), np.uint64)
    _sigma(path.seeds, places[0, 0])
    _sigma(path.seeds ^ path.differences, places[0, 1])
    for tweak, place in reversed([*enumerate(places, _END)]):
        np.bitwise_xor(places[0], np.uint64(tweak), out=place)
    hashed = _hash(cipher, places, _Room.of(*places.shape[:-1]))
    words = (hashed[:, 0] ^ hashed[:, 1]).transpose(0, 2, 1).reshape(end.shape)
    numbers = np.arange(size, dtype=np.uint64)[:, np.newaxis]
    less = numbers < (dealt.thresholds & np.uint64(size - 1))
    tags = dealt.tags(_mask(less.astype(np.intp)))
    np.bitwise_xor(words ^ path.values, tags, out=end)


def _read_levels(
    cipher: CipherContext, point_bits: Bits, roots: Words, corrections: _Corrections
) -> tuple[Words, Words]:
    """One party's seeds below all levels, and the exclusive or of the words passed."""
    seeds, count = roots, len(roots)
    ahead = max(1, _AHEAD // count)
    places, masks = np.empty((2, ahead, count, 2), np.uint64)
    controls, mask = np.empty((ahead, count), np.intp), np.empty((count, 2), np.uint64)
    room, spare, wide = _Room.of(count), _Room.of(count), _Room.of(ahead, count)
    total = np.zeros(count, np.uint64)
    for first in range(0, len(point_bits), ahead):
        now = slice(first, first + ahead)
        right = point_bits[now]
        words, control_bits = places[: len(right)], controls[: len(right)]
        child_masks = _masks(right, masks[: len(right)])
        for place, control, child_mask, correction in zip(
            words, control_bits, child_masks, corrections.seeds[now], strict=True
        ):
            _sigma(seeds, place)
            np.bitwise_and(seeds[:, 0].view(np.intp), 1, out=control)
            child = _hash(cipher, place, room)
            child_mask &= seeds
            child ^= child_mask
            _masks(control, mask)
            mask &= correction
            child ^= mask
            seeds, room, spare = child, spare, room
        words ^= _VALUES
        words = _hash(cipher, words, wide)
        read = words[..., 0] ^ words[..., 1]
        read &= _mask(right)
        read ^= words[..., 0]
        read ^= _mask(control_bits) & corrections.values[now]
        total ^= np.bitwise_xor.reduce(read, axis=0)
    return seeds, total


def _read_end(cipher: CipherContext, points: Words, seeds: Words, end: Words) -> Words:
    """One party's words of the end."""
    low = (points & np.uint64(len(end) - 1)).astype(np.intp)
    place = np.empty_like(seeds)
    _sigma(seeds, place)
    tweak = ((low >> 1) + _END).view(np.uint64)
    place[:, 0] ^= tweak
    place[:, 1] ^= tweak
    hashed = _hash(cipher, place, _Room.of(len(place)))
    words: Words = hashed[:, 0] ^ (_mask(low & 1) & (hashed[:, 0] ^ hashed[:, 1]))
    words ^= _mask(_controls(seeds)) & end[low, np.arange(len(low))]
    return words


def _cipher() -> CipherContext:
    return Cipher(algorithms.AES128(bytes(16)), modes.ECB()).encryptor()


class _Room(NamedTuple):
    """Space for what the cipher writes, blocks `(*shape, 2)`."""

    blocks: Words
    octets: Octets

    @staticmethod
    def of(*shape: int) -> "_Room":
        # The cipher wants space for one block more, less a byte.
        words = np.empty(2 * prod(shape) + 2, np.uint64)
        return _Room(words[:-2].reshape(*shape, 2), words.view(np.uint8))


def _sigma(seeds: Words, out: Words) -> None:
    np.bitwise_xor(seeds[:, 0], seeds[:, 1], out=out[:, 0])
    out[:, 1] = seeds[:, 0]


def _hash(cipher: CipherContext, places: Words, room: _Room) -> Words:
    """pi(y) xor y of blocks y, at most as many along the first axis as there is room for."""
    cipher.update_into(places.view(np.uint8).data, room.octets.data)
    hashed = room.blocks[: len(places)]
    hashed ^= places
    return hashed


def _masks(bits: Bits, out: Words | None = None) -> Words:
    """Masks of seeds, `(*bits.shape, 2)`."""
    return _MASKS.take(bits, axis=0, out=out, mode="clip")


def _controls(seeds: Words) -> Bits:
    return (seeds[:, 0] & np.uint64(1)).view(np.intp)


def _mask(bits: Bits) -> Words:
    """All ones where a bit is one, else zero."""
    # Masks throughout: numpy's `where` guesses each of these random bits, and takes thrice as long.
    return np.negative(bits).view(np.uint64)


def _bits(numbers: Words, bits: int, levels: int) -> Bits:
    """Bits of numbers, highest first, `(levels, comparisons)`."""
    places = bits - 1 - np.arange(levels)
    result: Bits = numbers.view(np.intp) >> places[:, np.newaxis]
    result &= 1
    return result


def _cut(bits: int) -> tuple[int, int]:
    """Levels, and bits without them."""
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"Expected bits={bits} to be in 1..{MOST_BITS}.")
    end_bits = min(bits, _END_BITS)
    return bits - end_bits, end_bits


def _numbers(name: str, numbers: Points | Octets, bits: int) -> Words:
    if numbers.ndim != 1:
        raise ValueError(f"Expected {name}.ndim={numbers.ndim} to be 1.")
    # A negative number is a large one without its sign.
    words = numbers.astype(np.uint64, copy=False)
    if len(words) and int(words.max()) >> bits:
        ends = f"{name}.min()={numbers.min()} and {name}.max()={numbers.max()}"
        raise ValueError(f"Expected {ends} to be in 0..{2**bits - 1}.")
    return words


def _roots(name: str, words: Words, party: int, count: int) -> Words:
    """Seeds of the roots `(comparisons, 2)`, whose control bits are the party's number."""
    if words.shape != (2, count):
        raise ValueError(f"Expected {name}.shape={words.shape} to be {(2, count)}.")
    roots = words.reshape(count, 2).copy()
    roots[:, 0] &= ~np.uint64(1)
    roots[:, 0] |= np.uint64(party)
    return roots


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
