"""The one door: what leaves, what arrives, whose noise is in it, and what is refused."""

import math
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privtrain.core.errors import (
    BudgetExceededError,
    ProtocolError,
    UnsoundReleaseError,
)
from privtrain.core.observers import AGGREGATOR, PUBLIC
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Reply
from privtrain.core.seeding import SeededEntropy
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Unit
from privtrain.ledgers.run import JournalLedger
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact, Mechanism
from privtrain.mechanisms.votes import GNMax
from privtrain.release.aggregation import BoundedSum
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Placement
from tests.contracts.aggregation import (
    MaskedSum,
    Median,
    OpenLedger,
    SharedSum,
    a_party,
    a_run,
)
from tests.statistics import assert_power, independent, mean_is_zero, std_is

PARTIES = 10


def released(
    release: Release, contributions: list[list[Tensor]], *, seed: int = 0, round: int = 0
) -> Tensor:
    """One release of several parties, each with its contributions."""
    messages = {
        f"client-{number}": release.leave(own, a_party(f"client-{number}", seed=seed, round=round))
        for number, own in enumerate(contributions)
    }
    most = max(map(len, contributions))
    expected = Expected(contributions=most)
    return release.arrive(messages, a_run(seed), round=round, expected=expected).value


@pytest.mark.parametrize(
    "release",
    [
        Release(),
        Release(Gaussian(1.0, 1.0), SPLIT(honest_survivors=3), MaskedSum()),
        Release(GNMax(4.0), finish=ARGMAX),
        Release(Laplace(1.0, 1.0), AT_PARTY, finish=Threshold(3.0)),
    ],
)
def test_releases_are_frozen_values(release: Release) -> None:
    copy = pickle.loads(pickle.dumps(release))
    assert copy == release
    assert hash(copy) == hash(release)
    assert "Release(mechanism=" in repr(release)


# --------------------------------------------------------------------------------- the four beats


def test_bound_aggregate_finish_in_this_order() -> None:
    """Clipping after the sum, or finishing before it, would give other numbers."""
    contributions = [[torch.tensor([30.0, 40.0])], [torch.tensor([0.0, 0.5])]]
    exact_sum = released(Release(Gaussian(5.0, 0.0)), contributions)
    assert exact_sum.tolist() == pytest.approx([3.0, 4.5])
    assert released(Release(), contributions).tolist() == [30.0, 40.5]
    above = released(Release(Gaussian(5.0, 0.0), finish=Threshold(4.2)), contributions)
    assert above.tolist() == [False, True]


def test_noise_comes_before_the_finish() -> None:
    """A comparison without noise would answer the same in every round."""
    release = Release(Gaussian(1.0, 5.0), finish=Threshold(1.0))
    answers = {bool(released(release, [[torch.ones(())]], round=r)) for r in range(40)}
    assert answers == {False, True}


def test_winners_of_votes() -> None:
    votes = [torch.tensor([[0.0, 9.0, 1.0], [3.0, 0.0, 0.0]])] * 3
    assert released(Release(GNMax(1e-6), finish=ARGMAX), [votes, votes]).tolist() == [1, 0]
    counts = released(Release(GNMax(1e-6)), [votes, votes])
    assert counts.round().tolist() == [[0.0, 6.0, 0.0], [6.0, 0.0, 0.0]]


def test_messages_bear_the_name_of_their_kind() -> None:
    reply = Release().leave([torch.ones(2)], a_party(), kind="votes")
    assert set(reply.message) == {"votes"}
    with pytest.raises(ProtocolError, match="update"):
        Release().arrive({"client-0": reply}, a_run(), round=0)


def test_sums_are_float64_in_party_order() -> None:
    values = [[torch.tensor([x], dtype=torch.float64)] for x in (1e16, 1.0, -1e16, 1.0)]
    assert released(Release(), values).item() == 1.0
    many = [[torch.tensor([2.0**24])], *([[torch.ones(1)]] * 3)]
    assert released(Release(), many).item() == 2.0**24 + 3


