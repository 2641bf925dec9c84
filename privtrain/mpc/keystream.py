"""Random ring elements from AES-256-CTR, and keys that two parties agree on in the open."""

import hashlib
import os
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.core.seeding import KEY_BYTES, Words

_AHEAD = 2**13
"""Words that are computed at once, 64 kB."""


class Keystream:
    """A stream of uniform 64-bit integers under one key: parties with the same key draw the same.

    torch's own generator keeps 32 bits of its seed and is no cryptographic one.

    Args:
        key: 32 bytes; from the operating system where it is left out.
    """

    def __init__(self, key: bytes | None = None) -> None:
        # A key serves one stream only, so the counter may start at zero: a second stream under the
        # same key would repeat the first, and two shares masked alike give away their difference.
        self._words = Words(os.urandom(KEY_BYTES) if key is None else key)
        self._ahead = np.empty(0, np.int64)
        self._start = 0

    def integers(self, shape: Sequence[int]) -> Tensor:
        """The next uniform integers of the ring.

        Args:
            shape: Shape of the tensor.

        Returns:
            int64, uniform over all 2^64 values.
        """
        count = prod(shape)
        end = self._start + count
        if end > len(self._ahead):
            # One call of the cipher for many small draws; each word is handed out once.
            rest = self._ahead[self._start :]
            octets = np.empty(8 * max(count, _AHEAD) + 15, np.uint8)
            octets[: rest.nbytes] = rest.view(np.uint8)
            self._words.write(octets[rest.nbytes :])
            self._ahead = octets[:-15].view("<i8").astype(np.int64, copy=False)
            self._start, end = 0, count
        words = self._ahead[self._start : end]
        self._start = end
        return torch.from_numpy(words.reshape(shape))


class BoundKeystream:
    """A stream whose words follow from its key and from all that they were drawn for so far.

    Where one of two parties draws for something else than the other, by a lie of a third about
    shapes for example, all that follows is independent: no word is a mask here and known there.

    Args:
        key: 32 bytes, which serve this stream only.
    """

    def __init__(self, key: bytes) -> None:
        self._words = Words(key)
        self._uses = b""

    def bind(self, use: str) -> None:
        """Says what the next words are for."""
        self._uses = hashlib.sha256(self._uses + use.encode()).digest()
        # Blocks of two uses meet with a probability of about their number / 2^128.
        self._words.restart(self._uses[:16])

    def integers(self, shape: Sequence[int]) -> Tensor:
        """The next uniform integers of the ring, int64."""
        octets = np.empty(8 * prod(shape) + 15, np.uint8)
        self._words.write(octets)
        words = octets[:-15].view("<i8").astype(np.int64, copy=False)
        return torch.from_numpy(words.reshape(tuple(shape)))


class KeyAgreement:
    """One party's half of an X25519 key agreement (RFC 7748), fresh for one session.

    A listener learns no key. Nothing here authenticates the other party.

    Args:
        private: The private key that an earlier half of this party had, 32 bytes; a fresh one
            where it is left out.
    """

    def __init__(self, private: bytes | None = None) -> None:
        known = None if private is None else X25519PrivateKey.from_private_bytes(private)
        self._private = known or X25519PrivateKey.generate()

    @property
    def private(self) -> bytes:
        """The private key, 32 bytes, which the party keeps to itself."""
        return self._private.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes, which is sent to every party."""
        return self._private.public_key().public_bytes_raw()

    def key(self, other: bytes, purpose: str) -> bytes:
        """A key that only this party and the owner of a public key know.

        Args:
            other: The other party's public key, 32 bytes.
            purpose: What the key is for; other purposes give independent keys.

        Returns:
            32 bytes.

        Raises:
            ProtocolError: If it is no public key, or one that leads everybody to the same point.
        """
        # RFC 7748, Section 6.1; the shared point is no uniform string, so HKDF (RFC 5869) derives
        # the key from it, bound to its purpose.
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError as error:
            raise ProtocolError(
                f"A party sent {other.hex()!r} as its public key, with which no key can be agreed: "
                f"{error}"
            ) from error
        derive = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode())
        return derive.derive(secret)
