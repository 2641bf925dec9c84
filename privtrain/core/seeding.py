"""Streams of random numbers: one for data order and initialisation, another for secrets.

Each stream has a name, a round and a party, and nobody asks twice for the same one.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privtrain.core.validate import check_count, check_member, check_seed

KEY_BYTES = 32
# Read again and again: as many zeros as words are asked for would double the memory.
_ZEROS = memoryview(bytes(2**18))

# A key is a name and not a place in one long sequence: what one party draws does not depend on who
# drew before it, so every runtime, in whatever order it runs the parties, gives the same bits.
Name = tuple[str, int, str]
"""What a stream is called: its purpose, the round, the party."""


class EntropyKind(StrEnum):
    """Where noise, shares, masks and keys come from."""

    SEEDED = "seeded"
    SYSTEM = "system"


SEEDED = EntropyKind.SEEDED
"""From the user's seed, for simulation: void if the seed is known."""

SYSTEM = EntropyKind.SYSTEM
"""From the operating system, each party its own: for real processes and deployment."""


class Words:
    """Uniform 64-bit words under one key: whoever has the key draws the same ones.

    Nobody who lacks the key tells the words from random ones, as long as AES holds.

    Args:
        key: 32 bytes, which serve this stream only.
        counter: First block, 16 bytes.

    Raises:
        ValueError: If the key has another length.

    Source: NIST SP 800-38A, section 6.5 (counter mode), with AES-256.
    """

    def __init__(self, key: bytes, counter: bytes = bytes(16)) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"Expected len(key)={len(key)} to be {KEY_BYTES}.")
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()

    def take(self, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The next words.

        Args:
            count: How many; at least zero.

        Returns:
            uint64, shape `(count,)`; the same on every machine.
        """
        size = 8 * count
        # The cipher wants space for one block more, less a byte.
        words = np.empty(size + 15, dtype=np.uint8)
        # Section 6.5: ciphertext = plaintext XOR output blocks. Of zeros it is the output blocks.
        for start in range(0, size, len(_ZEROS)):
            self._stream.update_into(_ZEROS[: size - start], words[start:].data)
        return words[:size].view("<u8").astype(np.uint64, copy=False)


class _Key(np.random.bit_generator.ISeedSequence):
    """Hands a key to a generator as it is; `Philox(key=...)` asks the system for entropy first."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray[Any, Any]:
        """The first bytes of the key."""
        # Little-endian on every machine, so that a key means the same noise on each.
        words = np.frombuffer(self._key, dtype=np.dtype(dtype).newbyteorder("<"), count=n_words)
        return words.astype(dtype)


def kind_of(entropy: EntropyKind | None, *, real: bool) -> EntropyKind:
    """The asked kind of entropy; None for the system's wherever parties are real processes.

    Raises:
        ValueError: If there is no such kind.
    """
    if entropy is None:
        # Real parties protect themselves from each other: a seed that all of them know would tell
        # each of them everybody's noise, shares and masks.
        return SYSTEM if real else SEEDED
    check_member([*EntropyKind], entropy=entropy)
    return EntropyKind(entropy)


# Frozen, as all sources of streams are: a value that pickles can be sent to a worker, which then
# draws what it would have drawn here.
@dataclass(frozen=True)
class Stream:
    """A key of 32 bytes, from which generators start.

    Args:
        key: The key; never printed.
    """

    key: bytes = field(repr=False)

    def numpy(self) -> np.random.Generator:
        """A counter-based generator with a 128-bit key: for noise, the same on every device."""
        source: Any = _Key(self.key)  # numpy's types know of its own kinds of seeds only
        # Philox because it is counter-based: torch's CPU generator uses 32 bits of its seed, and a
        # GPU has another one, so the same seed would give other noise there (decision 006).
        return np.random.Generator(np.random.Philox(source))

    def words(self) -> Words:
        """Words from AES-256 under the whole key: for noise that has to withstand an attacker."""
        return Words(self.key)

    def torch(self) -> torch.Generator:
        """A generator of torch's own: for data order and initialisation, never for secrets."""
        generator = torch.Generator()
        # 63 bits: as a signed number the seed is the same positive one.
        generator.manual_seed(int.from_bytes(self.key[:8], "little") >> 1)
        return generator


def derive(root: bytes, name: Name) -> Stream:
    """The stream of a name under a root: SHA-256 of both, unambiguously encoded."""
    # `repr` quotes and escapes: joined by a separator, ("a/1", 1, "b") could read as another name.
    return Stream(hashlib.sha256(root + repr(name).encode()).digest())


class Streams(Protocol):
    """Gives one stream for each name."""

    def __getitem__(self, name: Name) -> Stream:
        """The stream of a name."""
        ...


@dataclass(frozen=True)
class Seeds:
    """Streams that follow from a public seed: data order, initialisation, sampling of clients.

    Args:
        seed: The public seed, a whole number.

    Raises:
        ValueError: If it is none.
    """

    seed: int

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def __getitem__(self, name: Name) -> Stream:
        """The stream of a name; the same name gives the same stream in every process."""
        # Another root than that of SeededEntropy: under one, the data order of a seed, which is
        # public, could be the secret of the same seed.
        return derive(f"privtrain/seeds/{self.seed}/".encode(), name)


@dataclass(frozen=True)
class SeededEntropy:
    """Entropy for simulation: whoever knows the seed knows every secret.

    Args:
        seed: The seed, a whole number; other secrets than those of `Seeds` with the same number.
        attempt: How often the run was resumed, so that a resumed run draws fresh noise.
        fit: Which fit of a study this is, from 0: noise that two of them share would cancel.
        root: What else the streams follow from, as `runs.roots.noise_root` makes it of a fit.
    """

    seed: int
    attempt: int = 0
    fit: int = 0
    root: bytes = field(default=b"", repr=False)
    kind: EntropyKind = field(default=SEEDED, init=False)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_count(0, attempt=self.attempt, fit=self.fit)

    def __getitem__(self, name: Name) -> Stream:
        # Nothing for the first fit, which then draws what it would draw outside a study.
        of_study = f"{self.fit}/" if self.fit else ""
        root = f"privtrain/entropy/{self.seed}/{self.attempt}/{of_study}".encode()
        # Hashed together first: a root of any length cannot run into the name.
        return derive(hashlib.sha256(self.root + root).digest() if self.root else root, name)


@dataclass(frozen=True)
class SystemEntropy:
    """Entropy of the operating system: every call gives another stream."""

    kind: EntropyKind = field(default=SYSTEM, init=False)

    def __getitem__(self, name: Name) -> Stream:
        """A fresh stream; the name plays no part, since nothing here can be replayed."""
        return Stream(os.urandom(32))


Entropy = SeededEntropy | SystemEntropy


# Two releases under one noise differ by their sums alone: subtracting them removes the noise and
# leaves the difference exact. An error is better than such a release, so it is no mere warning.
@dataclass
class OnceOnly:
    """Entropy that gives each name out once: reused noise would cancel.

    Args:
        source: Where the streams come from.
    """

    source: Entropy
    _given: set[Name] = field(default_factory=set, repr=False)

    @property
    def kind(self) -> EntropyKind:
        """The kind of its source."""
        return self.source.kind

    def __getitem__(self, name: Name) -> Stream:
        """The stream of a name.

        Raises:
            RuntimeError: If the name was asked for before.
        """
        if name in self._given:
            raise RuntimeError(f"The stream {name} was asked for twice; noise must never repeat.")
        # Also for SYSTEM entropy, which would give another stream: code that asks twice has to fail
        # whatever kind of entropy it is tried with.
        self._given.add(name)
        return self.source[name]


@contextmanager
def global_generator(stream: Stream) -> Iterator[None]:
    """Lets torch's global generators start from a stream, and puts them back afterwards.

    Layers initialise themselves and drop units with the global generators, and there is no way to
    hand them others.
    """
    before = torch.get_rng_state()
    # Each device has a generator of its own, from which layers on it drop units.
    on_devices = torch.cuda.is_available()
    devices_before = torch.cuda.get_rng_state_all() if on_devices else []
    torch.set_rng_state(stream.torch().get_state())
    if on_devices:
        torch.cuda.manual_seed_all(stream.torch().initial_seed())
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if on_devices:
            torch.cuda.set_rng_state_all(devices_before)
