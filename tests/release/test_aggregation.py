"""What an aggregation sends stands beside what a trainer sends."""

import pytest
import torch

from privtrain.release.aggregation import Gathering

ONE, TWO = torch.ones(1), torch.full((1,), 2.0)


def test_each_party_is_sent_what_is_meant_for_it_and_what_all_are_sent() -> None:
    gathering = Gathering(cohort=("a", "b"), round=0, payloads={"b": {"keys": ONE}})
    assert gathering.asked({"model": TWO}) == {
        "a": {"model": TWO},
        "b": {"keys": ONE, "model": TWO},
    }
    assert Gathering(cohort=(), round=0).asked({"model": TWO}) == {}


def test_a_name_that_both_send_is_refused_before_anything_is_sent() -> None:
    gathering = Gathering(cohort=("a", "b"), round=0, payloads={"b": {"model": ONE}})
    with pytest.raises(ValueError, match=r"sends to b .* trainer sends 'model'"):
        gathering.asked({"model": TWO})
    # Whoever takes no part is sent nothing.
    other = Gathering(cohort=("a",), round=0, payloads={"b": {"model": ONE}})
    assert other.asked({"model": TWO}) == {"a": {"model": TWO}}
