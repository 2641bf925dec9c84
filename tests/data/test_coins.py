"""Coins: uniform, a row's own, and of k copies the k-th."""

import time
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from privtrain.core.task import Rows, concatenate
from privtrain.data.coins import coins, digests, shared_coins
from tests.statistics import ALARM


def some(count: int, seed: int = 0, users: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    owners = torch.from_numpy(generator.integers(0, users, count)) if users else None
    return Rows(
        torch.from_numpy(generator.normal(size=(count, 4))),
        torch.from_numpy(generator.integers(0, 3, count)),
        owners,
    )


def test_coins_are_uniform_and_those_of_two_purposes_independent() -> None:
    rows = some(4_000)
    one, other = coins(rows, "one"), coins(rows, "other")
    assert one.min() >= 0 and one.max() < 1
    assert stats.kstest(one, "uniform").pvalue > ALARM
    assert stats.pearsonr(one, other).pvalue > ALARM
    assert stats.pearsonr(one, one).pvalue < ALARM


def test_copies_have_coins_of_their_own() -> None:
    """Many equal rows must not all go one way."""
    row = some(1)
    copies = coins(row.take(torch.zeros(2_000, dtype=torch.long)), "one")
    assert len(set(copies.tolist())) == 2_000
    assert stats.kstest(copies, "uniform").pvalue > ALARM


def test_equal_rows_share_a_coin_where_they_are_asked_to() -> None:
    rows = some(50)
    assert np.array_equal(shared_coins(rows, "one"), coins(rows, "one"))
    thrice = concatenate([rows] * 3)
    assert np.array_equal(shared_coins(thrice, "one"), np.tile(coins(rows, "one"), 3))
    owned = some(50, users=7)
    assert np.array_equal(shared_coins(owned, "one"), coins(owned, "one"))
    assert len(shared_coins(rows.take(torch.arange(0)), "one")) == 0


@pytest.mark.parametrize("seed", range(5))
def test_removing_a_row_takes_its_coin_and_no_other_one(seed: int) -> None:
    """Coins as a set of (row, coin): copies are interchangeable, so the last copy's coin goes."""
    distinct = some(12, seed)
    rows = distinct.take(torch.from_numpy(np.random.default_rng(seed).integers(0, 12, 60)))
    whole = Counter(zip(rows.inputs[:, 0].tolist(), coins(rows, "x").tolist(), strict=True))
    for place in range(60):
        rest = rows.take(torch.tensor([n for n in range(60) if n != place]))
        now = Counter(zip(rest.inputs[:, 0].tolist(), coins(rest, "x").tolist(), strict=True))
        gone = whole - now
        assert not now - whole
        assert [row for row, _ in gone.elements()] == [float(rows.inputs[place, 0])]


def test_a_coin_follows_from_all_bits_of_the_row_and_from_its_label() -> None:
    rows = some(3)
    nudged = Rows(rows.inputs.clone(), rows.labels.clone())
    nudged.inputs[1, 3] = torch.nextafter(nudged.inputs[1, 3], torch.tensor(9.0).double())
    relabelled = Rows(rows.inputs, (rows.labels + torch.tensor([0, 1, 0])) % 3)
    for other in (nudged, relabelled):
        assert (coins(rows, "x") == coins(other, "x")).tolist() == [True, False, True]
        equal = [a == b for a, b in zip(digests(rows, "x"), digests(other, "x"), strict=True)]
        assert equal == [True, False, True]
    assert digests(Rows(rows.inputs), "x") != digests(rows, "x")
    assert digests(some(0), "x") == [] and len(coins(some(0), "x")) == 0


def test_users_have_one_coin_and_names_one_each() -> None:
    rows = some(200, users=9)
    assert rows.users is not None
    drawn = coins(rows, "x")
    by_user = {user: set(drawn[rows.users.numpy() == user].tolist()) for user in range(9)}
    assert all(len(found) == 1 for found in by_user.values())
    assert len(set.union(*by_user.values())) == 9
    # Users count and not names; names count and not contents.
    names = torch.arange(200)
    assert (coins(rows, "x", names=names) == drawn).all()
    nobody = Rows(rows.inputs, rows.targets)
    assert (coins(nobody, "x", names=names) == coins(some(200, 1), "x", names=names)).all()


@pytest.mark.slow
def test_sixty_thousand_pictures_take_well_under_two_seconds() -> None:
    rows = Rows(torch.rand(60_000, 1, 28, 28), torch.zeros(60_000, dtype=torch.long))
    began = time.process_time()
    coins(rows, "x")
    assert time.process_time() - began < 2


def test_parts_put_together_again_are_all_rows() -> None:
    rows = some(50)
    low = torch.from_numpy(coins(rows, "x") < 0.3)
    again = concatenate([rows.take(low.nonzero()[:, 0]), rows.take((~low).nonzero()[:, 0])])
    assert sorted(again.inputs.tolist()) == sorted(rows.inputs.tolist())
