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

from privtrain.core.validate import check_count, check_member, check_seed
from privtrain.core.words import Words

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


class _Key(np.random.bit_generator.ISeedSequence):
    """Hands a key to a generator as it is; `Philox(key=...)` asks the system for entropy first."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray[Any, Any]:
        """The first bytes of the key."""
        found = np.frombuffer(self._key, dtype=np.dtype(dtype).newbyteorder("<"), count=n_words)
        return found.astype(dtype)


def kind_of(entropy: EntropyKind | None, *, real: bool) -> EntropyKind:
    """The asked kind of entropy; None for the system's wherever parties are real processes.

    Raises:
        ValueError: If there is no such kind.
    """
    if entropy is None:
        return SYSTEM if real else SEEDED
    check_member([*EntropyKind], entropy=entropy)
    return EntropyKind(entropy)


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
        return np.random.Generator(np.random.Philox(source))

    def words(self) -> Words:
        """Words from AES-256 under the whole key: for noise that has to withstand an attacker."""
        return Words(self.key)

    def torch(self) -> torch.Generator:
        """A generator of torch's own: for data order and initialisation, never for secrets."""
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(self.key[:8], "little") >> 1)
        return generator


def derive(root: bytes, name: Name) -> Stream:
    """The stream of a name under a root: SHA-256 of both, unambiguously encoded."""
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
        return derive(f"privtrain/seeds/{self.seed}/".encode(), name)


@dataclass(frozen=True)
class SeededEntropy:
    """Entropy for simulation: whoever knows the seed knows every secret.

    Args:
        seed: The seed, a whole number; other secrets than those of `Seeds` with the same number.
        attempt: How often the run was resumed, so that a resumed run draws fresh noise.
        fit: Which fit of a study this is, from 0: noise that two of them share would cancel.
    """

    seed: int
    attempt: int = 0
    fit: int = 0
    kind: EntropyKind = field(default=SEEDED, init=False)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_count(0, attempt=self.attempt, fit=self.fit)

    def __getitem__(self, name: Name) -> Stream:
        """The stream of a name; the same name gives the same stream in every process."""
        of_study = f"{self.fit}/" if self.fit else ""
        root = f"privtrain/entropy/{self.seed}/{self.attempt}/{of_study}"
        return derive(root.encode(), name)


@dataclass(frozen=True)
class SystemEntropy:
    """Entropy of the operating system: every call gives another stream."""

    kind: EntropyKind = field(default=SYSTEM, init=False)

    def __getitem__(self, name: Name) -> Stream:
        """A fresh stream; the name plays no part, since nothing here can be replayed."""
        return Stream(os.urandom(32))


Entropy = SeededEntropy | SystemEntropy


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
        """Where the streams come from."""
        return self.source.kind

    def __getitem__(self, name: Name) -> Stream:
        """The stream of a name.

        Raises:
            RuntimeError: If the name was asked for before.
        """
        if name in self._given:
            raise RuntimeError(f"The stream {name} was asked for twice; noise must never repeat.")
        self._given.add(name)
        return self.source[name]


@contextmanager
def global_generator(stream: Stream) -> Iterator[None]:
    """Lets torch's global generators start from a stream, and puts them back afterwards.

    Layers initialise themselves and drop units with the global generators, and there is no way to
    hand them others.
    """
    before = torch.get_rng_state()
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
