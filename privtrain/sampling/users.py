"""Users with several rows: the user of each row, and a limit on the rows of one user."""

import numpy as np
import torch

from privtrain.core.errors import DataError
from privtrain.core.seeding import Streams
from privtrain.core.task import FederatedData, Rows


def users_of(rows: Rows) -> torch.Tensor:
    """The number of each row's user, shape `(rows,)`.

    Raises:
        DataError: If the users are not known.
    """
    if rows.users is None:
        raise DataError(
            "rows_per_user protects users, but these rows do not say whose they are. Give "
            "from_arrays(users=...) or from_csv(user=...), or leave rows_per_user out."
        )
    return rows.users


def limit_per_user(rows: Rows, limit: int, seeds: Streams) -> torch.Tensor:
    """Numbers of rows of which no user has more than a limit, ascending.

    A user's choice follows from the user, the user's number of rows and a public seed, neither
    from values nor from other users.

    Args:
        rows: All rows, with their users.
        limit: Largest number of rows of a user; at least 1.
        seeds: The run's public streams.
    """
    users = users_of(rows).cpu().numpy()
    order = np.argsort(users, kind="stable")
    names, starts = np.unique(users[order], return_index=True)
    chosen = []
    for name, own in zip(names, np.split(order, starts[1:]), strict=True):
        if len(own) > limit:
            # A stream for each user: who joins or leaves changes nobody else's rows, which the
            # guarantee for users counts on.
            generator = seeds["rows of a user", 0, str(name)].numpy()
            own = generator.permutation(own)[:limit]
        chosen.append(own)
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def count_rows(data: FederatedData, rows_per_user: int | None) -> int:
    """The number of training rows, counting at most `rows_per_user` of each user."""
    if rows_per_user is None:
        return sum(len(data.train[party]) for party in data.parties)
    _, each = np.unique(users_of(data.pooled()).cpu().numpy(), return_counts=True)
    return int(np.minimum(each, rows_per_user).sum())
