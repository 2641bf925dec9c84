import pickle

import pytest

from privtrain.core.observers import AGGREGATOR, PUBLIC, Exposure, Observer, coalition


def test_observers_are_frozen_values_equal_by_who_they_are() -> None:
    assert pickle.loads(pickle.dumps(AGGREGATOR)) == AGGREGATOR
    assert Observer("public") == PUBLIC != AGGREGATOR
    assert str(PUBLIC) == "public"
    one, other = coalition({"a", "b"}), coalition(frozenset({"b", "a"}))
    assert one == other
    assert hash(one) == hash(other)
    assert one != coalition({"a", "c"})
    assert (str(one), str(coalition({"a"}))) == ("coalition of 2 parties", "coalition of 1 party")


def test_a_coalition_has_members() -> None:
    with pytest.raises(ValueError, match="corrupted="):
        coalition(set())


def test_exposures() -> None:
    seen = Exposure(single_messages=True, knows_sample=False, noise_known=0.25, variance=4.0)
    assert seen.hidden_variance == 3.0
    assert pickle.loads(pickle.dumps(seen)) == seen
    for known in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="noise_known="):
            Exposure(single_messages=True, knows_sample=True, noise_known=known)
    with pytest.raises(ValueError, match="variance="):
        Exposure(single_messages=True, knows_sample=True, noise_known=0.0, variance=-1.0)
