"""The one door: what leaves, what arrives, whose noise is in it, and what is refused."""

import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privtrain.core.errors import (
    BudgetExceededError,
    ProtocolError,
    UnsoundReleaseError,
    UnsupportedError,
)
from privtrain.core.observers import AGGREGATOR, PUBLIC, Exposure
from privtrain.core.parties import AGGREGATOR_NAME
from privtrain.core.runtime import Reply, Seen
from privtrain.core.seeding import SYSTEM, SeededEntropy, Stream, SystemEntropy
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation, Unit
from privtrain.core.trainer import RELEASE, Run
from privtrain.ledgers.run import JournalLedger
from privtrain.mechanisms.discrete import quantised
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import About, Exact, Mechanism, State
from privtrain.mechanisms.reach import Reach
from privtrain.mechanisms.votes import GNMax, LNMax
from privtrain.release.aggregation import BoundedSum
from privtrain.release.arrival import Expected
from privtrain.release.door import NON_FINITE, Release
from privtrain.release.finish import ARGMAX, Threshold
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Placement
from privtrain.release.reduce import MAX
from tests.contracts.aggregation import (
    InMemory,
    MaskedSum,
    Median,
    OpenLedger,
    SharedSum,
    SharesOpenedLate,
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


def test_each_contribution_of_a_party_is_bounded_by_itself() -> None:
    contributions = [torch.tensor([10.0, 0.0]), torch.tensor([0.0, 10.0]), torch.tensor([0.1, 0.0])]
    message = Release(Gaussian(1.0, 0.0)).leave(contributions, a_party()).message
    assert message["update"].tolist() == pytest.approx([1.1, 1.0])


@pytest.mark.parametrize("factor", [1 + 1e-9, 1.5, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("noise_at", [AT_AGGREGATOR, AT_PARTY], ids=str)
def test_no_factor_carries_a_contribution_past_what_the_noise_covers(
    factor: float, noise_at: Placement
) -> None:
    """The broken twin of a bounded weight: it says so, and weighs a client more than once."""
    release = Release(Gaussian(0.5, 1.0), noise_at)
    with pytest.raises(UnsoundReleaseError, match="factor="):
        release.leave([torch.ones(2)], a_party(), factor=factor)


def test_a_factor_comes_after_the_bound_and_before_the_noise() -> None:
    contribution = torch.tensor([3.0, 4.0])
    local = Release(Gaussian(0.5, 1.0), AT_PARTY)
    for factor in (1.0, 0.25, 0.0):
        left = Release(Gaussian(0.5, 1.0)).leave([contribution], a_party(), factor=factor)
        assert left.message["update"].tolist() == pytest.approx([0.3 * factor, 0.4 * factor])
        own = [
            local.leave([given], a_party(), factor=factor).message["update"]
            for given in (contribution, torch.zeros(2))
        ]
        assert (own[0] - own[1]).tolist() == pytest.approx([0.3 * factor, 0.4 * factor], abs=1e-6)
    # Without noise nothing is covered: a client may count as many rows as it holds.
    left = Release(Gaussian(0.5, 0.0)).leave([contribution], a_party(), factor=7.0)
    assert left.message["update"].tolist() == pytest.approx([2.1, 2.8])


def test_raw_contributions_never_cross() -> None:
    secret = torch.tensor([123.0, 456.0])
    for noise_at in (AT_AGGREGATOR, AT_PARTY, SPLIT(honest_survivors=2)):
        message = Release(Gaussian(1.0, 1.0), noise_at).leave([secret], a_party()).message
        assert set(message) == {"update"}
        assert float(message["update"].norm()) < 20


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


def test_a_message_of_another_shape_is_refused() -> None:
    run = a_run()
    messages = {f"p{size}": Release().leave([torch.ones(size)], a_party()) for size in (3, 4)}
    with pytest.raises(ProtocolError, match=r"of p4 has shape \(4,\)"):
        Release().arrive(messages, run, round=0)


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


def test_system_entropy_never_repeats() -> None:
    local = Release(Gaussian(1.0, 1.0), AT_PARTY)
    first, second = (a_party(entropy=SystemEntropy()) for _ in range(2))
    assert first.entropy.kind is SYSTEM
    drawn = local.leave([WIDE], first).message["update"]
    assert not torch.equal(drawn, local.leave([WIDE], second).message["update"])


def test_a_party_gets_each_noise_once() -> None:
    local = Release(Gaussian(1.0, 1.0), AT_PARTY)
    party = a_party()
    local.leave([WIDE], party)
    with pytest.raises(RuntimeError, match="twice"):
        local.leave([WIDE], party)


def test_the_aggregator_never_draws_the_same_noise_twice() -> None:
    release, run = Release(Gaussian(1.0, 1.0)), a_run()
    message = {"client-0": release.leave([WIDE], a_party())}
    first = release.arrive(message, run, round=0).value
    with pytest.raises(RuntimeError, match="twice"):
        release.arrive(message, run, round=0)
    assert independent(first, release.arrive(message, run, round=1).value)


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


@pytest.mark.parametrize("noise_at", [AT_PARTY, SPLIT(honest_survivors=3)])
def test_a_fused_sum_has_no_party_to_draw_its_noise(noise_at: Placement) -> None:
    with pytest.raises(UnsoundReleaseError, match=r"nobody would draw it.*AT_AGGREGATOR"):
        Release(Gaussian(1.0, 1.0), noise_at).arrive(
            BoundedSum(torch.ones(2), 1.0), a_run(), round=0
        )
    exact = Release(Gaussian(1.0, 0.0), noise_at)
    loose = BoundedSum(torch.ones(2), 9.0)
    assert exact.arrive(loose, a_run(), round=0).value.tolist() == [1.0, 1.0]


def test_a_fused_sum_that_is_bounded_too_loosely_is_refused() -> None:
    with pytest.raises(UnsoundReleaseError, match=r"bounded by 10.*covers 1\.0"):
        Release(Gaussian(1.0, 1.0)).arrive(BoundedSum(torch.ones(2), 10.0), a_run(), round=0)
    with pytest.raises(UnsoundReleaseError, match="bounded by nan"):
        Release(Gaussian(1.0, 1.0)).arrive(BoundedSum(torch.ones(2), math.nan), a_run(), round=0)


def test_a_sealed_sum_is_finished_on_shares_and_never_without_its_noise() -> None:
    messages = {
        "a": Reply({"update": torch.tensor([1.0, 5.0])}),
        "b": Reply({"update": torch.tensor([2.0, 5.0])}),
    }
    shared = Release(aggregation=SharedSum(), finish=ARGMAX)
    assert shared.arrive(messages, a_run(), round=0).value.item() == 1
    for release in (
        Release(Gaussian(1.0, 1.0), aggregation=SharedSum()),
        Release(GNMax(1.0), aggregation=SharedSum(), finish=ARGMAX),
    ):
        with pytest.raises(UnsupportedError, match="on shares"):
            release.arrive(messages, a_run(), round=0)


def test_noise_that_parties_drew_is_in_a_sealed_sum() -> None:
    release = Release(Gaussian(0.5, 3.0), SPLIT(honest_survivors=PARTIES), SharedSum())
    assert_power(std_is, released(release, SILENT), 1.5)


def test_sealing_opens_once_with_the_releases_finish() -> None:
    sealed = SharesOpenedLate(torch.tensor([3.0, 1.0]))
    assert sealed.open(ARGMAX, Exact()).item() == 0
    assert sealed.opened == [ARGMAX]


@pytest.mark.parametrize("mechanism", [Laplace(1.0, 1.0), LNMax(20.0)])
def test_a_split_of_laplace_noise_is_refused_when_it_is_planned(mechanism: Mechanism) -> None:
    release = Release(mechanism, SPLIT(honest_survivors=10), MaskedSum())
    with pytest.raises(UnsupportedError, match="split"):
        release.plans(unit=Unit.CLIENT, count=1, parties=9)
    with pytest.raises(UnsupportedError, match="split"):
        release.leave([torch.ones(1, 3)], a_party())


@dataclass(frozen=True)
class Remembering:
    """Adds the last noise again: a stand-in for correlated noise, whose state is a tensor."""

    about: About = About(theorem="", noisy=True, separation=2)

    def bound(self, contribution: Tensor) -> Tensor:
        return contribution

    def bound_again(self, total: Tensor, contributions: int) -> Tensor:
        return total

    def reach(self, message: Tensor, contributions: int, *, fraction: float) -> Reach:
        return Reach(norm=0.0, radius=1.0, bound=1.0)

    def sensitivity(self, relation: Relation) -> float:
        return 1.0

    def add(
        self, total: Tensor, state: State, stream: Stream, *, fraction: float = 1.0
    ) -> tuple[Tensor, State]:
        fresh = torch.from_numpy(stream.numpy().standard_normal(tuple(total.shape)))
        return total + fresh - (0 if state is None else state), fresh

    def event(self, exposure: Exposure, relation: Relation) -> Any:
        return Gaussian(1.0, 1.0).event(exposure, relation)

    def realised(self, total: Tensor) -> None:
        return

    def with_scale(self, scale: float) -> None:
        return


def remembered(run: Run) -> dict[str, Any]:
    """What mechanisms remember, as a checkpoint holds it."""
    run.checkpoint = kept = InMemory()
    run.keep(1)
    memory: dict[str, Any] = kept.state["memory"]
    return memory


def test_a_mechanisms_memory_reaches_from_release_to_release() -> None:
    release, run = Release(Remembering()), a_run()
    zeros = {"a": Reply({"update": torch.zeros(2000, dtype=torch.float64)})}
    total = sum(release.arrive(zeros, run, round=r).value for r in range(8))
    assert isinstance(total, Tensor)
    # The noises cancel but for the last one: eight independent ones would have std sqrt(8).
    assert_power(std_is, total, 1.0)
    assert set(remembered(run)) == {"update"}


def test_kinds_have_a_memory_each() -> None:
    release, run = Release(Remembering()), a_run()
    release.arrive({"a": Reply({"update": torch.zeros(3)})}, run, round=0)
    release.arrive({"a": Reply({"check": torch.zeros(5)})}, run, round=0, kind="check")
    assert {kind: len(state) for kind, state in remembered(run).items()} == {
        "update": 3,
        "check": 5,
    }


def test_parties_do_not_draw_noise_that_has_to_be_remembered() -> None:
    with pytest.raises(UnsupportedError, match=r"remembers.*AT_AGGREGATOR"):
        Release(Remembering(), AT_PARTY).leave([torch.zeros(3)], a_party())


@pytest.mark.parametrize("multiplier", [0.7, 20.0])
def test_whole_numbers_reach_what_masks_or_shares_them(multiplier: float) -> None:
    """Of a float32 update, too: nothing rounds the multiples before they are encoded."""
    mechanism, update = Gaussian(0.3, multiplier, secure=True), [torch.linspace(-1, 1, 3000)]
    grid = mechanism.about.grid
    assert grid is not None
    sealed = Release(mechanism, AT_PARTY, MaskedSum()).leave(update, a_party()).message["update"]
    assert sealed.dtype is torch.float64
    assert np.array_equal(quantised(sealed.numpy(), grid) * grid, sealed.numpy())
    # What the aggregator reads keeps its type, and the same noise: its multiples are lost.
    plain = Release(mechanism, AT_PARTY).leave(update, a_party()).message["update"]
    assert torch.equal(plain, sealed.float())
    assert not np.array_equal(quantised(plain.double().numpy(), grid) * grid, plain.double())
    # Noise in floats has no multiples to keep.
    floats = Release(Gaussian(0.3, multiplier), AT_PARTY, MaskedSum())
    assert floats.leave(update, a_party()).message["update"].dtype is torch.float32


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


def test_contributions_that_are_not_finite_are_counted_and_do_not_spread() -> None:
    broken = torch.tensor([math.nan, 1.0])
    huge = torch.tensor([math.inf, 1.0])
    reply = Release(Gaussian(1.0, 0.0)).leave([broken, huge, torch.tensor([0.5, 0.0])], a_party())
    assert reply.message["update"].tolist() == [0.5, 0.0]
    assert set(reply.message) == {"update"}
    assert reply.seen == Seen(numbers={NON_FINITE: 2.0})


def test_without_a_bound_nothing_is_replaced_or_counted() -> None:
    reply = Release().leave([torch.tensor([math.nan, 1.0])], a_party())
    assert set(reply.message) == {"update"}
    assert math.isnan(reply.message["update"][0])
    assert reply.seen == Seen()


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


@settings(deadline=None)
@given(rows=groups, data=st.data())
def test_one_changed_teacher_moves_the_counts_by_at_most_root_two(
    rows: list[list[float]], data: st.DataObject
) -> None:
    """Votes are counted as PATE counts them: several teachers at one party, one changed."""
    index, other = data.draw(st.integers(0, len(rows) - 1)), data.draw(vector)
    neighbour = [*rows[:index], other, *rows[index + 1 :]]

    def counts(teachers: list[list[float]]) -> Tensor:
        votes = [torch.tensor([teacher]) for teacher in teachers]
        return Release(GNMax(1.0)).leave(votes, a_party(), kind="votes").message["votes"]

    moved = float((counts(rows) - counts(neighbour)).norm())
    assert moved <= GNMax(1.0).sensitivity(ADD_REMOVE) + 1e-12
    assert moved == pytest.approx(0.0) or moved == pytest.approx(math.sqrt(2))


# ------------------------------------------------------------------------------------------ plans


def test_plans_default_to_three_observers_and_carry_theorem_and_assumptions() -> None:
    plans = Release(Gaussian(1.0, 1.0)).plans(
        unit=Unit.CLIENT, count=7, parties=4, assumptions=("it rains",)
    )
    assert [plan.observer.name for plan in plans] == ["public", "participant", "aggregator"]
    assert all(
        plan.charges[RELEASE].count == 7 and plan.assumptions == ("it rains",) for plan in plans
    )
    assert all("Gaussian mechanism" in plan.theorem for plan in plans)


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

VOTES = torch.tensor([[9.0, 0.0, 1.0], [4.0, 5.0, 1.0]], dtype=torch.float64)


def realised(release: Release, votes: Tensor | BoundedSum = VOTES) -> Any:
    """What a release of votes says of its exact cost."""
    given = votes if isinstance(votes, BoundedSum) else {"a": Reply({"votes": votes})}
    expected = Expected(contributions=10)
    return release.arrive(given, a_run(), round=0, kind="votes", expected=expected).realised


@pytest.mark.parametrize("mechanism", [GNMax(3.0), LNMax(3.0)])
def test_winners_come_with_the_cost_of_their_exact_votes(mechanism: GNMax | LNMax) -> None:
    assert realised(Release(mechanism, finish=ARGMAX)) == mechanism.realised(VOTES)


def test_no_exact_cost_is_stated_where_none_was_proved_or_nobody_can_tell() -> None:
    """The proofs speak of the winner alone, from counts before the noise that somebody reads."""
    for release in (
        Release(GNMax(3.0)),
        Release(GNMax(3.0), finish=Threshold(4.0)),
        Release(GNMax(3.0), reduce=MAX),
        Release(GNMax(3.0), AT_PARTY, finish=ARGMAX),
        Release(GNMax(3.0), aggregation=MaskedSum(), finish=ARGMAX),
        Release(Gaussian(1.0, 3.0), finish=ARGMAX),
        Release(finish=ARGMAX),
    ):
        assert realised(release) is None, release
    fused = BoundedSum(VOTES, 1.0)
    assert realised(Release(GNMax(3.0), finish=ARGMAX), fused) is None
    assert realised(Release(GNMax(3.0), finish=ARGMAX), VOTES[0]) is None


def test_a_release_uses_the_charge_that_it_names() -> None:
    release = Release(GNMax(3.0))
    plans = [
        release.plans(unit=Unit.CLIENT, count=2, parties=1, charge=kind)
        for kind in ("check", "answer")
    ]
    both = tuple(one.beside(other) for one, other in zip(*plans, strict=True))
    run = a_run(ledger=JournalLedger(both))
    assert run.spend(kind="answer")
    votes = {"a": Reply({"votes": VOTES})}
    for charge in ("check", RELEASE):
        with pytest.raises(BudgetExceededError, match="not paid for"):
            release.arrive(votes, run, round=0, kind="votes", charge=charge)
    ten = Expected(contributions=10)
    release.arrive(votes, run, round=0, kind="votes", charge="answer", expected=ten)
