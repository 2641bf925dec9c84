"""Proofs of input shares: how two computing parties notice that one of them changed its share.

A data party shares its rows and goes, so that a computing party that deviates could shift rows that
are not its own. For integers x with rows x_1, ..., x_n the data party draws one 32-byte seed for
each computing party; both of them give three rows U of uniform coefficients, and y = U x modulo
2^64 is shared as x is. Each party holds its own seed and a digest of the other's.

To check, each party puts in its shares of x and of y, so that it cannot change them any more, and
only then are the seeds revealed and held against the digests. U x - y is opened, and has to be
zero modulo 2^64. Of x that tells nothing: it is zero unless a share was changed, and then it is
U e - f for changes e of x and f of y, both of them the deviating party's own.

Soundness: who changes x by e and y by f knows one of two seeds then, and the other only by its
digest; so U is uniform to it, up to a guess of 32 bytes (SHA-256 as a random oracle). Where an
element of e is not zero modulo 2^44 it is 2^v times an odd number, v <= 43; the products of a
uniform coefficient with it are 2^(64 - v) values modulo 2^64, each as likely. Whatever the other
elements and f are, U e = f holds in that column with a probability of 2^-(64 - v) <= 2^-21 for each
row of coefficients, and for three independent ones with 2^-63 at most. A party that lies about its
seed has to find another one of the same digest.

Source: products by random rows are those of Freivalds (1977); that inputs are proved to computing
parties by whom they belong to is after Prio (Corrigan-Gibbs and Boneh 2017), with another proof.
"""

import hashlib
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import ProtocolError
from privtrain.mpc.keystream import Keystream
from privtrain.mpc.sharing import share

PROOF = "proof"
"""Comes before the name of a share, where a payload has a proof of it."""

ROWS = 3
"""Rows of coefficients; each alone misses a change with a probability of 2^-21 at most."""

SEED_WORDS = 4
"""Of 64 bits: 32 bytes, as many as a digest has."""

_LABEL = b"privtrain proof of an input share"


@dataclass(frozen=True)
class Proof:
    """What one of two computing parties holds of a proof.

    Args:
        seed: Its own seed, int64, `(4,)`; secret until all shares are put in.
        digest: A digest of the other's seed, int64, `(4,)`.
        answers: Its share of the coefficients times the integers, int64, `(3, width)`.
    """

    seed: Tensor = field(repr=False)
    digest: Tensor = field(repr=False)
    answers: Tensor = field(repr=False)

    @classmethod
    def read(cls, tensor: Tensor, width: int) -> "Proof":
        """The parts of what a data party sent.

        Args:
            tensor: As `prove` makes it.
            width: How many values a row has.

        Raises:
            ProtocolError: If it is no proof of such rows.
        """
        wanted = (2 * SEED_WORDS + ROWS * width,)
        if tensor.dtype != torch.int64 or tuple(tensor.shape) != wanted:
            raise ProtocolError(
                f"Expected the proof of an input share of shape {wanted} and type torch.int64; got "
                f"{tuple(tensor.shape)} and {tensor.dtype}."
            )
        seed, digest = tensor[:SEED_WORDS], tensor[SEED_WORDS : 2 * SEED_WORDS]
        return cls(seed, digest, tensor[2 * SEED_WORDS :].view(ROWS, width))


def prove(integers: Tensor, keystream: Keystream) -> tuple[Tensor, Tensor]:
    """The proof that goes with the two shares of integers, one part to each computing party.

    Args:
        integers: What is shared, int64, `(rows, ...)`; a number without dimensions is one row.
        keystream: The source of randomness; never from the user's seed.

    Returns:
        For ranks 0 and 1, int64, `(8 + 3 width,)`, where `width` is how many values a row has.
        Either part alone is uniformly random, but for its digest.
    """
    flat = flattened(integers)
    seeds = [keystream.integers((SEED_WORDS,)) for _ in range(2)]
    answers = coefficients(seeds[0], seeds[1], len(flat)) @ flat
    parts = zip(seeds, reversed(seeds), share(answers, 2, keystream), strict=True)
    one, other = (
        torch.cat([own, _digest(others, 1 - rank), answer.reshape(-1)])
        for rank, (own, others, answer) in enumerate(parts)
    )
    return one, other


def fits(seed: Tensor, digest: Tensor, rank: int) -> bool:
    """Whether a seed that a party reveals is the one that it was given.

    Args:
        seed: What it reveals, int64, `(4,)`.
        digest: What the other party was given of it, `Proof.digest`.
        rank: The rank of the party that reveals it, 0 or 1.
    """
    return torch.equal(_digest(seed, rank), digest)


def flattened(integers: Tensor) -> Tensor:
    """Rows as a proof counts them, `(rows, width)`."""
    shape = tuple(integers.shape) or (1,)
    return integers.reshape(shape[0], prod(shape[1:]))


def coefficients(first: Tensor, second: Tensor, rows: int) -> Tensor:
    """The coefficients that two seeds give, uniform modulo 2^64.

    Args:
        first: The seed of rank 0, int64, `(4,)`.
        second: The seed of rank 1, int64, `(4,)`.
        rows: How many rows there are.

    Returns:
        int64, `(3, rows)`.
    """
    return Keystream(_hash(b"coefficients", first, second)).integers((ROWS, rows))


def _digest(seed: Tensor, rank: int) -> Tensor:
    """The digest of a party's seed: that of another rank's is another one."""
    octets = _hash(f"seed {rank}".encode(), seed)
    return torch.from_numpy(np.frombuffer(octets, "<i8").astype(np.int64))


def _hash(purpose: bytes, *seeds: Tensor) -> bytes:
    # Seeds are of one length, so that no two inputs are written alike.
    octets = b"".join(seed.numpy().astype("<i8").tobytes() for seed in seeds)
    return hashlib.sha256(_LABEL + b"/" + purpose + b"/" + octets).digest()
