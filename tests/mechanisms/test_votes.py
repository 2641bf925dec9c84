import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privtrain.accounting.epsilon import evaluate
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


@pytest.mark.parametrize("relation", [ADD_REMOVE, REPLACE_ONE, ZERO_OUT])
def test_an_answer_costs_the_same_under_every_relation(relation: Relation) -> None:
    assert isinstance(GNMax(4.0).event(PUBLIC_SUM, relation), RdpCurve)
    curve = GNMax(4.0).event(PUBLIC_SUM, ADD_REMOVE)
    assert GNMax(4.0).event(PUBLIC_SUM, relation) == curve
    assert isinstance(curve, RdpCurve)
    assert curve.rdp == pytest.approx([order / 16 for order in curve.orders])


def test_gnmax_is_a_gaussian_of_sensitivity_root_two() -> None:
    """RDP of a Gaussian is order sensitivity^2 / (2 sigma^2); dp_accounting is the oracle."""
    from privtrain.accounting.epsilon import epsilon
    from privtrain.accounting.event import gaussian_event

    sigma = 5.0
    oracle = epsilon(gaussian_event(sigma / math.sqrt(2)), 1e-5, accountant="rdp")
    ours = evaluate(GNMax(sigma).event(PUBLIC_SUM, ADD_REMOVE), 1e-5, ADD_REMOVE).epsilon
    assert ours == pytest.approx(oracle, rel=2e-3)


def test_the_hidden_part_of_gaussian_noise_counts() -> None:
    half = Exposure(single_messages=False, knows_sample=False, noise_known=0.5)
    curve = GNMax(4.0).event(half, ADD_REMOVE)
    assert isinstance(curve, RdpCurve)
    assert curve.rdp == pytest.approx([order / 8 for order in curve.orders])


def test_lnmax_is_never_above_its_pure_epsilon() -> None:
    curve = LNMax(20.0).event(PUBLIC_SUM, ADD_REMOVE)
    assert isinstance(curve, RdpCurve)
    assert max(curve.rdp) == pytest.approx(0.1)
    assert curve.rdp == pytest.approx([min(0.1, order * 0.01 / 2) for order in curve.orders])


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
    single = [oracle(row[None].numpy(), scale, np.asarray(curve.orders))[0] for row in counts]
    assert curve.rdp == pytest.approx(np.sum(single, axis=0))
    planned = mechanism.event(PUBLIC_SUM, ADD_REMOVE)
    assert isinstance(planned, RdpCurve)
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