def test_no_message_and_no_contribution_are_named_errors() -> None:
    with pytest.raises(ProtocolError, match="update"):
        Release().arrive({}, a_run(), round=0)
    with pytest.raises(ValueError, match=r"contributions=\[\] of 'client-7'"):
        Release(Gaussian(1.0, 1.0), AT_PARTY).leave([], a_party("client-7"))


# ------------------------------------------------------------------------------ paying for it


def test_an_unpaid_release_does_not_come_through() -> None:
    release = Release(Gaussian(1.0, 1.0))
    ledger = JournalLedger(release.plans(unit=Unit.CLIENT, count=5, parties=1))
    run = a_run(ledger=ledger)
    messages = {"client-0": release.leave([torch.ones(2)], a_party())}
    with pytest.raises(BudgetExceededError, match="not paid for"):
        release.arrive(messages, run, round=0)
    bounded = BoundedSum(torch.ones(2), 1.0)
    with pytest.raises(BudgetExceededError, match="not paid for"):
        release.arrive(bounded, run, round=0)
    assert run.spend()
    release.arrive(messages, run, round=0)
    with pytest.raises(BudgetExceededError, match="not paid for"):
        release.arrive(messages, run, round=1)


def test_a_further_part_needs_a_release_under_way_and_none_counts_backwards() -> None:
    release = Release(Gaussian(1.0, 1.0))
    run = a_run(ledger=JournalLedger(release.plans(unit=Unit.CLIENT, count=5, parties=1)))
    assert run.spend(3)
    messages = {"client-0": release.leave([torch.ones(2)], a_party())}
    with pytest.raises(ValueError, match="count="):
        release.arrive(messages, run, round=0, releases=-1)
    with pytest.raises(BudgetExceededError, match="not paid for"):
        release.arrive(messages, run, round=0, releases=0)
    release.arrive(messages, run, round=0)
    release.arrive(messages, run, round=1, releases=0)


def test_several_answers_are_several_releases() -> None:
    release, ledger = Release(GNMax(4.0), finish=ARGMAX), OpenLedger()
    votes = {"client-0": release.leave([torch.ones(6, 3)], a_party(), kind="votes")}
    release.arrive(votes, a_run(ledger=ledger), round=0, kind="votes", releases=6)
    assert ledger.used == 6


def test_an_aborted_release_stays_spent() -> None:
    release = Release(Gaussian(1.0, 1.0))
    run = a_run(ledger=JournalLedger(release.plans(unit=Unit.CLIENT, count=2, parties=1)))
    assert run.spend()
    with pytest.raises(ProtocolError):
        release.arrive({"a": Reply({"votes": torch.ones(2)})}, run, round=0)
    assert run.ledger.spent == 1
    with pytest.raises(BudgetExceededError):
        release.arrive({"a": Reply({"update": torch.ones(2)})}, run, round=0)


# --------------------------------------------------------------------------- whose noise is in it

WIDE = torch.zeros(3000)
SILENT = [[WIDE] for _ in range(PARTIES)]


@pytest.mark.parametrize(
    ("noise_at", "at_party", "in_sum"),
    [
        (AT_AGGREGATOR, 0.0, 1.0),
        (AT_PARTY, 1.0, math.sqrt(PARTIES)),
        (SPLIT(honest_survivors=PARTIES), 1 / math.sqrt(PARTIES), 1.0),
        (SPLIT(honest_survivors=5), 1 / math.sqrt(5), math.sqrt(2)),
    ],
    ids=str,
)
def test_every_placement_has_the_stated_variance(
    noise_at: Placement, at_party: float, in_sum: float
) -> None:
    release, std = Release(Gaussian(0.5, 3.0), noise_at), 1.5
    messages = [
        release.leave([WIDE], a_party(f"client-{number}")).message["update"]
        for number in range(PARTIES)
    ]
    if at_party:
        for message in messages:
            assert_power(std_is, message, std * at_party)
        assert independent(messages[0], messages[1])
    else:
        assert not any(bool(message.any()) for message in messages)
    total = released(release, SILENT)
    assert_power(std_is, total, std * in_sum)
    assert mean_is_zero(total, std * in_sum)
    # What the plan says of the public is what is in the sum, up to the split's ceiling of one.
    exposure = release.aggregation.exposure(PUBLIC, noise_at, parties=PARTIES)
    ceiling = 1.0 if noise_at.split else math.inf
    assert exposure.hidden_variance == pytest.approx(min(in_sum**2, ceiling))


