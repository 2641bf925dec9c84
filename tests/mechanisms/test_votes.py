import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privtrain.accounting.calibration import calibrate_scale
from privtrain.accounting.epsilon import epsilon, evaluate
from privtrain.accounting.event import composed, repeated
from privtrain.accounting.gnmax import gnmax_rdp, lnmax_rdp
from privtrain.accounting.renyi import RdpCurve
from privtrain.core.observers import Exposure
from privtrain.core.statement import ADD_REMOVE, REPLACE_ONE, ZERO_OUT, Relation
from privtrain.mechanisms.mechanism import Mechanism
from privtrain.mechanisms.reach import Reach
from privtrain.mechanisms.votes import GNMax, LNMax, castable, one_vote
from tests.contracts.mechanism import PUBLIC_SUM

scores = st.lists(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=3, max_size=3),
    min_size=1,
    max_size=5,
)


def tensor(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@given(scores)
def test_every_teacher_has_at_most_one_vote_a_query(rows: list[list[float]]) -> None:
    votes = one_vote(tensor(rows))
    assert votes.shape == (len(rows), 3)
    assert votes.dtype == torch.float64
    for row, vote in zip(rows, votes, strict=True):
        finite = all(map(math.isfinite, row))
        assert vote.sum().item() == (1.0 if finite else 0.0)
        assert set(vote.tolist()) <= {0.0, 1.0}
        if finite:
            assert row[int(vote.argmax())] == max(row)


@given(scores, st.data())
def test_one_changed_teacher_moves_counts_by_at_most_the_sensitivity(
    rows: list[list[float]], data: st.DataObject
) -> None:
    others = data.draw(
        st.lists(
            st.lists(st.floats(), min_size=3, max_size=3), min_size=len(rows), max_size=len(rows)
        )
    )
    for mechanism, order in ((GNMax(1.0), 2), (LNMax(1.0), 1)):
        change = mechanism.bound(tensor(rows)) - mechanism.bound(tensor(others))
        moved = torch.linalg.vector_norm(change, ord=order, dim=1)
        for relation in (ADD_REMOVE, REPLACE_ONE, ZERO_OUT):
            assert float(moved.max()) <= mechanism.sensitivity(relation)


def test_the_sensitivity_is_reached() -> None:
    change = one_vote(tensor([[1, 0, 0]])) - one_vote(tensor([[0, 1, 0]]))
    assert float(change.norm()) == GNMax(1.0).sensitivity(ADD_REMOVE) == math.sqrt(2)
    assert float(change.abs().sum()) == LNMax(1.0).sensitivity(ADD_REMOVE) == 2.0


WINNER = replace(PUBLIC_SUM, finish_only=True, winner_only=True)
CHECKED = replace(PUBLIC_SUM, finish_only=True, largest_only=True, check_only=True)
LARGEST = replace(PUBLIC_SUM, largest_only=True)


@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE, ZERO_OUT])
@pytest.mark.parametrize("seen", [PUBLIC_SUM, WINNER, CHECKED, LARGEST])
@pytest.mark.parametrize("mechanism", [GNMax(4.0), LNMax(4.0)])
def test_a_vote_that_moves_costs_the_same_under_every_relation(
    mechanism: GNMax | LNMax, seen: Exposure, relation: Relation
) -> None:
    """Accountants double the sensitivity of a replaced contribution; that of a vote has it."""
    found, usual = (
        epsilon(mechanism.event(seen, under), 1e-5, relation=under, accountant="rdp")
        for under in (relation, ADD_REMOVE)
    )
    assert found == pytest.approx(usual, rel=1e-12)


def test_who_sees_less_is_charged_less() -> None:
    for mechanism in (GNMax(20.0), LNMax(20.0)):
        winner, histogram, check, largest = (
            evaluate(repeated(mechanism.event(seen, ADD_REMOVE), 100), 1e-5, ADD_REMOVE).epsilon
            for seen in (WINNER, PUBLIC_SUM, CHECKED, LARGEST)
        )
        assert 0 < check <= largest < histogram
        assert check < winner < histogram


def test_gnmax_is_a_gaussian_of_sensitivity_root_two_to_who_reads_the_counts() -> None:
    """1,000 answers at sigma 96.14, delta 1e-5: mu = sqrt(2 x 1000) / sigma, 1.84."""
    event = repeated(GNMax(96.14).event(PUBLIC_SUM, ADD_REMOVE), 1_000)
    found = evaluate(event, 1e-5, ADD_REMOVE)
    assert found.accountant == "pld"
    mu = math.sqrt(2_000) / 96.14

    def delta(epsilon: float) -> float:  # Balle and Wang 2018, Theorem 8
        return float(
            stats.norm.cdf(mu / 2 - epsilon / mu)
            - math.exp(epsilon) * stats.norm.cdf(-mu / 2 - epsilon / mu)
        )

    assert delta(found.epsilon) == pytest.approx(1e-5, rel=1e-2)
    assert found.epsilon == pytest.approx(1.84, abs=5e-3)
    # The same release to whoever sees the winner only, by its Rényi curve.
    winner = evaluate(repeated(GNMax(96.14).event(WINNER, ADD_REMOVE), 1_000), 1e-5, ADD_REMOVE)
    assert (winner.accountant, winner.cross_check) == ("rdp", None)
    assert 1.42 < winner.epsilon < 1.60


@pytest.mark.parametrize("seen", [PUBLIC_SUM, WINNER, CHECKED])
def test_the_hidden_part_of_gaussian_noise_counts(seen: Exposure) -> None:
    half = replace(seen, noise_known=0.75, variance=2.0)
    assert GNMax(4.0).event(half, ADD_REMOVE) == GNMax(4.0 * math.sqrt(0.5)).event(seen, ADD_REMOVE)
    known = replace(seen, noise_known=1.0)
    assert evaluate(GNMax(4.0).event(known, ADD_REMOVE), 1e-5, ADD_REMOVE).epsilon == math.inf


