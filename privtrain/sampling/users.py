"""Users with several rows: whose they are, and how many of each may take part."""

import numpy as np
import torch

from privtrain.core.errors import DataError
from privtrain.core.seeding import Streams
from privtrain.core.task import FederatedData, Rows


def users_of(rows: Rows) -> torch.Tensor:
    """Whose row each is, shape `(rows,)`.

    Raises:
        DataError: If that is not known.
    """
    if rows.users is None:
        raise DataError(
            "rows_per_user protects users, but these rows do not say whose they are. Give "
            "from_arrays(users=...) or from_csv(user=...), or leave rows_per_user out."
        )
    return rows.users


def some_of_each_user(rows: Rows, most: int, seeds: Streams) -> torch.Tensor:
    """Which rows are kept so that no user has more than a number of them.

    A user's choice follows from the user, how many rows the user has and a public seed, neither
    from values nor from other users: who joins or leaves changes nobody else's rows.

    Args:
        rows: All rows, with their users.
        most: How many rows of a user are kept at most; at least 1.
        seeds: The run's public streams.

    Returns:
        Numbers of the kept rows, rising.
    """
    users = users_of(rows).cpu().numpy()
    order = np.argsort(users, kind="stable")
    names, starts = np.unique(users[order], return_index=True)
    kept = []
    for name, own in zip(names, np.split(order, starts[1:]), strict=True):
        if len(own) > most:
            generator = seeds["rows of a user", 0, str(name)].numpy()
            own = generator.permutation(own)[:most]
        kept.append(own)
    return torch.from_numpy(np.sort(np.concatenate(kept)))


def count_kept(data: FederatedData, rows_per_user: int | None) -> int:
    """How many training rows there are, or are kept where users are protected."""
    if rows_per_user is None:
        return sum(len(data.train[party]) for party in data.parties)
    _, each = np.unique(users_of(data.pooled()).cpu().numpy(), return_counts=True)
    return int(np.minimum(each, rows_per_user).sum())
