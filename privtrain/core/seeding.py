"""Streams of random numbers: one for data order and initialisation, another for secrets.

Each stream has a name, a round and a party, and nobody asks twice for the same one.
"""

import hashlib
import os
import pickle
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.random import mtrand
from torch import Tensor

from privtrain.core.errors import UnsupportedError
from privtrain.core.validate import check_count, check_member, check_seed

KEY_BYTES = 32
# Read again and again: as many zeros as words are asked for would double the memory.
_ZEROS = memoryview(bytes(2**18))

# A key is a name and not a place in one long sequence: what one party draws does not depend on who
# drew before it, so every runtime, in whatever order it runs the parties, gives the same bits.
Name = tuple[str, int, str]
"""What a stream is called: its purpose, the round, the party."""


Halves = np.ndarray[Any, np.dtype[np.uint32]]
"""Words of 32 bits."""


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

    def restart(self, counter: bytes) -> None:
        """Goes on from another block, which must not meet those that were drawn before.

        Args:
            counter: Its number, 16 bytes.
        """
        self._stream.reset_nonce(counter)

    def take(self, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The next words.

        Args:
            count: How many; at least zero.

        Returns:
            uint64, shape `(count,)`; the same on every machine.
        """
        # The cipher wants space for one block more, less a byte.
        octets = np.empty(8 * count + 15, dtype=np.uint8)
        self.write(octets)
        return octets[:-15].view("<u8").astype(np.uint64, copy=False)

    def write(self, octets: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Writes the next words, little-endian, where their memory is there already.

        Args:
            octets: What is written; whole words, and 15 bytes more that are not the stream's.
        """
        size = len(octets) - 15
        # Section 6.5: ciphertext = plaintext XOR output blocks. Of zeros it is the output blocks.
        for start in range(0, size, len(_ZEROS)):
            self._stream.update_into(_ZEROS[: size - start], octets[start:].data)


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


class _NoEntropy:
    """Entropy of who draws nothing secret."""

    @property
    def kind(self) -> EntropyKind:
        return SEEDED

    def __getitem__(self, name: Name) -> Stream:
        raise RuntimeError(f"The secret stream {name} was asked for where none may be drawn.")


NO_ENTROPY = _NoEntropy()
"""Entropy that gives out no stream, for processes whose streams nobody would count."""

_TWISTER = 624
"""Words of 32 bits in the state of a Mersenne twister, as torch, numpy and Python have one."""

# Where torch keeps the seed and those words, as 64-bit numbers: the legacy part of
# `CPUGeneratorImplState`, in ATen/CPUGeneratorImpl.cpp.
_SEED, _STATE = 0, slice(3, 3 + _TWISTER)

# One thread at a time: each would start the process's generators for itself, and one's masks would
# come from the other's public seed.
_BORROWED = threading.RLock()

# True where somebody puts numpy's and Python's generators back later on, and draws nothing
# meanwhile; False within a block that draws from them.
_KEPT: ContextVar[bool | None] = ContextVar("kept", default=None)


class _Keepers:
    """Threads that will put the generators back: the first one reads them, the last one writes."""

    # Each for itself would read what another one's step had left there, and put that back.
    def __init__(self) -> None:
        self.count = 0
        self._ours: Any = np.random.MT19937(0)
        self._theirs: Any = None
        self._states: tuple[Any, Any] = (None, None)

    def read(self) -> None:
        """Keeps both, and lets numpy's functions draw from another generator."""
        # Theirs rests untouched: exchanged in a microsecond, while writing takes a hundred.
        self._theirs = mtrand.get_bit_generator()
        self._states = _spare_normal(), random.getstate()
        mtrand.set_bit_generator(self._ours)

    def write(self) -> None:
        """Puts both back."""
        for_numpy, for_python = self._states
        mtrand.set_bit_generator(self._theirs)
        if for_numpy is not None:
            np.random.set_state(for_numpy)
        random.setstate(for_python)


# True where somebody looks after the spare normal.
_SPARED: ContextVar[bool] = ContextVar("spared", default=False)


def _spare_normal() -> Any:
    """Numpy's state, where it holds the second normal of a pair, which an exchange forgets."""
    if _SPARED.get():
        return None
    state: Any = np.random.get_state(legacy=False)
    return state if state["has_gauss"] else None


@contextmanager
def spare_normal_kept() -> Iterator[None]:
    """Looks after numpy's spare normal, once for many blocks that borrow the generators.

    Reading a state takes as long as a small layer. Unlike `kept_generators` it lets others draw
    between the blocks: what they drew is never drawn again.
    """
    spare, theirs = _spare_normal(), mtrand.get_bit_generator()
    token = _SPARED.set(True)
    try:
        yield
    finally:
        _SPARED.reset(token)
        if spare is not None and mtrand.get_bit_generator() is theirs:
            now: Any = np.random.get_state(legacy=False)
            now |= {key: spare[key] for key in ("has_gauss", "gauss")}
            if pickle.dumps(now) == pickle.dumps(spare):
                np.random.set_state(spare)


_KEEPERS = _Keepers()


@contextmanager
def kept_generators() -> Iterator[None]:
    """Puts numpy's and Python's global generators back in the end, once for all that borrow them.

    Their states take a tenth of a millisecond to read and as long to write: too long for each step.
    """
    if _KEPT.get():
        yield
        return
    # Within a block that draws, which lets nobody else in, keepers count anew.
    keepers = _KEEPERS if _KEPT.get() is None else _Keepers()
    # Not in the middle of another thread's step, which draws from them.
    with _BORROWED:
        if keepers.count == 0:
            keepers.read()
        keepers.count += 1
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)
        with _BORROWED:
            keepers.count -= 1
            if keepers.count == 0:
                keepers.write()