def test_lnmax_is_never_above_its_pure_epsilon() -> None:
    curve = LNMax(20.0).event(WINNER, ADD_REMOVE)
    assert isinstance(curve, RdpCurve)
    assert max(curve.rdp) <= 0.1
    assert all(
        found <= min(0.1, order * 0.01 / 2)
        for found, order in zip(curve.rdp, curve.orders, strict=True)
    )
    for seen, pure in ((PUBLIC_SUM, 0.1), (LARGEST, 0.05)):
        event = LNMax(20.0).event(seen, ADD_REMOVE)
        assert epsilon(event, 1e-12) == pytest.approx(pure, rel=2e-2)


def test_winners_checks_and_counts_compose() -> None:
    """A run may answer with winners and with counts, after checks: one figure of all of them."""
    for mechanism in (GNMax(20.0), LNMax(20.0)):
        events = [mechanism.event(seen, ADD_REMOVE) for seen in (WINNER, PUBLIC_SUM, CHECKED)]
        together = evaluate(composed(events), 1e-5, ADD_REMOVE)
        alone = [epsilon(event, 1e-5, accountant="rdp") for event in events]
        assert max(alone) < together.epsilon < sum(alone)


def test_noise_is_found_for_every_view() -> None:
    for seen in (WINNER, CHECKED, PUBLIC_SUM, LARGEST):
        for make in (GNMax, LNMax):
            scale = calibrate_scale(
                lambda scale, make=make, seen=seen: make(scale).event(seen, ADD_REMOVE),
                epsilon=2.0,
                delta=1e-5,
                count=50,
            )
            event = repeated(make(scale).event(seen, ADD_REMOVE), 50)
            assert 1.98 < evaluate(event, 1e-5, ADD_REMOVE).epsilon <= 2.0


@pytest.mark.parametrize(
    ("mechanism", "oracle"), [(GNMax(6.0), gnmax_rdp), (LNMax(6.0), lnmax_rdp)]
)
def test_the_realised_charge_sums_over_queries_and_is_no_larger(
    mechanism: GNMax | LNMax, oracle: object
) -> None:
    counts = torch.tensor([[90.0, 5.0, 5.0], [40.0, 30.0, 30.0], [34.0, 33.0, 33.0]])
    curve = mechanism.realised(counts)
    scale = 6.0
    assert callable(oracle)
    planned = mechanism.event(WINNER, ADD_REMOVE)
    assert isinstance(planned, RdpCurve)
    single = [oracle(row[None].numpy(), scale, np.asarray(curve.orders))[0] for row in counts]
    least = np.minimum(single, np.array(planned.rdp))
    assert curve.rdp == pytest.approx(np.sum(least, axis=0))
    assert (least < single).any()
    assert all(
        got <= most * (1 + 1e-12)
        for got, most in zip(curve.rdp, planned.repeated(3).rdp, strict=True)
    )
    assert curve.epsilon(1e-5) < planned.repeated(3).epsilon(1e-5)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_scales_are_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="sigma="):
        GNMax(scale)
    with pytest.raises(ValueError, match="scale="):
        LNMax(scale)


@pytest.mark.parametrize("mechanism", [GNMax(3.0), LNMax(3.0)])
def test_with_scale(mechanism: Mechanism) -> None:
    assert mechanism.with_scale(3.0) == mechanism
    assert mechanism.with_scale(4.0) == type(mechanism)(4.0)  # type: ignore[call-arg] # both take one


# ----------------------------------------------------------------------- what voters can have cast


def test_counts_that_voters_can_have_cast_stay_as_they_are() -> None:
    counts = tensor([[3.0, 0.0], [1.0, 2.0], [0.0, 0.0]])  # a teacher may give no vote
    assert castable(counts, 3) is counts
    assert GNMax(1.0).bound_again(counts, 3) is counts
    assert LNMax(1.0).bound_again(counts, 3) is counts


@pytest.mark.parametrize(
    "ballot", [[4.0, 0.0], [2.0, 2.0], [-1.0, 4.0], [0.5, 2.5], [math.nan, 1.0], [math.inf, 0.0]]
)
def test_an_invalid_ballot_counts_for_nobody_and_takes_no_other_along(ballot: list[float]) -> None:
    found = castable(tensor([[1.0, 2.0], ballot, [3.0, 0.0]]), 3)
    assert found.tolist() == [[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]]


def test_votes_with_noise_are_held_to_the_radius_of_one_query() -> None:
    """Not of all queries together, among which one could hide much more."""

    def reach(queries: int, largest: float) -> Reach:
        counts = torch.zeros(queries, 10, dtype=torch.float64)
        counts[-1, 0] = largest
        return GNMax(2.0).reach(counts, 5, fraction=1.0)

    one, many = reach(1, 0.0), reach(1_000, 0.0)
    assert one.radius == pytest.approx(5 + 2 * (math.sqrt(10) + math.sqrt(80 * math.log(2))))
    assert one.radius < many.radius < 1.3 * one.radius
    assert reach(1_000, 1.01 * many.radius).kept is False
    half = GNMax(2.0).reach(torch.zeros(1, 10), 5, fraction=0.25)
    assert half.radius == pytest.approx((one.radius + 5) / 2, rel=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_votes_of_any_shape_are_measured(shape: tuple[int, ...]) -> None:
    assert GNMax(2.0).reach(torch.ones(shape), 5, fraction=1.0).kept
    assert LNMax(2.0).reach(torch.ones(shape), 5, fraction=1.0).kept
