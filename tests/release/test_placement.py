import pickle

import pytest

from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Drawer, Placement


@pytest.mark.parametrize("placement", [AT_AGGREGATOR, AT_PARTY, SPLIT(honest_survivors=7)])
def test_placements_are_frozen_values(placement: Placement) -> None:
    assert pickle.loads(pickle.dumps(placement)) == placement
    assert hash(pickle.loads(pickle.dumps(placement))) == hash(placement)


def test_each_prints_as_it_is_written() -> None:
    assert str(AT_AGGREGATOR) == "AT_AGGREGATOR"
    assert str(AT_PARTY) == "AT_PARTY"
    assert str(SPLIT(honest_survivors=7)) == "SPLIT(honest_survivors=7)"


def test_the_fraction_of_one_drawer() -> None:
    assert AT_AGGREGATOR.fraction == AT_PARTY.fraction == 1.0
    assert SPLIT(honest_survivors=8).fraction == 0.125
    assert (AT_PARTY.drawer, SPLIT(honest_survivors=8).drawer) == (Drawer.PARTY, Drawer.PARTY)


@pytest.mark.parametrize("survivors", [0, -1, 2.5, True])
def test_survivors_are_a_count(survivors: int) -> None:
    with pytest.raises(ValueError, match=f"honest_survivors={survivors}"):
        SPLIT(honest_survivors=survivors)


def test_a_plain_string_names_the_drawer() -> None:
    assert Placement("party") == AT_PARTY  # type: ignore[arg-type] # as a study file has it
    with pytest.raises(ValueError, match="nobody"):
        Placement("nobody")  # type: ignore[arg-type] # that is what is tested


def test_only_parties_share_a_noise() -> None:
    with pytest.raises(ValueError, match="split=True"):
        Placement(Drawer.AGGREGATOR, split=True)
    with pytest.raises(ValueError, match="honest_survivors=4"):
        Placement(Drawer.PARTY, honest_survivors=4)
