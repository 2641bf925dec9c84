import re

import pytest

from privtrain.core.errors import DataError
from privtrain.core.parties import check_party_names, coalition_of, is_role, party_names


@pytest.mark.parametrize("count", [1, 9, 10, 11, 100, 101])
def test_names_sort_in_the_order_of_their_numbers(count: int) -> None:
    names = party_names("client", count)
    assert len(set(names)) == count
    assert list(names) == sorted(names)
    assert len({len(name) for name in names}) == 1
    assert int(names[-1].removeprefix("client-")) == count - 1


def test_no_parties_have_no_names() -> None:
    assert party_names("client", 0) == ()


@pytest.mark.parametrize(
    "name",
    [
        "aggregator",
        "curator",
        "public",
        "participant",
        "dealer",
        "querier",
        "student",
        "tuner",
        "coalition",
        "coalition of a, b",
        "computing-0",
        "computing-17",
        "north/teacher-3",
        "Aggregator",
        " public ",
        "",
        " ",
        3,
        None,
    ],
)
def test_a_party_named_like_a_role_is_refused(name: object) -> None:
    with pytest.raises(DataError, match=re.escape(repr(name)) + r".*aggregator, .*site-0"):
        check_party_names(["site-0", name])  # type: ignore[list-item]


def test_the_name_of_a_coalition_says_of_whom() -> None:
    assert coalition_of("coalition of a, b") == "of a, b"
    assert coalition_of("coalition of 6\nparties") == "of 6\nparties"
    assert coalition_of("coalition") == ""
    for other in ("aggregator", "coalitions", "the coalition of a", "coalition against a", ""):
        assert coalition_of(other) is None


def test_other_names_are_names() -> None:
    for name in ("client-0", "computing", "computing-x", "teacher-1", "a/b", "aggregators", "p,q"):
        assert not is_role(name)
        check_party_names([name])