def test_rounds_kinds_parties_and_seeds_have_noise_of_their_own() -> None:
    local = Release(Gaussian(1.0, 1.0), AT_PARTY)
    first = local.leave([WIDE], a_party("client-0")).message["update"]
    again = SeededEntropy(0, attempt=1)
    others = [
        local.leave([WIDE], a_party("client-1")).message["update"],
        local.leave([WIDE], a_party("client-0", round=1)).message["update"],
        local.leave([WIDE], a_party("client-0", seed=1)).message["update"],
        local.leave([WIDE], a_party("client-0"), kind="votes").message["votes"],
        local.leave([WIDE], a_party("client-0", entropy=again)).message["update"],
    ]
    for other in others:
        assert independent(first, other)
    assert torch.equal(local.leave([WIDE], a_party("client-0")).message["update"], first)


def test_a_fused_sum_is_noised_like_any_other() -> None:
    release = Release(Gaussian(0.5, 3.0))
    bounded = BoundedSum(torch.full((3000,), 7.0), 0.5)
    noised = release.arrive(bounded, a_run(), round=0).value
    assert_power(std_is, noised - 7.0, 1.5)
    assert torch.equal(bounded.value, torch.full((3000,), 7.0))


# ------------------------------------------------------------------------------- what is refused


def test_noise_over_a_rule_without_a_bound_is_refused() -> None:
    for mechanism in (Gaussian(1.0, 1.0), Laplace(1.0, 1.0), GNMax(1.0)):
        with pytest.raises(UnsoundReleaseError, match=r"Median.*promises nothing.*PlainSum"):
            Release(mechanism, aggregation=Median())
    assert Release(aggregation=Median()).aggregation == Median()
    assert Release(Gaussian(1.0, 0.0), aggregation=Median()).bounding


def test_noise_that_parties_drew_is_in_a_sealed_sum() -> None:
    release = Release(Gaussian(0.5, 3.0), SPLIT(honest_survivors=PARTIES), SharedSum())
    assert_power(std_is, released(release, SILENT), 1.5)


@dataclass(frozen=True)
class OldMechanism:
    """An own mechanism as version 0.2 asked for it."""

    noisy: bool = True
    theorem: str = "own"

    def bound(self, contribution: Tensor) -> Tensor:
        return contribution

    def noise(self, like: Tensor, state: object, generator: object) -> tuple[Tensor, object]:
        return torch.zeros_like(like), state


def test_a_mechanism_that_lacks_a_member_is_refused_by_its_name() -> None:
    own: Any = OldMechanism()
    with pytest.raises(ValueError, match=r"OldMechanism\(.* it has no about, add, bound_again"):
        Release(own)
    unmade: Any = Gaussian
    with pytest.raises(ValueError, match="no class"):
        Release(unmade)


# ---------------------------------------------------------------------------------- diagnostics


# ------------------------------------------------------------------------ sensitivity of neighbours

vector = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)
groups = st.lists(vector, min_size=1, max_size=5)


