"""Users and names of rows: numbers that follow from the name alone."""

import numpy as np
import pytest

from privtrain.core.errors import DataError
from privtrain.data.owners import to_names, to_users


def test_users_are_numbered_by_their_own_name_alone() -> None:
    assert to_users(["b", "a", "b"]).tolist() == to_users(["b", "c", "b", "a"])[[0, 3, 0]].tolist()
    assert to_users([7, 9]).tolist() == to_users([9, 7]).flip(0).tolist()
    with pytest.raises(DataError, match="users of shape"):
        to_users([[1, 2]])


def test_a_row_has_a_name_of_its_own() -> None:
    assert to_names(["b", "a"], 2).tolist() == to_users(["b", "a"]).tolist()
    for wrong, message in (
        ([1, 2, 1], "name each row once; .*1.*, of row 0.*users="),
        ([1, 2], "row_ids with 2 names to name each of 3 rows"),
        (np.eye(3), "row_ids of shape"),
    ):
        with pytest.raises(DataError, match=message):
            to_names(wrong, 3)


def test_who_is_not_known_is_nobody() -> None:
    """One person under two names would be promised the privacy of a part of the rows."""
    hidden = np.ma.masked_array([1, 2, 3], mask=[False, True, False])
    both = np.array([7, "7", 8], dtype=object)
    for wrong, message in (
        ([None, "a", "b"], "users to hold .*row 0 holds None"),
        (np.array(["a", float("nan"), "b"], dtype=object), "row 1 holds nan"),
        (np.array([7, 7.0, 8], dtype=object), r"row 1 holds 7\.0"),
        (hidden, "row 1 holds masked"),
        (both, "words or numbers, not both"),
    ):
        with pytest.raises(DataError, match=message):
            to_users(wrong)
        with pytest.raises(DataError, match=message.replace("users", "row_ids")):
            to_names(wrong, 3)
    assert len(to_users(np.array(["a", "b"], dtype=object))) == 2
    assert len(to_users(np.ma.masked_array([1, 2]))) == 2
