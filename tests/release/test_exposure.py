"""What observers of sums see, and which noise they can subtract."""

import pytest

from privtrain.core.observers import AGGREGATOR, CURATOR, PARTICIPANT, PUBLIC, coalition
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.release.exposure import sum_exposure
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Placement
from tests.contracts.aggregation import (
    MaskedSum,
)


def test_the_party_that_is_protected_is_always_honest() -> None:
    members = coalition({f"client-{index}" for index in range(50)})
    seen = MaskedSum().exposure(members, SPLIT(honest_survivors=10), parties=10)
    assert seen.hidden_variance == pytest.approx(0.1)


def test_a_split_promises_no_more_than_its_honest_survivors_draw() -> None:
    few = SPLIT(honest_survivors=5)
    assert MaskedSum().exposure(PUBLIC, few, parties=10).hidden_variance == pytest.approx(1.0)
    assert MaskedSum().exposure(PUBLIC, few, parties=3).hidden_variance == pytest.approx(0.6)


@pytest.mark.parametrize("noise_at", [AT_AGGREGATOR, AT_PARTY, SPLIT(honest_survivors=5)])
@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("knows", [False, True])
def test_the_curator_sees_no_less_than_an_aggregator(
    noise_at: Placement, reads: bool, knows: bool
) -> None:
    curator, aggregator, public = (
        sum_exposure(who, noise_at, parties=10, reads_messages=reads, knows_noise=knows)
        for who in (CURATOR, AGGREGATOR, PUBLIC)
    )
    assert curator == aggregator != public


def test_raw_messages_need_no_noise_to_be_known() -> None:
    seen = sum_exposure(
        AGGREGATOR, AT_AGGREGATOR, parties=10, reads_messages=True, knows_noise=False
    )
    assert seen.hidden_variance == 0.0


@pytest.mark.parametrize("noise_at", [AT_AGGREGATOR, AT_PARTY, SPLIT(honest_survivors=5)])
def test_who_reads_the_sum_sees_more_than_the_finish_leaves(noise_at: Placement) -> None:
    inside = (AGGREGATOR, CURATOR, coalition({"client-1", AGGREGATOR_NAME}))
    for observer in (PUBLIC, PARTICIPANT, coalition({"client-1", "client-2"}), *inside):
        seen, sealed = (
            sum_exposure(
                observer,
                noise_at,
                parties=10,
                reads_messages=False,
                knows_noise=False,
                sealed=sealed,
            ).finish_only
            for sealed in (False, True)
        )
        assert seen is (observer not in inside)
        assert sealed is True
