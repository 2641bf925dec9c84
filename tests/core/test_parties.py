import pytest

from privtrain.core.parties import party_names


@pytest.mark.parametrize("count", [1, 9, 10, 11, 100, 101])
def test_names_sort_in_the_order_of_their_numbers(count: int) -> None:
    names = party_names("client", count)
    assert len(set(names)) == count
    assert list(names) == sorted(names)
    assert len({len(name) for name in names}) == 1
    assert int(names[-1].removeprefix("client-")) == count - 1


def test_no_parties_have_no_names() -> None:
    assert party_names("client", 0) == ()