def total_of(mechanism: Mechanism, rows: list[list[float]]) -> Tensor:
    """What is summed, by a mechanism's own bound: contributions of one row a party."""
    zeros = [[torch.zeros(3, dtype=torch.float64)]]  # so that nobody taking part is a sum, too
    own = [[torch.tensor(row, dtype=torch.float64)] for row in rows]
    silent = mechanism.with_scale(0.0)
    assert silent is not None
    return released(Release(silent), zeros + own)


def distance(mechanism: Mechanism, one: list[list[float]], other: list[list[float]]) -> float:
    change = total_of(mechanism, one) - total_of(mechanism, other)
    order = 1 if isinstance(mechanism, Laplace) else 2
    return float(torch.linalg.vector_norm(change, ord=order))


@pytest.mark.parametrize("mechanism", [Gaussian(0.7, 1.0), Laplace(0.7, 1.0)])
@settings(deadline=None)
@given(rows=groups, data=st.data())
def test_neighbours_differ_by_at_most_the_sensitivity(
    mechanism: Mechanism, rows: list[list[float]], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(rows) - 1))
    other = data.draw(vector)
    without = rows[:index] + rows[index + 1 :]
    replaced = [*rows[:index], other, *rows[index + 1 :]]
    zeroed = [*rows[:index], [0.0] * 3, *rows[index + 1 :]]
    for relation, neighbour in ((ADD_REMOVE, without), (REPLACE_ONE, replaced), (ZERO_OUT, zeroed)):
        stated = mechanism.sensitivity(relation)
        assert stated is not None
        assert distance(mechanism, rows, neighbour) <= stated * (1 + 1e-9)


@pytest.mark.parametrize("mechanism", [Gaussian(0.7, 1.0), Laplace(0.7, 1.0)])
def test_every_sensitivity_is_reached(mechanism: Mechanism) -> None:
    one, other = [[9.0, 0.0, 0.0]], [[-9.0, 0.0, 0.0]]
    assert distance(mechanism, one, []) == pytest.approx(mechanism.sensitivity(ADD_REMOVE))
    assert distance(mechanism, one, [[0.0] * 3]) == pytest.approx(mechanism.sensitivity(ZERO_OUT))
    assert distance(mechanism, one, other) == pytest.approx(mechanism.sensitivity(REPLACE_ONE))


def test_a_dropped_bound_is_seen_by_the_distance_of_neighbours() -> None:
    rows = [[9.0, 0.0, 0.0]]
    moved = released(Release(), [[torch.tensor(row)] for row in rows]).norm()
    assert float(moved) > 0.7


# ------------------------------------------------------------------------------------------ plans


def test_with_scale() -> None:
    release = Release(Gaussian(0.5, 1.0), AT_PARTY, finish=Threshold(1.0))
    scaled = release.with_scale(4.0)
    assert scaled == Release(Gaussian(0.5, 4.0), AT_PARTY, finish=Threshold(1.0))
    assert Release(Exact()).with_scale(4.0) is None


def test_the_aggregators_name_is_no_clients() -> None:
    """Its stream and a party's of the same round must differ even for one kind."""
    run = a_run()
    theirs = Release(Gaussian(1.0, 1.0)).arrive({"a": Reply({"update": WIDE})}, run, round=0).value
    local = (
        Release(Gaussian(1.0, 1.0), AT_PARTY).leave([WIDE], a_party("client-0")).message["update"]
    )
    assert independent(theirs, local)
    assert a_party("client-0").name != AGGREGATOR_NAME
    assert AGGREGATOR.name == AGGREGATOR_NAME


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mechanism", ("Gaussian",)),
        ("mechanism", (Gaussian,)),
        ("noise_at", (Gaussian(1.0, 1.0), "AT_PARTY")),
        ("noise_at", (Gaussian(1.0, 1.0), SPLIT)),
        ("aggregation", (Gaussian(1.0, 1.0), AT_PARTY, None)),
    ],
)
def test_parts_that_are_none_are_refused_by_name(name: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=f"Expected {name}=.* to be "):
        Release(*arguments)


# ------------------------------------------------------------------------- what it exactly cost
