"""The largest value alone: noised once, charged as what one vote moves it by."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from privtrain.accounting.event import gaussian_event, laplace_event, repeated
from privtrain.accounting.winner import gnmax_check_rdp, gnmax_winner_rdp, lnmax_winner_rdp
from privtrain.core.errors import UnsupportedError
from privtrain.core.observers import AGGREGATOR, PARTICIPANT, PUBLIC, Exposure
from privtrain.core.runtime import Reply, Runtimes
from privtrain.core.statement import ADD_REMOVE, Unit
from privtrain.core.trainer import RELEASE
from privtrain.ledgers.run import epsilon_of
from privtrain.mechanisms.banded import BandedMatrix
from privtrain.mechanisms.gaussian import Gaussian, Laplace
from privtrain.mechanisms.mechanism import Exact, Mechanism
from privtrain.mechanisms.votes import GNMax, LNMax, one_vote
from privtrain.release import noising
from privtrain.release.aggregation import BoundedSum
from privtrain.release.arrival import Expected
from privtrain.release.door import Release
from privtrain.release.finish import ARGMAX, IDENTITY, Identity, Threshold
from privtrain.release.placement import AT_PARTY, SPLIT
from privtrain.release.reduce import MAX, NONE, Reduce, Reduced
from privtrain.release.shared import SharedSum
from privtrain.runtimes.in_process import InProcess
from privtrain.trainers.fedavg import FedAvg
from tests.contracts.aggregation import MaskedSum, a_run
from tests.statistics import assert_power, mean_is_zero, std_is

COUNTS = torch.tensor([[3.0, 5.0, 4.0], [9.0, 0.0, 2.0]], dtype=torch.float64)


def noised(release: Release, counts: Tensor, *, seed: int = 0, voters: int = 20) -> Tensor:
    """One release of counts that one party sent."""
    expected = Expected(contributions=voters)
    arrived = release.arrive(
        {"a": Reply({"votes": counts})}, a_run(seed), round=0, kind="votes", expected=expected
    )
    return arrived.value


def public_event(release: Release) -> Any:
    (plan,) = release.plans(unit=Unit.EXAMPLE, count=1, parties=3, observers=(PUBLIC,))
    return plan.charges[RELEASE].event


def test_the_largest_value_of_each_row_is_what_is_left() -> None:
    assert MAX(COUNTS).tolist() == [5.0, 9.0]
    assert torch.equal(NONE(COUNTS), COUNTS)
    assert MAX(COUNTS[0]).item() == 5.0
    assert [Reduce("max"), Reduce("none")] == [MAX, NONE]


def test_a_reduced_finish_computes_one_after_the_other() -> None:
    finish = Reduced(MAX, Threshold(6.0))
    assert finish(COUNTS).tolist() == [False, True]
    assert pickle.loads(pickle.dumps(finish)) == finish
    assert Reduced(NONE, IDENTITY)(COUNTS).equal(COUNTS)


def test_releases_with_it_are_frozen_values() -> None:
    release = Release(GNMax(4.0), reduce=MAX, finish=Threshold(2.0))
    assert (
        pickle.loads(pickle.dumps(release)) == release != Release(GNMax(4.0), finish=Threshold(2.0))
    )
    assert hash(release) == hash(pickle.loads(pickle.dumps(release)))
    assert Release(GNMax(4.0), reduce="max", finish=Threshold(2.0)) == release  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min"):
        Release(reduce="min")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Release(GNMax(4.0), AT_PARTY, MaskedSum(), IDENTITY, MAX)  # type: ignore[misc]


# ------------------------------------------------------------------------------- the mechanism


def counts_alike(queries: int) -> Tensor:
    return torch.tensor([[7.0, 7.0, 6.0]], dtype=torch.float64).repeat(queries, 1)


@pytest.mark.parametrize(
    ("mechanism", "std"),
    [(GNMax(3.0), 3.0), (LNMax(3.0), 3.0 * math.sqrt(2)), (Gaussian(50, 0.1), 5)],
)
def test_one_noise_is_on_the_largest_count(mechanism: Mechanism, std: float) -> None:
    """Not the largest of noised counts, which is larger and varies less."""
    found = noised(Release(mechanism, reduce=MAX), counts_alike(4_000), voters=10**6)
    assert found.shape == (4_000,)
    if isinstance(mechanism, LNMax):
        # The mean magnitude of Laplace noise is its scale: 5 standard deviations to either side.
        assert float(found.sub(7.0).abs().mean()) == pytest.approx(3.0, rel=0.08)
    else:
        assert_power(std_is, found - 7.0, std)
    assert mean_is_zero(found - 7.0, std)


def test_a_twin_that_reduces_after_the_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    add = noising._noised

    def reduced_after(release: Any, aggregate: Tensor, run: Any, round: int, kind: str) -> Tensor:
        """The broken twin: the largest of noised counts, as if reduced before the noise."""
        return add(release, counts_alike(len(aggregate)), run, round, kind).amax(dim=-1)

    monkeypatch.setattr(noising, "_noised", reduced_after)
    broken = noised(Release(GNMax(3.0), reduce=MAX), counts_alike(4_000))
    assert not mean_is_zero(broken - 7.0, 3.0)
    assert not std_is((broken - 7.0).numpy(), 3.0)


def test_a_threshold_is_reached_as_often_as_the_noise_says() -> None:
    from scipy import stats

    release = Release(GNMax(2.0), reduce=MAX, finish=Threshold(8.0))
    reached = int(noised(release, counts_alike(4_000)).sum())

    def chance(sigma: float) -> float:
        return float(stats.norm.sf(1.0 / sigma))

    assert stats.binomtest(reached, 4_000, chance(2.0)).pvalue > 1e-4
    for factor in (2 / 3, 3 / 2):
        assert stats.binomtest(reached, 4_000, chance(2.0 * factor)).pvalue < 1e-4


# ------------------------------------------------------------------------------ what it promises

scores = st.lists(st.lists(st.floats(-9, 9), min_size=4, max_size=4), min_size=1, max_size=9)


@given(scores, st.lists(st.floats(-9, 9), min_size=4, max_size=4))
def test_one_teacher_moves_the_largest_count_by_at_most_one(
    teachers: list[list[float]], changed: list[float]
) -> None:
    votes = one_vote(torch.tensor(teachers, dtype=torch.float64))
    others = one_vote(torch.tensor([changed, *teachers[1:]], dtype=torch.float64))
    moved = float((MAX(votes.sum(dim=0)) - MAX(others.sum(dim=0))).abs())
    assert moved <= 1.0


def test_neighbours_whose_largest_count_differs_by_one_exist() -> None:
    """All agree, or all but one: the sensitivity is reached, and less would be too little."""
    agree = one_vote(torch.tensor([[1.0, 0.0]] * 3))
    but_one = one_vote(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert float(MAX(agree.sum(dim=0)) - MAX(but_one.sum(dim=0))) == 1.0


def test_its_events_are_those_of_sensitivity_one() -> None:
    """Of a noised maximum that is read; a check's answer alone tells less."""
    assert public_event(Release(GNMax(6.0), reduce=MAX)) == gaussian_event(6.0)
    assert public_event(Release(LNMax(6.0), reduce=MAX)) == laplace_event(6.0)
    check = public_event(Release(GNMax(6.0), reduce=MAX, finish=Threshold(3.0)))
    orders = np.array(check.orders)
    assert np.array_equal(check.rdp, gnmax_check_rdp(6.0, orders))
    assert (np.array(check.rdp) <= orders / (2 * 36.0)).all()
    check = public_event(Release(LNMax(6.0), reduce=MAX, finish=Threshold(3.0)))
    assert check == laplace_event(6.0)
    # Winners: a vote leaves one class and joins another.
    event = public_event(Release(GNMax(6.0), finish=ARGMAX))
    assert np.array_equal(event.rdp, gnmax_winner_rdp(6.0, orders))
    event = public_event(Release(LNMax(6.0), finish=ARGMAX))
    assert np.array_equal(event.rdp, lnmax_winner_rdp(6.0, orders))
    # Counts that are read, and checks of each of them, show both.
    for finish in (IDENTITY, Threshold(3.0)):
        event = public_event(Release(GNMax(6.0), finish=finish))
        assert event == gaussian_event(6.0 / math.sqrt(2))
        assert public_event(Release(LNMax(6.0), finish=finish)) == repeated(laplace_event(6.0), 2)


