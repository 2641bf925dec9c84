"""What leaves a party: each contribution bounded by itself, weighed, and noised once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privtrain.core.errors import UnsoundReleaseError
from privtrain.core.runtime import Seen
from privtrain.core.seeding import SYSTEM, SystemEntropy
from privtrain.core.statement import ADD_REMOVE
from privtrain.mechanisms.discrete import quantised
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.mechanisms.votes import GNMax
from privtrain.release.departure import NON_FINITE
from privtrain.release.door import Release
from privtrain.release.placement import AT_AGGREGATOR, AT_PARTY, SPLIT, Placement
from tests.contracts.aggregation import MaskedSum, a_party


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


WIDE = torch.zeros(3000)


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


vector = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)


groups = st.lists(vector, min_size=1, max_size=5)


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
