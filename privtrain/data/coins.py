"""Coins: a number in [0, 1) for each row, which follows from that row and from no other one.

What is decided by coins does not move any row when another one joins or leaves the table. Cutting a
shuffled list does: it moves all rows behind the cut (docs/decisions/010).
"""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privtrain.core.task import Rows


def digests(rows: Rows, purpose: str) -> list[bytes]:
    """A digest for each row, of its inputs and its label under a public key.

    Args:
        rows: The rows. Stored bits count: rows that differ in the last bit, or in their type,
            are different rows.
        purpose: The key, as text: digests of two purposes say nothing of each other.

    Returns:
        16 bytes a row; equal rows have equal ones.
    """
    if len(rows) == 0:
        return []
    key = _key(purpose)
    parts = [_bits(part) for part in (rows.inputs, rows.targets) if part is not None]
    made = []
    for number in range(len(rows)):
        state = hashlib.blake2b(parts[0][number], key=key, digest_size=16)
        for part in parts[1:]:
            state.update(part[number])
        made.append(state.digest())
    return made


def coins(rows: Rows, purpose: str, *, names: Tensor | None = None) -> NDArray[np.float64]:
    """A uniform number for each row, which follows from that row and a public key alone.

    Rows of one user share a coin. Otherwise a row is known by its name, or by its contents and by
    which copy of them it is: of k equal rows each has a coin of its own, and whichever of them is
    removed, the rest has the coins of k - 1 equal rows.

    Args:
        rows: The rows, with or without users.
        purpose: The key, as text: coins of two purposes are independent.
        names: A number for each row that is its own, shape `(rows,)`, int64; or None.

    Returns:
        Numbers in [0, 1), shape `(rows,)`.
    """
    key = _key(purpose)
    # Who is protected as a whole is read as a whole: one row of a user in a part that anybody
    # reads would tell of the user whose other rows are trained on.
    owners = names if rows.users is None else rows.users
    if owners is not None:
        each, place = np.unique(owners.cpu().numpy(), return_inverse=True)
        drawn = [_coin(int(owner).to_bytes(8, "little", signed=True), key) for owner in each]
        return np.array(drawn, dtype=np.float64)[place]
    seen: Counter[bytes] = Counter()
    drawn = []
    for digest in digests(rows, purpose):
        drawn.append(_coin(digest + seen[digest].to_bytes(8, "little"), key))
        seen[digest] += 1
    return np.array(drawn, dtype=np.float64)


def shared_coins(rows: Rows, purpose: str) -> NDArray[np.float64]:
    """A uniform number for each row that equal rows share, too; of users as `coins`.

    With a coin for each copy, a second copy that becomes public would tell that there is a first
    one, which is not: whoever knows the key can compute both coins.

    Args:
        rows: The rows, with or without users.
        purpose: The key, as text: coins of two purposes are independent.

    Returns:
        Numbers in [0, 1), shape `(rows,)`; of a row without equals that of `coins`.
    """
    if rows.users is not None:
        return coins(rows, purpose)
    key, first = _key(purpose), bytes(8)
    drawn = [_coin(digest + first, key) for digest in digests(rows, purpose)]
    return np.array(drawn, dtype=np.float64)


def _key(purpose: str) -> bytes:
    # A digest of the text: a key has at most 64 bytes, and names of parties may be longer.
    return hashlib.sha256(purpose.encode()).digest()


def _bits(tensor: Tensor) -> NDArray[Any]:
    """The bytes of each row, shape `(rows, bytes)`."""
    flat = tensor.detach().cpu().reshape(len(tensor), -1)
    return flat.contiguous().view(torch.uint8).numpy()


def _coin(mark: bytes, key: bytes) -> float:
    # 53 bits: each number is exact, and the largest is below 1.
    word = hashlib.blake2b(mark, key=key, digest_size=8).digest()
    return float((int.from_bytes(word, "little") >> 11) * 2.0**-53)