def test_an_exact_gaussian_of_sensitivity_one_is_no_worse_than_what_is_charged() -> None:
    """Between the neighbours above: the charge of a check is below it, and near the truth."""
    from privtrain.accounting.epsilon import epsilon

    release = Release(GNMax(6.0), reduce=MAX, finish=Threshold(3.0))
    (plan,) = release.plans(unit=Unit.EXAMPLE, count=50, parties=3, observers=(PUBLIC,))
    found = epsilon_of(plan, plan.counts, 1e-5)
    true = epsilon(gaussian_event(6.0 / math.sqrt(50)), 1e-5)
    assert found < true
    # Read at its median at every check, the count is no less known than so.
    assert found > epsilon(gaussian_event(6.0 / math.sqrt(50 * 2 / math.pi)), 1e-5)
    (plan,) = Release(GNMax(6.0), reduce=MAX).plans(
        unit=Unit.EXAMPLE, count=50, parties=3, observers=(PUBLIC,)
    )
    assert epsilon_of(plan, plan.counts, 1e-5) == pytest.approx(true, rel=1e-3)


def test_a_clipped_sums_largest_value_costs_what_the_sum_does() -> None:
    for mechanism in (Gaussian(2.0, 1.5), Laplace(2.0, 1.5)):
        assert public_event(Release(mechanism, reduce=MAX)) == public_event(Release(mechanism))


