"""The check that catches a party that deviates: all openings since the last one, in three rounds.

An opened value is a sum with public factors of dealt values, whose MACs were dealt with them; the
same sum of MAC shares, less the opened value times a key, is zero over both parties. Of each opened
tensor and key random sums are compared, with coefficients that nobody knew while it was opened.

Source: SPDZ2k (Cramer et al. 2018, eprint 2018/482), batch check, on whole ring elements; products
of matrices by random rows (Freivalds 1977); docs/decisions/026-authenticated-engine.md.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.errors import PartyLostError, ProtocolError, TamperedShareError
from privtrain.core.links import Link
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.spdz2k.forms import Form, contracted

COIN_COMMITMENT, COIN = "coin commitment", "coin"
COMMITMENT, OPENING = "check commitment", "check opening"

MOST_PENDING = 1 << 22
"""Words of MACs that wait for a check at most, 32 MiB, before one is made."""

_COIN_BYTES = 32
_LABEL = b"privtrain spdz2k "


@dataclass(frozen=True)
class Strength:
    """How hard it is to deviate unnoticed.

    Args:
        key_bits: s: bits of a key and of each coefficient.
        keys: How many independent keys there are.
    """

    key_bits: int = 20
    keys: int = 3

    @property
    def error_bits(self) -> float:
        """A run accepts a wrong result with a probability of at most two to minus this.

        Of one key it is 2^-s (s + 1): the factors of two in a random sum of errors add to those
        that the key has to have (SPDZ2k, Lemma 1).
        """
        return self.keys * (self.key_bits - math.log2(self.key_bits + 1))


@dataclass
class Check:
    """What one party opened and has not checked yet.

    Args:
        link: Its link.
        other: The other computing party.
        keys: Its shares of the keys, `(keys,)`.
        strength: As for both parties.
    """

    link: Link
    other: str
    keys: Tensor = field(repr=False)
    strength: Strength = Strength()
    _opened: list[tuple[Form, Tensor]] = field(default_factory=list, init=False, repr=False)
    _tags: "hashlib._Hash" = field(default_factory=hashlib.sha256, init=False, repr=False)
    _steps: list[tuple[int, str]] = field(default_factory=list, init=False, repr=False)
    _pending: int = field(default=0, init=False)
    _number: int = field(default=0, init=False)
    _coin: bytes = field(default=b"", init=False, repr=False)
    _promised: bytes = field(default=b"", init=False, repr=False)
    _failed: TamperedShareError | None = field(default=None, init=False, repr=False)

    def begin(self) -> None:
        """Commits to the first coin; before anything is opened."""
        self._send(COIN_COMMITMENT, self._next_coin())
        self._promised = self._receive(COIN_COMMITMENT, _COIN_BYTES)

    @property
    def full(self) -> bool:
        """Whether a check is due for the memory that openings take."""
        return self._pending > MOST_PENDING

    def go_on(self) -> None:
        """Refuses to open anything, or to check, after a check that failed.

        Raises:
            TamperedShareError: As that check did.
        """
        if self._failed is not None:
            raise self._failed

    def step(self, number: int, kind: str) -> None:
        """Notes which opening this is, for errors."""
        self._steps.append((number, kind))

    def value(self, form: Form, opened: Tensor) -> None:
        """Notes an opened value."""
        if opened.numel():
            self._opened.append((form, opened))
            self._pending += self.strength.keys * opened.numel()

    def bits(self, residue: NDArray[np.uint64]) -> None:
        """Notes shares of tags, less what opened bits say they add up to: equal at both parties."""
        self._tags.update(residue.tobytes())

    def run(self) -> None:
        """Checks all that was opened.

        Raises:
            TamperedShareError: If something was changed, with the openings it may be of.
        """
        self.go_on()
        if not self._steps:
            return
        digest = self._digest(self._coefficients())
        nonce = os.urandom(_COIN_BYTES)
        self._send(COMMITMENT, self._hashed(b"check", self.link.rank, digest + nonce))
        promised = self._receive(COMMITMENT, _COIN_BYTES)
        # Not the vector itself, and only now: else keys could be tried until one's own fits.
        self._send(OPENING, nonce + self._next_coin())
        said = self._receive(OPENING, 2 * _COIN_BYTES)
        nonce, self._promised = said[:_COIN_BYTES], said[_COIN_BYTES:]
        if self._hashed(b"check", 1 - self.link.rank, digest + nonce, back=1) != promised:
            raise self._tampered("do not fit their MACs")
        self._steps, self._pending = [], 0

    def _coefficients(self) -> Keystream:
        """Coefficients that neither party could know before all was opened."""
        self._send(COIN, self._coin)
        other = self._receive(COIN, _COIN_BYTES)
        if self._hashed(b"coin", 1 - self.link.rank, other) != self._promised:
            raise self._tampered(f"are checked with another {COIN!r} than was committed to")
        coins = (self._coin, other) if self.link.rank == 0 else (other, self._coin)
        return Keystream(self._hashed(b"coefficients", 2, b"".join(coins)))

    def _digest(self, coefficients: Keystream) -> bytes:
        """Of the check vector, with which party 1's is made equal to party 0's."""
        state = self._tags
        state.update(self._number.to_bytes(8, "little"))
        mask = (1 << self.strength.key_bits) - 1
        sign = 1 if self.link.rank == 0 else -1
        for form, opened in self._opened:
            rows = coefficients.integers((self.strength.keys, form.rows)) & mask
            public = opened.reshape(1, form.rows, -1).expand(self.strength.keys, -1, -1)
            owed = contracted(public, rows) * self.keys.unsqueeze(1)
            vector = (form.contracted(rows) - owed) * sign
            state.update(vector.contiguous().numpy().tobytes())
        self._opened, self._tags = [], hashlib.sha256()
        return state.digest()

    def _next_coin(self) -> bytes:
        """Draws a coin, and what commits to it."""
        self._coin = os.urandom(_COIN_BYTES)
        self._number += 1
        return self._hashed(b"coin", self.link.rank, self._coin)

    def _hashed(self, what: bytes, role: int, content: bytes, *, back: int = 0) -> bytes:
        # With the role, or an echo of this party's own message would fit.
        number = (self._number - back).to_bytes(8, "little")
        return hashlib.sha256(_LABEL + what + bytes([role]) + number + content).digest()

    def _send(self, kind: str, content: bytes) -> None:
        self.link.send(self.other, kind, torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def _receive(self, kind: str, size: int) -> bytes:
        return heard(self.link, self.other, kind, (size,), torch.uint8).numpy().tobytes()

    def _tampered(self, what: str) -> TamperedShareError:
        (first, _), (last, _) = self._steps[0], self._steps[-1]
        kinds = ", ".join(dict.fromkeys(repr(kind) for _, kind in self._steps))
        own = self.link.names[self.link.rank]
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        # Whoever deviates may say so as well: who it was does not follow from the error.
        self._failed = TamperedShareError(
            f"What {own} and {self.other} opened in {steps} ({kinds}) {what}: one of them, or who "
            f"sits between them, changed a message or computed something else. {own} read nothing "
            "of it. Find out who; a new run has new keys and new material."
        )
        return self._failed


def heard(
    link: Link, sender: str, kind: str, shape: Sequence[int], dtype: torch.dtype = torch.int64
) -> Tensor:
    """The next message of a party, which may say anything.

    Raises:
        TamperedShareError: If it has another shape or type than this party's program expects.
    """
    try:
        message = link.receive(sender, kind)
    except PartyLostError:
        raise
    except ProtocolError as error:
        # Of another kind, for example: how an abort looks is not for who deviates to choose.
        raise TamperedShareError(f"{error} {link.names[link.rank]} read nothing of it.") from error
    if message.shape != torch.Size(shape) or message.dtype != dtype:
        raise TamperedShareError(
            f"Expected the {kind!r} of {sender} to be {tuple(shape)} of {dtype}; got "
            f"{tuple(message.shape)} of {message.dtype}: it runs another program than "
            f"{link.names[link.rank]}, or the message was changed. This party read nothing of it."
        )
    return message
