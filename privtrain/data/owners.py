"""Whose each row is and what it is called: numbers that follow from the name alone."""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from privtrain.core.errors import DataError


def to_users(users: ArrayLike, argument: str = "users") -> Tensor:
    """The number of each row's user, which follows from that user's own name alone.

    Args:
        users: Numbers or words, shape `(rows,)`.
        argument: What messages call them.

    Returns:
        Type int64, shape `(rows,)`.

    Raises:
        DataError: If the shape is another, a name is missing, or numbers and words are mixed.
    """
    values = np.asarray(users)
    _check_names(users, values, argument)
    if values.ndim != 1 or values.dtype.kind not in "biuUSO":
        raise DataError(
            f"Expected {argument} of shape {values.shape} and type {values.dtype} to have the "
            "shape (rows,) and to hold whole numbers or words."
        )
    # A hash, not the place in a sorted list: who joins would move the others along, and data sets
    # that differ in one user would then differ in the numbers, and the sampling, of all users.
    # 63 bits: two of a million users share a number with probability 5e-8, and then count as one
    # user, whose rows are bounded jointly.
    names, index = np.unique(values.astype(str), return_inverse=True)
    digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names.tolist()]
    numbers = np.array([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=np.int64)
    return torch.from_numpy(numbers[index])


def _check_names(users: ArrayLike, values: NDArray[Any], argument: str) -> None:
    # One user of two names would be promised the privacy of half of the rows.
    missing = np.zeros(values.shape, dtype=bool)
    if isinstance(users, np.ma.MaskedArray):
        missing = np.ma.getmaskarray(users)
    elif values.dtype.kind == "O":
        missing = np.array([not isinstance(name, (str, int, np.integer)) for name in values.flat])
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(
            f"Expected {argument} to hold a whole number or a word for each row; row {row} holds "
            f"{np.ma.asarray(users)[row] if values.dtype.kind != 'O' else values.flat[row]!r}. "
            "Name whose it is, or remove the row."
        )
    if values.dtype.kind == "O" and len({isinstance(name, str) for name in values.flat}) > 1:
        raise DataError(
            f"Expected {argument} to hold words or numbers, not both: 7 and '7' would be one name "
            "or two. Make words of all of them."
        )


def to_names(row_ids: ArrayLike, rows: int) -> Tensor:
    """A number for each row, which follows from what the row is called alone.

    Args:
        row_ids: Numbers or words, shape `(rows,)`, each once.
        rows: How many rows there are.

    Returns:
        Type int64, shape `(rows,)`.

    Raises:
        DataError: If the shape is another, or a name stands twice.
    """
    names = to_users(row_ids, "row_ids")
    if len(names) != rows:
        raise DataError(f"Expected row_ids with {len(names)} names to name each of {rows} rows.")
    # Two rows of one name would share a coin: that is what users are for.
    each, first, count = np.unique(names.numpy(), return_index=True, return_counts=True)
    if len(each) < rows:
        row = int(first[count > 1][0])
        raise DataError(
            f"Expected row_ids to name each row once; {np.asarray(row_ids)[row]!r}, of row {row}, "
            "stands there again. Give users= where several rows belong to one user."
        )
    return names