def test_who_reads_single_messages_is_promised_nothing_and_others_are() -> None:
    release = Release(GNMax(6.0), reduce=MAX, finish=Threshold(3.0))
    observers = (PUBLIC, PARTICIPANT, AGGREGATOR)
    plans = release.plans(unit=Unit.EXAMPLE, count=1, parties=3, observers=observers)
    public, participant, aggregator = (epsilon_of(p, {RELEASE: 1}, 1e-5) for p in plans)
    assert 0 < public == participant < aggregator == math.inf
    assert "check's answer alone" in plans[0].theorem
    (read, *_) = Release(GNMax(6.0), reduce=MAX).plans(unit=Unit.EXAMPLE, count=1, parties=3)
    assert "reduce=MAX" in read.theorem
    assert any("only whether it is passed" in text for text in plans[0].assumptions)
    seen = Exposure(single_messages=False, knows_sample=True, noise_known=0.5, largest_only=True)
    assert GNMax(6.0).event(seen, ADD_REMOVE) == gaussian_event(6.0 * math.sqrt(0.5))


# -------------------------------------------------------------------------------- what is refused


def test_what_has_no_meaning_or_no_proof_is_refused() -> None:
    with pytest.raises(ValueError, match=r"finish=ARGMAX with reduce=NONE.*Threshold"):
        Release(GNMax(1.0), reduce=MAX, finish=ARGMAX)
    for noise_at in (AT_PARTY, SPLIT(honest_survivors=3)):
        with pytest.raises(UnsupportedError, match=r"before the noise.*AT_AGGREGATOR"):
            Release(GNMax(1.0), noise_at, reduce=MAX)
    with pytest.raises(UnsupportedError, match=r"BandedMatrix.*largest values is not known"):
        Release(BandedMatrix(1.0, 1.0, steps=8, bands=4), reduce=MAX)
    with pytest.raises(UnsupportedError, match="reduce=MAX needs messages"):
        fused = BoundedSum(torch.ones(2), 1.0)
        Release(Gaussian(1.0, 1.0), reduce=MAX).arrive(fused, a_run(), round=0)
    with pytest.raises(UnsupportedError, match=r"FedAvg needs the sum.*reduce=NONE"):
        FedAvg(release=Release(reduce=MAX))


def test_on_shares_it_is_refused_by_name_before_anything_is_spent() -> None:
    release = Release(Exact(), aggregation=SharedSum(), reduce=MAX, finish=Threshold(2.0))
    star = InProcess()
    with pytest.raises(UnsupportedError, match=r"Reduced\(.*MAX.*cannot be computed on shares"):
        release.check(Runtimes(star=star), parties=3)


def test_a_sum_that_stays_sealed_is_reduced_where_it_is_opened() -> None:
    from tests.contracts.aggregation import SharedSum as Sealed

    release = Release(Exact(), aggregation=Sealed(), reduce=MAX, finish=Identity())
    assert noised(release, COUNTS).tolist() == [5.0, 9.0]
