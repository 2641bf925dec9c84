"""Which teacher a row belongs to: by what the row holds, or by whose it is."""

from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from privtrain.core.errors import READS_ROWS, DataError
from privtrain.core.statement import Unit
from privtrain.core.task import FederatedData, Rows
from privtrain.data.coins import coins, digests


class AssignedBy(StrEnum):
    """What decides on the teacher of a row, and so what a guarantee protects as a whole."""

    CONTENTS = "contents"
    USERS = "users"

    @property
    def unit(self) -> Unit:
        """Whose contribution moves one vote at most."""
        return Unit.USER if self is AssignedBy.USERS else Unit.EXAMPLE


CONTENTS = AssignedBy.CONTENTS
"""A row's inputs and label decide: one row more or less moves one vote. A row whose contents change
may move to another teacher, and so move two."""

USERS = AssignedBy.USERS
"""The number of a row's user decides: all rows of a user have one teacher, and whatever becomes of
them moves one vote. Users are protected."""


def teacher_of_rows(
    rows: Rows, teachers: int, seed: int, assigned_by: AssignedBy = CONTENTS
) -> Tensor:
    """Which teacher each row belongs to, decided by the row's own contents or by its user.

    A row's teacher does not depend on any other row, so adding or removing one row, or one user,
    changes what exactly one teacher trains on: the teachers are disjoint by construction.

    Args:
        rows: Rows of one party.
        teachers: How many teachers it hosts; at least 1.
        seed: Public seed of the assignment.
        assigned_by: What decides.

    Returns:
        Teacher numbers, shape `(rows,)`.

    Raises:
        DataError: If users decide, and the rows do not say whose they are.
    """
    # The key is public, so that anybody can check the teacher of a row they hold.
    purpose = f"privtrain/teachers/{seed}"
    if assigned_by is USERS:
        _users(rows, "a party")
        # One coin a user, in [0, 1) with 53 bits: the product rounds to `teachers` for no coin.
        return torch.from_numpy((coins(rows, purpose) * teachers).astype(np.int64))
    made = digests(rows, purpose)
    numbers = [int.from_bytes(digest, "little") % teachers for digest in made]
    return torch.tensor(numbers, dtype=torch.long)


def check_users(data: FederatedData, assigned_by: AssignedBy) -> None:
    """Refuses rows that users are to decide on, where one of them would have two teachers.

    Args:
        data: Who holds which rows.
        assigned_by: What decides on the teacher of a row.

    Raises:
        DataError: If a party's rows do not say whose they are, or a user's lie at two parties.
    """
    if assigned_by is not USERS:
        return
    holder: dict[int, str] = {}
    for party in data.parties:
        for user in set(_users(data.train[party], party).tolist()):
            if holder.setdefault(user, party) != party:
                raise DataError(
                    f"Expected all rows of a user to lie at one party, where one teacher has them; "
                    f"{holder[user]} and {party} both hold rows of one user, who would move two "
                    "votes. Load the data with parties=1, or divide it by user, or use "
                    f"assigned_by=CONTENTS, which protects single rows. {READS_ROWS}"
                )


def _users(rows: Rows, party: str) -> Tensor:
    if rows.users is None:
        raise DataError(
            f"assigned_by=USERS gives each user one teacher, but the rows of {party} do not say "
            "whose they are. Give from_arrays(users=...) or from_csv(user=...), or use "
            "assigned_by=CONTENTS, which protects single rows."
        )
    return rows.users
