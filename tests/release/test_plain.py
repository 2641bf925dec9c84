import pytest

from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure, Observer, coalition
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.release import shared
from privtrain.release.aggregation import Aggregation
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT
from privtrain.release.plain import PlainSum
from tests.contracts.aggregation import (
    MaskedSum,
    Median,
    SharedSum,
    check_aggregation,
    check_summing,
)


@pytest.mark.parametrize(
    "aggregation", [PlainSum(), MaskedSum(), SharedSum(), Median(), shared.SharedSum()], ids=repr
)
def test_contract(aggregation: Aggregation) -> None:
    check_aggregation(aggregation)


def test_sums_pass_the_suite_of_sums() -> None:
    check_summing(PlainSum())


def test_the_aggregator_reads_single_messages_and_knows_its_noise() -> None:
    seen = PlainSum().exposure(AGGREGATOR, AT_AGGREGATOR, parties=10)
    assert seen == Exposure(single_messages=True, knows_sample=True, noise_known=1.0)


@pytest.mark.parametrize("observer", [PUBLIC, PARTICIPANT, coalition({"client-1", "client-2"})])
def test_others_see_the_noised_sum_and_no_sample(observer: Observer) -> None:
    seen = PlainSum().exposure(observer, AT_AGGREGATOR, parties=10)
    assert seen == Exposure(
        single_messages=False, knows_sample=False, noise_known=0.0, finish_only=True
    )


def test_a_single_message_carries_its_own_noise_only() -> None:
    local = PlainSum().exposure(AGGREGATOR, AT_PARTY, parties=10)
    assert (local.single_messages, local.hidden_variance) == (True, 1.0)
    split = PlainSum().exposure(AGGREGATOR, SPLIT(honest_survivors=10), parties=10)
    assert split.single_messages
    assert split.hidden_variance == pytest.approx(0.1)
    members = coalition({AGGREGATOR_NAME, "client-1"})
    assert PlainSum().exposure(members, SPLIT(honest_survivors=10), parties=10) == split


def test_a_sum_carries_the_noise_of_all_but_the_colluding() -> None:
    for colluding in (1, 4, 9):
        members = coalition({f"client-{index}" for index in range(colluding)})
        seen = PlainSum().exposure(members, AT_PARTY, parties=10)
        assert seen.hidden_variance == pytest.approx(10 - colluding)