@contextmanager
def _borrowed(
    torch_state: Tensor, device_seed: int, for_numpy: Halves, for_python: bytes
) -> Iterator[None]:
    """Starts torch's, numpy's and Python's global generators, and puts them back afterwards.

    Args:
        torch_state: State of the CPU's generator.
        device_seed: Seed of the generators of other devices; 64 bits.
        for_numpy: What numpy's generator starts from.
        for_python: What Python's starts from.
    """
    with kept_generators(), _BORROWED:
        before = torch.get_rng_state()
        # Each device has a generator of its own, from which layers on it drop units.
        on_devices = torch.cuda.is_available()
        devices_before = torch.cuda.get_rng_state_all() if on_devices else []
        # They are drawn from in here: whoever borrows them meanwhile has to put all of them back.
        token = _KEPT.set(False)
        try:
            torch.set_rng_state(torch_state)
            if on_devices:
                torch.cuda.manual_seed_all(device_seed)
            np.random.seed(for_numpy)
            random.seed(for_python)
            yield
        finally:
            _KEPT.reset(token)
            torch.set_rng_state(before)
            if on_devices:
                torch.cuda.set_rng_state_all(devices_before)


@contextmanager
def global_generator(stream: Stream) -> Iterator[None]:
    """Lets the global generators start from a stream: torch's, numpy's and Python's.

    Layers initialise themselves and drop units with the global generators, and there is no way to
    hand them others. They are put back afterwards. Not for secrets; see `secret_generators`. One
    thread at a time is let in, so that none may wait in here for another one that wants in.
    """
    generator = stream.torch()
    state, seed = generator.get_state(), generator.initial_seed()
    with _borrowed(state, seed, np.frombuffer(stream.key, "<u4"), stream.key):
        yield


# Drawn by place in the batch from a public seed, as an initialisation is, one removed row would
# give every row behind it another mask, and move a sum by many times its sensitivity. Under secret
# draws, whose law is the same for every batch, each row is compared under the same draws.
@contextmanager
def secret_generators(stream: Stream) -> Iterator[None]:
    """Lets the global generators start from a secret that nobody can find by trying seeds.

    For what a model draws while it trains privately, such as dropout masks.

    Args:
        stream: A stream of entropy, for one step alone.

    Raises:
        UnsupportedError: If torch's generator was seeded meanwhile.
    """
    drawn = stream.words().take(2 + _TWISTER + KEY_BYTES // 8)
    seed, device_seed = int(drawn[0]), int(drawn[1])
    words = drawn[2:].astype("<u8", copy=False).view("<u4")
    state = _torch_layout().copy()
    # All words: `manual_seed` makes them from 32 bits, which can be tried one after another.
    state[_SEED], state[_STATE] = seed, words[:_TWISTER]
    torch_state = torch.from_numpy(state.view(np.uint8))
    for_numpy, for_python = words[_TWISTER : 2 * _TWISTER], words[2 * _TWISTER :].tobytes()
    with _borrowed(torch_state, device_seed, for_numpy, for_python):
        yield
        if torch.initial_seed() != seed:
            raise UnsupportedError(
                "The model seeds torch's global generator while it trains. What it draws then "
                "follows from that seed and from the place of a row in the batch, so that a "
                "removed row changes what others draw. Leave out torch.manual_seed."
            )


@cache
def _torch_layout() -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The state of a generator of torch's right after it was seeded, as 64-bit numbers."""
    state = torch.Generator().manual_seed(0).get_state().numpy().view(np.uint64)
    # numpy makes the same words of the same seed. Anywhere else ours would have no effect.
    expected = np.random.RandomState(0).get_state(legacy=False)["state"]["key"]
    if not np.array_equal(state[_STATE], expected):
        raise UnsupportedError(
            f"torch {torch.__version__} keeps the state of its generator in another place than "
            "torch 2.13 does, so that no secret can be put there. Use torch 2.13."
        )
    return state
